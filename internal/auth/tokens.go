// Package auth says who may do what: API keys of teams, tokens of sandboxes and
// signed file URLs, and the secrets on disk from which tokens come.
package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"

	"hearth/internal/hearth"
)

// SeedSize is the length of a seed in bytes.
const SeedSize = 32

// Tokens derives every sandbox's tokens from one seed. They are the same as
// long as the seed is, also over a pause, so that nothing need be stored.
type Tokens struct{ seed []byte }

// NewTokens returns the tokens of a seed of SeedSize bytes.
func NewTokens(seed []byte) (*Tokens, error) {
	if len(seed) != SeedSize {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the token seed has %d bytes, it must have %d", len(seed), SeedSize)
	}
	return &Tokens{seed: append([]byte(nil), seed...)}, nil
}

// Access is the token with which the guest daemon of a sandbox is used: 64
// lower-case hex digits.
func (t *Tokens) Access(id hearth.SandboxID) string { return t.derive(string(id)) }

// Traffic is the token that the edge asks for before it lets traffic into a
// sandbox with private ingress. It says nothing of the access token.
func (t *Tokens) Traffic(id hearth.SandboxID) string {
	return t.derive("traffic\x00" + string(id)) // no sandbox ID has a NUL
}

func (t *Tokens) derive(what string) string {
	mac := hmac.New(sha256.New, t.seed)
	mac.Write([]byte(what))
	return hex.EncodeToString(mac.Sum(nil))
}

// Equal compares two secrets in a time that depends on their lengths alone. An
// empty secret equals nothing.
func Equal(got, want string) bool {
	return want != "" && subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1
}
