package parcel

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"

	"hearth/internal/hearth"
)

// Taker receives what a parcel holds.
type Taker interface {
	// Begin is told what will come. Nothing of it was seen yet.
	Begin(ctx context.Context, c *Contents) error

	// Take stores one blob. r fails at its end if it is not what its name says;
	// what of it was read by then must not be kept.
	Take(ctx context.Context, b Blob, r io.Reader) error
}

// Read reads a parcel of at most limit bytes, unpacked, and hands it over.
// Anything that is not as Write makes it is an InvalidArgument. When it returns
// without an error everything was there and is what its names say.
func Read(ctx context.Context, r io.Reader, limit int64, to Taker) (*Contents, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, broken(err)
	}
	defer z.Close()
	t := tar.NewReader(z)
	c, err := readDocuments(t)
	if err != nil {
		return nil, err
	}
	var sum int64
	for _, b := range c.Blobs() {
		if b.Bytes > limit-sum {
			return nil, hearth.Errorf(hearth.InvalidArgument, "the snapshot is larger than %d bytes", limit)
		}
		sum += b.Bytes
	}
	if err := to.Begin(ctx, c); err != nil {
		return nil, err
	}
	for _, b := range c.Blobs() {
		if err := next(t, nameOf(b.SHA256), b.Bytes); err != nil {
			return nil, err
		}
		v := newVerified(ctx, strange{t}, b)
		if err := to.Take(ctx, b, v); err != nil {
			return nil, broken(err)
		}
		if _, err := io.Copy(io.Discard, v); err != nil { // a taker that has it already may not look
			return nil, broken(err)
		}
	}
	if h, err := t.Next(); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, broken(err)
		}
		return nil, hearth.Errorf(hearth.InvalidArgument, "the file has an entry %.80q too many", h.Name)
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(z, maxText)); err != nil || n >= maxText {
		return nil, broken(errors.Join(err, errors.New("there is more after the end")))
	}
	return c, nil
}

// readDocuments reads what comes before the big files: each names the next by its
// hash, and the manifest lists what the contents need, no more and no less.
func readDocuments(t *tar.Reader) (*Contents, error) {
	var ix index
	var m manifest
	var c Contents
	if _, err := document(t, "oci-layout", &struct{}{}); err != nil {
		return nil, err
	}
	if _, err := document(t, "index.json", &ix); err != nil {
		return nil, err
	}
	if len(ix.Manifests) != 1 || ix.Manifests[0].ArtifactType != ArtifactType {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the file has an image layout, but no snapshot in it")
	}
	man, err := document(t, nameOf(bare(ix.Manifests[0].Digest)), &m)
	if err != nil {
		return nil, err
	}
	config, err := document(t, nameOf(bare(m.Config.Digest)), &c)
	if err != nil {
		return nil, err
	}
	if text(manifestType, man).Digest != ix.Manifests[0].Digest || text(ConfigType, config).Digest != m.Config.Digest {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the file is damaged: its manifest or its config is not what was written")
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	if !slices.EqualFunc(m.Layers, c.Blobs(), func(d descriptor, b Blob) bool { return d == b.descriptor() }) {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the file is damaged: it has not the files that its snapshots need")
	}
	return &c, nil
}

// document reads the next entry, which must be JSON under that name.
func document(t *tar.Reader, name string, into any) ([]byte, error) {
	h, err := t.Next()
	if err != nil {
		return nil, broken(err)
	}
	if h.Typeflag != tar.TypeReg || h.Size < 0 || h.Size > maxText || h.Name != name {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the file has an entry %.80q of %d bytes, which no snapshot has there", h.Name, h.Size)
	}
	raw, err := io.ReadAll(t)
	if err != nil {
		return nil, broken(err)
	}
	return raw, broken(json.Unmarshal(raw, into))
}

// next goes to the next entry, which must be the one that comes.
func next(t *tar.Reader, name string, size int64) error {
	h, err := t.Next()
	if err != nil {
		return broken(err)
	}
	if h.Typeflag != tar.TypeReg || h.Name != name || h.Size != size {
		return hearth.Errorf(hearth.InvalidArgument, "the file has an entry %.80q of %d bytes where %q of %d must be", h.Name, h.Size, name, size)
	}
	return nil
}

// strange is a stranger's file. Its errors have their kind here already: a taker
// could not tell them from those of the disk that it writes to.
type strange struct{ r io.Reader }

// Read implements io.Reader.
func (s strange) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err == io.EOF {
		return n, err
	}
	return n, broken(err)
}

// broken gives what reading a stranger's file fails with its kind.
func broken(err error) error {
	if err == nil {
		return nil
	}
	if _, ours := errors.AsType[*hearth.Error](err); ours {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return hearth.Wrap(hearth.InvalidArgument, err, "the file is no snapshot, or it is damaged or cut short")
}
