package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"time"

	"github.com/klauspost/compress/zstd"

	"hearth/internal/hearth"
)

// Tarball is a Source: a root file system as a tar archive, plain or compressed
// with gzip or zstd.
type Tarball struct {
	path   string
	limits Limits
}

// NewTarball reads nothing yet.
func NewTarball(path string, limits Limits) *Tarball { return &Tarball{path: path, limits: limits} }

func (t *Tarball) open() (*os.File, error) {
	f, err := os.Open(t.path)
	if err != nil {
		return nil, hearth.Wrap(hearth.NotFound, err, "cannot read the tarball %s", t.path)
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, hearth.Errorf(hearth.InvalidArgument, "the tarball %s is not a regular file", t.path)
	}
	return f, nil
}

// Key implements Source: the hash of the file.
func (t *Tarball) Key(ctx context.Context) (string, error) {
	f, err := t.open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := copyCtx(ctx, h, f); err != nil {
		return "", err
	}
	return digest("tar", formatVersion, hex.EncodeToString(h.Sum(nil))), nil
}

// Unpack implements Source.
func (t *Tarball) Unpack(ctx context.Context, dir string, report Progress) error {
	start := time.Now()
	f, err := t.open()
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	r, err := decompress(f)
	if err != nil {
		return err
	}
	defer r.Close()
	u := newUnpacker(root, t.limits)
	report.say(start, "packages", "unpacking %s", t.path)
	if err := u.layer(ctx, r); err != nil {
		return err
	}
	if err := u.finish(); err != nil {
		return diskError(err, dir)
	}
	report.send(start, Event{Step: "packages", Message: "unpacked the tarball", Done: u.bytes, Total: u.bytes, Unit: "bytes"})
	return nil
}

// maxWindow bounds the memory that a zstd stream can ask for.
const maxWindow = 128 << 20

// decompress looks at the first bytes of a stream and undoes gzip or zstd.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 1<<18)
	head, _ := br.Peek(6)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, hearth.Wrap(hearth.InvalidArgument, err, "the archive's gzip stream is damaged")
		}
		return z, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, hearth.Wrap(hearth.InvalidArgument, err, "the archive's zstd stream is damaged")
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z'}), bytes.HasPrefix(head, []byte("BZh")):
		return nil, hearth.Errorf(hearth.InvalidArgument, "the archive is compressed with xz or bzip2; unpack it first, gzip and zstd are understood")
	}
	return io.NopCloser(br), nil
}
