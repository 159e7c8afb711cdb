package app

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/blob"
	"hearth/internal/blob/apart"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/blob/fileblob"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/shelf"
)

// packAfter is how old a snapshot is when it is packed: most that are resumed
// are resumed before.
const packAfter = 30 * time.Second

// openShelf opens the place of the snapshots. With a key their plain files are in
// memory, so that the disk has only what is encrypted.
func (a *App) openShelf() error {
	c := a.cfg.Snapshots
	var key *chunkblob.Key
	if c.KeyFile != "" {
		var err error
		if key, err = chunkblob.LoadKey(c.KeyFile); err != nil {
			return hearth.Wrap(hearth.InvalidArgument, err, "snapshots.key_file")
		}
	}
	packs, err := fileblob.Open(cmp.Or(c.Dir, a.path("archive")))
	if err != nil {
		return err
	}
	archive, err := chunkblob.New(packs, packs.Temp(), key)
	if err != nil {
		return err
	}
	packing := shelf.Packing{Archive: archive, Cache: int64(c.CacheMiB) << 20, After: packAfter, Log: a.opts.Log}
	blobs := blob.Local(a.blobs)
	a.temp = a.blobs.Temp()
	if key != nil {
		var room int64
		if a.plain, room, err = a.memoryDir(cmp.Or(c.PlainDir, defaultPlainDir)); err != nil {
			return err
		}
		plain, err := fileblob.Open(filepath.Join(a.plain, "blobs"))
		if err != nil {
			return err
		}
		blobs, a.temp = apart.New(a.blobs, plain, shelf.Volatile), plain.Temp()
		packing.AtOnce, packing.Cache = true, min(packing.Cache, room/2)
	}
	a.shelf = shelf.New(a.faults.blobs(blobs)).WithArchive(packing)
	return nil
}

// defaultPlainDir is where plain files are in memory unless config says where.
const defaultPlainDir = "/dev/shm"

// memoryDir makes the server's own directory below one that must be in memory. It
// returns how many bytes its file system can have.
func (a *App) memoryDir(parent string) (dir string, room int64, err error) {
	var vfs unix.Statfs_t
	if err := unix.Statfs(parent, &vfs); err != nil {
		return "", 0, hearth.Wrap(hearth.FailedPrecondition, err, "snapshots.plain_dir: %s cannot be used: %v", parent, err)
	}
	if vfs.Type != unix.TMPFS_MAGIC {
		return "", 0, hearth.Errorf(hearth.FailedPrecondition,
			"snapshots.plain_dir: %s is not a tmpfs; with snapshots.key_file the plain files of snapshots must not be on a disk", parent)
	}
	dir = filepath.Join(parent, "hearth-"+nodeTag(a.cfg.Data))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", 0, shelf.DiskError(err, "snapshots.plain_dir cannot be used")
	}
	// Anybody may make a directory in /dev/shm, and call it as they like.
	info, err := os.Lstat(dir)
	if err != nil {
		return "", 0, shelf.DiskError(err, "snapshots.plain_dir cannot be used")
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || info.Mode() != fs.ModeDir|0o700 || int(st.Uid) != os.Geteuid() {
		return "", 0, hearth.Errorf(hearth.FailedPrecondition, "snapshots.plain_dir: %s is not a directory of this user's alone; somebody else made it", dir)
	}
	if swaps("/proc/swaps") {
		a.opts.Log.Warn("this host has swap space: parts of snapshots may get to a disk that way, unless it is encrypted", "plain_dir", dir)
	}
	return dir, int64(vfs.Blocks) * vfs.Bsize, nil
}

// removePlain removes the plain files of snapshots from memory, once nothing runs from
// them any more. As after a reboot, those that are encrypted on the disk are left.
func (a *App) removePlain() error {
	if a.plain == "" {
		return nil
	}
	return os.RemoveAll(a.plain)
}

// swaps reports whether a list like /proc/swaps has an entry below its heading.
func swaps(list string) bool {
	raw, err := os.ReadFile(list)
	if err != nil {
		return false // a kernel without swap has no list
	}
	return bytes.Count(raw, []byte("\n")) > 1
}
