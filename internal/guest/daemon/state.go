package daemon

import (
	"crypto/sha256"
	"crypto/subtle"
	"maps"
	"sync"

	"hearth/internal/guest"
	"hearth/internal/guest/process/account"
	"hearth/internal/hearth"
)

// identity is what one Init made of the daemon. It is never changed, only replaced.
type identity struct {
	sealed  bool
	control string // secret of the host; empty: nobody has claimed the daemon
	token   string // of the users; empty: open
	id      string // of the sandbox
	session account.Session
	wait    *hold // while sealed: what users' requests wait for; nil: they are refused
}

// hold is a seal that is lifted in a moment.
type hold struct {
	lifted chan struct{}
	goesOn bool // in this machine; written before lifted is closed
}

// state holds the current identity.
type state struct {
	mu     sync.RWMutex
	now    identity
	memory Memory // nil: the identity ends with this process

	// initMu makes Init and Quiesce exclude each other.
	initMu sync.Mutex
}

func newState(m Memory) *state { return &state{now: nobodys(), memory: m} }

// nobodys is the identity of a daemon before its first Init.
func nobodys() identity { return identity{sealed: true, session: account.Session{User: "root"}} }

func (s *state) get() identity {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.now
}

// set replaces the identity, in the memory first. An error is for the log: nothing
// is remembered then, so a daemon after this one waits for the host's Init.
func (s *state) set(i identity) error {
	err := i.keep(s.memory)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = i
	return err
}

func (s *state) session() account.Session { return s.get().session }

// same compares secrets in constant time, whatever their lengths.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// host reports whether the request's control header is the host's secret.
func (i identity) host(header string) bool {
	return i.control != "" && header != "" && same(i.control, header)
}

// user reports whether a token opens the users' services.
func (i identity) user(header string) bool {
	return i.token == "" || same(i.token, header)
}

// internal variables tell programs that they run in a sandbox. Init's own
// variables cannot replace them.
func environment(req guest.InitRequest) map[string]string {
	env := make(map[string]string, len(req.Env)+3)
	maps.Copy(env, req.Env)
	env["E2B_SANDBOX"] = "true"
	env["E2B_SANDBOX_ID"] = req.SandboxID
	env[templateVariable] = req.TemplateID
	return env
}

const templateVariable = "E2B_TEMPLATE_ID"

const minSeed = 32 // bytes

// check refuses an Init that would leave the daemon open or its files malformed.
func check(req guest.InitRequest) error {
	switch {
	case len(req.Control) == 0:
		return hearth.Errorf(hearth.InvalidArgument, "control is empty")
	case len(req.Seed) < minSeed:
		return hearth.Errorf(hearth.InvalidArgument, "seed has fewer than %d bytes", minSeed)
	case !plainID(req.SandboxID), !plainID(req.TemplateID):
		return hearth.Errorf(hearth.InvalidArgument, "sandbox_id and template_id must be at most 63 of a-z, A-Z, 0-9, '-', '_'")
	}
	return nil
}

func plainID(s string) bool {
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
		default:
			return false
		}
	}
	return len(s) <= 63
}
