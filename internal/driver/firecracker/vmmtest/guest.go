package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/channel"
)

// guest is what runs in the machine: the guest's end of the channel, and behind
// it, on port 8080, what drivertest's testguest does. Words put under /memory are
// kept in the machine's memory, files under /file on its disk, and nowhere else.
type guest struct {
	v      *vm
	disk   string
	mu     sync.Mutex
	exit   chan struct{}
	code   int
	served net.Conn // the last host's; a new host ends it
	mux    *http.ServeMux
}

func newGuest(v *vm, restored bool) (*guest, error) {
	g := &guest{v: v, exit: make(chan struct{}), mux: http.NewServeMux()}
	for _, d := range v.cfg.Drives {
		if !d.IsReadOnly {
			g.disk = d.PathOnHost
		}
	}
	if restored {
		if _, err := v.ram.words(); err != nil { // its memory is touched before anybody asks
			return nil, err
		}
	}
	g.mux.HandleFunc("/ticks", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, 0) })
	g.mux.HandleFunc("/memory", g.cell("key", v.ram.words, v.ram.setWords))
	g.mux.HandleFunc("/file", g.cell("path", g.files, g.setFiles))
	g.mux.HandleFunc("/console", func(_ http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("mib"))
		for range n << 4 {
			_, _ = os.Stdout.Write(bytes.Repeat([]byte{'x'}, 64<<10))
		}
	})
	g.mux.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.code, _ = strconv.Atoi(r.FormValue("code"))
		select {
		case <-g.exit:
		default:
			close(g.exit)
			time.AfterFunc(2*time.Second, func() { v.ended <- 0 })
		}
	})
	return g, nil
}

// cell serves one word of a store.
func (g *guest) cell(field string, load func() (map[string]string, error), store func(map[string]string) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		words, err := load()
		if err == nil && r.Method == http.MethodPost {
			words[r.FormValue(field)] = r.FormValue("value")
			err = store(words)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if r.Method != http.MethodPost {
			fmt.Fprint(w, words[r.FormValue(field)])
		}
	}
}

const filesRoom = 64 << 10 // at the end of the disk, where no file system's structures are

func (g *guest) files() (map[string]string, error) {
	f, at, err := g.openDisk(os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw := make([]byte, filesRoom)
	if _, err := f.ReadAt(raw, at); err != nil {
		return nil, err
	}
	return decodeWords(raw)
}

func (g *guest) setFiles(words map[string]string) error {
	raw, err := encodeWords(words)
	if err != nil || len(raw) > filesRoom {
		return errors.Join(err, errors.New("files do not fit"))
	}
	f, at, err := g.openDisk(os.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(raw, at)
	return errors.Join(err, f.Close())
}

func (g *guest) openDisk(flags int) (*os.File, int64, error) {
	f, err := os.OpenFile(g.disk, flags, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	return f, info.Size() - filesRoom, nil
}

// listen offers the machine's vsock as one unix socket.
func (g *guest) listen(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return refused("Cannot create backend for vsock device: %v", err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go g.accept(c)
		}
	}()
	return nil
}

// accept is the host's side of a connection: "CONNECT port", answered by the
// guest when it runs. The channel then has the rest.
func (g *guest) accept(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(io.LimitReader(c, 64))
	line, err := in.ReadString('\n')
	if err != nil || in.Buffered() > 0 {
		return
	}
	g.v.pass()
	var port uint32
	if _, err := fmt.Sscanf(line, "CONNECT %d\n", &port); err != nil || port != microvm.VsockPort {
		return
	}
	if _, silent := g.v.script[silentGuest]; silent {
		_, _ = io.Copy(io.Discard, c)
		return
	}
	g.mu.Lock()
	if g.served != nil {
		_ = g.served.Close()
	}
	g.served = c
	g.mu.Unlock()
	if _, err := c.Write([]byte("OK 1073741824\n")); err != nil {
		return
	}
	_ = channel.Serve(stillWhilePaused{c, g.v}, g)
}

// stillWhilePaused is a connection whose guest's end stands still with the vCPUs.
type stillWhilePaused struct {
	net.Conn
	v *vm
}

func (c stillWhilePaused) Read(p []byte) (int, error) {
	c.v.pass()
	n, err := c.Conn.Read(p)
	c.v.pass()
	return n, err
}

func (c stillWhilePaused) Write(p []byte) (int, error) {
	c.v.pass()
	return c.Conn.Write(p)
}

// Dial implements channel.Guest.
func (g *guest) Dial(_ context.Context, port uint16) (net.Conn, error) {
	if port != 8080 {
		return nil, syscall.ECONNREFUSED
	}
	outside, inside := net.Pipe()
	l := &oneConn{Conn: inside}
	go func() { _ = (&http.Server{Handler: g.mux}).Serve(listener{l}) }()
	return outside, nil
}

// Configure implements channel.Guest.
func (g *guest) Configure(s channel.Settings) error {
	if s.Now.IsZero() || len(s.Seed) < 16 {
		return errors.New("settings without clock or entropy")
	}
	s.Seed, s.Now = nil, time.Time{} // others see the log
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	g.v.log.add("guest: configure", raw)
	return nil
}

// Settle implements channel.Guest.
func (g *guest) Settle(ctx context.Context) error {
	g.v.log.add("guest: settle", nil)
	switch g.v.script[restlessGuest] {
	case refuse:
		return errors.New("the disk is gone")
	case hang:
		<-ctx.Done()
	}
	return ctx.Err()
}

// Wait implements channel.Guest.
func (g *guest) Wait(ctx context.Context) (channel.Exit, error) {
	select {
	case <-g.exit:
		g.mu.Lock()
		defer g.mu.Unlock()
		return channel.Exit{Code: g.code}, nil
	case <-ctx.Done():
		return channel.Exit{}, ctx.Err()
	}
}

// Told implements channel.Guest.
func (g *guest) Told() { g.v.ended <- 0 }

type oneConn struct {
	net.Conn
	accepted atomic.Bool
}

type listener struct{ conn *oneConn }

// Accept returns the connection, and an error from then on.
func (l listener) Accept() (net.Conn, error) {
	if l.conn.accepted.Swap(true) {
		return nil, errors.New("no second connection")
	}
	return l.conn, nil
}

func (l listener) Close() error   { return nil }
func (l listener) Addr() net.Addr { return l.conn.LocalAddr() }
