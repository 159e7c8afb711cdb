package microvm

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

// copyStep is how much is copied between two looks at the context.
const copyStep = 8 * mib

// Durability says whether a copy must survive a power cut.
type Durability int

// The durabilities.
const (
	Cached Durability = iota // the kernel writes it when it likes
	Synced                   // on disk before the call returns
)

// CopySparse copies the file at from to the new file at to, mode 0600, holes
// left out: as a reflink where the file system has them, else data extent by
// extent. It returns the bytes that were copied. Nothing is left behind when it fails.
func CopySparse(ctx context.Context, from, to string, d Durability) (int64, error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, hearth.Wrap(hearth.Internal, err, "the file to be copied cannot be read")
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, hearth.Wrap(hearth.Internal, err, "the copy cannot be made")
	}
	n, err := copyFile(ctx, in, out)
	if err == nil && d == Synced {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		_ = os.Remove(to)
		return 0, diskError(err)
	}
	return n, nil
}

func copyFile(ctx context.Context, in, out *os.File) (int64, error) {
	st, err := in.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, hearth.Errorf(hearth.InvalidArgument, "%s is no plain file", in.Name())
	}
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return 0, nil
	}
	if err := out.Truncate(st.Size()); err != nil {
		return 0, err
	}
	var total int64
	for at := int64(0); at < st.Size(); {
		start, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return total, err
		}
		end, err := unix.Seek(int(in.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return total, err
		}
		end = min(end, st.Size())
		if err := copyRange(ctx, in, out, start, end); err != nil {
			return total, err
		}
		total += end - start
		at = end
	}
	return total, nil
}

// copyRange copies the bytes from start to end, within the kernel where it can.
func copyRange(ctx context.Context, in, out *os.File, start, end int64) error {
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		from, to := start, start
		n, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), &to, int(min(end-start, copyStep)), 0)
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
			return copyPlain(ctx, in, out, start, end)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF // the file shrank
		}
		start += int64(n)
	}
	return nil
}

func copyPlain(ctx context.Context, in, out *os.File, start, end int64) error {
	buf := make([]byte, mib)
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := in.ReadAt(buf[:min(end-start, mib)], start)
		if n == 0 && err != nil {
			return err
		}
		if _, err := out.WriteAt(buf[:n], start); err != nil {
			return err
		}
		start += int64(n)
	}
	return nil
}
