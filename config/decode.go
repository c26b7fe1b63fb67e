package config

import (
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A decoder puts YAML nodes into a Config and collects what is wrong. It works
// on nodes since yaml's own decoding stops early, knows no key paths, and
// quotes values, secret ones too, in its errors.
type decoder struct {
	file  string
	lines map[string]int  // of every key that stands in the file
	seen  map[string]bool // keys with an error: the first is told, not what follows from it
	errs  Errors
	src   sources
}

func (d *decoder) has(key string) bool { return d.lines[key] > 0 }

// errorf records an error at a key's line or, if the key is not in the file, at
// that of the nearest key above it.
func (d *decoder) errorf(key, format string, args ...any) {
	if d.seen[key] {
		return
	}
	d.seen[key] = true
	line := 1
	for k := key; k != ""; k = parent(k) {
		if l := d.lines[k]; l > 0 {
			line = l
			break
		}
	}
	d.errs = append(d.errs, Error{File: d.file, Line: line, Key: key, Text: fmt.Sprintf(format, args...)})
}

func parent(key string) string {
	return key[:max(0, strings.LastIndexAny(key, ".["))]
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (d *decoder) root(doc *yaml.Node, c *Config) {
	if len(doc.Content) != 1 {
		return
	}
	n := doc.Content[0]
	if isNull(n) {
		return
	}
	d.value(n, reflect.ValueOf(c).Elem(), "")
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

type defaulter interface{ setDefaults() }

// value decodes n into v. A key without a value is as if it were left out.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind == yaml.AliasNode {
		d.errorf(path, "YAML aliases are not supported: write the value out")
		return
	}
	switch p := v.Addr().Interface().(type) {
	case *NotYet:
		if !isEmpty(n) {
			d.errorf(path, "not supported yet: leave it out")
		}
		return
	case *Secret:
		if isNull(n) {
			return
		}
		if !isString(n) {
			d.errorf(path, "must be text: the value in quotes, env:NAME or file:PATH")
		} else if err := p.parse(n.Value, d.src); err != nil {
			d.errorf(path, "%v", err)
		}
		return
	case interface{ parse(string) error }:
		if isNull(n) {
			return
		}
		if n.Kind != yaml.ScalarNode {
			d.errorf(path, "must be a single value, not a %s", kindOf(n))
		} else if err := p.parse(n.Value); err != nil {
			d.errorf(path, "%q %v", clip(n.Value), err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if isNull(n) && v.Type() == reflect.TypeFor[*Redis]() {
			d.errorf(path, "is empty: fill it in, or leave it out")
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		if p, ok := v.Interface().(defaulter); ok {
			p.setDefaults()
		}
		d.value(n, v.Elem(), path)
	case reflect.Struct:
		d.mapping(n, path, func(key string, at *yaml.Node, keyPath string) {
			d.field(v, key, at, keyPath, path)
		})
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		d.mapping(n, path, func(key string, at *yaml.Node, keyPath string) {
			d.name(key, keyPath)
			elem := reflect.New(v.Type().Elem()).Elem()
			d.value(at, elem, keyPath)
			if elem.IsNil() { // an alias, which was told
				elem.Set(reflect.New(elem.Type().Elem()))
			}
			v.SetMapIndex(reflect.ValueOf(key), elem)
		})
	case reflect.Slice:
		d.list(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

// mapping calls each for every key that is given once.
func (d *decoder) mapping(n *yaml.Node, path string, each func(key string, at *yaml.Node, keyPath string)) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.errorf(path, "must be keys with values, not a %s", kindOf(n))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, at := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			d.keyError(path, k.Line, "a key must be a plain word, not a %s", kindOf(k))
			continue
		}
		if k.ShortTag() == "!!merge" {
			d.keyError(join(path, k.Value), k.Line, "YAML merge keys are not supported: write the keys out")
			continue
		}
		keyPath := join(path, printable(k.Value))
		if first := d.lines[keyPath]; first > 0 {
			d.keyError(keyPath, k.Line, "given twice, first in line %d: remove one", first)
			continue
		}
		d.lines[keyPath] = k.Line
		each(k.Value, at, keyPath)
	}
}

// keyError reports what is wrong with a key itself, whatever was said of its
// namesakes.
func (d *decoder) keyError(key string, line int, format string, args ...any) {
	d.errs = append(d.errs, Error{File: d.file, Line: line, Key: key, Text: fmt.Sprintf(format, args...)})
}

func (d *decoder) field(v reflect.Value, key string, at *yaml.Node, keyPath, path string) {
	var known []string
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		if name == key {
			d.value(at, v.Field(i), keyPath)
			return
		}
		known = append(known, name)
	}
	if near := nearest(key, known); near != "" {
		d.errorf(keyPath, "unknown key; did you mean %s?", near)
		return
	}
	where := "at the top"
	if path != "" {
		where = "in " + path
	}
	d.errorf(keyPath, "unknown key; known %s: %s", where, strings.Join(known, ", "))
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

func (d *decoder) name(name, path string) {
	if !nameForm.MatchString(name) {
		d.errorf(path, "is no good name: use at most 63 letters, digits, - and _")
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.errorf(path, "must be a list, such as [a, b], not a %s", kindOf(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, at := range n.Content {
		elemPath := fmt.Sprintf("%s[%d]", path, i)
		d.lines[elemPath] = at.Line
		if isNull(at) {
			d.errorf(elemPath, "is empty")
			continue
		}
		d.value(at, out.Index(i), elemPath)
	}
	v.Set(out)
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	if isNull(n) {
		return
	}
	switch v.Kind() {
	case reflect.String:
		if !isString(n) {
			what := kindOf(n)
			if n.Kind == yaml.ScalarNode {
				d.errorf(path, "must be text, not a %s: put it in quotes", what)
			} else {
				d.errorf(path, "must be text, not a %s", what)
			}
			return
		}
		v.SetString(n.Value)
	case reflect.Bool:
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
			d.errorf(path, "must be true or false")
			return
		}
		v.SetBool(strings.EqualFold(n.Value, "true"))
	case reflect.Int, reflect.Int64:
		bits := 32
		if v.Kind() == reflect.Int64 {
			bits = 64
		}
		i, err := strconv.ParseInt(n.Value, 10, bits)
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil {
			d.errorf(path, "must be a whole number")
			return
		}
		v.SetInt(i)
	default:
		d.errorf(path, "cannot be set in a file")
	}
}

func isString(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" }

// isEmpty tells whether nothing is asked for: what a NotYet accepts.
func isEmpty(n *yaml.Node) bool {
	switch n.Kind {
	case yaml.SequenceNode, yaml.MappingNode:
		return len(n.Content) == 0
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!null":
			return true
		case "!!bool":
			return strings.EqualFold(n.Value, "false")
		}
		return n.Value == "" || n.Value == "0"
	}
	return false
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "mapping"
	case yaml.SequenceNode:
		return "list"
	case yaml.AliasNode:
		return "YAML alias"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "number"
	case "!!bool":
		return "boolean"
	case "!!timestamp":
		return "date"
	case "!!null":
		return "null"
	}
	return "text"
}

// printable quotes a key that could not be told apart in an error line.
func printable(key string) string {
	if nameForm.MatchString(key) {
		return key
	}
	return strconv.Quote(clip(key))
}

// clip bounds what an error repeats of a value.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// nearest returns the word at most two edits away from key, or "".
func nearest(key string, words []string) string {
	best, at := "", 3
	for _, w := range words {
		if n := edits(key, w, at); n < at && n < len(w) {
			best, at = w, n
		}
	}
	return best
}

// edits is the Levenshtein distance of two words, or limit if it is not less.
func edits(a, b string, limit int) int {
	if len(a) > len(b)+limit || len(b) > len(a)+limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
