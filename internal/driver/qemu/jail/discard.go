package jail

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// A guest gives memory back through its balloon, page by page of what it has
// freed, and QEMU then does two things with the range: it punches a hole into the
// file that the memory is of, and drops the process's own pages. A clone's memory
// is a private mapping of its template's file, which is sealed: the hole is
// refused, QEMU gives up, and the pages, which are what the clone costs, stay.
//
// So the launcher leaves a seccomp filter behind that answers such a call with
// success and does nothing: the template stays as it is, and QEMU goes on to drop
// what is the clone's own. The disk's holes are made by the same call; they are
// told apart by size, which bounds that are not the guest's to move make sound:
//
//   - QEMU takes no more than DiskDiscard bytes in one request to discard or to
//     zero a part of the disk, by the device's own limit;
//   - Linux reports free memory in blocks of at least memoryDiscard bytes (its
//     pageblock order). One that reports smaller ones is refused as before.
const (
	// DiskDiscard is the most that a hole in the disk may have; see argv.
	DiskDiscard   = 1 << 20
	memoryDiscard = 2 << 20
)

// keepTemplates installs that filter in this thread, for what it executes.
func keepTemplates() error {
	filter := discardFilter()
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return errno
	}
	return nil
}

// discardFilter returns 0 from fallocate(fd, PUNCH_HOLE|KEEP_SIZE, offset, length)
// for lengths of memoryDiscard and more, and lets everything else through: QEMU's own
// filter, which comes later, forbids what must be forbidden.
func discardFilter() []unix.SockFilter {
	const (
		nr, arch   = 0, 4 // in struct seccomp_data; arguments are u64, little-endian
		mode       = 16 + 8*1
		length     = 16 + 8*3
		lengthHigh = length + 4
		hole       = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		load       = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal      = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		atLeast    = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		answer     = unix.BPF_RET | unix.BPF_K
	)
	return []unix.SockFilter{
		{Code: load, K: arch},
		{Code: equal, K: unix.AUDIT_ARCH_X86_64, Jf: 8},
		{Code: load, K: nr},
		{Code: equal, K: unix.SYS_FALLOCATE, Jf: 6},
		{Code: load, K: mode},
		{Code: equal, K: hole, Jf: 4},
		{Code: load, K: lengthHigh},
		{Code: atLeast, K: 1, Jt: 3},
		{Code: load, K: length},
		{Code: atLeast, K: memoryDiscard, Jt: 1},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO}, // with no error in it
	}
}
