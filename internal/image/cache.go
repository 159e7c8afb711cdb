package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

// Cache keeps what took long to make, by key. A directory may serve several
// data directories and processes at once: making one entry is exclusive, and
// an entry is verified by its hash whenever it is taken.
//
// On disk an entry is KEY and KEY.json {"sha256", "bytes"}, both written under
// another name first; KEY.lock is held while it is made.
type Cache struct{ dir string }

// NewCache keeps entries in dir, which is made on first use.
func NewCache(dir string) *Cache { return &Cache{dir: dir} }

// Entry is one file of a Cache. It must not be written to.
type Entry struct {
	Path   string `json:"-"`
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
}

// Take returns the entry of a name of [a-z0-9.-], which fill writes to the file
// it is given if there is none, or if the one there is damaged.
func (c *Cache) Take(ctx context.Context, name string, fill func(ctx context.Context, out string) error) (Entry, error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return Entry{}, diskError(err, c.dir)
	}
	unlock, err := c.lock(ctx, name)
	if err != nil {
		return Entry{}, err
	}
	defer unlock()
	if e, err := c.find(ctx, name); err == nil || ctx.Err() != nil {
		return e, err
	}
	c.clean(name)
	work, err := os.MkdirTemp(c.dir, "."+name+"-")
	if err != nil {
		return Entry{}, diskError(err, c.dir)
	}
	defer os.RemoveAll(work)
	tmp := filepath.Join(work, "entry")
	if err := fill(ctx, tmp); err != nil {
		return Entry{}, diskError(err, c.dir)
	}
	e, err := c.commit(ctx, name, tmp)
	return e, diskError(err, c.dir)
}

// lock takes the entry's file lock, which also other processes honour and
// which a crash releases.
func (c *Cache) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.dir, name+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, diskError(err, c.dir)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			now := time.Now() // says when the entry was last used
			return func() { f.Close() }, os.Chtimes(f.Name(), now, now)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, hearth.Wrap(hearth.Internal, err, "cannot lock %s", f.Name())
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (c *Cache) find(ctx context.Context, name string) (Entry, error) {
	e := Entry{Path: filepath.Join(c.dir, name)}
	raw, err := os.ReadFile(e.Path + ".json")
	if err != nil {
		return Entry{}, err
	}
	want := Entry{Path: e.Path}
	if err := json.Unmarshal(raw, &want); err != nil {
		return Entry{}, err
	}
	if e.SHA256, e.Bytes, err = sum(ctx, e.Path); err != nil {
		return Entry{}, err
	}
	if e != want {
		return Entry{}, fs.ErrInvalid
	}
	return e, nil
}

func (c *Cache) commit(ctx context.Context, name, tmp string) (Entry, error) {
	e := Entry{Path: filepath.Join(c.dir, name)}
	var err error
	if e.SHA256, e.Bytes, err = sum(ctx, tmp); err != nil {
		return Entry{}, err
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return Entry{}, err
	}
	if err := os.WriteFile(tmp+".json", raw, 0o600); err != nil {
		return Entry{}, err
	}
	// The hash last: an entry without one does not count.
	if err := os.Rename(tmp, e.Path); err != nil {
		return Entry{}, err
	}
	return e, os.Rename(tmp+".json", e.Path+".json")
}

// clean removes an entry and what a crash left of one. The lock is held.
func (c *Cache) clean(name string) {
	list, err := os.ReadDir(c.dir)
	if err != nil {
		return // nothing is there to be cleaned
	}
	for _, f := range list {
		if n := f.Name(); n == name || n == name+".json" || strings.HasPrefix(n, "."+name+"-") {
			_ = os.RemoveAll(filepath.Join(c.dir, n)) // a leftover costs space, no more
		}
	}
}

// unusedFor is how long an entry is kept that nobody takes.
const unusedFor = 30 * 24 * time.Hour

// Sweep removes what crashed processes left half-made, and entries that nobody
// has taken for a month. What another process is making is left alone.
func (c *Cache) Sweep(context.Context) error {
	list, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "cannot read the cache %s", c.dir)
	}
	old := time.Now().Add(-unusedFor)
	for _, f := range list {
		rest, temporary := strings.CutPrefix(f.Name(), ".")
		if cut := strings.LastIndexByte(rest, '-'); temporary && cut > 0 {
			err = c.remove(rest[:cut], f.Name())
		} else if name, is := strings.CutSuffix(f.Name(), ".lock"); is {
			if fi, ferr := f.Info(); ferr == nil && fi.ModTime().Before(old) {
				err = c.remove(name, name, name+".json", name+".lock")
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// remove removes files of an entry unless another process holds its lock.
func (c *Cache) remove(name string, files ...string) error {
	lock, err := os.OpenFile(filepath.Join(c.dir, name+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return diskError(err, c.dir)
	}
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		for _, f := range files {
			err = errors.Join(err, removeAll(filepath.Join(c.dir, f)))
		}
	}
	return errors.Join(err, lock.Close())
}

// sum hashes a file.
func sum(ctx context.Context, path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := copyCtx(ctx, h, f)
	return hex.EncodeToString(h.Sum(nil)), n, err
}
