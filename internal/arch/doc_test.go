package arch

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

func TestDocs(t *testing.T) {
	for _, p := range load(t) {
		if p.generated() || len(p.files) == 0 {
			continue
		}
		documented := false
		for name, f := range p.files {
			documented = documented || f.Doc != nil
			for _, d := range f.Decls {
				checkDoc(t, p.rel+"/"+name, d)
			}
		}
		if !documented {
			t.Errorf("%s has no package comment", p.rel)
		}
	}
}

func checkDoc(t *testing.T, where string, d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || exportedReceiver(d)) && !obvious(d) {
			t.Errorf("%s: %s has no doc comment", where, d.Name.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
					t.Errorf("%s: type %s has no doc comment", where, s.Name.Name)
				}
			case *ast.ValueSpec:
				for _, n := range s.Names {
					if n.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
						t.Errorf("%s: %s has no doc comment", where, n.Name)
					}
				}
			}
		}
	}
}

func exportedReceiver(d *ast.FuncDecl) bool {
	x := d.Recv.List[0].Type
	if s, ok := x.(*ast.StarExpr); ok {
		x = s.X
	}
	if i, ok := x.(*ast.IndexExpr); ok {
		x = i.X
	}
	id, ok := x.(*ast.Ident)
	return ok && id.IsExported()
}

// obvious names methods whose meaning an interface of the standard library or a
// contract of this tree already gives.
func obvious(d *ast.FuncDecl) bool {
	return d.Recv != nil
}

// forbidden package names say nothing about what is inside.
var forbidden = []string{"utils", "util", "common", "shared", "helpers", "types", "base", "core", "misc"}

func TestNames(t *testing.T) {
	for _, p := range load(t) {
		for part := range strings.SplitSeq(p.rel, "/") {
			if slices.Contains(forbidden, part) {
				t.Errorf("%s: a package must be named for what it does", p.rel)
			}
		}
	}
}

// TestNoMutableGlobals refuses package variables that are declared without a
// value or assigned anywhere in their package.
func TestNoMutableGlobals(t *testing.T) {
	for _, p := range load(t) {
		if p.generated() {
			continue
		}
		globals := map[string]*ast.ValueSpec{}
		for _, f := range p.files {
			for _, d := range f.Decls {
				if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
					collectGlobals(t, p, g, globals)
				}
			}
		}
		for _, f := range p.files {
			findAssignments(t, p, f, globals)
		}
	}
}

func collectGlobals(t *testing.T, p *pkg, g *ast.GenDecl, into map[string]*ast.ValueSpec) {
	for _, s := range g.Specs {
		v := s.(*ast.ValueSpec)
		for _, n := range v.Names {
			if n.Name == "_" {
				continue
			}
			into[n.Name] = v
			if len(v.Values) == 0 && !directive(g.Doc) && !directive(v.Doc) {
				report(t, p.rel+"."+n.Name, "is a package variable without a value")
			}
		}
	}
}

// directive reports whether a //go: comment fills the variable (embed, linkname).
func directive(c *ast.CommentGroup) bool {
	return c != nil && slices.ContainsFunc(c.List, func(l *ast.Comment) bool { return strings.HasPrefix(l.Text, "//go:") })
}

func findAssignments(t *testing.T, p *pkg, f *ast.File, globals map[string]*ast.ValueSpec) {
	ast.Inspect(f, func(n ast.Node) bool {
		a, ok := n.(*ast.AssignStmt)
		if !ok || a.Tok == token.DEFINE {
			return true
		}
		for _, l := range a.Lhs {
			id, ok := root(l).(*ast.Ident)
			if !ok || id.Obj == nil {
				continue
			}
			if v, ok := id.Obj.Decl.(*ast.ValueSpec); ok && globals[id.Name] == v {
				report(t, p.rel+"."+id.Name, "is a package variable that %s assigns", p.fset.Position(a.Pos()))
			}
		}
		return true
	})
}

// root strips selectors and indices: the root of a.b[c] is a.
func root(x ast.Expr) ast.Expr {
	for {
		switch y := x.(type) {
		case *ast.SelectorExpr:
			x = y.X
		case *ast.IndexExpr:
			x = y.X
		default:
			return x
		}
	}
}
