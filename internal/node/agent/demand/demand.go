// Package demand remembers how many machines of a pool were asked for lately, and
// so how many the pool should hold.
package demand

import "time"

const (
	demandSeconds = 600 // how long a start is remembered
	burstSeconds  = 10  // starts this close together must be served without a refill between them
)

// Demand remembers how many starts a pool was asked for in each of the last
// seconds. The zero value has seen none. It is guarded by the pool's owner.
type Demand struct {
	counts [demandSeconds]int
	newest int64 // second since 1970 of the newest count
}

// Note counts one start.
func (d *Demand) Note(now time.Time) {
	d.turn(now)
	d.counts[d.newest%demandSeconds]++
}

// Peak is the most starts that came within burstSeconds of each other while they
// are remembered: what a pool has to hold, so that the same again finds it full.
func (d *Demand) Peak(now time.Time) int {
	d.turn(now)
	most, within := 0, 0
	for i := range int64(demandSeconds) { // oldest first
		at := d.newest + 1 + i
		within += d.counts[at%demandSeconds]
		if i >= burstSeconds {
			within -= d.counts[(at-burstSeconds)%demandSeconds]
		}
		most = max(most, within)
	}
	return most
}

// turn forgets what is too old. A clock that goes back adds to the newest second.
func (d *Demand) turn(now time.Time) {
	second := max(now.Unix(), d.newest)
	for range min(second-d.newest, demandSeconds) {
		d.newest++
		d.counts[d.newest%demandSeconds] = 0
	}
	if d.newest < second { // asleep for longer than anything is remembered
		d.newest = second
	}
}
