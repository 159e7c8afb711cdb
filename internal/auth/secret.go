package auth

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"hearth/internal/hearth"
)

// LoadOrCreateSecret returns the SeedSize bytes that the file at path holds, as
// hex digits. If there is no such file it makes one with fresh random bytes,
// mode 0600, on disk before it returns; of two that do so at once both return
// the same. A file that others may read is refused with FailedPrecondition.
func LoadOrCreateSecret(path string) ([]byte, error) {
	secret, err := loadSecret(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	if err := createSecret(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, hearth.Wrap(hearth.FailedPrecondition, err, "the secret file %s cannot be made", path)
	}
	return loadSecret(path)
}

func loadSecret(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, hearth.Wrap(hearth.FailedPrecondition, err, "the secret file %s cannot be read", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, hearth.Errorf(hearth.FailedPrecondition,
			"the secret file %s has mode %04o, others can read or change it: run chmod 600 on it", path, info.Mode().Perm())
	}
	if info.Size() > 4*SeedSize {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "the secret file %s has %d bytes, it should be %d hex digits", path, info.Size(), 2*SeedSize)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, hearth.Wrap(hearth.FailedPrecondition, err, "the secret file %s cannot be read", path)
	}
	secret, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(secret) != SeedSize {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "the secret file %s does not hold %d hex digits", path, 2*SeedSize)
	}
	return secret, nil
}

// createSecret writes a whole file beside path and links it there, which fails
// when another was faster.
func createSecret(path string) error {
	secret := make([]byte, SeedSize)
	rand.Read(secret)
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".secret-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.WriteString(hex.EncodeToString(secret) + "\n"); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
