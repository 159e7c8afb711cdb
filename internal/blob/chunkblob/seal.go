package chunkblob

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"

	"hearth/internal/hearth"
)

// KeyBytes is the length of a key.
const KeyBytes = 32

// Key encrypts an archive.
type Key struct {
	secret []byte
	id     [8]byte
}

// NewKey returns the key that is made of secret, KeyBytes random bytes.
func NewKey(secret []byte) (*Key, error) {
	if len(secret) != KeyBytes {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the key has %d bytes, not %d", len(secret), KeyBytes)
	}
	k := &Key{secret: bytes.Clone(secret)}
	id, err := hkdf.Key(sha256.New, k.secret, nil, "hearth chunk store key id", len(k.id))
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "the key cannot be used")
	}
	copy(k.id[:], id)
	return k, nil
}

// LoadKey reads a key from a file: 64 hexadecimal digits, and white space. The
// file must be its owner's alone.
func LoadKey(path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "the key file %s cannot be read", path)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "the key file %s cannot be read", path)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the key file %s must be a regular file with mode 0600, it is %s", path, info.Mode())
	}
	raw, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "the key file %s cannot be read", path)
	}
	secret := make([]byte, KeyBytes+1)
	text := bytes.TrimSpace(raw)
	if len(text) != 2*KeyBytes {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the key file %s has %d characters, not %d hexadecimal digits", path, len(text), 2*KeyBytes)
	}
	n, err := hex.Decode(secret, text)
	if err != nil {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the key file %s has other characters than hexadecimal digits", path) // and err names one
	}
	return NewKey(secret[:n])
}

// String keeps the key out of logs.
func (k *Key) String() string { return "key " + hex.EncodeToString(k.id[:]) }

const (
	headerBytes = 56
	packMagic   = "HRTHPK01"
	indexMagic  = "HRTHIX01"
)

// header begins every object.
type header struct {
	magic  string
	sealed bool
	key    [8]byte
	salt   [32]byte
}

// newHeader returns the header of a new object and what seals it, if anything.
func (s *Store) newHeader(magic string) (header, cipher.AEAD, error) {
	h := header{magic: magic}
	if s.key == nil {
		return h, nil, nil
	}
	h.sealed, h.key = true, s.key.id
	rand.Read(h.salt[:]) // never fails
	aead, err := s.key.aead(h.salt)
	return h, aead, err
}

// own is the key of one object.
func (k *Key) own(salt [32]byte) ([]byte, error) {
	own, err := hkdf.Key(sha256.New, k.secret, salt[:], "hearth chunk store object", KeyBytes)
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "the key cannot be used")
	}
	return own, nil
}

func (k *Key) aead(salt [32]byte) (cipher.AEAD, error) {
	own, err := k.own(salt)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(own)
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "the key cannot be used")
	}
	return cipher.NewGCM(block)
}

func (h header) encode() []byte {
	b := make([]byte, headerBytes)
	copy(b, h.magic)
	if h.sealed {
		b[8] = 1
		copy(b[16:], h.key[:])
		copy(b[24:], h.salt[:])
	}
	return b
}

// opener returns what unseals an object with the header b: nothing, if it is not
// sealed. A key that is not there is told from damage.
func (s *Store) opener(b []byte, magic string) (cipher.AEAD, error) {
	if len(b) < headerBytes || string(b[:8]) != magic || b[8] > 1 || !bytes.Equal(b[9:16], make([]byte, 7)) {
		return nil, errDamaged
	}
	if b[8] == 0 {
		if !bytes.Equal(b[16:headerBytes], make([]byte, headerBytes-16)) {
			return nil, errDamaged
		}
		return nil, nil
	}
	id := hex.EncodeToString(b[16:24])
	switch {
	case s.key == nil:
		return nil, hearth.Errorf(hearth.FailedPrecondition, "it is encrypted with key %s, and no key is configured", id)
	case !bytes.Equal(b[16:24], s.key.id[:]):
		return nil, hearth.Errorf(hearth.FailedPrecondition, "it is encrypted with key %s, and %s is configured", id, s.key)
	}
	return s.key.aead([32]byte(b[24:headerBytes]))
}

// nonceAt is the nonce of the chunk at a place of its pack.
func nonceAt(at int64) []byte {
	n := make([]byte, 12)
	binary.BigEndian.PutUint64(n[4:], uint64(at))
	return n
}

// indexNonce is that of an index's body; no chunk's is like it.
func indexNonce() []byte { return bytes.Repeat([]byte{0xff}, 12) }

// unreadable names the file that could not be opened for want of its key. The caller
// is shown which key it needs, so it is the message, and no cause that would say it again.
func unreadable(err error, name string) error {
	return hearth.Errorf(hearth.FailedPrecondition, "packed file %.12s cannot be read: %s", name, err.Error())
}

// isKeyError reports whether an object could not be opened for want of its key.
func isKeyError(err error) bool {
	_, ours := errors.AsType[*hearth.Error](err)
	return ours && hearth.KindOf(err) == hearth.FailedPrecondition
}
