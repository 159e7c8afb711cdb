package chunkblob

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"

	"github.com/klauspost/compress/zstd"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

// Unpack implements blob.Archive.
func (s *Store) Unpack(ctx context.Context, name string, to *os.File) error {
	ix, err := s.index(ctx, name)
	if err != nil {
		return err
	}
	if err := to.Truncate(ix.size); err != nil { // what is not written stays a hole
		return diskError(err)
	}
	err = s.walk(ctx, name, ix, func(at int64, data []byte) error {
		_, err := to.WriteAt(data, at)
		return diskError(err)
	})
	if err != nil {
		return err
	}
	return diskError(to.Sync())
}

// Check implements blob.Archive.
func (s *Store) Check(ctx context.Context, name string) error {
	ix, err := s.index(ctx, name)
	if err != nil {
		return err
	}
	return s.walk(ctx, name, ix, func(int64, []byte) error { return nil })
}

// walk reads all of a file, verified, chunk by chunk, and compares the whole.
func (s *Store) walk(ctx context.Context, name string, ix *index, chunk func(at int64, data []byte) error) error {
	whole := sha256.New()
	src := &packs{s: s, ix: ix}
	defer src.close()
	var at int64
	for i, e := range ix.extents {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e.hole() {
			for rest := int64(e.length); rest > 0; rest -= int64(len(someZeros)) {
				whole.Write(someZeros[:min(rest, int64(len(someZeros)))])
			}
			at += int64(e.length)
			continue
		}
		data, err := src.chunk(ctx, i)
		if err != nil {
			return damagedChunk(err, name, i, ix, at)
		}
		whole.Write(data)
		if err := chunk(at, data); err != nil {
			return err
		}
		at += int64(e.length)
	}
	if got := hex.EncodeToString(whole.Sum(nil)); got != name {
		return damaged(errDamaged, name, "its chunks together are not what was packed")
	}
	return nil
}

func damagedChunk(err error, name string, i int, ix *index, at int64) error {
	if isKeyError(err) {
		return unreadable(err, name)
	}
	e := ix.extents[i]
	return damaged(err, name, fmt.Sprintf("chunk %d of %d, bytes %d to %d, in pack %.12s", i, len(ix.extents), at, at+int64(e.length), ix.packs[e.pack]))
}

// packs reads chunks out of packs. Chunks that lie together are read together.
type packs struct {
	s   *Store
	ix  *index
	raw []byte
	out []byte

	r    io.ReadCloser // open at next, if not nil
	pack uint32
	next int64
	end  int64

	aeads map[uint32]cipher.AEAD // nil: not encrypted
}

func (p *packs) close() {
	if p.r != nil {
		_ = p.r.Close()
		p.r = nil
	}
}

// chunk returns extent i, which is no hole. The bytes are valid until the next call.
func (p *packs) chunk(ctx context.Context, i int) ([]byte, error) {
	e := p.ix.extents[i]
	aead, err := p.aead(ctx, e.pack)
	if err != nil {
		return nil, err
	}
	if p.r == nil || p.pack != e.pack || p.next != e.at || e.at+int64(e.stored) > p.end {
		if err := p.seek(ctx, i); err != nil {
			return nil, err
		}
	}
	p.raw = slices.Grow(p.raw[:0], int(e.stored))[:e.stored]
	if _, err := io.ReadFull(p.r, p.raw); err != nil {
		p.close()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errDamaged
		}
		return nil, hearth.Wrap(hearth.Unavailable, err, "the blob store cannot be read")
	}
	p.next += int64(e.stored)
	data, err := e.open(p.raw, p.out, aead, p.s.dec)
	if e.codec == zstd1 && err == nil {
		p.out = data
	}
	return data, err
}

// open makes a chunk of what is stored of it, in the memory of raw or of out.
func (e extent) open(raw, out []byte, aead cipher.AEAD, dec *zstd.Decoder) ([]byte, error) {
	data := raw
	var err error
	if aead != nil {
		if data, err = aead.Open(data[:0], nonceAt(e.at), data, nil); err != nil {
			return nil, errDamaged
		}
	}
	if e.codec == zstd1 {
		if data, err = dec.DecodeAll(data, out[:0]); err != nil {
			return nil, errDamaged
		}
	}
	if len(data) != int(e.length) {
		return nil, errDamaged
	}
	if sum := sha256.Sum256(data); !bytes.Equal(sum[:], e.sum[:]) {
		return nil, errDamaged
	}
	return data, nil
}

const readAhead = 4 << 20 // bytes of a pack that are opened at once, at most

// seek opens the pack at extent i, up to where its neighbours in the file are no
// longer its neighbours in the pack.
func (p *packs) seek(ctx context.Context, i int) error {
	p.close()
	e := p.ix.extents[i]
	end := e.at + int64(e.stored)
	for _, n := range p.ix.extents[i+1:] {
		if n.hole() {
			continue
		}
		if n.pack != e.pack || n.at != end || end-e.at > readAhead {
			break
		}
		end += int64(n.stored)
	}
	r, err := p.s.blobs.Open(ctx, packPrefix+p.ix.packs[e.pack], e.at, end-e.at)
	if err != nil {
		return err
	}
	p.r, p.pack, p.next, p.end = r, e.pack, e.at, end
	return nil
}

func (p *packs) aead(ctx context.Context, pack uint32) (cipher.AEAD, error) {
	if a, ok := p.aeads[pack]; ok {
		return a, nil
	}
	a, err := p.s.openPack(ctx, p.ix.packs[pack])
	if err != nil {
		return nil, err
	}
	if p.aeads == nil {
		p.aeads = map[uint32]cipher.AEAD{}
	}
	p.aeads[pack] = a
	return a, nil
}

// openPack reads a pack's header.
func (s *Store) openPack(ctx context.Context, name string) (cipher.AEAD, error) {
	r, err := s.blobs.Open(ctx, packPrefix+name, 0, headerBytes)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, headerBytes)
	_, err = io.ReadFull(r, raw)
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, hearth.Wrap(hearth.Unavailable, err, "the blob store cannot be read")
	}
	return s.opener(raw, packMagic)
}

// Open implements blob.Archive.
func (s *Store) Open(ctx context.Context, name string) (blob.Reader, error) {
	ix, err := s.index(ctx, name)
	if err != nil {
		return nil, err
	}
	r := &reader{ctx: ctx, name: name, packs: packs{s: s, ix: ix}, starts: make([]int64, len(ix.extents)), have: -1}
	var at int64
	for i, e := range ix.extents {
		r.starts[i] = at
		at += int64(e.length)
	}
	for i, pack := range ix.packs { // a pack that is lost is told now, not in the middle
		switch _, err := r.packs.aead(ctx, uint32(i)); {
		case err != nil && isKeyError(err):
			return nil, unreadable(err, name)
		case err != nil:
			return nil, damaged(err, name, fmt.Sprintf("its pack %.12s", pack))
		}
	}
	return r, nil
}

// reader is one reader of one file; not safe for concurrent use.
type reader struct {
	ctx    context.Context // io.ReaderAt has no place for one
	name   string
	packs  packs
	starts []int64 // of the extents

	have int // the extent whose content is in data
	data []byte
}

// Size implements blob.Reader.
func (r *reader) Size() int64 { return r.packs.ix.size }

// Close implements blob.Reader.
func (r *reader) Close() error {
	r.packs.close()
	return nil
}

// ReadAt implements blob.Reader.
func (r *reader) ReadAt(b []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, hearth.Errorf(hearth.InvalidArgument, "offset %d is negative", off)
	}
	for n < len(b) {
		if off >= r.Size() {
			return n, io.EOF
		}
		i := sort.Search(len(r.starts), func(i int) bool { return r.starts[i] > off }) - 1
		in := off - r.starts[i]
		step := int(min(int64(len(b)-n), int64(r.packs.ix.extents[i].length)-in))
		if r.packs.ix.extents[i].hole() {
			clear(b[n : n+step])
		} else {
			if r.have != i {
				r.have = -1
				if r.data, err = r.packs.chunk(r.ctx, i); err != nil {
					return n, damagedChunk(err, r.name, i, r.packs.ix, r.starts[i])
				}
				r.have = i
			}
			copy(b[n:n+step], r.data[in:])
		}
		n, off = n+step, off+int64(step)
	}
	return n, nil
}
