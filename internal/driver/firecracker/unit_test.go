package firecracker

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/firecracker/pager"
	"hearth/internal/hearth"
)

func TestVersions(t *testing.T) {
	for said, want := range map[string]string{
		"Firecracker v1.16.1\n\n2026-11-27T12:00:00 [anonymous-instance:main] exit_code=0\n": "1.16.1",
		"Firecracker v1.17.0-dev\n": "1.17.0", "firecracker v2.0.0": "2.0.0",
		"Jailer v1.16.1": "", "": "", "Firecracker 1.16.1": "", "Firecracker v1.16": "", "Firecracker v1.16.1.2": "", "Firecracker v99999.1.1": "",
		"xFirecracker v1.16.1": "", "Firecracker v1.16.1 or so": "",
	} {
		v, err := parseVersion("firecracker", said)
		if want == "" && err == nil || want != "" && (err != nil || v.String() != want) {
			t.Errorf("%q: %s, %v; want %q", said, v, err, want)
		}
	}
	for _, v := range []version{{0, 99, 99}, {1, 15, 9}, {1, 16, 0}} {
		if !v.before(oldest) {
			t.Errorf("%s is not too old", v)
		}
	}
	for _, v := range []version{{1, 16, 1}, {1, 16, 2}, {1, 17, 0}, {2, 0, 0}} {
		if v.before(oldest) {
			t.Errorf("%s is too old", v)
		}
	}
}

func FuzzVersion(f *testing.F) {
	f.Add("Firecracker v1.16.1\n")
	f.Fuzz(func(t *testing.T, said string) {
		if v, err := parseVersion("firecracker", said); err == nil && !strings.Contains(said, fmt.Sprint(v[0])) {
			t.Fatalf("%q is %s", said, v)
		}
	})
}

func FuzzManifest(f *testing.F) {
	id := strings.Repeat("0a", 16)
	f.Add([]byte(`{"id":"` + id + `","key":"k","layers":["a"],"guest":"g.erofs","guest_id":"b","resources":{"vcpus":1,"memory_mib":128,"disk_mib":64},"network":true}`))
	f.Add([]byte(`{"id":"` + id + `","base":"` + id + `"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		man, err := parseManifest(raw)
		if err != nil {
			return
		}
		if strings.ContainsAny(man.ID+man.Base+man.Guest, "/\x00") || len(man.ID) != idLength || man.Guest == ".." {
			t.Fatalf("%+v", man)
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"pid":7,"exe":"firecracker","uid":5,"from":[{"dir":"/x"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := decodeState(raw)
		if err != nil {
			return
		}
		if s.PID < 2 || strings.Contains(s.Exe, "/") || s.UID <= 0 || (s.from() != nil) != s.restored() {
			t.Fatalf("%+v", s)
		}
	})
}

func TestLimits(t *testing.T) {
	r := hearth.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024}
	if got, want := memoryLimit(r), int64(512+64+4)<<20; got != want {
		t.Errorf("memory limit %d, want %d", got, want)
	}
	for unified, want := range map[bool][]string{
		false: {"--cgroup-version", "1", "memory.limit_in_bytes=608174080", "memory.swappiness=0", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=200000", "cpuacct.usage=0", "pids.max=66"},
		true:  {"--cgroup-version", "2", "memory.max=608174080", "cpu.max=200000 100000", "pids.max=66"},
	} {
		got := slices.DeleteFunc(cgroupArgs(r, unified), func(s string) bool { return s == "--cgroup" })
		if !slices.Equal(got, want) {
			t.Errorf("unified %t: %q, want %q", unified, got, want)
		}
	}
	if got := fileLimit(r, 2<<30); got != 2<<30+16<<20 {
		t.Errorf("file limit %d", got)
	}
}

// The console keeps the end of what is written, and nobody waits for it.
func TestConsoleFlood(t *testing.T) {
	c, err := newConsole()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 64 {
		fmt.Fprintf(c.in, "%s\n%d\n", bytes.Repeat([]byte("x\x1b["), 20<<10), i)
	}
	c.started()
	if tail := c.tail(); len(tail) > 3*tailBytes || !strings.HasSuffix(tail, `\n63\n"`) || strings.Contains(tail, `\x1b`) {
		t.Errorf("%d bytes, ending in %q", len(tail), tail[max(0, len(tail)-40):])
	}
	c.close()
}

// Zeros of a whole memory take no room, and nothing else is lost.
func TestDigHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory")
	content := make([]byte, 5<<20)
	for _, page := range []int{0, 7, 8, 255, 256, 700, len(content)/4096 - 1} {
		content[page*4096+page%4096] = 1
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := digHoles(f); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the content changed (%v)", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*512 > 16*4096 {
		t.Errorf("%d bytes are allocated (%v)", st.Blocks*512, err)
	}
}

// A host that cannot answer page faults puts layers together in one file.
func TestFlatten(t *testing.T) {
	dir := t.TempDir()
	const pages = 64
	write := func(name string, fill byte, which ...int) layer {
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(pages * 4096); err != nil {
			t.Fatal(err)
		}
		for _, p := range which {
			if _, err := f.WriteAt(bytes.Repeat([]byte{fill}, 4096), int64(p)*4096); err != nil {
				t.Fatal(err)
			}
		}
		own, err := pager.PagesOf(f)
		if err != nil {
			t.Fatal(err)
		}
		return layer{path: path, pages: own.Encode()}
	}
	layers := []layer{write("base", 1, 0, 1, 2, 3, 63), write("second", 2, 1, 40), write("third", 3, 3, 63)}
	to := filepath.Join(dir, "flat")
	if err := flatten(t.Context(), layers, to, os.Getuid()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil || len(got) != pages*4096 {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	for page, want := range map[int]byte{0: 1, 1: 2, 2: 1, 3: 3, 40: 2, 63: 3, 5: 0} {
		if !bytes.Equal(got[page*4096:(page+1)*4096], bytes.Repeat([]byte{want}, 4096)) {
			t.Errorf("page %d is %d, want %d", page, got[page*4096], want)
		}
	}
	if err := flatten(t.Context(), append(layers, layer{path: filepath.Join(dir, "gone")}), to+"2", os.Getuid()); err == nil {
		t.Error("a layer that is not there")
	}
}
