package dash

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"time"

	"hearth/internal/hearth"
)

// Bounds of sessions: how long one lasts, whatever is done with it, and how many
// there may be. The oldest goes when there is one more, first among the team's own.
const (
	sessionAge   = 12 * time.Hour
	teamSessions = 32
	allSessions  = 1024
)

// tokenBytes is the length of a session's token before it is encoded.
const tokenBytes = 32

// sessions are those who have signed in. A token is held as its hash alone, so
// that neither memory that leaks nor the time of a search helps to guess one.
type sessions struct {
	mu   sync.Mutex
	open map[[sha256.Size]byte]session
}

// session is what a token stands for.
type session struct {
	team  hearth.TeamID
	key   string // hash of the API key that opened it
	began time.Time
}

func newSessions() *sessions {
	return &sessions{open: map[[sha256.Size]byte]session{}}
}

// begin opens a session and returns its token.
func (s *sessions) begin(team hearth.TeamID, key string) (token string) {
	var raw [tokenBytes]byte
	rand.Read(raw[:])
	token = base64.RawURLEncoding.EncodeToString(raw[:])
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.makeRoom(team, now)
	s.open[sha256.Sum256([]byte(token))] = session{team, key, now}
	return token
}

// makeRoom ends what is too old or too many.
func (s *sessions) makeRoom(team hearth.TeamID, now time.Time) {
	mine := 0
	for hash, one := range s.open {
		if now.Sub(one.began) >= sessionAge {
			delete(s.open, hash)
		} else if one.team == team {
			mine++
		}
	}
	if mine >= teamSessions {
		s.endOldest(func(one session) bool { return one.team == team })
	}
	if len(s.open) >= allSessions {
		s.endOldest(func(session) bool { return true })
	}
}

func (s *sessions) endOldest(among func(session) bool) {
	var oldest [sha256.Size]byte
	var began time.Time
	for hash, one := range s.open {
		if among(one) && (began.IsZero() || one.began.Before(began)) {
			oldest, began = hash, one.began
		}
	}
	delete(s.open, oldest)
}

// find returns the session of a token that is not too old.
func (s *sessions) find(token string) (session, bool) {
	if !plausible(token) {
		return session{}, false
	}
	hash := sha256.Sum256([]byte(token))
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.open[hash]
	if ok && time.Since(one.began) >= sessionAge {
		delete(s.open, hash)
		return session{}, false
	}
	return one, ok
}

// end closes a token's session, if it has one.
func (s *sessions) end(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, sha256.Sum256([]byte(token)))
}

// plausible reports whether a text has a token's form; others cost no hash.
func plausible(token string) bool {
	if len(token) != base64.RawURLEncoding.EncodedLen(tokenBytes) {
		return false
	}
	_, err := base64.RawURLEncoding.Strict().DecodeString(token)
	return err == nil
}
