// Package storetest is the conformance suite of the store contract. A new
// implementation's test calls Run with a function that opens an empty store.
package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

// Run checks a store against the contract. open returns an empty store and
// closes it with the test.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for name, test := range map[string]func(*testing.T, store.Store){
		"sandbox/round trip":         sandboxRoundTrip,
		"sandbox/errors":             sandboxErrors,
		"sandbox/bad text":           sandboxBadText,
		"sandbox/update":             sandboxUpdate,
		"sandbox/update refused":     sandboxUpdateRefused,
		"sandbox/concurrent updates": sandboxConcurrentUpdates,
		"sandbox/paging":             sandboxPaging,
		"sandbox/paging while added": sandboxPagingMoves,
		"sandbox/filters":            sandboxFilters,
		"sandbox/cursors":            sandboxCursors,
		"sandbox/due":                sandboxDue,
		"sandbox/purge":              sandboxPurge,
		"template/round trip":        templateRoundTrip,
		"template/resolve":           templateResolve,
		"template/list":              templateList,
		"template/delete":            templateDelete,
		"build/life":                 buildLife,
		"build/finish":               buildFinish,
		"build/concurrent finish":    buildConcurrentFinish,
		"snapshot":                   snapshots,
		"snapshot/names":             snapshotNames,
		"snapshot/find":              snapshotFind,
		"snapshot/uses":              snapshotUses,
		"team":                       teams,
		"ping":                       ping,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// epoch is when the suite's world begins. It has nanoseconds: they must be kept.
var epoch = time.Date(2026, 3, 4, 5, 6, 7, 890123457, time.UTC)

// Sandbox returns a row with every field set, for a test to change.
func Sandbox(id string) *hearth.Sandbox {
	allow := false
	return &hearth.Sandbox{
		ID: hearth.SandboxID(id), Team: "t1", Template: "tpl", Alias: "base", Build: "b1", Node: "n1", Wanted: "qemu", Driver: "qemu", Isolation: hearth.EmulatedVM,
		State: hearth.Running, StopReason: "none 'yet'",
		Resources: hearth.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024},
		Network: hearth.Network{AllowInternet: &allow, AllowOut: []string{"1.2.3.4/32", "*.example.com"},
			DenyOut: []string{"0.0.0.0/0"}, PrivateIngress: true, MaskRequestHost: "h:${PORT}"},
		Env:      map[string]string{"A": "1", "empty": "", "quote": `"'\` + "\n\t☃"},
		Metadata: map[string]string{"user": "ada", "e%2Fnc": "a&b=c"},
		Head:     "s1", Lifecycle: hearth.Lifecycle{PauseFiles: true, Idle: time.Minute},
		Open: true, OnTimeout: hearth.PauseOnTimeout, AutoResume: true, Timeout: 90 * time.Second,
		CreatedAt: epoch, StartedAt: epoch.Add(time.Second), EndsAt: epoch.Add(time.Minute),
		Generation: 1, Launch: 1,
	}
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func fails(t *testing.T, err error, kind hearth.Kind) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one of kind %s", kind)
	}
	if got := hearth.KindOf(err); got != kind {
		t.Fatalf("error %q of kind %s, want %s", err, got, kind)
	}
}

func teams(t *testing.T, s store.Store) {
	ctx := context.Background()
	a, b := &hearth.Team{ID: "t1", Name: "Änne", Slug: "anne"}, &hearth.Team{ID: "t2", Slug: "bob"}
	ok(t, s.CreateTeam(ctx, b))
	ok(t, s.CreateTeam(ctx, a))
	fails(t, s.CreateTeam(ctx, a), hearth.AlreadyExists)
	fails(t, s.CreateTeam(ctx, &hearth.Team{ID: "t3", Slug: "bob"}), hearth.AlreadyExists)
	fails(t, s.CreateTeam(ctx, &hearth.Team{ID: "t3", Name: "\x00", Slug: "c"}), hearth.InvalidArgument)
	got, err := s.Team(ctx, "t1")
	ok(t, err)
	same(t, "team", got, a)
	_, err = s.Team(ctx, "t9")
	fails(t, err, hearth.NotFound)
	list, err := s.ListTeams(ctx)
	ok(t, err)
	same(t, "teams", list, []*hearth.Team{a, b})

	key := &hearth.APIKey{ID: "k1", Team: "t1", Name: "laptop", Hash: "abcd", Mask: "e2b_ab...12", CreatedAt: epoch}
	ok(t, s.CreateAPIKey(ctx, key))
	fails(t, s.CreateAPIKey(ctx, key), hearth.AlreadyExists)
	fails(t, s.CreateAPIKey(ctx, &hearth.APIKey{ID: "k2", Team: "t2", Hash: "abcd"}), hearth.AlreadyExists)
	fails(t, s.CreateAPIKey(ctx, &hearth.APIKey{ID: "k3", Team: "t9", Hash: "ef"}), hearth.NotFound)
	got, err = s.TeamByKeyHash(ctx, "abcd")
	ok(t, err)
	same(t, "team by key", got, a)
	_, err = s.TeamByKeyHash(ctx, "abc")
	fails(t, err, hearth.NotFound)
}

func ping(t *testing.T, s store.Store) {
	ok(t, s.Ping(context.Background()))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if s.Ping(ctx) == nil {
		t.Error("Ping ignores the end of its context")
	}
}
