package microvm

import "crypto/rand"

// NewSeed returns entropy for channel.Settings.
func NewSeed() []byte {
	seed := make([]byte, 64)
	rand.Read(seed) // never fails
	return seed
}
