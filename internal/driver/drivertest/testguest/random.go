package main

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// serveRandom draws from every source that a program has: a line each, "source hex".
func (g *guest) serveRandom(w http.ResponseWriter, _ *http.Request) {
	for source, draw := range map[string]func([]byte) error{
		"urandom": func(b []byte) error { return readFull("/dev/urandom", b) },
		"random":  func(b []byte) error { return readFull("/dev/random", b) },
		"system call": func(b []byte) error {
			_, err := unix.Getrandom(b, 0)
			return err
		},
		"crypto/rand": func(b []byte) error {
			_, err := rand.Read(b)
			return err
		},
		"TLS hello": hello,
	} {
		b := make([]byte, 32)
		if err := draw(b); err != nil {
			http.Error(w, source+": "+err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, "%s\t%s\n", source, hex.EncodeToString(b))
	}
	if err := g.python.draw(w); err != nil {
		http.Error(w, "python: "+err.Error(), http.StatusInternalServerError)
	}
}

func readFull(path string, b []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.ReadFull(f, b)
	return err
}

// hello takes the client's random number out of the first message of a handshake.
func hello(b []byte) error {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		_ = tls.Client(ours, &tls.Config{ServerName: "nobody"}).Handshake()
		_ = ours.Close()
	}()
	const head = 5 + 4 + 2 // record, handshake, version
	first := make([]byte, head+len(b))
	if _, err := io.ReadFull(theirs, first); err != nil {
		return err
	}
	copy(b, first[head:])
	return nil
}

// pythonArgv has the words by which the image's Python is started, a line each;
// missing: it has none.
const pythonArgv = "/.guest/python/argv"

// pythonProgram answers every line with what it draws.
const pythonProgram = `
import secrets, sys, uuid
for line in sys.stdin:
    print("python uuid4", uuid.uuid4().hex + uuid.uuid4().hex, sep="\t")
    print("python secrets", secrets.token_hex(32), sep="\t", flush=True)
`

// python is one interpreter that lives as long as the guest, clones of it included.
type python struct {
	mu  sync.Mutex
	in  io.Writer
	out *bufio.Reader
}

// draw writes a line for each source that Python has, if there is a Python.
func (p *python) draw(w io.Writer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.in == nil {
		if err := p.start(); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
	}
	if _, err := io.WriteString(p.in, "draw\n"); err != nil {
		return err
	}
	for range 2 {
		line, err := p.out.ReadString('\n')
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}

func (p *python) start() error {
	raw, err := os.ReadFile(pythonArgv)
	if err != nil {
		return err
	}
	argv := append(strings.Fields(string(raw)), "-c", pythonProgram)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait()
	p.in, p.out = in, bufio.NewReader(out)
	return nil
}
