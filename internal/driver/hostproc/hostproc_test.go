package hostproc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hearth/internal/hearth"

	"golang.org/x/sys/unix"
)

func TestUIDRangesAreNeverShared(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "uids")
	lives := []*Users{NewUsers(dir, 1_000_000, 65536), NewUsers(dir, 1_000_000, 65536)} // two processes
	var mu sync.Mutex
	owners := map[uint32]string{}
	var all sync.WaitGroup
	for i := range 40 {
		id := "m-" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		all.Go(func() {
			uid, err := lives[i%2].Take(id)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if other, taken := owners[uid]; taken {
				t.Errorf("%s and %s share range %d", id, other, uid)
			}
			owners[uid] = id
		})
	}
	all.Wait()
	if _, err := lives[0].Take("m-aa"); hearth.KindOf(err) != hearth.AlreadyExists {
		t.Errorf("a second range for one machine: %v", err)
	}
	for _, id := range owners {
		if err := lives[1].Free(id); err != nil {
			t.Error(err)
		}
		if err := lives[1].Free(id); err != nil {
			t.Errorf("second free: %v", err)
		}
	}
	uid, err := lives[0].Take("next")
	if err != nil || uid != 1_000_000 {
		t.Errorf("after all were freed: %d, %v", uid, err)
	}
}

// TestOneRangeForOneMachine: drivers of their own, as of several processes, reserve for
// one machine at once.
func TestOneRangeForOneMachine(t *testing.T) {
	for range 50 {
		dir := t.TempDir()
		var mu sync.Mutex
		taken := 0
		var all sync.WaitGroup
		for range 4 {
			u := NewUsers(dir, 1_000_000, 65536)
			all.Go(func() {
				_, err := u.Take("one")
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					taken++
				case hearth.KindOf(err) != hearth.AlreadyExists:
					t.Errorf("beside another: %v, want %s", err, hearth.AlreadyExists)
				}
			})
		}
		all.Wait()
		if taken != 1 {
			t.Fatalf("%d ranges were taken for one machine", taken)
		}
	}
}

func TestUIDRangesEnd(t *testing.T) {
	u := NewUsers(t.TempDir(), maxUID-2*65536, 65536)
	for _, id := range []string{"a", "b"} {
		if _, err := u.Take(id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := u.Take("c"); hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Errorf("third of two ranges: %v", err)
	}
}

// A process number that was given to another process is not our machine.
func TestReusedPIDIsNotOurs(t *testing.T) {
	self, err := Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	f, err := self.Open()
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	for name, spoil := range map[string]func(*Process){
		"start": func(p *Process) { p.Start++ }, "inode": func(p *Process) { p.ExeInode++ },
		"device": func(p *Process) { p.ExeDev++ }, "pid": func(p *Process) { p.PID = 1 << 22 },
	} {
		p := self
		spoil(&p)
		if f, err := p.Open(); err == nil {
			_ = f.Close()
			t.Errorf("another %s was taken for ours", name)
		}
	}
}

func TestForbidSwap(t *testing.T) {
	dir := t.TempDir()
	if err := ForbidSwap(dir); err != nil {
		t.Errorf("a kernel without swap: %v", err)
	}
	file := filepath.Join(dir, "memory.swap.max")
	if err := os.WriteFile(file, []byte("max"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ForbidSwap(dir); err != nil {
		t.Error(err)
	}
	if raw, err := os.ReadFile(file); err != nil || string(raw) != "0ax" { // a cgroup file takes whole values
		t.Errorf("limit of swap is %q, %v", raw, err)
	}
}

// A group that is made limits what is put into it, and goes away with it.
func TestCgroupHoldsAProcess(t *testing.T) {
	if err := Check(); err != nil {
		t.Skip(err)
	}
	parent := fmt.Sprintf("/hearth-test-hostproc-%d", os.Getpid()) // two runs on one host leave each other's alone
	c := CgroupAt(parent + "/one")
	t.Cleanup(func() {
		for _, dir := range CgroupAt(parent).Dirs() {
			_ = os.Remove(dir)
		}
	})
	for range 2 { // the second takes over what a crash left
		if err := c.Make(Limits{Memory: 64 << 20, CPUs: 2, PIDs: 10}); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Add(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	if got := c.PIDs(); len(got) != 1 || got[0] != cmd.Process.Pid {
		t.Errorf("in the group: %v, want %d", got, cmd.Process.Pid)
	}
	limit := ReadNumber(c.file("memory", "memory.limit_in_bytes")) + ReadNumber(c.file("memory", "memory.max"))
	if limit != 64<<20 {
		t.Errorf("memory limit %d", limit)
	}
	if err := c.Freeze(); err != nil && !errors.Is(err, fs.ErrNotExist) { // what is frozen is killed, too
		t.Error(err)
	}
	going, err := os.OpenFile(filepath.Join(c.Dirs()[0], "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	reaped := make(chan error, 1)
	go func() { reaped <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Remove(ctx); err != nil {
		t.Error(err)
	}
	if err := <-reaped; err == nil {
		t.Error("the process was not killed")
	}
	if err := c.Thaw(); err != nil {
		t.Errorf("Thaw of a group that is gone: %v", err)
	}
	if err := put(going, "0"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a write into a group that was removed meanwhile: %v", err)
	}
	if len(c.Dirs()) != 0 || c.Add(os.Getpid()) == nil {
		t.Errorf("still there: %v", c.Dirs())
	}
}

func TestProcessorIgnoresOrderAndOtherCores(t *testing.T) {
	one := "vendor_id\t: A\ncpu family\t: 6\nmodel\t\t: 5\nflags\t\t: sse avx\n\nvendor_id\t: A\nflags\t: other\n"
	two := "vendor_id\t: A\ncpu family\t: 6\nmodel\t\t: 5\nflags\t\t: avx sse\n"
	for _, text := range []string{one, two} {
		model, features := processor(text)
		if model != "A-6-5" || features != "avx sse" {
			t.Errorf("processor: %q %q", model, features)
		}
	}
}

func TestStraysAreKilledByTheirArguments(t *testing.T) {
	id := fmt.Sprintf("31.%d", os.Getpid())
	mine, other := exec.Command("sleep", id), exec.Command("sleep", id+"0")
	for _, c := range []*exec.Cmd{mine, other} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- mine.Wait() }() // a dead child keeps its entry in /proc until then, though no arguments
	err := KillStrays(t.Context(), func(args []string) bool { return slices.Equal(args, []string{"sleep", id}) })
	if err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := other.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("a process with other arguments: %v", err)
	}
	_ = other.Process.Kill()
	_ = other.Wait()
}

// again makes this test program one that executes itself again and again, from a thread
// that is not its first.
const again = "HEARTH_TEST_EXECUTE_AGAIN"

func TestMain(m *testing.M) {
	if os.Getenv(again) != "" {
		runtime.LockOSThread()
		go func() {
			runtime.LockOSThread() // another thread than the one above
			_ = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
			os.Exit(1)
		}()
		select {}
	}
	os.Exit(m.Run())
}

// A process that executes one program after another has no arguments for a moment each time,
// and no first thread when another one of its threads does it.
func TestNoStrayIsMissedAsItExecutes(t *testing.T) {
	script := filepath.Join(t.TempDir(), "again")
	if err := os.WriteFile(script, []byte("exec sh \"$0\""), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cmd := range map[string]*exec.Cmd{
		"from its only thread":   exec.Command("sh", script),
		"from one of its others": exec.Command("/proc/self/exe", script),
	} {
		t.Run(name, func(t *testing.T) {
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), again + "=yes"}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			its := func(args []string) bool { return args[len(args)-1] == script }
			seen := 0
			for range 200 {
				pids, all, err := processes(its)
				if err != nil || all && len(pids) == 0 {
					t.Fatalf("missed (%v)", err)
				}
				seen += len(pids)
			}
			if seen == 0 {
				t.Error("never seen with arguments")
			}
		})
	}
}

// A process that has no arguments to show, and will not have any, keeps no sweep waiting.
func TestProcessWithoutArgumentsIsNoStray(t *testing.T) {
	cmd := &exec.Cmd{Path: "/bin/cat", Args: []string{""}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if args := arguments(cmd.Process.Pid); args != "" || executing(cmd.Process.Pid) {
		t.Errorf("arguments %q; executing: %t", args, executing(cmd.Process.Pid))
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
}

func TestDirPolicy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	for _, p := range []DirPolicy{KeepDir, RemoveDir} {
		if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := p.Apply(dir); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if len(entries) > 0 || (p == KeepDir) != (err == nil) {
			t.Errorf("policy %d leaves %v, %v", p, entries, err)
		}
		if err := p.Apply(dir); err != nil {
			t.Errorf("policy %d again: %v", p, err)
		}
	}
}

// What a process is started with it keeps, whoever starts it, and all of its threads can be given something else.
func TestTimerSlack(t *testing.T) {
	own := ownSlack(t)
	cmd := exec.Command("sleep", "1000")
	if err := WithTimers(CoarseTimers, cmd.Start); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if now := ownSlack(t); now != own {
		t.Errorf("the thread that started it has %s of slack, it had %s", now, own)
	}
	of := func() time.Duration {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(ns)
	}
	if now := of(); now != CoarseTimers {
		t.Errorf("it was started with %s of slack", now)
	}
	if err := SetTimers(cmd.Process.Pid, ExactTimers); err != nil || of() != ExactTimers {
		t.Errorf("it has %s of slack, %v", of(), err)
	}
	failed := errors.New("no")
	if err := WithTimers(CoarseTimers, func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("a start that failed: %v", err)
	}
	if err := SetTimers(0, ExactTimers); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a process that is not there: %v", err)
	}
}

func ownSlack(t *testing.T) time.Duration {
	t.Helper()
	ns, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ns)
}
