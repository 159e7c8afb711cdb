package pager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Name is the name a pager runs under: its first argument, followed by the
// machine's ID.
const Name = "hearth-pager"

const (
	acceptTime  = 60 * time.Second // for the machine to come to its pager
	recordTime  = 20 * time.Second // what a machine asks for later is not needed first
	maxRequest  = 64 << 10
	maxFiles    = 64
	listenerFD  = 3 // then the memory's files, the working set, the record
	firstFileFD = 4
)

// Setup is what a pager process is started with. The files stay the caller's.
type Setup struct {
	ID         string
	Listener   *os.File   // a listening unix socket, where the machine will connect
	Memory     []*os.File // lowest first, see Layers
	WorkingSet *os.File   // to prefetch; nil: none
	Record     *os.File   // takes the working set of this machine; nil: not recorded
	Peer       int        // the user of the machine's process; no other is served
	UID, GID   int        // the pager's own
	Root       string     // an empty directory, in which it locks itself up
	Log        *os.File   // takes the reason of a failure
}

// request is what the process reads from its standard input before it does anything.
type request struct {
	Layers     int  `json:"layers"`
	WorkingSet bool `json:"working_set"`
	Record     bool `json:"record"`
	Peer       int  `json:"peer"`
	UID        int  `json:"uid"`
	GID        int  `json:"gid"`
}

// Start starts a pager process: exe, whose main calls Main, in namespaces of its
// own. ready is called with its process ID before it is told what to do, to put
// it under limits. The process outlives its starter, who must Wait for it.
func Start(exe string, s Setup, ready func(pid int) error) (*exec.Cmd, error) {
	if len(s.Memory) == 0 || len(s.Memory) > maxFiles {
		return nil, fmt.Errorf("%d memory files, want 1 to %d", len(s.Memory), maxFiles)
	}
	req := request{Layers: len(s.Memory), WorkingSet: s.WorkingSet != nil, Record: s.Record != nil, Peer: s.Peer, UID: s.UID, GID: s.GID}
	cmd := exec.Command(exe)
	cmd.Args = []string{Name, s.ID}
	cmd.Env = []string{"GOMAXPROCS=2"}
	cmd.Dir = s.Root
	cmd.Stderr = s.Log
	cmd.ExtraFiles = append([]*os.File{s.Listener}, s.Memory...)
	for _, f := range []*os.File{s.WorkingSet, s.Record} {
		if f != nil {
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if err = ready(cmd.Process.Pid); err == nil {
		err = json.NewEncoder(in).Encode(req)
	}
	if err = errors.Join(err, in.Close()); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	return cmd, nil
}

// Main runs a pager when args are those of one, and reports whether it did.
func Main(args []string) bool {
	if len(args) != 2 || args[0] != Name {
		return false
	}
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// serve is the process: it reads what to do, locks itself up, waits for the
// machine and answers its faults until it ends.
func serve() error {
	var req request
	if err := json.NewDecoder(io.LimitReader(os.Stdin, maxRequest)).Decode(&req); err != nil {
		return fmt.Errorf("no request: %w", err)
	}
	if req.Layers < 1 || req.Layers > maxFiles {
		return fmt.Errorf("%d memory files", req.Layers)
	}
	cfg := Config{RecordFor: recordTime}
	files := make([]*os.File, req.Layers)
	next := firstFileFD
	for i := range files {
		files[i] = os.NewFile(uintptr(next), "memory")
		next++
	}
	memory, err := NewLayers(files)
	if err != nil {
		return err
	}
	cfg.Source = memory
	if req.WorkingSet {
		raw, err := io.ReadAll(io.LimitReader(os.NewFile(uintptr(next), "working set"), 4*maxWorkingSet+1<<10))
		if err == nil {
			cfg.Prefetch, err = ParseWorkingSet(raw)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "without prefetch:", err)
		}
		next++
	}
	if req.Record {
		cfg.Record = os.NewFile(uintptr(next), "record")
	}
	if err := confine(req.UID, req.GID); err != nil {
		return err
	}
	conn, err := accept(req.Peer)
	if err != nil {
		return err
	}
	uffd, regions, err := receive(conn, uint64(memory.Size()))
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(uffd, true); err != nil {
		return err
	}
	hangUp, err := conn.File()
	if err != nil {
		return err
	}
	return NewServer(cfg, uffd, regions).Run(int(hangUp.Fd()))
}

// confine locks the process into its empty working directory, without a
// privilege: what it needs from now on it has as descriptors.
func confine(uid, gid int) error {
	if os.Geteuid() != 0 {
		return nil // nothing to give away
	}
	for _, limit := range []struct {
		what  int
		value uint64
	}{{unix.RLIMIT_CORE, 0}, {unix.RLIMIT_NOFILE, 128}, {unix.RLIMIT_FSIZE, 8 << 20}} {
		if err := unix.Setrlimit(limit.what, &unix.Rlimit{Cur: limit.value, Max: limit.value}); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return fmt.Errorf("giving up root: %w", err)
	}
	return nil
}

// accept waits for the machine, the only one that is let in.
func accept(peer int) (*net.UnixConn, error) {
	file := os.NewFile(listenerFD, "listener")
	l, err := net.FileListener(file)
	_ = file.Close()
	if err != nil {
		return nil, err
	}
	listener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.New("the listener is no unix socket")
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	if err := listener.SetDeadline(time.Now().Add(acceptTime)); err != nil {
		return nil, err
	}
	conn, err := listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("the machine did not come: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var who *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { who, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, credErr); err != nil {
		return nil, err
	}
	if int(who.Uid) != peer {
		return nil, fmt.Errorf("user %d came instead of the machine's", who.Uid)
	}
	return conn, nil
}
