// Package official runs the official E2B SDKs in programs of their own, and
// against a stub that shows what of a figure is the SDK's.
package official

import (
	"bufio"
	"context"
	_ "embed" // the scripts
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The scripts first print {"sdk"}, the version. Told "go" on standard input they
// make a sandbox, run echo, stop the clock and print {"sandbox", "ms"}; told
// "kill" they kill it and print {}. What fails is printed as {"error"}.
//
//go:embed scripts/create.mjs
var scriptJS []byte

//go:embed scripts/create.py
var scriptPython []byte

// A Find returns the program that uses one SDK; dir is where it may write.
type Find func(dir string) (*exec.Cmd, error)

// JavaScript finds node and a directory with the SDK.
func JavaScript(dir string) (*exec.Cmd, error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, errors.New("node is not installed")
	}
	for _, place := range candidates("HEARTH_TEST_JS", ".cache/sdks/js-pinned", ".cache/demo/js", ".") {
		modules := filepath.Join(place, "node_modules")
		if _, err := os.Stat(filepath.Join(modules, "e2b")); err != nil {
			continue
		}
		// Modules are looked for beside the script.
		home := filepath.Join(dir, "js")
		if err := os.MkdirAll(home, 0o700); err != nil {
			return nil, err
		}
		script := filepath.Join(home, "create.mjs")
		if err := errors.Join(os.RemoveAll(filepath.Join(home, "node_modules")), os.Symlink(modules, filepath.Join(home, "node_modules")),
			os.WriteFile(script, scriptJS, 0o600)); err != nil {
			return nil, err
		}
		return exec.Command(node, script), nil
	}
	return nil, errors.New("the npm package e2b is not in ./node_modules; HEARTH_TEST_JS names a directory that has it")
}

// Python finds an interpreter with the SDK.
func Python(dir string) (*exec.Cmd, error) {
	script := filepath.Join(dir, "create.py")
	if err := os.WriteFile(script, scriptPython, 0o600); err != nil {
		return nil, err
	}
	for _, python := range candidates("HEARTH_TEST_PYTHON_SDK", ".cache/sdks/venv/bin/python", ".cache/demo/venv/bin/python", "python3") {
		if exec.Command(python, "-c", "import e2b").Run() == nil {
			return exec.Command(python, script), nil
		}
	}
	return nil, errors.New("no Python with the package e2b; HEARTH_TEST_PYTHON_SDK names one that has it")
}

// candidates are absolute paths, those of the environment first. The sources'
// own places are for who runs the command in them; a bare name is looked up.
func candidates(variable string, places ...string) []string {
	list := strings.FieldsFunc(os.Getenv(variable), func(c rune) bool { return c == ':' })
	for _, p := range places {
		if p == "." || strings.Contains(p, "/") {
			if abs, err := filepath.Abs(p); err == nil {
				p = abs
			}
		}
		list = append(list, p)
	}
	return list
}

// Program is one program with an SDK, waiting to be told to go on.
type Program struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
	SDK   string // the package's name and version
}

// Start starts a program in dir with the environment environ.
func Start(ctx context.Context, dir string, find Find, environ []string) (*Program, error) {
	cmd, err := find(dir)
	if err != nil {
		return nil, err
	}
	cmd.Env = environ
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	s := &Program{cmd: cmd}
	if s.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.lines = bufio.NewScanner(out)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var hello struct {
		SDK string `json:"sdk"`
	}
	if err := s.read(ctx, &hello); err != nil {
		s.Close()
		return nil, err
	}
	s.SDK = hello.SDK
	return s, nil
}

// read takes one line, or ends the program with ctx.
func (s *Program) read(ctx context.Context, v any) error {
	defer context.AfterFunc(ctx, func() { _ = s.cmd.Process.Kill() })()
	if !s.lines.Scan() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return errors.New("the SDK's program ended early")
	}
	var failure struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(s.lines.Bytes(), &failure); err != nil {
		return fmt.Errorf("the SDK's program printed %q", s.lines.Text())
	}
	if failure.Error != "" {
		return errors.New(failure.Error)
	}
	return json.Unmarshal(s.lines.Bytes(), v)
}

// Once makes one sandbox. alive is called with its ID before it is killed.
func (s *Program) Once(ctx context.Context, alive func(sandbox string)) (time.Duration, error) {
	var got struct {
		Sandbox string  `json:"sandbox"`
		MS      float64 `json:"ms"`
	}
	if _, err := io.WriteString(s.in, "go\n"); err != nil {
		return 0, err
	}
	if err := s.read(ctx, &got); err != nil {
		return 0, err
	}
	alive(got.Sandbox)
	if _, err := io.WriteString(s.in, "kill\n"); err != nil {
		return 0, err
	}
	var killed struct{}
	return time.Duration(got.MS * float64(time.Millisecond)), s.read(ctx, &killed)
}

// Close ends the program.
func (s *Program) Close() {
	_ = s.in.Close() // its end
	over := time.AfterFunc(5*time.Second, func() { _ = s.cmd.Process.Kill() })
	defer over.Stop()
	_ = s.cmd.Wait() // what it had to say was read
}
