package pager

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Linux's userfaultfd(2) and ioctl_userfaultfd(2), as far as a pager needs them.
const (
	uffdioWake     = 0x8010AA02
	uffdioCopy     = 0xC028AA03
	uffdioZeropage = 0xC020AA04

	eventPagefault = 0x12
	eventRemove    = 0x15

	messageSize = 32
	batch       = 16 // messages taken per read
)

// message is one event: a fault at start, or the removal of [start, end).
type message struct {
	event      byte
	start, end uint64
}

// readMessages takes what is waiting, at most batch events. None is no error.
func readMessages(uffd int) ([]message, error) {
	var buf [batch * messageSize]byte
	n, err := unix.Read(uffd, buf[:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseMessages(buf[:n]), nil
}

// parseMessages reads whole events. A fault has its address behind its flags, a
// removal its two ends in the same places.
func parseMessages(raw []byte) []message {
	var list []message
	for ; len(raw) >= messageSize; raw = raw[messageSize:] {
		first, second := binary.NativeEndian.Uint64(raw[8:]), binary.NativeEndian.Uint64(raw[16:])
		m := message{event: raw[0], start: first, end: second}
		if m.event == eventPagefault {
			m.start, m.end = second, 0
		}
		list = append(list, m)
	}
	return list
}

// copyPages puts content at an address of the other process, which must be of
// whole pages that are not there yet. It reports how many bytes were put.
func copyPages(uffd int, address uint64, content []byte) (int, error) {
	arg := struct {
		dst, src, length, mode uint64
		copied                 int64
	}{dst: address, src: uint64(uintptr(unsafe.Pointer(&content[0]))), length: uint64(len(content))}
	err := ioctl(uffd, uffdioCopy, unsafe.Pointer(&arg))
	return int(max(arg.copied, 0)), err
}

// zeroPages maps pages of zeros that take no memory until they are written.
func zeroPages(uffd int, address, length uint64) (int, error) {
	arg := struct {
		start, length, mode uint64
		zeroed              int64
	}{start: address, length: length}
	err := ioctl(uffd, uffdioZeropage, unsafe.Pointer(&arg))
	return int(max(arg.zeroed, 0)), err
}

// wake lets threads go on that wait for pages which are there by now.
func wake(uffd int, address, length uint64) error {
	arg := struct{ start, length uint64 }{address, length}
	return ioctl(uffd, uffdioWake, unsafe.Pointer(&arg))
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}
