package app

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

// Files that a running server keeps in its data directory. The pid and the
// address are for people and for `hearth env`; the lock is what counts.
const (
	LockFile    = "hearth.lock"
	PidFile     = "hearth.pid"
	AddressFile = "hearth.address"
	LogFile     = "hearth.log"
	KeyFile     = "api-key"
	seedFile    = "token-seed"

	databaseFile = "hearth.db"
)

// lock holds a data directory for one process. The kernel drops it when the
// process dies, however it dies.
type lock struct{ f *os.File }

// acquire makes dir if need be and locks it. A held lock is AlreadyExists.
func acquire(dir string) (*lock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, hearth.Wrap(hearth.PermissionDenied, err, "data directory %s cannot be made; choose another with --data", dir)
	}
	f, err := os.OpenFile(filepath.Join(dir, LockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, hearth.Wrap(hearth.PermissionDenied, err, "data directory %s cannot be written; choose another with --data", dir)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, hearth.Errorf(hearth.AlreadyExists, "a server already runs on %s%s; stop it with `hearth down --data %s`", dir, pidNote(dir), dir)
		}
		return nil, hearth.Wrap(hearth.Internal, err, "data directory %s cannot be locked", dir)
	}
	return &lock{f}, nil
}

func (l *lock) release() { l.f.Close() }

// Pid returns the process that holds the data directory, or 0 when none does.
func Pid(dir string) int {
	l, err := acquireExisting(dir)
	if err == nil {
		l.release()
		return 0
	}
	raw, err := os.ReadFile(filepath.Join(dir, PidFile))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid < 2 {
		return 0
	}
	return pid
}

// acquireExisting locks dir without making it.
func acquireExisting(dir string) (*lock, error) {
	if _, err := os.Stat(filepath.Join(dir, LockFile)); err != nil {
		return &lock{f: nil}, nil // no server ever ran here
	}
	return acquire(dir)
}

func pidNote(dir string) string {
	raw, err := os.ReadFile(filepath.Join(dir, PidFile))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (pid %s)", strings.TrimSpace(string(raw)))
}
