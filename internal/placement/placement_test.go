package placement_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"hearth/internal/hearth"
	"hearth/internal/placement"
)

func status(id string, change ...func(*hearth.NodeStatus)) *hearth.NodeStatus {
	n := &hearth.NodeStatus{
		ID: hearth.NodeID(id), Drivers: []string{"gvisor"},
		Total: hearth.Resources{VCPUs: 8, MemoryMiB: 8192, DiskMiB: 10000},
	}
	for _, fn := range change {
		fn(n)
	}
	return n
}

func used(mib int) func(*hearth.NodeStatus) {
	return func(n *hearth.NodeStatus) { n.Allocated.MemoryMiB = mib }
}

func TestChoose(t *testing.T) {
	draining := func(n *hearth.NodeStatus) { n.Draining = true }
	holds := func(what string) func(*hearth.NodeStatus) {
		return func(n *hearth.NodeStatus) { n.Cached = map[string]bool{what: true} }
	}
	starting := func(k int) func(*hearth.NodeStatus) { return func(n *hearth.NodeStatus) { n.Starting = k } }
	unsized := func(n *hearth.NodeStatus) { n.Total = hearth.Resources{} }
	nodes := func(n ...*hearth.NodeStatus) []*hearth.NodeStatus { return n }
	for name, tc := range map[string]struct {
		req   placement.Request
		nodes []*hearth.NodeStatus
		want  map[hearth.NodeID]bool // any of them
		kind  hearth.Kind
	}{
		"none":            {nodes: nil, kind: hearth.Unavailable},
		"one":             {nodes: nodes(status("a")), want: map[hearth.NodeID]bool{"a": true}},
		"draining":        {nodes: nodes(status("a", draining), status("b")), want: map[hearth.NodeID]bool{"b": true}},
		"all draining":    {nodes: nodes(status("a", draining)), kind: hearth.Unavailable},
		"full":            {nodes: nodes(status("a", used(8000))), kind: hearth.ResourceExhausted},
		"exactly":         {nodes: nodes(status("a", used(7168))), want: map[hearth.NodeID]bool{"a": true}},
		"avoid":           {req: placement.Request{Avoid: []hearth.NodeID{"a"}}, nodes: nodes(status("a"), status("b")), want: map[hearth.NodeID]bool{"b": true}},
		"avoid all":       {req: placement.Request{Avoid: []hearth.NodeID{"a"}}, nodes: nodes(status("a")), kind: hearth.Unavailable},
		"driver":          {req: placement.Request{Driver: "qemu"}, nodes: nodes(status("a")), kind: hearth.Unavailable},
		"driver there":    {req: placement.Request{Driver: "gvisor"}, nodes: nodes(status("a")), want: map[hearth.NodeID]bool{"a": true}},
		"prefers cached":  {req: placement.Request{Wants: []string{"s1"}}, nodes: nodes(status("a"), status("b", holds("s1"), used(6000)), status("c")), want: map[hearth.NodeID]bool{"b": true}},
		"cached but full": {req: placement.Request{Wants: []string{"s1"}}, nodes: nodes(status("a"), status("b", holds("s1"), used(8192))), want: map[hearth.NodeID]bool{"a": true}},
		"says no size":    {nodes: nodes(status("a", unsized)), want: map[hearth.NodeID]bool{"a": true}},
		"any of equals":   {nodes: nodes(status("a", starting(1)), status("b", starting(1))), want: map[hearth.NodeID]bool{"a": true, "b": true}},
	} {
		tc.req.Resources = hearth.Resources{VCPUs: 2, MemoryMiB: 1024, DiskMiB: 512}
		for seed := range uint64(50) {
			got, err := placement.Choose(tc.req, tc.nodes, rand.New(rand.NewPCG(seed, 1)))
			if tc.kind != "" {
				if err == nil || hearth.KindOf(err) != tc.kind {
					t.Errorf("%s: %q, error %v, want kind %s", name, got, err, tc.kind)
				}
				continue
			}
			if err != nil || !tc.want[got] {
				t.Errorf("%s: %q, error %v, want one of %v", name, got, err, tc.want)
			}
		}
	}
}

// TestSpread places many sandboxes: no node may get far more than its share.
func TestSpread(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var nodes []*hearth.NodeStatus
	for i := range 10 {
		nodes = append(nodes, status(fmt.Sprint(i), func(n *hearth.NodeStatus) { n.Total = hearth.Resources{MemoryMiB: 100_000} }))
	}
	const each = 60
	for range 10 * each {
		id, err := placement.Choose(placement.Request{Resources: hearth.Resources{MemoryMiB: 100}}, nodes, rnd)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			if n.ID == id {
				n.Allocated.MemoryMiB += 100
			}
		}
	}
	for _, n := range nodes {
		if got := n.Allocated.MemoryMiB / 100; got < each-10 || got > each+10 {
			t.Errorf("node %s has %d sandboxes, the mean is %d", n.ID, got, each)
		}
	}
}
