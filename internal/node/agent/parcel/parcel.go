// Package parcel is the format of a snapshot that travels: one file with the
// snapshot, all that it refers to, and the layers below it.
//
// A parcel is a tar archive, compressed with zstd, that holds an OCI image
// layout, so that registries and their tools can carry it. The entries are
// regular files, in this order and no others:
//
//	oci-layout               {"imageLayoutVersion":"1.0.0"}
//	index.json               an OCI index with one manifest
//	blobs/sha256/MANIFEST    an OCI image manifest of artifactType ArtifactType
//	blobs/sha256/CONFIG      the manifest's config: Contents as JSON
//	blobs/sha256/FILE ...    the manifest's layers, uncompressed, in its order
//
// The layers are the files of the snapshots (FileType) and the EROFS images of
// the build (LayerType), each content once, named by its SHA-256. So everything
// is checked before anybody believes it, and all sizes are known before the
// first big file comes.
package parcel

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// Media types.
const (
	ArtifactType = "application/vnd.hearth.snapshot.v1"
	ConfigType   = "application/vnd.hearth.snapshot.config.v1+json"
	FileType     = "application/vnd.hearth.snapshot.file.v1"
	LayerType    = "application/vnd.hearth.layer.v1.erofs"

	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
)

// Bounds of what is read.
const (
	maxText   = 1 << 20 // bytes of each JSON document
	maxFiles  = 64      // of one snapshot, and layers of the build
	maxWindow = 8 << 20 // bytes that decompression may need
)

const version = 1

// Contents is what a parcel is about. The names of blobs in it are of the server
// that made it and mean nothing elsewhere.
type Contents struct {
	Version   int               `json:"version"`
	Snapshots []hearth.Snapshot `json:"snapshots"` // the one that travels, then what it refers to, one after the other
	Build     hearth.Build      `json:"build"`
	Layers    []Blob            `json:"layers"` // of the build, lowest first
}

// Blob is one file of a parcel.
type Blob struct {
	SHA256 string `json:"sha256"` // lower-case hex
	Bytes  int64  `json:"bytes"`
	Layer  bool   `json:"layer,omitempty"` // of the build, not of a snapshot
}

// Blobs lists each content once, layers first.
func (c *Contents) Blobs() []Blob {
	var list []Blob
	seen := map[string]bool{}
	add := func(b Blob) {
		if !seen[b.SHA256] {
			seen[b.SHA256] = true
			list = append(list, b)
		}
	}
	for _, l := range c.Layers {
		add(Blob{SHA256: l.SHA256, Bytes: l.Bytes, Layer: true})
	}
	for _, s := range c.Snapshots {
		for _, f := range s.Files {
			add(Blob{SHA256: f.SHA256, Bytes: f.Bytes})
		}
	}
	return list
}

// descriptor, manifest and index are OCI's, as far as a parcel has them.
type descriptor struct {
	MediaType    string `json:"mediaType"`
	ArtifactType string `json:"artifactType,omitempty"`
	Digest       string `json:"digest"`
	Size         int64  `json:"size"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	ArtifactType  string       `json:"artifactType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

const layout = `{"imageLayoutVersion":"1.0.0"}`

func digestOf(sha256 string) string { return "sha256:" + sha256 }
func nameOf(sha256 string) string   { return "blobs/sha256/" + sha256 }

func (b Blob) descriptor() descriptor {
	d := descriptor{MediaType: FileType, Digest: digestOf(b.SHA256), Size: b.Bytes}
	if b.Layer {
		d.MediaType = LayerType
	}
	return d
}

// documents are the entries before the big files.
func documents(c *Contents) (names []string, texts [][]byte, err error) {
	config, err := json.Marshal(c)
	if err != nil {
		return nil, nil, err
	}
	m := manifest{SchemaVersion: 2, MediaType: manifestType, ArtifactType: ArtifactType, Config: text(ConfigType, config)}
	for _, b := range c.Blobs() {
		m.Layers = append(m.Layers, b.descriptor())
	}
	man, err := json.Marshal(m)
	if err != nil {
		return nil, nil, err
	}
	d := text(manifestType, man)
	d.ArtifactType = ArtifactType
	ix, err := json.Marshal(index{SchemaVersion: 2, MediaType: indexType, Manifests: []descriptor{d}})
	if err != nil {
		return nil, nil, err
	}
	names = []string{"oci-layout", "index.json", nameOf(bare(d.Digest)), nameOf(bare(m.Config.Digest))}
	return names, [][]byte{[]byte(layout), ix, man, config}, nil
}

func text(mediaType string, raw []byte) descriptor {
	sum := sha256.Sum256(raw)
	return descriptor{MediaType: mediaType, Digest: digestOf(hex.EncodeToString(sum[:])), Size: int64(len(raw))}
}

func bare(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// Write writes a parcel. open is asked for the blobs, one after the other; what
// it returns is compared with its name.
func Write(ctx context.Context, w io.Writer, c *Contents, open func(context.Context, Blob) (io.ReadCloser, error)) error {
	c.Version = version
	if err := c.check(); err != nil {
		return err
	}
	names, texts, err := documents(c)
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "the snapshot cannot be described")
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxWindow/2))
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "no compressor")
	}
	defer z.Close()
	t := tar.NewWriter(z)
	for i, name := range names {
		if err := head(t, name, int64(len(texts[i]))); err != nil {
			return err
		}
		if _, err := t.Write(texts[i]); err != nil {
			return gone(err)
		}
	}
	for _, b := range c.Blobs() {
		if err := writeBlob(ctx, t, b, open); err != nil {
			return err
		}
	}
	return gone(errors.Join(t.Close(), z.Close()))
}

func writeBlob(ctx context.Context, t *tar.Writer, b Blob, open func(context.Context, Blob) (io.ReadCloser, error)) error {
	if err := head(t, nameOf(b.SHA256), b.Bytes); err != nil {
		return err
	}
	r, err := open(ctx, b)
	if err != nil {
		return err
	}
	v := newVerified(ctx, r, b)
	_, err = io.Copy(t, v)
	return errors.Join(gone(err), r.Close())
}

func head(t *tar.Writer, name string, size int64) error {
	return gone(t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: size, Format: tar.FormatPAX}))
}

// gone gives an error of writing its kind: whoever reads went away.
func gone(err error) error {
	if err == nil {
		return nil
	}
	if _, ours := errors.AsType[*hearth.Error](err); ours {
		return err
	}
	return hearth.Wrap(hearth.Unavailable, err, "the snapshot could not be written out")
}

// verified reads exactly what a blob says, and fails at its end if that is not so.
type verified struct {
	ctx  context.Context
	r    io.Reader
	b    Blob
	left int64
	sum  interface {
		io.Writer
		Sum(b []byte) []byte
	}
}

func newVerified(ctx context.Context, r io.Reader, b Blob) *verified {
	return &verified{ctx: ctx, r: r, b: b, left: b.Bytes, sum: sha256.New()}
}

func (v *verified) Read(p []byte) (int, error) {
	if v.ctx.Err() != nil {
		return 0, context.Cause(v.ctx)
	}
	if v.left == 0 {
		if got := hex.EncodeToString(v.sum.Sum(nil)); got != v.b.SHA256 {
			return 0, hearth.Errorf(hearth.InvalidArgument, "file %.12s is damaged: its content is %.12s", v.b.SHA256, got)
		}
		return 0, io.EOF
	}
	n, err := v.r.Read(p[:min(int64(len(p)), v.left)])
	_, _ = v.sum.Write(p[:n])
	v.left -= int64(n)
	if err == io.EOF && v.left > 0 {
		err = hearth.Errorf(hearth.InvalidArgument, "file %.12s is cut short: %d bytes are missing", v.b.SHA256, v.left)
	} else if err == io.EOF {
		err = nil // the next call decides
	}
	return n, err
}

// check returns an InvalidArgument that says what of the contents cannot be.
func (c *Contents) check() error {
	switch {
	case c.Version != version:
		return hearth.Errorf(hearth.InvalidArgument, "the snapshot's format has version %d, this server knows version %d", c.Version, version)
	case len(c.Snapshots) == 0 || len(c.Snapshots) > driver.MaxLayers:
		return hearth.Errorf(hearth.InvalidArgument, "there are %d snapshots, not 1 to %d", len(c.Snapshots), driver.MaxLayers)
	case len(c.Layers) > maxFiles:
		return hearth.Errorf(hearth.InvalidArgument, "there are %d layers, more than %d", len(c.Layers), maxFiles)
	}
	sizes := map[string]int64{}
	for i := range c.Snapshots {
		if err := c.checkSnapshot(i); err != nil {
			return err
		}
		if err := checkFiles(c.Snapshots[i].Files, sizes); err != nil {
			return err
		}
	}
	for _, l := range c.Layers {
		if err := fits(sizes, l.SHA256, l.Bytes); err != nil {
			return err
		}
	}
	return nil
}

func (c *Contents) checkSnapshot(i int) error {
	s, below := c.Snapshots[i], hearth.SnapshotID("")
	if i+1 < len(c.Snapshots) {
		below = c.Snapshots[i+1].ID
	}
	if s.ID == "" || s.Base != below || s.Driver != c.Snapshots[0].Driver || s.Key != c.Snapshots[0].Key {
		return hearth.Errorf(hearth.InvalidArgument, "snapshot %d does not refer to the next one, or needs another driver", i+1)
	}
	if len(s.Driver) > 100 || len(s.Key) > 4096 || len(s.Files) > maxFiles {
		return hearth.Errorf(hearth.InvalidArgument, "snapshot %d has %d files or names that are too long", i+1, len(s.Files))
	}
	return nil
}

func checkFiles(files []hearth.File, sizes map[string]int64) error {
	names := map[string]bool{"": true, ".": true, "..": true}
	for _, f := range files {
		if names[f.Name] || len(f.Name) > 100 || strings.ContainsAny(f.Name, "/\x00") {
			return hearth.Errorf(hearth.InvalidArgument, "a snapshot has a file %q, or has it twice", f.Name)
		}
		names[f.Name] = true
		if err := fits(sizes, f.SHA256, f.Bytes); err != nil {
			return err
		}
	}
	return nil
}

// fits checks a name, and that one content has one size.
func fits(sizes map[string]int64, sha256 string, size int64) error {
	raw, err := hex.DecodeString(sha256)
	if err != nil || len(raw) != 32 || hex.EncodeToString(raw) != sha256 {
		return hearth.Errorf(hearth.InvalidArgument, "%.80q is not a SHA-256 in lower-case hex", sha256)
	}
	before, seen := sizes[sha256]
	if size < 0 || seen && before != size {
		return hearth.Errorf(hearth.InvalidArgument, "file %.12s has %d bytes", sha256, size)
	}
	sizes[sha256] = size
	return nil
}
