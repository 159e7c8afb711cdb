package chunkblob

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"sync"

	"github.com/klauspost/compress/zstd"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

// What a borrower is told, beside the descriptors of the packs:
//
//	0   8   "HRTHLN01"
//	8   32  SHA-256 of the file
//	40  33  per pack, in the order of the index: 1 and the pack's key if it is
//	        encrypted, else zero
//	        the body of the file's index
//
// The keys open these packs and no others, and nothing tells the archive's own.
const (
	lendMagic = "HRTHLN01"
	lendHead  = len(lendMagic) + 32
	packBytes = 1 + KeyBytes
)

var _ blob.Lender = (*Store)(nil)

// Lend implements blob.Lender, where packs are files of this host.
func (s *Store) Lend(ctx context.Context, name string) (_ blob.Loan, err error) {
	local, ok := s.blobs.(blob.Local)
	if !ok {
		return blob.Loan{}, hearth.Errorf(hearth.Unimplemented, "packed files are not on this host")
	}
	ix, err := s.index(ctx, name)
	if err != nil {
		return blob.Loan{}, err
	}
	sum, err := hex.DecodeString(name)
	if err != nil {
		return blob.Loan{}, err
	}
	loan := blob.Loan{Size: ix.size, Layout: append([]byte(lendMagic), sum...)}
	defer func() {
		if err != nil {
			loan.Close()
		}
	}()
	for _, pack := range ix.packs {
		path, err := local.Path(ctx, packPrefix+pack)
		if err != nil {
			return blob.Loan{}, damaged(err, name, fmt.Sprintf("its pack %.12s", pack))
		}
		f, err := os.Open(path)
		if err != nil {
			return blob.Loan{}, damaged(err, name, fmt.Sprintf("its pack %.12s", pack))
		}
		loan.Files = append(loan.Files, f)
		key, err := s.packKey(f)
		if isKeyError(err) {
			return blob.Loan{}, unreadable(err, name)
		}
		if err != nil {
			return blob.Loan{}, damaged(err, name, fmt.Sprintf("its pack %.12s", pack))
		}
		loan.Layout = append(loan.Layout, key...)
	}
	loan.Layout = append(loan.Layout, ix.encode()...)
	return loan, nil
}

// packKey is what a borrower is told of the key of a pack.
func (s *Store) packKey(pack io.ReaderAt) ([]byte, error) {
	raw := make([]byte, headerBytes)
	if _, err := pack.ReadAt(raw, 0); err != nil {
		return nil, errDamaged
	}
	aead, err := s.opener(raw, packMagic) // which looks at all of the header
	if err != nil {
		return nil, err
	}
	told := make([]byte, packBytes)
	if aead == nil {
		return told, nil
	}
	own, err := s.key.own([32]byte(raw[24:headerBytes]))
	told[0] = 1
	copy(told[1:], own)
	return told, err
}

// Borrowed is a packed file that is read from the descriptors of its packs, every
// chunk compared with its hash. It implements blob.Reader and may be used from
// several goroutines.
type Borrowed struct {
	name   string
	ix     *index
	starts []int64 // of the extents
	packs  []*os.File
	aeads  []cipher.AEAD // nil: not encrypted
	dec    *zstd.Decoder

	mu     sync.Mutex
	chunks map[int][]byte // those read last, by extent
	order  []int          // of these, the oldest first
}

// keptChunks is how many chunks a borrower keeps: a few MiB at most.
const keptChunks = 32

// Borrow reads a file that Lend has lent, in this process or another. It takes
// over the descriptors; of the layout nothing is believed.
func Borrow(layout []byte, packs []*os.File) (*Borrowed, error) {
	keys := len(packs) * packBytes
	if len(layout) < lendHead+keys || !bytes.HasPrefix(layout, []byte(lendMagic)) {
		return nil, errDamaged
	}
	ix, err := decode(layout[lendHead+keys:])
	if err != nil {
		return nil, err
	}
	if len(ix.packs) != len(packs) {
		return nil, errDamaged
	}
	b := &Borrowed{
		name: hex.EncodeToString(layout[len(lendMagic):lendHead]), ix: ix, packs: packs,
		starts: make([]int64, len(ix.extents)), chunks: map[int][]byte{},
	}
	var at int64
	for i, e := range ix.extents {
		b.starts[i] = at
		at += int64(e.length)
	}
	for told := layout[lendHead : lendHead+keys]; len(told) > 0; told = told[packBytes:] {
		var aead cipher.AEAD
		if told[0] == 1 {
			block, err := aes.NewCipher(told[1:packBytes])
			if err != nil {
				return nil, err
			}
			if aead, err = cipher.NewGCM(block); err != nil {
				return nil, err
			}
		}
		b.aeads = append(b.aeads, aead)
	}
	b.dec, err = newDecoder()
	return b, err
}

// Size implements blob.Reader.
func (b *Borrowed) Size() int64 { return b.ix.size }

// Close implements blob.Reader.
func (b *Borrowed) Close() error {
	b.dec.Close()
	return blob.Loan{Files: b.packs}.Close()
}

// ReadAt implements blob.Reader.
func (b *Borrowed) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, hearth.Errorf(hearth.InvalidArgument, "offset %d is negative", off)
	}
	for n < len(p) {
		if off >= b.ix.size {
			return n, io.EOF
		}
		i := sort.Search(len(b.starts), func(i int) bool { return b.starts[i] > off }) - 1
		in := off - b.starts[i]
		step := int(min(int64(len(p)-n), int64(b.ix.extents[i].length)-in))
		if b.ix.extents[i].hole() {
			clear(p[n : n+step])
		} else {
			data, err := b.chunk(i)
			if err != nil {
				return n, damagedChunk(err, b.name, i, b.ix, b.starts[i])
			}
			copy(p[n:n+step], data[in:])
		}
		n, off = n+step, off+int64(step)
	}
	return n, nil
}

// chunk returns the content of an extent, which stays as it is.
func (b *Borrowed) chunk(i int) ([]byte, error) {
	b.mu.Lock()
	data, ok := b.chunks[i]
	b.mu.Unlock()
	if ok {
		return data, nil
	}
	e := b.ix.extents[i]
	raw := make([]byte, e.stored)
	if _, err := b.packs[e.pack].ReadAt(raw, e.at); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errDamaged
		}
		return nil, hearth.Wrap(hearth.Unavailable, err, "the pack cannot be read")
	}
	data, err := e.open(raw, nil, b.aeads[e.pack], b.dec)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.chunks[i]; !ok {
		if len(b.order) == keptChunks {
			delete(b.chunks, b.order[0])
			b.order = b.order[1:]
		}
		b.chunks[i] = data
		b.order = append(b.order, i)
	}
	return data, nil
}
