//go:build hearthfault

package app

import (
	"hearth/internal/app/fault"
	"hearth/internal/blob"
	"hearth/internal/driver"
	"hearth/internal/node/agent"
	"hearth/internal/store"
)

func faultyDriver(d driver.Driver) driver.Driver {
	return fault.Driver{Driver: d, Points: fault.FromEnv()}
}
func faultyNetwork(n agent.Network) agent.Network {
	return fault.Network{Network: n, Points: fault.FromEnv()}
}
func faultyGuest(g agent.Guest) agent.Guest { return fault.Guest{Guest: g, Points: fault.FromEnv()} }
func faultyBlobs(b blob.Local) blob.Local   { return fault.Blobs{Local: b, Points: fault.FromEnv()} }
func faultyRows(s store.Store) store.Store  { return fault.Rows{Store: s, Points: fault.FromEnv()} }
