package shelf_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/fileblob"
	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/shelf"
)

// traveller is a shelf with a chain of three snapshots on one layer.
type traveller struct {
	*packed
	build hearth.Build
	list  []*hearth.Snapshot
}

func newTraveller(t *testing.T) *traveller {
	t.Helper()
	tr := &traveller{packed: newPackedShelf(t, blobtest.TempDir(t), 0)}
	layer := blobtest.NewSource(t, blobtest.Noise(50_000, 9))
	key := "layers/" + layer.SHA256
	if err := tr.plain.Adopt(t.Context(), key, layer.Path); err != nil {
		t.Fatal(err)
	}
	tr.build = hearth.Build{ID: "build", Layers: []string{key}, Env: map[string]string{"A": "b"}, User: "user"}
	tr.list = stack(t, tr.shelf, 3)
	return tr
}

func (tr *traveller) export() []byte {
	tr.t.Helper()
	var b bytes.Buffer
	if err := tr.shelf.Export(tr.t.Context(), tr.list[2].ID, tr.build, "", &b); err != nil {
		tr.t.Fatal(err)
	}
	return b.Bytes()
}

func arrive(t *testing.T, s *shelf.Shelf, id hearth.SnapshotID, raw []byte) (*hearth.Snapshot, *hearth.Build, error) {
	t.Helper()
	return s.Import(t.Context(), shelf.Arrival{ID: id, Owner: "guest", Limit: 1 << 20, Tmp: blobtest.TempDir(t)}, bytes.NewReader(raw))
}

func TestSnapshotTravels(t *testing.T) {
	from := newTraveller(t)
	raw := from.export()
	from.tidy() // the plain files go
	if again := from.export(); !bytes.Equal(raw, again) {
		t.Error("out of the archive it is not what it was")
	}
	to := newPackedShelf(t, blobtest.TempDir(t), 0)
	snap, build, err := arrive(t, to.shelf, "s9", raw)
	if err != nil {
		t.Fatal(err)
	}
	if snap.ID != "s9" || snap.Driver != "fake" || snap.Key != "k" || build.User != "user" || build.Env["A"] != "b" || len(build.Layers) != 1 || build.Layers[0] != from.build.Layers[0] {
		t.Errorf("got %+v of %+v", snap, build)
	}
	if _, err := to.plain.Stat(t.Context(), build.Layers[0]); err != nil {
		t.Error(err)
	}
	if _, _, err := arrive(t, to.shelf, "s9", raw); hearth.KindOf(err) != hearth.AlreadyExists {
		t.Errorf("under a name that is taken: %v", err)
	}
	to.tidy()
	to.reopen(0, nil)
	if err := to.shelf.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := to.shelf.Lay(t.Context(), snap, t.TempDir())
	if err != nil || contents(t, c) != "2,1,0" {
		t.Fatalf("laid %+v, %v", c, err)
	}
	if err := to.shelf.Remove(t.Context(), "s9"); err != nil { // and all that came with it
		t.Fatal(err)
	}
	to.tidy()
	for info := range to.plain.List(t.Context(), "snapshots/") {
		t.Errorf("left: %s", info.Key)
	}
	if n := to.stored(); n != 0 {
		t.Errorf("left: %d bytes", n)
	}
}

// remake unpacks a parcel, lets change alter its entries, and packs it again.
func remake(t *testing.T, raw []byte, change func(i int, h *tar.Header, b []byte) []byte, more ...string) []byte {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var out bytes.Buffer
	w, _ := zstd.NewWriter(&out)
	tw, tr := tar.NewWriter(w), tar.NewReader(z)
	for i := 0; ; i++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if b = change(i, h, b); b == nil {
			continue
		}
		h.Size = int64(len(b))
		if h.Typeflag != tar.TypeReg {
			h.Size, b = 0, nil
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range more {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestSecretTravels: beside the memory that it opens, and the first one stays.
func TestSecretTravels(t *testing.T) {
	from := newTraveller(t)
	var b bytes.Buffer
	if err := from.shelf.Export(t.Context(), from.list[2].ID, from.build, "secret one", &b); err != nil {
		t.Fatal(err)
	}
	for i, id := range []hearth.SnapshotID{"s8", "s9"} {
		to := newPackedShelf(t, blobtest.TempDir(t), 0)
		snap, build, err := arrive(t, to.shelf, id, b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if snap.Sandbox != "guest" || snap.Team != "" || snap.Alias != "" || snap.Kind != hearth.OwnedSnapshot {
			t.Errorf("believed what it was elsewhere: %+v", snap)
		}
		to.tidy()
		c, err := to.shelf.Lay(t.Context(), snap, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(filepath.Join(c.Dir, shelf.SecretFile))
		if err != nil || string(raw) != "secret one" {
			t.Errorf("journey %d: the secret is %q, %v", i+1, raw, err)
		}
		b.Reset()
		if err := to.shelf.Export(t.Context(), id, *build, "secret two", &b); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHostileArrivals: nothing that is not what Export wrote gets in, and
// nothing of it stays but layers.
func TestHostileArrivals(t *testing.T) {
	raw := newTraveller(t).export()
	entry := func(n int, change func(*tar.Header, []byte) []byte) []byte {
		return remake(t, raw, func(i int, h *tar.Header, b []byte) []byte {
			if i == n {
				return change(h, b)
			}
			return b
		})
	}
	flipped := func(_ *tar.Header, b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for name, b := range map[string][]byte{
		"empty": {}, "garbage": []byte("not a snapshot at all"), "cut short": raw[:len(raw)-20], "half": raw[:len(raw)/2],
		"layer flipped": entry(4, flipped), "file flipped": entry(5, flipped), "last flipped": entry(7, flipped),
		"index flipped": entry(1, flipped), "manifest flipped": entry(2, flipped), "config flipped": entry(3, flipped),
		"file missing": entry(5, func(*tar.Header, []byte) []byte { return nil }),
		"file longer":  entry(5, func(_ *tar.Header, b []byte) []byte { return append(b, 1) }),
		"other name":   entry(5, func(h *tar.Header, b []byte) []byte { h.Name = "../../etc/passwd"; return b }),
		"symlink": entry(5, func(h *tar.Header, b []byte) []byte {
			h.Typeflag, h.Linkname = tar.TypeSymlink, "/etc/passwd"
			return b
		}),
		"big document": entry(1, func(_ *tar.Header, _ []byte) []byte { return make([]byte, 2<<20) }),
		"one more":     remake(t, raw, func(_ int, _ *tar.Header, b []byte) []byte { return b }, "blobs/sha256/x"),
	} {
		t.Run(name, func(t *testing.T) {
			to := newPackedShelf(t, blobtest.TempDir(t), 0)
			if _, _, err := arrive(t, to.shelf, "s9", b); hearth.KindOf(err) != hearth.InvalidArgument {
				t.Errorf("got %v", err)
			}
			for info := range to.plain.List(t.Context(), "snapshots/") {
				t.Errorf("left: %s", info.Key)
			}
		})
	}
	to := newPackedShelf(t, blobtest.TempDir(t), 0)
	_, _, err := to.shelf.Import(t.Context(), shelf.Arrival{ID: "s9", Limit: 50_001, Tmp: t.TempDir()}, bytes.NewReader(raw))
	if hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), "larger than 50001") {
		t.Errorf("beyond the limit: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := to.shelf.Import(ctx, shelf.Arrival{ID: "s9", Limit: 1 << 20, Tmp: t.TempDir()}, bytes.NewReader(raw)); err == nil {
		t.Error("imported after the end of the context")
	}
}

// TestDamagedArrivals: wherever a bit is flipped or the file ends, it is the file that
// is wrong, not this server, and nothing of it stays: neither a snapshot nor a file on
// the way to one. The layer and the state are longer than what is decompressed at once.
func TestDamagedArrivals(t *testing.T) {
	from := newTraveller(t)
	layer := blobtest.NewSource(t, blobtest.Noise(300_000, 9))
	from.build.Layers = []string{"layers/" + layer.SHA256}
	if err := from.plain.Adopt(t.Context(), from.build.Layers[0], layer.Path); err != nil {
		t.Fatal(err)
	}
	big, err := from.shelf.Put(t.Context(), "o", hearth.Snapshot{ID: "big"}, checkpoint(t, map[string]string{"state": string(blobtest.Noise(300_000, 8))}))
	if err != nil {
		t.Fatal(err)
	}
	from.list[2] = big
	raw := from.export()
	to := newPackedShelf(t, blobtest.TempDir(t), 0)
	for at := range len(raw) {
		if at%20_011 != 0 && at > 20 && at < len(raw)-200 {
			continue
		}
		flipped := bytes.Clone(raw)
		flipped[at] ^= 1
		for what, b := range map[string][]byte{"flipped": flipped, "cut": raw[:at]} {
			as := shelf.Arrival{ID: hearth.NewSnapshotID(), Owner: "guest", Limit: 1 << 20, Tmp: blobtest.TempDir(t)}
			_, _, err := to.shelf.Import(t.Context(), as, bytes.NewReader(b))
			switch {
			case err == nil && bytes.Equal(unpacked(t, b), unpacked(t, raw)): // other bits that say the same
				if err := to.shelf.Remove(t.Context(), as.ID); err != nil {
					t.Fatal(err)
				}
			case hearth.KindOf(err) != hearth.InvalidArgument:
				t.Errorf("%s at %d of %d: %v", what, at, len(raw), err)
			}
			if left, err := os.ReadDir(as.Tmp); err != nil || len(left) > 0 {
				t.Errorf("%s at %d of %d leaves %v: %v", what, at, len(raw), left, err)
			}
		}
	}
	for info := range to.plain.List(t.Context(), "snapshots/") {
		t.Errorf("left: %s", info.Key)
	}
}

func unpacked(t *testing.T, raw []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	b, err := z.DecodeAll(raw, nil)
	if err != nil {
		t.Error(err)
	}
	return b
}

// TestExportIsVerified: what is damaged here does not pass for a snapshot there.
func TestExportIsVerified(t *testing.T) {
	from := newTraveller(t)
	flip(t, from.plain, "snapshots/s1/state", "1", "7")
	var b bytes.Buffer
	if err := from.shelf.Export(t.Context(), "s2", from.build, "", &b); err == nil {
		t.Error("exported what is damaged")
	}
	if err := from.shelf.Export(t.Context(), "gone", from.build, "", &b); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("a snapshot that is not there: %v", err)
	}
}

// TestImportDiesAnywhere cuts an import off at every change of the store.
func TestImportDiesAnywhere(t *testing.T) {
	raw := newTraveller(t).export()
	for n := 1; ; n++ {
		p := newPackedShelf(t, blobtest.TempDir(t), 0)
		store := &cut{Store: p.plain, left: n, after: n%2 == 0}
		s := shelf.New(store)
		_, _, err := arrive(t, s, "s9", raw)
		if !store.dead {
			if err != nil || n < 10 {
				t.Fatalf("%d changes, %v", n, err)
			}
			return
		}
		store.left, store.dead = -1, false
		s = shelf.New(store) // the next process
		if err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		snap, _, err := s.Find(t.Context(), "s9")
		if err == nil { // whole, then
			var c *driver.Checkpoint
			dir := t.TempDir()
			if c, err = s.Lay(t.Context(), snap, dir); err != nil || contents(t, c) != "2,1,0" {
				t.Fatalf("change %d: %v", n, err)
			}
			if err := os.RemoveAll(filepath.Join(dir, "s9")); err != nil {
				t.Fatal(err)
			}
			err = s.Remove(t.Context(), "s9")
		}
		if err != nil && hearth.KindOf(err) != hearth.NotFound {
			t.Fatalf("change %d: %v", n, err)
		}
		for info := range store.List(t.Context(), "snapshots/") {
			t.Errorf("change %d left %s", n, info.Key)
		}
	}
}

// TestReadable: a snapshot is there when each file of it, and of what it refers to, is
// there, plain or packed with all of its packs.
func TestReadable(t *testing.T) {
	for name, tc := range map[string]struct {
		plain, packed []string // what is lost, by how it begins
		ok            bool
	}{
		"all is there":                 {ok: true},
		"packed only":                  {plain: []string{"snapshots/s0/state", "snapshots/s1/state"}, ok: true},
		"one packed, one plain":        {plain: []string{"snapshots/s0/state"}, ok: true},
		"plain only":                   {packed: []string{"packs/", "files/"}, ok: true},
		"neither":                      {plain: []string{"snapshots/s1/state"}, packed: []string{"files/"}},
		"that of its base is neither":  {plain: []string{"snapshots/s0/state"}, packed: []string{"files/"}},
		"packed, and the pack is lost": {plain: []string{"snapshots/s1/state"}, packed: []string{"packs/"}},
		"its base's manifest is lost":  {plain: []string{"snapshots/s0/manifest.json"}},
		"its own manifest is lost":     {plain: []string{"snapshots/s1/manifest.json"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
			top := stack(t, p.shelf, 2)[1]
			p.tidy()
			for store, lost := range map[*fileblob.Store][]string{p.plain: tc.plain, p.packs: tc.packed} {
				for _, prefix := range lost {
					n := 0
					for info, err := range store.List(t.Context(), prefix) {
						must(t, errors.Join(err, store.Delete(t.Context(), info.Key)))
						n++
					}
					if n == 0 {
						t.Fatalf("nothing is %s", prefix)
					}
				}
			}
			p.reopen(1<<30, nil)
			if err := p.shelf.Readable(t.Context(), top.ID); (err == nil) != tc.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}
