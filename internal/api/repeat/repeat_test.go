package repeat

import (
	"context"
	"testing"
	"time"

	"hearth/internal/hearth"
)

func TestRepeatsAreBounded(t *testing.T) {
	rs := New()
	for i := range maxRepeats + 10 {
		key := Key{Team: "t", Key: time.Duration(i).String()}
		if _, first, err := rs.Once(t.Context(), key, i, func() (hearth.SandboxID, error) { return "i", nil }); err != nil || !first {
			t.Fatal(first, err)
		}
	}
	if len(rs.known) != maxRepeats {
		t.Errorf("%d remembered, want %d", len(rs.known), maxRepeats)
	}
}

func TestSharedRepeatStopsWithItsOwnContext(t *testing.T) {
	rs := New()
	started, release := make(chan struct{}), make(chan struct{})
	go rs.Once(t.Context(), Key{Team: "t", Key: "k"}, 1, func() (hearth.SandboxID, error) { //nolint:errcheck // the second caller is under test
		close(started)
		<-release
		return "i", nil
	})
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := rs.Once(ctx, Key{Team: "t", Key: "k"}, 1, nil); err == nil {
		t.Error("waited beyond its context")
	}
	close(release)
}
