package chunkblob

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

// Pack implements blob.Archive.
func (s *Store) Pack(ctx context.Context, files []blob.Source, like []string) (blob.Packed, error) {
	s.packing.RLock()
	defer s.packing.RUnlock()
	var total blob.Packed
	p := &packing{s: s, known: map[[32]byte]place{}}
	defer p.drop()
	indexes := map[string]*index{}
	for _, f := range files {
		if err := checkName(f.SHA256); err != nil {
			return total, err
		}
		has, err := s.has(ctx, f.SHA256)
		if err != nil {
			return total, err
		}
		if has || indexes[f.SHA256] != nil {
			continue
		}
		if p.file == nil {
			if err := p.begin(ctx, like); err != nil {
				return total, err
			}
		}
		ix, one, err := p.add(ctx, f)
		if err != nil {
			return total, err
		}
		indexes[f.SHA256] = ix
		total.Bytes, total.Holes, total.Shared, total.Stored =
			total.Bytes+one.Bytes, total.Holes+one.Holes, total.Shared+one.Shared, total.Stored+one.Stored
	}
	if len(indexes) == 0 {
		return total, nil
	}
	return total, s.enter(ctx, p, indexes)
}

// has reports whether a file's index is there and can be read.
func (s *Store) has(ctx context.Context, sum string) (bool, error) {
	_, err := s.index(ctx, sum)
	if k := hearth.KindOf(err); err != nil && k != hearth.NotFound && k != hearth.FailedPrecondition {
		return false, err
	}
	return err == nil, nil
}

// enter makes a pack an object, and then its files' indexes. A file that somebody
// else packed meanwhile stays as it is: it is never gone for a moment once a Pack
// has returned. What this one has of it is in vain.
func (s *Store) enter(ctx context.Context, p *packing, indexes map[string]*index) error {
	name, err := p.finish(ctx)
	if err != nil {
		return err
	}
	s.entering.Lock()
	defer s.entering.Unlock()
	for sum, ix := range indexes { // the pack is durable: what refers to it may be
		has, err := s.has(ctx, sum)
		if err != nil {
			return err
		}
		if has {
			continue
		}
		ix.resolve(name)
		raw, err := s.sealIndex(ix)
		if err != nil {
			return err
		}
		s.forget(sum)
		if err := s.blobs.Delete(ctx, filePrefix+sum); err != nil { // damaged, or of another key
			return err
		}
		if err := s.blobs.Put(ctx, filePrefix+sum, bytes.NewReader(raw), int64(len(raw))); err != nil {
			return err
		}
		s.needs[sum] = ix.packs
	}
	return nil
}

// thisPack stands for the pack that is being written, whose name is not known yet.
const thisPack = ""

// resolve gives the pack its name, or takes it out if it has nothing of this file.
func (ix *index) resolve(name string) {
	for i, p := range ix.packs {
		if p == thisPack {
			ix.packs[i] = name
		}
	}
}

// place is where a chunk is.
type place struct {
	pack   string
	at     int64
	stored uint32
	codec  byte
}

// packing is one pack that grows in a file without a name.
type packing struct {
	s     *Store
	file  *os.File
	w     *bufio.Writer
	sum   hash.Hash
	aead  cipher.AEAD
	at    int64
	known map[[32]byte]place
	buf   []byte // compressed
}

// begin opens the file and learns what need not be stored again.
func (p *packing) begin(ctx context.Context, like []string) error {
	f, err := os.CreateTemp(p.s.tmp, "pack-")
	if err != nil {
		return diskError(err)
	}
	p.file, p.sum = f, sha256.New()
	p.w = bufio.NewWriterSize(f, 1<<20)
	h, aead, err := p.s.newHeader(packMagic)
	if err != nil {
		return err
	}
	p.aead = aead
	if err := p.write(h.encode()); err != nil {
		return err
	}
	var known []*index
	for _, name := range like {
		ix, err := p.s.index(ctx, name)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil { // one that is gone or damaged is just not used
			known = append(known, ix)
		}
	}
	return p.learn(ctx, known)
}

// Chunks are shared with files that together use at least half of their pack, each
// chunk counted once, and are in the sharedPacks of which they use most. So what is
// kept of packs for the sake of sharing is at most twice of what those files need. By
// itself none of a snapshot's files, which are packed together, may use half of a pack.
const (
	leastShare  = 2
	sharedPacks = 64
)

// learn makes the chunks of files known.
func (p *packing) learn(ctx context.Context, like []*index) error {
	on := newScale()
	for _, ix := range like {
		if _, err := on.put(ctx, ix); err != nil {
			return err
		}
	}
	good, err := p.worthwhile(ctx, on)
	if err != nil {
		return err
	}
	for _, ix := range like {
		shared := make([]bool, len(ix.packs))
		for i, name := range ix.packs {
			shared[i] = slices.Contains(good, name)
		}
		for _, e := range ix.extents {
			if !e.hole() && shared[e.pack] {
				p.known[e.sum] = place{pack: ix.packs[e.pack], at: e.at, stored: e.stored, codec: e.codec}
			}
		}
	}
	return nil
}

// worthwhile names the packs to be shared, by what of them is on the scale.
func (p *packing) worthwhile(ctx context.Context, on *scale) (good []string, err error) {
	for name, n := range on.packs {
		info, err := p.s.blobs.Stat(ctx, packPrefix+name)
		if hearth.KindOf(err) == hearth.NotFound && err != nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		if on.used[n]*leastShare >= info.Size-headerBytes && p.readable(ctx, name) {
			good = append(good, name)
		}
	}
	slices.SortFunc(good, func(a, b string) int {
		return cmp.Or(cmp.Compare(on.used[on.packs[b]], on.used[on.packs[a]]), cmp.Compare(a, b))
	})
	return good[:min(len(good), sharedPacks)], nil
}

// readable reports whether a pack can be shared: with a key, nothing that is
// encrypted refers to what is not, and without it nothing can be read that is.
func (p *packing) readable(ctx context.Context, name string) bool {
	aead, err := p.s.openPack(ctx, name)
	return err == nil && (aead != nil) == (p.aead != nil)
}

// add cuts a file and appends what of it is new.
func (p *packing) add(ctx context.Context, src blob.Source) (*index, blob.Packed, error) {
	f, err := os.OpenFile(src.Path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, blob.Packed{}, diskError(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, blob.Packed{}, diskError(err)
	}
	ix := &index{size: info.Size()}
	b := &builder{p: p, ix: ix, whole: sha256.New(), packs: map[string]uint32{}}
	b.stats.Bytes = ix.size
	if ix.size > maxSize {
		return nil, b.stats, hearth.Errorf(hearth.InvalidArgument, "%s has %d bytes, more than %d", src.Path, ix.size, int64(maxSize))
	}
	if err := b.read(ctx, f); err != nil {
		return nil, b.stats, err
	}
	if got := hex.EncodeToString(b.whole.Sum(nil)); got != src.SHA256 {
		return nil, b.stats, hearth.Errorf(hearth.FailedPrecondition, "file %.12s is damaged: its content is %.12s; it was not packed", src.SHA256, got)
	}
	if len(ix.extents) > maxExtents || len(ix.packs) > maxPacks {
		return nil, b.stats, hearth.Errorf(hearth.InvalidArgument, "file %.12s has too many chunks", src.SHA256)
	}
	return ix, b.stats, nil
}

// builder makes the index of one file.
type builder struct {
	p     *packing
	ix    *index
	whole hash.Hash
	packs map[string]uint32
	stats blob.Packed
}

// read goes through a file; what the file system knows to be holes is not read.
func (b *builder) read(ctx context.Context, f *os.File) error {
	const window = 4 << 20 // many chunks
	buf := make([]byte, 0, window)
	for at := int64(0); at < b.ix.size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if len(buf) == 0 {
			data, err := nextData(f, at, b.ix.size)
			if err != nil {
				return diskError(err)
			}
			if data > at {
				b.hole(data - at)
				at = data
				continue
			}
		}
		have := at + int64(len(buf))
		want := int(min(window, b.ix.size-at))
		if len(buf) < want && (len(buf) < maxChunk) {
			n, err := f.ReadAt(buf[len(buf):want], have)
			if err != nil && (!errors.Is(err, io.EOF) || n < want-len(buf)) {
				return diskError(err)
			}
			buf = buf[:want]
		}
		n, err := b.consume(buf, int64(len(buf)) == b.ix.size-at)
		if err != nil {
			return err
		}
		at += int64(n)
		buf = buf[:copy(buf[:cap(buf)], buf[n:])]
	}
	return nil
}

// consume takes holes and chunks from buf as long as there is enough to know
// where they end, and returns how much it took.
func (b *builder) consume(buf []byte, last bool) (int, error) {
	taken := 0
	for len(buf) >= maxChunk || last && len(buf) > 0 {
		n := zeros(buf)
		if n > 0 {
			b.hole(int64(n))
		} else {
			n = b.p.s.cut.next(buf)
			if err := b.chunk(buf[:n]); err != nil {
				return taken, err
			}
		}
		buf, taken = buf[n:], taken+n
	}
	return taken, nil
}

// nextData returns where data begins at or after at, in whole pages.
func nextData(f *os.File, at, size int64) (int64, error) {
	data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, nil // a hole up to the end
	case errors.Is(err, unix.EINVAL):
		return at, nil // the file system does not know
	case err != nil:
		return 0, &fs.PathError{Op: "seek", Path: f.Name(), Err: err}
	}
	return max(at, data&^(pageBytes-1)), nil
}

func (b *builder) hole(n int64) {
	b.stats.Holes += n
	for rest := n; rest > 0; {
		step := min(rest, int64(len(someZeros)))
		b.whole.Write(someZeros[:step])
		rest -= step
	}
	if k := len(b.ix.extents) - 1; k >= 0 && b.ix.extents[k].hole() { // one hole may come in two pieces
		grow := min(n, maxHole-int64(b.ix.extents[k].length))
		b.ix.extents[k].length += uint32(grow)
		n -= grow
	}
	for ; n > 0; n -= min(n, maxHole) {
		b.ix.extents = append(b.ix.extents, extent{length: uint32(min(n, maxHole)), pack: noPack})
	}
}

// someZeros is no allocation: every process that this program is executed as would make it.
var someZeros = [1 << 20]byte{}

func (b *builder) chunk(data []byte) error {
	b.whole.Write(data)
	e := extent{length: uint32(len(data)), sum: sha256.Sum256(data)}
	at, ok := b.p.known[e.sum]
	if ok {
		b.stats.Shared += int64(len(data))
	} else {
		var err error
		if at, err = b.p.append(data); err != nil {
			return err
		}
		b.p.known[e.sum] = at
		b.stats.Stored += int64(at.stored)
	}
	n, seen := b.packs[at.pack]
	if !seen {
		n = uint32(len(b.ix.packs))
		b.packs[at.pack] = n
		b.ix.packs = append(b.ix.packs, at.pack)
	}
	e.pack, e.at, e.stored, e.codec = n, at.at, at.stored, at.codec
	b.ix.extents = append(b.ix.extents, e)
	return nil
}

// append compresses and perhaps seals a chunk.
func (p *packing) append(data []byte) (place, error) {
	at := place{pack: thisPack, at: p.at, codec: zstd1}
	p.buf = p.s.enc.EncodeAll(data, p.buf[:0])
	out := p.buf
	if len(out) >= len(data) {
		at.codec, out = asItIs, data
	}
	if p.aead != nil {
		out = p.aead.Seal(nil, nonceAt(p.at), out, nil)
	}
	at.stored = uint32(len(out))
	return at, p.write(out)
}

func (p *packing) write(b []byte) error {
	p.sum.Write(b)
	p.at += int64(len(b))
	_, err := p.w.Write(b)
	return diskError(err)
}

// finish makes the pack an object and returns its name; nothing if it is empty.
func (p *packing) finish(ctx context.Context) (string, error) {
	if p.at == headerBytes {
		return thisPack, nil // no index names it
	}
	if err := p.w.Flush(); err != nil {
		return "", diskError(err)
	}
	name := hex.EncodeToString(p.sum.Sum(nil))
	if local, ok := p.s.blobs.(blob.Local); ok {
		return name, local.Adopt(ctx, packPrefix+name, p.file.Name())
	}
	if _, err := p.file.Seek(0, io.SeekStart); err != nil {
		return "", diskError(err)
	}
	return name, p.s.blobs.Put(ctx, packPrefix+name, p.file, p.at)
}

// drop removes the file that the pack grew in.
func (p *packing) drop() {
	if p.file != nil {
		_ = p.file.Close()
		_ = os.Remove(p.file.Name())
	}
}

func diskError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return hearth.Wrap(hearth.ResourceExhausted, err, "a file cannot be packed or unpacked: the disk is full")
	case errors.Is(err, fs.ErrNotExist):
		return hearth.Wrap(hearth.NotFound, err, "a file to be packed is not there")
	}
	return hearth.Wrap(hearth.Internal, err, "a file cannot be packed or unpacked")
}
