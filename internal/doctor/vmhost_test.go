package doctor

import (
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf8"
)

// files makes a host's file system.
func files(all ...map[string]string) fstest.MapFS {
	out := fstest.MapFS{}
	for _, some := range all {
		for name, content := range some {
			out[name] = &fstest.MapFile{Data: []byte(content)}
		}
	}
	return out
}

const vulnerable = "sys/devices/system/cpu/vulnerabilities/"

// goodHost is bare metal, set up as it should be.
func goodHost() map[string]string {
	return map[string]string{
		"dev/net/tun":                             "",
		"dev/userfaultfd":                         "",
		"proc/cpuinfo":                            "processor\t: 0\nmicrocode\t: 0xd0003e7\nflags\t\t: fpu vmx ept\n\nprocessor\t: 1\nmicrocode\t: 0x1\n",
		"proc/self/limits":                        "Limit                     Soft Limit           Hard Limit           Units\nMax open files            1024                 1048576              files\n",
		"proc/self/mountinfo":                     "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n30 22 8:2 / /var/lib rw - xfs /dev/sdb1 rw\n",
		"proc/swaps":                              "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/zram0                              partition\t1048572\t\t0\t\t100\n",
		"proc/sys/kernel/osrelease":               "6.1.0-18-amd64\n",
		"proc/sys/kernel/pid_max":                 "4194304\n",
		"proc/sys/net/netfilter/nf_conntrack_max": "1048576\n",
		"proc/sys/vm/max_map_count":               "262144\n",
		"proc/sys/vm/nr_hugepages":                "0\n",
		"sys/devices/system/cpu/smt/active":       "0\n",
		"sys/fs/cgroup/cgroup.controllers":        "cpuset cpu io memory hugetlb pids rdma misc\n",
		"sys/kernel/mm/ksm/run":                   "0\n",
		"sys/module/kvm_intel/parameters/ept":     "Y\n",
		"sys/module/kvm_intel/parameters/nested":  "N\n",
		vulnerable + "l1tf":                       "Not affected\n",
		vulnerable + "mds":                        "Mitigation: Clear CPU buffers; SMT disabled\n",
		vulnerable + "itlb_multihit":              "KVM: Mitigation: VMX disabled\n",
	}
}

// badHost has everything wrong that can be.
func badHost() map[string]string {
	return map[string]string{
		"proc/cpuinfo":                            "microcode\t: 0x1\nflags\t\t: fpu hypervisor svm\n",
		"proc/self/limits":                        "Max open files            1024                 4096                 files\n",
		"proc/self/mountinfo":                     "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:30 / /var rw - tmpfs tmpfs rw\n",
		"proc/swaps":                              "Filename\tType\tSize\tUsed\tPriority\n/dev/dm-1\tpartition\t1\t0\t-2\n/swapfile\tfile\t1\t0\t-3\n",
		"proc/sys/kernel/osrelease":               "4.19.0-gvisor",
		"proc/sys/kernel/pid_max":                 "32768",
		"proc/sys/net/netfilter/nf_conntrack_max": "65536",
		"proc/sys/vm/max_map_count":               "1000",
		"proc/sys/vm/nr_hugepages":                "512",
		"sys/devices/system/cpu/smt/active":       "1",
		"sys/fs/cgroup/cgroup.controllers":        "cpu io pids",
		"sys/kernel/mm/ksm/run":                   "1",
		"sys/module/kvm_amd/parameters/npt":       "0",
		"sys/module/kvm_amd/parameters/nested":    "1",
		vulnerable + "mds":                        "Vulnerable: Clear CPU buffers attempted, no microcode; SMT vulnerable",
		vulnerable + "old_microcode":              "Vulnerable",
		vulnerable + "taa":                        "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable",
	}
}

// garbage has nonsense in every file that some check reads.
func garbage() map[string]string {
	out := map[string]string{}
	for name := range goodHost() {
		out[name] = "\x00\xff ~~ \n - \n"
	}
	return out
}

// names of lines by verdict.
func by(lines []Line, s Status) string {
	var out []string
	for _, l := range lines {
		if l.Status == s {
			out = append(out, l.Name)
		}
	}
	return strings.Join(out, ", ")
}

func TestHostsOfMachines(t *testing.T) {
	noKVM := errors.New("there is no /dev/kvm")
	without := func(from map[string]string, names ...string) map[string]string {
		out := maps.Clone(from)
		for _, n := range names {
			delete(out, n)
		}
		return out
	}
	const all = "kvm, nested, nested guests, page tables, kernel for VMs, tap, userfaultfd, huge pages, console, " +
		"ksm, swap, smt, vulnerabilities, microcode, open files, process ids, mappings, conntrack, metadata, file system"
	const machinesOnly = "nested, nested guests, page tables, kernel for VMs, tap, userfaultfd, huge pages, console"
	for _, tc := range []struct {
		name           string
		fs             fstest.MapFS
		kvm            error
		exempt         []string
		pass, warn, na string
	}{
		{name: "good", fs: files(goodHost()), pass: all},
		{name: "bad", fs: files(badHost()), exempt: []string{"nonsense", "169.254.0.0/16"},
			pass: "kvm, console",
			warn: "nested, nested guests, page tables, kernel for VMs, tap, userfaultfd, huge pages, ksm, swap, smt, vulnerabilities, microcode, open files, process ids, mappings, conntrack, metadata, file system"},
		{name: "no KVM", fs: files(goodHost()), kvm: noKVM, warn: "kvm", na: machinesOnly,
			pass: "ksm, swap, smt, vulnerabilities, microcode, open files, process ids, mappings, conntrack, metadata, file system"},
		{name: "inside a virtual machine whose KVM does not run", kvm: errors.New("its virtual CPUs do not work"),
			fs:   files(goodHost(), map[string]string{"proc/cpuinfo": "flags : fpu hypervisor\nmicrocode : 0x1\n", "proc/sys/kernel/osrelease": "6.18.0"}),
			warn: "kvm", na: machinesOnly + ", microcode",
			pass: "ksm, swap, smt, vulnerabilities, open files, process ids, mappings, conntrack, metadata, file system"},
		{name: "newer kernel, few files", fs: files(without(goodHost(), "sys/kernel/mm/ksm/run", "sys/devices/system/cpu/smt/active", "proc/swaps",
			"proc/sys/net/netfilter/nf_conntrack_max", "sys/module/kvm_intel/parameters/ept", "proc/self/limits"),
			map[string]string{"proc/sys/kernel/osrelease": "6.12.1"}),
			pass: "kvm, nested, nested guests, tap, userfaultfd, huge pages, console, ksm, swap, vulnerabilities, microcode, process ids, mappings, metadata, file system",
			warn: "kernel for VMs", na: "page tables, smt, open files, conntrack"},
		{name: "garbage", fs: files(garbage()),
			pass: "kvm, nested, tap, userfaultfd, console, swap, metadata", na: "microcode",
			warn: "nested guests, page tables, kernel for VMs, huge pages, ksm, smt, vulnerabilities, open files, process ids, mappings, conntrack, file system"},
		{name: "an empty host", fs: files(), kvm: noKVM, na: machinesOnly + ", smt, microcode, open files, process ids, mappings, conntrack",
			pass: "ksm, swap, metadata", warn: "kvm, vulnerabilities, file system"},
	} {
		lines := vmHost(view{fs: tc.fs, data: "/var/lib/hearth", exempt: tc.exempt}, tc.kvm)
		if pass, warn, na := by(lines, Pass), by(lines, Warn), by(lines, NotApplicable); pass != tc.pass || warn != tc.warn || na != tc.na {
			t.Errorf("%s:\npass %q\nwant %q\nwarn %q\nwant %q\nn/a  %q\nwant %q", tc.name, pass, tc.pass, warn, tc.warn, na, tc.na)
		}
		for _, l := range lines {
			if (l.Status == Warn) != (l.Remedy != "") || l.Detail == "" || len(l.Name) > 16 || strings.ContainsAny(l.Detail, "\x00\n") || !utf8.ValidString(l.Detail) {
				t.Errorf("%s: %+v", tc.name, l)
			}
			if l.Status == Fail {
				t.Errorf("%s: %s keeps a server from starting", tc.name, l.Name)
			}
		}
	}
}

func TestCgroups(t *testing.T) {
	for _, tc := range []struct {
		name string
		fs   fstest.MapFS
		want Status
		text string
	}{
		{"version 2", files(goodHost()), Pass, "version 2"},
		{"version 2 without memory", files(badHost()), Fail, "without the memory controller"},
		{"version 1", files(map[string]string{"sys/fs/cgroup/cpu/tasks": "", "sys/fs/cgroup/memory/tasks": "", "sys/fs/cgroup/pids/tasks": ""}), Pass, "version 1"},
		{"version 1 without pids", files(map[string]string{"sys/fs/cgroup/cpu/tasks": "", "sys/fs/cgroup/memory/tasks": ""}), Fail, "the pids controller"},
		{"none", files(), Fail, "the cpu controller"},
		{"garbage", files(garbage()), Fail, "without the cpu controller"},
	} {
		if got := cgroups(view{fs: tc.fs}); got.Status != tc.want || !strings.Contains(got.Detail, tc.text) {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
}

func TestFileSystems(t *testing.T) {
	const mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n" +
		"2 1 8:2 / /data rw - btrfs /dev/b rw\n" +
		"3 2 8:3 / /data/in rw - fuse.weird x rw\n" +
		"4 3 0:9 / /data/in/ram rw - xfs /dev/c rw\n" +
		"5 4 0:9 / /data/in/ram rw master:1 - tmpfs t rw\n" +
		"6 1 0:8 / /net rw - nfs4 s:/ rw\n"
	for data, want := range map[string]struct {
		status Status
		text   string
	}{
		"/var/lib/hearth": {Pass, "ext4 at /"},
		"/data":           {Pass, "btrfs at /data"},
		"/database":       {Pass, "ext4 at /"},
		"/data/in/x":      {Warn, "has not been tried"},
		"/data/in/ram/x":  {Warn, "tmpfs"},
		"/net/x":          {Warn, "slow"},
	} {
		got := fileSystem(view{fs: files(map[string]string{"proc/self/mountinfo": mounts}), data: data})
		if got.Status != want.status || !strings.Contains(got.Detail, want.text) {
			t.Errorf("%s: %+v", data, got)
		}
	}
}

// TestThisHost runs the checks on the real files of whatever host this is.
func TestThisHost(t *testing.T) {
	for _, l := range vmHost(view{fs: os.DirFS("/"), data: t.TempDir()}, nil) {
		if l.Status == Fail || l.Detail == "" {
			t.Errorf("%+v", l)
		}
		t.Logf("%-5s %-16s %s", l.Status, l.Name, l.Detail)
	}
}
