// Package meter turns what a machine has used of the processors into a rate.
package meter

import "time"

// least is the time over which a rate means something; asked sooner, a meter
// repeats the one before.
const least = 100 * time.Millisecond

// CPU is one machine's. The zero value has seen nothing. It is not safe for
// concurrent use.
type CPU struct {
	at   time.Time
	used time.Duration
	pct  float64
}

// Percent is how much of one processor was used since it was asked last, 0 the
// first time, given the time used since the machine's start.
func (c *CPU) Percent(now time.Time, used time.Duration) float64 {
	past := now.Sub(c.at)
	if !c.at.IsZero() && past < least {
		return c.pct
	}
	next := CPU{at: now, used: used}
	if !c.at.IsZero() {
		next.pct = max(0, 100*float64(used-c.used)/float64(past))
	}
	*c = next
	return c.pct
}
