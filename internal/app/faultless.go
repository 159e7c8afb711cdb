//go:build !hearthfault

package app

import (
	"hearth/internal/blob"
	"hearth/internal/driver"
	"hearth/internal/node/agent"
	"hearth/internal/store"
)

// Where the crash tests' binary dies on command (faulty.go), this one has nothing.

func faultyDriver(d driver.Driver) driver.Driver  { return d }
func faultyNetwork(n agent.Network) agent.Network { return n }
func faultyGuest(g agent.Guest) agent.Guest       { return g }
func faultyBlobs(b blob.Local) blob.Local         { return b }
func faultyRows(s store.Store) store.Store        { return s }
