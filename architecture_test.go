// Package acmebridge_test keeps the shape of the whole: who may import whom.
package acmebridge_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module  = "github.com/acme-bridge/acme-bridge/"
	program = "cmd/acme-bridge"
)

// mayImport is the star: what of ours each package may import. Only the program
// imports them all; tests may import what they need.
var mayImport = map[string][]string{
	"acme":                {},
	"acme/owntls":         {"acme"},
	"acme/server":         {"acme"},
	"acme/validation":     {"acme"},
	"acme/worker":         {"acme"},
	"admin":               {"acme"},
	"backend/certmanager": {"acme", "internal/ncloud"},
	"backend/local":       {"acme"},
	"backend/privateca":   {"acme", "internal/ncloud"},
	"backend/upstream":    {"acme"},
	"config":              {"acme"},
	"internal/ncloud":     {},
	"publisher":           {},
	"publisher/globaldns": {"acme", "internal/ncloud", "publisher"},
	"publisher/rfc2136":   {"publisher"},
	"storage/bolt":        {"acme"},
	"storage/redis":       {"acme"},

	// For tests only.
	"internal/ncloudtest":               {},
	"internal/ncloudtest/ncp-simulator": {"internal/ncloudtest"},
	"storage/storagetest":               {"acme"},
}

// A goPackage is what go list tells of a package.
type goPackage struct {
	Dir, ImportPath         string
	Imports, Deps           []string
	GoFiles, IgnoredGoFiles []string
}

func (p *goPackage) name() string { return strings.TrimPrefix(p.ImportPath, module) }

func goList(t *testing.T, args ...string) []*goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=Dir,ImportPath,Imports,Deps,GoFiles,IgnoredGoFiles"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &stderr)
	}
	var packages []*goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := &goPackage{}
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		t.Fatalf("%s: no packages", cmd)
	}
	return packages
}

// ours are the module's packages that hold more than tests.
func ours(t *testing.T) []*goPackage {
	t.Helper()
	return slices.DeleteFunc(goList(t, "./..."), func(p *goPackage) bool {
		return len(p.GoFiles) == 0
	})
}

func TestImportsAreAStar(t *testing.T) {
	seen := make(map[string]bool)
	for _, p := range ours(t) {
		seen[p.name()] = true
		if p.name() == program {
			continue
		}
		allowed, known := mayImport[p.name()]
		if !known {
			t.Errorf("package %s has no place in the picture: add it to this test and to the documentation", p.name())
			continue
		}
		for _, path := range p.Imports {
			if name, ok := strings.CutPrefix(path, module); ok && !slices.Contains(allowed, name) {
				t.Errorf("%s imports %s; of ours it may import %v", p.name(), name, allowed)
			}
		}
	}
	for name := range mayImport {
		if !seen[name] {
			t.Errorf("package %s is in this test but not in the tree", name)
		}
	}
}

// They are a module of their own, so that go list does not see them from here.
func TestBlackBoxTestsImportNothingOfOurs(t *testing.T) {
	seen := 0
	err := filepath.WalkDir("integration", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		seen++
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			name, ok := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module)
			if ok && !strings.HasPrefix(name, "integration/") {
				t.Errorf("%s imports %s", path, name)
			}
		}
		return nil
	})
	if err != nil || seen == 0 {
		t.Errorf("%d files read: %v", seen, err)
	}
}

func TestProgramHoldsNoTestCode(t *testing.T) {
	for _, tags := range []string{"", "failpoint"} {
		for _, path := range goList(t, "-tags", tags, "./"+program)[0].Deps {
			name, ok := strings.CutPrefix(path, module)
			if ok && slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return strings.HasSuffix(part, "test") }) || path == "testing" {
				t.Errorf("with tags %q the program holds %s", tags, path)
			}
		}
	}
}

// Nothing of ours happens because it was imported.
func TestNoInitAndNoBlankImport(t *testing.T) {
	for _, p := range ours(t) {
		for _, name := range slices.Concat(p.GoFiles, p.IgnoredGoFiles) {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			files := token.NewFileSet()
			file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Error(err)
				continue
			}
			for _, spec := range file.Imports {
				if spec.Name != nil && (spec.Name.Name == "_" || spec.Name.Name == ".") {
					t.Errorf("%s: import %s %s", files.Position(spec.Pos()), spec.Name.Name, spec.Path.Value)
				}
			}
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
					t.Errorf("%s: func init", files.Position(f.Pos()))
				}
			}
		}
	}
}
