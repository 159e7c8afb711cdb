package client

import (
	"strings"
	"testing"
	"time"
)

func TestTiming(t *testing.T) {
	got := parseTiming("thaw;dur=1.500, init;start=2.5;desc=x; dur=7, cdn-cache;desc=HIT, broken;dur=x, ;dur=1, far;dur=1e300, nan;dur=NaN, past;dur=-1")
	if len(got) != 2 || got[0] != (Timing{"thaw", 0, 1500 * time.Microsecond}) || got[1] != (Timing{"init", 2500 * time.Microsecond, 7 * time.Millisecond}) {
		t.Errorf("got %v", got)
	}
}

func FuzzTiming(f *testing.F) {
	f.Add("a;dur=1, b;dur=2")
	f.Add(strings.Repeat("a;dur=1,", 1000))
	f.Fuzz(func(t *testing.T, value string) {
		list := parseTiming(value)
		if len(list) > maxTimings {
			t.Errorf("%d spans", len(list))
		}
		for _, s := range list {
			if s.Took < 0 || s.Name == "" {
				t.Errorf("span %+v", s)
			}
		}
	})
}
