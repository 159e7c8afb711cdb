// Package blob is the contract for immutable artifacts: layers and checkpoints.
// Implementations must pass package blobtest.
package blob

import (
	"context"
	"io"
	"iter"
)

// Info describes a stored object.
type Info struct {
	Key  string
	Size int64 // bytes
}

// Store keeps immutable objects. Keys are 1..200 characters of [a-z0-9._/-],
// without empty, "." or ".." segments. An object is either wholly there or not
// there at all, also after a crash. A Put of a key that exists is a no-op.
// Open of a missing key returns a NotFound error.
type Store interface {
	// Put stores size bytes of r; a shorter or longer r is an InvalidArgument.
	Put(ctx context.Context, key string, r io.Reader, size int64) error

	// Open reads n bytes from off; n < 0 reads to the end. A range that is not
	// wholly inside the object is an InvalidArgument.
	Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)

	Stat(ctx context.Context, key string) (Info, error)

	// Delete of a missing key is not an error.
	Delete(ctx context.Context, key string) error

	// List yields the objects whose key begins with prefix, in the order of
	// their keys. It ends after its first error.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]
}

// Local is a Store whose objects are files on this host, as a driver needs them.
type Local interface {
	Store

	// Path returns the file of an object. It must not be written to.
	Path(ctx context.Context, key string) (string, error)

	// Adopt stores the regular file at path without copying it where the file
	// system allows; the file is read-only from then on, and its name at path
	// stays for the caller to remove.
	Adopt(ctx context.Context, key, path string) error
}
