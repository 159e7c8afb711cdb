// Package arch holds tests of the tree itself: who may import whom, how large
// things may grow, what must be documented. It has no code of its own.
package arch
