package arch

import (
	"slices"
	"strings"
	"testing"
)

// within reports whether the package path rel is one of list or below one.
func within(rel string, list ...string) bool {
	return slices.ContainsFunc(list, func(p string) bool {
		return rel == p || strings.HasPrefix(rel, p+"/")
	})
}

// The layers, lowest first. A package may import what its rule names, no more.
var (
	l0        = []string{"internal/hearth", "internal/trace"}
	contracts = []string{"internal/driver", "internal/store", "internal/blob", "internal/node", "internal/guest"}
	guestSide = []string{"internal/guest/daemon", "internal/guest/process", "internal/guest/files", "internal/guest/code", "internal/guest/splice"}
	adapters  = []string{"internal/driver", "internal/store", "internal/blob", "internal/image", "internal/netns", "internal/egress", "internal/guest/embedded"}
	services  = []string{"internal/placement", "internal/control", "internal/builder", "internal/edge", "internal/auth", "internal/node/agent"}
	transport = []string{"internal/api", "internal/dash", "internal/guest/agentclient"}
	leaves    = []string{"internal/config", "internal/telemetry"} // used by L5 only
	top       = []string{"internal/app", "internal/cli", "internal/bench", "internal/doctor", "cmd", "test"}
)

// mayImport says whether package p (relative path) may import package q.
func mayImport(p, q string) bool {
	gen := strings.HasPrefix(q, "internal/gen/")
	contract := slices.Contains(contracts, q) || slices.Contains(l0, q)
	switch {
	case q == "internal/driver/gvisor/embedded": // least of all by what is embedded in it
		return p == "internal/app"
	case within(p, top...):
		return true
	case slices.Contains(l0, p):
		return false
	case slices.Contains(contracts, p):
		return slices.Contains(l0, q)
	case within(p, "client"):
		return gen
	case within(p, "internal/gen"):
		return gen
	case strings.HasSuffix(p, "test"): // conformance suites and what only they use
		return !within(q, top...)
	case within(p, guestSide...):
		return contract || strings.HasPrefix(q, "internal/gen/guestv1") || within(q, guestSide...)
	case within(p, "internal/node/agent"):
		return contract || within(q, "internal/netns", "internal/egress", "internal/image", "internal/node/agent")
	case within(p, "internal/control"):
		return contract || within(q, "internal/placement", "internal/egress", "internal/control")
	case within(p, "internal/edge"):
		return contract || within(q, "internal/edge")
	case within(p, "internal/builder"):
		return contract || q == "internal/image"
	case within(p, services...):
		return contract
	case within(p, "internal/api"):
		// control's packages for their types, whose behaviour comes through interfaces; egress for its pure check
		return contract || gen || within(q, "internal/api") || q == "spec" || within(q, "internal/control") || q == "internal/egress"
	case within(p, transport...):
		return contract || gen
	case within(p, "internal/driver/qemu") && within(q, "internal/driver/qemu"),
		within(p, "internal/driver/gvisor") && within(q, "internal/driver/gvisor"):
		return true
	case p == "internal/driver/firecracker/pager" && q == "internal/blob/chunkblob":
		return true // it reads what the archive lends
	case within(p, "internal/driver/microvm", "internal/driver/qemu", "internal/driver/firecracker"):
		return contract || within(q, p) || within(q, "internal/driver/microvm", "internal/driver/hostproc")
	case within(p, "internal/driver"):
		return contract || within(q, p) || within(q, "internal/driver/hostproc")
	case within(p, adapters...):
		return contract || within(q, p)
	case within(p, leaves...):
		return slices.Contains(l0, q)
	}
	return false
}

func TestImports(t *testing.T) {
	for _, p := range load(t) {
		for _, i := range p.Imports {
			q, mine := strings.CutPrefix(i, module+"/")
			if mine && !mayImport(p.rel, q) {
				t.Errorf("%s may not import %s (docs/ARCHITECTURE.md, layers)", p.rel, q)
			}
		}
	}
}

// admitted says which packages may use which third-party modules.
var admitted = map[string][]string{
	"gvisor.dev/gvisor":                      {"internal/driver/gvisor"},
	"github.com/opencontainers":              {"internal/driver/gvisor"},
	"github.com/google/subcommands":          {"internal/driver/gvisor"}, // the type of gVisor's commands
	"github.com/vishvananda/netlink":         {"internal/netns", "internal/driver/qemu/tap"},
	"github.com/vishvananda/netns":           {"internal/netns"},
	"github.com/google/nftables":             {"internal/netns"},
	"github.com/mdlayher/netlink":            {"internal/netns"}, // socket options of nftables' connections
	"github.com/google/go-containerregistry": {"internal/image"},
	"modernc.org/sqlite":                     {"internal/store/sqlstore"},
	"github.com/pressly/goose":               {"internal/store/sqlstore"},
	"github.com/go-chi/chi":                  {"internal/api", "internal/gen"},
	"github.com/oapi-codegen":                {"internal/api", "internal/gen", "client"},
	"github.com/goccy/go-yaml":               {"internal/config", "internal/builder", "internal/api"},
	"github.com/alecthomas/kong":             {"internal/cli", "cmd"},
	"github.com/prometheus":                  {"internal/telemetry", "internal/app", "internal/node/agent", "internal/control", "internal/edge", "internal/api"},
	"connectrpc.com/connect":                 {"internal/gen", "internal/guest", "internal/api", "client"},
	"google.golang.org/protobuf":             {"internal/gen", "internal/guest", "client"},
	"github.com/creack/pty":                  {"internal/guest/process"},
	"github.com/fsnotify/fsnotify":           {"internal/guest/files"},
	"github.com/klauspost/compress":          {"internal/image", "internal/blob", "internal/node/agent/parcel", "internal/driver/microvm"},
	"github.com/google/go-cmp":               {"internal/store/storetest"},
	"go.uber.org/goleak":                     {"internal/leaktest"},
	"golang.org/x/image":                     {"internal/bench/plot"},
	"golang.org/x/sys":                       nil, // anywhere
	"golang.org/x/sync":                      nil,
	"golang.org/x/term":                      nil,
}

func TestThirdParty(t *testing.T) {
	for _, p := range load(t) {
		for _, i := range p.Imports {
			if within(i, module) || !strings.Contains(strings.Split(i, "/")[0], ".") {
				continue
			}
			if where, ok := admission(i); !ok {
				t.Errorf("%s imports %s, which no rule admits", p.rel, i)
			} else if where != nil && !within(p.rel, where...) {
				t.Errorf("%s may not import %s; only %v may", p.rel, i, where)
			}
		}
	}
}

func admission(path string) (where []string, ok bool) {
	for m, w := range admitted {
		if within(path, m) {
			return w, true
		}
	}
	return nil, false
}

// TestGuestDependencies keeps the daemon inside every sandbox small.
func TestGuestDependencies(t *testing.T) {
	allowed := []string{"connectrpc.com/connect", "google.golang.org/protobuf", "github.com/creack/pty", "github.com/fsnotify/fsnotify", "golang.org/x/sys", "golang.org/x/sync"}
	for _, p := range load(t) {
		if !within(p.rel, guestSide...) && !within(p.rel, "cmd/hearth-guest", "cmd/hearth-init", "internal/driver/microvm/vminit", "internal/driver/microvm/channel") {
			continue
		}
		for _, i := range p.Imports {
			if strings.Contains(strings.Split(i, "/")[0], ".") && !within(i, allowed...) {
				t.Errorf("%s runs inside the sandbox and may not import %s", p.rel, i)
			}
		}
	}
}
