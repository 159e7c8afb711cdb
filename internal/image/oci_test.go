package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"hearth/internal/hearth"
)

// layout is an OCI layout being written.
type layout struct {
	t   *testing.T
	dir string
}

type object = map[string]any

func newLayout(t *testing.T) *layout {
	l := &layout{t: t, dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(l.dir, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *layout) blob(raw []byte) (digest string) {
	l.t.Helper()
	sum := sha256.Sum256(raw)
	name := hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(l.dir, "blobs", "sha256", name), raw, 0o600); err != nil {
		l.t.Fatal(err)
	}
	return "sha256:" + name
}

func (l *layout) json(v any) (digest string, size int) {
	l.t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.blob(raw), len(raw)
}

// image writes an image of gzip layers and returns its descriptor.
func (l *layout) image(arch string, layers ...[]byte) object {
	l.t.Helper()
	var descs []object
	var diffs []string
	for _, raw := range layers {
		sum := sha256.Sum256(raw)
		diffs = append(diffs, "sha256:"+hex.EncodeToString(sum[:]))
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		_, err := w.Write(raw)
		if err := errors.Join(err, w.Close()); err != nil {
			l.t.Fatal(err)
		}
		descs = append(descs, object{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": l.blob(buf.Bytes()), "size": buf.Len()})
	}
	cfg, n := l.json(object{
		"architecture": arch, "os": "linux", "rootfs": object{"type": "layers", "diff_ids": diffs},
		"config": object{"Env": []string{"PATH=/opt/bin", "EMPTY="}, "User": "app:app", "WorkingDir": "/srv"},
	})
	d, m := l.json(object{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": object{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": cfg, "size": n}, "layers": descs,
	})
	return object{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": d, "size": m, "platform": object{"os": "linux", "architecture": arch}}
}

func (l *layout) index(descs ...object) {
	l.t.Helper()
	raw, err := json.Marshal(object{"schemaVersion": 2, "manifests": descs})
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "index.json"), raw, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func TestLayout(t *testing.T) {
	l := newLayout(t)
	mine := l.image(runtime.GOARCH, archive(t, entry{name: "a", body: "1"}, entry{name: "b/c", body: "2"}), archive(t, entry{name: ".wh.a"}, entry{name: "b/d", body: "3"}))
	other := l.image("s390x", archive(t, entry{name: "x"}))
	inner, n := l.json(object{"schemaVersion": 2, "manifests": []object{other, mine}})
	l.index(object{"mediaType": "application/vnd.oci.image.index.v1+json", "digest": inner, "size": n})

	src := NewLayout(l.dir, DefaultLimits())
	dir := t.TempDir()
	if err := src.Unpack(t.Context(), dir, nil); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, dir); !slices.Equal(got, []string{"b/", "b/c", "b/d"}) {
		t.Errorf("got %v", got)
	}
	c, err := src.Config(t.Context())
	if err != nil || c.Env["PATH"] != "/opt/bin" || c.User != "app" || c.Workdir != "/srv" {
		t.Errorf("config %+v, %v", c, err)
	}
	if k, err := src.Key(t.Context()); err != nil || len(k) != 64 {
		t.Errorf("key %q, %v", k, err)
	}
}

func TestHostileLayouts(t *testing.T) {
	good := func(l *layout) object { return l.image(runtime.GOARCH, archive(t, entry{name: "a", body: "1"})) }
	only := func(l *layout) string { // the blob of the only layer
		list, _ := filepath.Glob(filepath.Join(l.dir, "blobs/sha256/*"))
		for _, p := range list {
			if raw, _ := os.ReadFile(p); bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
				return p
			}
		}
		t.Fatal("no layer")
		return ""
	}
	for _, tc := range []struct {
		name string
		make func(*layout)
		want string
	}{
		{"no index", func(*layout) {}, "no index.json"},
		{"index is not JSON", func(l *layout) { _ = os.WriteFile(filepath.Join(l.dir, "index.json"), []byte("<"), 0o600) }, "not an index"},
		{"no image", func(l *layout) { l.index() }, "0 images"},
		{"two images", func(l *layout) { g := good(l); l.index(g, g) }, "2 images"},
		{"digest is a path", func(l *layout) { g := good(l); g["digest"] = "sha256:../../../etc/passwd"; l.index(g) }, ""},
		{"digest of another kind", func(l *layout) { g := good(l); g["digest"] = "md5:d41d8cd98f00b204e9800998ecf8427e"; l.index(g) }, ""},
		{"manifest bomb", func(l *layout) { g := good(l); g["size"] = 1 << 40; l.index(g) }, "more than"},
		{"wrong size", func(l *layout) { g := good(l); g["size"] = 3; l.index(g) }, "not a file of 3 bytes"},
		{"layer changed", func(l *layout) {
			l.index(good(l))
			raw, _ := os.ReadFile(only(l))
			raw[len(raw)-1] ^= 1
			_ = os.WriteFile(only(l), raw, 0o600)
		}, ""},
		{"layer missing", func(l *layout) { l.index(good(l)); _ = os.Remove(only(l)) }, "is missing"},
		{"blob is a link out", func(l *layout) {
			l.index(good(l))
			p := only(l)
			_ = os.Rename(p, l.dir+".moved")
			t.Cleanup(func() { _ = os.Remove(l.dir + ".moved") })
			_ = os.Symlink(l.dir+".moved", p)
		}, "is missing"},
		{"index in itself", func(l *layout) {
			d := object{}
			for range maxNesting + 1 {
				list := []object{}
				if len(d) > 0 {
					list = append(list, d)
				}
				digest, n := l.json(object{"schemaVersion": 2, "manifests": list})
				d = object{"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": n}
			}
			l.index(d)
		}, "nested"},
		{"hostile layer", func(l *layout) {
			l.index(l.image(runtime.GOARCH, archive(t, entry{name: "../x", typ: tar.TypeReg})))
		}, "leaves its directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLayout(t)
			tc.make(l)
			err := NewLayout(l.dir, DefaultLimits()).Unpack(t.Context(), t.TempDir(), nil)
			if hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	if err := NewLayout("/does/not/exist", DefaultLimits()).Unpack(t.Context(), t.TempDir(), nil); hearth.KindOf(err) != hearth.NotFound {
		t.Error(err)
	}
}
