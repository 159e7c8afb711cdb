package control

import (
	"strings"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

// Bounds of a create request. Those of the environment keep every process in
// the sandbox far below what execve takes.
const (
	maxMetadata       = 128       // pairs
	maxMetadataKey    = 256       // bytes
	maxMetadataValue  = 4096      // bytes
	maxMetadataTotal  = 64 << 10  // bytes
	maxEnv            = 1024      // variables
	maxEnvName        = 256       // bytes
	maxEnvValue       = 64 << 10  // bytes
	maxEnvTotal       = 256 << 10 // bytes
	maxNetworkEntries = 1000
	maxNetworkEntry   = 256 // bytes
	maxTemplateRef    = 256 // bytes
)

// templateRef is a parsed template reference. The tag "default" is no tag.
type templateRef struct {
	name string // ID, alias or namespace/alias
	tag  string
}

// parseTemplate reads "[namespace/]alias[:tag]" or a template's ID.
func parseTemplate(s string) (templateRef, error) {
	bad := func(why string) (templateRef, error) {
		return templateRef{}, hearth.Errorf(hearth.InvalidArgument, "Invalid template reference: %s", why)
	}
	if len(s) > maxTemplateRef {
		return bad("it is longer than 256 bytes")
	}
	s = strings.ToLower(strings.TrimSpace(s))
	name, tag, tagged := strings.Cut(s, ":")
	namespace, alias, spaced := strings.Cut(name, "/")
	if !spaced {
		alias, namespace = name, "x"
	}
	if !only(alias, "-_") || !only(namespace, "-_") {
		return bad("it must be [namespace/]name[:tag], with letters, digits, '-' and '_' in each part")
	}
	if tagged && !only(tag, "-_.") {
		return bad("its tag must have letters, digits, '-', '_' and '.'")
	}
	if tag == "default" {
		tag = ""
	}
	return templateRef{name: name, tag: tag}, nil
}

// only reports whether s is not empty and has [a-z0-9] and the extra characters alone.
func only(s, extra string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune(extra, c)
	})
}

// check refuses what cannot be asked for, and fills in defaults.
func (c *Controller) check(req *CreateRequest) error {
	if err := c.checkTimeout(req.Timeout); err != nil {
		return err
	}
	switch req.OnTimeout {
	case "":
		req.OnTimeout = hearth.KillOnTimeout
	case hearth.KillOnTimeout, hearth.PauseOnTimeout:
	default:
		return hearth.Errorf(hearth.InvalidArgument, "the action on timeout must be kill or pause")
	}
	if err := checkPairs("metadata", req.Metadata, pairLimits{maxMetadata, maxMetadataKey, maxMetadataValue, maxMetadataTotal}); err != nil {
		return err
	}
	if err := checkPairs("envVars", req.Env, pairLimits{maxEnv, maxEnvName, maxEnvValue, maxEnvTotal}); err != nil {
		return err
	}
	for name := range req.Env {
		if name == "" || strings.Contains(name, "=") {
			return hearth.Errorf(hearth.InvalidArgument, "envVars has a name that is empty or has a '='")
		}
	}
	return checkNetwork(req.Network)
}

// checkTimeout holds a timeout that starts a life against the limits.
func (c *Controller) checkTimeout(d time.Duration) error {
	if d <= 0 {
		return hearth.Errorf(hearth.InvalidArgument, "Timeout must be greater than 0")
	}
	return c.checkMaximum(d)
}

func (c *Controller) checkMaximum(d time.Duration) error {
	if d > c.limits.MaxTimeout {
		return hearth.Errorf(hearth.InvalidArgument, "Timeout cannot be greater than %g hours", c.limits.MaxTimeout.Hours())
	}
	return nil
}

// pairLimits bounds a map: its pairs, and in bytes a key, a value and the whole.
type pairLimits struct{ pairs, key, value, total int }

func checkPairs(field string, m map[string]string, l pairLimits) error {
	if len(m) > l.pairs {
		return hearth.Errorf(hearth.InvalidArgument, "%s has %d entries, at most %d are allowed", field, len(m), l.pairs)
	}
	total := 0
	for k, v := range m {
		if len(k) > l.key {
			return hearth.Errorf(hearth.InvalidArgument, "%s has a name of %d bytes, at most %d are allowed", field, len(k), l.key)
		}
		if len(v) > l.value {
			return hearth.Errorf(hearth.InvalidArgument, "%s has a value of %d bytes, at most %d are allowed", field, len(v), l.value)
		}
		total += len(k) + len(v)
	}
	if total > l.total {
		return hearth.Errorf(hearth.InvalidArgument, "%s has %d bytes in all, at most %d are allowed", field, total, l.total)
	}
	return store.CheckText(field, m)
}

// checkNetwork bounds a policy; what its entries mean is checked where they
// come in and where they are applied.
func checkNetwork(n hearth.Network) error {
	for _, list := range []struct {
		field   string
		entries []string
	}{{"network.allowOut", n.AllowOut}, {"network.denyOut", n.DenyOut}, {"network.maskRequestHost", []string{n.MaskRequestHost}}} {
		if len(list.entries) > maxNetworkEntries {
			return hearth.Errorf(hearth.InvalidArgument, "%s has %d entries, at most %d are allowed", list.field, len(list.entries), maxNetworkEntries)
		}
		for _, e := range list.entries {
			if len(e) > maxNetworkEntry {
				return hearth.Errorf(hearth.InvalidArgument, "%s has an entry of %d bytes, at most %d are allowed", list.field, len(e), maxNetworkEntry)
			}
		}
	}
	return store.CheckText("network", n)
}
