package channel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"hearth/internal/hearth"
)

// hello is what a host sends first.
func hello(nonce byte) []byte {
	b := append(make([]byte, resync), magic...)
	return append(b, bytes.Repeat([]byte{nonce}, nonceBytes)...)
}

func request(b []byte, id uint32, what byte, payload []byte) []byte {
	var m bytes.Buffer
	_ = writeMessage(&m, what, payload)
	b = appendFrame(b, frameOpen, id, nil)
	return appendFrame(b, frameData, id, m.Bytes())
}

const settingsJSON = `{"now":"2030-01-01T00:00:00Z","seed":"MDEyMzQ1Njc4OWFiY2RlZg=="}`

// conversation is all that a host sends that configures its guest, dials port 1
// and sends text in frames of random sizes.
func conversation(text []byte) []byte {
	b := request(hello(1), 1, wantConfigure, []byte(settingsJSON))
	b = request(b, 2, wantDial, []byte{0, 1})
	for len(text) > 0 {
		n := min(1+rand.IntN(5000), len(text))
		b = appendFrame(b, frameData, 2, text[:n])
		text = text[n:]
	}
	return b
}

// TestHostDiesAnywhere cuts a host's conversation at random places. The next
// host always gets a session of its own, and the guest's program has got nothing
// but what was sent, in order, and then an end.
func TestHostDiesAnywhere(t *testing.T) {
	text := make([]byte, 60<<10)
	for i := range text {
		text[i] = byte(i*7 + i>>8)
	}
	all := conversation(text)
	cuts := []int{0, 1, resync, resync + 5, resync + len(magic) + 3, len(all) - 1, len(all)}
	for range 60 {
		cuts = append(cuts, resync+rand.IntN(len(all)-resync))
	}
	for _, cut := range cuts {
		afterCut(t, text, all[:cut])
	}
}

func afterCut(t *testing.T, text, sent []byte) {
	t.Helper()
	g := newTestGuest()
	got := make(chan []byte, 1)
	dialed := false
	g.ports[1] = func(c net.Conn) {
		dialed = true
		all, _ := io.ReadAll(c)
		got <- all
	}
	g.ports[2] = echo
	host, guest := pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = Serve(guest, g)
	}()
	if _, err := host.Write(sent); err != nil {
		t.Fatal(err)
	}
	c := open(t, host) // the first host is gone; what it left comes before this one's
	if err := c.Configure(t.Context(), settings()); err != nil {
		t.Fatalf("cut at %d: %v", len(sent), err)
	}
	conn := dial(t, c, 2)
	_, _ = conn.Write([]byte("alive"))
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		t.Fatalf("cut at %d: %v", len(sent), err)
	}
	_ = c.Close()
	_ = guest.Close()
	<-done
	g.conns.Wait()
	if dialed {
		if b := <-got; !bytes.HasPrefix(text, b) {
			t.Fatalf("cut at %d: the program got %d bytes that were never sent", len(sent), len(b))
		}
	}
}

// TestStaleAnswersAreDiscarded: a guest that was restored still says what it had
// begun to say to another host, even an answer to another host's greeting.
func TestStaleAnswersAreDiscarded(t *testing.T) {
	stale := [][]byte{
		nil,
		[]byte("garbage"),
		append([]byte(magic), bytes.Repeat([]byte{9}, nonceBytes)...),
		[]byte(magic),
		[]byte(magic[:7]),
		appendFrame(nil, frameData, 7, make([]byte, maxPayload))[:20000],
		make([]byte, 3*frameBytes),
	}
	for i, s := range stale {
		host, guest := pair(t)
		g := newTestGuest()
		if _, err := guest.Write(s); err != nil {
			t.Fatal(err)
		}
		serve(t, guest, g)
		c := open(t, host)
		if err := c.Configure(t.Context(), settings()); err != nil {
			t.Errorf("case %d: %v", i, err)
		}
		_ = c.Close()
	}
}

// TestOpenGivesUp: on a guest that never answers, and one that never stops talking.
func TestOpenGivesUp(t *testing.T) {
	for name, talk := range map[string]func(net.Conn){
		"silent": func(net.Conn) {},
		"chatty": func(c net.Conn) {
			for {
				if _, err := c.Write(bytes.Repeat([]byte(magic), 1000)); err != nil {
					return
				}
			}
		},
	} {
		host, guest := pair(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			talk(guest)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := Open(ctx, host); hearth.KindOf(err) != hearth.DeadlineExceeded {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		_ = guest.Close()
		<-done
	}
	host, guest := pair(t)
	_ = guest.Close()
	if _, err := Open(t.Context(), host); hearth.KindOf(err) != hearth.Unavailable {
		t.Errorf("closed: %v", err)
	}
}

// script plays a guest that answers the greeting, and then says whatever says returns
// when it has read until more.
func script(t *testing.T, says func(c net.Conn)) *Channel {
	t.Helper()
	host, guest := pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		in := newFrameReader(guest)
		if in.hunt([]byte(magic)) != nil {
			return
		}
		n, err := in.nonce()
		if err != nil {
			return
		}
		_, _ = guest.Write(append([]byte(magic), n...))
		says(guest)
	}()
	t.Cleanup(func() {
		_ = guest.Close()
		<-done
	})
	return open(t, host)
}

// TestLyingGuest: every break of the protocol ends the channel with an error.
func TestLyingGuest(t *testing.T) {
	credit := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for name, lie := range map[string][]byte{
		"no frame":            []byte("HTTP/1.1 200 OK\r\n"),
		"zeros":               make([]byte, 100),
		"wrong check":         {byte(frameData), 0, 0, 1, 0, 0, 0, 1, 1, trailer},
		"empty data":          appendFrame(nil, frameData, 1, nil),
		"long fin":            appendFrame(nil, frameFin, 1, []byte{0, 0}),
		"wrong trailer":       append(appendFrame(nil, frameData, 1, []byte("x"))[:headerBytes+1], 0),
		"stream of tomorrow":  appendFrame(nil, frameData, 99, []byte("x")),
		"stream 0":            appendFrame(nil, frameStop, 0, nil),
		"opens":               appendFrame(nil, frameOpen, 1, nil),
		"endless credit":      appendFrame(nil, frameCredit, 1, credit(1<<31)),
		"unasked credit":      appendFrame(nil, frameCredit, 1, credit(window)),
		"ends twice":          appendFrame(appendFrame(nil, frameFin, 1, []byte{0}), frameFin, 1, []byte{0}),
		"data after the end":  appendFrame(appendFrame(nil, frameFin, 1, []byte{0}), frameData, 1, []byte("x")),
		"more than its share": bytes.Repeat(appendFrame(nil, frameData, 1, make([]byte, maxPayload)), window/maxPayload+2),
	} {
		t.Run(name, func(t *testing.T) {
			c := script(t, func(guest net.Conn) {
				_, _ = io.ReadFull(guest, make([]byte, headerBytes+1)) // the first stream opens
				_, _ = guest.Write(lie)
				_, _ = io.Copy(io.Discard, guest)
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			st, _ := c.s.open(ctx.Done()) // may come too late
			select {
			case <-c.Done():
			case <-ctx.Done():
				t.Fatal("the channel lives on")
			}
			if !errors.Is(c.Err(), errGarbage) {
				t.Errorf("got %v", c.Err())
			}
			if st != nil {
				if _, err := io.ReadAll(st); err == nil && !bytes.Contains(lie, appendFrame(nil, frameFin, 1, []byte{0})) {
					t.Error("a stream of a broken session ends as if all were well")
				}
			}
			if _, err := c.Dial(ctx, 1); hearth.KindOf(err) != hearth.Unavailable {
				t.Errorf("Dial: %v", err)
			}
		})
	}
}

// TestSilentGuest: a frozen guest holds nobody longer than their context.
func TestSilentGuest(t *testing.T) {
	stay := make(chan struct{})
	c := script(t, func(net.Conn) { <-stay })
	defer close(stay)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Dial(ctx, 1); hearth.KindOf(err) != hearth.DeadlineExceeded {
		t.Errorf("Dial: %v", err)
	}
	// Enough requests to fill every buffer on the way.
	for range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		long := settings()
		long.Hostname = strings.Repeat("x", 64)
		if err := c.Configure(ctx, long); hearth.KindOf(err) != hearth.DeadlineExceeded {
			t.Fatalf("Configure: %v", err)
		}
		cancel()
	}
}

// FuzzServe: whatever a guest has received before, the next host gets a session.
func FuzzServe(f *testing.F) {
	f.Add([]byte("garbage"))
	f.Add(conversation([]byte("some text"))[resync:])
	f.Add(request([]byte(magic+"0123456789abcdef"), 3, wantExit, nil))
	f.Fuzz(func(t *testing.T, before []byte) {
		host, guest := pair(t)
		g := newTestGuest()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = Serve(guest, g)
		}()
		if _, err := host.Write(before[:min(len(before), 64<<10)]); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err := Open(ctx, host)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Configure(ctx, settings()); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		_ = guest.Close()
		<-done
	})
}

// FuzzGuest: whatever a guest says, a host neither panics nor waits for ever.
func FuzzGuest(f *testing.F) {
	f.Add(appendFrame(nil, frameData, 1, []byte{statusOK, 0, 0}))
	f.Add(appendFrame(appendFrame(nil, frameCredit, 1, []byte{0, 0, 0, 3}), frameFin, 1, []byte{1}))
	f.Add([]byte("garbage"))
	f.Fuzz(func(t *testing.T, says []byte) {
		in := newFrameReader(bytes.NewReader(says))
		s := newSession(hostSide, io.Discard, nil)
		st, err := s.open(nil)
		if err != nil {
			t.Fatal(err)
		}
		if s.run(in) == nil {
			t.Error("the session ended without a reason")
		}
		if n := len(st.buf); n > window {
			t.Errorf("%d bytes of one stream", n)
		}
		if _, err := io.ReadAll(st); err == nil && !st.recvEnd {
			t.Error("an end that nobody said")
		}
		<-s.flown
	})
}
