package program

import (
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"testing"
)

// TestWhatCannotBeUsedIsNotExecuted: there is always a program, this one.
func TestWhatCannotBeUsedIsNotExecuted(t *testing.T) {
	for name, get := range map[string]func() (*os.File, error){
		"there is none":     nil,
		"the host has none": func() (*os.File, error) { return nil, errors.New("no room") },
		"not a Go program":  func() (*os.File, error) { return os.Open("/bin/true") },
		"not a program":     func() (*os.File, error) { return os.Open("/etc/passwd") },
	} {
		p := New("", get, slog.New(slog.DiscardHandler))
		for range 2 {
			if path := p.Path(); path != self || p.file != nil {
				t.Errorf("%s: %s is executed", name, path)
			}
		}
	}
	given := New("/given", func() (*os.File, error) { panic("asked") }, nil)
	if path := given.Path(); path != "/given" {
		t.Errorf("%s is executed instead of what the configuration names", path)
	}
}

func TestOtherSourcesAreOtherSources(t *testing.T) {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	if err := sameSources(exe); err != nil {
		t.Errorf("this very program: %v", err)
	}
	build := func(version, dir, revision string) *debug.BuildInfo {
		m := &debug.Module{Path: "gvisor.dev/gvisor", Version: version}
		if dir != "" {
			m.Replace = &debug.Module{Path: dir}
		}
		return &debug.BuildInfo{Deps: []*debug.Module{m}, Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: revision}}}
	}
	base := build("v1", "/a/v1+hash", "c1")
	if linked(base) != linked(build("v1", "/b/v1+hash", "c2")) {
		t.Error("where a tree lies is part of its patches")
	}
	for _, other := range []*debug.BuildInfo{build("v2", "/a/v1+hash", ""), build("v1", "/a/v1+other", ""), build("v1", "", ""), {}} {
		if linked(base) == linked(other) {
			t.Errorf("%s is the same as %s", linked(other), linked(base))
		}
	}
	if commit(base) != "c1" || commit(&debug.BuildInfo{}) != "" || !strings.Contains(linked(base), "hash") {
		t.Errorf("%q, %q", commit(base), linked(base))
	}
}
