package hostproc

import (
	"os"

	"golang.org/x/sys/unix"
)

// FixedMemory returns an anonymous file of size bytes that keeps its size: what
// is written beyond fails with EPERM, so that no process can fill the host with
// its output, whoever reads it or not.
func FixedMemory(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("hearth-"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		_ = f.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
