package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

const (
	mib        = 1 << 20
	maxDiskMiB = 16 << 20 // 16 TiB, the largest ext4 with 32-bit block numbers
)

// DiskSpec describes a writable disk.
type DiskSpec struct {
	Path     string // absolute; must not exist
	MiB      int    // what the guest may write; the file is a little larger
	UID, GID int    // of the file, mode 0600
}

// diskSize returns the bytes of a disk on which content bytes can be written.
// ext4 takes away: an inode of 256 bytes for each 16 KiB, two blocks of bitmaps
// for each 128 MiB, and a few blocks of its own.
func diskSize(content int64) int64 {
	size := content
	for range 8 { // what is taken away grows with the size; this converges
		size = content + size/64 + size/16384 + size/4096
	}
	return (size + 64<<10 - 1) &^ (64<<10 - 1)
}

// MakeDisk makes a sparse file with an empty ext4 file system. Nothing is left
// behind when it fails.
func MakeDisk(ctx context.Context, d DiskSpec) error {
	if !filepath.IsAbs(d.Path) {
		return hearth.Errorf(hearth.InvalidArgument, "disk: path %q is not absolute", d.Path)
	}
	if d.MiB < 1 || d.MiB > maxDiskMiB {
		return hearth.Errorf(hearth.InvalidArgument, "disk: %d MiB is not within 1 to %d", d.MiB, maxDiskMiB)
	}
	f, err := os.OpenFile(d.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "the disk cannot be made")
	}
	err = errors.Join(f.Truncate(diskSize(int64(d.MiB)*mib)), f.Close())
	if err == nil {
		err = format(ctx, d.Path)
	}
	if err == nil {
		err = os.Chown(d.Path, d.UID, d.GID)
	}
	if err != nil {
		_ = os.Remove(d.Path)
		return diskError(err)
	}
	return nil
}

// CheckDisk refuses a disk that MakeDisk cannot have made for the size: a guest
// would start, and lose what lay beyond its end.
func CheckDisk(path string, sizeMiB int) error {
	info, err := os.Stat(path)
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "checkpoint is damaged: its disk cannot be read")
	}
	if want := diskSize(int64(sizeMiB) * mib); !info.Mode().IsRegular() || info.Size() != want {
		return hearth.Errorf(hearth.Internal, "checkpoint is damaged: its disk has %d bytes, not %d", info.Size(), want)
	}
	return nil
}

// format makes an ext4 without what a disk that never outlives its machine does
// not need: a journal, room to grow, blocks that only root may take.
func format(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-i", "16384", "-I", "256", "-m", "0",
		"-O", "^has_journal,^resize_inode,^metadata_csum,^orphan_file,uninit_bg",
		"-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", path)
	cmd.Env = append(os.Environ(), "MKE2FS_CONFIG=/dev/null", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return hearth.Errorf(hearth.FailedPrecondition, "mke2fs is missing; install the package e2fsprogs")
	}
	return fmt.Errorf("mke2fs: %w: %s", err, lastLine(string(out)))
}

// diskError says so when the host's disk is full, and when the caller's time is over.
func diskError(err error) error {
	var known *hearth.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return hearth.Wrap(hearth.ResourceExhausted, err, "the host's disk is full")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return hearth.Wrap(hearth.DeadlineExceeded, err, "the machine's disk was not written in time")
	}
	return hearth.Wrap(hearth.Internal, err, "the machine's disk cannot be written")
}
