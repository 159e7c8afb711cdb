package hostproc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CgroupRoot is where the host has its control groups.
const CgroupRoot = "/sys/fs/cgroup"

// Cgroup is one machine's, in every hierarchy the host has: one directory with
// version 2, one per controller with version 1.
type Cgroup struct {
	unified bool
	path    string // below a hierarchy, "/hearth/ID"
}

// CgroupAt names the group at path, which need not exist.
func CgroupAt(path string) Cgroup { return Cgroup{unified: UnifiedCgroups(), path: path} }

// UnifiedCgroups says whether the host has version 2.
func UnifiedCgroups() bool {
	var st unix.Statfs_t
	return unix.Statfs(CgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// Dirs lists the directories that are there.
func (c Cgroup) Dirs() []string {
	if c.unified {
		if _, err := os.Stat(CgroupRoot + c.path); err != nil {
			return nil
		}
		return []string{CgroupRoot + c.path}
	}
	var found []string
	hierarchies, _ := os.ReadDir(CgroupRoot)
	for _, h := range hierarchies {
		if h.Type()&fs.ModeSymlink != 0 {
			continue // "cpu" for "cpu,cpuacct"
		}
		dir := filepath.Join(CgroupRoot, h.Name()) + c.path
		if _, err := os.Stat(dir); err == nil {
			found = append(found, dir)
		}
	}
	return found
}

// file names a control file: the controller counts for version 1 only.
func (c Cgroup) file(controller, name string) string {
	if c.unified {
		return filepath.Join(CgroupRoot+c.path, name)
	}
	return filepath.Join(CgroupRoot, controller) + c.path + "/" + name
}

// PIDs lists the processes in it.
func (c Cgroup) PIDs() []int {
	seen := map[int]bool{}
	var pids []int
	for _, dir := range c.Dirs() {
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

// Remove kills what is in it and removes it. It waits, until ctx ends, for the
// kernel to let go of the dead.
func (c Cgroup) Remove(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		_ = c.Thaw() // or what is killed stays
		for _, pid := range c.PIDs() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		var busy error
		for _, dir := range c.Dirs() {
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

// RemoveParent removes a group that machines had theirs in. One in which another
// server of the host has machines stays, and so does one that is not there.
func (c Cgroup) RemoveParent() error {
	var errs []error
	for _, dir := range c.Dirs() {
		err := unix.Rmdir(dir)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return errors.Join(errs...)
}

// ForbidSwap keeps what is in a cgroup of version 2 out of the host's swap, where
// a guest could go on beyond its memory limit and its secrets would reach a disk.
// With version 1, swappiness 0 does that; without swap in the kernel there is no file.
func ForbidSwap(dir string) error {
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

// OOMKills counts the processes the kernel killed at the memory limit.
func (c Cgroup) OOMKills() int64 {
	if c.unified {
		return readKey(c.file("memory", "memory.events"), "oom_kill")
	}
	return readKey(c.file("memory", "memory.oom_control"), "oom_kill")
}

// CPUTime is what the machine has used.
func (c Cgroup) CPUTime() time.Duration {
	if c.unified {
		return time.Duration(readKey(c.file("cpu", "cpu.stat"), "usage_usec")) * time.Microsecond
	}
	return time.Duration(ReadNumber(c.file("cpuacct", "cpuacct.usage")))
}

// Memory is what cannot be given back, in bytes: anonymous pages, and pages of
// tmpfs and of memory files that a process of the group was the first to touch.
// The page cache of shared images is in neither.
func (c Cgroup) Memory() (anonymous, files int64) {
	stat := c.file("memory", "memory.stat")
	if c.unified {
		return readKey(stat, "anon"), readKey(stat, "shmem")
	}
	return readKey(stat, "rss"), readKey(stat, "shmem")
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

// ReadNumber reads a file that holds one number; 0 when it does not.
func ReadNumber(path string) int64 {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return n
}

// Limits of a group.
type Limits struct {
	Memory int64 // bytes
	CPUs   int   // how many a group may keep busy
	PIDs   int   // processes and threads
}

const cpuPeriod = 100_000 // microseconds

// Make makes the group, and its parents where they are missing. What is
// there already from a start cut short is taken over.
func (c Cgroup) Make(l Limits) error {
	if c.unified {
		return c.makeUnified(l)
	}
	settings := []struct{ controller, name, value string }{
		{"memory", "memory.limit_in_bytes", strconv.FormatInt(l.Memory, 10)},
		{"memory", "memory.swappiness", "0"},
		{"cpu", "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)},
		{"cpu", "cpu.cfs_quota_us", strconv.Itoa(l.CPUs * cpuPeriod)},
		{"cpuacct", "", ""},
		{"pids", "pids.max", strconv.Itoa(l.PIDs)},
		{"freezer", "", ""},
	}
	for _, s := range settings {
		dir := filepath.Dir(c.file(s.controller, "x"))
		if _, err := os.Stat(filepath.Join(CgroupRoot, s.controller)); errors.Is(err, fs.ErrNotExist) && s.name == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if s.name == "" {
			continue
		}
		if err := control(filepath.Join(dir, s.name), s.value); err != nil {
			return err
		}
	}
	return nil
}

func (c Cgroup) makeUnified(l Limits) error {
	dir := CgroupRoot
	for _, name := range strings.Split(strings.Trim(c.path, "/"), "/") {
		for _, controller := range []string{"+memory", "+cpu", "+pids"} {
			if err := control(filepath.Join(dir, "cgroup.subtree_control"), controller); err != nil {
				return err
			}
		}
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for name, value := range map[string]string{
		"memory.max":       strconv.FormatInt(l.Memory, 10),
		"memory.oom.group": "1",
		"cpu.max":          strconv.Itoa(l.CPUs*cpuPeriod) + " " + strconv.Itoa(cpuPeriod),
		"pids.max":         strconv.Itoa(l.PIDs),
	} {
		if err := control(filepath.Join(dir, name), value); err != nil {
			return err
		}
	}
	return ForbidSwap(dir)
}

// Add moves a process into the group.
func (c Cgroup) Add(pid int) error {
	dirs := c.Dirs()
	if len(dirs) == 0 {
		return &fs.PathError{Op: "open", Path: c.path, Err: fs.ErrNotExist}
	}
	for _, dir := range dirs {
		if err := control(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// control writes a control file that must be there.
func control(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return put(f, value)
}

// put writes a control file that is open. The kernel's word for one whose group was
// removed meanwhile is that there is no such device.
func put(f *os.File, value string) error {
	_, err := f.WriteString(value)
	if errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return errors.Join(err, f.Close())
}
