package chunkblob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"

	"hearth/internal/hearth"
)

const (
	maxPacks    = 4096
	maxExtents  = 16 << 20
	maxSize     = 1 << 44 // bytes of a file
	extentBytes = 56
	noPack      = ^uint32(0)
)

// codecs
const (
	asItIs = 0
	zstd1  = 1
)

// index says what a file is made of.
type index struct {
	size    int64
	packs   []string // names, hex
	extents []extent
}

// extent is one chunk, or one hole.
type extent struct {
	length uint32 // in the file
	pack   uint32 // position in index.packs
	at     int64  // in the pack
	stored uint32 // bytes there
	codec  byte
	sum    [32]byte
}

func (e extent) hole() bool { return e.pack == noPack }

func (ix *index) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, 16+32*len(ix.packs)+extentBytes*len(ix.extents))
	b = le.AppendUint64(b, uint64(ix.size))
	b = le.AppendUint32(b, uint32(len(ix.packs)))
	b = le.AppendUint32(b, uint32(len(ix.extents)))
	for _, p := range ix.packs {
		raw, _ := hex.DecodeString(p) // it was made by EncodeToString
		b = append(b, raw...)
	}
	for _, e := range ix.extents {
		b = le.AppendUint32(b, e.length)
		b = le.AppendUint32(b, e.pack)
		b = le.AppendUint64(b, uint64(e.at))
		b = le.AppendUint32(b, e.stored)
		b = append(b, e.codec, 0, 0, 0)
		b = append(b, e.sum[:]...)
	}
	return b
}

// decode reads a body and believes nothing of it.
func decode(b []byte) (*index, error) {
	le := binary.LittleEndian
	if len(b) < 16 {
		return nil, errDamaged
	}
	size, packs, extents := le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])
	b = b[16:]
	if size > maxSize || packs > maxPacks || extents > maxExtents || uint64(len(b)) != 32*uint64(packs)+extentBytes*uint64(extents) {
		return nil, errDamaged
	}
	ix := &index{size: int64(size), packs: make([]string, packs), extents: make([]extent, extents)}
	for i := range ix.packs {
		ix.packs[i] = hex.EncodeToString(b[:32])
		b = b[32:]
	}
	var sum int64
	for i := range ix.extents {
		e, err := decodeExtent(b[:extentBytes], packs)
		if err != nil {
			return nil, err
		}
		ix.extents[i] = e
		sum += int64(e.length)
		b = b[extentBytes:]
	}
	if sum != ix.size {
		return nil, errDamaged
	}
	return ix, nil
}

func decodeExtent(b []byte, packs uint32) (extent, error) {
	le := binary.LittleEndian
	e := extent{length: le.Uint32(b), pack: le.Uint32(b[4:]), at: int64(le.Uint64(b[8:])), stored: le.Uint32(b[16:]), codec: b[20], sum: [32]byte(b[24:])}
	if e.hole() {
		if e.length == 0 || e.length > maxHole || !bytes.Equal(b[8:], make([]byte, extentBytes-8)) {
			return e, errDamaged
		}
		return e, nil
	}
	if e.length == 0 || e.length > maxChunk || e.pack >= packs || e.at < headerBytes || e.at > maxSize ||
		e.stored == 0 || e.stored > e.length+64 || e.codec > zstd1 || b[21]|b[22]|b[23] != 0 {
		return e, errDamaged
	}
	return e, nil
}

// index reads the index of a file.
func (s *Store) index(ctx context.Context, name string) (*index, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	raw, err := s.read(ctx, filePrefix+name, headerBytes+16+32*maxPacks+extentBytes*maxExtents+64)
	if err != nil {
		if hearth.KindOf(err) == hearth.NotFound {
			return nil, hearth.Wrap(hearth.NotFound, err, "packed file %.12s not found", name)
		}
		return nil, damaged(err, name, "its index")
	}
	body, err := s.unsealIndex(raw)
	if isKeyError(err) {
		return nil, unreadable(err, name)
	}
	if err != nil {
		return nil, damaged(err, name, "its index is not what was written")
	}
	ix, err := decode(body)
	if err != nil {
		return nil, damaged(err, name, "its index is not what was written")
	}
	return ix, nil
}

// read reads a whole object of at most limit bytes.
func (s *Store) read(ctx context.Context, key string, limit int64) ([]byte, error) {
	r, err := s.blobs.Open(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, hearth.Wrap(hearth.Unavailable, err, "the blob store cannot be read")
	}
	if int64(len(raw)) > limit {
		return nil, errDamaged
	}
	return raw, nil
}

func (s *Store) sealIndex(ix *index) ([]byte, error) {
	h, aead, err := s.newHeader(indexMagic)
	if err != nil {
		return nil, err
	}
	b := h.encode()
	if aead != nil {
		return aead.Seal(b, indexNonce(), ix.encode(), b), nil
	}
	b = append(b, ix.encode()...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

func (s *Store) unsealIndex(raw []byte) ([]byte, error) {
	aead, err := s.opener(raw, indexMagic)
	if err != nil {
		return nil, err
	}
	body := raw[headerBytes:]
	if aead != nil {
		body, err = aead.Open(nil, indexNonce(), body, raw[:headerBytes])
		if err != nil {
			return nil, errDamaged
		}
		return body, nil
	}
	if len(body) < sha256.Size {
		return nil, errDamaged
	}
	end := len(raw) - sha256.Size
	if sum := sha256.Sum256(raw[:end]); !bytes.Equal(sum[:], raw[end:]) {
		return nil, errDamaged
	}
	return raw[headerBytes:end], nil
}
