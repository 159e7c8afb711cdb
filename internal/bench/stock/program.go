package stock

import (
	"debug/buildinfo"
	"path/filepath"
	"runtime/debug"

	"hearth/internal/driver/gvisor/program"
	"hearth/internal/hearth"
)

const (
	command = "hearth/cmd/hearth"
	lean    = "hearth/cmd/hearth-sandbox" // what sandboxes of command are, without the server
	beside  = "-sandbox"                  // at the end of its name, beside command
	module  = "gvisor.dev/gvisor"
)

// Program is one that is gVisor's command line when it is run as `PROGRAM runsc`.
// The zero value is this very program, with the gVisor it was built with; Published
// makes others.
type Program struct {
	File    string // the server, to make checkpoints with; empty: this program
	Version string // of the published module that it has
}

// Published checks that a file is this command, and FILE-sandbox the program of its
// sandboxes, both built with the published module of gVisor, unchanged, in the version that this
// program has too. It goes by what the go command wrote into the files; that the rest is of the
// same tree shows when the checkpoint is restored, which names the guest daemon's image.
func Published(file string) (Program, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return Program{}, hearth.Wrap(hearth.InvalidArgument, err, "stock: %s", file)
	}
	ours, ok := debug.ReadBuildInfo()
	if !ok {
		return Program{}, hearth.Errorf(hearth.FailedPrecondition, "stock: this program does not say which gVisor it was built with")
	}
	p := Program{File: path, Version: program.Linked(ours).Version}
	if err := p.read(p.File, command); err != nil {
		return Program{}, err
	}
	if err := p.read(p.Path(), lean); err != nil {
		return Program{}, err
	}
	return p, nil
}

// read checks one of its files.
func (p Program) read(file, main string) error {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return hearth.Wrap(hearth.InvalidArgument, err, "stock: %s is not a program that says what it was built from", file)
	}
	return p.check(file, main, info)
}

// check compares what a file was built from with what it has to be.
func (p Program) check(file, main string, info *debug.BuildInfo) error {
	refuse := func(format string, args ...any) error {
		return hearth.Errorf(hearth.InvalidArgument, "stock: "+file+" "+format, args...)
	}
	got := program.Linked(info)
	switch {
	case info.Path != main:
		return refuse("is %q, not a build of %s", info.Path, main)
	case got.Replace != nil:
		return refuse("was built with another gVisor (%s) than the published module; `make bench` builds one with that", got.Replace.Path)
	case got.Version == "" || got.Version != p.Version:
		return refuse("was built with gVisor %q, this program with %q", got.Version, p.Version)
	}
	return nil
}

// Path is the program's file. A published one has nothing of a server in it: each command
// of gVisor's would load and initialize that, too.
func (p Program) Path() string {
	if p.File == "" {
		return self
	}
	return p.File + beside
}

// Name says whose gVisor it is, for the names of figures.
func (p Program) Name() string {
	if p.File == "" {
		return "this build's gVisor by its command line"
	}
	return "published gVisor"
}

// Note says what that means for a figure.
func (p Program) Note() string {
	if p.File == "" {
		return "the gVisor of this program (hearth runsc), started as published; what it restores is what the server restores, and its patches for system calls and states hold here, too"
	}
	return module + " " + p.Version + " as published; what it restores it wrote itself, of the same image"
}
