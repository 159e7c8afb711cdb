//go:build !hearthfault

package app

import (
	"hearth/internal/blob"
	"hearth/internal/driver"
	"hearth/internal/node/agent"
	"hearth/internal/store"
)

// faults is nothing: where the crash tests' binary dies on command (faulty.go), this
// one goes on.
type faults struct{}

func (faults) driver(d driver.Driver) driver.Driver  { return d }
func (faults) network(n agent.Network) agent.Network { return n }
func (faults) guest(g agent.Guest) agent.Guest       { return g }
func (faults) blobs(b blob.Local) blob.Local         { return b }
func (faults) rows(s store.Store) store.Store        { return s }
