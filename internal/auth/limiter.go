package auth

import (
	"container/list"
	"net/netip"
	"sync"
	"time"
)

// Bounds of the limiter: an address may fail so often at once, and once more
// after every interval; so many addresses are remembered.
const (
	failures    = 20
	forgivesOne = 3 * time.Second
	addresses   = 4096
)

// limiter counts failures per address in a table of bounded size.
type limiter struct {
	mu    sync.Mutex
	by    map[netip.Prefix]*list.Element
	order *list.List // of *offender, latest failure first
}

// offender is an address that failed. Its count falls by one per forgivesOne.
type offender struct {
	from  netip.Prefix
	count float64
	at    time.Time
}

func (o *offender) countAt(now time.Time) float64 {
	return max(0, o.count-max(0, now.Sub(o.at).Seconds())/forgivesOne.Seconds())
}

func newLimiter() *limiter {
	return &limiter{by: map[netip.Prefix]*list.Element{}, order: list.New()}
}

// wait is how long the address must not try again: zero until it has used up
// its failures.
func (l *limiter) wait(from netip.Prefix, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.by[from]
	if e == nil {
		return 0
	}
	over := e.Value.(*offender).countAt(now) - (failures - 1)
	return max(0, time.Duration(over*float64(forgivesOne)))
}

// failed counts a failure. When the table is full, who failed longest ago is
// forgotten.
func (l *limiter) failed(from netip.Prefix, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.by[from]; e != nil {
		o := e.Value.(*offender)
		o.count, o.at = o.countAt(now)+1, now
		l.order.MoveToFront(e)
		return
	}
	l.by[from] = l.order.PushFront(&offender{from, 1, now})
	if l.order.Len() > addresses {
		last := l.order.Back()
		l.order.Remove(last)
		delete(l.by, last.Value.(*offender).from)
	}
}

// subject is whom failures are counted against: an IPv4 address, the /64 of an
// IPv6 one, since whoever has one address of it has them all. Everything that
// is not an address counts as one.
func subject(remote string) netip.Prefix {
	addr, err := netip.ParseAddr(remote)
	if err != nil {
		ap, err := netip.ParseAddrPort(remote)
		if err != nil {
			return netip.Prefix{}
		}
		addr = ap.Addr()
	}
	addr = addr.Unmap().WithZone("")
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	if addr.IsLoopback() { // ::1, whose /64 is not
		return netip.PrefixFrom(addr, addr.BitLen())
	}
	return p
}
