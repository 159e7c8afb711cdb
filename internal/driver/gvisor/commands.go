package gvisor

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/subcommands"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"

	"hearth/internal/driver/gvisor/launcher"
)

const (
	// stockFlag marks the sandboxes of `hearth runsc`, which start and keep their
	// memory as plain gVisor does. It is a flag that means nothing without --debug, and the only
	// thing that reaches the sandbox process: its environment is empty.
	stockFlag = "--debug-command=stock"
)

// Main is the gVisor half of the program. The first thing a main function does
// is to call it with os.Args: when it reports true the process was a sandbox, a
// sandbox's launcher or `PROGRAM runsc ...`, and has done its work; main returns.
//
// `PROGRAM runsc ARGS` is gVisor's own command line, a reference of benchmarks: in a
// build without patches, gVisor as it is published, and in one with them the same but
// for what patch/README.md says to be done always: cheaper system calls of a running
// sandbox and a cheaper state (7, 8, 11, 12), and a line or two of 9, 13, 14 and 15. With `PROGRAM runsc --precompiled ARGS` it uses the
// precompiled seccomp filters, as the driver does.
func Main(args []string) bool {
	switch {
	case len(args) == 0:
		return false
	case args[0] == launcher.Name:
		os.Exit(launcherMain())
	case strings.HasPrefix(filepath.Base(args[0]), "runsc"),
		len(args) > 1 && args[0] == "/proc/self/exe" && args[1] == "umount":
		runSentry(args)
	case len(args) > 1 && args[1] == "runsc":
		runStock(args[2:])
	default:
		return false
	}
	return true
}

// runStock rewrites the command line into runsc's own.
func runStock(args []string) {
	flag := stockFlag
	if len(args) > 0 && args[0] == "--precompiled" {
		flag, args = "--debug-command=", args[1:]
	}
	os.Args = slices.Concat([]string{"runsc", "--sidecar-usage-policy=" + sidecarPolicy, flag}, args)
	runSentry(os.Args)
}

// runSentry runs gVisor's command line on os.Args. It does not return when it
// fails, and ends the process with the command's status otherwise.
func runSentry(args []string) {
	stampVersion()
	if !slices.Contains(args, stockFlag) {
		startQuickly()
		log.SetLevel(log.Warning)  // nobody reads more, unless --debug asks for it
		runtime.MemProfileRate = 0 // nobody asks a sandbox for one, and each sample walks a stack
		if err := installPrograms(); err != nil {
			fmt.Fprintln(os.Stderr, "seccomp programs of this build are damaged:", err)
			os.Exit(128)
		}
	}
	cli.Run(nil, commands(), []subcommands.Command{new(cmd.Platforms), new(cmd.Syscalls)})
}

// commands are the parts of runsc that a sandbox process is made of, and what a
// benchmark or a person looking for a fault needs of the rest.
func commands() map[util.SubCommand]string {
	const user, internal = "", "internal use only"
	return map[util.SubCommand]string{
		new(sentrycmd.Boot):   internal,
		new(sentrycmd.Umount): internal,
		new(cmd.Gofer):        internal,
		new(cmd.Checkpoint):   user,
		new(cmd.Create):       user,
		new(cmd.Debug):        user,
		new(cmd.Delete):       user,
		new(cmd.Exec):         user,
		new(cmd.Kill):         user,
		new(cmd.List):         user,
		new(cmd.Pause):        user,
		new(cmd.PS):           user,
		new(cmd.Restore):      user,
		new(cmd.Resume):       user,
		new(cmd.Run):          user,
		new(cmd.Spec):         user,
		new(cmd.Start):        user,
		new(cmd.State):        user,
		new(cmd.Wait):         user,
	}
}
