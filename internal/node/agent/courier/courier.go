// Package courier sends a node's snapshots away and takes in those of others.
//
// A guest daemon that is restored with its memory lets in only who knows the
// secret that it was given before, and other nodes cannot derive it. So it
// travels with the memory: see shelf.SecretFile.
package courier

import (
	"context"
	"io"

	"hearth/internal/hearth"
	"hearth/internal/node/agent/secret"
	"hearth/internal/node/agent/shelf"
)

// Courier is one node's. Its methods are safe for concurrent use.
type Courier struct {
	Shelf *shelf.Shelf
	Key   secret.Key // the node's
	Tmp   string     // directory on the file system of the blobs, which is empty after a start
	Limit int64      // bytes of a snapshot that comes in, unpacked
}

// Export writes a snapshot and all that it needs, its build's layers too. A
// reader that saw no end of the stream has no snapshot.
func (c *Courier) Export(ctx context.Context, id hearth.SnapshotID, build hearth.Build, w io.Writer) error {
	snap, owner, err := c.Shelf.Find(ctx, id)
	if err != nil {
		return err
	}
	control := ""
	if snap.Memory {
		control = c.Key.Of(owner)
	}
	return c.Shelf.Export(ctx, id, build, control, w)
}

// Import takes in what Export wrote, under a new name and owner. After an error
// nothing is left but layers, which nobody refers to. It is the caller's to write
// the name down first, and to have a build of the layers before the next start.
func (c *Courier) Import(ctx context.Context, id hearth.SnapshotID, owner hearth.SandboxID, r io.Reader) (*hearth.Snapshot, *hearth.Build, error) {
	return c.Shelf.Import(ctx, shelf.Arrival{ID: id, Owner: owner, Limit: c.Limit, Tmp: c.Tmp}, r)
}
