package keeper

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// role is the variable that makes the tests' binary a keeper of itself.
const role = "KEEPER_TEST"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(role) == "":
		os.Exit(m.Run())
	case slices.Contains(os.Args, KeptArgument):
		daemon(os.Getenv(role))
	default:
		status, err := Run([]string{os.Args[0], "word"}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		fmt.Println("ended", status, err)
	}
}

// daemon says what it remembers and dies: three times as others want it, then with its keeper.
func daemon(how string) {
	m := Inherited()
	before, err := m.Load()
	fmt.Printf("%q remembers %q, %v\n", os.Args[1:], before, err)
	if err := m.Save(append(before, 'x')); err != nil {
		fmt.Println(err)
	}
	if len(before) == 3 {
		_ = syscall.Kill(os.Getppid(), syscall.SIGKILL)
		return
	}
	switch how {
	case "killed":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "panics":
		panic("of a daemon")
	case "ends":
		if len(before) == 0 {
			os.Exit(7)
		}
	}
}

// TestKilled: a daemon that was killed, or has panicked, is started again and has what
// it saved; one that ends by itself before it ever was is not.
func TestKilled(t *testing.T) {
	again := ""
	for n := range 4 {
		again += fmt.Sprintf("%q remembers %q, <nil>\n", []string{KeptArgument, "word"}, strings.Repeat("x", n))
	}
	for how, want := range map[string]string{
		"killed": again, "panics": again,
		"ends": fmt.Sprintf("%q remembers \"\", <nil>\nended 7 <nil>\n", []string{KeptArgument, "word"}),
	} {
		t.Run(how, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), role+"="+how)
			cmd.Stderr = t.Output()
			out, _ := cmd.Output() // it dies by a signal
			if string(out) != want {
				t.Errorf("got\n%s\nwant\n%s", out, want)
			}
		})
	}
}

func TestNothingToKeep(t *testing.T) {
	if _, err := Run([]string{"/nonexistent/daemon"}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a missing program is kept")
	}
}

func memory(t testing.TB) *Memory {
	t.Helper()
	m, err := newMemory()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.file.Close() })
	return m
}

func want(t *testing.T, m *Memory, body string) {
	t.Helper()
	again := &Memory{file: m.file} // as another process has it
	if got, err := again.Load(); err != nil || string(got) != body {
		t.Errorf("got %q, %v; want %q", got, err, body)
	}
}

func TestMemory(t *testing.T) {
	m := memory(t)
	want(t, m, "")
	for _, body := range []string{"one", "two, which is longer", "3"} {
		if err := m.Save([]byte(body)); err != nil {
			t.Fatal(err)
		}
		want(t, m, body)
	}
	if err := m.Save(bytes.Repeat([]byte("x"), maxBody+1)); err == nil {
		t.Error("more than fits is saved")
	}
	want(t, m, "") // rather than what is not true any more
	if err := m.Save([]byte("four")); err != nil {
		t.Fatal(err)
	}
	want(t, m, "four")
	if err := m.Forget(); err != nil {
		t.Fatal(err)
	}
	want(t, m, "")
	if info, err := m.file.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("after Forget: %v, %v", info, err)
	}
}

// TestTornWrite: of a record that was written in part, however far, nothing counts.
func TestTornWrite(t *testing.T) {
	whole := memory(t)
	for _, body := range []string{"first", "second"} {
		if err := whole.Save([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	record := make([]byte, head+len("second"))
	if _, err := whole.file.ReadAt(record, 0); err != nil {
		t.Fatal(err)
	}
	for n := range record {
		torn := memory(t)
		if err := torn.Save([]byte("first")); err != nil {
			t.Fatal(err)
		}
		if _, err := torn.file.WriteAt(record[:n], 0); err != nil {
			t.Fatal(err)
		}
		want(t, torn, "first")
	}
}

func FuzzMemory(f *testing.F) {
	f.Add([]byte{}, []byte("x"))
	f.Add(bytes.Repeat([]byte{0xff}, head), bytes.Repeat([]byte{0}, head+1))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		m := memory(t)
		for at, raw := range [][]byte{first, second} {
			if _, err := m.file.WriteAt(raw, int64(at)*place); err != nil {
				t.Skip(err)
			}
		}
		if _, err := m.Load(); err != nil {
			t.Fatal(err)
		}
		if err := m.Save([]byte("mine")); err != nil {
			t.Fatal(err)
		}
		want(t, m, "mine")
	})
}
