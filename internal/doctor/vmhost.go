package doctor

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The lines of this file score a host of virtual machines against what the
// makers of Firecracker ask of one in production. They read /proc, /sys and /dev
// and nothing else, and none of them keeps a server from starting.

// view is a host's file system: /proc, /sys and /dev are looked at.
type view struct {
	fs       fs.FS
	machines bool   // virtual machines run here
	data     string // the data directory; absolute
	exempt   []string
}

// notHere is the verdict of what matters to virtual machines alone.
const notHere = "no virtual machines run here"

// vmHost looks at a host as one of virtual machines; kvm says whether they run.
func vmHost(v view, kvm error) []Line {
	v.machines = kvm == nil
	lines := []Line{{"kvm", Pass, "/dev/kvm runs virtual CPUs", ""}}
	if kvm != nil {
		lines[0] = Line{"kvm", Warn, kvm.Error(), "use a host with hardware virtualization, turned on in its firmware; gVisor does without"}
	}
	for _, check := range []func(view) Line{
		nested, nestedGuests, pageTables, kernelForMachines, tapModule, faultHandling, hugePages, serial, // of machines alone
		sameMemory, swap, threads, vulnerabilities, microcode,
		openFiles, processes, mappings, conntrack, metadata, fileSystem,
	} {
		lines = append(lines, check(v))
	}
	return lines
}

// text reads a small file, without the space around its content.
func (v view) text(path string) (string, bool) {
	raw, err := fs.ReadFile(v.fs, path)
	const most = 1 << 20
	return strings.TrimSpace(string(raw[:min(len(raw), most)])), err == nil
}

// number reads a file that holds a number. It returns false when there is none.
func (v view) number(path string) (int64, bool, error) {
	text, there := v.text(path)
	if !there {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, true, fmt.Errorf("/%s says %.40q, which is no number", path, text)
	}
	return n, true, nil
}

// odd is the verdict on a file that cannot be understood.
func odd(name string, err error) Line {
	return Line{name, Warn, err.Error(), "look at that file; the kernel does not write such"}
}

// atLeast is a check of a limit in a file.
func (v view) atLeast(name, path string, least int64, remedy string) Line {
	n, there, err := v.number(path)
	switch {
	case err != nil:
		return odd(name, err)
	case !there:
		return Line{name, NotApplicable, "the kernel has no /" + path, ""}
	case n < least:
		return Line{name, Warn, fmt.Sprintf("%d, less than %d", n, least), remedy}
	}
	return Line{name, Pass, strconv.FormatInt(n, 10), ""}
}

// cpuinfo returns a field of the first processor.
func (v view) cpuinfo(field string) string {
	text, _ := v.text("proc/cpuinfo")
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(key) == field {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// isGuest reports whether the host is itself a virtual machine.
func (v view) isGuest() bool {
	return slices.Contains(strings.Fields(v.cpuinfo("flags")), "hypervisor")
}

func nested(v view) Line {
	switch {
	case !v.machines:
		return Line{"nested", NotApplicable, notHere, ""}
	case v.isGuest():
		return Line{"nested", Warn, "this host is itself a virtual machine: slower, and only as strong as what it runs in", "use bare metal in production"}
	}
	return Line{"nested", Pass, "this host is no virtual machine", ""}
}

// kvmParameter reads a setting of the processor's KVM module.
func (v view) kvmParameter(names ...string) (path, value string) {
	for _, n := range names {
		path := "sys/module/" + n
		if value, there := v.text(path); there {
			return "/" + path, value
		}
	}
	return "", ""
}

func nestedGuests(v view) Line {
	const name = "nested guests"
	path, value := v.kvmParameter("kvm_intel/parameters/nested", "kvm_amd/parameters/nested")
	switch {
	case !v.machines:
		return Line{name, NotApplicable, notHere, ""}
	case value == "" || value == "N" || value == "0":
		return Line{name, Pass, "guests cannot run virtual machines of their own", ""}
	case value == "Y" || value == "1":
		module, _, _ := strings.Cut(strings.TrimPrefix(path, "/sys/module/"), "/")
		return Line{name, Warn, "KVM lets guests run virtual machines of their own, which is more of it to attack", "load " + module + " with nested=0"}
	}
	return odd(name, fmt.Errorf("%s says %.40q", path, value))
}

func pageTables(v view) Line {
	const name = "page tables"
	path, value := v.kvmParameter("kvm_intel/parameters/ept", "kvm_amd/parameters/npt")
	switch {
	case !v.machines:
		return Line{name, NotApplicable, notHere, ""}
	case value == "":
		return Line{name, NotApplicable, "KVM does not say whether the processor translates guests' addresses", ""}
	case value == "Y" || value == "1":
		return Line{name, Pass, "the processor translates guests' addresses", ""}
	case value == "N" || value == "0":
		return Line{name, Warn, "the processor does not translate guests' addresses: guests are slow", "turn EPT or NPT on in the firmware, or use a newer processor"}
	}
	return odd(name, fmt.Errorf("%s says %.40q", path, value))
}

func kernelForMachines(v view) Line {
	const name = "kernel for VMs"
	release, there := v.text("proc/sys/kernel/osrelease")
	major, minor := version(release)
	switch {
	case !v.machines:
		return Line{name, NotApplicable, notHere, ""}
	case !there || major == 0:
		return odd(name, fmt.Errorf("/proc/sys/kernel/osrelease says %.40q", release))
	case major == 5 && minor == 10 || major == 6 && minor == 1:
		return Line{name, Pass, fmt.Sprintf("%d.%d is one that Firecracker is tested on", major, minor), ""}
	case major < 5 || major == 5 && minor < 10:
		return Line{name, Warn, fmt.Sprintf("%d.%d is older than any that Firecracker supports", major, minor), "use 5.10 or 6.1"}
	}
	return Line{name, Warn, fmt.Sprintf("Firecracker is tested on 5.10 and 6.1; this is %d.%d", major, minor), "use 6.1 if you want what its makers run"}
}

func tapModule(v view) Line {
	_, device := fs.Stat(v.fs, "dev/net/tun")
	switch {
	case !v.machines:
		return Line{"tap", NotApplicable, notHere, ""}
	case device != nil:
		return Line{"tap", Warn, "there is no /dev/net/tun", "modprobe tun"}
	}
	return Line{"tap", Pass, "/dev/net/tun is there", ""}
}

func faultHandling(v view) Line {
	const name = "userfaultfd"
	_, device := fs.Stat(v.fs, "dev/userfaultfd")
	_, setting := v.text("proc/sys/vm/unprivileged_userfaultfd")
	switch {
	case !v.machines:
		return Line{name, NotApplicable, notHere, ""}
	case device != nil && !setting:
		return Line{name, Warn, "the kernel has none: snapshots cannot be paged in on demand", "use a kernel built with CONFIG_USERFAULTFD"}
	}
	return Line{name, Pass, "memory can be paged in on demand", ""}
}

func hugePages(v view) Line {
	const name = "huge pages"
	n, there, err := v.number("proc/sys/vm/nr_hugepages")
	switch {
	case !v.machines:
		return Line{name, NotApplicable, notHere, ""}
	case err != nil:
		return odd(name, err)
	case !there || n == 0:
		return Line{name, Pass, "none are set aside, and none are needed", ""}
	}
	return Line{name, Warn, fmt.Sprintf("%d are set aside; Hearth does not use them, and nobody else can", n), "sysctl -w vm.nr_hugepages=0"}
}

// serial is no question of the host: what a guest writes to its console would fill
// the host's memory or disk if the drivers kept it.
func serial(v view) Line {
	if !v.machines {
		return Line{"console", NotApplicable, notHere, ""}
	}
	return Line{"console", Pass, "of what a guest writes there, only the end is kept", ""}
}

func sameMemory(v view) Line {
	n, there, err := v.number("sys/kernel/mm/ksm/run")
	switch {
	case err != nil:
		return odd("ksm", err)
	case there && n == 1:
		return Line{"ksm", Warn, "pages of the same content are merged, which tells one sandbox of another's memory", "echo 2 > /sys/kernel/mm/ksm/run"}
	}
	return Line{"ksm", Pass, "pages of the same content are not merged", ""}
}

func swap(v view) Line {
	text, _ := v.text("proc/swaps")
	var disks []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 && strings.HasPrefix(f[0], "/") && !strings.HasPrefix(f[0], "/dev/zram") {
			disks = append(disks, f[0])
		}
	}
	if len(disks) > 0 {
		return Line{"swap", Warn, "sandboxes' memory may be written to " + strings.Join(disks, ", "), "swapoff -a; zram is no harm"}
	}
	return Line{"swap", Pass, "sandboxes' memory stays off the disk", ""}
}

func threads(v view) Line {
	n, there, err := v.number("sys/devices/system/cpu/smt/active")
	switch {
	case err != nil:
		return odd("smt", err)
	case !there:
		return Line{"smt", NotApplicable, "the kernel does not say", ""}
	case n != 0:
		return Line{"smt", Warn, "two sandboxes may run on one core at once, and measure each other", "echo off > /sys/devices/system/cpu/smt/control"}
	}
	return Line{"smt", Pass, "a core runs one thread", ""}
}

func vulnerabilities(v view) Line {
	const name, dir = "vulnerabilities", "sys/devices/system/cpu/vulnerabilities"
	entries, err := fs.ReadDir(v.fs, dir)
	if err != nil || len(entries) == 0 {
		return Line{name, Warn, "the kernel says nothing of the processor's", "use a newer kernel"}
	}
	var open []string
	for _, e := range entries {
		state, there := v.text(dir + "/" + e.Name())
		lower := strings.ToLower(state)
		known := strings.HasPrefix(state, "Not affected") || strings.HasPrefix(state, "Mitigation") || strings.HasPrefix(state, "KVM: Mitigation")
		if !there || !known || strings.Contains(lower, "smt vulnerable") {
			open = append(open, fmt.Sprintf("%s (%.60q)", e.Name(), cmp.Or(state, "it says nothing")))
		}
	}
	if len(open) > 0 {
		return Line{name, Warn, strings.Join(open, ", "), "update kernel and microcode, and take mitigations=off off the kernel's command line; where it says SMT, turn that off"}
	}
	return Line{name, Pass, fmt.Sprintf("%d are known to the kernel, none is open", len(entries)), ""}
}

func microcode(v view) Line {
	revision := v.cpuinfo("microcode")
	old, _ := v.text("sys/devices/system/cpu/vulnerabilities/old_microcode")
	switch {
	case strings.HasPrefix(old, "Vulnerable"):
		return Line{"microcode", Warn, "revision " + revision + " is older than the kernel knows to be safe", "install intel-microcode or amd64-microcode, and restart"}
	case v.isGuest():
		return Line{"microcode", NotApplicable, "what this machine runs in has it", ""}
	case revision == "":
		return Line{"microcode", NotApplicable, "the kernel does not say", ""}
	}
	return Line{"microcode", Pass, "revision " + revision, ""}
}

// Limits: a sandbox needs some dozens of descriptors, processes and mappings, and
// a host has hundreds of sandboxes.
const (
	minOpenFiles = 65536
	minPIDs      = 65536
	minMappings  = 65530
	minTracked   = 262144
)

func openFiles(v view) Line {
	const name, remedy = "open files", "set LimitNOFILE=1048576 in the service's unit"
	text, there := v.text("proc/self/limits")
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 {
			continue
		}
		hard, err := strconv.ParseInt(fields[1], 10, 64) // Go raises the soft limit to it
		switch {
		case fields[1] == "unlimited":
			return Line{name, Pass, "unlimited", ""}
		case err != nil:
			return odd(name, fmt.Errorf("/proc/self/limits says %.40q", fields[1]))
		case hard < minOpenFiles:
			return Line{name, Warn, fmt.Sprintf("%d, less than %d", hard, minOpenFiles), remedy}
		}
		return Line{name, Pass, fields[1], ""}
	}
	if there {
		return odd(name, errors.New("/proc/self/limits does not say"))
	}
	return Line{name, NotApplicable, "the kernel does not say", ""}
}

func processes(v view) Line {
	return v.atLeast("process ids", "proc/sys/kernel/pid_max", minPIDs, "sysctl -w kernel.pid_max=4194304")
}

func mappings(v view) Line {
	return v.atLeast("mappings", "proc/sys/vm/max_map_count", minMappings, "sysctl -w vm.max_map_count=262144")
}

func conntrack(v view) Line {
	return v.atLeast("conntrack", "proc/sys/net/netfilter/nf_conntrack_max", minTracked,
		"sysctl -w net.netfilter.nf_conntrack_max=1048576; one sandbox may track 4096 connections")
}

// metadata looks for holes in what sandboxes are always denied.
func metadata(v view) Line {
	for _, e := range v.exempt {
		p, err := netip.ParsePrefix(e)
		if err != nil {
			continue // the configuration is refused elsewhere
		}
		for _, a := range []string{"169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192"} {
			if p.Contains(netip.MustParseAddr(a)) {
				return Line{"metadata", Warn, fmt.Sprintf("network.exempt has %s: sandboxes reach the metadata service at %s", e, a), "take it out, or make it smaller"}
			}
		}
	}
	return Line{"metadata", Pass, "sandboxes do not reach clouds' metadata services", ""}
}

// fileSystem looks at what the data directory is on.
func fileSystem(v view) Line {
	const name = "file system"
	text, _ := v.text("proc/self/mountinfo")
	at, kind := "", ""
	for lines := bufio.NewScanner(bytes.NewReader([]byte(text))); lines.Scan(); {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(rest) < 1 {
			continue
		}
		if within(v.data, fields[4]) && len(fields[4]) >= len(at) { // a later mount covers an earlier one
			at, kind = fields[4], rest[0]
		}
	}
	switch kind {
	case "":
		return odd(name, fmt.Errorf("/proc/self/mountinfo does not say what %s is on", v.data))
	case "xfs", "btrfs", "bcachefs":
		return Line{name, Pass, kind + " at " + at + ": copies of snapshots can share their blocks", ""}
	case "ext4", "ext3", "zfs", "f2fs":
		return Line{name, Pass, kind + " at " + at + ": copies of snapshots are written in full", ""}
	case "tmpfs", "ramfs":
		return Line{name, Warn, kind + " at " + at + ": everything is lost at a restart, and takes memory", "choose a directory on a disk with --data"}
	case "overlay", "nfs", "nfs4", "cifs", "9p", "virtiofs":
		return Line{name, Warn, kind + " at " + at + " is slow, or lacks what snapshots need", "choose a directory on a local xfs or ext4 with --data"}
	}
	return Line{name, Warn, kind + " at " + at + " has not been tried", "choose a directory on a local xfs or ext4 with --data"}
}

// within reports whether path is at or below dir.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
