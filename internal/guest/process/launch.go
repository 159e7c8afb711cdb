package process

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"hearth/internal/gen/guestv1"
	"hearth/internal/guest/process/account"
	"hearth/internal/guest/process/reap"
	"hearth/internal/hearth"
)

// DefaultPath is PATH where neither the daemon's own environment nor the session's has one.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// launch is everything that is decided before a process is started.
type launch struct {
	who  account.Account
	argv []string
	env  []string
	path string // value of PATH in env
	dir  string
	pty  *pty.Winsize // nil: pipes
	tap  bool         // stdin is a pipe, not /dev/null
	// bound processes are killed when the thread that started them ends; threads of
	// this program end with it.
	bound bool
}

// prepare checks a request and works out how to run it.
func prepare(req *guestv1.StartRequest, who account.Account, ses account.Session) (*launch, error) {
	cfg := req.GetProcess()
	if cfg.GetCmd() == "" {
		return nil, hearth.Errorf(hearth.InvalidArgument, "process.cmd is empty")
	}
	l := &launch{who: who, argv: append([]string{cfg.GetCmd()}, cfg.GetArgs()...)}
	for _, a := range l.argv {
		if strings.IndexByte(a, 0) >= 0 {
			return nil, hearth.Errorf(hearth.InvalidArgument, "process.cmd or process.args contains a NUL byte")
		}
	}
	var err error
	if l.env, l.path, err = environ(who, ses.Env, cfg.GetEnvs()); err != nil {
		return nil, err
	}
	if l.dir, err = who.Resolve(cfg.GetCwd(), ses.Workdir); err != nil {
		return nil, err
	}
	switch fi, err := os.Stat(l.dir); {
	case err != nil:
		return nil, hearth.Errorf(hearth.InvalidArgument, "cwd '%s' does not exist", l.dir)
	case !fi.IsDir():
		return nil, hearth.Errorf(hearth.InvalidArgument, "cwd '%s' is not a directory", l.dir)
	}
	if req.Pty != nil {
		l.pty = winsize(req.GetPty().GetSize())
	}
	l.tap = req.Stdin == nil || req.GetStdin()
	return l, nil
}

func winsize(s *guestv1.PTY_Size) *pty.Winsize {
	clamp := func(n uint32) uint16 { return uint16(min(n, 1<<15)) }
	return &pty.Winsize{Cols: clamp(s.GetCols()), Rows: clamp(s.GetRows())}
}

// environ builds the environment; what comes later wins.
func environ(who account.Account, session, request map[string]string) ([]string, string, error) {
	env := map[string]string{"PATH": os.Getenv("PATH"), "HOME": who.Home, "USER": who.Name, "LOGNAME": who.Name}
	if env["PATH"] == "" {
		env["PATH"] = DefaultPath
	}
	maps.Copy(env, session)
	maps.Copy(env, request)
	list := make([]string, 0, len(env))
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.IndexByte(v, 0) >= 0 {
			return nil, "", hearth.Errorf(hearth.InvalidArgument, "process.envs: %q is not a possible environment variable", k)
		}
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list, env["PATH"], nil
}

// streams are the ends of a process's input and output: the child's, which are
// closed once it runs, and ours.
type streams struct {
	child [3]int
	extra []int // descriptors to close beside child

	stdin          *os.File // nil: /dev/null
	stdout, stderr *os.File
	tty            *os.File // instead of the three above
}

func (s *streams) closeChild() {
	for _, fd := range s.extra {
		_ = unix.Close(fd)
	}
	s.extra = nil
}

func (s *streams) closeAll() {
	s.closeChild()
	for _, f := range []*os.File{s.stdin, s.stdout, s.stderr, s.tty} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// open makes the streams that l wants.
func (l *launch) open() (*streams, error) {
	s := &streams{}
	var err error
	if l.pty != nil {
		err = s.openPTY(l)
	} else {
		err = s.openPipes(l)
	}
	if err != nil {
		s.closeAll()
		return nil, hearth.Wrap(hearth.ResourceExhausted, err, "cannot open the streams of a process")
	}
	return s, nil
}

func (s *streams) openPTY(l *launch) error {
	master, slave, err := pty.Open()
	if err != nil {
		return err
	}
	defer slave.Close()
	s.tty = master
	if err := pty.Setsize(master, l.pty); err != nil {
		return err
	}
	_ = slave.Chown(int(l.who.UID), -1) // lets the user open it by name
	fd, err := unix.FcntlInt(slave.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	s.extra = append(s.extra, fd)
	s.child = [3]int{fd, fd, fd}
	return unix.SetNonblock(fd, false)
}

func (s *streams) openPipes(l *launch) (err error) {
	if l.tap {
		s.child[0], s.stdin, err = s.pipe(l, 0)
	} else if s.child[0], err = unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		s.extra = append(s.extra, s.child[0])
	}
	if err != nil {
		return err
	}
	if s.child[1], s.stdout, err = s.pipe(l, 1); err != nil {
		return err
	}
	s.child[2], s.stderr, err = s.pipe(l, 1)
	return err
}

// pipe makes a pipe whose end childEnd (0 reads, 1 writes) is the child's. Our
// end goes through the poller, the child's blocks.
func (s *streams) pipe(l *launch, childEnd int) (int, *os.File, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return -1, nil, err
	}
	s.extra = append(s.extra, p[childEnd])
	if l.who.UID != 0 {
		_ = unix.Fchown(p[childEnd], int(l.who.UID), int(l.who.GID)) // so that /dev/stdout can be opened
	}
	if _, err := unix.FcntlInt(uintptr(p[childEnd]), unix.F_SETFL, 0); err != nil { // it has no other flags
		_ = unix.Close(p[1-childEnd])
		return -1, nil, err
	}
	return p[childEnd], os.NewFile(uintptr(p[1-childEnd]), "pipe"), nil
}

// start runs l on the given streams.
func (l *launch) start(r *reap.Reaper, s *streams) (*reap.Child, error) {
	attr := &syscall.ProcAttr{
		Dir: l.dir, Env: l.env,
		Files: []uintptr{uintptr(s.child[0]), uintptr(s.child[1]), uintptr(s.child[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: l.pty != nil, Ctty: 0},
	}
	if l.bound {
		attr.Sys.Pdeathsig = unix.SIGKILL
	}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: l.who.UID, Gid: l.who.GID, Groups: l.who.Groups}
	} else if l.who.UID != uint32(os.Geteuid()) {
		return nil, hearth.Errorf(hearth.PermissionDenied, "the daemon is not root and cannot act as '%s'", l.who.Name)
	}
	child, err := r.Start(l.lookPath(), l.argv, attr)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOEXEC) {
		// Let a shell fail in the way users know: a line on stderr, status 126 or 127.
		argv := append([]string{"sh", "-c", `exec "$@"`, "sh"}, l.argv...)
		if c, shErr := r.Start("/bin/sh", argv, attr); shErr == nil {
			return c, nil
		}
	}
	if err != nil {
		return nil, hearth.Errorf(hearth.InvalidArgument, "cannot start '%s': %v", l.argv[0], err)
	}
	return child, nil
}

// lookPath finds the program as the process's own PATH says. Where it finds
// none it returns a path that does not exist.
func (l *launch) lookPath() string {
	cmd := l.argv[0]
	if strings.Contains(cmd, "/") {
		return cmd
	}
	for _, dir := range filepath.SplitList(l.path) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(l.dir, dir)
		}
		p := filepath.Join(dir, cmd)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p
		}
	}
	return fmt.Sprintf("/nonexistent/%s", cmd)
}
