// Package chunkblob keeps files as compressed chunks in a blob.Store.
//
// A file is cut into chunks along its pages, at places that its content decides
// (see cutter), so that memory images in which something moved by whole pages
// still have most chunks in common. Runs of zero pages are holes and stored
// nowhere. Every chunk that is not in one of the files that this one is like is
// compressed with zstd, by itself, so that it can be read by itself, and
// appended to a pack.
//
// # Objects
//
// Both kinds begin with the same header of 56 bytes. All numbers are
// little-endian.
//
//	0   8   magic: "HRTHPK01" or "HRTHIX01", the last two are the version
//	8   1   1: encrypted; 0: not
//	9   7   zero
//	16  8   which key: HKDF-SHA256(key, "", "hearth chunk store key id"); zero if not encrypted
//	24  32  salt, random; zero if not encrypted
//
// packs/SHA256 is a pack, named by the hash of all its bytes: the header, then
// chunks, one after the other. Where which one is, is in the indexes.
//
// files/SHA256 is the index of a file, named by the hash of the file's content:
// the header, then the body, which is
//
//	8   size of the file
//	4   number of packs, at most 4096
//	4   number of extents, at most 16 M
//	32  per pack: its name
//	56  per extent, in the order of the file:
//	    4   length in the file: at most 256 KiB; of a hole at most 1 GiB
//	    4   number of the pack; 0xffffffff: a hole, and all that follows is zero
//	    8   place in the pack
//	    4   length in the pack, what encryption adds included
//	    1   0: as it is; 1: a zstd frame
//	    3   zero
//	    32  SHA-256 of the chunk as it is in the file
//
// and, if it is not encrypted, 32 bytes: the SHA-256 of all before.
//
// # Encryption
//
// With a key every object is sealed with AES-256-GCM under a key of its own,
// HKDF-SHA256(key, salt, "hearth chunk store object"). The nonce of a chunk is
// its place in its pack, 12 bytes big-endian: no two chunks of a pack have the
// same place, and no two objects have the same salt, so no nonce is used twice.
// The body of an index has the nonce of 12 bytes 0xff. What the names of
// indexes, sizes and times say is not hidden, nor which chunks are equal within
// files that are like each other, from who can see their growth.
//
// # Space
//
// Only files that the caller says are alike share chunks; nobody else can learn
// by size or time what somebody's file holds. Packs are never changed. So that
// a long line of files, each like the one before, does not keep many packs for
// little of them, a chunk is stored anew if the files it could be shared with use
// less than half of the chunk's pack, all of them together, or 64 other packs more.
package chunkblob

import (
	"context"
	"encoding/hex"
	"errors"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

const (
	packPrefix = "packs/"
	filePrefix = "files/"
)

// Store is a blob.Archive in a blob.Store. Its methods are safe for concurrent use.
type Store struct {
	blobs blob.Store
	tmp   string // where packs grow
	key   *Key   // nil: nothing new is encrypted
	cut   cutter

	enc *zstd.Encoder
	dec *zstd.Decoder

	packing  sync.RWMutex             // held by Packs together, by Collect alone
	entering sync.Mutex               // held while indexes are written, and by Collect
	needs    map[string][]string      // packs of the files whose indexes were read or written; guarded by entering
	objects  map[string][]blob.Object // of files that were asked about; guarded by entering
}

var _ blob.Archive = (*Store)(nil)

// New returns the archive in a blob store. Packs grow in the directory tmp,
// where only the caller removes what a crash leaves. With a key all that is
// written is encrypted; what was not can still be read.
func New(blobs blob.Store, tmp string, key *Key) (*Store, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "no compressor")
	}
	dec, err := newDecoder()
	if err != nil {
		return nil, err
	}
	return &Store{blobs: blobs, tmp: tmp, key: key, cut: chosen, enc: enc, dec: dec, needs: map[string][]string{}, objects: map[string][]blob.Object{}}, nil
}

func newDecoder() (*zstd.Decoder, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(2*maxChunk), zstd.WithDecoderMaxWindow(1<<20))
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "no decompressor")
	}
	return dec, nil
}

// Stat implements blob.Archive.
func (s *Store) Stat(ctx context.Context, sha256 string) (blob.Packed, error) {
	ix, err := s.index(ctx, sha256)
	if err != nil {
		return blob.Packed{}, err
	}
	p := blob.Packed{Bytes: ix.size}
	for _, e := range ix.extents {
		if e.hole() {
			p.Holes += int64(e.length)
		} else {
			p.Stored += int64(e.stored)
		}
	}
	return p, nil
}

// checkName returns an InvalidArgument unless the name is a SHA-256.
func checkName(sha256 string) error {
	raw, err := hex.DecodeString(sha256)
	if err != nil || len(raw) != 32 || hex.EncodeToString(raw) != sha256 {
		return hearth.Errorf(hearth.InvalidArgument, "%q is not a SHA-256 in lower-case hex", sha256)
	}
	return nil
}

// damaged says what is wrong with a file. An error of the store that is not the
// damage itself, such as one of a slow store, keeps its kind.
func damaged(err error, sha256, what string) error {
	kind := hearth.FailedPrecondition
	if err != nil && !errors.Is(err, errDamaged) {
		if k := hearth.KindOf(err); k != hearth.NotFound && k != hearth.InvalidArgument {
			kind = k
		}
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	if kind == hearth.FailedPrecondition {
		return hearth.Wrap(kind, err, "packed file %.12s is damaged: %s", sha256, what)
	}
	return hearth.Wrap(kind, err, "packed file %.12s cannot be read: %s", sha256, what)
}

var errDamaged = errors.New("it is not what was written")
