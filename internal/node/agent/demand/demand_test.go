package demand

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestDemandIsTheBusiestWindow(t *testing.T) {
	var d Demand
	if got := d.Peak(noon); got != 0 {
		t.Errorf("before any start: %d", got)
	}
	for i := range 6 { // one a minute
		d.Note(noon.Add(time.Duration(i) * time.Minute))
	}
	now := noon.Add(5 * time.Minute)
	if got := d.Peak(now); got != 1 {
		t.Errorf("starts far apart: %d, want 1", got)
	}
	for i := range 20 {
		d.Note(now.Add(time.Duration(i) * 100 * time.Millisecond))
	}
	if got := d.Peak(now.Add(time.Minute)); got != 21 {
		t.Errorf("a burst of 20 beside the one before: %d", got)
	}
	if got := d.Peak(now.Add(demandSeconds * time.Second)); got > 20 {
		t.Errorf("ten minutes later: %d", got)
	}
	if got := d.Peak(now.Add((demandSeconds + 3) * time.Second)); got != 0 {
		t.Errorf("when all is forgotten: %d", got)
	}
}

func TestDemandSurvivesClocksThatJump(t *testing.T) {
	var d Demand
	d.Note(noon)
	d.Note(noon.Add(-time.Hour))
	if got := d.Peak(noon.Add(-time.Hour)); got != 2 {
		t.Errorf("after a jump back: %d, want 2", got)
	}
	if got := d.Peak(noon.Add(1000 * time.Hour)); got != 0 {
		t.Errorf("after a jump ahead: %d, want 0", got)
	}
}

// TestDemandAgainstAList compares with the plain way to count.
func TestDemandAgainstAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var d Demand
		var starts []int64
		now := noon
		for range rapid.IntRange(1, 60).Draw(t, "starts") {
			now = now.Add(time.Duration(rapid.IntRange(0, 120_000).Draw(t, "gap")) * time.Millisecond)
			d.Note(now)
			starts = append(starts, now.Unix())
		}
		most := 0
		for _, from := range starts {
			n := 0
			for _, s := range starts {
				if s >= from && s < from+burstSeconds && from > now.Unix()-demandSeconds {
					n++
				}
			}
			most = max(most, n)
		}
		if got := d.Peak(now); got != most {
			t.Fatalf("got %d, want %d", got, most)
		}
	})
}
