package drivertest

import (
	"testing"
	"time"
)

// clocksKeepPace: the clocks of a guest with two processors go as fast as the
// host's. The guest is asked again and again for some seconds: from after its first
// answer until before its last question its clock must have gone on by as much, and
// from before the first question until after the last answer by no more. That holds
// however slow the guest is, so that nothing but its clock can fail it; a tenth is
// for the measurement of the counter that it goes by.
func clocksKeepPace(t *testing.T, env Env) {
	const watched = 4 * time.Second
	spec := env.Spec(t)
	spec.From, spec.Resources.VCPUs = nil, 2
	m := start(t, env.Driver(t), spec)
	g := Open(m)
	for _, clock := range []string{"/monotonic", "/clock"} {
		began := time.Now()
		first := g.number(t, clock)
		answered := time.Now()
		var asked time.Time
		var last int64
		for time.Since(answered) < watched {
			asked = time.Now()
			last = g.number(t, clock)
		}
		went, least, most := time.Duration(last-first), asked.Sub(answered), time.Since(began)
		if went < least-least/10 || went > most+most/10 {
			t.Errorf("%s went on by %s while the host's went on by %s at least and %s at most", clock, went, least, most)
		}
	}
}
