package shelf

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"

	"hearth/internal/hearth"
)

// Notes are small files beside a snapshot's own that say what is known of it and can
// be found out again. A restore needs none; they go with the snapshot, and when its
// plain files make room in the cache.

// maxNote bounds a note, in bytes.
const maxNote = 64 << 20

// notePrefix keeps the names of notes apart from those of drivers' files.
const notePrefix = "note-"

// Annotate keeps a note, in the place of what was there.
func (s *Shelf) Annotate(ctx context.Context, id hearth.SnapshotID, name string, note []byte) error {
	if len(note) > maxNote {
		return hearth.Errorf(hearth.ResourceExhausted, "a note of %d bytes is more than the %d that are kept", len(note), maxNote)
	}
	writer := "noting " + rand.Text()               // many may at once
	if err := s.Hold(ctx, writer, id); err != nil { // or it would be left when everything else goes
		return err
	}
	key := prefix(id) + notePrefix + name
	err := s.blobs.Delete(ctx, key)
	if err == nil {
		err = DiskError(s.blobs.Put(ctx, key, bytes.NewReader(note), int64(len(note))), "a note cannot be kept")
	}
	return errors.Join(err, s.Release(context.WithoutCancel(ctx), writer))
}

// Note reads a note as it stands. NotFound when there is none.
func (s *Shelf) Note(ctx context.Context, id hearth.SnapshotID, name string) ([]byte, error) {
	r, err := s.blobs.Open(ctx, prefix(id)+notePrefix+name, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, maxNote))
}

// dropNotes deletes a snapshot's notes.
func (s *Shelf) dropNotes(ctx context.Context, id hearth.SnapshotID) error {
	var keys []string
	for info, err := range s.blobs.List(ctx, prefix(id)+notePrefix) {
		if err != nil {
			return err
		}
		keys = append(keys, info.Key)
	}
	for _, key := range keys {
		if err := s.blobs.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}
