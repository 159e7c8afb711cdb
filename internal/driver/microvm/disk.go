package microvm

import (
	"context"

	"hearth/internal/hearth"
)

// DiskSpec describes a writable disk.
type DiskSpec struct {
	Path     string // absolute; must not exist
	MiB      int    // what the guest may write; the file is a little larger
	UID, GID int    // of the file, mode 0600
}

// MakeDisk makes a sparse file with an empty ext4 file system. Nothing is left
// behind when it fails.
func MakeDisk(ctx context.Context, d DiskSpec) error {
	return hearth.Errorf(hearth.Unimplemented, "not yet")
}

// Durability says whether a copy must survive a power cut.
type Durability int

// The durabilities.
const (
	Cached Durability = iota // the kernel writes it when it likes
	Synced                   // on disk before the call returns
)

// CopySparse copies the file at from to the new file at to, mode 0600, holes
// left out: as a reflink where the file system has them, else data extent by
// extent. It returns the bytes that were copied. Nothing is left behind when it fails.
func CopySparse(ctx context.Context, from, to string, d Durability) (int64, error) {
	return 0, hearth.Errorf(hearth.Unimplemented, "not yet")
}
