package shelf

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

const maxProofs = 65536 // files remembered as verified

// proofs remembers which files were found to be what was written, and what they
// looked like then: one that still looks like that is not read again.
type proofs struct {
	reading chan struct{} // holds a token: files are verified one after the other

	mu   sync.Mutex
	done map[string]proof // by blob key
}

// proof is a file that was verified. A link or a change of mode do not matter,
// a write does.
type proof struct {
	file  hearth.File
	inode uint64
	size  int64
	mtime int64 // nanoseconds
}

func prove(f hearth.File, info os.FileInfo) proof {
	p := proof{file: f, size: info.Size(), mtime: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		p.inode = sys.Ino
	}
	return p
}

// written notes a file whose digest was taken as it was stored.
func (p *proofs) written(ctx context.Context, blobs blob.Local, f hearth.File) error {
	file, err := blobs.Path(ctx, f.Blob)
	if err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return DiskError(err, "a snapshot's file cannot be read")
	}
	p.trust(prove(f, info))
	return nil
}

// verify compares a file with what was written.
func (p *proofs) verify(ctx context.Context, id hearth.SnapshotID, f hearth.File, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err, "snapshot %s is damaged: it lacks its file %s; it was not started", id, f.Name)
	}
	if info.Size() != f.Bytes {
		return hearth.Errorf(hearth.FailedPrecondition,
			"snapshot %s is damaged: its file %s has %d bytes, not %d; it was not started", id, f.Name, info.Size(), f.Bytes)
	}
	now := prove(f, info)
	intact, err := p.intact(ctx, now, file)
	if err == nil && !intact {
		err = hearth.Errorf(hearth.FailedPrecondition,
			"snapshot %s is damaged: its file %s is not what was written; it was not started", id, f.Name)
	}
	return DiskError(err, "a snapshot's file cannot be read")
}

// intact reports whether a file's content has the SHA-256 that now says, by which
// it is remembered. Who asks for the same file meanwhile waits, and does not read it.
func (p *proofs) intact(ctx context.Context, now proof, file string) (bool, error) {
	if p.trusted(now) {
		return true, nil
	}
	select {
	case p.reading <- struct{}{}:
		defer func() { <-p.reading }()
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	if p.trusted(now) {
		return true, nil
	}
	got, _, err := digest(ctx, file)
	if err != nil || got != now.file.SHA256 {
		return false, err // not remembered: it may be put right and look the same
	}
	p.trust(now)
	return true, nil
}

func (p *proofs) trusted(now proof) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done[now.file.Blob] == now
}

func (p *proofs) trust(now proof) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.done) >= maxProofs {
		clear(p.done) // costs a second look, no more
	}
	p.done[now.file.Blob] = now
}

func (p *proofs) forget(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.done, key)
}

// digest returns a file's SHA-256, lower-case hex, and its size in bytes.
func digest(ctx context.Context, path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	h := sha256.New()
	n, err := io.CopyBuffer(h, &untilDone{ctx, f}, make([]byte, 1<<20))
	if err := errors.Join(err, f.Close()); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), n, nil
}

// untilDone reads until its context ends.
type untilDone struct {
	ctx context.Context
	io.Reader
}

func (r *untilDone) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}
