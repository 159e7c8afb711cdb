package arch

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "hearth"

// pkg is one package of the tree, as `go list` sees it for a normal build.
type pkg struct {
	Dir        string
	ImportPath string
	GoFiles    []string
	Imports    []string

	rel   string // import path below the module
	fset  *token.FileSet
	files map[string]*ast.File
}

// generated reports packages that only machines write.
func (p *pkg) generated() bool { return strings.HasPrefix(p.rel, "internal/gen/") }

// load lists and parses every package of the module.
func load(t *testing.T) []*pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=Dir,ImportPath,GoFiles,Imports", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []*pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		p := &pkg{fset: token.NewFileSet(), files: map[string]*ast.File{}}
		if err := dec.Decode(p); err != nil {
			t.Fatal(err)
		}
		p.rel = strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if !p.generated() {
			for _, name := range p.GoFiles {
				f, err := parser.ParseFile(p.fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
				if err != nil {
					t.Fatal(err)
				}
				p.files[name] = f
			}
		}
		list = append(list, p)
	}
	return list
}

// lines counts the lines of a source file.
func lines(t *testing.T, path string) int {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(raw), "\n")
}
