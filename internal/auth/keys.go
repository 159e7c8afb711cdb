package auth

import (
	"container/list"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"sync"
	"time"

	"hearth/internal/hearth"
)

// Bounds of what Keys keeps in memory.
const (
	cachedKeys = 1024
	cacheFor   = time.Minute // how long a key outlives its removal from the store
)

// teams is the part of the store that keys are resolved with.
type teams interface {
	TeamByKeyHash(ctx context.Context, hash string) (*hearth.Team, error)
}

// Keys resolves API keys to the teams they belong to, and slows down who tries
// keys: ask Wait before Team, and tell Failed after it.
type Keys struct {
	teams  teams
	now    func() time.Time
	limits *limiter

	mu    sync.Mutex
	known map[string]*list.Element // by hash
	order *list.List               // of cached, most recently used first
}

type cached struct {
	hash  string
	team  hearth.Team
	until time.Time
}

// NewKeys returns a resolver over the store.
func NewKeys(t teams, now func() time.Time) *Keys {
	return &Keys{teams: t, now: now, limits: newLimiter(), known: map[string]*list.Element{}, order: list.New()}
}

// Team returns the team that an API key belongs to, Unauthenticated when the
// key is missing or unknown. A removed key may be good for another minute.
func (k *Keys) Team(ctx context.Context, key string) (*hearth.Team, error) {
	if key == "" {
		return nil, hearth.Errorf(hearth.Unauthenticated, "no API key: send it in the header X-API-KEY")
	}
	if !wellFormed(key) {
		return nil, hearth.Errorf(hearth.Unauthenticated, "the API key is not valid: it must be e2b_ and hex digits")
	}
	return k.TeamByHash(ctx, HashKey(key))
}

// TeamByHash is Team for who has kept a key's HashKey rather than the key.
func (k *Keys) TeamByHash(ctx context.Context, hash string) (*hearth.Team, error) {
	now := k.now()
	if team, ok := k.lookup(hash, now); ok {
		return team, nil
	}
	team, err := k.teams.TeamByKeyHash(ctx, hash)
	if err != nil && hearth.KindOf(err) == hearth.NotFound {
		return nil, hearth.Errorf(hearth.Unauthenticated, "the API key is not valid")
	}
	if err != nil {
		return nil, err
	}
	k.remember(hash, *team, now)
	return team, nil
}

// Wait says for how long an address, an IP with or without a port, has to stay
// away after the wrong keys it sent; zero lets it in.
//
// Loopback is always let in: it is everyone on this host, or everyone behind a
// proxy on it, and one program with an old key must not lock out the rest.
func (k *Keys) Wait(remote string) time.Duration {
	from := subject(remote)
	if from.Addr().IsLoopback() {
		return 0
	}
	return k.limits.wait(from, k.now())
}

// Failed counts a wrong key against an address.
func (k *Keys) Failed(remote string) { k.limits.failed(subject(remote), k.now()) }

func (k *Keys) lookup(hash string, now time.Time) (*hearth.Team, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.known[hash]
	if e == nil {
		return nil, false
	}
	c := e.Value.(*cached)
	if !now.Before(c.until) {
		k.order.Remove(e)
		delete(k.known, hash)
		return nil, false
	}
	k.order.MoveToFront(e)
	team := c.team
	return &team, true
}

func (k *Keys) remember(hash string, team hearth.Team, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.known[hash]; e != nil {
		k.order.Remove(e)
	}
	k.known[hash] = k.order.PushFront(&cached{hash, team, now.Add(cacheFor)})
	if k.order.Len() > cachedKeys {
		oldest := k.order.Back()
		k.order.Remove(oldest)
		delete(k.known, oldest.Value.(*cached).hash)
	}
}

const keyPrefix = "e2b_"

// maxKey bounds what is hashed for a stranger.
const maxKey = 256

func wellFormed(key string) bool {
	digits, ok := strings.CutPrefix(key, keyPrefix)
	return ok && digits != "" && len(key) <= maxKey && strings.Trim(digits, "0123456789abcdef") == ""
}

// HashKey is the form in which a key is stored: lower-case hex SHA-256. A key
// has 160 random bits, so that a plain hash cannot be searched.
func HashKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// Mask is the form in which a key is shown: its prefix, two characters and the
// last four. A key too short to hide anything in is masked whole.
func Mask(key string) string {
	if len(key) < len(keyPrefix)+16 {
		return "..."
	}
	return key[:len(keyPrefix)+2] + "..." + key[len(key)-4:]
}

// NewKey makes an API key for a team. The key itself is returned once and is
// not in the row.
func NewKey(team hearth.TeamID, name string, now time.Time) (key string, row *hearth.APIKey) {
	key = hearth.NewAPIKey()
	return key, KeyRow(key, team, name, now)
}

// KeyRow is the row of a key that exists already, one from a file for example.
func KeyRow(key string, team hearth.TeamID, name string, now time.Time) *hearth.APIKey {
	var id [16]byte
	rand.Read(id[:])
	return &hearth.APIKey{
		ID: hex.EncodeToString(id[:]), Team: team, Name: name, Hash: HashKey(key), Mask: Mask(key), CreatedAt: now,
	}
}
