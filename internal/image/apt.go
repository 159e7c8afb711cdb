package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"hearth/internal/hearth"
)

// aptSource is one suite of one archive that the host's apt is set up for.
type aptSource struct {
	uri        string
	suite      string
	components []string
	keys       []string // keyring files on the host; empty: apt's own
}

// aptHost is what matters of the host's apt: nothing of it is written down in
// this program, so that a host behind a mirror, a proxy or with an authority of
// its own needs no set-up twice.
type aptHost struct {
	codename string // of the host's Debian release
	arch     string
	sources  []aptSource
	options  []string // lines of apt.conf: proxies, certificates, timeouts
}

const indexFormat = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(ARCHITECTURE)|$(SOURCESENTRY)"

// readAptHost asks the host's apt for its configuration. Only Debian's own
// suites count; repositories of other vendors are left out.
func readAptHost(ctx context.Context, osRelease string) (*aptHost, error) {
	release, err := os.ReadFile(osRelease)
	if err != nil {
		return nil, hearth.Wrap(hearth.FailedPrecondition, err, "cannot read %s: templates from Debian packages need a Debian host", osRelease)
	}
	fields := shellFields(string(release))
	if fields["ID"] != "debian" || fields["VERSION_CODENAME"] == "" {
		return nil, hearth.Errorf(hearth.FailedPrecondition,
			"templates from Debian packages need a Debian host, and this one is %q; make the template from a tarball or an OCI layout instead", fields["ID"])
	}
	h := &aptHost{codename: fields["VERSION_CODENAME"]}
	arch, err := output(ctx, "dpkg", "dpkg", "--print-architecture")
	if err != nil {
		return nil, err
	}
	h.arch = strings.TrimSpace(arch)
	targets, err := output(ctx, "apt-get", "apt", "indextargets", "--format", indexFormat, "Created-By: Packages")
	if err != nil {
		return nil, err
	}
	if h.sources = debianSources(targets, h.codename, h.arch); len(h.sources) == 0 {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "the host's apt has no source for Debian %s; add one to /etc/apt/sources.list.d", h.codename)
	}
	dump, err := output(ctx, "apt-config", "apt", "dump", "Acquire")
	if err != nil {
		return nil, err
	}
	h.options = acquireOptions(dump)
	return h, nil
}

// shellFields reads KEY=value lines, quoted or not.
func shellFields(text string) map[string]string {
	m := map[string]string{}
	eachLine(text, func(s string) {
		if k, v, ok := strings.Cut(s, "="); ok {
			m[k] = strings.Trim(v, `"'`)
		}
	})
	return m
}

// debianSources picks Debian's suites of a release out of apt's index targets.
// Before the first apt-get update apt does not know whose an archive is; then
// one with Debian's component names counts.
func debianSources(targets, codename, arch string) []aptSource {
	suites := []string{codename, codename + "-updates", codename + "-security"}
	ours := []string{"main", "contrib", "non-free", "non-free-firmware"}
	var list []aptSource
	eachLine(targets, func(s string) {
		f := strings.SplitN(s, "|", 6)
		if len(f) != 6 || !slices.Contains(suites, f[1]) || !slices.Contains(ours, f[2]) || f[4] != arch && f[4] != "all" {
			return
		}
		if unknown := strings.HasPrefix(f[3], "$("); f[3] != "Debian" && f[3] != "" && !unknown {
			return
		}
		i := slices.IndexFunc(list, func(a aptSource) bool { return a.uri == f[0] && a.suite == f[1] })
		if i < 0 {
			list = append(list, aptSource{uri: f[0], suite: f[1], keys: signedBy(f[5])})
			i = len(list) - 1
		}
		if !slices.Contains(list[i].components, f[2]) {
			list[i].components = append(list[i].components, f[2])
		}
	})
	return list
}

var signedByRE = regexp.MustCompile(`(?i)signed-by\s*[:=]\s*(/[^\s\]]+)`)

// signedBy returns the keyring files that a sources file names. entry is apt's
// "file:line".
func signedBy(entry string) []string {
	file, _, _ := strings.Cut(entry, ":")
	if !filepath.IsAbs(file) {
		return nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil // apt read it; without the name of a key its own keyrings are used
	}
	var keys []string
	for _, m := range signedByRE.FindAllStringSubmatch(string(raw), -1) {
		for _, k := range strings.Split(m[1], ",") {
			if _, err := os.Stat(k); err == nil && !slices.Contains(keys, k) {
				keys = append(keys, k)
			}
		}
	}
	return keys
}

// acquireOptions keeps what says how to reach the archives.
func acquireOptions(dump string) []string {
	keep := []string{
		"Acquire::http", "Acquire::https", "Acquire::Check-Valid-Until", "Acquire::Check-Date", "Acquire::Retries",
		"Acquire::ForceIPv4", "Acquire::ForceIPv6", "Acquire::AllowInsecureRepositories", "Acquire::Queue-Mode",
	}
	var list []string
	eachLine(dump, func(s string) {
		name, value, _ := strings.Cut(s, " ")
		if value == `"";` || !strings.HasSuffix(value, `";`) {
			return
		}
		for _, k := range keep {
			if name == k || strings.HasPrefix(name, k+"::") {
				list = append(list, s)
				return
			}
		}
	})
	return list
}

// conf is an apt.conf for making a root file system.
func (h *aptHost) conf() string {
	list := append(slices.Clone(h.options),
		`APT::Install-Recommends "0";`, `APT::Install-Suggests "0";`, `Acquire::Languages "none";`)
	for key, path := range map[string]string{"Dir::Etc::netrc": "/etc/apt/auth.conf", "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d/"} {
		if _, err := os.Stat(path); err == nil {
			list = append(list, fmt.Sprintf("%s %q;", key, path))
		}
	}
	slices.Sort(list)
	return strings.Join(list, "\n") + "\n"
}

// list is the sources as the host has them, for the making.
func (h *aptHost) list() string {
	var b strings.Builder
	for _, s := range h.sources {
		opt := ""
		if len(s.keys) > 0 {
			opt = "[signed-by=" + strings.Join(s.keys, ",") + "] "
		}
		fmt.Fprintf(&b, "deb %s%s %s %s\n", opt, s.uri, s.suite, strings.Join(s.components, " "))
	}
	return b.String()
}

// inside is the sources as a sandbox sees them: the same archives, without the
// host's credentials and file names.
func (h *aptHost) inside() string {
	var b strings.Builder
	for _, s := range h.sources {
		fmt.Fprintf(&b, "deb %s %s %s\n", scrub(s.uri), s.suite, strings.Join(s.components, " "))
	}
	return b.String()
}

// suites names what is installed from, for the key.
func (h *aptHost) suites() []string {
	var list []string
	for _, s := range h.sources {
		list = append(list, s.suite+" "+strings.Join(s.components, " "))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// python returns the version ("3.11") of the suite's python3.
func (h *aptHost) python(ctx context.Context) (string, error) {
	text, err := output(ctx, "apt-cache", "apt", "show", "--no-all-versions", "python3")
	if err != nil {
		return "", err
	}
	m := pythonVersionRE.FindStringSubmatch(text)
	if m == nil {
		return "", hearth.Errorf(hearth.FailedPrecondition, "apt does not know python3; run: apt-get update")
	}
	return m[1], nil
}

var pythonVersionRE = regexp.MustCompile(`(?m)^Version: (?:\d+:)?(\d+\.\d+)\.`)
