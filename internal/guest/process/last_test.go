package process

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"testing"

	"google.golang.org/protobuf/proto"

	"hearth/internal/gen/guestv1"
	"hearth/internal/gen/guestv1/guestv1connect"
)

// recorder notes how much had been written at each flush.
type recorder struct {
	*httptest.ResponseRecorder
	flushed []int
}

func (r *recorder) Flush() { r.flushed = append(r.flushed, r.Body.Len()) }

// messages takes a stream apart: the events, the number of ends of the stream among them.
func messages(t *testing.T, stream []byte) (events []*guestv1.ProcessEvent, ends int) {
	t.Helper()
	for len(stream) >= 5 {
		flags, size := stream[0], int(binary.BigEndian.Uint32(stream[1:5]))
		if len(stream) < 5+size {
			t.Fatalf("%d bytes of a message of %d", len(stream)-5, size)
		}
		if flags&2 != 0 {
			ends++
		} else {
			var m guestv1.StartResponse
			if err := proto.Unmarshal(stream[5:5+size], &m); err != nil {
				t.Fatal(err)
			}
			events = append(events, m.GetEvent())
		}
		stream = stream[5+size:]
	}
	return events, ends
}

// TestEndsTogether: what a process prints is flushed as it comes, its end and the
// stream's are left to the server, which flushes them as one.
func TestEndsTogether(t *testing.T) {
	f := serve(t)
	raw, err := proto.Marshal(shell("echo out"))
	if err != nil {
		t.Fatal(err)
	}
	message := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(raw))), raw...)
	r := httptest.NewRequest(http.MethodPost, guestv1connect.ProcessStartProcedure, bytes.NewReader(message))
	r.Header.Set("Content-Type", "application/connect+proto")
	r.Header.Set("Connect-Protocol-Version", "1")
	w := &recorder{ResponseRecorder: httptest.NewRecorder()}
	_, handler := guestv1connect.NewProcessHandler(f.svc)
	JoinEnds(handler).ServeHTTP(w, r)

	if len(w.flushed) == 0 {
		t.Fatal("nothing was flushed")
	}
	seen := w.flushed[len(w.flushed)-1]
	before, ended := messages(t, w.Body.Bytes()[:seen])
	if len(before) != 2 || ended != 0 || string(before[1].GetData().GetStdout()) != "out\n" {
		t.Errorf("flushed: %v and %d ends of the stream, want the start and the output", before, ended)
	}
	after, ended := messages(t, w.Body.Bytes()[seen:])
	if len(after) != 1 || after[0].GetEnd() == nil || ended != 1 {
		t.Errorf("left to the server: %v and %d ends of the stream, want both ends", after, ended)
	}
}
