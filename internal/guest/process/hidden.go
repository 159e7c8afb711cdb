package process

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/process/account"
	"hearth/internal/guest/process/reap"
)

// Hidden is a process that the daemon runs for its own services. No RPC lists or reaches
// it, and it ends with the daemon: the next one knows nothing of it.
type Hidden struct {
	Who    account.Account
	Argv   []string          // Argv[0] is looked up in PATH
	Env    map[string]string // on top of PATH, HOME, USER and LOGNAME
	Dir    string
	Output io.Writer // gets standard output and error, on one goroutine
}

// Running is a started Hidden process.
type Running struct {
	child  *reap.Child
	output *os.File
	ended  atomic.Bool
	copied chan struct{}
}

// Start starts h in a session of its own, with /dev/null as its input.
func (h Hidden) Start(r *reap.Reaper) (*Running, error) {
	env, path, err := environ(h.Who, nil, h.Env)
	if err != nil {
		return nil, err
	}
	l := &launch{who: h.Who, argv: h.Argv, env: env, path: path, dir: h.Dir, bound: true}
	s := &streams{}
	if err := s.openMerged(l); err != nil {
		s.closeAll()
		return nil, err
	}
	child, err := l.start(r, s)
	if err != nil {
		s.closeAll()
		return nil, err
	}
	s.closeChild()
	p := &Running{child: child, output: s.stdout, copied: make(chan struct{})}
	go func() {
		defer close(p.copied)
		_, _ = io.Copy(h.Output, &drainage{file: p.output, begun: &p.ended})
	}()
	return p, nil
}

// openMerged gives a process one pipe for both kinds of output.
func (s *streams) openMerged(l *launch) (err error) {
	if s.child[0], err = unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	s.extra = append(s.extra, s.child[0])
	s.child[1], s.stdout, err = s.pipe(l, 1)
	s.child[2] = s.child[1]
	return err
}

// Signal sends sig to the process and all of its group.
func (p *Running) Signal(sig syscall.Signal) error { return p.child.SignalGroup(sig) }

// Wait returns when the process has ended and what it wrote has been passed on;
// nil means exit status 0. It is called once.
func (p *Running) Wait() error {
	end := endEvent(p.child.Status())
	p.ended.Store(true)
	_ = p.output.SetReadDeadline(time.Now().Add(drainQuiet)) // somebody else may hold the pipe
	<-p.copied
	_ = p.output.Close()
	if end.GetExitCode() != 0 {
		return errors.New(end.GetStatus())
	}
	return nil
}
