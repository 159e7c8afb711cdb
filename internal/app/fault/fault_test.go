package fault

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// TestDeathWaitsForWhatIsUncut: a process that reaches its point while another of its
// goroutines is in a call of that kind dies after it.
func TestDeathWaitsForWhatIsUncut(t *testing.T) {
	if os.Getenv(Env) != "" {
		dies(t)
		return
	}
	order := filepath.Join(t.TempDir(), "order")
	if err := os.WriteFile(order, []byte("net.release 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), Env+"="+order)
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("it ended with %v, not by a kill:\n%s", err, out)
	}
	if _, err := os.Stat(order + ".whole"); err != nil {
		t.Errorf("it died in the middle: %v", err)
	}
	if _, err := os.Stat(order); err == nil {
		t.Error("the order is still there")
	}
}

// dies is the other process.
func dies(t *testing.T) {
	var p Points
	err := p.uncut(func() error {
		go p.reach("net.release")
		for p.whole.TryRLock() { // until somebody waits to die
			p.whole.RUnlock()
			runtime.Gosched()
		}
		p.note("whole", "yes")
		return nil
	})
	t.Log(err)
	select {}
}
