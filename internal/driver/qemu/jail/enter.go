package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// LauncherName is argv[0] of the process that builds a jail around itself and
// becomes QEMU; ProcessName is what it is then called. Both are followed by what
// tells machines apart.
const (
	LauncherName = "hearth-qemu-launcher"
	ProcessName  = "hearth-qemu"
)

// Descriptors of the launcher. 0 is the null device, 1 and 2 QEMU's output;
// those from firstFD on are QEMU's.
const (
	requestFD = 3 // a Request
	reportFD  = 4 // takes the reason if there is no becoming QEMU, and is closed when there is
	firstFD   = 5
)

// Request is what the launcher is told, as one JSON value.
type Request struct {
	Staging  string   `json:"staging"` // an empty directory that the jail is mounted over
	Files    []string `json:"files"`   // of the host that QEMU may read, at the same path
	Device   string   `json:"device"`  // of KVM; empty: none
	User     int      `json:"user"`
	Program  string   `json:"program"`
	Args     []string `json:"args"`
	Env      []string `json:"env"`
	FileSize int64    `json:"file_size"` // no file may become larger, bytes
	OpenMax  int      `json:"open_max"`
	Threads  int      `json:"threads"`
	Baggage  int      `json:"baggage"` // descriptors that are QEMU's; Run fills it in
}

// Main reports false in a process that is not to become a QEMU, and does not
// return in one that is.
func Main(args []string) bool {
	if len(args) == 0 || args[0] != LauncherName {
		return false
	}
	runtime.LockOSThread() // what is dropped is dropped by this thread, which becomes QEMU
	report := os.NewFile(reportFD, "report")
	syscall.CloseOnExec(reportFD)
	err := becomeQEMU(os.NewFile(requestFD, "request"))
	fmt.Fprint(report, err)
	os.Exit(1)
	return true
}

// becomeQEMU returns only when it fails. The process is the first of its
// namespaces, and root of the host until the end.
func becomeQEMU(request *os.File) error {
	syscall.CloseOnExec(requestFD)
	var req Request
	if err := json.NewDecoder(request).Decode(&req); err != nil {
		return fmt.Errorf("no request: %w", err)
	}
	if err := req.enterJail(); err != nil {
		return fmt.Errorf("jail: %w", err)
	}
	if err := req.limit(); err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	if err := dropPrivileges(req.User); err != nil {
		return fmt.Errorf("privileges: %w", err)
	}
	if err := closeOthers(firstFD + req.Baggage); err != nil {
		return fmt.Errorf("descriptors: %w", err)
	}
	if err := keepTemplates(); err != nil {
		return fmt.Errorf("filter of system calls: %w", err)
	}
	return fmt.Errorf("%s cannot be executed: %w", req.Program, syscall.Exec(req.Program, req.Args, req.Env))
}

// enterJail makes a root that holds what QEMU may see, and leaves the host's.
func (r Request) enterJail() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("jail", r.Staging, "tmpfs", unix.MS_NOSUID, "mode=0755,size=256k,nr_inodes=1k"); err != nil {
		return err
	}
	for _, path := range r.Files {
		if err := show(path, r.Staging+path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	proc := filepath.Join(r.Staging, "proc")
	if err := os.Mkdir(proc, 0o555); err != nil {
		return err
	}
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "subset=pid,hidepid=2"); err != nil {
		return err
	}
	if r.Device != "" {
		if err := r.makeDevice(); err != nil {
			return fmt.Errorf("%s: %w", r.Device, err)
		}
	}
	if err := unix.Chdir(r.Staging); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID, "")
}

// show makes one file of the host readable in the jail.
func show(path, at string) error {
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(at, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	_ = f.Close()
	if err := unix.Mount(path, at, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// makeDevice makes a device of the jail's own, so that its user can open it
// whatever the host's device allows.
func (r Request) makeDevice() error {
	var host unix.Stat_t
	if err := unix.Stat(r.Device, &host); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(r.Staging+r.Device), 0o755); err != nil {
		return err
	}
	node := r.Staging + r.Device
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(host.Rdev)); err != nil {
		return err
	}
	return os.Chown(node, r.User, r.User)
}

func (r Request) limit() error {
	for resource, value := range map[int]uint64{
		unix.RLIMIT_CORE:    0,
		unix.RLIMIT_FSIZE:   uint64(r.FileSize),
		unix.RLIMIT_NOFILE:  uint64(r.OpenMax),
		unix.RLIMIT_NPROC:   uint64(r.Threads),
		unix.RLIMIT_MEMLOCK: 0,
	} {
		// Of the real kind: the Go runtime would put its own limit of files back.
		if err := unix.Prlimit(0, resource, &unix.Rlimit{Cur: value, Max: value}, nil); err != nil {
			return err
		}
	}
	return nil
}

// closeOthers closes, when QEMU is executed, what nobody meant to give it:
// descriptors from first on that whoever started the server had left open.
func closeOthers(first int) error {
	err := unix.CloseRange(uint(first), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	const most = 1 << 16 // Linux before 5.11: one by one
	for fd := first; fd < most; fd++ {
		syscall.CloseOnExec(fd)
	}
	return nil
}

// dropPrivileges turns root into a user without a name, for good.
func dropPrivileges(user int) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	for c := uintptr(0); c <= 63; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setresgid(user, user, user); err != nil {
		return err
	}
	if err := syscall.Setresuid(user, user, user); err != nil {
		return err
	}
	unix.Umask(0o077)
	if unix.Geteuid() == 0 {
		return errors.New("still root")
	}
	return nil
}
