package account

import (
	"encoding/base64"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/hearth"
)

func TestResolve(t *testing.T) {
	who := Account{Name: "user", Home: "/home/user"}
	for _, c := range []struct{ path, workdir, want string }{
		{"", "", "/home/user"}, {"", "/app", "/app"}, {"", "app", "/home/user/app"},
		{"~", "/app", "/home/user"}, {"~/", "/app", "/home/user"}, {"~/x/../y", "", "/home/user/y"},
		{"a/b", "/app", "/home/user/a/b"}, {"./a", "", "/home/user/a"}, {"..", "", "/home"},
		{"/abs", "/app", "/abs"}, {"/a/../../b", "", "/b"}, {"/", "", "/"}, {"../../../../x", "", "/x"},
		{"a~b", "", "/home/user/a~b"},
	} {
		if got, err := who.Resolve(c.path, c.workdir); err != nil || got != c.want {
			t.Errorf("Resolve(%q, %q) = %q, %v; want %q", c.path, c.workdir, got, err, c.want)
		}
	}
	for _, bad := range []string{"~root", "~root/x", "a\x00b", strings.Repeat("x", 5000)} {
		if got, err := who.Resolve(bad, ""); hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("Resolve(%.20q) = %q, %v; want InvalidArgument", bad, got, err)
		}
	}
}

func FuzzResolve(f *testing.F) {
	for _, s := range []string{"", "~", "~/..", "~x", "//a//b/./..", "a\x00", "\xff/../..", "/../~"} {
		f.Add(s, "/w")
	}
	f.Fuzz(func(t *testing.T, path, workdir string) {
		who := Account{Home: "/home/user"}
		got, err := who.Resolve(path, workdir)
		if err != nil {
			return
		}
		if !filepath.IsAbs(got) || filepath.Clean(got) != got || path != "" && strings.IndexByte(got, 0) >= 0 {
			t.Errorf("Resolve(%q) = %q", path, got)
		}
		if again, err := who.Resolve(got, ""); len(got) <= maxPath && strings.IndexByte(got, 0) < 0 && (err != nil || again != got) {
			t.Errorf("Resolve(%q) = %q, resolved again %q, %v", path, got, again, err)
		}
	})
}

func TestFromBasic(t *testing.T) {
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	for header, want := range map[string]string{
		"": "root", basic("root:"): "root", basic("root:password"): "root", "Bearer abc": "root",
		"basic cm9vdDo=": "root", "Basic !!!": "root", basic("no-colon"): "root",
	} {
		who, err := new(Book).FromBasic(header, "root")
		if err != nil || who.Name != want || who.UID != 0 || len(who.Groups) == 0 {
			t.Errorf("FromBasic(%q) = %+v, %v", header, who, err)
		}
	}
	for _, name := range []string{"no-such-user", "", "a\nb", strings.Repeat("x", 1000)} {
		_, err := new(Book).FromBasic(basic(name+":"), "root")
		if hearth.KindOf(err) != hearth.Unauthenticated || !strings.HasPrefix(err.Error(), "invalid username: '") {
			t.Errorf("FromBasic(%.20q): %v", name, err)
		}
	}
}

func FuzzBasic(f *testing.F) {
	f.Add("Basic cm9vdDo=")
	f.Add("basic  eA==")
	f.Fuzz(func(t *testing.T, header string) {
		if name, ok := basicUser(header); ok && strings.Contains(name, ":") {
			t.Errorf("basicUser(%q) = %q", header, name)
		}
		_, _ = new(Book).FromBasic(header, "root")
	})
}
