package agent_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"hearth/internal/blob/chunkblob"
	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
)

const fakeFile = "guest.json" // of the fake driver's checkpoints

// packedToo is a driver that takes that file packed, and reads it when it likes.
type packedToo struct {
	driver.Driver
	lent *atomic.Int32
}

func (d packedToo) Probe(ctx context.Context) (driver.Capabilities, error) {
	caps, err := d.Driver.Probe(ctx)
	caps.PackedFile = fakeFile
	return caps, err
}

func (d packedToo) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	if spec.From != nil && spec.From.Packed[fakeFile] != nil {
		if err := fetch(ctx, spec.From); err != nil {
			return nil, err
		}
		d.lent.Add(1)
	}
	return d.Driver.Start(ctx, spec)
}

func fetch(ctx context.Context, c *driver.Checkpoint) error {
	layout, files, err := c.Packed[fakeFile].Lend(ctx)
	if err != nil {
		return err
	}
	b, err := chunkblob.Borrow(layout, files)
	if err != nil {
		return err
	}
	raw, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	return errors.Join(err, b.Close(), os.WriteFile(filepath.Join(c.Dir, fakeFile), raw, 0o600))
}

// A sandbox whose snapshot has no plain files any more is resumed by a driver that
// can without unpacking; then it is paused and resumed like any other.
func TestResumeFromTheArchive(t *testing.T) {
	w := newWorld(t)
	w.pack() // with a cache of nothing
	var lent atomic.Int32
	w.wrap = func(d driver.Driver) driver.Driver { return packedToo{d, &lent} }
	a := w.open(agent.Config{})
	defer a.Close()
	req := w.request()
	w.start(a, req)
	w.poke(a, req, "kept")
	for n := range int32(3) {
		snap, err := a.Pause(t.Context(), req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID()})
		if err != nil {
			t.Fatal(err)
		}
		a.Settle()
		if err := w.shelf.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		req.Restore = snap
		req.Sandbox.Generation++
		w.start(a, req)
		w.wantWord(a, req, "kept")
		if lent.Load() != n+1 {
			t.Errorf("%d of %d starts had a packed file", lent.Load(), n+1)
		}
	}
	w.wantHeld(1)
}
