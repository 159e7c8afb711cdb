package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/qemu/ram"
	"hearth/internal/hearth"
)

// idleShare is the part of the host's memory that unused templates may take.
const idleShare = 8

// templates keeps the memory files of checkpoints that machines start from, as
// long as they are used: by a start that goes on, or a machine that it has made.
// After that a file is kept for a while, as far as there is room. (A machine found
// by Attach maps a file that is not in the list: that one goes with its last
// machine, and a later start fills another.)
type templates struct {
	keep time.Duration
	room func() int64 // bytes that unused files may have together
	mu   sync.Mutex
	list map[string]*template
}

func newTemplates(keep time.Duration, room func() int64) *templates {
	return &templates{keep: keep, room: room, list: map[string]*template{}}
}

// idleRoom is what this host has for templates that nobody uses.
func idleRoom() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit) / idleShare
}

// template is one checkpoint's memory: private to its clones, sealed.
type template struct {
	ready chan struct{} // closed when file or err is set
	file  *os.File
	err   error
	bytes int64       // of memory that the file has
	users int         // starts that go on, and machines
	since time.Time   // when the last of them ended
	drop  *time.Timer // runs while there are none
}

// acquire returns the memory file of a checkpoint in dir that stands alone; fill
// makes it when it is not there. release must follow. A second start waits for
// the first one's filling, and does it itself when that was given up.
func (t *templates) acquire(ctx context.Context, id string, fill func(context.Context) (*os.File, error)) (*template, error) {
	for {
		e, first := t.use(id)
		if first {
			if e.file, e.err = fill(ctx); e.err == nil {
				e.bytes = allocated(e.file)
			}
			close(e.ready)
		}
		select {
		case <-e.ready:
		case <-ctx.Done():
			t.release(id, e)
			return nil, context.Cause(ctx)
		}
		if e.err == nil {
			return e, nil
		}
		t.release(id, e)
		if first || ctx.Err() != nil {
			return nil, e.err
		}
	}
}

func (t *templates) use(id string) (e *template, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e = t.list[id]
	if e == nil {
		e = &template{ready: make(chan struct{})}
		t.list[id] = e
		first = true
	}
	e.users++
	if e.drop != nil {
		e.drop.Stop()
		e.drop = nil
	}
	return e, first
}

// lend leaves a use to a machine, until its end.
func (t *templates) lend(id string, e *template, machine <-chan struct{}) {
	go func() {
		<-machine
		t.release(id, e)
	}()
}

// release ends a use. A file that could not be made is forgotten at once.
func (t *templates) release(id string, e *template) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.users--
	select {
	case <-e.ready:
		if e.err != nil {
			if t.list[id] == e {
				delete(t.list, id)
			}
			return
		}
	default:
	}
	if e.users > 0 {
		return
	}
	e.since = time.Now()
	e.drop = time.AfterFunc(t.keep, func() { t.forget(id, e) })
	t.shrink()
}

// shrink drops what was not used for longest, until the rest has room.
func (t *templates) shrink() {
	var idle []string
	var bytes int64
	for id, e := range t.list {
		if e.users == 0 {
			idle = append(idle, id)
			bytes += e.bytes
		}
	}
	slices.SortFunc(idle, func(a, b string) int { return t.list[a].since.Compare(t.list[b].since) })
	room := t.room()
	for _, id := range idle {
		if bytes <= room {
			return
		}
		e := t.list[id]
		bytes -= e.bytes
		t.dropNow(id, e)
	}
}

func (t *templates) forget(id string, e *template) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.list[id] == e && e.users == 0 {
		t.dropNow(id, e)
	}
}

func (t *templates) dropNow(id string, e *template) {
	delete(t.list, id)
	if e.drop != nil {
		e.drop.Stop()
	}
	if e.file != nil {
		_ = e.file.Close()
	}
}

// allocated is how much memory a memory file takes; its holes take none.
func allocated(f *os.File) int64 {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0
	}
	return st.Blocks * 512
}

// fillTemplate makes the memory file of a checkpoint that stands alone.
func fillTemplate(ctx context.Context, dir string, size int64) (*os.File, error) {
	index, err := readIndex(dir, size)
	if err != nil {
		return nil, err
	}
	pages, err := os.Open(filepath.Join(dir, pagesFile))
	if err != nil {
		return nil, err
	}
	defer pages.Close()
	fd, err := unix.MemfdCreate(ram.TemplateName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ram.TemplateName)
	err = f.Truncate(size)
	if err == nil {
		err = ram.Fill(ctx, f, index, pages)
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func readIndex(dir string, size int64) (*ram.Index, error) {
	path := filepath.Join(dir, indexFile)
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if limit := 64 + 16*size/ram.PageSize; st.Size() > limit {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "%s has %d bytes, more than the %d a memory of %d MiB can need", indexFile, st.Size(), limit, size>>20)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	x, err := ram.Decode(raw, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", indexFile, err)
	}
	return x, nil
}
