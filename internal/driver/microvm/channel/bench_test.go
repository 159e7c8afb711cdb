package channel

import (
	"io"
	"net"
	"path/filepath"
	"testing"
)

// BenchmarkUpload and BenchmarkDownload move 1 MiB pieces through a session on a
// Unix socket, to and from a program behind TCP.
func BenchmarkUpload(b *testing.B) {
	conn := benchConn(b, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	piece := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	for b.Loop() {
		if _, err := conn.Write(piece); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDownload(b *testing.B) {
	conn := benchConn(b, func(c net.Conn) {
		piece := make([]byte, 1<<20)
		for {
			if _, err := c.Write(piece); err != nil {
				return
			}
		}
	})
	piece := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	for b.Loop() {
		if _, err := io.ReadFull(conn, piece); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDial opens and closes connections.
func BenchmarkDial(b *testing.B) {
	c := benchChannel(b, func(net.Conn) {})
	for b.Loop() {
		conn, err := c.Dial(b.Context(), 1)
		if err != nil {
			b.Fatal(err)
		}
		_ = conn.Close()
	}
}

func benchConn(b *testing.B, serve func(net.Conn)) net.Conn {
	conn, err := benchChannel(b, serve).Dial(b.Context(), 1)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	return conn
}

func benchChannel(b *testing.B, serve func(net.Conn)) *Channel {
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	host, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	guest, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	g := newTestGuest()
	g.ports[1] = serve
	go func() { _ = Serve(guest, g) }()
	c, err := Open(b.Context(), host)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = c.Close()
		g.conns.Wait()
	})
	if err := c.Configure(b.Context(), settings()); err != nil {
		b.Fatal(err)
	}
	return c
}
