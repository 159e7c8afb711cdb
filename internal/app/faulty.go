//go:build hearthfault

package app

import (
	"hearth/internal/app/fault"
	"hearth/internal/blob"
	"hearth/internal/driver"
	"hearth/internal/node/agent"
	"hearth/internal/store"
)

// faults puts points into the parts of a server.
type faults struct{ points fault.Points }

func (f *faults) driver(d driver.Driver) driver.Driver {
	return fault.Driver{Driver: d, Points: &f.points}
}
func (f *faults) network(n agent.Network) agent.Network {
	return fault.Network{Network: n, Points: &f.points}
}
func (f *faults) guest(g agent.Guest) agent.Guest { return fault.Guest{Guest: g, Points: &f.points} }
func (f *faults) blobs(b blob.Local) blob.Local   { return fault.Blobs{Local: b, Points: &f.points} }
func (f *faults) rows(s store.Store) store.Store  { return fault.Rows{Store: s, Points: &f.points} }
