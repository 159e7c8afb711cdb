package arch

import (
	"go/ast"
	"go/token"
	"path/filepath"
	"testing"
)

const (
	maxFile       = 500 // lines
	maxFunc       = 70  // lines
	maxCyclomatic = 15
	maxParams     = 5
	maxMethods    = 10   // of an interface
	maxPackage    = 2500 // lines without tests
)

// excused lists what may be larger, and why.
var excused = map[string]string{
	"internal/hearth.CanBecome":            "the state table, a condition an edge",
	"internal/driver/gvisor.sentryVersion": "gVisor's own, which its linker flag would set, set once as a sandbox process begins",
}

func TestSizes(t *testing.T) {
	for _, p := range load(t) {
		if p.generated() {
			continue
		}
		total := 0
		for name, f := range p.files {
			n := lines(t, filepath.Join(p.Dir, name))
			total += n
			if n > maxFile {
				report(t, p.rel+"/"+name, "has %d lines, more than %d", n, maxFile)
			}
			checkFile(t, p, f)
		}
		if total > maxPackage {
			report(t, p.rel, "has %d lines, more than %d", total, maxPackage)
		}
	}
}

func report(t *testing.T, what, format string, args ...any) {
	t.Helper()
	if _, ok := excused[what]; !ok {
		t.Errorf("%s "+format, append([]any{what}, args...)...)
	}
}

func checkFile(t *testing.T, p *pkg, f *ast.File) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			name := p.rel + "." + d.Name.Name
			if n := p.fset.Position(d.End()).Line - p.fset.Position(d.Pos()).Line + 1; n > maxFunc {
				report(t, name, "has %d lines, more than %d", n, maxFunc)
			}
			if n := cyclomatic(d); n > maxCyclomatic {
				report(t, name, "has cyclomatic complexity %d, more than %d", n, maxCyclomatic)
			}
			if n := d.Type.Params.NumFields(); n > maxParams {
				report(t, name, "has %d parameters, more than %d", n, maxParams)
			}
			if d.Recv == nil && d.Name.Name == "init" {
				report(t, name, "is an init function")
			}
			if d.Name.IsExported() {
				checkBool(t, name, d)
			}
		case *ast.GenDecl:
			checkInterfaces(t, p, d)
		}
	}
}

// checkBool refuses bool parameters in exported functions: a call site does not
// say what true means.
func checkBool(t *testing.T, name string, d *ast.FuncDecl) {
	for _, f := range d.Type.Params.List {
		if id, ok := f.Type.(*ast.Ident); ok && id.Name == "bool" {
			report(t, name, "has a bool parameter")
		}
	}
}

func checkInterfaces(t *testing.T, p *pkg, d *ast.GenDecl) {
	for _, s := range d.Specs {
		ts, ok := s.(*ast.TypeSpec)
		if !ok {
			continue
		}
		it, ok := ts.Type.(*ast.InterfaceType)
		if !ok {
			continue
		}
		methods := 0
		for _, m := range it.Methods.List {
			methods += len(m.Names)
		}
		if methods > maxMethods {
			report(t, p.rel+"."+ts.Name.Name, "has %d methods, more than %d", methods, maxMethods)
		}
	}
}

// cyclomatic is 1 plus the number of branches, as McCabe counts them.
func cyclomatic(d *ast.FuncDecl) int {
	n := 1
	ast.Inspect(d, func(x ast.Node) bool {
		switch x := x.(type) {
		case *ast.IfStmt, *ast.ForStmt, *ast.RangeStmt:
			n++
		case *ast.CaseClause:
			if x.List != nil {
				n++
			}
		case *ast.CommClause:
			if x.Comm != nil {
				n++
			}
		case *ast.BinaryExpr:
			if x.Op == token.LAND || x.Op == token.LOR {
				n++
			}
		}
		return true
	})
	return n
}
