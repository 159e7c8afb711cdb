package zmtp_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"hearth/internal/guest/code/zmtp"
)

// pair connects two ends; each side of ZMTP's NULL handshake is the same.
func pair(t *testing.T, kind zmtp.SocketType, limit int64) (client, server *zmtp.Conn) {
	t.Helper()
	a, b := socketPair(t)
	type made struct {
		c   *zmtp.Conn
		err error
	}
	ch := make(chan made, 1)
	go func() {
		c, err := zmtp.New(b, "ROUTER", limit)
		ch <- made{c, err}
	}()
	client, err := zmtp.New(a, kind, limit)
	if err != nil {
		t.Fatal(err)
	}
	m := <-ch
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { _, _ = client.Close(), m.c.Close() })
	return client, m.c
}

// socketPair is a connected pair with buffers, which net.Pipe lacks.
func socketPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ch := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		ch <- c
	}()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	return a, <-ch
}

func TestMessages(t *testing.T) {
	client, server := pair(t, zmtp.Dealer, 1<<20)
	sent := [][]byte{{}, []byte("a"), bytes.Repeat([]byte("b"), 255), bytes.Repeat([]byte("c"), 256), bytes.Repeat([]byte("d"), 70000)}
	for range 3 {
		if err := client.Send(sent...); err != nil {
			t.Fatal(err)
		}
		m, err := server.Recv()
		if err != nil || !slices.EqualFunc(m.Parts, sent, bytes.Equal) || m.Skipped != 0 {
			t.Fatalf("%d parts, skipped %d, %v", len(m.Parts), m.Skipped, err)
		}
	}
}

func TestOversizedMessageIsSkipped(t *testing.T) {
	client, server := pair(t, zmtp.Dealer, 1000)
	large := [][]byte{[]byte("first"), make([]byte, 996), []byte("last")}
	if err := errors.Join(client.Send(large...), client.Send([]byte("next"))); err != nil {
		t.Fatal(err)
	}
	m, err := server.Recv()
	if err != nil || m.Skipped != 1005 || m.Parts != nil {
		t.Fatalf("%+v %v", m, err)
	}
	if m, err = server.Recv(); err != nil || string(m.Parts[0]) != "next" {
		t.Fatalf("%+v %v", m, err)
	}
}

func TestSubscribes(t *testing.T) {
	_, server := pair(t, zmtp.Sub, 1000)
	if m, err := server.Recv(); err != nil || !bytes.Equal(m.Parts[0], []byte{1}) {
		t.Fatalf("%+v %v", m, err)
	}
}

func TestEnd(t *testing.T) {
	client, server := pair(t, zmtp.Dealer, 1000)
	_ = client.Close()
	if _, err := server.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

// greetingBytes are the first bytes of a well-behaved peer.
func greetingBytes() []byte {
	b := make([]byte, 64)
	b[0], b[9], b[10] = 0xff, 0x7f, 3
	copy(b[12:], "NULL")
	return append(b, "\x04\x06\x05READY"...)
}

func TestBadPeers(t *testing.T) {
	good := greetingBytes()
	with := func(at int, value byte) []byte {
		b := bytes.Clone(good)
		b[at] = value
		return b
	}
	for name, tc := range map[string]struct {
		bytes []byte
		want  string
	}{
		"not ZMTP":       {bytes: []byte(strings.Repeat("HTTP/1.1 ", 10)), want: "greeting"},
		"ZMTP 2":         {bytes: with(10, 2), want: "greeting"},
		"curve":          {bytes: with(12, 'C'), want: "mechanism"},
		"no READY":       {bytes: with(64, 0), want: "before READY"},
		"refused":        {bytes: append(bytes.Clone(good[:64]), "\x04\x06\x05ERROR"...), want: "refused"},
		"large command":  {bytes: append(bytes.Clone(good[:64]), 6, 0, 0, 0, 0, 1, 0, 0, 0), want: "command of"},
		"reserved flags": {bytes: append(bytes.Clone(good), 0x80), want: "flags"},
		"huge frame":     {bytes: append(bytes.Clone(good), 2, 0xff, 0, 0, 0, 0, 0, 0, 0), want: "frame of"},
		"endless parts":  {bytes: append(bytes.Clone(good), bytes.Repeat([]byte{1, 0}, 200)...), want: "parts"},
		"cut frame":      {bytes: append(bytes.Clone(good), 0, 9, 'x'), want: "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := talk(t, tc.bytes); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestPing(t *testing.T) {
	a, b := socketPair(t)
	defer b.Close()
	ping := append(greetingBytes(), "\x04\x09\x04PING\x00\x0act"...)
	if _, err := b.Write(ping); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write([]byte("\x00\x01m")); err != nil {
		t.Fatal(err)
	}
	c, err := zmtp.New(a, zmtp.Dealer, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if m, err := c.Recv(); err != nil || string(m.Parts[0]) != "m" {
		t.Fatalf("%+v %v", m, err)
	}
	_ = c.Close()
	sent, _ := io.ReadAll(b)
	if !bytes.HasSuffix(sent, []byte("\x04\x07\x04PONGct")) {
		t.Fatalf("no PONG: %q", sent)
	}
}

// talk lets a peer say something and returns the first error of the client.
func talk(t testing.TB, said []byte) error {
	a, b := socketPair(t)
	defer b.Close()
	go func() { _, _ = io.Copy(io.Discard, b) }()
	go func() {
		_, _ = b.Write(said)
		_ = b.(*net.TCPConn).CloseWrite()
	}()
	c, err := zmtp.New(a, zmtp.Sub, 1<<16)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		m, err := c.Recv()
		if err != nil {
			return err
		}
		var size int
		for _, p := range m.Parts {
			size += len(p)
		}
		if size > 1<<16 {
			t.Fatalf("a message of %d bytes came through a limit of %d", size, 1<<16)
		}
	}
}

func FuzzPeer(f *testing.F) {
	f.Add([]byte{0, 1, 'x'})
	f.Add([]byte{1, 0, 0, 0})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 1, 0, 0})
	f.Add([]byte("\x04\x09\x04PING\x00\x01ct"))
	f.Fuzz(func(t *testing.T, after []byte) {
		if err := talk(t, append(greetingBytes(), after...)); err == nil {
			t.Fatal("no end")
		}
	})
}
