package jail_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/qemu/jail"
)

// world is what prisontest says: see its World.
type world struct {
	User, Group, PID, OpenFiles int
	Groups                      []int
	Processes, Files            []string
	Descriptors, Environment    []string
	Failures                    map[string]string
}

// prison is a program to lock up and what it is locked up in.
type prison struct {
	exe   string
	start jail.Start
}

const prisoner = 4_100_000_001 // none of a server's users on the same machine

// newPrison prepares a start of prisontest in QEMU's place. Call run.
func newPrison(t *testing.T) *prison {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a jail needs root")
	}
	dir := t.TempDir()
	p := &prison{exe: filepath.Join(dir, "prisontest")}
	build := exec.Command("go", "build", "-trimpath", "-o", p.exe, "hearth/internal/driver/qemu/jail/prisontest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) { // the prisoner executes what lies here
		must(t, os.Chmod(d, 0o755))
	}
	staging := filepath.Join(dir, "staging")
	must(t, os.Mkdir(staging, 0o755))
	parent := fmt.Sprintf("/hearth-test-jail-%d", os.Getpid())
	group := hostproc.CgroupAt(parent + "/" + strings.ReplaceAll(t.Name(), "/", "-"))
	must(t, group.Make(hostproc.Limits{Memory: 256 << 20, CPUs: 1, PIDs: 64}))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := group.Remove(ctx); err != nil {
			t.Error(err)
		}
		if err := hostproc.CgroupAt(parent).RemoveParent(); err != nil {
			t.Error(err)
		}
	})
	p.start = jail.Start{Exe: p.exe, ID: "prisoner", Group: group, Baggage: &jail.Baggage{}, Request: jail.Request{
		Staging: staging, Files: []string{p.exe}, User: prisoner, Program: p.exe, Env: []string{},
		FileSize: 1 << 20, OpenMax: 128, Threads: 64,
	}}
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run locks the program up and returns what it says.
func (p *prison) run(t *testing.T, address string) world {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	fd := p.start.Baggage.Add(w)
	p.start.Request.Args = []string{jail.ProcessName, string('0' + rune(fd)), p.exe, address}
	child, err := p.start.Run(t.Context())
	p.start.Baggage.Close()
	must(t, err)
	defer child.Close()
	raw, err := io.ReadAll(r)
	must(t, err)
	if status, ok := child.Status(); !ok || status.ExitStatus() != 0 {
		t.Fatalf("the prisoner ended with %v%s", status, child.Said())
	}
	var is world
	if err := json.Unmarshal(raw, &is); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return is
}

// TestPrisonerIsAlone: a program in QEMU's place sees itself and what it was given, as
// a user without rights, and none of what it tries succeeds.
func TestPrisonerIsAlone(t *testing.T) {
	p := newPrison(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	forgotten, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0) // without O_CLOEXEC
	must(t, err)
	defer unix.Close(forgotten)
	is := p.run(t, l.Addr().String())
	if is.User != prisoner || is.Group != prisoner || len(is.Groups) > 0 {
		t.Errorf("it is user %d of group %d and of %v", is.User, is.Group, is.Groups)
	}
	if is.PID != 1 || !slices.Equal(is.Processes, []string{"1"}) {
		t.Errorf("it is process %d and sees %v", is.PID, is.Processes)
	}
	if !slices.Equal(is.Files, []string{p.exe}) {
		t.Errorf("it sees the files %q", is.Files)
	}
	if len(is.Environment) > 0 {
		t.Errorf("its environment is %q", is.Environment)
	}
	if is.OpenFiles >= p.start.Request.OpenMax || is.OpenFiles == 0 {
		t.Errorf("it opened %d files, of at most %d", is.OpenFiles, p.start.Request.OpenMax)
	}
	if len(is.Failures) < 10 {
		t.Errorf("it tried no more than %v", is.Failures)
	}
	for what, failure := range is.Failures {
		if failure == "" {
			t.Errorf("it could %s", what)
		}
	}
	for _, fd := range is.Descriptors {
		switch number, what, _ := strings.Cut(fd, " "); {
		case number == "0" && what == "/dev/null", (number == "1" || number == "2") && strings.HasPrefix(what, "/memfd:"):
		case number == "5" && strings.HasPrefix(what, "pipe:"): // its baggage
		case strings.HasPrefix(what, "anon_inode:"), strings.HasPrefix(what, "/proc/"): // of its own making
		default:
			t.Errorf("it was born with descriptor %s", fd)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(mounts), p.start.Request.Staging) {
		t.Error("the host has the jail's mounts")
	}
}

// TestNoPrisonNoPrisoner: when a part of the jail cannot be made, nothing is executed
// outside of it, and the error says which part.
func TestNoPrisonNoPrisoner(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*jail.Request)
		want  string
	}{
		"no directory to mount on": {func(r *jail.Request) { r.Staging += "/none" }, "jail"},
		"a file that is not there": {func(r *jail.Request) { r.Files = append(r.Files, "/none") }, "/none"},
		"no such device":           {func(r *jail.Request) { r.Device = "/dev/none" }, "/dev/none"},
		"still root":               {func(r *jail.Request) { r.User = 0 }, "privileges"},
		"no such program":          {func(r *jail.Request) { r.Program = "/bin/sh" }, "/bin/sh"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			p := newPrison(t)
			p.start.Request.Args = []string{jail.ProcessName}
			tc.spoil(&p.start.Request)
			child, err := p.start.Run(t.Context())
			if err == nil {
				child.Close()
				t.Fatal("it runs")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want it to speak of %s", err, tc.want)
			}
			if left := p.start.Group.PIDs(); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
		})
	}
}
