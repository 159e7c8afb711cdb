// Command prisontest is what package jail's tests lock up in QEMU's place: it
// tries what a monitor that was taken over would try, and says how far it got.
package main

import (
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/qemu/jail"
)

// World is what a prisoner sees and can do. What may fail is there as its error,
// empty if it did not.
type World struct {
	User, Group int
	Groups      []int
	PID         int
	Processes   []string // in /proc
	Files       []string // below /, without /proc
	Descriptors []string // number and what it is
	Environment []string
	Failures    map[string]string
	OpenFiles   int // that could be opened at once
}

func main() {
	if jail.Main(os.Args) {
		return
	}
	if len(os.Args) != 4 || os.Args[0] != jail.ProcessName {
		os.Exit(2)
	}
	fd, _ := strconv.Atoi(os.Args[1])
	report := os.NewFile(uintptr(fd), "report")
	if json.NewEncoder(report).Encode(look(os.Args[2], os.Args[3])) != nil {
		os.Exit(3)
	}
}

func look(own, address string) World {
	w := World{
		User: os.Getuid(), Group: os.Getgid(), PID: os.Getpid(), Environment: os.Environ(),
		Failures: map[string]string{},
	}
	w.Groups, _ = os.Getgroups()
	_ = filepath.WalkDir("/", func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == "/proc" {
			return fs.SkipDir
		}
		if !e.IsDir() {
			w.Files = append(w.Files, path)
		}
		return nil
	})
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			w.Processes = append(w.Processes, e.Name())
		}
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		if what, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			w.Descriptors = append(w.Descriptors, e.Name()+" "+what)
		}
	}
	w.try(own, address)
	for w.OpenFiles < 4096 {
		if _, err := unix.Open("/proc/self/status", unix.O_RDONLY, 0); err != nil {
			break
		}
		w.OpenFiles++
	}
	return w
}

func (w World) try(own, address string) {
	for name, attempt := range map[string]func() error{
		"become root":            func() error { return unix.Setresuid(0, 0, 0) },
		"mount":                  func() error { return unix.Mount("none", "/", "tmpfs", 0, "") },
		"make the root writable": func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT, "") },
		"leave the root":         func() error { return unix.Chroot("/proc") },
		"make a device":          func() error { return unix.Mknod("/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))) },
		"make a file":            func() error { return os.WriteFile("/file", nil, 0o600) },
		"change a file of the host": func() error {
			f, err := os.OpenFile(own, os.O_WRONLY, 0)
			if err == nil {
				err = f.Close()
			}
			return err
		},
		"rename the host": func() error { return unix.Sethostname([]byte("mine")) },
		"set the clock":   func() error { return unix.Settimeofday(&unix.Timeval{Sec: 1}) },
		"reach the host": func() error {
			c, err := net.Dial("tcp", address)
			if err == nil {
				err = c.Close()
			}
			return err
		},
		"raise a limit": func() error {
			return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 16})
		},
		"lock memory": func() error { return unix.Mlock(make([]byte, 1<<16)) },
	} {
		if err := attempt(); err != nil {
			w.Failures[name] = err.Error()
		} else {
			w.Failures[name] = ""
		}
	}
}
