package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"hearth/internal/hearth"
)

// Layout is a Source: an image in an OCI image layout directory, as `skopeo
// copy ... oci:DIR` or `docker buildx build -o type=oci,tar=false` write it.
// Every blob is verified against its digest while it is read.
type Layout struct {
	dir    string
	limits Limits
}

// NewLayout reads nothing yet. The layout must hold one image for this
// machine's architecture, possibly among others for other ones.
func NewLayout(dir string, limits Limits) *Layout { return &Layout{dir: dir, limits: limits} }

const (
	maxManifest = 4 << 20 // bytes of one JSON document
	maxLayers   = 512
	maxNesting  = 4 // indexes within indexes
)

// Key implements Source: the digest of the image's manifest.
func (l *Layout) Key(context.Context) (string, error) {
	root, err := l.open()
	if err != nil {
		return "", err
	}
	defer root.Close()
	d, _, err := l.manifest(root)
	if err != nil {
		return "", err
	}
	return digest("oci", formatVersion, d.String()), nil
}

// Config implements Configured.
func (l *Layout) Config(context.Context) (Config, error) {
	root, err := l.open()
	if err != nil {
		return Config{}, err
	}
	defer root.Close()
	_, m, err := l.manifest(root)
	if err != nil {
		return Config{}, err
	}
	file, err := l.config(root, m)
	if err != nil {
		return Config{}, err
	}
	c := Config{Env: map[string]string{}, User: file.Config.User, Workdir: file.Config.WorkingDir}
	for _, e := range file.Config.Env {
		if k, v, ok := strings.Cut(e, "="); ok && k != "" {
			c.Env[k] = v
		}
	}
	c.User, _, _ = strings.Cut(c.User, ":") // the group follows from the user
	return c, nil
}

// Unpack implements Source.
func (l *Layout) Unpack(ctx context.Context, dir string, report Progress) error {
	start := time.Now()
	layout, err := l.open()
	if err != nil {
		return err
	}
	defer layout.Close()
	_, m, err := l.manifest(layout)
	if err != nil {
		return err
	}
	file, err := l.config(layout, m)
	if err != nil {
		return err
	}
	if len(m.Layers) > maxLayers || len(m.Layers) != len(file.RootFS.DiffIDs) {
		return damaged("it has %d layers and %d layer hashes; at most %d, and as many of both, are allowed", len(m.Layers), len(file.RootFS.DiffIDs), maxLayers)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := newUnpacker(root, l.limits)
	u.oci = true
	for i, d := range m.Layers {
		if err := l.layer(ctx, layout, u, d, file.RootFS.DiffIDs[i]); err != nil {
			return err
		}
		report.send(start, Event{Step: "packages", Message: "unpacked a layer", Done: int64(i + 1), Total: int64(len(m.Layers)), Unit: "layers"})
	}
	if err := u.finish(); err != nil {
		return diskError(err, dir)
	}
	report.send(start, Event{Step: "packages", Message: "unpacked the image", Done: u.bytes, Total: u.bytes, Unit: "bytes"})
	return nil
}

// layer unpacks one layer and verifies both of its hashes. What a wrong layer
// wrote is removed with the directory.
func (l *Layout) layer(ctx context.Context, layout *os.Root, u *unpacker, d v1.Descriptor, diffID v1.Hash) error {
	f, packed, err := openBlob(layout, d)
	if err != nil {
		return err
	}
	defer f.Close()
	in := &hashed{r: io.LimitReader(f, d.Size), h: packed}
	plain, err := decompress(in)
	if err != nil {
		return err
	}
	defer plain.Close()
	unpacked, err := hasher(diffID)
	if err != nil {
		return err
	}
	// A tar reader stops before the end of the stream; the hashes need it all.
	stream := &hashed{r: plain, h: unpacked}
	if err := u.layer(ctx, stream); err != nil {
		return err
	}
	for _, rest := range []io.Reader{io.LimitReader(stream, maxManifest), in} {
		if _, err := copyCtx(ctx, io.Discard, rest); err != nil {
			return hearth.Wrap(hearth.InvalidArgument, err, "the OCI layout is damaged: layer %s ends early", d.Digest)
		}
	}
	if !matches(packed, d.Digest) || !matches(unpacked, diffID) {
		return damaged("layer %s does not have its hash", d.Digest)
	}
	return nil
}

func damaged(format string, args ...any) error {
	return hearth.Errorf(hearth.InvalidArgument, "the OCI layout is damaged: "+format, args...)
}

func (l *Layout) open() (*os.Root, error) {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, hearth.Wrap(hearth.NotFound, err, "cannot read the OCI layout %s", l.dir)
	}
	return root, nil
}

// manifest finds the image for this machine.
func (l *Layout) manifest(root *os.Root) (v1.Hash, *v1.Manifest, error) {
	f, err := root.Open("index.json")
	if err != nil {
		return v1.Hash{}, nil, hearth.Wrap(hearth.InvalidArgument, err, "%s is not an OCI layout: it has no index.json", l.dir)
	}
	defer f.Close()
	index, err := v1.ParseIndexManifest(io.LimitReader(f, maxManifest))
	if err != nil {
		return v1.Hash{}, nil, hearth.Wrap(hearth.InvalidArgument, err, "the OCI layout is damaged: index.json is not an index")
	}
	var found []v1.Descriptor
	if err := images(root, index, maxNesting, &found); err != nil {
		return v1.Hash{}, nil, err
	}
	if len(found) != 1 {
		return v1.Hash{}, nil, hearth.Errorf(hearth.InvalidArgument, "the OCI layout holds %d images for linux/%s; it must hold one", len(found), runtime.GOARCH)
	}
	var m *v1.Manifest
	err = readBlob(root, found[0], func(r io.Reader) (err error) { m, err = v1.ParseManifest(r); return err })
	return found[0].Digest, m, err
}

// images collects the images for this machine from an index and those below it.
func images(root *os.Root, index *v1.IndexManifest, depth int, found *[]v1.Descriptor) error {
	if depth == 0 {
		return damaged("indexes are nested more than %d deep", maxNesting)
	}
	for _, d := range index.Manifests {
		if p := d.Platform; p != nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			continue
		}
		switch {
		case d.MediaType.IsIndex():
			var inner *v1.IndexManifest
			if err := readBlob(root, d, func(r io.Reader) (err error) { inner, err = v1.ParseIndexManifest(r); return err }); err != nil {
				return err
			}
			if err := images(root, inner, depth-1, found); err != nil {
				return err
			}
		case d.MediaType.IsImage():
			*found = append(*found, d)
		}
	}
	return nil
}

func (l *Layout) config(root *os.Root, m *v1.Manifest) (*v1.ConfigFile, error) {
	var c *v1.ConfigFile
	err := readBlob(root, m.Config, func(r io.Reader) (err error) { c, err = v1.ParseConfigFile(r); return err })
	if err != nil {
		return nil, err
	}
	if c.Architecture != runtime.GOARCH || c.OS != "linux" {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "the OCI image is for %s/%s and this machine is linux/%s", c.OS, c.Architecture, runtime.GOARCH)
	}
	return c, nil
}

// openBlob opens a blob and makes the hash that it must have.
func openBlob(root *os.Root, d v1.Descriptor) (*os.File, hash.Hash, error) {
	h, err := hasher(d.Digest)
	if err != nil {
		return nil, nil, err
	}
	f, err := root.Open(filepath.Join("blobs", "sha256", d.Digest.Hex))
	if err != nil {
		return nil, nil, hearth.Wrap(hearth.InvalidArgument, err, "the OCI layout is damaged: blob %s is missing", d.Digest)
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() != d.Size {
		f.Close()
		return nil, nil, damaged("blob %s is not a file of %d bytes", d.Digest, d.Size)
	}
	return f, h, nil
}

// readBlob parses a JSON blob of bounded size and verifies its hash.
func readBlob(root *os.Root, d v1.Descriptor, parse func(io.Reader) error) error {
	if d.Size > maxManifest {
		return damaged("%s has %d bytes, more than the %d allowed", d.Digest, d.Size, maxManifest)
	}
	f, h, err := openBlob(root, d)
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return err
	}
	h.Write(raw)
	if !matches(h, d.Digest) {
		return damaged("blob %s does not have its hash", d.Digest)
	}
	if err := parse(strings.NewReader(string(raw))); err != nil {
		return hearth.Wrap(hearth.InvalidArgument, err, "the OCI layout is damaged: blob %s cannot be read", d.Digest)
	}
	return nil
}

// hasher refuses every digest but a well-formed sha256, which also keeps a
// digest from being a path.
func hasher(d v1.Hash) (hash.Hash, error) {
	if raw, err := hex.DecodeString(d.Hex); d.Algorithm != "sha256" || err != nil || len(raw) != sha256.Size || strings.ToLower(d.Hex) != d.Hex {
		return nil, damaged("%.100q is not a sha256 digest", d.String())
	}
	return sha256.New(), nil
}

func matches(h hash.Hash, d v1.Hash) bool { return hex.EncodeToString(h.Sum(nil)) == d.Hex }

// hashed hashes what is read through it.
type hashed struct {
	r io.Reader
	h hash.Hash
}

func (r *hashed) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.h.Write(p[:n])
	return n, err
}
