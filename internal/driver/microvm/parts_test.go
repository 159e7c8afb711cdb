package microvm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hearth/internal/hearth"
)

func TestConsole(t *testing.T) {
	c := &Console{}
	if c.Tail(10) != "" {
		t.Error("a new console says something")
	}
	if n, err := c.Write([]byte("one\r\ntwo\x1b[2J\n")); n != 13 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	if got := c.Tail(100); got != "one\ntwo?[2J\n" {
		t.Errorf("got %q", got)
	}
	line := bytes.Repeat([]byte("x"), 1<<20) // a flood without an end of line
	for range 20 {
		_, _ = c.Write(line)
	}
	_, _ = c.Write([]byte("\nlast"))
	if got := c.Tail(1 << 20); !strings.HasSuffix(got, strings.Repeat("x", consoleLine)+"\nlast") || len(got) > 2*consoleLine {
		t.Errorf("%d bytes, ending %q", len(got), got[max(0, len(got)-20):])
	}
	for range 10_000 {
		_, _ = c.Write([]byte("a line of some length\n"))
	}
	if got := c.Tail(1 << 20); len(got) != consoleBytes {
		t.Errorf("%d bytes are kept, want %d", len(got), consoleBytes)
	}
	if got := c.Tail(7); got != "length\n" {
		t.Errorf("got %q", got)
	}
}

func TestCommandLine(t *testing.T) {
	got := CommandLine{
		Layers: []string{"vda", "vdb"}, Guest: "vdc", Disk: "vdd", Transport: Serial, Init: []string{"/init", "a b,c"},
		Env: []string{"A=x y"}, Console: "ttyS0", Reboot: "t", TSC: 2445406, More: []string{"nosmt"},
	}.String()
	for _, want := range []string{
		" hearth.layers=vda,vdb ", " hearth.guest=vdc ", " hearth.disk=vdd ", " hearth.channel=serial ",
		" hearth.init=%2Finit,a+b%2Cc ", " console=ttyS0 ", " reboot=t ", " tsc_early_khz=2445406 tsc=reliable ", " nosmt ", " hearth.env=A%3Dx+y ",
	} {
		if !strings.Contains(" "+got+" ", want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	if got := (CommandLine{}).String(); !strings.Contains(got, "hearth.init=%2F.guest%2Fhearth-guest") || strings.Contains(got, "console=") {
		t.Errorf("got %q", got)
	}
}

func TestHostTSC(t *testing.T) {
	one, err := HostTSC()
	if err != nil {
		t.Skip(err)
	}
	two, err := HostTSC()
	if err != nil || one < two-two/100 || one > two+two/100 {
		t.Errorf("%d and %d kHz, %v", one, two, err)
	}
}

// sparse makes a file with data here and there.
func sparse(t *testing.T, size int64, data map[int64]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "from")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at, text := range data {
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCopySparse(t *testing.T) {
	for name, c := range map[string]struct {
		size int64
		data map[int64]string
	}{
		"empty":     {0, nil},
		"hole":      {64 * mib, nil},
		"scattered": {40 * mib, map[int64]string{0: "start", 9*mib + 5: strings.Repeat("middle", 300_000), 40*mib - 3: "end"}},
		"solid":     {3*mib + 1, map[int64]string{0: strings.Repeat("x", 3*mib+1)}},
	} {
		from := sparse(t, c.size, c.data)
		to := filepath.Join(t.TempDir(), "to")
		n, err := CopySparse(t.Context(), from, to, Synced)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want, _ := os.ReadFile(from)
		got, err := os.ReadFile(to)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
		var a, b syscall.Stat_t
		_, _ = syscall.Stat(from, &a), syscall.Stat(to, &b)
		if b.Blocks > a.Blocks+64 {
			t.Errorf("%s: the copy takes %d blocks, the original %d", name, b.Blocks, a.Blocks)
		}
		if n > c.size || c.data == nil && n != 0 {
			t.Errorf("%s: %d bytes copied of %d", name, n, c.size)
		}
	}
}

func TestCopySparseErrors(t *testing.T) {
	from := sparse(t, 20*mib, map[int64]string{0: strings.Repeat("x", 20*mib)})
	to := filepath.Join(t.TempDir(), "to")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := CopySparse(ctx, from, to, Cached); !errors.Is(err, context.Canceled) {
		// A reflink is done before anybody can cancel it.
		if _, statErr := os.Stat(to); err != nil || statErr != nil {
			t.Errorf("cancelled: %v", err)
		}
	} else if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a copy is left: %v", err)
	}
	if _, err := CopySparse(t.Context(), filepath.Join(t.TempDir(), "none"), to, Cached); err == nil {
		t.Error("nothing was copied")
	}
	if _, err := CopySparse(t.Context(), t.TempDir(), to, Cached); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Errorf("a directory: %v", err)
	}
	if err := os.WriteFile(to, []byte("there"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := CopySparse(t.Context(), from, to, Cached); err == nil {
		t.Error("a file that was there was written over")
	}
	if raw, _ := os.ReadFile(to); string(raw) != "there" {
		t.Errorf("it holds %q now", raw)
	}
}

func TestCopyPlain(t *testing.T) {
	from := sparse(t, 5*mib, map[int64]string{mib: strings.Repeat("y", 3*mib)})
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "to"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := copyPlain(t.Context(), in, out, mib, 4*mib); err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile(from)
	got, _ := os.ReadFile(out.Name())
	if !bytes.Equal(got, want[:4*mib]) {
		t.Error("the copy differs")
	}
}
