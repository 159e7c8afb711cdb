package shelf

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"

	"hearth/internal/hearth"
)

// Layers returns the files of layers, each of which is what its name says: it was
// read and compared with its SHA-256, by this process and since it last changed.
// A layer that is not, or is not named by a hash, is a FailedPrecondition.
func (s *Shelf) Layers(ctx context.Context, keys []string) ([]string, error) {
	files := make([]string, 0, len(keys))
	for _, key := range keys {
		file, err := s.layer(ctx, key)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

func (s *Shelf) layer(ctx context.Context, key string) (string, error) {
	file, err := s.blobs.Path(ctx, key)
	if hearth.KindOf(err) == hearth.NotFound { // not what the caller asked for was not found
		return "", hearth.Wrap(hearth.FailedPrecondition, err, "layer %s is damaged: its file is gone; it was not started", key)
	}
	if err != nil {
		return "", err
	}
	info, err := os.Stat(file)
	if err != nil {
		return "", DiskError(err, "layer "+key+" cannot be read")
	}
	intact, err := s.proofs.intact(ctx, prove(layerFile(key, info.Size()), info), file)
	switch {
	case errors.Is(err, syscall.EIO): // how a disk says that a sector is lost
		err = hearth.Wrap(hearth.FailedPrecondition, err, "layer %s is damaged: the disk does not return its file; it was not started", key)
	case err == nil && !intact:
		err = hearth.Errorf(hearth.FailedPrecondition,
			"layer %s is damaged: its file, of %d bytes, is not what was written; it was not started", key, info.Size())
	}
	return file, DiskError(err, "layer "+key+" cannot be read")
}

// layerFile is a layer in the terms of proofs. How long it should be nobody knows.
func layerFile(key string, size int64) hearth.File {
	return hearth.File{Name: key, Blob: key, Bytes: size, SHA256: strings.TrimPrefix(key, layerPrefix)}
}
