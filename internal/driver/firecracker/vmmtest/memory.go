package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	pageSize  = 4096
	wordsAt   = 1 << 20 // where the guest keeps its words, in memory
	wordsRoom = 1 << 20
)

// memory is a machine's RAM, with the pages that were written to noted.
type memory struct {
	mu    sync.Mutex
	bytes []byte
	dirty map[int]bool // nil: not tracked
	uffd  int
	conn  *net.UnixConn // to the pager; held open, as the real one does
}

func newMemory(mib int) (*memory, error) {
	b, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	return &memory{bytes: b, dirty: map[int]bool{}, uffd: -1}, nil
}

// mapFile maps a memory file privately.
func mapFile(path string, mib int) (*memory, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != int64(mib)<<20 {
		return nil, fmt.Errorf("memory file has %d bytes, the machine %d MiB", info.Size(), mib)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	return &memory{bytes: b, dirty: map[int]bool{}, uffd: -1}, nil
}

// Linux's userfaultfd, as far as its client needs it.
const (
	uffdNew        = 0xAA00 // on the device
	uffdAPI        = 0xC018AA3F
	uffdRegister   = 0xC020AA00
	uffdRemoves    = 1 << 3
	uffdOfMissing  = 1
	uffdAPIVersion = 0xAA
)

func ioctl(fd int, what uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), what, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// pagedMemory has its pages from the pager that listens on a socket.
func pagedMemory(socket string, mib int) (*memory, error) {
	m, err := newMemory(mib)
	if err != nil {
		return nil, err
	}
	dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/userfaultfd: %w", err)
	}
	defer unix.Close(dev)
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), uffdNew, unix.O_CLOEXEC|unix.O_NONBLOCK)
	if errno != 0 {
		return nil, fmt.Errorf("userfaultfd: %w", errno)
	}
	m.uffd = int(fd)
	api := struct{ api, features, ioctls uint64 }{uffdAPIVersion, uffdRemoves, 0}
	if err := ioctl(m.uffd, uffdAPI, unsafe.Pointer(&api)); err != nil {
		return nil, err
	}
	address := uint64(uintptr(unsafe.Pointer(&m.bytes[0])))
	reg := struct{ start, length, mode, ioctls uint64 }{address, uint64(len(m.bytes)), uffdOfMissing, 0}
	if err := ioctl(m.uffd, uffdRegister, unsafe.Pointer(&reg)); err != nil {
		return nil, err
	}
	if m.conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"}); err != nil {
		return nil, err
	}
	regions := fmt.Sprintf(`[{"base_host_virt_addr":%d,"size":%d,"offset":0,"page_size":%d,"page_size_kib":%d}]`,
		address, len(m.bytes), pageSize, pageSize)
	_, _, err = m.conn.WriteMsgUnix([]byte(regions), unix.UnixRights(m.uffd), nil)
	return m, err
}

// words reads what the guest keeps in memory.
func (m *memory) words() (map[string]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return decodeWords(m.bytes[wordsAt : wordsAt+wordsRoom])
}

func decodeWords(raw []byte) (map[string]string, error) {
	words := map[string]string{}
	n := binary.LittleEndian.Uint64(raw)
	if n == 0 {
		return words, nil
	}
	if n > uint64(len(raw)-8) {
		return nil, errors.New("memory is damaged")
	}
	return words, json.Unmarshal(raw[8:8+n], &words)
}

func encodeWords(words map[string]string) ([]byte, error) {
	raw, err := json.Marshal(words)
	if err != nil {
		return nil, err
	}
	if len(raw) > wordsRoom-8 {
		return nil, errors.New("too many words")
	}
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(raw))), raw...), nil
}

func (m *memory) setWords(words map[string]string) error {
	raw, err := encodeWords(words)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.bytes[wordsAt:], raw)
	for at := wordsAt; at < wordsAt+len(raw); at += pageSize {
		m.dirty[at/pageSize] = true
	}
	return nil
}

// dump writes all of memory, or the pages written to since the last dump, over
// what the file has. Zero pages of a whole dump are left out of a new file.
func (m *memory) dump(path string, whole bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	old := info.Size() == int64(len(m.bytes))
	if !old {
		if err := errors.Join(f.Truncate(0), f.Truncate(int64(len(m.bytes)))); err != nil {
			return err
		}
	}
	for page := range len(m.bytes) / pageSize {
		if !whole && !m.dirty[page] {
			continue
		}
		content := m.bytes[page*pageSize : (page+1)*pageSize]
		if whole && !old && [pageSize]byte(content) == [pageSize]byte{} {
			continue
		}
		if _, err := f.WriteAt(content, int64(page*pageSize)); err != nil {
			return err
		}
	}
	clear(m.dirty)
	return nil
}
