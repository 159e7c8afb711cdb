package jail

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Under the filter a hole of the disk's sizes is made, or refused as ever; one of
// the memory's sizes is answered with success, and nothing happens.
func TestOnlyLargeHolesAreNotMade(t *testing.T) {
	const size = 8 << 20
	file := func(t *testing.T) *os.File {
		fd, err := unix.MemfdCreate("discard", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "discard")
		t.Cleanup(func() { f.Close() })
		if _, err := f.Write(bytes.Repeat([]byte{7}, size)); err != nil {
			t.Fatal(err)
		}
		return f
	}
	open, sealed := file(t), file(t)
	if _, err := unix.FcntlInt(sealed.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		t.Fatal(err)
	}
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	for _, c := range []struct {
		name   string
		file   *os.File
		mode   uint32
		length int64
		err    error
		zeroed bool
	}{
		{"the disk's largest", open, punch, DiskDiscard, nil, true},
		{"a page of a template", sealed, punch, 4096, unix.EPERM, false},
		{"just less than a block of a template", sealed, punch, memoryDiscard - 4096, unix.EPERM, false},
		{"a block of a template", sealed, punch, memoryDiscard, nil, false},
		{"a block of memory that could be written", open, punch, memoryDiscard, nil, false},
		{"all there is, and more", sealed, punch, 1 << 33, nil, false},
		{"what memory files cannot do", open, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, memoryDiscard, unix.EOPNOTSUPP, false},
	} {
		if _, err := open.WriteAt(bytes.Repeat([]byte{7}, size), 0); err != nil {
			t.Fatal(err)
		}
		if err := underFilter(t, func() error { return unix.Fallocate(int(c.file.Fd()), c.mode, 0, c.length) }); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
		}
		got := make([]byte, size)
		if _, err := c.file.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if zeroed := got[0] == 0; zeroed != c.zeroed || got[size-1] != 7 {
			t.Errorf("%s: first byte %d, last %d", c.name, got[0], got[size-1])
		}
	}
}

// underFilter makes a call in a thread that has the filter and ends with it.
func underFilter(t *testing.T, call func() error) error {
	t.Helper()
	type outcome struct{ filter, call error }
	result := make(chan outcome)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if err == nil {
			err = keepTemplates()
		}
		if err != nil {
			result <- outcome{filter: err}
			return
		}
		result <- outcome{call: call()}
	}()
	o := <-result
	if o.filter != nil {
		t.Fatal(o.filter)
	}
	return o.call
}
