package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const sample = `diff --git a/f b/f
index 1111111..2222222 100644
--- a/f
+++ b/f
@@ -1,3 +1,4 @@ func x
 one
-two
+TWO
+more
 three
@@ -5 +6,0 @@
-five
diff --git a/sub/new b/sub/new
new file mode 100644
index 0000000..3333333
--- /dev/null
+++ b/sub/new
@@ -0,0 +1,2 @@
+a
+b
`

func TestPatchIsApplied(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("f", "one\ntwo\nthree\nfour\nfive\nsix\n")
	write("sub/old", "")
	list, err := parse(sample)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if err := p.apply(dir); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"f": "one\nTWO\nmore\nthree\nfour\nsix\n", "sub/new": "a\nb\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	for _, p := range list { // a second time nothing is as it was
		if err := p.apply(dir); err == nil {
			t.Errorf("%s was patched twice", p.name)
		}
	}
}

func TestPatchThatDoesNotFitIsRefused(t *testing.T) {
	list, err := parse(sample)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "one\n", "one\nTWO\nthree\nfour\nfive\n", "zero\none\ntwo\nthree\nfour\nfive\n", "one\ntwo\nthree\nfour\nFIVE\n"} {
		if got, err := list[0].patched(text); err == nil {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestBadPatches(t *testing.T) {
	for name, text := range map[string]string{
		"text":      "hello\n",
		"no file":   "@@ -1 +1 @@\n-a\n+b\n",
		"no name":   "--- a/f\n",
		"renamed":   "--- a/f\n+++ b/g\n",
		"outside":   "--- /dev/null\n+++ b/../g\n",
		"cut":       "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n",
		"counts":    "--- a/f\n+++ b/f\n@@ -1,1 +1,2 @@\n a\n-b\n+c\n",
		"ranges":    "--- a/f\n+++ b/f\n@@ -1 @@\n a\n",
		"deleted":   "--- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n",
		"mode":      "diff --git a/f b/f\nold mode 100644\nnew mode 100755\n",
		"no end":    "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n",
		"negative":  "--- a/f\n+++ b/f\n@@ --1 +1 @@\n-a\n+b\n",
		"blank":     "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n\n",
		"other dir": "--- b/f\n+++ b/f\n",
	} {
		if list, err := parse(text); err == nil {
			t.Errorf("%s: %+v", name, list)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample)
	f.Add("--- a/f\n+++ b/f\n@@ -0,0 +1 @@\n+a\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parse(text)
		if err != nil {
			return
		}
		for _, p := range list {
			_, _ = p.patched(strings.Repeat("a\n", 10))
		}
	})
}

// The patches that are here fit the module that is pinned, line by line.
func TestPatchesFitThePinnedModule(t *testing.T) {
	t.Chdir("../../../..")
	source, err := pinned()
	if err != nil {
		t.Skip("the module cannot be had here:", err)
	}
	list, _, err := readPatches(patches)
	if err != nil {
		t.Fatal(err)
	}
	changed := map[string]string{} // by patches before
	for _, p := range list {
		old, again := changed[p.name]
		if !again {
			raw, err := os.ReadFile(filepath.Join(source.Dir, p.name))
			if p.created != os.IsNotExist(err) {
				t.Errorf("%s: new %t, %v", p.name, p.created, err)
				continue
			}
			old = string(raw)
		}
		text, err := p.patched(old)
		if err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
		changed[p.name] = text
		// Apache-2.0, 4(b): changed files say so.
		if !p.created && !strings.Contains(text, "\n// Changed by the Hearth Authors") {
			t.Errorf("%s does not say that it was changed", p.name)
		}
		for _, h := range p.hunks {
			if !p.created && !h.explained() {
				t.Errorf("%s, line %d: the change has no comment that begins with Hearth", p.name, h.start)
			}
		}
	}
}

// explained reports whether one of the lines that a hunk adds is a comment of ours.
func (h hunk) explained() bool {
	return slices.ContainsFunc(h.now, func(line string) bool {
		return strings.Contains(line, "Hearth") && !slices.Contains(h.before, line)
	})
}
