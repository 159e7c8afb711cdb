package official

import (
	"encoding/binary"
	"net"
	"net/http"
	"strings"
	"sync"
)

// Stub answers what an SDK asks to make a sandbox and run a command in it, at
// once and without one: what is left is the SDK's own time.
type Stub struct {
	server *http.Server
	URL    string
	work   sync.WaitGroup
}

// NewStub starts a stub on loopback.
func NewStub() (*Stub, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Stub{URL: "http://" + l.Addr().String()}
	mux := http.NewServeMux()
	for _, path := range []string{"POST /sandboxes", "POST /v2/sandboxes", "POST /v3/sandboxes"} {
		mux.HandleFunc(path, create)
	}
	mux.HandleFunc("DELETE /sandboxes/{id}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("POST /process.Process/Start", start)
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s.server = &http.Server{Handler: mux, Protocols: protocols}
	s.work.Go(func() { _ = s.server.Serve(l) }) // ends with close
	return s, nil
}

// Environ is what an E2B program needs to use the stub.
func (s *Stub) Environ() []string {
	return []string{"E2B_API_KEY=e2b_" + strings.Repeat("0", 40), "E2B_API_URL=" + s.URL, "E2B_SANDBOX_URL=" + s.URL}
}

// Close ends the stub.
func (s *Stub) Close() {
	_ = s.server.Close() // nothing that matters is in flight
	s.work.Wait()
}

func create(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write([]byte(`{"sandboxID":"i00000000000000000000","templateID":"base","clientID":"stub","envdVersion":"0.6.2","envdAccessToken":"stub"}`))
}

// The stream of a command that prints 42 and ends, in both codecs of the protocol.
var (
	startJSON = [...]string{
		`{"event":{"start":{"pid":1}}}`,
		`{"event":{"data":{"stdout":"NDIK"}}}`,
		`{"event":{"end":{"exited":true,"status":"exit status 0"}}}`,
	}
	startProto = [...]string{
		"\x0a\x04\x0a\x02\x08\x01",
		"\x0a\x07\x12\x05\x0a\x0342\x0a",
		"\x0a\x13\x1a\x11\x10\x01\x1a\x0dexit status 0",
	}
)

// start writes one envelope per message, then the one that ends a stream.
func start(w http.ResponseWriter, r *http.Request) {
	kind, messages := r.Header.Get("Content-Type"), startProto
	if strings.HasSuffix(kind, "json") {
		messages = startJSON
	}
	w.Header().Set("Content-Type", kind)
	flush := http.NewResponseController(w)
	for _, m := range messages {
		_, _ = w.Write(envelope(0, m)) // who left does not care
		_ = flush.Flush()
	}
	const endOfStream = 2
	_, _ = w.Write(envelope(endOfStream, "{}"))
}

func envelope(flags byte, message string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(message))), message...)
}
