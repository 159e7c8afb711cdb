package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hearth/internal/guest"
)

// System is what the daemon may change of the machine it is the first process of.
type System struct {
	maxProcesses uint64

	name, template, dns string // what apply has set; Inits do not overlap
}

// NewSystem returns the machine this process runs in. maxProcesses is the most
// processes a user other than root may have; 0 leaves the limit alone.
func NewSystem(maxProcesses uint64) *System { return &System{maxProcesses: maxProcesses} }

// mount is a file system that programs expect and that a bare machine lacks.
type mount struct {
	target, kind, data string
	flags              uintptr
	mode               fs.FileMode
}

// mounts in the order in which they are made.
func mounts() []mount {
	const plain = unix.MS_NOSUID | unix.MS_NODEV
	return []mount{
		{"/proc", "proc", "", plain | unix.MS_NOEXEC, 0o555},
		{"/sys", "sysfs", "", plain | unix.MS_NOEXEC | unix.MS_RDONLY, 0o555},
		{"/dev", "devtmpfs", "mode=0755", unix.MS_NOSUID, 0o755},
		{"/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5", unix.MS_NOSUID | unix.MS_NOEXEC, 0o755},
		{"/dev/shm", "tmpfs", "mode=1777", plain, 0o1777},
		{"/run", "tmpfs", "mode=0755", plain, 0o755},
		{"/tmp", "", "", 0, 0o1777},
	}
}

// Prepare makes the machine fit for programs: missing mounts, file mode mask,
// process limit. Nothing in it is fatal; what failed is returned.
func (s *System) Prepare() []error {
	var errs []error
	unix.Umask(0o022)
	for _, m := range mounts() {
		if err := m.ensure(); err != nil {
			errs = append(errs, err)
		}
	}
	if s.maxProcesses > 0 {
		var lim unix.Rlimit
		err := unix.Getrlimit(unix.RLIMIT_NPROC, &lim)
		if err == nil {
			lim.Max = min(lim.Max, s.maxProcesses)
			lim.Cur = lim.Max
			err = unix.Setrlimit(unix.RLIMIT_NPROC, &lim)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("limit of processes: %w", err))
		}
	}
	return errs
}

// ensure mounts m unless something is mounted there, or, for a directory that
// any file system will do for, makes it.
func (m mount) ensure() error {
	if err := os.Mkdir(m.target, m.mode.Perm()); err == nil {
		_ = os.Chmod(m.target, modeOf(m.mode))
	} else if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("directory %s: %w", m.target, err)
	}
	if m.kind == "" {
		return os.Chmod(m.target, modeOf(m.mode))
	}
	if mounted(m.target) {
		return nil
	}
	err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.data)
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	return nil
}

// modeOf turns Unix mode bits into Go's.
func modeOf(m fs.FileMode) fs.FileMode {
	if m&0o1000 != 0 {
		return m.Perm() | fs.ModeSticky
	}
	return m.Perm()
}

// mounted tells a mount point by its device, which differs from its parent's.
func mounted(path string) bool {
	var here, up unix.Stat_t
	if unix.Lstat(path, &here) != nil || unix.Lstat(path+"/..", &up) != nil {
		return false
	}
	return here.Dev != up.Dev
}

// apply makes the machine the sandbox that req describes. It goes on after a
// failure: a sandbox without a machine id is better than none. What an earlier
// apply has set is left alone, and with it what the sandbox's owner made of it.
func (s *System) apply(req guest.InitRequest) []error {
	var errs []error
	try := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	setClock(req.Now)
	stir(req.Seed)
	if etc, err := openDirectory("/etc"); err != nil {
		try("/etc", err)
	} else {
		defer etc.close()
		if req.SandboxID != s.name {
			try("host name", unix.Sethostname([]byte(req.SandboxID)))
			try("/etc/hostname", etc.put("hostname", req.SandboxID+"\n", 0o644))
			try("/etc/hosts", etc.put("hosts", hosts(req.SandboxID), 0o644))
			try("/etc/machine-id", etc.put("machine-id", machineID(req)+"\n", 0o444))
		}
		if dns := resolvConf(req.DNS); dns != "" && dns != s.dns {
			try("/etc/resolv.conf", etc.put("resolv.conf", dns, 0o644))
			s.dns = dns
		}
	}
	if req.SandboxID != s.name || req.TemplateID != s.template {
		try("/run/e2b", marks(req))
	}
	s.name, s.template = req.SandboxID, req.TemplateID
	return errs
}

// marks writes the files by which programs know that they are in a sandbox, and in which.
func marks(req guest.InitRequest) error {
	dir, err := openDirectory("/run/e2b")
	if err == nil {
		var st unix.Stat_t
		if unix.Fstat(dir.fd, &st) != nil || st.Uid != 0 || st.Mode&0o022 != 0 {
			dir.close()
			err = unix.EPERM
		}
	}
	if err != nil {
		if err := ownDirectory("/run", "e2b"); err != nil {
			return err
		}
		if dir, err = openDirectory("/run/e2b"); err != nil {
			return err
		}
	}
	defer dir.close()
	return errors.Join(
		dir.put(".E2B_SANDBOX", "true", 0o444),
		dir.put(".E2B_SANDBOX_ID", req.SandboxID, 0o444),
		dir.put(".E2B_TEMPLATE_ID", req.TemplateID, 0o444),
	)
}

// forget removes the identity that apply gave, so that a checkpoint has none.
func (s *System) forget() {
	for _, p := range []string{"/run/e2b/.E2B_SANDBOX_ID", "/run/e2b/.E2B_TEMPLATE_ID", "/etc/machine-id"} {
		_ = os.Remove(p)
	}
	s.name, s.template = "", ""
}

// muchIdle is how much memory of the heap that nobody uses makes it worth the time to give it
// back before a sandbox's own checkpoint: a collection writes to most of the heap's pages.
const muchIdle = 16 << 20

// idleHeap is the memory of the heap that is not in use and not given back.
func idleHeap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapIdle - m.HeapReleased
}

// setClock corrects the wall clock if it is off by more than what the host's
// own message may have taken. Where the guest may not set it, it shows the host's.
func setClock(now time.Time) {
	const behind, ahead = 50 * time.Millisecond, 5 * time.Second
	if now.IsZero() {
		return
	}
	if off := time.Until(now); off > behind || off < -ahead {
		ts := unix.NsecToTimespec(now.UnixNano())
		_ = unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
	}
}

// stir mixes the seed into the kernel's generator and makes it start over with
// it: two machines restored from one checkpoint must not draw the same numbers.
func stir(seed []byte) {
	fd, err := unix.Open("/dev/urandom", unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // package os would make five calls more
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Write(fd, seed)
	type entropy struct {
		bits, size int32
		buf        [64]byte
	}
	e := entropy{size: int32(min(len(seed), 64))}
	e.bits = e.size * 8
	copy(e.buf[:], seed)
	const addEntropy = 0x40085203 // RNDADDENTROPY; refused or unknown where the kernel is not ours
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), addEntropy, uintptr(unsafe.Pointer(&e)))
	if errno == 0 {
		_ = unix.IoctlSetInt(fd, unix.RNDRESEEDCRNG, 0)
	}
}

// machineID is the sandbox's own and stays over its pauses.
func machineID(req guest.InitRequest) string {
	from := []byte(req.SandboxID)
	if len(from) == 0 {
		from = req.Seed
	}
	sum := sha256.Sum256(append([]byte("hearth machine-id\x00"), from...))
	return hex.EncodeToString(sum[:16])
}

func resolvConf(servers []string) string {
	var b strings.Builder
	for _, s := range servers {
		if !strings.ContainsAny(s, " \t\r\n") {
			fmt.Fprintf(&b, "nameserver %s\n", s)
		}
	}
	return b.String()
}

// ours marks the line of /etc/hosts that Init writes.
const ours = "# hearth"

// hosts is /etc/hosts with the machine's own name in it: sudo and many a
// server look it up and wait for the network where it is missing.
func hosts(name string) string {
	var b strings.Builder
	localhost := false
	for line := range strings.Lines(readFile("/etc", "hosts")) {
		if strings.HasSuffix(strings.TrimSpace(line), ours) {
			continue
		}
		localhost = localhost || strings.HasPrefix(line, "127.0.0.1")
		b.WriteString(strings.TrimRight(line, "\n") + "\n")
	}
	if !localhost {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	fmt.Fprintf(&b, "127.0.1.1\t%s %s\n", name, ours)
	return b.String()
}
