package qemu

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"hearth/internal/driver/microvm"
	"hearth/internal/driver/qemu/install"
	"hearth/internal/driver/qemu/jail"
	"hearth/internal/hearth"
)

const (
	// qemuMiB is the host's memory that a machine needs beyond its guest's; under
	// emulation the translated code comes on top.
	qemuMiB = 96
	codeMiB = 128

	// maxLayers is what QEMU's microvm has room for beside the other devices.
	maxLayers = 16
	lastBus   = 23

	sector = 512 // bytes, virtio's

	// Names of what QEMU is told to make, the same in every life of a machine.
	ramID     = "ram"
	limitsID  = "limits"
	stateFD   = "state" // getfd
	stateSet  = 1_000_000
	consoleID = "console"
)

// blueprint is all that a command line depends on. Descriptors are QEMU's
// numbers; 0 means that there is none.
type blueprint struct {
	ID          string
	Program     string
	Firmware    string // directory
	Accelerator Accelerator
	Resources   hearth.Resources
	QMP         int
	Guest       int // the channel's socket
	Console     int
	Layers      []int
	GuestImage  int
	Disk        int
	Tap         int
	MAC         string
	Template    int // memory file of a machine that is restored
	Kernel      string
	Initrd      string
	Init        string
	TSC         int
}

// argv is QEMU's command line. Devices are in a fixed order on fixed buses, so
// that a machine that is restored has each where it was.
func (b blueprint) argv() []string {
	list := []string{jail.ProcessName, "-name", b.ID}
	add := func(args ...string) { list = append(list, args...) }
	add("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S")
	add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	add("-L", b.Firmware, "-bios", b.Firmware+"/"+install.FirmwareFile)
	add("-machine", "microvm,pit=off,pic=off,rtc=on,acpi=on,auto-kernel-cmdline=off,suppress-vmdesc=on,mem-merge=off,dump-guest-core=off,memory-backend="+ramID)
	add("-global", "migration.send-configuration=off")
	add(b.processor()...)
	add("-m", strconv.Itoa(b.Resources.MemoryMiB)+"M", "-object", b.memory())
	for _, c := range []struct {
		id string
		fd int
	}{{"qmp", b.QMP}, {"guest", b.Guest}, {consoleID, b.Console}} {
		add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", c.id, c.fd))
	}
	add("-mon", "chardev=qmp,mode=control", "-serial", "chardev:"+consoleID)
	add(b.devices()...)
	if b.Template != 0 {
		return append(list, "-incoming", "defer")
	}
	add("-kernel", b.Kernel, "-initrd", b.Initrd, "-append", b.commandLine())
	return list
}

func (b blueprint) processor() []string {
	smp := []string{"-smp", strconv.Itoa(b.Resources.VCPUs)}
	if b.Accelerator == TCG {
		return append(smp, "-accel", fmt.Sprintf("tcg,tb-size=%d", codeMiB), "-cpu", "max")
	}
	return append(smp, "-accel", "kvm", "-cpu", "host,migratable=on")
}

// memory is anonymous, or a private mapping of the template's.
func (b blueprint) memory() string {
	if b.Template == 0 {
		return fmt.Sprintf("memory-backend-ram,id=%s,size=%dM,share=off,merge=off,dump=off", ramID, b.Resources.MemoryMiB)
	}
	return fmt.Sprintf("memory-backend-file,id=%s,size=%dM,mem-path=/proc/self/fd/%d,share=off,merge=off,dump=off",
		ramID, b.Resources.MemoryMiB, b.Template)
}

// devices attaches the disks in the order that package microvm describes, and
// what else a machine has, to one bus after the other.
func (b blueprint) devices() []string {
	var list []string
	bus := lastBus // the guest finds the last one first
	device := func(format string, a ...any) {
		list = append(list, "-device", fmt.Sprintf(format, a...)+fmt.Sprintf(",bus=virtio-mmio-bus.%d", bus))
		bus--
	}
	list = append(list, "-object", b.diskLimits())
	for i, fd := range b.disks() {
		writable := fd == b.Disk
		list = append(list, "-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, fd), "-blockdev", blockdev(i, fd, writable))
		options := ""
		if writable {
			options = fmt.Sprintf(",discard=on,write-cache=on,max-discard-sectors=%d,max-write-zeroes-sectors=%[1]d", jail.DiskDiscard/sector)
		}
		device("virtio-blk-device,drive=d%d%s", i, options)
	}
	if b.Tap != 0 {
		list = append(list, "-netdev", fmt.Sprintf("tap,id=net,fd=%d,vhost=off", b.Tap))
		device("virtio-net-device,netdev=net,mac=%s", b.MAC)
	}
	device("virtio-serial-device,max_ports=2")
	list = append(list, "-device", "virtserialport,chardev=guest,name="+microvm.PortName)
	list = append(list, "-object", "rng-builtin,id=rng")
	device("virtio-rng-device,rng=rng")
	// What the guest frees goes back to the host. Pages come back as the template
	// has them: so a guest that counts on zeros (init_on_free) must not report any,
	// and does not when it cannot say that it does.
	device("virtio-balloon-device,free-page-reporting=on,page-poison=off,deflate-on-oom=on")
	return list
}

// disks lists the descriptors of all disks; the writable one is the last.
func (b blueprint) disks() []int {
	list := slices.Clone(b.Layers)
	if b.GuestImage != 0 {
		list = append(list, b.GuestImage)
	}
	return append(list, b.Disk)
}

// blockdev describes a disk. The guest's flushes are not passed on: a machine
// does not outlive its host, and a checkpoint syncs what it copies.
func blockdev(n, fd int, writable bool) string {
	file := map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", fd), "locking": "off", "aio": "threads"}
	name := fmt.Sprintf("d%d", n)
	raw := map[string]any{"driver": "raw", "read-only": !writable, "file": file}
	file["cache"] = map[string]any{"no-flush": writable}
	raw["cache"] = file["cache"]
	if !writable {
		raw["node-name"] = name
		return toJSON(raw)
	}
	raw["discard"], file["discard"] = "unmap", "unmap"
	return toJSON(map[string]any{
		"driver": "throttle", "throttle-group": limitsID, "node-name": name, "read-only": false,
		"cache": file["cache"], "discard": "unmap", "file": raw,
	})
}

// diskLimits is the object that holds the writable disk's rates.
func (b blueprint) diskLimits() string {
	rates := microvm.RatesOf(b.Resources)
	const most = 1 + microvm.BurstSeconds // seconds' worth at once, after quiet
	return toJSON(map[string]any{"qom-type": "throttle-group", "id": limitsID, "limits": map[string]int64{
		"bps-total": rates.DiskBytes, "bps-total-max": most * rates.DiskBytes,
		"iops-total": rates.DiskOps, "iops-total-max": most * rates.DiskOps,
	}})
}

func toJSON(v map[string]any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps of strings, numbers and booleans
	}
	return string(text)
}

func (b blueprint) commandLine() string {
	c := microvm.CommandLine{
		Transport: microvm.Serial, Init: []string{b.Init}, Console: "ttyS0", Reboot: "t", TSC: b.TSC,
	}
	name := func(i int) string { return "vd" + string(rune('a'+i)) }
	next := 0
	for range b.Layers {
		c.Layers = append(c.Layers, name(next))
		next++
	}
	if b.GuestImage != 0 {
		c.Guest = name(next)
		next++
	}
	c.Disk = name(next)
	return c.String()
}

// memoryLimit is the control group's, in bytes. A template's pages that are
// nothing but zeros come into being when the first clone writes to them, and are
// charged to it; so a clone is given room for them beside its own.
func memoryLimit(r hearth.Resources, a Accelerator, restored bool) int64 {
	mib := int64(r.MemoryMiB) + qemuMiB
	if a == TCG {
		mib += codeMiB
	}
	if restored {
		mib += int64(r.MemoryMiB)
	}
	return mib << 20
}

// threadLimit holds QEMU's threads: one per processor of the guest, and those
// that wait for disks.
func threadLimit(r hearth.Resources) int { return r.VCPUs + 96 }
