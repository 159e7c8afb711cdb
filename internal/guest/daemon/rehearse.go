package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	"hearth/internal/gen/guestv1"
	"hearth/internal/gen/guestv1/guestv1connect"
	"hearth/internal/guest/process/account"
)

// The first command and the first cell after a restore are slow: they write to
// pages that clones share, and touch what no process of this machine has touched. A machine
// that waits in a pool does that work before anybody waits for it.

// rehearseTime bounds a rehearsal.
const rehearseTime = 5 * time.Second

// rehearse runs a command and a cell that do nothing, on the way that users'
// take. It belongs to no sandbox, so it is refused once the daemon belongs to one: a
// checkpoint that was not told to forget stays as it was written. How it goes is no matter.
func (d *Daemon) rehearse(w http.ResponseWriter, r *http.Request) {
	d.state.initMu.Lock() // Init waits: what it resets is not in use then
	defer d.state.initMu.Unlock()
	if now := d.state.get(); !now.sealed || now.control != "" {
		unauthorized(w, "the daemon belongs to a sandbox")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), rehearseTime)
	defer cancel()
	d.rehearseCommand(ctx)
	if d.code != nil {
		if err := d.code.rehearse(ctx); err != nil {
			d.log.Warn("rehearsal: no cell", "err", err)
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

// rehearseCommand starts a shell that ends at once. It reads no profile: those
// may do what must be done once for a user's command.
func (d *Daemon) rehearseCommand(ctx context.Context) {
	stdin := false
	raw, err := proto.Marshal(&guestv1.StartRequest{
		Process: &guestv1.ProcessConfig{Cmd: "/bin/bash", Args: []string{"--noprofile", "--norc", "-c", "echo"}, Cwd: new("/")},
		Stdin:   &stdin,
	})
	if err != nil {
		return // plain strings: cannot fail
	}
	message := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(raw))) // not compressed, length
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, guestv1connect.ProcessStartProcedure, bytes.NewReader(append(message, raw...)))
	if err != nil {
		return // likewise
	}
	r.Header.Set("Content-Type", "application/connect+proto")
	r.Header.Set("Connect-Protocol-Version", "1")
	if _, err := account.Lookup(interpreterUser); err == nil {
		r.SetBasicAuth(interpreterUser, "")
	}
	d.services.ServeHTTP(nobody{http.Header{}}, r)
}

// nobody reads the answer to a request.
type nobody struct{ header http.Header }

func (n nobody) Header() http.Header         { return n.header }
func (n nobody) Write(p []byte) (int, error) { return len(p), nil }
func (n nobody) WriteHeader(int)             {}
func (n nobody) Flush()                      {}

var _ http.Flusher = nobody{}
