package firecracker_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/blob"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/blob/fileblob"
	"hearth/internal/driver"
)

// archive keeps memories packed, as a node does.
type archive struct {
	t     *testing.T
	store *chunkblob.Store
	files *fileblob.Store
	lent  map[string]driver.Packed // by the directory of its checkpoint
}

func newArchive(t *testing.T, l *lab) *archive {
	t.Helper()
	caps, err := l.driver(t).Probe(t.Context())
	must(t, err)
	if caps.PackedFile == "" {
		t.Skip("this host has no userfaultfd")
	}
	if caps.PackedFile != "memory" {
		t.Fatalf("the driver takes a packed %q", caps.PackedFile)
	}
	a := &archive{t: t, lent: map[string]driver.Packed{}}
	a.files, err = fileblob.Open(t.TempDir())
	must(t, err)
	a.store, err = chunkblob.New(a.files, a.files.Temp(), nil)
	must(t, err)
	return a
}

// lent is a packed file.
type lent struct {
	store *chunkblob.Store
	name  string
	size  int64
}

func (l lent) Size() int64 { return l.size }

func (l lent) Lend(ctx context.Context) ([]byte, []*os.File, error) {
	loan, err := l.store.Lend(ctx, l.name)
	return loan.Layout, loan.Files, err
}

// pack leaves the memories of a checkpoint, and of all below it, in the archive alone.
func (a *archive) pack(c *driver.Checkpoint) *driver.Checkpoint {
	a.t.Helper()
	if c == nil {
		return nil
	}
	if a.lent[c.Dir] == nil {
		path := filepath.Join(c.Dir, "memory")
		raw, err := os.ReadFile(path)
		must(a.t, err)
		sum := sha256.Sum256(raw)
		name := hex.EncodeToString(sum[:])
		_, err = a.store.Pack(a.t.Context(), []blob.Source{{SHA256: name, Path: path}}, nil)
		must(a.t, err)
		must(a.t, os.Remove(path))
		a.lent[c.Dir] = lent{a.store, name, int64(len(raw))}
	}
	is := *c
	is.Packed, is.Base = map[string]driver.Packed{"memory": a.lent[c.Dir]}, a.pack(c.Base)
	return &is
}

// Machines start from memory that is in the archive alone, whole and in layers; they
// go on when the archive has forgotten it, and when nobody knows any more that it
// was packed.
func TestPackedMemory(t *testing.T) {
	l := newLab(t)
	a := newArchive(t, l)
	want := map[string]string{}
	from := a.pack(l.checkpoint(t, l.start(t, l.spec(t)), "k0", "0"))
	want["k0"] = "0"
	for i, key := range []string{"k1", "k2", "k3"} {
		spec := l.spec(t)
		spec.From = from
		m := l.start(t, spec)
		_ = pagerOf(t, m)
		if i == 2 {
			_, err := a.store.Collect(t.Context(), func(string) bool { return false })
			must(t, err)
			if m, err = l.driver(t).Attach(t.Context(), m.Handle()); err != nil {
				t.Fatal(err)
			}
		}
		for k, v := range want {
			if got := ask(t, m, "GET", "/memory", "key", k); got != v {
				t.Errorf("%s is %q, want %q", k, got, v)
			}
		}
		c := l.checkpoint(t, m, key, key)
		want[key] = key
		if c.Base == nil || c.Base.Dir != from.Dir || c.Layers() != i+2 {
			t.Fatalf("checkpoint %d lies over %+v", i, c.Base)
		}
		if i < 2 {
			from = a.pack(c)
		}
	}
}

// A machine whose memory is damaged in the archive does not start, or ends, and the
// reason is told. Nothing is left, and nothing waits.
func TestPackedMemoryThatIsDamaged(t *testing.T) {
	l := newLab(t)
	a := newArchive(t, l)
	from := a.pack(l.checkpoint(t, l.start(t, l.spec(t)), "k", strings.Repeat("v", 10_000)))
	before := l.count(t)
	for info, err := range a.files.List(t.Context(), "packs/") {
		must(t, err)
		path, err := a.files.Path(t.Context(), info.Key)
		must(t, err)
		must(t, os.Chmod(path, 0o600))
		must(t, os.Truncate(path, 60))
	}
	spec := l.spec(t)
	spec.From = from
	m, err := l.driver(t).Start(t.Context(), spec)
	if err == nil {
		must(t, m.Close(t.Context()))
		t.Fatal("it started")
	}
	for _, word := range []string{"pager", "packed file", "damaged"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the reason does not speak of %q: %v", word, err)
		}
	}
	if left, err := os.ReadDir(spec.Dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	l.settles(t, before)
}

// What cannot be lent, or is of another size, is refused before anything runs.
func TestPackedMemoryThatDoesNotFit(t *testing.T) {
	l := newLab(t)
	a := newArchive(t, l)
	from := a.pack(l.checkpoint(t, l.start(t, l.spec(t)), "k", "v"))
	before := l.count(t)
	whole := from.Packed["memory"].(lent)
	for name, packed := range map[string]driver.Packed{
		"short": lent{whole.store, whole.name, whole.size - 4096},
		"gone":  lent{whole.store, strings.Repeat("0", 64), whole.size},
	} {
		c := *from
		c.Packed = map[string]driver.Packed{"memory": packed}
		spec := l.spec(t)
		spec.From = &c
		if m, err := l.driver(t).Start(t.Context(), spec); err == nil {
			t.Errorf("%s: it started", name)
			must(t, m.Close(t.Context()))
		}
		if left, err := os.ReadDir(spec.Dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	l.settles(t, before)
}
