package hostproc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

const maxUID = 1<<32 - 1

// Users hands out ranges of host users. The record is a directory of symbolic
// links, one per range in use: making one is atomic and carries the owner's
// name, so a crash at any point leaves no range that nobody owns.
type Users struct {
	dir  string
	base uint32
	size uint32
	mu   sync.Mutex
}

// NewUsers returns the ranges of size users from base on, recorded in dir, which
// is made when it is needed.
func NewUsers(dir string, base, size uint32) *Users { return &Users{dir: dir, base: base, size: size} }

// CheckUsers returns an InvalidArgument error unless a range from base on can be
// given to machines.
func CheckUsers(base, size uint32) error {
	if base < 65536 || uint64(base)+uint64(size) > maxUID {
		return hearth.Errorf(hearth.InvalidArgument, "uid base %d is not within 65536 to %d", base, maxUID-size)
	}
	return nil
}

// Take reserves a free range for a machine and returns its first host user. Of
// several that take one for the same machine at once, in whatever process, one gets it.
func (u *Users) Take(id string) (uint32, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := os.MkdirAll(u.dir, 0o700); err != nil {
		return 0, err
	}
	unlock, err := u.alone()
	if err != nil {
		return 0, err
	}
	defer unlock()
	used, err := u.Used()
	if err != nil {
		return 0, err
	}
	for n := 0; uint64(u.base)+uint64(n+1)*uint64(u.size) <= maxUID; n++ {
		if owner, taken := used[n]; taken {
			if owner == id {
				return 0, hearth.Errorf(hearth.AlreadyExists, "machine %s is already there", id)
			}
			continue
		}
		err := os.Symlink(id, filepath.Join(u.dir, strconv.Itoa(n)))
		if err != nil {
			return 0, err
		}
		return u.base + uint32(n)*u.size, nil
	}
	return 0, hearth.Errorf(hearth.ResourceExhausted, "no range of user IDs is free: %d are in use", len(used))
}

// alone keeps other processes out of Take until unlock is called: between a look at
// who has a range and a link of one's own, another could take a second one for the same
// machine. The kernel lets go of it when the process ends.
func (u *Users) alone() (unlock func(), err error) {
	d, err := os.Open(u.dir)
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	return func() { _, _ = unix.Flock(int(d.Fd()), unix.LOCK_UN), d.Close() }, nil
}

// Free gives back what a machine has; having nothing is no error.
func (u *Users) Free(id string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	used, err := u.Used()
	if err != nil {
		return err
	}
	for n, owner := range used {
		if owner == id {
			err = errors.Join(err, os.Remove(filepath.Join(u.dir, strconv.Itoa(n))))
		}
	}
	return err
}

// Used maps range numbers to owners.
func (u *Users) Used() (map[int]string, error) {
	entries, err := os.ReadDir(u.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	used := make(map[int]string, len(entries))
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("%s holds %q, which is no range of user IDs", u.dir, e.Name())
		}
		owner, err := os.Readlink(filepath.Join(u.dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // given back since
		}
		if err != nil {
			return nil, err
		}
		used[n] = owner
	}
	return used, nil
}
