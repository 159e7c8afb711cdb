// Command testguest is the first process of the machines that drivertest
// starts: an HTTP server whose answers show what the driver did to its world.
package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	switch {
	case filepath.Base(os.Args[0]) == "sh":
		shell(os.Args[len(os.Args)-1])
		return
	case len(os.Args) > 1:
		bomb(os.Args[1])
		return
	}
	g := &guest{memory: map[string]string{}, started: time.Now()}
	go g.tick()
	fmt.Fprintln(os.Stderr, "testguest is up")
	if err := http.ListenAndServe(":8080", g.routes()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type guest struct {
	ticks   atomic.Int64
	started time.Time
	mu      sync.Mutex
	memory  map[string]string
	ballast [][]byte

	connections connections
	python      python
}

// shell is all the shell that the images have, for what the guest daemon starts: it
// knows one command.
func shell(command string) {
	if command != "environment" {
		fmt.Fprintln(os.Stderr, "no such command:", command)
		os.Exit(127)
	}
	for _, e := range os.Environ() {
		fmt.Println(e)
	}
}

// tick counts hundredths of a second in which the guest could run.
func (g *guest) tick() {
	for range time.Tick(10 * time.Millisecond) {
		g.ticks.Add(1)
	}
}

func (g *guest) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ticks", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, g.ticks.Load()) })
	mux.HandleFunc("/clock", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, time.Now().UnixNano()) })
	mux.HandleFunc("/monotonic", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, int64(time.Since(g.started))) })
	mux.HandleFunc("/memory", g.serveMemory)
	mux.HandleFunc("/file", serveFile)
	mux.HandleFunc("/random", g.serveRandom)
	mux.HandleFunc("/identity", serveIdentity)
	mux.HandleFunc("/hog", g.hog)
	mux.HandleFunc("/drop", g.drop)
	mux.HandleFunc("/fill", fill)
	mux.HandleFunc("/fork", fork)
	mux.HandleFunc("/mount", mount)
	mux.HandleFunc("/start", start)
	mux.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) { os.Exit(number(r, "code")) })
	mux.HandleFunc("/console", func(_ http.ResponseWriter, r *http.Request) { flood(number(r, "mib")) })
	g.connections.routes(mux)
	return mux
}

func number(r *http.Request, name string) int {
	n, _ := strconv.Atoi(r.FormValue(name))
	return n
}

func (g *guest) serveMemory(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.Method == http.MethodPost {
		g.memory[r.FormValue("key")] = r.FormValue("value")
		return
	}
	fmt.Fprint(w, g.memory[r.FormValue("key")])
}

func serveFile(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		if err := os.WriteFile(r.FormValue("path"), []byte(r.FormValue("value")), 0o644); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return
	}
	raw, err := os.ReadFile(r.FormValue("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	w.Write(raw)
}

// hog takes memory and writes to every page of it. It is no part of the heap, so
// that it can be given back whole, page tables included.
func (g *guest) hog(w http.ResponseWriter, r *http.Request) {
	// Its program stays in memory meanwhile: a kernel that may drop it reads it again and
	// again before it calls the machine out of memory, for minutes where it is emulated.
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_ONFAULT)
	defer func() { _ = unix.Munlockall() }()
	for range number(r, "mib") {
		b, err := syscall.Mmap(-1, 0, 1<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		g.mu.Lock()
		g.ballast = append(g.ballast, b)
		g.mu.Unlock()
	}
	fmt.Fprint(w, "ok")
}

// drop gives back what hog has taken.
func (g *guest) drop(w http.ResponseWriter, _ *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range g.ballast {
		if err := syscall.Munmap(b); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	g.ballast = nil
	fmt.Fprint(w, "ok")
}

// fill writes a file until it may not, and answers with the MiB and the reason.
func fill(w http.ResponseWriter, r *http.Request) {
	f, err := os.Create(r.FormValue("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i)
	}
	for n := range number(r, "mib") {
		if _, err := f.Write(block); err != nil {
			fmt.Fprintf(w, "%d %t", n, errors.Is(err, syscall.ENOSPC))
			return
		}
	}
	fmt.Fprintf(w, "%d false", number(r, "mib"))
}

// fork lets a user start processes until it cannot, and answers how many.
func fork(w http.ResponseWriter, r *http.Request) {
	cmd := exec.Command("/proc/self/exe", r.FormValue("max"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(number(r, "uid")), Gid: 1000}}
	out, err := cmd.Output()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(out)
}

// bomb starts up to max processes that only wait, and prints how many it got.
func bomb(max string) {
	if max == "wait" {
		<-time.After(time.Hour)
		return
	}
	n, _ := strconv.Atoi(max)
	var started []*exec.Cmd
	for range n {
		cmd := exec.Command("/proc/self/exe", "wait")
		if err := cmd.Start(); err != nil {
			break
		}
		started = append(started, cmd)
	}
	fmt.Print(len(started))
	for _, cmd := range started {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// start starts a program, whose output goes to the console.
func start(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil || len(r.Form["arg"]) == 0 {
		http.Error(w, "no arg", http.StatusBadRequest)
		return
	}
	cmd := exec.Command(r.Form["arg"][0], r.Form["arg"][1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	go cmd.Wait()
}

// mount does what root of a sandbox expects to be able to do.
func mount(w http.ResponseWriter, _ *http.Request) {
	if err := os.MkdirAll("/mnt/t", 0o755); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if err := syscall.Mount("tmpfs", "/mnt/t", "tmpfs", 0, "size=1m"); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, "ok")
}

// flood writes to the console.
func flood(mib int) {
	line := make([]byte, 1<<20)
	for i := range line {
		line[i] = 'x'
	}
	for range mib {
		os.Stderr.Write(line)
		os.Stdout.Write(line)
	}
}
