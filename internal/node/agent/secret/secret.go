// Package secret derives what a node and its guests' daemons know each other by.
package secret

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"

	"hearth/internal/hearth"
)

// Key is a node's own: 32 random bytes.
type Key []byte

const keyBytes = 32

// Load reads the key in a file, made with mode 0600 when it is not there.
func Load(path string) (Key, error) {
	key, err := os.ReadFile(path)
	if err == nil && len(key) == keyBytes {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key = make([]byte, keyBytes)
	rand.Read(key) // never fails
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	return key, os.Rename(path+".new", path)
}

// Given reads the secret that came with a snapshot from elsewhere; empty when it
// came from here. What a stranger wrote is sent to nobody but the stranger's guest.
func Given(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 2*sha256.Size+1))
	if err != nil {
		return "", err
	}
	if sum, err := hex.DecodeString(string(raw)); err != nil || len(sum) != sha256.Size {
		return "", hearth.Errorf(hearth.FailedPrecondition, "the secret of the imported snapshot is not one")
	}
	return string(raw), nil
}

// Of derives the secret with which the host speaks to a sandbox's daemon. It is
// derived and not drawn, so that it is written nowhere, and a sandbox that was
// paused with its secret in memory can be unsealed again.
func (k Key) Of(id hearth.SandboxID) string {
	mac := hmac.New(sha256.New, k)
	mac.Write([]byte("guest control " + id))
	return hex.EncodeToString(mac.Sum(nil))
}
