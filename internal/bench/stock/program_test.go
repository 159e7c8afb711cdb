package stock

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"hearth/internal/hearth"
)

func TestOnlyThePublishedModuleIsPublished(t *testing.T) {
	p := Program{File: "/bin/hearth-stock", Version: "v1"}
	build := func(path, version string, replace *debug.Module) *debug.BuildInfo {
		return &debug.BuildInfo{Path: path, Deps: []*debug.Module{
			{Path: "gvisor.dev/other", Version: "v9"}, {Path: module, Version: version, Replace: replace},
		}}
	}
	if err := p.check(p.File, command, build(command, "v1", nil)); err != nil {
		t.Errorf("the published module: %v", err)
	}
	for want, info := range map[string]*debug.BuildInfo{
		"not a build of":          build("hearth/cmd/hearth-guest", "v1", nil),
		"./patched":               build(command, "v1", &debug.Module{Path: "./patched"}),
		`"v2", this program`:      build(command, "v2", nil),
		`gVisor "", this`:         {Path: command},
		"the published module; `": build(command, "v1", &debug.Module{Path: module, Version: "v1"}),
	} {
		if err := p.check(p.File, command, info); hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), p.File) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

func TestPublishedReadsTheFile(t *testing.T) {
	text := filepath.Join(t.TempDir(), "hearth-stock")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	this, err := os.Executable() // a Go program, but not the command
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{text, text + ".gone", this} {
		if _, err := Published(file); hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), "stock: "+file) {
			t.Errorf("%s: got %v", file, err)
		}
	}
}

func TestProgramsSayWhoseGvisorTheyAre(t *testing.T) {
	own, published := Program{}, Program{File: "/p", Version: "v1"}
	if own.Path() != self || published.Path() != "/p-sandbox" {
		t.Errorf("paths: %s, %s", own.Path(), published.Path())
	}
	if strings.Contains(own.Name()+own.Note(), "wrote itself") || !strings.Contains(own.Note(), "patches") {
		t.Errorf("own: %s: %s", own.Name(), own.Note())
	}
	if !strings.Contains(published.Note(), module+" v1") {
		t.Errorf("published: %s", published.Note())
	}
}
