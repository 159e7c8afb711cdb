package reap

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestStatuses(t *testing.T) {
	r := New(Children)
	defer r.Close()
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			c, err := r.Start("/bin/sh", []string{"sh", "-c", "exit " + strconv.Itoa(i)}, &syscall.ProcAttr{Env: os.Environ()})
			if err != nil {
				t.Error(err)
				return
			}
			if got := c.Status().ExitStatus(); got != i {
				t.Errorf("got status %d, want %d", got, i)
			}
			if c.Alive() {
				t.Error("alive after its end")
			}
		})
	}
	all.Wait()
}

func TestStartCmdAndSignal(t *testing.T) {
	r := New(Children)
	defer r.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c, err := r.StartCmd(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SignalGroup(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if ws := c.Status(); ws.Signal() != unix.SIGKILL {
		t.Errorf("ended by %v", ws)
	}
	if err := c.SignalGroup(unix.SIGKILL); err != unix.ESRCH {
		t.Errorf("signal to a group that is gone: %v", err)
	}
	if _, err := r.StartCmd(exec.Command("/nonexistent")); err == nil {
		t.Error("a missing program starts")
	}
	if _, err := r.Start("/nonexistent", []string{"x"}, &syscall.ProcAttr{}); err == nil {
		t.Error("a missing program starts")
	}
}

// TestOrphans makes the test process adopt a grandchild, as PID 1 does.
func TestOrphans(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Skip(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	r := New(Orphans)
	defer r.Close()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c, err := r.Start("/bin/sh", []string{"sh", "-c", `sh -c 'sleep 0.05; exit 9' & echo $!; exit 3`},
		&syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, in.Fd(), 2}})
	if err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	buf := make([]byte, 32)
	n, _ := out.Read(buf)
	orphan := "/proc/" + strings.TrimSpace(string(buf[:n]))
	if got := c.Status().ExitStatus(); got != 3 {
		t.Errorf("the child's own status is %d", got)
	}
	for end := time.Now().Add(time.Minute); ; {
		if _, err := os.Stat(orphan); err != nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the orphan was not buried")
		}
	}
}
