package pager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/blob/chunkblob"
	"hearth/internal/driver/hostproc"
)

// Name is the name a pager runs under: its first argument, followed by the
// machine's ID.
const Name = "hearth-pager"

const (
	acceptTime  = 60 * time.Second // for the machine to come to its pager
	recordTime  = 20 * time.Second // what a machine asks for later is not needed first
	sourceTime  = 60 * time.Second // for a page to be read
	spareFiles  = 64               // descriptors beside those of the memory
	maxRequest  = 1 << 30          // the lists of pages are in it; it comes from the server alone
	maxFiles    = 2048             // descriptors of all memory: a layer has one, and one per pack
	maxLayout   = 1 << 30          // bytes that tell where a packed layer lies
	listenerFD  = 3                // then the memory's files, the working set, the record
	firstFileFD = 4
)

// Setup is what a pager process is started with. The files stay the caller's.
type Setup struct {
	ID         string
	Listener   *os.File // a listening unix socket, where the machine will connect
	Memory     []Memory // lowest first, see Layers
	WorkingSet *os.File // to prefetch; nil: none
	Record     *os.File // takes the working set of this machine; nil: not recorded
	Peer       int      // the user of the machine's process; no other is served
	UID, GID   int      // the pager's own
	Root       string   // an empty directory, in which it locks itself up
	Log        *os.File // takes the reason of a failure
}

// Memory is one layer, opened for the pager.
type Memory struct {
	File   *os.File   // the layer itself; or what is told of it, if it is packed
	Pages  []byte     // those that it has, see Pages; of the lowest it does not matter
	Packed bool       // see package chunkblob
	Packs  []*os.File // which it is read from, then
}

// Close closes the descriptors.
func (m Memory) Close() error {
	errs := []error{m.File.Close()}
	for _, p := range m.Packs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// layer says which descriptors there are of a layer, and which pages it has.
type layer struct {
	Packed bool   `json:"packed,omitempty"`
	Packs  int    `json:"packs,omitempty"`
	Pages  []byte `json:"pages,omitempty"`
}

// request is what the process reads from its standard input before it does anything.
type request struct {
	Layers     []layer `json:"layers"`
	WorkingSet bool    `json:"working_set"`
	Record     bool    `json:"record"`
	Peer       int     `json:"peer"`
	UID        int     `json:"uid"`
	GID        int     `json:"gid"`
}

// files counts the descriptors of all layers.
func (r request) files() int {
	n := len(r.Layers)
	for _, l := range r.Layers {
		n += l.Packs
	}
	return n
}

// Start starts a pager process: exe, whose main calls Main, in namespaces of its
// own. ready is called with its process ID before it is told what to do, to put
// it under limits. The process outlives its starter, who must Wait for it.
func Start(exe string, s Setup, ready func(pid int) error) (*exec.Cmd, error) {
	files := []*os.File{s.Listener}
	var layers []layer
	for _, m := range s.Memory {
		layers = append(layers, layer{m.Packed, len(m.Packs), m.Pages})
		files = append(append(files, m.File), m.Packs...)
	}
	if n := len(files) - 1; n == 0 || n > maxFiles {
		return nil, fmt.Errorf("%d memory files, want 1 to %d", n, maxFiles)
	}
	req := request{Layers: layers, WorkingSet: s.WorkingSet != nil, Record: s.Record != nil, Peer: s.Peer, UID: s.UID, GID: s.GID}
	cmd := exec.Command(exe)
	cmd.Args = []string{Name, s.ID}
	cmd.Env = []string{"GOMAXPROCS=2"}
	cmd.Dir = s.Root
	cmd.Stderr = s.Log
	cmd.ExtraFiles = files
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
	if err := hostproc.WithTimers(hostproc.ExactTimers, cmd.Start); err != nil { // a guest waits for it
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
	if n := req.files(); n < 1 || n > maxFiles {
		return fmt.Errorf("%d memory files", n)
	}
	cfg := Config{RecordFor: recordTime, Patience: sourceTime}
	memory, err := req.memory()
	if err != nil {
		return err
	}
	cfg.Source = memory
	next := firstFileFD + req.files()
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
	if err := confine(req); err != nil {
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
	err = NewServer(cfg, uffd, regions).Run(int(hangUp.Fd()))
	runtime.KeepAlive(hangUp) // or a garbage collection closes it, which looks like the machine's end
	return err
}

// memory puts the layers together from the descriptors that there are of them.
func (r request) memory() (*Layers, error) {
	next := firstFileFD
	take := func(name string) *os.File {
		next++
		return os.NewFile(uintptr(next-1), name)
	}
	var memory []Memory
	for _, l := range r.Layers {
		m := Memory{File: take("memory"), Pages: l.Pages, Packed: l.Packed}
		for range l.Packs {
			m.Packs = append(m.Packs, take("pack"))
		}
		memory = append(memory, m)
	}
	return Open(memory)
}

// Open puts layers together, lowest first.
func Open(memory []Memory) (*Layers, error) {
	var layers []Layer
	for i, m := range memory {
		next, err := m.layer()
		if err == nil && i > 0 {
			next.Own, err = ParsePages(m.Pages, next.Size())
		}
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		layers = append(layers, next)
	}
	return NewLayers(layers)
}

// layer opens the content of a memory.
func (m Memory) layer() (Layer, error) {
	if !m.Packed {
		return Layer{Source: File{m.File}}, nil
	}
	layout, err := io.ReadAll(io.NewSectionReader(m.File, 0, maxLayout))
	if err = errors.Join(err, m.File.Close()); err != nil {
		return Layer{}, err
	}
	b, err := chunkblob.Borrow(layout, m.Packs)
	return Layer{Source: b}, err
}

// confine locks the process into its empty working directory, without a
// privilege: what it needs from now on it has as descriptors.
func confine(req request) error {
	if os.Geteuid() != 0 {
		return nil // nothing to give away
	}
	for _, limit := range []struct {
		what  int
		value uint64
	}{{unix.RLIMIT_CORE, 0}, {unix.RLIMIT_NOFILE, uint64(req.files()) + spareFiles}, {unix.RLIMIT_FSIZE, 8 << 20}} {
		if err := unix.Setrlimit(limit.what, &unix.Rlimit{Cur: limit.value, Max: limit.value}); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(req.GID), syscall.Setuid(req.UID)); err != nil {
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
