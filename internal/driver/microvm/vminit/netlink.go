package vminit

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	netlinkHeader  = 16
	netlinkSeconds = 2
	netlinkBuffer  = 64 << 10
)

// netlink is a conversation with the kernel about one subject.
type netlink struct {
	fd  int
	seq uint32
}

func openNetlink(family int) (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: netlinkSeconds}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &netlink{fd: fd}, nil
}

func (n *netlink) close() { _ = unix.Close(n.fd) }

// ask sends a message and returns the bodies of the answers. Without NLM_F_DUMP in
// flags there are none, and the kernel acknowledges.
func (n *netlink) ask(kind, flags uint16, body []byte) ([][]byte, error) {
	n.seq++
	if flags&unix.NLM_F_DUMP != unix.NLM_F_DUMP { // two bits, of which one has another meaning here
		flags |= unix.NLM_F_ACK
	}
	msg := make([]byte, netlinkHeader, netlinkHeader+len(body))
	binary.NativeEndian.PutUint32(msg, uint32(netlinkHeader+len(body)))
	binary.NativeEndian.PutUint16(msg[4:], kind)
	binary.NativeEndian.PutUint16(msg[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(msg[8:], n.seq)
	if err := unix.Sendto(n.fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var answers [][]byte
	buf := make([]byte, netlinkBuffer)
	for {
		got, _, err := unix.Recvfrom(n.fd, buf, 0)
		if err != nil {
			return nil, err
		}
		done, more, err := n.parse(buf[:got])
		if err != nil {
			return nil, err
		}
		answers = append(answers, more...)
		if done {
			return answers, nil
		}
	}
}

// parse takes a datagram apart.
func (n *netlink) parse(b []byte) (done bool, answers [][]byte, err error) {
	for len(b) >= netlinkHeader {
		size := int(binary.NativeEndian.Uint32(b))
		if size < netlinkHeader || size > len(b) {
			return false, nil, fmt.Errorf("a netlink message of %d bytes", size)
		}
		kind, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
		body := b[netlinkHeader:size]
		b = b[min(len(b), (size+3)&^3):]
		if seq != n.seq {
			continue // of an earlier question that timed out
		}
		switch kind {
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			if len(body) >= 4 {
				if errno := int32(binary.NativeEndian.Uint32(body)); errno < 0 {
					return true, nil, unix.Errno(-errno)
				}
			}
			return true, answers, nil
		}
		answers = append(answers, append([]byte(nil), body...))
	}
	return false, answers, nil
}

// attribute appends a netlink attribute.
func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// attributes returns the values of the attributes in b.
func attributes(b []byte) map[uint16][]byte {
	m := map[uint16][]byte{}
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			break
		}
		m[binary.NativeEndian.Uint16(b[2:])] = b[4:size]
		b = b[min(len(b), (size+3)&^3):]
	}
	return m
}
