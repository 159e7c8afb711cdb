package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"hearth/internal/hearth"
)

type entry struct {
	name, body, link string
	typ              byte
	mode             int64
	size             int64 // instead of body's, for lies
	pax              map[string]string
	uid              int
}

var old = time.Unix(1_600_000_000, 0)

func archive(t testing.TB, list ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range list {
		if e.typ == 0 {
			e.typ = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o644
		}
		h := &tar.Header{
			Name: e.name, Linkname: e.link, Typeflag: e.typ, Mode: e.mode, Size: int64(len(e.body)), ModTime: old,
			PAXRecords: e.pax, Uid: os.Getuid() + e.uid, Gid: os.Getgid() + e.uid, Format: tar.FormatPAX,
		}
		if e.size != 0 {
			h.Size = e.size
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Flush() // a lie about a size leaves the archive unfinished, which is the point
	return append(buf.Bytes(), make([]byte, 1024)...)
}

func unpackInto(t testing.TB, dir string, limits Limits, oci bool, layers ...[]byte) (*unpacker, error) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	u := newUnpacker(root, limits)
	u.oci = oci
	for _, l := range layers {
		if err := u.layer(context.Background(), bytes.NewReader(l)); err != nil {
			return u, err
		}
	}
	return u, u.finish()
}

// tree lists what is below dir as "name" for files, "name/" and "name -> target".
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			rel += " -> " + target
		case d.IsDir():
			rel += "/"
		}
		list = append(list, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	u, err := unpackInto(t, dir, DefaultLimits(), false, archive(t,
		entry{name: "./", typ: tar.TypeDir, mode: 0o755},
		entry{name: "usr/lib/", typ: tar.TypeDir, mode: 0o755},
		entry{name: "lib", typ: tar.TypeSymlink, link: "usr/lib"},
		entry{name: "lib/through-link", body: "1"},
		entry{name: "/abs", body: "absolute names are below the root"},
		entry{name: "run", typ: tar.TypeSymlink, link: "/var/run"},
		entry{name: "var/run/", typ: tar.TypeDir, mode: 0o755},
		entry{name: "run/pid", body: "2"},
		entry{name: "suid", body: "x", mode: 0o4755},
		entry{name: "hard", typ: tar.TypeLink, link: "lib/through-link"},
		entry{name: "dev/null", typ: tar.TypeChar},
		entry{name: "pipe", typ: tar.TypeFifo},
		entry{name: "tagged", body: "y", pax: map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.xattr.trusted.x": "no"}},
	))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"abs", "dev/", "hard", "lib -> usr/lib", "pipe", "run -> /var/run", "suid", "tagged", "usr/", "usr/lib/", "usr/lib/through-link", "var/", "var/run/", "var/run/pid"}
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if u.skipped != 1 {
		t.Errorf("%d device nodes skipped", u.skipped)
	}
	if fi, _ := os.Stat(filepath.Join(dir, "suid")); fi.Mode()&fs.ModeSetuid == 0 || !fi.ModTime().Equal(old) {
		t.Errorf("suid: %v %v", fi.Mode(), fi.ModTime())
	}
	if fi, _ := os.Stat(filepath.Join(dir, "usr/lib")); !fi.ModTime().Equal(old) {
		t.Errorf("usr/lib is of %v", fi.ModTime())
	}
	a, _ := os.Stat(filepath.Join(dir, "hard"))
	b, _ := os.Stat(filepath.Join(dir, "usr/lib/through-link"))
	if !os.SameFile(a, b) {
		t.Error("a hard link became a copy")
	}
}

func TestHostileArchives(t *testing.T) {
	small := Limits{Bytes: 1 << 20, Entries: 50}
	many := make([]entry, 60)
	for i := range many {
		many[i] = entry{name: fmt.Sprintf("f%d", i)}
	}
	for _, tc := range []struct {
		name string
		list []entry
		want string // in the error
	}{
		{"dot dot", []entry{{name: "../escape", body: "x"}}, "leaves its directory"},
		{"dot dot inside", []entry{{name: "a/../../escape", body: "x"}}, "leaves its directory"},
		{"hard link out", []entry{{name: "l", typ: tar.TypeLink, link: "../outside"}}, "leaves its directory"},
		{"hard link through a link", []entry{{name: "up", typ: tar.TypeSymlink, link: ".."}, {name: "l", typ: tar.TypeLink, link: "up/secret"}}, "cannot unpack"},
		{"size bomb", []entry{{name: "big", size: 1 << 40}}, "more than 1 MiB"},
		{"many entries", many, "more than 50 entries"},
		{"deep", []entry{{name: strings.Repeat("d/", 70) + "f"}}, "more than 50 entries"},
		{"long name", []entry{{name: strings.Repeat("n", 5000)}}, "longer than"},
		{"link loop", []entry{{name: "a", typ: tar.TypeSymlink, link: "b"}, {name: "b", typ: tar.TypeSymlink, link: "a"}, {name: "a/x", body: "1"}}, "cannot unpack"},
		{"long link", []entry{{name: "a", typ: tar.TypeSymlink, link: strings.Repeat("l", 5000)}}, "bad symbolic link"},
		{"empty link", []entry{{name: "a", typ: tar.TypeSymlink}}, "bad symbolic link"},
		{"root as a file", []entry{{name: "./", typ: tar.TypeSymlink, link: "/etc"}}, "root directory"},
		{"cut short", []entry{{name: "f", body: "x", size: 100_000}}, "cannot unpack"},
		{"unknown type", []entry{{name: "f", typ: 'Z'}}, "unknown type"},
		{"owner", []entry{{name: "f", uid: 1 << 40}}, "impossible owner"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			outer := t.TempDir()
			if err := os.WriteFile(filepath.Join(outer, "secret"), []byte("s"), 0o600); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(outer, "root")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			_, err := unpackInto(t, dir, small, false, archive(t, tc.list...))
			if hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if got := tree(t, outer); len(got) < 2 || got[len(got)-1] != "secret" && !slices.Contains(got, "secret") {
				t.Errorf("outside: %v", got)
			}
		})
	}
}

func TestLinksCannotLeadOut(t *testing.T) {
	outer := t.TempDir()
	victim := filepath.Join(outer, "victim")
	dir := filepath.Join(outer, "root")
	for _, d := range []string{victim, dir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	_, err := unpackInto(t, dir, DefaultLimits(), false, archive(t,
		entry{name: "abs", typ: tar.TypeSymlink, link: victim},
		entry{name: "abs/owned", body: "inside"}, // resolved from the new root
		entry{name: "rel", typ: tar.TypeSymlink, link: "../../../../victim"},
		entry{name: "rel/owned", body: "inside"},
		entry{name: "file", typ: tar.TypeSymlink, link: filepath.Join(victim, "f")},
		entry{name: "file", body: "replaces the link"},
	))
	if err != nil {
		t.Fatal(err)
	}
	if got := tree(t, victim); len(got) != 0 {
		t.Errorf("written outside: %v", got)
	}
	if raw, err := os.ReadFile(filepath.Join(dir, "victim/owned")); err != nil || string(raw) != "inside" {
		t.Errorf("%q, %v", raw, err)
	}
}

func TestWhiteouts(t *testing.T) {
	lower := archive(t,
		entry{name: "a/one", body: "1"}, entry{name: "a/two", body: "2"}, entry{name: "a/sub/x", body: "3"},
		entry{name: "b/keep", body: "4"}, entry{name: "b/gone", body: "5"},
		entry{name: "c", body: "file becomes directory"}, entry{name: "d/x", body: "directory becomes file"},
		entry{name: "e/x", body: "6"})
	upper := archive(t,
		entry{name: "a/new", body: "n"}, entry{name: "a/.wh..wh..opq"}, // also when it comes after
		entry{name: "b/.wh.gone"}, entry{name: "b/.wh.neverwas"},
		entry{name: "c/inner", body: "i"}, entry{name: "d", body: "f"},
		entry{name: "e/", typ: tar.TypeDir, mode: 0o755}, entry{name: ".wh.e"}, // its own layer's directory stays
		entry{name: "f/.wh..wh.plnk"})
	dir := t.TempDir()
	u, err := unpackInto(t, dir, DefaultLimits(), true, lower)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	u.root = root
	// "c" is a file below and a directory above: the archive must say so.
	if err := u.layer(t.Context(), bytes.NewReader(archive(t, entry{name: "c/", typ: tar.TypeDir, mode: 0o755}))); err != nil {
		t.Fatal(err)
	}
	if err := u.layer(t.Context(), bytes.NewReader(upper)); err != nil {
		t.Fatal(err)
	}
	want := []string{"a/", "a/new", "b/", "b/keep", "c/", "c/inner", "d", "e/", "f/"}
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	for _, bad := range []string{".wh.", ".wh..", ".wh..."} {
		if err := u.layer(t.Context(), bytes.NewReader(archive(t, entry{name: bad}))); hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTarballCompression(t *testing.T) {
	plain := archive(t, entry{name: "f", body: "x"})
	var gz, zs bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = w.Write(plain)
	_ = w.Close()
	z, _ := zstd.NewWriter(&zs)
	_, _ = z.Write(plain)
	_ = z.Close()
	keys := map[string]bool{}
	for name, raw := range map[string][]byte{
		"plain": plain, "gzip": gz.Bytes(), "zstd": zs.Bytes(),
		"xz": {0xfd, '7', 'z', 'X', 'Z', 0}, "cut": gz.Bytes()[:20], "text": []byte(strings.Repeat("no archive ", 100)),
	} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		src := NewTarball(path, DefaultLimits())
		err := src.Unpack(t.Context(), dir, nil)
		if good := name == "plain" || name == "gzip" || name == "zstd"; good != (err == nil) || !good && hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		key, err := src.Key(t.Context())
		if err != nil || len(key) != 64 || keys[key] {
			t.Errorf("%s: key %q, %v", name, key, err)
		}
		keys[key] = true
	}
	if _, err := NewTarball(t.TempDir(), DefaultLimits()).Key(t.Context()); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Errorf("a directory: %v", err)
	}
	if _, err := NewTarball("/does/not/exist", DefaultLimits()).Key(t.Context()); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("a missing file: %v", err)
	}
}

// FuzzUnpack: whatever the bytes are, nothing outside the root changes, and the
// only errors are those of bad input.
func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, entry{name: "a/b", body: "x"}, entry{name: "l", typ: tar.TypeSymlink, link: "../.."}, entry{name: "l/x", body: "y"}), true)
	f.Add(archive(f, entry{name: ".wh..wh..opq"}, entry{name: "h", typ: tar.TypeLink, link: "h"}), true)
	f.Add(archive(f, entry{name: "../x", body: "y"}), false)
	f.Fuzz(func(t *testing.T, raw []byte, oci bool) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "root")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := unpackInto(t, dir, Limits{Bytes: 1 << 20, Entries: 100}, oci, raw)
		if err != nil && hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("error %v", err)
		}
		if list, _ := os.ReadDir(outer); len(list) != 1 {
			t.Errorf("outside: %v", list)
		}
		_ = os.Chmod(dir, 0o700)
	})
}
