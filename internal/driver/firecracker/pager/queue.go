package pager

import (
	"io"
	"sync"
	"time"
)

// bitmap is a set of page numbers.
type bitmap []uint64

func (b bitmap) set(n uint64)      { b[n/64] |= 1 << (n % 64) }
func (b bitmap) has(n uint64) bool { return b[n/64]&(1<<(n%64)) != 0 }

// queue holds the pages that are waited for, each once: it cannot grow beyond
// the number of the guest's pages, nor, in fact, that of the process's threads.
type queue struct {
	mu      sync.Mutex
	some    *sync.Cond
	pages   []uint64
	waiting map[uint64]struct{} // queued or being answered
	again   map[uint64]struct{} // asked for once more while being answered
	closed  bool
}

func (q *queue) init() {
	q.some = sync.NewCond(&q.mu)
	q.waiting, q.again = map[uint64]struct{}{}, map[uint64]struct{}{}
}

// put reports whether the page was not waited for yet. One that is being answered
// is answered again: the answer may have come before this fault.
func (q *queue) put(page uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.waiting[page]; ok {
		q.again[page] = struct{}{}
		return false
	}
	q.waiting[page] = struct{}{}
	q.pages = append(q.pages, page)
	q.some.Signal()
	return true
}

// take waits for a page; it reports false when the queue is closed.
func (q *queue) take() (uint64, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.pages) == 0 && !q.closed {
		q.some.Wait()
	}
	if q.closed {
		return 0, false
	}
	page := q.pages[0]
	q.pages = q.pages[1:]
	return page, true
}

func (q *queue) done(page uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.again[page]; ok {
		delete(q.again, page)
		q.pages = append(q.pages, page)
		q.some.Signal()
		return
	}
	delete(q.waiting, page)
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.some.Broadcast()
}

func (q *queue) isClosed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

// recorder collects the pages that are asked for, and writes them once.
type recorder struct {
	mu      sync.Mutex
	to      io.Writer
	set     WorkingSet
	seen    map[uint32]struct{}
	written bool
	err     error
}

func (r *recorder) add(page uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to == nil || r.written {
		return
	}
	if r.seen == nil {
		r.seen = map[uint32]struct{}{}
	}
	if _, ok := r.seen[page]; ok {
		return
	}
	r.seen[page] = struct{}{}
	if r.set.Pages = append(r.set.Pages, page); len(r.set.Pages) == maxWorkingSet {
		r.write()
	}
}

// after finishes the record when it has lasted long enough. What it returns stops that.
func (r *recorder) after(d time.Duration) (stop func()) {
	if r.to == nil || d <= 0 {
		return func() {}
	}
	t := time.AfterFunc(d, func() { _ = r.finish() })
	return func() { t.Stop() }
}

// finish writes the record if that was not done, and says how it went.
func (r *recorder) finish() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to != nil && !r.written {
		r.write()
	}
	return r.err
}

func (r *recorder) write() {
	r.written, r.seen = true, nil
	_, r.err = r.to.Write(r.set.Encode())
}

// allZero reports whether a page has no content.
func allZero(page []byte) bool {
	for len(page) >= 8 {
		if [8]byte(page) != [8]byte{} {
			return false
		}
		page = page[8:]
	}
	for _, b := range page {
		if b != 0 {
			return false
		}
	}
	return true
}
