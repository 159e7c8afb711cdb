// Package cli is the command line: one struct per command, whose Run calls the
// composition root or the public client and prints for people.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"hearth/internal/config"
	"hearth/internal/hearth"
)

// commands is the whole command line.
type commands struct {
	Config string `name:"config" placeholder:"FILE" env:"HEARTH_CONFIG" help:"Configuration file (YAML)."`

	Up       upCmd       `cmd:"" help:"Run the server."`
	Down     downCmd     `cmd:"" help:"Stop the server and every sandbox; leave nothing running."`
	Env      envCmd      `cmd:"" help:"Print the variables with which E2B programs run against this server."`
	Doctor   doctorCmd   `cmd:"" help:"Say what this host can do, and what to mend."`
	Bench    benchCmd    `cmd:"" help:"Measure this host beside plain runc and gVisor."`
	Sandbox  sandboxCmd  `cmd:"" help:"Create, list, use and kill sandboxes."`
	Snapshot snapshotCmd `cmd:"" help:"List, compare, delete, export and import snapshots."`
	Template templateCmd `cmd:"" help:"List templates."`
	Settings settingsCmd `cmd:"" name:"config" help:"Print the configuration that holds."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

// invocation is what every command's Run gets.
type invocation struct {
	ctx     context.Context
	file    string // configuration file
	version string
	out     io.Writer // results
	err     io.Writer // progress and complaints
}

// Main runs the command line args (without the program's name) and returns the
// exit code: 0 done, 1 failed, 2 used wrongly; see exitCode for the rest.
func Main(args []string, version string, out, errw io.Writer) int {
	ownDescriptors()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c commands
	parser, err := kong.New(&c, kong.Name("hearth"), kong.Writers(out, errw),
		kong.Description("A self-hosted home for AI-written code: sandboxes behind the E2B protocol."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}), kong.UsageOnError())
	if err != nil {
		fmt.Fprintln(errw, "hearth:", err)
		return exitUsage
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	k, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintln(errw, "hearth:", misread(err))
		return exitUsage
	}
	in := &invocation{ctx: ctx, file: c.Config, version: version, out: out, err: errw}
	return exitCode(errw, k.Run(in))
}

// ownDescriptors keeps what this process has inherited from the programs that it
// runs: some shells cannot name descriptors above 9, and none of it is theirs.
// Kernels before 5.11 cannot do it; there the programs get it all.
func ownDescriptors() {
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}

// Exit codes. A command that ran in a sandbox passes its own code on.
const (
	exitFailed   = 1
	exitUsage    = 2
	exitNotFound = 3
	exitDenied   = 4
	exitBusy     = 5
)

// remoteExit carries the exit code of a command that ran in a sandbox.
type remoteExit int

func (e remoteExit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// failure is how another hearth process failed: what it said and its exit code.
type failure struct {
	text string
	code int
}

func (f *failure) Error() string { return f.text }

// exitCode reports err in one line and maps it to the process's exit code.
func exitCode(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[remoteExit](err); ok {
		return int(e)
	}
	fmt.Fprintln(w, "hearth:", err)
	if f, ok := errors.AsType[*failure](err); ok && f.code > 0 {
		return f.code
	}
	switch hearth.KindOf(err) {
	case hearth.InvalidArgument:
		return exitUsage
	case hearth.NotFound:
		return exitNotFound
	case hearth.PermissionDenied, hearth.Unauthenticated:
		return exitDenied
	case hearth.Unavailable, hearth.ResourceExhausted, hearth.AlreadyExists:
		return exitBusy
	}
	return exitFailed
}

// dataFlag is on every command that works on a data directory.
type dataFlag struct {
	Data string `placeholder:"DIR" type:"path" help:"Data directory; default: /var/lib/hearth, or $$HEARTH_DATA."`
}

// load reads the configuration with the command's flags on top.
func (in *invocation) load(override func(*config.Config)) (*config.Config, error) {
	return config.Load(in.file, os.Environ(), override)
}

func (d dataFlag) load(in *invocation) (*config.Config, error) {
	return in.load(func(c *config.Config) { d.apply(c) })
}

func (d dataFlag) apply(c *config.Config) {
	if d.Data != "" {
		c.Data = d.Data
	}
}

type settingsCmd struct{ dataFlag }

// Run prints the configuration as a file that --config accepts.
func (s *settingsCmd) Run(in *invocation) error {
	c, err := s.load(in)
	if err != nil {
		return err
	}
	raw, err := c.YAML()
	if err != nil {
		return err
	}
	_, err = in.out.Write(raw)
	return err
}

type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(in *invocation) error {
	_, err := fmt.Fprintln(in.out, "hearth", in.version)
	return err
}

// statePath names a file that `hearth up` keeps in the data directory.
func statePath(c *config.Config, name string) string { return filepath.Join(c.Data, name) }
