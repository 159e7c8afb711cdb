// Package pager answers the page faults of a restored machine whose memory is
// not mapped from a file: pages come from an io.ReaderAt when the guest touches
// them, so that the memory may lie in several layers, or still be far away.
//
// Firecracker connects to the pager's socket and hands over a list of regions and
// a userfaultfd. From then on a thread of the machine that touches a missing page
// sleeps until the pager has put the page there. Memory that the balloon gave back
// to the host is zero when it is touched again, not what the file says.
//
// A pager that dies leaves the machine asleep for ever, so it must be watched, and
// the machine killed with it.
//
// The first machine from a memory has the pages it asks for recorded as a
// WorkingSet; the next one gets them before it asks.
package pager

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	workers      = 4  // reads from the source at once, when faults come at once
	prefetchRun  = 64 // pages per read of the prefetch
	retryPause   = 50 * time.Microsecond
	retryAtMost  = 10 * time.Second // for which a page may be refused for what the guest removes
	hangUpAtMost = 5 * time.Second  // from the first sign of a machine's end to its hang-up
	lingerAtMost = time.Second      // for what is being read when the machine ends
)

// errSlow says that the memory's source did not answer in time.
var errSlow = errors.New("the memory's source does not answer")

// errGone says that the process whose faults were answered is ending.
var errGone = errors.New("the machine's memory is gone")

// Config is what a Server answers faults with.
type Config struct {
	Source   io.ReaderAt   // the memory, a *Layers; used from several goroutines
	Patience time.Duration // for a page that is waited for to be read; 0: no limit
	Prefetch WorkingSet    // put there at once; empty: nothing
	// Record takes the working set's file once, when maxWorkingSet is reached,
	// RecordFor has passed, or the machine has ended; nil records nothing.
	Record    io.Writer
	RecordFor time.Duration
}

// Server answers the faults of one machine.
type Server struct {
	cfg     Config
	uffd    int
	regions []Region
	page    uint64
	size    uint64

	// mu is held from before an event is read until it is noted, and while a page
	// is put in place. A page can therefore not be filled from the source after the
	// guest has removed it: the kernel refuses it until the removal was read.
	mu      sync.Mutex
	removed bitmap

	queue  queue
	began  time.Time
	reads  [workers]atomic.Int64 // since when each worker reads, in ns after began; 0: it does not
	record recorder
	stats  Stats
}

// Stats counts what a server did.
type Stats struct {
	Faults     int // pages asked for, each counted once while it is waited for
	Zero       int // of them without content
	Prefetched int // pages put in place before they were asked for
	Removed    int // pages given back by the guest
}

// NewServer returns a server of a machine's userfaultfd, which stays the caller's
// and must not block, and of its regions, which ParseHandshake has checked.
func NewServer(cfg Config, uffd int, regions []Region) *Server {
	s := &Server{cfg: cfg, uffd: uffd, regions: regions, page: regions[0].PageSize, began: time.Now()}
	for _, r := range regions {
		s.size += r.Size
	}
	s.removed = make(bitmap, (s.size/s.page+63)/64)
	s.queue.init()
	s.record = recorder{to: cfg.Record, set: WorkingSet{PageSize: s.page, Size: s.size}}
	return s
}

// Run answers faults until hangUp can be read, which is the machine's end, or
// something fails, which is the machine's end too: the error says why.
func (s *Server) Run(hangUp int) error {
	var all sync.WaitGroup
	failed := make(chan error, workers+1)
	for n := range workers {
		all.Go(func() { failed <- s.work(&s.reads[n]) })
	}
	all.Go(func() { failed <- s.prefetch() })
	stop := s.record.after(s.cfg.RecordFor)
	err := s.readEvents(hangUp, failed)
	s.queue.close()
	stop()
	ended := make(chan struct{})
	go func() {
		all.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(lingerAtMost): // a source that hangs is left to the process's end
	}
	return errors.Join(err, s.record.finish())
}

// late is an error if a page has been read for too long.
func (s *Server) late() error {
	for i := range s.reads {
		if since := s.reads[i].Load(); since > 0 && s.cfg.Patience > 0 && time.Since(s.began)-time.Duration(since) > s.cfg.Patience {
			return fmt.Errorf("%w: a page has not come for %s", errSlow, s.cfg.Patience)
		}
	}
	return nil
}

// readEvents takes faults and removals off the descriptor.
func (s *Server) readEvents(hangUp int, failed <-chan error) error {
	fds := []unix.PollFd{{Fd: int32(s.uffd), Events: unix.POLLIN}, {Fd: int32(hangUp), Events: unix.POLLIN | unix.POLLRDHUP}}
	for {
		select {
		case err := <-failed:
			if err != nil && !errors.Is(err, errGone) {
				return err
			}
			if err != nil {
				return awaitHangUp(hangUp)
			}
		default:
		}
		if err := s.late(); err != nil {
			return err
		}
		// Workers report rarely; a look every second is enough for an error.
		if _, err := unix.Poll(fds, 1000); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for faults: %w", err)
		}
		if fds[1].Revents != 0 {
			return nil
		}
		if fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0 {
			return errors.New("the userfaultfd cannot be waited for")
		}
		if err := s.takeEvents(); err != nil {
			return err
		}
	}
}

// awaitHangUp tells a machine that ends from one whose memory went away.
func awaitHangUp(fd int) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
	for deadline := time.Now().Add(hangUpAtMost); time.Now().Before(deadline); {
		if n, err := unix.Poll(fds, 100); n > 0 {
			return nil
		} else if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return errGone
}

func (s *Server) takeEvents() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	messages, err := readMessages(s.uffd)
	if err != nil {
		return fmt.Errorf("reading faults: %w", err)
	}
	for _, m := range messages {
		switch m.event {
		case eventPagefault:
			page, ok := s.pageAt(m.start)
			if !ok {
				return fmt.Errorf("fault at %#x, outside of every region", m.start)
			}
			if s.queue.put(page) {
				s.stats.Faults++
			}
		case eventRemove:
			if err := s.remove(m.start, m.end); err != nil {
				return err
			}
		default:
			return fmt.Errorf("event %#x, which was not asked for", m.event)
		}
	}
	return nil
}

// pageAt finds the number of the page at an address of the other process.
func (s *Server) pageAt(address uint64) (uint64, bool) {
	for _, r := range s.regions {
		if address >= r.Address && address-r.Address < r.Size {
			return (r.Offset + address - r.Address) / s.page, true
		}
	}
	return 0, false
}

// addressOf is its inverse.
func (s *Server) addressOf(page uint64) uint64 {
	for _, r := range s.regions {
		if off := page * s.page; off >= r.Offset && off-r.Offset < r.Size {
			return r.Address + off - r.Offset
		}
	}
	return 0 // pages come from pageAt, and regions cover the memory
}

// remove notes that pages were given back. The caller holds mu.
func (s *Server) remove(start, end uint64) error {
	for address := start; address < end; address += s.page {
		page, ok := s.pageAt(address)
		if !ok {
			return fmt.Errorf("removal of %#x to %#x, outside of every region", start, end)
		}
		s.removed.set(page)
		s.stats.Removed++
	}
	return nil
}

// work answers faults until the queue is closed.
func (s *Server) work(reads *atomic.Int64) error {
	buf := make([]byte, s.page)
	for {
		page, ok := s.queue.take()
		if !ok {
			return nil
		}
		err := s.answer(page, buf, reads)
		s.queue.done(page)
		if err != nil {
			return err
		}
	}
}

// answer reads one page and puts it in place.
func (s *Server) answer(page uint64, buf []byte, reads *atomic.Int64) error {
	reads.Store(max(1, int64(time.Since(s.began))))
	n, err := s.cfg.Source.ReadAt(buf, int64(page*s.page))
	reads.Store(0)
	if n < len(buf) {
		return fmt.Errorf("page %d cannot be read: %w", page, err)
	}
	if err := s.place(page, buf, allZero(buf)); err != nil {
		return err
	}
	s.record.add(uint32(page))
	return nil
}

// place puts one page in place, again and again while the kernel has removals
// waiting to be read.
func (s *Server) place(page uint64, content []byte, zero bool) error {
	address := s.addressOf(page)
	for deadline := time.Now().Add(retryAtMost); ; time.Sleep(retryPause) {
		err := s.placeOnce(page, address, content, zero)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EEXIST): // another thread's fault, or the prefetch, was first
			return gone(wake(s.uffd, address, s.page))
		case !errors.Is(err, unix.EAGAIN):
			return fmt.Errorf("page %d cannot be put in place: %w", page, gone(err))
		case time.Now().After(deadline):
			return fmt.Errorf("page %d was refused for %s", page, retryAtMost)
		}
	}
}

func (s *Server) placeOnce(page, address uint64, content []byte, zero bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	removed := s.removed.has(page)
	if s.page == smallPage && (zero || removed) {
		_, err := zeroPages(s.uffd, address, s.page)
		if err == nil {
			s.stats.Zero++
		}
		return err
	}
	if removed {
		clear(content)
	}
	_, err := copyPages(s.uffd, address, content)
	return err
}

// gone recognizes the errors that come of a process's end.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return errors.Join(errGone, err)
	}
	return err
}

// prefetch puts the working set in place, while faults are answered beside it.
func (s *Server) prefetch() error {
	w := s.cfg.Prefetch
	if w.Size != s.size || w.PageSize != s.page {
		return nil // of another memory: not worth an error
	}
	buf := make([]byte, prefetchRun*s.page)
	for _, run := range w.runs(prefetchRun) {
		if s.queue.isClosed() {
			return nil
		}
		piece := buf[:run[1]*s.page]
		if n, err := s.cfg.Source.ReadAt(piece, int64(run[0]*s.page)); n < len(piece) {
			return fmt.Errorf("pages from %d cannot be read: %w", run[0], err)
		}
		for i := range run[1] {
			content := piece[i*s.page : (i+1)*s.page]
			if err := s.place(run[0]+i, content, allZero(content)); err != nil {
				return err
			}
			s.mu.Lock()
			s.stats.Prefetched++
			s.mu.Unlock()
		}
	}
	return nil
}

// Stats returns the counters as they are now.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}
