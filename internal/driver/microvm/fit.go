package microvm

import (
	"path/filepath"
	"slices"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// Fit is what a machine was made of when a checkpoint of it was written, and must
// be made of when it is restored: the part of a manifest that every driver's has.
type Fit struct {
	Key       string           `json:"key"`
	Layers    []string         `json:"layers"`             // LayerID of each
	Guest     string           `json:"guest,omitempty"`    // base name of the guest image
	GuestID   string           `json:"guest_id,omitempty"` // its LayerID
	Resources hearth.Resources `json:"resources"`
	Network   bool             `json:"network"`
}

// NewFit describes a machine of a spec, with a guest image at an absolute path or
// none.
func NewFit(key string, spec driver.Spec, guest string) (Fit, error) {
	f := Fit{Key: key, Resources: spec.Resources, Network: spec.Net.Tap != ""}
	var err error
	if f.Layers, err = layerIDs(spec.Layers); err != nil || guest == "" {
		return f, err
	}
	f.Guest = filepath.Base(guest)
	f.GuestID, err = driver.LayerID(guest)
	return f, err
}

func layerIDs(layers []string) ([]string, error) {
	var ids []string
	for _, l := range layers {
		id, err := driver.LayerID(l)
		if err != nil {
			return nil, hearth.Wrap(hearth.InvalidArgument, err, "layer %s cannot be used", filepath.Base(l))
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// Check compares what a restored guest would stumble over, and returns the guest
// image that it needs: of the name it was written with, beside the host's own.
func (f Fit) Check(key string, spec driver.Spec, own string) (guest string, err error) {
	refuse := func(format string, args ...any) (string, error) {
		return "", hearth.Errorf(hearth.FailedPrecondition, "checkpoint "+format, args...)
	}
	layers, err := layerIDs(spec.Layers)
	if err != nil {
		return "", err
	}
	was, r := f.Resources, spec.Resources
	switch network := spec.Net.Tap != ""; {
	case f.Key != key:
		return refuse("was written by %q, this host is %q", f.Key, key)
	case !slices.Equal(f.Layers, layers):
		return refuse("was written over other layers than the %d given", len(layers))
	case was != r:
		return refuse("has %d vCPUs, %d MiB of memory and %d of disk, not %d, %d and %d", was.VCPUs, was.MemoryMiB, was.DiskMiB, r.VCPUs, r.MemoryMiB, r.DiskMiB)
	case f.Network != network:
		return refuse("has network %t, the machine %t", f.Network, network)
	case (f.Guest == "") != (own == ""):
		return refuse("was written with guest image %q, this host has %q", f.Guest, own)
	case f.Guest == "":
		return "", nil
	case !isBase(f.Guest):
		return refuse("names guest image %.80q", f.Guest)
	}
	guest = filepath.Join(filepath.Dir(own), f.Guest)
	id, err := driver.LayerID(guest)
	if err != nil {
		return "", hearth.Wrap(hearth.FailedPrecondition, err, "checkpoint needs guest image %s, which is not here", f.Guest)
	}
	if id != f.GuestID {
		return refuse("needs another guest image %s than the one here", f.Guest)
	}
	return guest, nil
}

// isBase tells the name of a file from a way to one.
func isBase(name string) bool {
	return filepath.Base(name) == name && name != "." && name != ".."
}
