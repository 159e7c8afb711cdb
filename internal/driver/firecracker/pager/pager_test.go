package pager

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file plays Firecracker: it has memory with a userfaultfd, hands it to a
// pager, and touches it.

func TestMain(m *testing.M) {
	if Main(os.Args) {
		return
	}
	os.Exit(m.Run())
}

const (
	uffdioAPI      = 0xC018AA3F
	uffdioRegister = 0xC020AA00
	removeFeature  = 1 << 3
)

// guest is the memory of a machine: two regions with a gap between them.
type guest struct {
	uffd    int
	low     []byte
	high    []byte
	regions []Region
}

const (
	lowPages  = 300
	highPages = 212
	allPages  = lowPages + highPages
)

func newGuest(t *testing.T) *guest {
	t.Helper()
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		t.Skipf("no userfaultfd here: %v", errno)
	}
	api := struct{ api, features, ioctls uint64 }{api: 0xAA, features: removeFeature}
	must(t, ioctl(int(fd), uffdioAPI, unsafe.Pointer(&api)))
	g := &guest{uffd: int(fd)}
	t.Cleanup(func() { _ = unix.Close(g.uffd) })
	g.low, g.high = g.mapped(t, lowPages), g.mapped(t, highPages)
	g.regions = []Region{
		{Address: address(g.low), Size: lowPages * smallPage, Offset: 0, PageSize: smallPage},
		{Address: address(g.high), Size: highPages * smallPage, Offset: lowPages * smallPage, PageSize: smallPage},
	}
	return g
}

func (g *guest) mapped(t *testing.T, pages int) []byte {
	t.Helper()
	m, err := unix.Mmap(-1, 0, pages*smallPage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must(t, err)
	t.Cleanup(func() { _ = unix.Munmap(m) })
	reg := struct{ start, length, mode, ioctls uint64 }{start: address(m), length: uint64(len(m)), mode: 1}
	must(t, ioctl(g.uffd, uffdioRegister, unsafe.Pointer(&reg)))
	return m
}

func address(m []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&m[0]))) }

// page returns a page by its number.
func (g *guest) page(n int) []byte {
	if n < lowPages {
		return g.low[n*smallPage : (n+1)*smallPage]
	}
	n -= lowPages
	return g.high[n*smallPage : (n+1)*smallPage]
}

// touch reads a page in a way that no compiler leaves out.
func touch(page []byte) { atomic.LoadUint32((*uint32)(unsafe.Pointer(&page[0]))) }

func (g *guest) handshake() []byte {
	out := []byte("[")
	for i, r := range g.regions {
		if i > 0 {
			out = append(out, ',')
		}
		out = fmt.Appendf(out, `{"base_host_virt_addr":%d,"size":%d,"offset":%d,"page_size":%d,"page_size_kib":%d}`,
			r.Address, r.Size, r.Offset, r.PageSize, r.PageSize)
	}
	return append(out, ']')
}

// content is what a memory's pages hold: their number, or nothing.
func content(generation, page int) []byte {
	if page%7 == 3 {
		return make([]byte, smallPage)
	}
	return bytes.Repeat(fmt.Appendf(nil, "%07d%01d", page, generation), smallPage/8)
}

// memoryFile makes a memory of one generation, with holes but for the pages of want.
func memoryFile(t *testing.T, generation int, want func(page int) bool) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	must(t, f.Truncate(allPages*smallPage))
	for p := range allPages {
		if want(p) {
			_, err := f.WriteAt(content(generation, p), int64(p)*smallPage)
			must(t, err)
		}
	}
	return f
}

// plain are layers that lie in files of this host.
func plain(files ...*os.File) (memory []Memory) {
	for _, f := range files {
		memory = append(memory, Memory{File: f, Pages: pagesOf(f)})
	}
	return memory
}

// pagesOf lists the pages of a file that memoryFile has made, zeros included.
func pagesOf(f *os.File) []byte {
	own, err := PagesOf(f)
	if err != nil {
		panic(err)
	}
	return own.Encode()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pagerProcess is a pager in a process of its own, as a driver runs it.
type pagerProcess struct {
	cmd  *exec.Cmd
	log  *os.File
	conn *net.UnixConn
	ends chan error
}

func startPager(t *testing.T, g *guest, s Setup) *pagerProcess {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	must(t, err)
	defer l.Close()
	s.Listener, err = l.File()
	must(t, err)
	defer s.Listener.Close()
	s.Log, err = os.Create(filepath.Join(dir, "log"))
	must(t, err)
	t.Cleanup(func() { _ = s.Log.Close() })
	s.ID, s.Root, s.Peer, s.UID, s.GID = "test", t.TempDir(), os.Geteuid(), 65534, 65534
	cmd, err := Start("/proc/self/exe", s, func(int) error { return nil })
	must(t, err)
	p := &pagerProcess{cmd: cmd, log: s.Log, ends: make(chan error, 1)}
	go func() { p.ends <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	p.conn = c
	if g != nil {
		_, _, err = c.WriteMsgUnix(g.handshake(), unix.UnixRights(g.uffd), nil)
		must(t, err)
	}
	return p
}

// hangUp ends the machine and waits for the pager.
func (p *pagerProcess) hangUp(t *testing.T) {
	t.Helper()
	must(t, p.conn.Close())
	if err := <-p.ends; err != nil {
		t.Errorf("pager: %v: %s", err, p.said(t))
	}
}

func (p *pagerProcess) said(t *testing.T) string {
	raw, err := os.ReadFile(p.log.Name())
	must(t, err)
	return string(raw)
}

func TestFaultsOfManyThreads(t *testing.T) {
	g := newGuest(t)
	p := startPager(t, g, Setup{Memory: plain(memoryFile(t, 1, func(int) bool { return true }))})
	var all sync.WaitGroup
	for range 8 {
		order := rand.Perm(allPages) // every thread touches every page, in its own order
		all.Go(func() {
			runtime.LockOSThread()
			for _, n := range order {
				if !bytes.Equal(g.page(n), content(1, n)) {
					t.Errorf("page %d has the wrong content", n)
					return
				}
			}
		})
	}
	all.Wait()
	p.hangUp(t)
}

func TestPagerIsConfined(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := newGuest(t)
	p := startPager(t, g, Setup{Memory: plain(memoryFile(t, 1, func(int) bool { return true }))})
	touch(g.page(1)) // it serves, so it is confined by now
	proc := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	status, err := os.ReadFile(proc + "status")
	must(t, err)
	for _, want := range []string{"\nUid:\t65534\t65534\t65534\t65534\n", "\nCapEff:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n"} {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
	if entries, err := os.ReadDir(proc + "root/"); err != nil || len(entries) > 0 {
		t.Errorf("its root holds %v (%v), want nothing", entries, err)
	}
	for _, ns := range []string{"net", "ipc", "uts", "mnt"} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		must(t, err)
		if its, err := os.Readlink(proc + "ns/" + ns); err != nil || its == mine {
			t.Errorf("its %s namespace is ours (%v)", ns, err)
		}
	}
	p.hangUp(t)
}

func TestLayersAreMerged(t *testing.T) {
	base := memoryFile(t, 1, func(int) bool { return true })
	second := memoryFile(t, 2, func(p int) bool { return p%3 == 0 })
	third := memoryFile(t, 3, func(p int) bool { return p >= 295 && p < 310 || p == allPages-1 })
	want := func(p int) []byte {
		switch {
		case p >= 295 && p < 310 || p == allPages-1:
			return content(3, p)
		case p%3 == 0:
			return content(2, p)
		}
		return content(1, p)
	}
	g := newGuest(t)
	p := startPager(t, g, Setup{Memory: plain(base, second, third)})
	for n := range allPages {
		if !bytes.Equal(g.page(n), want(n)) {
			t.Errorf("page %d by faults", n)
		}
	}
	p.hangUp(t)

	layers, err := Open(plain(base, second, third))
	must(t, err)
	flat, err := os.Create(filepath.Join(t.TempDir(), "flat"))
	must(t, err)
	defer flat.Close()
	must(t, layers.Flatten(flat))
	raw, err := os.ReadFile(flat.Name())
	must(t, err)
	for n := range allPages {
		if !bytes.Equal(raw[n*smallPage:(n+1)*smallPage], want(n)) {
			t.Errorf("page %d in the flat file", n)
		}
	}
}

// What a balloon gave back is zero when it is touched again, whoever races.
func TestRemovedPagesAreZero(t *testing.T) {
	g := newGuest(t)
	p := startPager(t, g, Setup{Memory: plain(memoryFile(t, 1, func(int) bool { return true }))})
	for n := 0; n < 40; n += 2 {
		touch(g.page(n)) // some are there when they are removed, some are not
	}
	g.page(10)[5] = 'x'
	stop, touching := make(chan struct{}), sync.WaitGroup{}
	touching.Go(func() { // faults beside the removals
		runtime.LockOSThread()
		for n := 100; n < 300; n++ {
			if !bytes.Equal(g.page(n), content(1, n)) {
				t.Errorf("page %d has the wrong content", n)
			}
		}
		<-stop
	})
	for n := 0; n < 40; n += 4 {
		must(t, unix.Madvise(g.low[n*smallPage:(n+4)*smallPage], unix.MADV_DONTNEED))
		for i := n; i < n+4; i++ {
			if !allZero(g.page(i)) {
				t.Errorf("page %d came back from the file", i)
			}
			g.page(i)[0] = byte(i)
		}
	}
	close(stop)
	touching.Wait()
	must(t, unix.Madvise(g.low[:40*smallPage], unix.MADV_DONTNEED)) // a second time
	for n := range 40 {
		if !allZero(g.page(n)) {
			t.Errorf("page %d kept what was written before its removal", n)
		}
	}
	if !bytes.Equal(g.page(41), content(1, 41)) {
		t.Error("page 41, which was not removed, has the wrong content")
	}
	p.hangUp(t)
}

func TestWorkingSetIsRecordedAndPrefetched(t *testing.T) {
	memory := memoryFile(t, 1, func(int) bool { return true })
	record, err := os.Create(filepath.Join(t.TempDir(), "ws"))
	must(t, err)
	defer record.Close()
	touched := []int{500, 3, 4, 5, 301, 8}
	g := newGuest(t)
	p := startPager(t, g, Setup{Memory: plain(memory), Record: record})
	for _, n := range touched {
		touch(g.page(n))
	}
	p.hangUp(t)
	raw, err := os.ReadFile(record.Name())
	must(t, err)
	set, err := ParseWorkingSet(raw)
	must(t, err)
	if want := []uint32{500, 3, 4, 5, 301, 8}; !slices.Equal(set.Pages, want) {
		t.Fatalf("recorded %v, want %v", set.Pages, want)
	}

	again, err := os.Open(record.Name())
	must(t, err)
	defer again.Close()
	g = newGuest(t)
	p = startPager(t, g, Setup{Memory: plain(memory), WorkingSet: again})
	for _, n := range touched { // there without a touch
		for !resident(t, g.page(n)) {
			runtime.Gosched()
		}
	}
	if resident(t, g.page(100)) {
		t.Error("page 100 is there, which was not in the working set")
	}
	for n := range allPages {
		if !bytes.Equal(g.page(n), content(1, n)) {
			t.Errorf("page %d has the wrong content", n)
		}
	}
	p.hangUp(t)
}

// resident asks the kernel whether a page is there, without touching it.
func resident(t *testing.T, page []byte) bool {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	must(t, err)
	defer f.Close()
	var entry [8]byte
	_, err = f.ReadAt(entry[:], int64(address(page)/smallPage*8))
	must(t, err)
	return entry[7]&0x80 != 0
}

// A pager says why it dies, and dies: it never leaves a machine to wait for it.
func TestPagerDiesLoudly(t *testing.T) {
	file := func(t *testing.T) []Memory { return plain(memoryFile(t, 1, func(int) bool { return true })) }
	t.Run("garbage instead of a handshake", func(t *testing.T) {
		p := startPager(t, nil, Setup{Memory: file(t)})
		_, err := p.conn.Write([]byte(`{"not":"a list"}`))
		must(t, err)
		wantDeath(t, p, "handshake without a descriptor")
	})
	t.Run("no descriptor", func(t *testing.T) {
		p := startPager(t, nil, Setup{Memory: file(t)})
		_, err := p.conn.Write(newGuest(t).handshake())
		must(t, err)
		wantDeath(t, p, "without a descriptor")
	})
	t.Run("hang-up half way", func(t *testing.T) {
		p := startPager(t, nil, Setup{Memory: file(t)})
		_, err := p.conn.Write([]byte(`[{"base`))
		must(t, err)
		must(t, p.conn.Close())
		wantDeath(t, p, "no handshake")
	})
	t.Run("memory of another size", func(t *testing.T) {
		small := memoryFile(t, 1, func(int) bool { return true })
		must(t, small.Truncate(16*smallPage))
		wantDeath(t, startPager(t, newGuest(t), Setup{Memory: plain(small)}), "the memory is")
	})
	t.Run("a descriptor that is no userfaultfd", func(t *testing.T) {
		p := startPager(t, nil, Setup{Memory: file(t)})
		zero, err := os.Open("/dev/zero")
		must(t, err)
		defer zero.Close()
		_, _, err = p.conn.WriteMsgUnix(newGuest(t).handshake(), unix.UnixRights(int(zero.Fd())), nil)
		must(t, err)
		wantDeath(t, p, "event 0x0")
	})
	t.Run("memory that cannot be read", func(t *testing.T) {
		// A thread that waits for a page must not be waited for by a garbage collection.
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
		g := newGuest(t)
		l := memoryFile(t, 1, func(int) bool { return true })
		p := startPager(t, g, Setup{Memory: plain(l)})
		touch(g.page(0))
		must(t, l.Truncate(16*smallPage)) // under the pager's hands
		woken := sleeper(g, 100)
		wantDeath(t, p, "page 100 cannot be read")
		woken(t)
	})
}

// sleeper touches a page that nobody will put in place. What it returns lets it go on.
func sleeper(g *guest, page int) (woken func(*testing.T)) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		runtime.LockOSThread()
		touch(g.page(page))
	}()
	return func(t *testing.T) {
		must(t, unix.Close(g.uffd)) // with which the memory is ordinary memory again
		g.uffd = -1
		<-over
	}
}

func wantDeath(t *testing.T, p *pagerProcess, why string) {
	t.Helper()
	err := <-p.ends
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != 1 {
		t.Errorf("the pager ended with %v", err)
	}
	if said := p.said(t); !bytes.Contains([]byte(said), []byte(why)) {
		t.Errorf("it said %q, want %q", said, why)
	}
}

// slowReader answers late, as a store far away does.
type slowReader struct {
	io.ReaderAt
	gate chan struct{}
}

func (r slowReader) ReadAt(p []byte, off int64) (int, error) {
	<-r.gate
	return r.ReaderAt.ReadAt(p, off)
}

// A page that takes long does not hold up others, and what is asked for twice is read once.
func TestSlowSource(t *testing.T) {
	// Pager and guest are one process here: a thread that waits for a page keeps its
	// processor, and must not be waited for by a garbage collection.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	g := newGuest(t)
	gate := make(chan struct{})
	source := slowReader{memoryFile(t, 1, func(int) bool { return true }), gate}
	ours, theirs := pipe(t)
	s := NewServer(Config{Source: source}, g.uffd, g.regions)
	ends := make(chan error, 1)
	go func() { ends <- s.Run(int(ours.Fd())) }()
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			runtime.LockOSThread()
			n := i % 3
			if !bytes.Equal(g.page(n), content(1, n)) {
				t.Errorf("page %d has the wrong content", n)
			}
		})
	}
	for range 3 { // three reads at once are waited for; one alone would never come to three
		gate <- struct{}{}
	}
	close(gate)
	all.Wait()
	must(t, theirs.Close())
	must(t, <-ends)
	if got := s.Stats(); got.Faults < 3 || got.Removed != 0 {
		t.Errorf("stats %+v", got)
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}
