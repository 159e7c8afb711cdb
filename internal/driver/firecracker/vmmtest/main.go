// Command vmmtest stands in for Firecracker's two programs where there is no
// hardware to run them: it is the jailer when it runs as "jailer", and the
// monitor when it runs as "firecracker". It knows their command lines, and the
// API as it is publicly described, strictly: unknown fields, calls in the wrong
// order or state, and files that are not there are refused.
//
// What it does for real: chroot, users, control groups, namespaces, limits; the
// sockets; memory that comes from a file or from a pager by way of a
// userfaultfd; full and differential snapshots. What it does not have is a
// processor: its guest is a function in the same process, which keeps its words
// in the machine's memory and on the machine's disk, and talks to the host by
// the machine's guest channel.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

const version = "1.16.1"

// exitUsage is what both programs end with when their arguments are wrong.
const exitUsage = 153

func main() {
	signal.Ignore(syscall.SIGPIPE) // as the monitor does: its console may go away
	var err error
	switch name := filepath.Base(os.Args[0]); {
	case name == "jailer":
		err = jailer(os.Args[1:])
	case strings.HasPrefix(name, "firecracker"):
		err = firecracker(os.Args[1:])
	default:
		err = fmt.Errorf("run as %q", name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		if _, ok := errors.AsType[usageError](err); ok {
			os.Exit(exitUsage)
		}
		os.Exit(1)
	}
}

type usageError struct{ error }

// firecracker is the monitor's main function. It returns when the guest ended.
func firecracker(args []string) error {
	set := flag.NewFlagSet("firecracker", flag.ContinueOnError)
	show := set.Bool("version", false, "")
	id := set.String("id", "anonymous-instance", "")
	socket := set.String("api-sock", "/run/firecracker.socket", "")
	set.String("level", "Info", "")
	set.Uint64("start-time-us", 0, "")
	set.Uint64("start-time-cpu-us", 0, "")
	set.Uint64("parent-cpu-time-us", 0, "")
	if err := set.Parse(args); err != nil {
		return usageError{err}
	}
	if set.NArg() > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", set.Arg(0))}
	}
	if *show {
		v := version
		if other := os.Getenv("VMMTEST_VERSION"); other != "" {
			v = other
		}
		fmt.Printf("Firecracker v%s\n\n", v)
		return nil
	}
	script, err := readScript("/" + scriptName)
	if err != nil {
		return err
	}
	v := newVM(*id, script)
	go v.serveAPI(*socket)
	code := <-v.ended
	fmt.Printf("Firecracker exiting. exit_code=%d\n", code)
	os.Exit(code)
	return nil
}
