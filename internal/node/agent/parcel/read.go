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
		v := newVerified(ctx, t, b)
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
	var raw [4][]byte
	want := [4]string{"oci-layout", "index.json"}
	var ix index
	var m manifest
	var c Contents
	for i, into := range []any{&struct{}{}, &ix, &m, &c} {
		h, err := t.Next()
		if err != nil {
			return nil, broken(err)
		}
		if h.Typeflag != tar.TypeReg || h.Size < 0 || h.Size > maxText || h.Name != want[i] {
			return nil, hearth.Errorf(hearth.InvalidArgument, "the file has an entry %.80q of %d bytes, which no snapshot has there", h.Name, h.Size)
		}
		if raw[i], err = io.ReadAll(t); err != nil {
			return nil, broken(err)
		}
		if err := json.Unmarshal(raw[i], into); err != nil {
			return nil, broken(err)
		}
		switch i {
		case 1:
			if len(ix.Manifests) != 1 || ix.Manifests[0].ArtifactType != ArtifactType {
				return nil, hearth.Errorf(hearth.InvalidArgument, "the file has an image layout, but no snapshot in it")
			}
			want[2] = nameOf(bare(ix.Manifests[0].Digest))
		case 2:
			want[3] = nameOf(bare(m.Config.Digest))
		}
	}
	if text(manifestType, raw[2]).Digest != ix.Manifests[0].Digest || text(ConfigType, raw[3]).Digest != m.Config.Digest {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the file is damaged: its manifest or its config is not what was written")
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	blobs := c.Blobs()
	if !slices.EqualFunc(m.Layers, blobs, func(d descriptor, b Blob) bool { return d == b.descriptor() }) {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the file is damaged: it has not the files that its snapshots need")
	}
	return &c, nil
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
