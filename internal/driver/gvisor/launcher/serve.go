package launcher

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Descriptors of a launcher. 0, 1 and 2 become the guest's console; what it got
// from FirstFree on from whoever started us is to be closed.
const (
	requestFD = 3 // Requests, then held open: when we die it ends, and so does the launcher
	replyFD   = 4
	FirstFree = 5

	FirstOwn = requestFD // what no sandbox may inherit begins here
)

// Request is what the launcher is told, as one JSON value. Of a second one,
// for a sandbox that waits, only Image, Memory and Stay count.
type Request struct {
	Flags  []string `json:"flags,omitempty"`
	ID     string   `json:"id"`
	Bundle string   `json:"bundle,omitempty"`
	Image  string   `json:"image,omitempty"` // checkpoint to restore; empty boots, or waits
	Wait   bool     `json:"wait,omitempty"`  // make the sandbox only; another request follows
	Stay   bool     `json:"stay,omitempty"`  // wait for the next machine when this one runs
	Limit  int64    `json:"limit,omitempty"` // of the cgroup's memory while the guest runs, in bytes
	Memory Memory   `json:"memory"`

	gone bool // there is no request, and nobody to ask
}

// reply is what it answers to each.
type reply struct {
	PID   int    `json:"pid"`
	Error string `json:"error"`
}

// Memory is where a restored machine gets its pages from.
type Memory struct {
	Share  bool     `json:"share"`
	Layers []string `json:"layers,omitempty"` // pages files that the image refers to, oldest first
	Hot    []uint64 `json:"hot,omitempty"`
}

// Sandbox is a sandbox that was created, in its launcher.
type Sandbox interface {
	PID() int
	// Start lets its guest run. After an error it is gone.
	Start(Request) error
	// Kept takes, of a started one, what this process closes when it has ended.
	Kept() []*os.File
	// Abandon removes it.
	Abandon()
}

// Serve is what a launcher does, given how a sandbox is made up to where it waits for
// what to run. It returns the code to exit with.
func Serve(create func(Request) (Sandbox, error)) int {
	var busy atomic.Bool
	replies := json.NewEncoder(os.NewFile(replyFD, "reply"))
	answer := func(r reply) error {
		busy.Store(false) // whoever reads it may be gone the next moment
		return replies.Encode(r)
	}
	requests := listen(os.NewFile(requestFD, "request"), &busy)
	left := make(chan started)
	go bury(left)
	for req := <-requests; !req.gone; req = <-requests {
		showID(req.ID)
		if orphaned() { // the machine may have been swept before this process was its
			return 2
		}
		box, err := create(req)
		if err == nil && req.Wait {
			if answer(reply{PID: box.PID()}) != nil {
				req.gone = true
			} else {
				next := <-requests
				req.Image, req.Memory, req.Stay, req.gone = next.Image, next.Memory, next.Stay, next.gone
			}
			if req.gone {
				box.Abandon()
				return 2
			}
		}
		if err == nil {
			err = box.Start(req)
		}
		if err != nil {
			_ = answer(reply{Error: err.Error()}) // whoever does not get it sees the end
			return 0
		}
		if req.Stay {
			showID("") // before anybody can sweep the machine, and this process along
		}
		if answer(reply{PID: box.PID()}) != nil {
			return 1
		}
		if !req.Stay {
			return 0
		}
		left <- started{box.PID(), box.Kept()}
	}
	return 1
}

// started is a sandbox that runs, and what is to be closed when it has ended.
type started struct {
	pid  int
	kept []*os.File
}

// bury waits for the sandboxes whose parent this process still is.
func bury(left <-chan started) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	alive := map[int][]*os.File{}
	for {
		select {
		case s := <-left:
			alive[s.pid] = s.kept
		case <-died:
		}
		for pid, kept := range alive {
			if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); got == pid || errors.Is(err, unix.ECHILD) {
				delete(alive, pid)
				go closeAll(kept) // which may take a while
			}
		}
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// orphaned says whether whoever asks is gone.
func orphaned() bool {
	fds := []unix.PollFd{{Fd: requestFD}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&unix.POLLHUP != 0
}

// showID makes a machine's ID the last argument of this process, where Sweep looks
// for it. The arguments of a process are memory of its own; arguments leaves room.
func showID(id string) {
	room := unsafe.Slice(unsafe.StringData(os.Args[1]), idRoom)
	clear(room[copy(room, id):])
}

// arguments are the arguments of a launcher whose first machine has an ID.
func arguments(id string) []string {
	return append([]string{Name, id}, make([]string, idRoom)...)
}

// listen reads requests until whoever asks is gone. Then it ends a launcher that
// is busy, whose half-made sandbox will be swept; one that waits is told.
func listen(from io.Reader, busy *atomic.Bool) <-chan Request {
	requests := make(chan Request)
	go func() {
		in := json.NewDecoder(from)
		for {
			var req Request
			if err := in.Decode(&req); err != nil {
				break
			}
			busy.Store(true)
			requests <- req
		}
		if busy.Load() {
			os.Exit(2)
		}
		requests <- Request{gone: true}
	}()
	return requests
}
