package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"hearth/internal/hearth"
)

// Maker turns sources into images and keeps the images in a Cache.
type Maker struct{ cache *Cache }

// NewMaker works and keeps its images in the cache's directory.
func NewMaker(cache *Cache) *Maker { return &Maker{cache: cache} }

// Key names the image of a source: equal keys, an equal image.
func (m *Maker) Key(ctx context.Context, src Source) (string, error) {
	k, err := src.Key(ctx)
	if err != nil {
		return "", err
	}
	return digest("image", formatVersion, k), nil
}

// Make returns the image of a source, from the cache if it is there. The file
// belongs to the cache: it may be linked but neither moved nor written to.
func (m *Maker) Make(ctx context.Context, src Source, report Progress) (Image, error) {
	key, err := m.Key(ctx, src)
	if err != nil {
		return Image{}, err
	}
	start, cached := time.Now(), true
	e, err := m.cache.Take(ctx, key+".erofs", func(ctx context.Context, out string) error {
		cached = false
		return m.fill(ctx, src, out, report)
	})
	if err != nil {
		return Image{}, err
	}
	if cached {
		report.send(start, Event{Step: "image", Message: "the image is in the cache", Done: e.Bytes, Total: e.Bytes, Unit: "bytes"})
	}
	return Image{Path: e.Path, Bytes: e.Bytes, SHA256: e.SHA256}, nil
}

// Sweep removes what a crash left half-made. Call it once, before Make.
func (m *Maker) Sweep(ctx context.Context) error { return m.cache.Sweep(ctx) }

func (m *Maker) fill(ctx context.Context, src Source, out string, report Progress) (err error) {
	dir := filepath.Join(filepath.Dir(out), "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask: this is "/"
		return err
	}
	defer func() { err = errors.Join(err, removeAll(dir)) }()
	if err := src.Unpack(ctx, dir, report); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := provision(root); err != nil {
		if hearth.KindOf(err) != hearth.Internal {
			return err
		}
		return hearth.Wrap(hearth.InvalidArgument, err, "the root file system cannot be made ready")
	}
	_, err = Erofs(ctx, dir, out, report)
	return err
}
