package gvisor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroup is one machine's, in every hierarchy the host has: one directory with
// version 2, one per controller with version 1. It is made by gVisor's launcher;
// here it is read and removed.
type cgroup struct {
	unified bool
	path    string // below a hierarchy, "/hearth/ID"
}

func (d *Driver) cgroup(id string) cgroup {
	return cgroup{unified: unifiedCgroups(), path: filepath.Join(d.cfg.CgroupParent, id)}
}

func unifiedCgroups() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// dirs lists the directories that are there.
func (c cgroup) dirs() []string {
	if c.unified {
		if _, err := os.Stat(cgroupRoot + c.path); err != nil {
			return nil
		}
		return []string{cgroupRoot + c.path}
	}
	var found []string
	hierarchies, _ := os.ReadDir(cgroupRoot)
	for _, h := range hierarchies {
		if h.Type()&fs.ModeSymlink != 0 {
			continue // "cpu" for "cpu,cpuacct"
		}
		dir := filepath.Join(cgroupRoot, h.Name()) + c.path
		if _, err := os.Stat(dir); err == nil {
			found = append(found, dir)
		}
	}
	return found
}

// file names a control file: the controller counts for version 1 only.
func (c cgroup) file(controller, name string) string {
	if c.unified {
		return filepath.Join(cgroupRoot+c.path, name)
	}
	return filepath.Join(cgroupRoot, controller) + c.path + "/" + name
}

// pids lists the processes in it.
func (c cgroup) pids() []int {
	seen := map[int]bool{}
	var pids []int
	for _, dir := range c.dirs() {
		raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(raw)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 1 && !seen[pid] {
				seen[pid] = true
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// remove kills what is in it and removes it. It waits, until ctx ends, for the
// kernel to let go of the dead.
func (c cgroup) remove(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		for _, pid := range c.pids() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		var busy error
		for _, dir := range c.dirs() {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				busy = &fs.PathError{Op: "rmdir", Path: dir, Err: err}
			}
		}
		if busy == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), busy)
		case <-time.After(wait):
		}
	}
}

// forbidSwap keeps what is in a cgroup of version 2 out of the host's swap, where
// a guest could go on beyond its memory limit and its secrets would reach a disk.
// With version 1, swappiness 0 does that; without swap in the kernel there is no file.
func forbidSwap(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "memory.swap.max"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString("0")
	return errors.Join(err, f.Close())
}

// oomKills counts the processes the kernel killed at the memory limit.
func (c cgroup) oomKills() int64 {
	if c.unified {
		return readKey(c.file("memory", "memory.events"), "oom_kill")
	}
	return readKey(c.file("memory", "memory.oom_control"), "oom_kill")
}

// cpuTime is what the machine has used.
func (c cgroup) cpuTime() time.Duration {
	if c.unified {
		return time.Duration(readKey(c.file("cpu", "cpu.stat"), "usage_usec")) * time.Microsecond
	}
	return time.Duration(readNumber(c.file("cpuacct", "cpuacct.usage")))
}

// memory is what cannot be given back: the sandbox's own and the guest's pages,
// the overlay's and tmpfs's included, and not the page cache of shared images.
func (c cgroup) memory() int64 {
	stat := c.file("memory", "memory.stat")
	if c.unified {
		return readKey(stat, "anon") + readKey(stat, "shmem")
	}
	return readKey(stat, "rss") + readKey(stat, "shmem")
}

// readKey finds "key N" in a file of such lines; 0 when it is not there.
func readKey(path, key string) int64 {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		if name, value, _ := strings.Cut(lines.Text(), " "); name == key {
			n, _ := strconv.ParseInt(value, 10, 64)
			return n
		}
	}
	return 0
}

func readNumber(path string) int64 {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return n
}
