package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
	"hearth/internal/netns/hostnet"
)

// Forwarding of an uplink is one switch of the host that all its nodes share.
// Each node that needs it on says so in its table, which also has the rule that
// the device forwards for sandboxes alone; the last one to go turns it off. A
// switch that was on before any node came is nobody's, and stays on.

// route turns forwarding on for the devices that lead outside; replies to the
// sandboxes come in there.
func (m *Manager) route() error {
	uplinks := m.cfg.Uplinks
	if len(uplinks) == 0 {
		var err error
		if uplinks, err = m.defaultDevices(); err != nil {
			return err
		}
	}
	if len(uplinks) == 0 {
		m.log.Warn("the host has no default route; sandboxes will not reach the internet")
	}
	lock, err := m.claim()
	if err != nil {
		return err
	}
	defer lock.Close()
	for _, name := range uplinks {
		if err := m.routeBy(name); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) routeBy(device string) error {
	now, err := os.ReadFile(filepath.Join("/proc/sys/net", forwarding(device)))
	if err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err, "network uplink %q: no such device", device)
	}
	if len(now) > 0 && now[0] == '1' {
		ours, err := m.table.routedElsewhere(device)
		if err != nil || !ours {
			return err
		}
	}
	// First the rule that lets the device forward for sandboxes alone.
	if err := m.table.routed(device); err != nil {
		return err
	}
	return setting(forwarding(device), "1")
}

// unroute removes the table, and turns forwarding off where no other node needs it.
func (m *Manager) unroute() error {
	lock, err := m.claim()
	if err != nil {
		return err
	}
	defer lock.Close()
	var errs []error
	for _, device := range m.table.routers() {
		needed, err := m.table.routedElsewhere(device)
		if err == nil && !needed {
			err = setting(forwarding(device), "0")
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, m.table.remove())...)
}

func forwarding(device string) string { return "ipv4/conf/" + device + "/forwarding" }

// routedElsewhere reports whether another node's table says that it needs a
// device to forward.
func (t *table) routedElsewhere(device string) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tables, err := t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, err
	}
	for _, other := range tables {
		if !strings.HasPrefix(other.Name, tablePrefix) || other.Name == t.nft().Name {
			continue
		}
		set := *t.sets().uplinks
		set.Table = other
		elements, err := t.conn.GetSetElements(&set)
		if errors.Is(err, unix.ENOENT) {
			continue // removed since, or not a node's
		}
		if err != nil {
			return false, fmt.Errorf("reading the uplinks of %s: %w", other.Name, err)
		}
		for _, e := range elements {
			if deviceName(e.Key) == device {
				return true, nil
			}
		}
	}
	return false, nil
}

func (m *Manager) defaultDevices() ([]string, error) {
	var names []string
	routes, err := hostnet.Dumped(func() ([]netlink.Route, error) {
		return m.host.RouteListFiltered(unix.AF_INET, &netlink.Route{}, netlink.RT_FILTER_DST)
	})
	if err != nil {
		return nil, fmt.Errorf("listing default routes: %w", err)
	}
	for _, r := range routes {
		if link, err := m.host.LinkByIndex(r.LinkIndex); err == nil {
			names = append(names, link.Attrs().Name)
		}
	}
	return names, nil
}
