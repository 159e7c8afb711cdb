package keeper

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The file has two places, and in each at most one record, little-endian:
//
//	bytes   what
//	0-7     number; the record with the higher one counts
//	8-15    length of the body
//	16-47   SHA-256 of number, length and body
//	48-     body
//
// A write goes to the place of the record that does not count, so one that is cut
// short by the daemon's death leaves the one before.
const (
	place    = 16 << 20 // bytes
	head     = 8 + 8 + sha256.Size
	maxBody  = place - head
	memoryFD = 3 // of the daemon
)

// Memory is what the daemon must not forget when it dies: a file in memory that the
// first process holds open. It is as secret as the daemon's own memory: root's.
type Memory struct {
	mu   sync.Mutex
	file *os.File
	last uint64 // number of the record that counts; 0: there is none
}

// newMemory makes an empty one.
func newMemory() (*Memory, error) {
	fd, err := unix.MemfdCreate("hearth-guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("the guest daemon's memory: %w", err)
	}
	return &Memory{file: os.NewFile(uintptr(fd), "memory")}, nil
}

// Inherited is the memory that the first process has given to this one.
func Inherited() *Memory {
	unix.CloseOnExec(memoryFD)
	return &Memory{file: os.NewFile(memoryFD, "memory")}
}

// Load returns what was saved last; nil: nothing, or Forget came after it.
func (m *Memory) Load() ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var body []byte
	for at := range int64(2) {
		number, b, err := m.record(at * place)
		if err != nil {
			return nil, err
		}
		if number > m.last {
			m.last, body = number, b
		}
	}
	return body, nil
}

// record reads one place; number 0: there is no whole record.
func (m *Memory) record(at int64) (number uint64, body []byte, err error) {
	h := make([]byte, head)
	if _, err := m.file.ReadAt(h, at); errors.Is(err, io.EOF) {
		return 0, nil, nil
	} else if err != nil {
		return 0, nil, err
	}
	length := binary.LittleEndian.Uint64(h[8:])
	if length > maxBody {
		return 0, nil, nil
	}
	body = make([]byte, length)
	if _, err := m.file.ReadAt(body, at+head); errors.Is(err, io.EOF) {
		return 0, nil, nil
	} else if err != nil {
		return 0, nil, err
	}
	if sum := sha256.Sum256(append(h[:16:16], body...)); !bytes.Equal(sum[:], h[16:]) {
		return 0, nil, nil
	}
	return binary.LittleEndian.Uint64(h), body, nil
}

// Save replaces what is kept. After an error nothing is kept rather than what was true
// before: whose sandbox this was must not come back.
func (m *Memory) Save(body []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := errors.New("there is too much to remember")
	if len(body) <= maxBody {
		number := m.last + 1
		r := binary.LittleEndian.AppendUint64(make([]byte, 0, head+len(body)), number)
		r = binary.LittleEndian.AppendUint64(r, uint64(len(body)))
		sum := sha256.Sum256(append(r[:16:16], body...))
		r = append(append(r, sum[:]...), body...)
		if _, err = m.file.WriteAt(r, int64(number%2)*place); err == nil {
			m.last = number
			return nil
		}
	}
	return errors.Join(err, m.forget())
}

// Forget removes all that is kept, and gives its memory back.
func (m *Memory) Forget() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.forget()
}

func (m *Memory) forget() error {
	m.last = 0
	return m.file.Truncate(0)
}
