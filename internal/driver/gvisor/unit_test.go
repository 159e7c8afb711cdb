package gvisor

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/boot/filter"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// The version in a checkpoint's key must be the one that is compiled in.
func TestVersionIsThePinnedModules(t *testing.T) {
	raw, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), "gvisor.dev/gvisor "+gvisorVersion) {
		t.Errorf("go.mod does not pin gVisor %s; change gvisorVersion, which makes old checkpoints useless", gvisorVersion)
	}
	if strings.Contains(string(raw), "gvisor.dev/gvisor =>") {
		t.Error("gVisor is replaced: count sentryRevision up when its checkpoints change, and drop this check")
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

func TestUIDRangesAreNeverShared(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "uids")
	lives := []*uidRanges{{dir: dir, base: 1_000_000}, {dir: dir, base: 1_000_000}} // two processes
	var mu sync.Mutex
	owners := map[uint32]string{}
	var all sync.WaitGroup
	for i := range 40 {
		id := "m-" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		all.Go(func() {
			uid, err := lives[i%2].take(id)
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
	if _, err := lives[0].take("m-aa"); hearth.KindOf(err) != hearth.AlreadyExists {
		t.Errorf("a second range for one machine: %v", err)
	}
	for _, id := range owners {
		if err := lives[1].free(id); err != nil {
			t.Error(err)
		}
		if err := lives[1].free(id); err != nil {
			t.Errorf("second free: %v", err)
		}
	}
	uid, err := lives[0].take("next")
	if err != nil || uid != 1_000_000 {
		t.Errorf("after all were freed: %d, %v", uid, err)
	}
}

func TestUIDRangesEnd(t *testing.T) {
	u := &uidRanges{dir: t.TempDir(), base: maxUID - 2*rangeSize}
	for _, id := range []string{"a", "b"} {
		if _, err := u.take(id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := u.take("c"); hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Errorf("third of two ranges: %v", err)
	}
}

func TestConfigNamesTheField(t *testing.T) {
	for field, cfg := range map[string]Config{
		"root":          {Root: "relative"},
		"longer than":   {Root: "/" + strings.Repeat("r", 60)},
		"guest image":   {Root: "/run/g", Guest: "guest.erofs"},
		"cgroup parent": {Root: "/run/g", CgroupParent: "/a/../b"},
		"uid base":      {Root: "/run/g", UIDBase: 1},
	} {
		_, err := New(cfg)
		if hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// Nothing may be mounted from the host but images, or a file server would run
// beside every sandbox; and writes must be bounded everywhere.
func TestSpecIsBoundedAndWithoutHostFiles(t *testing.T) {
	d, err := New(Config{Root: "/run/g", Guest: "/g.erofs"})
	if err != nil {
		t.Fatal(err)
	}
	spec := d.ociSpec(driver.Spec{
		ID: "m", Dir: "/d", Layers: []string{"/l.erofs"}, Resources: hearth.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024},
	}, "/g.erofs", 1_065_536)
	for _, m := range spec.Mounts {
		switch m.Type {
		case "proc", "sysfs", "erofs":
		case "tmpfs":
			if !strings.Contains(strings.Join(m.Options, ","), "size=") {
				t.Errorf("%s has no size", m.Destination)
			}
		default:
			t.Errorf("mount %s is of type %s", m.Destination, m.Type)
		}
	}
	if got := spec.Annotations["dev.gvisor.spec.rootfs.options"]; got != "size=768m" {
		t.Errorf("root overlay: %s", got)
	}
	if m := spec.Linux.UIDMappings; len(m) != 1 || m[0].HostID != 1_065_536 || m[0].Size != rangeSize || !cmp.Equal(m, spec.Linux.GIDMappings) {
		t.Errorf("users %+v, groups %+v", m, spec.Linux.GIDMappings)
	}
	if memoryLimit(hearth.Resources{MemoryMiB: 512, DiskMiB: 1024}) != (512+1024+sentryMiB)<<20 {
		t.Error("memory limit")
	}
}

func TestCheckpointMustMatch(t *testing.T) {
	dir := t.TempDir()
	d, err := New(Config{Root: "/run/g", Guest: filepath.Join(dir, "now.erofs")})
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(dir, "old.erofs")
	image := make([]byte, 4096)
	copy(image[1024:], []byte{0xe2, 0xe1, 0xf5, 0xe0})
	if err := os.WriteFile(old, image, 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := imageID(old)
	if err != nil {
		t.Fatal(err)
	}
	spec := driver.Spec{Layers: []string{"/l"}, Resources: hearth.Resources{MemoryMiB: 64, DiskMiB: 64}}
	good := manifest{Key: "k", Layer: "l", Guest: "old.erofs", GuestID: id, DiskMiB: 64, Memory: 64}
	guest, err := d.checkMatch(good, spec, "k", "l")
	if err != nil || guest != old {
		t.Fatalf("a checkpoint of an older guest image: %q, %v", guest, err)
	}
	for name, spoil := range map[string]func(*manifest){
		"key": func(m *manifest) { m.Key = "x" }, "layer": func(m *manifest) { m.Layer = "x" },
		"disk": func(m *manifest) { m.DiskMiB = 1 }, "memory": func(m *manifest) { m.Memory = 1 },
		"network": func(m *manifest) { m.Network = true }, "guest id": func(m *manifest) { m.GuestID = "x" },
		"guest gone": func(m *manifest) { m.Guest = "gone.erofs" }, "no guest": func(m *manifest) { m.Guest = "" },
		"guest path": func(m *manifest) { m.Guest = "../old.erofs" },
	} {
		man := good
		spoil(&man)
		if _, err := d.checkMatch(man, spec, "k", "l"); hearth.KindOf(err) != hearth.FailedPrecondition {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestImageIDRefusesWhatIsNoImage(t *testing.T) {
	for _, size := range []int{0, 1100, 4096} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, err := imageID(path); err == nil {
			t.Errorf("%d zero bytes: %s", size, id)
		}
	}
}

// A process number that was given to another process is not our machine.
func TestReusedPIDIsNotOurs(t *testing.T) {
	self, err := newState(os.Getpid(), driver.Spec{Layers: []string{"/l"}}, origin{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := self.openProcess()
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	for name, spoil := range map[string]func(*machineState){
		"start": func(s *machineState) { s.Start++ }, "inode": func(s *machineState) { s.ExeInode++ },
		"device": func(s *machineState) { s.ExeDev++ }, "pid": func(s *machineState) { s.PID = 1 << 22 },
	} {
		s := self
		spoil(&s)
		if f, err := s.openProcess(); err == nil {
			_ = f.Close()
			t.Errorf("another %s was taken for ours", name)
		}
	}
	raw, err := json.Marshal(self)
	if err != nil {
		t.Fatal(err)
	}
	back, err := decodeState(raw)
	if err != nil || !cmp.Equal(self.Start, back.Start) {
		t.Errorf("state %+v became %+v, %v", self, back, err)
	}
}

func TestPrecompiledProgramsAreFound(t *testing.T) {
	if !Precompiled() {
		t.Skip("this build carries no seccomp programs: run seccompgen")
	}
	if err := installPrograms(); err != nil {
		t.Fatal(err)
	}
	for _, name := range filter.ListPrecompiled() {
		if strings.Contains(name, `Platform="systrap"`) && strings.Contains(name, "HostFilesystem=true") && strings.Contains(name, "CgoEnabled=false") {
			return
		}
	}
	t.Errorf("no program for a sandbox of ours among %d", len(filter.ListPrecompiled()))
}

func TestConsoleCannotGrow(t *testing.T) {
	c, err := newConsole(true)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if n, err := c.stderr.Write(make([]byte, 2*consoleBytes)); err == nil || n > consoleBytes {
		t.Errorf("wrote %d bytes: %v", n, err)
	}
	if _, err := c.stderr.WriteAt([]byte("end"), 0); err != nil {
		t.Fatal(err)
	}
	if got := c.tail(); !strings.Contains(got, "end") {
		t.Errorf("tail %q", got)
	}
}

func TestForbidSwap(t *testing.T) {
	dir := t.TempDir()
	if err := forbidSwap(dir); err != nil {
		t.Errorf("a kernel without swap: %v", err)
	}
	file := filepath.Join(dir, "memory.swap.max")
	if err := os.WriteFile(file, []byte("max"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := forbidSwap(dir); err != nil {
		t.Error(err)
	}
	if raw, err := os.ReadFile(file); err != nil || string(raw) != "0ax" { // a cgroup file takes whole values
		t.Errorf("limit of swap is %q, %v", raw, err)
	}
}

func TestFullDiskIsTold(t *testing.T) {
	far := hearth.Wrap(hearth.Internal, errors.New("closing state file failed: no space left on device"), "checkpoint failed")
	for _, err := range []error{far, &fs.PathError{Op: "write", Path: "x", Err: unix.ENOSPC}} {
		if got := diskFull("m", err); hearth.KindOf(got) != hearth.ResourceExhausted {
			t.Errorf("%v became %v", err, got)
		}
	}
	if other := errors.New("refused"); diskFull("m", other) != other {
		t.Error("another error changed")
	}
}
