package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/gvisor/console"
)

// TestMain is also the launchers' program: what they make is nothing, and its PID 7.
func TestMain(m *testing.M) {
	if os.Args[0] == Name {
		runtime.GOMAXPROCS(2) // two things at once, of which one should not be done
		os.Exit(Serve(func(r Request) (Sandbox, error) {
			if r.Bundle == "bad" {
				return nil, errors.New("a bad bundle")
			}
			if filepath.IsAbs(r.Bundle) { // to be seen
				_ = os.Mkdir(r.Bundle, 0o700)
			}
			return nothing{}, nil
		}))
	}
	os.Exit(m.Run())
}

type nothing struct{}

func (nothing) PID() int         { return 7 }
func (nothing) Abandon()         {}
func (nothing) Kept() []*os.File { return nil }
func (nothing) Start(r Request) error {
	switch r.Image {
	case "bad":
		return errors.New("a bad image")
	case "dies":
		os.Exit(3)
	case "hangs":
		select {}
	}
	return nil
}

func get(t *testing.T, p *Pool, id string) *Launcher {
	t.Helper()
	l, err := p.Get(id, &console.Console{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func cmdline(t *testing.T, l *Launcher) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(l.cmd.Process.Pid) + "/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(raw), "\x00")
}

func TestLauncherIsUsedAgain(t *testing.T) {
	p := New(func() string { return "/proc/self/exe" })
	defer func() {
		for _, id := range []string{"a-rather-long-id", "b", "an-id-of-forty-characters-000000000000000"[:idRoom]} {
			p.Gone(id)
		}
	}()
	first := get(t, p, "a-rather-long-id")
	for _, id := range []string{"a-rather-long-id", "b", "an-id-of-forty-characters-000000000000000"[:idRoom]} {
		l := first
		if id != "a-rather-long-id" {
			l = get(t, p, id)
		}
		if l != first {
			t.Fatalf("another launcher for %s", id)
		}
		// It makes a machine in two steps, as of a blank, so that it can be looked at.
		if pid, err := l.Ask(t.Context(), Request{ID: id, Wait: true}); pid != 7 || err != nil {
			t.Fatalf("got %d, %v", pid, err)
		}
		if got := cmdline(t, l); got != Name+"\x00"+id {
			t.Errorf("making %s it calls itself %q", id, got)
		}
		if pid, err := p.Last(t.Context(), l, Request{ID: id}); pid != 7 || err != nil {
			t.Fatalf("got %d, %v", pid, err)
		}
		if got := cmdline(t, l); got != Name {
			t.Errorf("waiting it calls itself %q", got)
		}
	}
}

// Of a server that ended when it had asked, nothing is made: its machines may be swept by now.
func TestNothingIsMadeForTheDead(t *testing.T) {
	for range 20 {
		l := get(t, New(func() string { return "/proc/self/exe" }), "m")
		if err := l.cmd.Process.Signal(unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		made := filepath.Join(t.TempDir(), "made")
		if err := json.NewEncoder(l.request).Encode(Request{ID: "m", Bundle: made}); err != nil {
			t.Fatal(err)
		}
		if err := l.request.Close(); err != nil {
			t.Fatal(err)
		}
		if err := l.cmd.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		<-l.Ended()
		if _, err := os.Stat(made); !os.IsNotExist(err) {
			t.Fatalf("it was made (%v)", err)
		}
	}
}

func TestLauncherEnds(t *testing.T) {
	p := New(func() string { return "/proc/self/exe" })
	t.Run("when others wait", func(t *testing.T) {
		var all []*Launcher
		for range maxIdle + 1 {
			all = append(all, get(t, p, "m"))
		}
		for _, l := range all {
			if _, err := p.Last(t.Context(), l, Request{ID: "m"}); err != nil {
				t.Fatal(err)
			}
		}
		<-all[maxIdle].Ended()
		p.Gone("m")
		for _, l := range all {
			<-l.Ended()
		}
	})
	t.Run("after many machines", func(t *testing.T) {
		l := get(t, p, "m")
		for l.made < maxLaunched {
			if _, err := p.Last(t.Context(), l, Request{ID: "m"}); err != nil {
				t.Fatal(err)
			}
			if again := get(t, p, "m"); again != l {
				t.Fatalf("after %d machines there is another", l.made)
			}
		}
		if _, err := p.Last(t.Context(), l, Request{ID: "m"}); err != nil {
			t.Fatal(err)
		}
		<-l.Ended()
	})
	t.Run("after a boot, whose console it has", func(t *testing.T) {
		con, err := console.New()
		if err != nil {
			t.Fatal(err)
		}
		defer con.Close()
		l, err := p.Get("m", con)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Last(t.Context(), l, Request{ID: "m"}); err != nil {
			t.Fatal(err)
		}
		<-l.Ended()
	})
}

func TestLauncherFails(t *testing.T) {
	p := New(func() string { return "/proc/self/exe" })
	defer p.Gone("m")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		req  Request
		want string
	}{
		"to create":       {t.Context(), Request{ID: "m", Bundle: "bad"}, "a bad bundle"},
		"to start":        {t.Context(), Request{ID: "m", Image: "bad"}, "a bad image"},
		"and dies":        {t.Context(), Request{ID: "m", Image: "dies"}, "no answer"},
		"to be in time":   {ended, Request{ID: "m", Image: "hangs"}, "canceled"},
		"and is too late": {ended, Request{ID: "m"}, "canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			l := get(t, p, "m")
			if _, err := p.Last(c.ctx, l, c.req); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			<-l.Ended()
			if p.take("m", false) != nil {
				t.Error("it waits for another machine")
			}
		})
	}
	t.Run("while it waits", func(t *testing.T) {
		l := get(t, p, "m")
		if _, err := p.Last(t.Context(), l, Request{ID: "m"}); err != nil {
			t.Fatal(err)
		}
		_ = l.cmd.Process.Kill()
		<-l.Ended()
		if get(t, p, "m") == l {
			t.Error("a dead launcher was used")
		}
	})
}
