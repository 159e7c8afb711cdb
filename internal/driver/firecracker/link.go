package firecracker

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/firecracker/vmm"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/channel"
	"hearth/internal/hearth"
)

// guestDevice is the guest's network interface.
const guestDevice = "eth0"

// link is a machine's guest channel, opened when it is first needed, and again
// when it broke.
type link struct {
	turn chan struct{} // holds one token: who has it may open or configure
	open *channel.Channel
	told bool // the guest knows that it was restored
}

// connected returns the channel. Nothing was served over it before the guest had
// clock, entropy and identity.
func (m *machine) connected(ctx context.Context) (*channel.Channel, error) {
	if err := m.takeLink(ctx); err != nil {
		return nil, err
	}
	defer func() { m.link.turn <- struct{}{} }()
	if c := m.link.open; c != nil {
		select {
		case <-c.Done():
		default:
			return c, nil
		}
	}
	return m.connect(ctx)
}

func (m *machine) takeLink(ctx context.Context) error {
	select {
	case <-m.link.turn:
		return nil
	case <-m.done:
		return m.ended()
	case <-ctx.Done():
		return hearth.Wrap(hearth.DeadlineExceeded, context.Cause(ctx), "machine %s does not answer", m.id)
	}
}

// connect opens and configures a channel. The caller holds the link's turn.
func (m *machine) connect(ctx context.Context) (*channel.Channel, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer m.cancelAtEnd(cancel)()
	// Its directory's descriptor stands for a path that may be too long for a socket.
	dir, err := os.OpenFile(m.jail.Root(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "machine %s has no jail", m.id)
	}
	defer dir.Close()
	conn, err := channel.DialVsock(ctx, fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), vsockSocket), microvm.VsockPort)
	if err != nil {
		return nil, m.orEnded(err)
	}
	if err := vmm.CheckPeer(conn, m.jail.UID); err != nil {
		_ = conn.Close()
		return nil, hearth.Wrap(hearth.Internal, err, "machine %s has a false socket", m.id)
	}
	c, err := channel.Open(ctx, conn)
	if err != nil {
		return nil, m.orEnded(err)
	}
	if err := c.Configure(ctx, m.settings()); err != nil {
		_ = c.Close()
		return nil, m.orEnded(err)
	}
	if old := m.link.open; old != nil {
		_ = old.Close()
	}
	m.link.open, m.link.told = c, true
	go m.awaitGuest(c)
	return c, nil
}

// configure tells the guest clock, entropy and identity anew.
func (m *machine) configure(ctx context.Context) error {
	if err := m.takeLink(ctx); err != nil {
		return err
	}
	defer func() { m.link.turn <- struct{}{} }()
	if c := m.link.open; c != nil {
		if err := c.Configure(ctx, m.settings()); err == nil || ctx.Err() != nil {
			return err
		}
	}
	_, err := m.connect(ctx) // which configures
	return err
}

// settings are what the guest is told. That it was restored it is told once.
func (m *machine) settings() channel.Settings {
	s := channel.Settings{
		Now: time.Now(), Seed: microvm.NewSeed(), Hostname: m.state.Hostname,
		Restored: m.state.restored() && !m.link.told,
	}
	if n := m.state.Net; n.Tap != "" {
		s.Device, s.MAC, s.Address, s.Gateway = guestDevice, n.MAC.String(), n.Guest, n.Gateway
	}
	return s
}

// cancelAtEnd cancels when the machine ends; what it returns stops that.
func (m *machine) cancelAtEnd(cancel context.CancelCauseFunc) (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-m.done:
			cancel(m.ended())
		case <-over:
		}
	}()
	return func() { close(over) }
}

// orEnded is the machine's end, if that is why err came about.
func (m *machine) orEnded(err error) error {
	select {
	case <-m.done:
		return m.ended()
	default:
		return fmt.Errorf("machine %s: %w", m.id, err)
	}
}

// awaitGuest notes how the guest's first program ended.
func (m *machine) awaitGuest(c *channel.Channel) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-m.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	if exit, err := c.Wait(ctx); err == nil {
		m.guestExit.Store(&exit)
	}
}

// Dial connects to a port inside the guest by the guest channel.
func (m *machine) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	if port == 0 {
		return nil, hearth.Errorf(hearth.InvalidArgument, "port 0 is not within 1 to 65535")
	}
	for again := true; ; again = false {
		c, err := m.connected(ctx)
		if err != nil {
			return nil, err
		}
		conn, err := c.Dial(ctx, port)
		if err == nil {
			return conn, nil
		}
		select {
		case <-m.done:
			return nil, m.ended()
		case <-c.Done(): // it broke under the call, as it does when the guest was restored
			if again && ctx.Err() == nil {
				continue
			}
		default:
		}
		return nil, err
	}
}
