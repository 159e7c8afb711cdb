//go:build hearthcow

package main

import (
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/sentry/platform/systrap"
)

// A stub's program, compiled ahead and filled in, must be what gVisor would have
// compiled for the place at which the stub is.
func TestStubProgramsAreWhatGVisorCompiles(t *testing.T) {
	ready, err := stubs()
	if err != nil {
		t.Fatal(err)
	}
	if len(ready) != 2 {
		t.Errorf("%d programs", len(ready))
	}
	const page, top = 4096, 1 << 47
	places := []uintptr{page, 1 << 32, 1<<32 + page, top - 1<<32, top - 64*page}
	for range 100 {
		places = append(places, uintptr(rand.Uint64N(top/page-64))*page)
	}
	for name, p := range ready {
		if p.Name != name {
			t.Errorf("%q calls itself %q", name, p.Name)
		}
		for _, at := range places {
			for _, pages := range []uintptr{1, 9, 63} {
				if err := systrap.Check(p, at, at+pages*page); err != nil {
					t.Fatalf("at %#x, %d pages: %v", at, pages, err)
				}
			}
		}
	}
}
