package gvisor

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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
	id, err := driver.LayerID(old)
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
		if id, err := driver.LayerID(path); err == nil {
			t.Errorf("%d zero bytes: %s", size, id)
		}
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

func TestStateIsPlainData(t *testing.T) {
	self, err := newState(os.Getpid(), driver.Spec{Layers: []string{"/l"}}, origin{key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(self)
	if err != nil {
		t.Fatal(err)
	}
	back, err := decodeState(raw)
	if err != nil || !cmp.Equal(self.Process, back.Process) || !strings.Contains(string(raw), `"exe_inode"`) {
		t.Errorf("state %+v became %s, %+v, %v", self, raw, back, err)
	}
}
