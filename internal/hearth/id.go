package hearth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Distinct ID types make swapped arguments a compile error.
type (
	SandboxID  string
	TemplateID string
	BuildID    string
	SnapshotID string
	NodeID     string
	TeamID     string
)

const idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"

// randomID returns n characters of [a-z0-9], each uniformly drawn.
func randomID(n int) string {
	id := make([]byte, 0, n)
	var buf [64]byte
	for len(id) < n {
		rand.Read(buf[:]) // never fails: the runtime aborts when the kernel has no entropy
		for _, b := range buf {
			if int(b) < 252 && len(id) < n { // 252 = 7 * 36: no bias
				id = append(id, idAlphabet[b%36])
			}
		}
	}
	return string(id)
}

// NewSandboxID returns "i" and 20 characters of [a-z0-9], the form E2B clients know.
func NewSandboxID() SandboxID { return SandboxID("i" + randomID(20)) }

// NewTemplateID returns 20 characters of [a-z0-9].
func NewTemplateID() TemplateID { return TemplateID(randomID(20)) }

// NewSnapshotID returns "s" and 20 characters of [a-z0-9].
func NewSnapshotID() SnapshotID { return SnapshotID("s" + randomID(20)) }

// NewBuildID returns a random (version 4) UUID.
func NewBuildID() BuildID {
	var u [16]byte
	rand.Read(u[:])
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return BuildID(fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]))
}

// NewAPIKey returns "e2b_" and 40 hex digits, the form older E2B clients check.
func NewAPIKey() string {
	var b [20]byte
	rand.Read(b[:])
	return "e2b_" + hex.EncodeToString(b[:])
}

// BuildMachineID names the machine in which a build is made warm. It follows
// from the build, so that after a crash the build alone says which machine to
// look for. Such machines are in no table of sandboxes.
func BuildMachineID(id BuildID) SandboxID {
	sum := sha256.Sum256([]byte(id))
	return SandboxID("b" + hex.EncodeToString(sum[:10]))
}

// ImportTemplateID names the template that holds the build of an imported
// snapshot. It follows from the snapshot, so that the snapshot's row alone says
// what goes with it, whenever an import was cut off.
func ImportTemplateID(id SnapshotID) TemplateID {
	sum := sha256.Sum256([]byte(id))
	return TemplateID(hex.EncodeToString(sum[:10]))
}

// OfBuild reports whether a machine is one that BuildMachineID names. It is the
// builder's: whoever looks for machines without a sandbox leaves it alone.
func (id SandboxID) OfBuild() bool { return strings.HasPrefix(string(id), "b") }

// ParseSandboxID accepts "id" and "id-anything", as E2B clients send both.
func ParseSandboxID(s string) (SandboxID, error) {
	for i := range len(s) {
		c := s[i]
		if c == '-' && i > 0 {
			return SandboxID(s[:i]), nil
		}
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') || i > 63 {
			return "", badSandboxID()
		}
	}
	if s == "" {
		return "", badSandboxID()
	}
	return SandboxID(s), nil
}

func badSandboxID() error {
	return Errorf(InvalidArgument, "Invalid sandbox ID: it must be 1 to 64 lower-case letters and digits, alone or followed by - and anything")
}
