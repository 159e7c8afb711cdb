// Command init is the first process of the emulated KVM host: it mounts the disk
// with a memory file system over it, loads what a host of virtual machines has
// loaded, runs the suites one after the other and turns the machine off. It
// tells what it does on the console, in lines that begin with mark.
//
// There is no Go in the emulated host, and tests build programs. Under the name
// "go" this program answers "go build -o FILE PACKAGE" with a copy of what was
// built beforehand.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const mark = "HEARTH-KVM "

type job struct {
	Name    string   `json:"name"`
	Argv    []string `json:"argv"`
	Env     []string `json:"env"`
	Seconds int      `json:"seconds"`
}

// prebuilt has the programs that tests build, named as their packages.
const prebuilt = "/prebuilt"

func main() {
	if filepath.Base(os.Args[0]) == "go" {
		if err := handOut(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "go, as the emulated host has it:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is for the emulated host, as its first process")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("init:", err)
	} else {
		fmt.Println(mark + "done")
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	if err := root(); err != nil {
		return err
	}
	if err := host(); err != nil {
		return err
	}
	b, err := os.ReadFile("/suites.json")
	if err != nil {
		return err
	}
	var jobs []job
	if err := json.Unmarshal(b, &jobs); err != nil {
		return err
	}
	for _, j := range jobs {
		fmt.Println(mark+"begin", j.Name)
		fmt.Println(mark+"end", j.Name, j.run())
	}
	return nil
}

// root makes the disk the root, with a memory file system over it: a root that
// is an initramfs cannot be left behind, which monitors' jails need.
func root() error {
	modules, err := filepath.Glob("/modules/*")
	if err != nil {
		return err
	}
	slices.Sort(modules)
	for _, m := range modules {
		if err := insert(m); err != nil {
			return err
		}
	}
	if err := mount("devtmpfs", "/dev", "devtmpfs", ""); err != nil {
		return err
	}
	for _, d := range []string{"/lower", "/upper"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := await("/dev/vda"); err != nil {
		return err
	}
	if err := unix.Mount("/dev/vda", "/lower", "erofs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mounting the disk: %w", err)
	}
	if err := mount("tmpfs", "/upper", "tmpfs", ""); err != nil {
		return err
	}
	for _, d := range []string{"/upper/u", "/upper/w"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", "/root", "overlay", "lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w"); err != nil {
		return err
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	return errors.Join(unix.Mount("/dev", "dev", "", unix.MS_MOVE, ""), unix.Mount(".", "/", "", unix.MS_MOVE, ""),
		unix.Chroot("."), os.Chdir("/"), os.Setenv("PATH", "/usr/sbin:/usr/bin"))
}

// host is what a host of virtual machines has: file systems, modules, loopback.
func host() error {
	for _, m := range [][3]string{
		{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"tmpfs", "/tmp", "tmpfs"}, {"tmpfs", "/run", "tmpfs"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2"},
	} {
		if err := mount(m[0], m[1], m[2], ""); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Mkdir("/dev/shm", 0o1777), mount("tmpfs", "/dev/shm", "tmpfs", "")); err != nil {
		return err
	}
	// The kernel loads the rest itself, by way of modprobe, when it is asked for.
	for _, m := range []string{"kvm-amd", "tun", "vhost_vsock", "vhost_net", "loop", "nf_tables", "xfrm_user", "veth", "sch_tbf"} {
		if out, err := exec.Command("modprobe", m).CombinedOutput(); err != nil {
			fmt.Printf("init: modprobe %s: %v %s\n", m, err, strings.TrimSpace(string(out)))
		}
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return fmt.Errorf("the emulated host has no KVM: %w", err)
	}
	return loopback()
}

func mount(what, where, kind, options string) error {
	if err := unix.Mount(what, where, kind, 0, options); err != nil {
		return fmt.Errorf("mounting %s: %w", where, err)
	}
	return nil
}

// insert loads one module.
func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const packed = 4 // MODULE_INIT_COMPRESSED_FILE
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = packed
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading %s: %w", path, err)
	}
	return nil
}

// await waits for a device whose driver has just been loaded.
func await(path string) error {
	for range 1000 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s does not appear", path)
}

func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}

// run runs a suite and says how it ended. What its tests leave behind comes to
// this process when it ends, and is reaped: a test that looks for it must not
// find zombies.
func (j job) run() string {
	began := time.Now()
	pid, err := syscall.ForkExec(j.Argv[0], j.Argv, &syscall.ProcAttr{
		Dir: "/root", Env: j.Env, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return "failed to start: " + err.Error()
	}
	limit := time.AfterFunc(time.Duration(j.Seconds)*time.Second, func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	defer limit.Stop()
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR), err == nil && got != pid:
			continue
		case err != nil:
			return "failed to wait: " + err.Error()
		case status.Signaled():
			return fmt.Sprintf("failed: %v after %.0f s", status.Signal(), time.Since(began).Seconds())
		case status.ExitStatus() != 0:
			return fmt.Sprintf("failed: exit status %d after %.0f s", status.ExitStatus(), time.Since(began).Seconds())
		}
		return "ok"
	}
}

// handOut is what "go" does.
func handOut(args []string) error {
	at := slices.Index(args, "-o")
	if len(args) < 4 || args[0] != "build" || at < 0 || at+2 >= len(args) {
		return fmt.Errorf("%q is not go build -o FILE PACKAGE", args)
	}
	data, err := os.ReadFile(filepath.Join(prebuilt, args[len(args)-1]))
	if err != nil {
		return fmt.Errorf("%w; name the package in its suite in test/kvm", err)
	}
	return os.WriteFile(args[at+1], data, 0o755)
}
