package code

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hearth/internal/hearth"
)

// MarkerPath is where an image says that it has a code interpreter.
const MarkerPath = "/etc/hearth/code-interpreter.json"

// maxSpecFile bounds the marker and every kernel spec, in bytes.
const maxSpecFile = 64 << 10

// Marker is the content of [MarkerPath]; the package comment explains the fields.
type Marker struct {
	Python        string   `json:"python"`
	KernelDirs    []string `json:"kernel_dirs"`
	Preload       []string `json:"preload"`
	JupyterServer bool     `json:"jupyter_server"`
}

// Load reads a marker. The error is fs.ErrNotExist when the image has no code
// interpreter; unknown fields are ignored so that newer images run.
func Load(path string) (Marker, error) {
	var m Marker
	if err := readJSON(path, &m); err != nil {
		return Marker{}, err
	}
	if !filepath.IsAbs(m.Python) {
		return Marker{}, hearth.Errorf(hearth.InvalidArgument,
			"%s: python must be an absolute path, not %q", path, m.Python)
	}
	return m, nil
}

// kernelSpec is how to start one kind of kernel.
type kernelSpec struct {
	Name      string            `json:"-"`
	Argv      []string          `json:"argv"`
	Language  string            `json:"language"`
	Env       map[string]string `json:"env"`
	Interrupt string            `json:"interrupt_mode"`
	prepared  bool              // our own IPython kernel, which reads our metadata
}

// kernelSpecs lists the kernels of the image by language name. Python is always
// there and always ours; a spec that cannot be read is left out.
func (m Marker) kernelSpecs(launcher string) map[string]kernelSpec {
	specs := map[string]kernelSpec{}
	dirs := slices.Concat(m.KernelDirs, []string{"/usr/local/share/jupyter/kernels", "/usr/share/jupyter/kernels"})
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			spec := kernelSpec{Name: strings.ToLower(e.Name())}
			if readJSON(filepath.Join(dir, e.Name(), "kernel.json"), &spec) != nil || len(spec.Argv) == 0 || spec.Name == "python3" {
				continue
			}
			for _, name := range []string{spec.Name, strings.ToLower(spec.Language)} {
				if _, taken := specs[name]; !taken && validLanguage(name) {
					specs[name] = spec
				}
			}
		}
	}
	specs[python] = kernelSpec{
		Name: python, Language: python, prepared: true,
		Argv: []string{m.Python, launcher, "-f", "{connection_file}"},
	}
	return specs
}

// argv is the command of a kernel that reads the given connection file.
func (s kernelSpec) argv(connection string) []string {
	args := make([]string, len(s.Argv))
	for i, a := range s.Argv {
		args[i] = strings.ReplaceAll(a, "{connection_file}", connection)
	}
	return args
}

func readJSON(path string, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, maxSpecFile+1))
	if err != nil {
		return err
	}
	if len(b) > maxSpecFile {
		return hearth.Errorf(hearth.InvalidArgument, "%s is larger than %d bytes", path, maxSpecFile)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
