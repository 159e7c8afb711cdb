package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

type jail struct {
	id, exec, base, netns, parent, root string
	uid, gid, cgroupVersion             int
	cgroups, limits                     list
	newPIDs                             bool
	rest                                []string
}

var jailID = regexp.MustCompile(`^[a-zA-Z0-9-]{1,64}$`)

// jailer is the jailer's main function: it makes the jail, starts the monitor in
// it, and ends.
func jailer(args []string) error {
	var j jail
	set := flag.NewFlagSet("jailer", flag.ContinueOnError)
	show := set.Bool("version", false, "")
	set.StringVar(&j.id, "id", "", "")
	set.StringVar(&j.exec, "exec-file", "", "")
	set.StringVar(&j.base, "chroot-base-dir", "/srv/jailer", "")
	set.StringVar(&j.netns, "netns", "", "")
	set.StringVar(&j.parent, "parent-cgroup", "", "")
	set.IntVar(&j.uid, "uid", -1, "")
	set.IntVar(&j.gid, "gid", -1, "")
	set.IntVar(&j.cgroupVersion, "cgroup-version", 1, "")
	set.Var(&j.cgroups, "cgroup", "")
	set.Var(&j.limits, "resource-limit", "")
	set.BoolVar(&j.newPIDs, "new-pid-ns", false, "")
	if err := set.Parse(args); err != nil {
		return usageError{err}
	}
	if *show {
		fmt.Printf("Jailer v%s\n", version)
		return nil
	}
	j.rest = set.Args()
	if err := j.check(); err != nil {
		return usageError{err}
	}
	if err := j.furnish(); err != nil {
		return err
	}
	if err := j.limit(); err != nil {
		return err
	}
	return j.start()
}

func (j *jail) check() error {
	name := filepath.Base(j.exec)
	info, err := os.Stat(j.exec)
	switch {
	case !jailID.MatchString(j.id):
		return fmt.Errorf("invalid id %q", j.id)
	case err != nil:
		return fmt.Errorf("exec file: %w", err)
	case !info.Mode().IsRegular():
		return errors.New("exec file is no regular file")
	case !strings.Contains(name, "firecracker"):
		return fmt.Errorf("exec file %q does not have firecracker in its name", name)
	case j.uid < 0 || j.gid < 0:
		return errors.New("uid and gid are required")
	case j.cgroupVersion != 1 && j.cgroupVersion != 2:
		return fmt.Errorf("cgroup version %d", j.cgroupVersion)
	case !j.newPIDs:
		return errors.New("this jailer only knows --new-pid-ns")
	case strings.HasPrefix(j.parent, "/") || strings.Contains(j.parent, ".."):
		return fmt.Errorf("parent cgroup %q", j.parent)
	}
	if j.parent == "" {
		j.parent = name
	}
	j.root = filepath.Join(j.base, name, j.id, "root")
	return nil
}

// furnish makes the directories, the devices and the copy of the program.
func (j *jail) furnish() error {
	if err := os.MkdirAll(j.root, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{"", "dev", "dev/net", "run"} {
		dir = filepath.Join(j.root, dir)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, j.uid, j.gid)); err != nil {
			return err
		}
	}
	for name, number := range map[string]uint64{
		"dev/kvm": unix.Mkdev(10, 232), "dev/net/tun": unix.Mkdev(10, 200),
		"dev/urandom": unix.Mkdev(1, 9), "dev/userfaultfd": userfaultDevice(),
	} {
		path := filepath.Join(j.root, name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(number)); err != nil {
			return fmt.Errorf("mknod %s: %w", name, err)
		}
		if err := os.Chown(path, j.uid, j.gid); err != nil {
			return err
		}
	}
	name := filepath.Base(j.exec)
	if err := copyFile(j.exec, filepath.Join(j.root, name), 0o755); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	err = copyFile(filepath.Join(filepath.Dir(self), scriptName), filepath.Join(j.root, scriptName), 0o644)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func userfaultDevice() uint64 {
	var st unix.Stat_t
	if unix.Stat("/dev/userfaultfd", &st) != nil {
		return unix.Mkdev(1, 3) // the null device: no userfaultfd here
	}
	return st.Rdev
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// limit joins control groups and sets resource limits.
func (j *jail) limit() error {
	for _, l := range j.limits {
		name, value, _ := strings.Cut(l, "=")
		n, err := strconv.ParseUint(value, 10, 64)
		which, known := map[string]int{"fsize": unix.RLIMIT_FSIZE, "no-file": unix.RLIMIT_NOFILE}[name]
		if err != nil || !known {
			return usageError{fmt.Errorf("resource limit %q", l)}
		}
		if err := unix.Setrlimit(which, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return err
		}
	}
	var joined []string
	for _, c := range j.cgroups {
		dir, err := j.setCgroup(c)
		if err != nil {
			return err
		}
		if !slices.Contains(joined, dir) {
			joined = append(joined, dir)
		}
	}
	for _, dir := range joined {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			return err
		}
	}
	return nil
}

// setCgroup writes one setting, "file=value", into the control group it is for,
// which is made when it is not there.
func (j *jail) setCgroup(setting string) (string, error) {
	file, value, ok := strings.Cut(setting, "=")
	controller, _, dotted := strings.Cut(file, ".")
	if !ok || !dotted || value == "" || strings.Contains(file, "/") {
		return "", usageError{fmt.Errorf("cgroup %q", setting)}
	}
	mount, err := cgroupMount(j.cgroupVersion, controller)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(mount, j.parent, j.id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if j.cgroupVersion == 2 {
		for _, above := range []string{mount, filepath.Join(mount, j.parent)} {
			if err := os.WriteFile(filepath.Join(above, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
				return "", err
			}
		}
	}
	return dir, os.WriteFile(filepath.Join(dir, file), []byte(value), 0)
}

// cgroupMount finds where a controller is mounted.
func cgroupMount(version int, controller string) (string, error) {
	f, err := os.Open("/proc/mounts")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) < 4:
		case version == 2 && fields[2] == "cgroup2":
			return fields[1], nil
		case version == 1 && fields[2] == "cgroup" && slices.Contains(strings.Split(fields[3], ","), controller):
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("no hierarchy has controller %q", controller)
}

// start starts the monitor in the jail, writes its process ID where the real
// jailer does, and leaves it alone.
func (j *jail) start() error {
	runtime.LockOSThread()
	if j.netns != "" {
		ns, err := os.Open(j.netns)
		if err != nil {
			return err
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
	}
	name := filepath.Base(j.exec)
	cmd := &exec.Cmd{
		Path: "/" + name, Dir: "/", Env: []string{},
		Args:   append([]string{name, "--id", j.id, "--start-time-us", "1", "--start-time-cpu-us", "1", "--parent-cpu-time-us", "1"}, j.rest...),
		Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Setsid: true, Chroot: j.root, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
			Credential: &syscall.Credential{Uid: uint32(j.uid), Gid: uint32(j.gid)},
		},
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(j.root, name+".pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
}
