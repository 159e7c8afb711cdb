package kvmprobe

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

// kvmEnv is set where virtual machines are known to run, as in the emulated KVM
// host of test/kvm: there Check must agree.
const kvmEnv = "HEARTH_TEST_KVM"

func wantKVM(t *testing.T) {
	t.Helper()
	if os.Getenv(kvmEnv) == "" {
		t.Skipf("needs a host that runs virtual machines: %s is not set (make test-kvm)", kvmEnv)
	}
}

func TestCheck(t *testing.T) {
	before := descriptors(t)
	err := Check(t.Context(), Device)
	switch {
	case os.Getenv(kvmEnv) != "" && err != nil:
		t.Errorf("virtual machines run here, but: %v", err)
	case err != nil && hearth.KindOf(err) != hearth.FailedPrecondition:
		t.Errorf("%v is of kind %v", err, hearth.KindOf(err))
	}
	t.Logf("this host: %v", err)
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestRepeatedAndAtOnce(t *testing.T) {
	wantKVM(t)
	before := descriptors(t)
	var g sync.WaitGroup
	for range 4 {
		g.Go(func() {
			for range 5 {
				if err := Check(t.Context(), Device); err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// TestProgramsThatGoWrong runs others than the one Check expects.
func TestProgramsThatGoWrong(t *testing.T) {
	wantKVM(t)
	before := descriptors(t)
	kvm, err := open(Device)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kvm)
	for name, test := range map[string]struct{ code, want string }{
		"for ever":         {"\xeb\xfe", "did not write memory"},          // jmp .
		"for ever, closed": {"\xfa\xeb\xfe", "did not write memory"},      // cli; jmp .
		"undefined":        {"\x0f\x0b", "KVM_EXIT_SHUTDOWN"},             // ud2, for which there is no gate
		"wild":             {"\x48\x89\x04\x25\x00\x00\x00\x7f", "fault"}, // mov %rax, 0x7f000000
		"halts at once":    {"\xf4", "could not write memory: it halted"},
		"wrong report":     {"\xb0\x09\xee", "wrote 9 to port 0x5a0"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		if strings.HasPrefix(name, "for ever") {
			time.AfterFunc(200*time.Millisecond, cancel)
		}
		err := run(ctx, kvm, test.code)
		cancel()
		if hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if after := descriptors(t); after != before+1 {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestCheckOfSomethingElse(t *testing.T) {
	dir := t.TempDir()
	locked := filepath.Join(dir, "locked")
	if err := os.WriteFile(locked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for device, want := range map[string]string{
		filepath.Join(dir, "kvm"): "there is no ",
		"/dev/null":               "/dev/null is not KVM",
		locked:                    " is not KVM",
		dir:                       " cannot be opened",
	} {
		err := Check(t.Context(), device)
		if hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", device, err, want)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("the rest needs root")
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends here, with its user
		unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534)
		done <- Check(context.Background(), locked)
	}()
	if err := <-done; hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "no permission") {
		t.Errorf("another user: %v", err)
	}
}

func TestMissingCapabilitiesAreNamed(t *testing.T) {
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	got := missing(int(null.Fd()))
	if len(got) != len(needed()) || got[0] != "KVM_CAP_IRQCHIP" {
		t.Errorf("missing: %v", got)
	}
}

// descriptors counts what this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return len(entries)
}
