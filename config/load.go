package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds what is read of a config file.
const maxFile = 1 << 20

// An Error is one thing wrong in a file.
type Error struct {
	File string
	Line int    // from 1
	Key  string // "profiles.internal.lifetime", or "" for the file as a whole
	Text string // what is wrong and what to do
}

func (e Error) Error() string {
	if e.Key == "" {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", e.File, e.Line, e.Key, e.Text)
}

// Errors are all that is wrong in a file, by line.
type Errors []Error

// Error returns one line for each error.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the single errors.
func (es Errors) Unwrap() []error {
	errs := make([]error, len(es))
	for i, e := range es {
		errs[i] = e
	}
	return errs
}

// Load reads a file. Its error is of type [Errors] if the contents are wrong.
func Load(path string) (*Config, error) {
	data, err := readFile(path, maxFile)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return Parse(path, data)
}

// Parse reads YAML; name stands for the file in errors, which are of type
// [Errors]. It looks up secrets and checks the TLS files that are named.
func Parse(name string, data []byte) (*Config, error) {
	d := newDecoder(name)
	c := d.config(data)
	if len(d.errs) > 0 {
		slices.SortStableFunc(d.errs, func(a, b Error) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
		})
		return nil, d.errs
	}
	return c, nil
}

func newDecoder(name string) *decoder {
	return &decoder{
		file:  name,
		lines: map[string]int{},
		seen:  map[string]bool{},
		src:   sources{env: os.LookupEnv, file: readFile},
	}
}

func (d *decoder) config(data []byte) *Config {
	c := new(Config)
	c.setDefaults()
	if len(data) > maxFile {
		d.errorf("", "the file is larger than %d bytes", maxFile)
		return c
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF): // nothing but comments
	case err != nil:
		d.syntax(err)
		return c
	default:
		if err := dec.Decode(new(yaml.Node)); err == nil {
			d.errorf("", "the file has more than one YAML document")
		} else if !errors.Is(err, io.EOF) {
			d.syntax(err)
		}
		d.root(&doc, c)
	}
	d.check(c)
	return c
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// syntax reports an error of the YAML parser, which names a line but no key.
func (d *decoder) syntax(err error) {
	text, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
		text = text[len(m[0]):]
	}
	d.errs = append(d.errs, Error{File: d.file, Line: line, Text: "this is not YAML: " + text})
}

// sources is where secrets and files come from.
type sources struct {
	env  func(name string) (string, bool)
	file func(path string, limit int64) ([]byte, error)
}

// readFile refuses what is not a regular file or larger than limit, so that a
// wrong path can neither hang nor fill the memory.
func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, nil
}

// Embedded returns what runs without a file, needs no root, and listens on
// loopback only: one database file and a local CA below dataDir.
func Embedded(dataDir string) *Config {
	c := new(Config)
	c.setDefaults()
	c.Server.Listen = "127.0.0.1:14000"
	c.Server.ExternalURL = "https://localhost:14000"
	c.Server.TLS.Profile = "default"
	c.Storage.Embedded.Path = dataDir
	backend := new(Backend)
	backend.setDefaults()
	backend.Type, backend.Path = BackendLocal, filepath.Join(dataDir, "ca")
	c.Backends = map[string]*Backend{"local": backend}
	zone := new(Validation)
	zone.setDefaults()
	zone.HTTPPort, zone.TLSPort, zone.Localhost = 5080, 5443, true
	zone.AllowNetworks = loopback()
	c.Validation = map[string]*Validation{"default": zone}
	profile := new(Profile)
	profile.setDefaults()
	profile.Description = "Certificates of the local CA, 90 days"
	profile.Backend, profile.ClientValidity = "local", true
	c.Profiles = map[string]*Profile{"default": profile}
	directory := new(Directory)
	directory.setDefaults()
	directory.Profiles, directory.DefaultProfile = []string{"default"}, "default"
	c.Directories = map[string]*Directory{"default": directory}
	return c
}

// LoadAdmin reads only where the admin listener is and what its token is, for
// commands that talk to a running server: what else is wrong in the file, such as
// secrets that only the server can read, does not matter to them.
func LoadAdmin(path string) (*Admin, error) {
	data, err := readFile(path, maxFile)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	d := newDecoder(path)
	c := d.config(data)
	var errs Errors
	for _, e := range d.errs {
		if e.Key == "" || e.Key == "admin" || strings.HasPrefix(e.Key, "admin.") {
			errs = append(errs, e)
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return &c.Admin, nil
}

// LoadCertManager reads only how one backend of type certmanager is reached, for
// commands that call the service themselves: neither other secrets nor other
// files of the configuration need to be there.
func LoadCertManager(path, name string) (*Backend, error) {
	data, err := readFile(path, maxFile)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	d := newDecoder(path)
	c := d.config(data)
	key := join("backends", printable(name))
	needed := map[string]bool{"": true, "backends": true, key: true}
	for _, k := range []string{"type", "base_url", "access_key", "secret_key", "timeout"} {
		needed[key+"."+k] = true
	}
	var errs Errors
	for _, e := range d.errs {
		if needed[e.Key] {
			errs = append(errs, e)
		}
	}
	b := c.Backends[name]
	switch {
	case len(errs) > 0:
		return nil, errs
	case b == nil:
		d.errs = nil
		d.dangling("backends", name, "backend", "backends", keysOf(c.Backends))
		return nil, d.errs
	case b.Type != BackendCertManager:
		return nil, Errors{{File: path, Line: max(d.lines[key], 1), Key: key, Text: fmt.Sprintf("is of type %s: name a backend of type %s", b.Type, BackendCertManager)}}
	}
	return b, nil
}

// LookupSecret returns the secret that a text stands for, as in a file: itself,
// env:NAME or file:PATH.
func LookupSecret(text string) (Secret, error) {
	var s Secret
	if text == "" {
		return s, nil
	}
	err := s.parse(text, sources{env: os.LookupEnv, file: readFile})
	return s, err
}
