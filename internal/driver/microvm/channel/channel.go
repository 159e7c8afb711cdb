// Package channel is how a host and the first process of a machine talk without
// the guest's network: streams, multiplexed over one connection that may be cut
// anywhere and taken up again by another life of the host.
package channel

import (
	"context"
	"net"
	"net/netip"
	"time"

	"hearth/internal/hearth"
)

// Settings are what a machine is told at every start, restore and thaw.
type Settings struct {
	Now      time.Time    `json:"now"`
	Seed     []byte       `json:"seed"` // entropy, 16 to 64 bytes
	Hostname string       `json:"hostname,omitempty"`
	Device   string       `json:"device,omitempty"`   // the guest's interface, "eth0"; empty: no network
	MAC      string       `json:"mac,omitempty"`      // empty: as it is
	Address  netip.Prefix `json:"address,omitzero"`   // replaces every other address of Device
	Gateway  netip.Addr   `json:"gateway,omitzero"`   // default route; zero: none
	Restored bool         `json:"restored,omitempty"` // TCP connections to the outside are of another life: end them
}

// Exit says how the first program of a machine ended.
type Exit struct {
	Code   int    `json:"code"`             // exit status; 128 + signal for one that was killed
	Signal int    `json:"signal,omitempty"` // which killed it
	OOM    bool   `json:"oom,omitempty"`    // the guest's kernel killed it for want of memory
	Reason string `json:"reason,omitempty"` // why the machine could not go on, where it did not end by itself
}

// Channel is the host's end. Methods may be called at once from many
// goroutines; none blocks beyond its context, whatever the guest does.
type Channel struct{}

// Open takes over a connection to the guest: whatever an earlier host, or the
// guest before it was restored, had left half done on it is discarded, and
// streams of before are closed in the guest. It waits for a guest that does not
// answer yet. conn is closed with the Channel, and when Open fails.
func Open(ctx context.Context, conn net.Conn) (*Channel, error) {
	_ = conn.Close()
	return nil, hearth.Errorf(hearth.Unimplemented, "not yet")
}

// DialVsock connects to a port of the guest by the Unix socket that Firecracker
// offers for its vsock device, and waits until the guest listens.
func DialVsock(ctx context.Context, socket string, port uint32) (net.Conn, error) {
	return nil, hearth.Errorf(hearth.Unimplemented, "not yet")
}

// Configure must be called once on every Channel before Dial, and again after a
// thaw. It returns when the settings hold in the guest.
func (c *Channel) Configure(ctx context.Context, s Settings) error {
	return hearth.Errorf(hearth.Unimplemented, "not yet")
}

// Dial connects to a TCP port inside the guest. The connection has CloseWrite,
// beside what net.Conn has. A port where nothing listens gives an error that
// wraps syscall.ECONNREFUSED.
func (c *Channel) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	return nil, hearth.Errorf(hearth.Unimplemented, "not yet")
}

// Wait returns when the machine's first program has ended. The guest then
// powers off, at the latest after a few seconds.
func (c *Channel) Wait(ctx context.Context) (Exit, error) {
	return Exit{}, hearth.Errorf(hearth.Unimplemented, "not yet")
}

// Done is closed when the channel is no longer usable: closed, the connection
// ended, or the guest broke the protocol. Err then says why.
func (c *Channel) Done() <-chan struct{} { return nil }

// Err is nil until Done is closed.
func (c *Channel) Err() error { return nil }

// Close closes the connection and every stream. Idempotent.
func (c *Channel) Close() error { return nil }
