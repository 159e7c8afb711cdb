package code

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"hearth/internal/guest/code/zmtp"
	"hearth/internal/hearth"
)

const (
	maxMessage   = 64 << 20               // bytes in one message of a kernel
	startTime    = 90 * time.Second       // from launch to the first answer
	shutdownTime = 2 * time.Second        // for a kernel to end by itself
	drainTime    = 2 * time.Second        // for the last output after a kernel's end
	dialPause    = 5 * time.Millisecond   // between looks for the kernel's sockets
	askPause     = 250 * time.Millisecond // between requests of a kernel that is starting
)

// ending is why a kernel is gone, in the words that users get.
type ending string

const (
	errKernelDied ending = "Connection to the execution was closed before the execution was finished"
	errRestarted  ending = "Context was restarted"
	errRemoved    ending = "Context was removed"
)

func (e ending) Error() string { return string(e) }

// kernel is one running kernel process and our connections to it. It is made by
// startKernel and never restarted: a restart makes another kernel.
type kernel struct {
	spec  kernelSpec
	files []string // removed when the kernel is gone
	proc  Process
	log   *tail
	codec codec

	shell, control, iopub *zmtp.Conn

	busy chan struct{} // holds a token while an execution runs
	stop chan struct{} // closed by kill: deliver nothing more
	gone chan struct{} // closed when no message will be delivered any more
	done chan struct{} // closed when the process has ended and all is closed

	mu       sync.Mutex
	cause    error // why stop was closed
	exit     string
	requests map[string]*request
	epoch    uint64 // of the environment that the kernel has
	applied  map[string]string
}

// request is one that has been sent and whose messages somebody reads.
type request struct {
	id       string
	messages chan message
	finished chan struct{}
}

// kernelFiles makes the directory and connection file of a kernel, owned by the
// user it will run as.
func (s *Service) kernelFiles(id, key string) (connection, sockets string, err error) {
	dir := filepath.Join(s.opts.StateDir, "k", id[:8])
	connection = filepath.Join(s.opts.StateDir, connectionsDir, "kernel-"+id+".json")
	sockets = filepath.Join(dir, "s")
	content, err := json.Marshal(map[string]any{
		"transport": "ipc", "ip": sockets, "key": key, "signature_scheme": "hmac-sha256",
		"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5,
		"kernel_name": python,
	})
	if err != nil {
		return "", "", err
	}
	if err := s.ownDir(dir); err != nil {
		return "", "", err
	}
	return connection, sockets, s.ownFile(connection, content)
}

// startKernel launches a kernel and waits until it answers.
func (s *Service) startKernel(ctx context.Context, spec kernelSpec, dir string) (*kernel, error) {
	id, key := newID(), newID()
	connection, sockets, err := s.kernelFiles(id, key)
	k := &kernel{
		spec: spec, log: &tail{}, codec: codec{key: []byte(key), session: newID()},
		files: []string{connection, filepath.Dir(sockets)},
		busy:  make(chan struct{}, 1), stop: make(chan struct{}), gone: make(chan struct{}),
		done: make(chan struct{}), requests: map[string]*request{},
	}
	if err != nil {
		k.removeFiles()
		return nil, err
	}
	vars := maps.Clone(spec.Env)
	if !spec.prepared { // ours takes the environment from our metadata, so that it can give it back
		env := s.environment()
		k.epoch, k.applied = env.epoch, env.values
		vars = map[string]string{}
		maps.Copy(vars, spec.Env)
		maps.Copy(vars, env.values)
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	k.proc, err = s.opts.Launcher.Launch(ctx, Command{Argv: spec.argv(connection), Env: vars, Dir: dir, Output: k.log})
	if err != nil {
		k.removeFiles()
		return nil, hearth.Wrap(hearth.Unavailable, err, "the %s kernel could not be started", spec.Name)
	}
	exited := make(chan struct{})
	go k.wait(exited)
	if err := k.connect(ctx, sockets, exited); err != nil {
		k.signal(syscall.SIGKILL)
		k.close()
		<-exited
		k.removeFiles()
		return nil, hearth.Wrap(hearth.Unavailable, err, "the %s kernel did not start: %s", spec.Name, k.why(err))
	}
	go k.serve(exited)
	return k, nil
}

// why is the last line a kernel that failed to start has written, else err.
func (k *kernel) why(err error) string {
	if last := k.log.last(); last != "" {
		return last
	}
	return err.Error()
}

func (k *kernel) wait(exited chan struct{}) {
	err := k.proc.Wait()
	k.mu.Lock()
	k.exit = "exit status 0"
	if err != nil {
		k.exit = err.Error()
	}
	k.mu.Unlock()
	close(exited)
}

// connect opens the three channels and asks until the kernel has answered on
// shell and iopub, which proves that no output will be missed.
func (k *kernel) connect(ctx context.Context, sockets string, exited <-chan struct{}) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-exited:
			cancel(errors.New("the process ended"))
		case <-ctx.Done():
		}
	}()
	var err error
	for _, ch := range []struct {
		conn **zmtp.Conn
		port int
		kind zmtp.SocketType
	}{{&k.iopub, 2, zmtp.Sub}, {&k.shell, 1, zmtp.Dealer}, {&k.control, 4, zmtp.Dealer}} {
		if *ch.conn, err = dialKernel(ctx, fmt.Sprintf("%s-%d", sockets, ch.port), ch.kind); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, k.close)
	defer stop()
	if err := k.greet(ctx); err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return nil
}

func dialKernel(ctx context.Context, path string, kind zmtp.SocketType) (*zmtp.Conn, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return zmtp.New(conn, kind, maxMessage)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(dialPause):
		}
	}
}

// greet sends kernel_info_request until a reply and any output have come.
func (k *kernel) greet(ctx context.Context) error {
	heard := make(chan error, 2)
	for _, c := range []*zmtp.Conn{k.shell, k.iopub} {
		go func() {
			_, err := c.Recv()
			heard <- err
		}()
	}
	tick := time.NewTicker(askPause)
	defer tick.Stop()
	for got := 0; got < 2; {
		_, parts, err := k.codec.encode("kernel_info_request", struct{}{}, struct{}{})
		if err != nil {
			return err
		}
		if err := k.shell.Send(parts...); err != nil {
			return err
		}
		select {
		case err := <-heard:
			if err != nil {
				return err
			}
			got++
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// serve delivers messages until the kernel is gone.
func (k *kernel) serve(exited <-chan struct{}) {
	var readers sync.WaitGroup
	readers.Go(func() { k.read(k.shell, true) })
	readers.Go(func() { k.read(k.iopub, false) })
	go func() {
		readers.Wait()
		close(k.gone)
	}()
	select {
	case <-exited:
	case <-k.gone: // it closed its sockets: it is ending, or useless
		select {
		case <-exited:
		case <-k.stop:
		case <-time.After(shutdownTime):
		}
	}
	select {
	case <-k.gone: // the last output has been read
	case <-k.stop:
	case <-time.After(drainTime):
	}
	k.kill(errKernelDied)
	<-k.gone
	<-exited
	k.removeFiles()
	close(k.done)
}

func (k *kernel) read(c *zmtp.Conn, shell bool) {
	for {
		raw, err := c.Recv()
		if err != nil {
			return
		}
		m := message{Skipped: raw.Skipped}
		if raw.Skipped == 0 {
			if m, err = k.codec.decode(raw.Parts); err != nil {
				continue // forged or broken: not from the kernel's own session
			}
		}
		m.Shell = shell
		if !k.deliver(m) {
			return
		}
	}
}

// deliver hands m to whoever waits for it and blocks until it is taken; so a slow
// reader stops the kernel. It returns false once the kernel has been killed.
func (k *kernel) deliver(m message) bool {
	k.mu.Lock()
	r := k.requests[m.Parent]
	if m.Skipped > 0 { // nobody knows whose it was: one request runs at a time
		for _, r = range k.requests {
			break
		}
	}
	k.mu.Unlock()
	if r == nil {
		return true
	}
	select {
	case r.messages <- m:
	case <-r.finished:
	case <-k.stop:
		return false
	}
	return true
}

// send sends a request on the shell channel. The caller reads its messages and
// then calls finish.
func (k *kernel) send(msgType string, content, metadata any) (*request, error) {
	id, parts, err := k.codec.encode(msgType, content, metadata)
	if err != nil {
		return nil, err
	}
	r := &request{id: id, messages: make(chan message), finished: make(chan struct{})}
	k.mu.Lock()
	k.requests[id] = r
	k.mu.Unlock()
	if err := k.shell.Send(parts...); err != nil {
		k.finish(r)
		return nil, err
	}
	return r, nil
}

func (k *kernel) finish(r *request) {
	k.mu.Lock()
	delete(k.requests, r.id)
	k.mu.Unlock()
	close(r.finished)
}

// interrupt asks the kernel to stop what it runs.
func (k *kernel) interrupt() {
	if k.spec.Interrupt != "message" {
		k.signal(syscall.SIGINT)
		return
	}
	if _, parts, err := k.codec.encode("interrupt_request", struct{}{}, struct{}{}); err == nil {
		_ = k.control.Send(parts...)
	}
}

// kill ends the kernel at once. The first cause is the one that is reported.
func (k *kernel) kill(cause error) {
	k.mu.Lock()
	first := k.cause == nil
	if first {
		k.cause = cause
		close(k.stop)
	}
	k.mu.Unlock()
	if first {
		k.signal(syscall.SIGKILL)
		k.close()
	}
}

// signal reaches the kernel's process group while the process lives; later its
// number may be somebody else's.
func (k *kernel) signal(sig syscall.Signal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.exit == "" {
		_ = k.proc.Signal(sig)
	}
}

// shutdown lets the kernel end by itself for a moment, then kills it. Whatever
// runs in it ends with cause.
func (k *kernel) shutdown(cause error) {
	k.mu.Lock()
	idle := len(k.requests) == 0 && k.cause == nil
	k.mu.Unlock()
	if idle {
		_, parts, err := k.codec.encode("shutdown_request", map[string]bool{"restart": false}, struct{}{})
		if err == nil && k.control.Send(parts...) == nil {
			select {
			case <-k.gone:
			case <-time.After(shutdownTime):
			}
		}
	}
	k.kill(cause)
	<-k.done
}

// end returns how the kernel's process ended and why the kernel is gone.
func (k *kernel) end() (exit string, cause error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cause == nil {
		return k.exit, errKernelDied
	}
	return k.exit, k.cause
}

func (k *kernel) alive() bool {
	select {
	case <-k.stop:
		return false
	case <-k.gone:
		return false
	default:
		return true
	}
}

func (k *kernel) close() {
	for _, c := range []*zmtp.Conn{k.shell, k.control, k.iopub} {
		if c != nil {
			_ = c.Close()
		}
	}
}

func (k *kernel) removeFiles() {
	for _, f := range k.files {
		_ = os.RemoveAll(f)
	}
}
