// Package wish bounds what callers may ask for.
package wish

import (
	"strings"

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

// Ref is a parsed reference to a template or snapshot. The tag "default" is no tag.
type Ref struct {
	Name string // ID, alias or namespace/alias
	Tag  string
}

// IsSnapshot reports whether the name has the form of a snapshot's ID.
func (r Ref) IsSnapshot() bool {
	return len(r.Name) == 21 && r.Name[0] == 's' && Only(r.Name, "")
}

// Alias is the name without its namespace.
func (r Ref) Alias() string {
	if _, alias, spaced := strings.Cut(r.Name, "/"); spaced {
		return alias
	}
	return r.Name
}

// ParseRef reads "[namespace/]alias[:tag]" or a template's ID.
func ParseRef(s string) (Ref, error) {
	bad := func(why string) (Ref, error) {
		return Ref{}, hearth.Errorf(hearth.InvalidArgument, "Invalid template reference: %s", why)
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
	if !Only(alias, "-_") || !Only(namespace, "-_") {
		return bad("it must be [namespace/]name[:tag], with letters, digits, '-' and '_' in each part")
	}
	if tagged && !Only(tag, "-_.") {
		return bad("its tag must have letters, digits, '-', '_' and '.'")
	}
	if tag == "default" {
		tag = ""
	}
	return Ref{Name: name, Tag: tag}, nil
}

// Only reports whether s is not empty and has [a-z0-9] and the extra characters alone.
func Only(s, extra string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune(extra, c)
	})
}

// CheckName bounds the name of a snapshot; both parts may be empty.
func CheckName(alias, tag string) error {
	switch {
	case alias == "" && tag == "":
		return nil
	case alias == "":
		return hearth.Errorf(hearth.InvalidArgument, "name has a tag and no name")
	case len(alias) > 128 || len(tag) > 128:
		return hearth.Errorf(hearth.InvalidArgument, "name has %d bytes before its tag and %d in it, at most 128 are allowed for each", len(alias), len(tag))
	case !Only(alias, "-_"), tag != "" && !Only(tag, "-_."):
		return hearth.Errorf(hearth.InvalidArgument, "name must be name[:tag], with lower-case letters, digits, '-' and '_', and '.' in the tag")
	case Ref{Name: alias}.IsSnapshot():
		return hearth.Errorf(hearth.InvalidArgument, "name must not look like the ID of a snapshot")
	}
	return nil
}

// CheckMetadata bounds a sandbox's metadata.
func CheckMetadata(m map[string]string) error {
	return checkPairs("metadata", m, pairLimits{maxMetadata, maxMetadataKey, maxMetadataValue, maxMetadataTotal})
}

// CheckEnv bounds a sandbox's environment.
func CheckEnv(m map[string]string) error {
	for name := range m {
		if name == "" || strings.Contains(name, "=") {
			return hearth.Errorf(hearth.InvalidArgument, "envVars has a name that is empty or has a '='")
		}
	}
	return checkPairs("envVars", m, pairLimits{maxEnv, maxEnvName, maxEnvValue, maxEnvTotal})
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

// CheckNetwork bounds a policy; what its entries mean is checked where they
// come in and where they are applied.
func CheckNetwork(n hearth.Network) error {
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

// Of is the name under which a template was asked for: by its ID, its first.
func (r Ref) Of(t *hearth.Template) string {
	name := r.Alias()
	for _, a := range t.Aliases {
		if a == name {
			return a
		}
	}
	if len(t.Aliases) > 0 {
		return t.Aliases[0]
	}
	return ""
}
