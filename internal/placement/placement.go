// Package placement chooses a node for a sandbox. It is pure: no clock, no I/O.
package placement

import (
	"math/rand/v2"
	"slices"

	"hearth/internal/hearth"
)

// Request is what a sandbox needs of a node.
type Request struct {
	Resources hearth.Resources
	Driver    string          // that it must run on; empty: any
	Wants     []string        // builds and snapshots whose blobs should be on local disk
	Avoid     []hearth.NodeID // nodes that were tried
}

// Choose returns the better of two random nodes that fit. Better is, in this
// order: more of the wanted blobs on local disk, fewer sandboxes being started,
// a smaller share of the memory allocated. Random pairs keep many schedulers
// that look at the same, slightly old figures from all choosing the same node.
//
// It fails with Unavailable when there is no node at all that could run the
// sandbox, with ResourceExhausted when those that could are full.
func Choose(req Request, nodes []*hearth.NodeStatus, rnd *rand.Rand) (hearth.NodeID, error) {
	var able, free []*hearth.NodeStatus
	for _, n := range nodes {
		if n.Draining || slices.Contains(req.Avoid, n.ID) || req.Driver != "" && !slices.Contains(n.Drivers, req.Driver) {
			continue
		}
		able = append(able, n)
		if fits(req.Resources, n) {
			free = append(free, n)
		}
	}
	switch {
	case len(able) == 0 && req.Driver != "":
		return "", hearth.Errorf(hearth.Unavailable, "no node can run the sandbox: none has the driver %q", req.Driver)
	case len(able) == 0:
		return "", hearth.Errorf(hearth.Unavailable, "no node can run the sandbox")
	case len(free) == 0:
		return "", hearth.Errorf(hearth.ResourceExhausted, "no node has room for a sandbox of %d vCPUs and %d MiB of memory",
			req.Resources.VCPUs, req.Resources.MemoryMiB)
	}
	// Nodes that hold the blobs are few: among all of them, not only the pair.
	free = holders(free, req.Wants)
	a := free[rnd.IntN(len(free))]
	b := free[rnd.IntN(len(free))]
	if better(b, a) {
		a = b
	}
	return a.ID, nil
}

// fits reports whether the node has room. A total of zero is a node that does
// not say; it refuses by itself what is too much.
func fits(want hearth.Resources, n *hearth.NodeStatus) bool {
	room := func(want, allocated, total int) bool { return total == 0 || allocated+want <= total }
	return room(want.VCPUs, n.Allocated.VCPUs, n.Total.VCPUs) &&
		room(want.MemoryMiB, n.Allocated.MemoryMiB, n.Total.MemoryMiB) &&
		room(want.DiskMiB, n.Allocated.DiskMiB, n.Total.DiskMiB)
}

// holders keeps the nodes that have the most of the wanted blobs.
func holders(nodes []*hearth.NodeStatus, wants []string) []*hearth.NodeStatus {
	most := 0
	var best []*hearth.NodeStatus
	for _, n := range nodes {
		has := 0
		for _, w := range wants {
			if n.Cached[w] {
				has++
			}
		}
		if has > most {
			most, best = has, nil
		}
		if has == most {
			best = append(best, n)
		}
	}
	return best
}

// better reports whether a has less to do than b.
func better(a, b *hearth.NodeStatus) bool {
	if a.Starting != b.Starting {
		return a.Starting < b.Starting
	}
	return load(a) < load(b)
}

func load(n *hearth.NodeStatus) float64 {
	if n.Total.MemoryMiB == 0 {
		return 0
	}
	return float64(n.Allocated.MemoryMiB) / float64(n.Total.MemoryMiB)
}
