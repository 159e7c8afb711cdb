package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/qemu/jail"
	"hearth/internal/driver/qemu/ram"
	"hearth/internal/hearth"
)

func plan() blueprint {
	return blueprint{
		ID: "m-1", Program: "/usr/bin/qemu", Firmware: "/fw", Accelerator: KVM,
		Resources: hearth.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 100},
		QMP:       5, Guest: 6, Console: 7, Layers: []int{8, 9}, GuestImage: 10, Disk: 11, Tap: 12, MAC: "02:00:00:00:00:01",
		Kernel: "/k/vmlinux", Initrd: "/k/initrd", Init: "/.guest/hearth-guest",
	}
}

// after returns the arguments that follow each occurrence of a flag.
func after(argv []string, flag string) []string {
	var list []string
	for i, a := range argv[:len(argv)-1] {
		if a == flag {
			list = append(list, argv[i+1])
		}
	}
	return list
}

func TestBootingCommandLine(t *testing.T) {
	argv := plan().argv()
	for flag, want := range map[string]string{
		"-name": "m-1", "-accel": "kvm", "-cpu": "host,migratable=on", "-smp": "2", "-m": "512M", "-kernel": "/k/vmlinux",
		"-object":  "memory-backend-ram,id=ram,size=512M,share=off,merge=off,dump=off",
		"-sandbox": "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	} {
		if got := after(argv, flag); len(got) == 0 || got[0] != want {
			t.Errorf("%s: %q, want %q", flag, got, want)
		}
	}
	line := after(argv, "-append")[0]
	for _, part := range []string{"vda,vdb", "vdc", "vdd", "console=ttyS0", "hearth-guest"} {
		if !strings.Contains(line, part) {
			t.Errorf("the kernel is not told %q: %s", part, line)
		}
	}
	if strings.Contains(line, "tsc_early_khz") || slices.Contains(argv, "-incoming") {
		t.Errorf("%q", argv)
	}
}

// A clone has neither kernel nor initramfs, and all else where it was.
func TestRestoringCommandLine(t *testing.T) {
	b := plan()
	boot := after(b.argv(), "-device")
	b.Template = 13
	argv := b.argv()
	if got := after(argv, "-device"); !slices.Equal(got, boot) {
		t.Errorf("devices %q, they were %q", got, boot)
	}
	if slices.Contains(argv, "-kernel") || slices.Contains(argv, "-append") || after(argv, "-incoming")[0] != "defer" {
		t.Errorf("%q", argv)
	}
	if m := after(argv, "-object")[0]; !strings.Contains(m, "mem-path=/proc/self/fd/13,share=off") {
		t.Errorf("memory %q", m)
	}
}

func TestDisksAreReadOnlyButTheLast(t *testing.T) {
	list := after(plan().argv(), "-blockdev")
	if len(list) != 4 {
		t.Fatalf("%d disks", len(list))
	}
	type node struct {
		Driver   string
		ReadOnly bool   `json:"read-only"`
		Name     string `json:"node-name"`
		Group    string `json:"throttle-group"`
		File     struct {
			Filename string
			Locking  string
		}
	}
	for i, text := range list {
		var disk node
		if i == 3 { // what the guest can write to, behind a limit
			var limited struct {
				node
				File node
			}
			if err := json.Unmarshal([]byte(text), &limited); err != nil {
				t.Fatal(err)
			}
			if limited.Driver != "throttle" || limited.Group != limitsID || limited.ReadOnly {
				t.Errorf("the writable disk is not limited: %s", text)
			}
			disk = limited.File
			disk.Name = limited.Name
		} else if err := json.Unmarshal([]byte(text), &disk); err != nil {
			t.Fatal(err)
		}
		if disk.Name != fmt.Sprintf("d%d", i) {
			t.Errorf("disk %d is node %q", i, disk.Name)
		}
		if disk.ReadOnly != (i < 3) || !strings.HasPrefix(disk.File.Filename, "/dev/fdset/") || disk.File.Locking != "off" {
			t.Errorf("disk %d: %s", i, text)
		}
	}
	for i, d := range after(plan().argv(), "-device") {
		if strings.HasPrefix(d, "virtio-blk") != (i < 4) {
			t.Errorf("device %d is %s: disks must come first", i, d)
		}
	}
}

// The filter of system calls tells the disk's holes from the memory's by size.
func TestHolesInTheDiskAreSmall(t *testing.T) {
	limits := fmt.Sprintf(",max-discard-sectors=%d,max-write-zeroes-sectors=%d", jail.DiskDiscard/512, jail.DiskDiscard/512)
	if d := after(plan().argv(), "-device")[3]; !strings.HasPrefix(d, "virtio-blk-device,drive=d3,") || !strings.Contains(d, limits) {
		t.Errorf("the writable disk is %s", d)
	}
}

// Whoever may list processes sees the command line: it names no path of the
// machine, no address, nothing that is secret.
func TestNothingOfTheSandboxIsInTheCommandLine(t *testing.T) {
	b := plan()
	b.Template = 13
	for _, text := range []string{strings.Join(plan().argv(), " "), strings.Join(b.argv(), " ")} {
		for _, no := range []string{"/run", "/var", "10.", "token", "ssl"} {
			if strings.Contains(text, no) {
				t.Errorf("the command line has %q: %s", no, text)
			}
		}
	}
}

func TestDifferenceNamesTheParts(t *testing.T) {
	here := key{QEMU: "7.2.22", Machine: "microvm", Accelerator: "kvm", CPU: "host-A-1-2-ff", Boot: "aa", Layout: 1}
	for part, other := range map[string]func(*key){
		"QEMU: it needs \"10.0.2\", here is \"7.2.22\"": func(k *key) { k.QEMU = "10.0.2" },
		"machine type":               func(k *key) { k.Machine = "q35" },
		"accelerator":                func(k *key) { k.Accelerator = "tcg" },
		"processor":                  func(k *key) { k.CPU = "host-B" },
		"guest kernel and initramfs": func(k *key) { k.Boot = "bb" },
		"layout of the machine":      func(k *key) { k.Layout = 2 },
	} {
		k := here
		other(&k)
		if got := here.difference(k.String()); !strings.HasPrefix(got, part) || strings.Contains(got, ";") {
			t.Errorf("%s: %q", part, got)
		}
	}
	if got := here.difference("another host"); got == "" {
		t.Error("no difference to nonsense")
	}
}

func noBoot(context.Context) (*microvm.Boot, error) { return nil, errors.New("no kernel") }

func TestConfigNamesTheField(t *testing.T) {
	for field, cfg := range map[string]Config{
		"root":          {Root: "relative"},
		"guest image":   {Root: "/run/q", Guest: "guest.erofs"},
		"firmware":      {Root: "/run/q", Firmware: "fw"},
		"accelerator":   {Root: "/run/q", Accelerator: "magic"},
		"init":          {Root: "/run/q", Init: "/a b"},
		"program":       {Root: "/run/q", Program: "qemu"},
		"cgroup parent": {Root: "/run/q", CgroupParent: "/a/../b"},
		"uid base":      {Root: "/run/q", UIDBase: 1},
	} {
		cfg.Boot = noBoot
		_, err := New(cfg)
		if hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestSpecsThatQEMUCannotRun(t *testing.T) {
	d, err := New(Config{Root: "/run/q", Boot: noBoot})
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "layer")
	raw := make([]byte, 4096)
	copy(raw[1024:], []byte{0xe2, 0xe1, 0xf5, 0xe0})
	if err := os.WriteFile(image, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	good := driver.Spec{ID: "m", Dir: t.TempDir(), Layers: []string{image}, Resources: hearth.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64}}
	if err := d.checkSpec(good); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*driver.Spec){
		"layers":           func(s *driver.Spec) { s.Layers = slices.Repeat(s.Layers, maxLayers+1) },
		"vcpus":            func(s *driver.Spec) { s.Resources.VCPUs = 65 },
		"tap":              func(s *driver.Spec) { s.Net.NetNS = "/run/netns/x" },
		"hardware address": func(s *driver.Spec) { s.Net = attachment(); s.Net.MAC = nil },
	} {
		s := good
		spoil(&s)
		if err := d.checkSpec(s); hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func attachment() driver.Attachment {
	a := driver.Attachment{NetNS: "/run/netns/x", Tap: "tap0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	if err := a.Guest.UnmarshalText([]byte("10.0.0.2/30")); err != nil {
		panic(err)
	}
	return a
}

// checkpoint writes what resolve and readManifest look at.
func checkpoint(t *testing.T, man manifest) *driver.Checkpoint {
	t.Helper()
	dir := t.TempDir()
	for _, name := range checkpointFiles() {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := json.Marshal(man)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, manifestFile), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return &driver.Checkpoint{Driver: Name, Key: man.Key, Dir: dir, Files: checkpointFiles()}
}

func TestLayeredCheckpointsNeedTheirBase(t *testing.T) {
	base := manifest{ID: "base", Fit: microvm.Fit{Key: "k"}}
	delta := manifest{ID: "delta", Base: "base", Fit: microvm.Fit{Key: "k"}}
	alone, layered := checkpoint(t, base), checkpoint(t, delta)
	if c, err := resolve(base, alone); err != nil || c.own || c.template.Dir != alone.Dir {
		t.Errorf("alone: %+v, %v", c, err)
	}
	layered.Base = alone
	if c, err := resolve(delta, layered); err != nil || !c.own || c.template.Dir != alone.Dir || c.dir != layered.Dir {
		t.Errorf("layered: %+v, %v", c, err)
	}
	for name, wrong := range map[string]*driver.Checkpoint{
		"none":        nil,
		"another":     checkpoint(t, manifest{ID: "other", Fit: microvm.Fit{Key: "k"}}),
		"another key": checkpoint(t, manifest{ID: "base", Fit: microvm.Fit{Key: "x"}}),
		"layered too": checkpoint(t, manifest{ID: "base", Base: "z", Fit: microvm.Fit{Key: "k"}}),
	} {
		layered.Base = wrong
		if _, err := resolve(delta, layered); hearth.KindOf(err) != hearth.FailedPrecondition {
			t.Errorf("%s: %v", name, err)
		}
	}
	layered.Base = &driver.Checkpoint{Dir: t.TempDir()}
	if _, err := resolve(delta, layered); err == nil {
		t.Error("an empty base was taken")
	}
}

func TestTemplatesAreFilledOnceAndDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := newTemplates(time.Minute, func() int64 { return 5 << 20 })
		kept := func() []string { // the timers of the list run beside the test
			list.mu.Lock()
			defer list.mu.Unlock()
			return slices.Collect(maps.Keys(list.list))
		}
		var filled atomic.Int32
		var files []*os.File
		fill := func(context.Context) (*os.File, error) {
			filled.Add(1)
			f, err := os.Open(os.DevNull)
			files = append(files, f)
			return f, err
		}
		a, err := list.acquire(t.Context(), "t", fill)
		if err != nil {
			t.Fatal(err)
		}
		b, err := list.acquire(t.Context(), "t", fill)
		if err != nil || a != b || filled.Load() != 1 {
			t.Fatalf("filled %d times, %v", filled.Load(), err)
		}
		list.release("t", a)
		time.Sleep(2 * time.Minute)
		if len(kept()) != 1 {
			t.Error("dropped while a start goes on")
		}
		list.release("t", b)
		time.Sleep(time.Second)
		if len(kept()) != 1 {
			t.Error("dropped at once")
		}
		time.Sleep(2 * time.Minute)
		if len(kept()) != 0 {
			t.Error("never dropped")
		}
		if _, err := files[0].Stat(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("its file is open: %v", err)
		}
	})
}

// A machine uses its template for as long as it lives, and what nobody uses makes
// room for what comes later: as many bytes as there are, the oldest first.
func TestUnusedTemplatesAreBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := newTemplates(time.Hour, func() int64 { return 5 << 20 })
		kept := func() string {
			list.mu.Lock()
			defer list.mu.Unlock()
			return strings.Join(slices.Sorted(maps.Keys(list.list)), " ")
		}
		use := func(id string, mib int) *template {
			e, err := list.acquire(t.Context(), id, func(context.Context) (*os.File, error) {
				f, err := hostproc.FixedMemory(id, 16<<20)
				if err == nil {
					_, err = f.Write(make([]byte, mib<<20))
				}
				return f, err
			})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		machine := make(chan struct{})
		list.lend("lent", use("lent", 4), machine)
		for _, step := range []struct {
			id   string
			mib  int
			want string
		}{
			{"a", 2, "a lent"}, {"b", 3, "a b lent"}, {"c", 1, "b c lent"}, // a made room
			{"b", 3, "b c lent"}, {"d", 2, "b d lent"}, // b was used since c was
			{"e", 9, "lent"}, // more than there is room for
		} {
			e := use(step.id, step.mib)
			time.Sleep(time.Second)
			list.release(step.id, e)
			if got := kept(); got != step.want {
				t.Errorf("after %s: %s are kept, want %s", step.id, got, step.want)
			}
		}
		time.Sleep(2 * time.Hour)
		if kept() != "lent" {
			t.Error("dropped under a machine")
		}
		close(machine)
		time.Sleep(time.Minute)
		if kept() != "lent" {
			t.Error("dropped with its machine, and not some time later")
		}
		time.Sleep(time.Hour)
		if kept() != "" {
			t.Error("never dropped")
		}
	})
}

func TestATemplateThatCannotBeFilled(t *testing.T) {
	list := newTemplates(time.Minute, idleRoom)
	broken := errors.New("broken")
	if _, err := list.acquire(t.Context(), "t", func(context.Context) (*os.File, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	e, err := list.acquire(t.Context(), "t", func(context.Context) (*os.File, error) { return os.Open(os.DevNull) })
	if err != nil {
		t.Fatalf("the failure was kept: %v", err)
	}
	list.release("t", e)
	list.forget("t", e)
}

func TestIndexIsBounded(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, indexFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(1<<40), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := readIndex(dir, 64*ram.PageSize); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("an index of a TiB: %v", err)
	}
}
