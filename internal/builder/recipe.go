package builder

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/goccy/go-yaml"

	"hearth/internal/hearth"
	"hearth/internal/image"
)

// recipeVersion is part of every build's Source: it grows when the same recipe
// gives another build.
const recipeVersion = "2"

// Recipe says how to make a template.
type Recipe struct {
	Name      string // also the template's alias
	Source    image.Source
	Start     string // shell line that runs before the warm snapshot and goes on in every sandbox
	Ready     string // shell line that succeeds once Start is ready; empty: at once
	Resources hearth.Resources
	Driver    string // its sandboxes run on it unless they ask for another; empty: the node's choice
	Env       map[string]string
	User      string // empty: the source's, else "user"
	Workdir   string // empty: the source's, else the user's home
	Public    bool   // other teams may use the template
}

// Resources of a template that asks for none.
const (
	defaultVCPUs     = 2
	defaultMemoryMiB = 1024
	defaultDiskMiB   = 512
)

const (
	maxLine = 8 << 10 // bytes of a start or ready command
	maxEnv  = 200     // variables
	maxVar  = 32 << 10
)

var (
	nameRE = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9_-]{1,128}$`) })
	userRE = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`) })
	envRE  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`) })
)

// validate fills in defaults and names the first bad field and its limit.
func (r *Recipe) validate() error {
	if !nameRE().MatchString(r.Name) {
		return invalid("name: %.200q must be 1 to 128 characters of [a-z0-9_-]", r.Name)
	}
	if r.Source == nil {
		return invalid("source: the recipe of %q has none", r.Name)
	}
	if err := sizes(&r.Resources); err != nil {
		return err
	}
	for field, line := range map[string]string{"start": r.Start, "ready": r.Ready} {
		if len(line) > maxLine || strings.ContainsAny(line, "\x00\n") {
			return invalid("%s: a command must be one line of at most %d bytes", field, maxLine)
		}
	}
	if r.User != "" && !userRE().MatchString(r.User) {
		return invalid("user: %.100q is not the name of a user", r.User)
	}
	if r.Workdir != "" && (!path.IsAbs(r.Workdir) || len(r.Workdir) > 4096 || strings.IndexByte(r.Workdir, 0) >= 0) {
		return invalid("workdir: %.100q must be an absolute path of at most 4096 bytes", r.Workdir)
	}
	return checkEnv(r.Env)
}

// sizes fills in what a template that asks for nothing gets.
func sizes(res *hearth.Resources) error {
	for _, d := range []struct {
		v        *int
		def      int
		field    string
		min, max int
	}{
		{&res.VCPUs, defaultVCPUs, "vcpus", 1, 32},
		{&res.MemoryMiB, defaultMemoryMiB, "memory_mib", 128, 1 << 20},
		{&res.DiskMiB, defaultDiskMiB, "disk_mib", 64, 1 << 20},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < d.min || *d.v > d.max {
			return invalid("%s: %d must be between %d and %d", d.field, *d.v, d.min, d.max)
		}
	}
	return nil
}

func checkEnv(env map[string]string) error {
	if len(env) > maxEnv {
		return invalid("env: %d variables are more than the %d allowed", len(env), maxEnv)
	}
	for k, v := range env {
		if !envRE().MatchString(k) || len(v) > maxVar || strings.IndexByte(v, 0) >= 0 {
			return invalid("env: %.100q must be a name of at most 128 letters, digits and _, and its value at most %d bytes without NUL", k, maxVar)
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return hearth.Errorf(hearth.InvalidArgument, format, args...)
}

// key names everything of a recipe but its source that the build depends on.
func (r *Recipe) key(daemon string) string {
	raw, err := json.Marshal(struct {
		Version, Daemon, Driver, Start, Ready, User, Workdir string
		Resources                                            hearth.Resources
		Env                                                  map[string]string // sorted by the encoder
	}{recipeVersion, daemon, r.Driver, r.Start, r.Ready, r.User, r.Workdir, r.Resources, r.Env})
	if err != nil {
		return "" // strings and numbers always encode
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

//go:embed recipes/*.yaml
var recipes embed.FS

// builtin is the form of a file in recipes/.
type builtin struct {
	Packages  []string          `yaml:"packages"`
	Python    []string          `yaml:"python"`
	Drop      []string          `yaml:"drop"`
	Files     map[string]string `yaml:"files"`
	Start     string            `yaml:"start"`
	Ready     string            `yaml:"ready"`
	VCPUs     int               `yaml:"vcpus"`
	MemoryMiB int               `yaml:"memory_mib"`
	DiskMiB   int               `yaml:"disk_mib"`
	Env       map[string]string `yaml:"env"`
}

// BuiltinNames lists the templates that Hearth knows how to make by itself.
func BuiltinNames() []string {
	list, err := recipes.ReadDir("recipes")
	if err != nil {
		return nil // embedded: it is there
	}
	var names []string
	for _, f := range list {
		names = append(names, strings.TrimSuffix(f.Name(), ".yaml"))
	}
	return names
}

// Builtin returns the recipe of a built-in template. cache keeps its packages.
func Builtin(name string, cache *image.Cache) (Recipe, error) {
	if !slices.Contains(BuiltinNames(), name) {
		return Recipe{}, hearth.Errorf(hearth.NotFound, "there is no built-in template %.100q; there are: %s", name, strings.Join(BuiltinNames(), ", "))
	}
	raw, err := recipes.ReadFile("recipes/" + name + ".yaml")
	if err != nil {
		return Recipe{}, err
	}
	var y builtin
	if err := yaml.UnmarshalWithOptions(raw, &y, yaml.Strict()); err != nil {
		return Recipe{}, hearth.Wrap(hearth.Internal, err, "the built-in recipe of %q cannot be read", name)
	}
	src, err := image.NewDebian(cache, image.DebianSpec{Packages: y.Packages, Python: y.Python, Drop: y.Drop, Files: y.Files})
	if err != nil {
		return Recipe{}, err
	}
	return Recipe{
		Name: name, Source: src, Start: y.Start, Ready: y.Ready, Env: maps.Clone(y.Env), Public: true,
		Resources: hearth.Resources{VCPUs: y.VCPUs, MemoryMiB: y.MemoryMiB, DiskMiB: y.DiskMiB},
	}, nil
}

// BasePackages are the Debian packages that every template of Debian packages
// should have: what clients expect to find in a sandbox.
func BasePackages(cache *image.Cache) ([]string, error) {
	r, err := Builtin("base", cache)
	if err != nil {
		return nil, err
	}
	return r.Source.(*image.Debian).Packages(), nil
}
