package app

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// share is the part of the process's descriptors that clients' connections may
// take, and again requests into sandboxes: one of so many. The rest is the
// server's own, which must be able to start, stop and write while strangers call.
const share = 4

// descriptors is how many files this process may have open.
func descriptors() int {
	const least, most = 256, 1 << 20
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return least
	}
	return int(min(max(lim.Cur, least), most))
}

// crowd is a TCP listener with a bounded number of open connections. Who comes
// when it is full waits in the kernel's queue.
type crowd struct {
	*net.TCPListener
	room   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newCrowd(l *net.TCPListener, most int) *crowd {
	return &crowd{TCPListener: l, room: make(chan struct{}, most), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (c *crowd) Accept() (net.Conn, error) {
	select {
	case c.room <- struct{}{}:
	case <-c.closed:
		return nil, net.ErrClosed
	}
	conn, err := c.TCPListener.AcceptTCP()
	if err != nil {
		<-c.room
		return nil, err
	}
	return &visitor{TCPConn: conn, leave: sync.OnceFunc(func() { <-c.room })}, nil
}

// Close implements net.Listener.
func (c *crowd) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.TCPListener.Close()
}

// visitor is an open connection. It keeps what TCP can do beyond net.Conn.
type visitor struct {
	*net.TCPConn
	leave func()
}

// Close implements net.Conn.
func (v *visitor) Close() error {
	defer v.leave()
	return v.TCPConn.Close()
}
