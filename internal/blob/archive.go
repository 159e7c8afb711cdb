package blob

import (
	"context"
	"errors"
	"io"
	"os"
)

// Source is a file to be packed.
type Source struct {
	SHA256 string // of its content, lower-case hex; its name in the archive
	Path   string
}

// Packed is what an archive knows of a file.
type Packed struct {
	Bytes  int64 // of the file
	Holes  int64 // of these, the ones that are zero and kept nowhere
	Shared int64 // of these, the ones that were there before, in a file it is like
	Stored int64 // on disk for the rest
}

// Object is a part of what an archive has on disk that goes as a whole, when no
// file needs it any more.
type Object struct {
	Name  string
	Bytes int64
}

// Reader reads a packed file at random. Every byte it returns was compared with
// the hash of the chunk that it is part of.
type Reader interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Loan is a packed file for a process that has no more of the archive than this.
type Loan struct {
	Size   int64      // of the file
	Layout []byte     // what lies where, in the form of the archive; it holds the keys of Files, if these are encrypted
	Files  []*os.File // open for reading
}

// Close closes the descriptors.
func (l Loan) Close() error {
	var errs []error
	for _, f := range l.Files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// A Lender is an Archive of which other processes can read a file. What was lent
// can be read to its end, whatever becomes of the archive and of this process.
type Lender interface {
	Archive

	// Lend opens a file for another process. An archive that has files elsewhere
	// says Unimplemented. What is lent was not read yet: its reader compares it.
	Lend(ctx context.Context, sha256 string) (Loan, error)
}

// Archive keeps big files compressed, and what is equal in files that are like
// each other once. Files are named by the SHA-256 of their content. A file is
// wholly there or not at all, also after a crash. What is not what was written
// fails with FailedPrecondition that says which file, and which part of it; so
// does what was encrypted with a key that the archive does not have.
// Several Packs may be under way at once; they and Collect exclude each other. The
// rest may be called at any time.
type Archive interface {
	// Pack keeps files whose names are not there yet. Parts that are equal to
	// parts of the files named by like are not stored again; names that are not
	// there do not matter. A file whose content is not its name is refused with
	// FailedPrecondition. It is all durable when Pack returns, and after an error
	// as much of it as was done is there or is taken away by Collect.
	Pack(ctx context.Context, files []Source, like []string) (Packed, error)

	// Stat does not tell what is shared: Stored is what the file needs.
	Stat(ctx context.Context, sha256 string) (Packed, error)

	// Weigh returns how many bytes on disk files need that none of the files beside
	// needs, each once; what says where they are is not counted. A name that is not
	// there is NotFound among files, and does not matter among beside.
	Weigh(ctx context.Context, files, beside []string) (int64, error)

	// Objects lists what is on disk for a file, and perhaps for others as well. The
	// list is not to be changed.
	Objects(ctx context.Context, sha256 string) ([]Object, error)

	// Unpack writes a file into to, which is empty, and syncs it. Holes and zeros
	// become holes. After an error to's content is of no use.
	Unpack(ctx context.Context, sha256 string, to *os.File) error

	// Check reads all of a file and compares it with its hashes.
	Check(ctx context.Context, sha256 string) error

	// Open fails when an object that a file needs is not there, or needs another key; what is
	// there is looked at only when it is read.
	Open(ctx context.Context, sha256 string) (Reader, error)

	// Collect deletes the files that keep does not want, and what of the store no
	// other file needs. It returns the bytes that were freed.
	Collect(ctx context.Context, keep func(sha256 string) bool) (int64, error)
}
