package vminit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/microvm/channel"
)

const (
	dialTime = 5 * time.Second
	// A port without a host reads as ended. A host comes back soon after a
	// restore or a restart of Hearth, or much later.
	portSoon   = 2 * time.Millisecond
	portLate   = 50 * time.Millisecond
	portEager  = 5 * time.Second
	portFolder = "/sys/class/virtio-ports"
)

// listen serves hosts for as long as the machine is there.
func (m *machine) listen() {
	serve := m.serveSerial
	if m.options.channel == Vsock {
		serve = m.serveVsock
	}
	for {
		logf("channel: %v", serve())
		time.Sleep(portLate)
	}
}

// serveSerial serves on the port named PortName, which is opened once: whoever
// is in this machine finds it busy.
func (m *machine) serveSerial() error {
	path, err := findPort()
	if err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	port := os.NewFile(uintptr(fd), path) // blocking: a thread each for reading and writing
	defer port.Close()
	lost := time.Now()
	for {
		err := channel.Serve(port, m)
		if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if time.Since(lost) < portEager {
			time.Sleep(portSoon)
		} else {
			time.Sleep(portLate)
		}
	}
}

// findPort waits for the port.
func findPort() (string, error) {
	for began := time.Now(); ; time.Sleep(diskRetry) {
		names, _ := filepath.Glob(portFolder + "/*/name")
		for _, n := range names {
			if raw, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(raw)) == PortName {
				return "/dev/" + filepath.Base(filepath.Dir(n)), nil
			}
		}
		if time.Since(began) > diskTime {
			return "", fmt.Errorf("there is no virtio-serial port named %q", PortName)
		}
	}
}

// serveVsock serves the newest connection from the host.
func (m *machine) serveVsock() error {
	l, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	defer unix.Close(l)
	if err := unix.Bind(l, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: VsockPort}); err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	if err := unix.Listen(l, 16); err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	var before *os.File
	for {
		fd, from, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return fmt.Errorf("vsock: %w", err)
		}
		if peer, ok := from.(*unix.SockaddrVM); !ok || peer.CID != unix.VMADDR_CID_HOST {
			_ = unix.Close(fd) // somebody inside
			continue
		}
		if before != nil {
			_ = unix.Shutdown(int(before.Fd()), unix.SHUT_RDWR)
		}
		conn := os.NewFile(uintptr(fd), "vsock")
		before = conn
		go func() {
			_ = channel.Serve(conn, m)
			_ = conn.Close()
		}()
	}
}

// Dial implements channel.Guest: whatever listens on the loopback, else on the
// machine's own address.
func (m *machine) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTime}
	to := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	if own := m.net.address(); own.IsValid() {
		to = append(to, own)
	}
	var first error
	for _, a := range to {
		conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(a, port).String())
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if !errors.Is(err, syscall.ECONNREFUSED) && a.IsLoopback() && a.Is4() {
			return nil, err
		}
	}
	return nil, first
}

// Configure implements channel.Guest.
func (m *machine) Configure(s channel.Settings) error {
	m.disk.thaw()
	if err := stir(s.Seed); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	if err := setClock(s.Now); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("hostname: %w", err)
		}
	}
	if s.Device == "" {
		return nil
	}
	if err := m.net.configure(s); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if s.Restored {
		if err := endOutside(); err != nil {
			return fmt.Errorf("connections of before: %w", err)
		}
	}
	return nil
}

// setClock corrects the wall clock, but not by what the message itself may have taken.
func setClock(now time.Time) error {
	const behind, ahead = 10 * time.Millisecond, time.Second
	if off := time.Until(now); off <= behind && off >= -ahead {
		return nil
	}
	tv := unix.NsecToTimeval(now.UnixNano())
	return unix.Settimeofday(&tv)
}

// stir mixes the seed into the kernel's generator and makes it start over with
// it: two machines restored from one checkpoint must not draw the same numbers.
func stir(seed []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	type entropy struct {
		bits, size int32
		buf        [64]byte
	}
	e := entropy{size: int32(min(len(seed), 64))}
	e.bits = e.size * 8
	copy(e.buf[:], seed)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&e))); errno != 0 {
		return errno
	}
	return unix.IoctlSetInt(int(f.Fd()), unix.RNDRESEEDCRNG, 0)
}
