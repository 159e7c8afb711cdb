package cli

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"hearth/client"
	"hearth/internal/hearth"
)

type sandboxCmd struct {
	Create sandboxCreateCmd `cmd:"" help:"Create a sandbox and print its ID."`
	List   sandboxListCmd   `cmd:"" help:"List sandboxes."`
	Exec   sandboxExecCmd   `cmd:"" help:"Run a shell command in a sandbox."`
	Code   sandboxCodeCmd   `cmd:"" help:"Run code in a sandbox's interpreter."`
	Pause  sandboxPauseCmd  `cmd:"" help:"Write a sandbox's memory and files away and free its machine."`
	Resume sandboxResumeCmd `cmd:"" help:"Let a paused sandbox go on."`
	Kill   sandboxKillCmd   `cmd:"" help:"End sandboxes."`

	Snapshot sandboxSnapshotCmd `cmd:"" help:"Keep a running sandbox's memory and files and print the snapshot's ID; it goes on."`
	Fork     sandboxForkCmd     `cmd:"" help:"Make sandboxes that begin as one is now, and print their IDs."`
	Rollback sandboxRollbackCmd `cmd:"" help:"Take a running sandbox back to a step of its history, or to a snapshot of its line."`
	History  sandboxHistoryCmd  `cmd:"" help:"Show the steps of a sandbox that was created with --history."`
	Tree     sandboxTreeCmd     `cmd:"" help:"Show the snapshots and sandboxes that share a line with one."`
}

// server connects to the server that E2B_API_URL names, else to the one that
// keeps the data directory.
func (d dataFlag) server(in *invocation) (*client.Client, error) {
	if d.Data == "" && os.Getenv("E2B_API_URL") != "" {
		return client.New(client.Options{})
	}
	c, err := d.load(in)
	if err != nil {
		return nil, err
	}
	a, err := readAccess(c)
	if err != nil {
		return nil, err
	}
	return client.New(client.Options{APIKey: a.key, APIURL: a.url, SandboxURL: a.url})
}

// pairs reads NAME=VALUE arguments.
func pairs(flag string, list []string) (map[string]string, error) {
	m := map[string]string{}
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, hearth.Errorf(hearth.InvalidArgument, "--%s %q must be NAME=VALUE", flag, kv)
		}
		m[k] = v
	}
	return m, nil
}

// lifetime refuses what the client would take for "the server's default".
func lifetime(d time.Duration) error {
	if d <= 0 {
		return hearth.Errorf(hearth.InvalidArgument, "--timeout %s must be more than 0", d)
	}
	return nil
}

type sandboxCreateCmd struct {
	dataFlag
	Template   string         `arg:"" optional:"" default:"base" help:"Template."`
	Timeout    time.Duration  `default:"5m" help:"Life of the sandbox."`
	Metadata   []string       `sep:"none" placeholder:"NAME=VALUE" help:"Metadata; may be repeated."`
	Env        []string       `sep:"none" placeholder:"NAME=VALUE" help:"Environment of every process in it; may be repeated."`
	NoInternet bool           `help:"Nothing outside is reachable."`
	AutoPause  bool           `help:"Pause at the end of its life instead of killing."`
	Files      bool           `help:"With --auto-pause: keep the files alone; it boots when it is resumed."`
	Idle       *time.Duration `help:"Pause it when no request to it has been under way for so long, at least 5s; default: never."`
	AutoResume bool           `help:"Let traffic resume it when it is paused."`
	History    budget         `placeholder:"BYTES" help:"Keep what it is after each command and cell, within so many bytes (--history=512MiB); alone: 1GiB."`
	Driver     string         `help:"Isolation technology, one that the server offers; default: the template's, else the server's choice."`
}

// Run prints the new sandbox's ID.
func (s *sandboxCreateCmd) Run(in *invocation) error {
	if err := lifetime(s.Timeout); err != nil {
		return err
	}
	if s.Idle != nil && *s.Idle <= 0 { // the client would take it for "never"
		return hearth.Errorf(hearth.InvalidArgument, "--idle %s must be at least 5s; without it the sandbox is never paused for being idle", *s.Idle)
	}
	c, err := s.server(in)
	if err != nil {
		return err
	}
	o := client.CreateOptions{Template: s.Template, Timeout: s.Timeout, NoInternet: s.NoInternet, AutoPause: s.AutoPause, FilesOnly: s.Files, AutoResume: s.AutoResume, History: int64(s.History), Driver: s.Driver}
	if s.Idle != nil {
		o.Idle = *s.Idle
	}
	if o.Metadata, err = pairs("metadata", s.Metadata); err != nil {
		return err
	}
	if o.Env, err = pairs("env", s.Env); err != nil {
		return err
	}
	sb, err := c.Create(in.ctx, o)
	if err != nil {
		return remote(err)
	}
	_, err = fmt.Fprintln(in.out, sb.ID)
	return err
}

type sandboxListCmd struct{ dataFlag }

// Run prints a table, newest first.
func (s *sandboxListCmd) Run(in *invocation) error {
	c, err := s.server(in)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(in.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tTEMPLATE\tSTATE\tSTARTED\tENDS\tDRIVER\tISOLATION\tMETADATA")
	for i, err := range c.List(in.ctx, client.ListOptions{}) {
		if err != nil {
			return remote(err)
		}
		var meta []string
		for k, v := range i.Metadata {
			meta = append(meta, k+"="+v)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", i.ID, cmp.Or(i.Name, i.Template), i.State,
			i.StartedAt.Local().Format(time.DateTime), i.EndAt.Local().Format(time.DateTime), i.Driver, i.Isolation, strings.Join(meta, " "))
	}
	return w.Flush()
}

type sandboxExecCmd struct {
	dataFlag
	ID      string   `arg:"" help:"Sandbox."`
	Command []string `arg:"" passthrough:"" help:"One word is a shell command line; more are a program and its arguments, which arrive as they are."`
	User    string   `help:"User; default: the template's."`
	Dir     string   `help:"Directory; default: the template's."`
	Env     []string `sep:"none" placeholder:"NAME=VALUE" help:"Environment; may be repeated."`
}

// Run passes output and exit code on.
func (s *sandboxExecCmd) Run(in *invocation) error {
	sb, err := s.sandbox(in, s.ID)
	if err != nil {
		return err
	}
	env, err := pairs("env", s.Env)
	if err != nil {
		return err
	}
	r, err := sb.Commands.Run(in.ctx, commandLine(s.Command), client.RunOptions{User: s.User, Dir: s.Dir, Env: env, Stdout: in.out, Stderr: in.err})
	if err != nil {
		return remote(err)
	}
	switch {
	case r.ExitCode == 0:
		return nil
	case r.ExitCode < 0:
		return fmt.Errorf("the command ended by %s", r.Error)
	}
	return remoteExit(r.ExitCode)
}

// commandLine is what a shell must be given so that words arrive as they are. One
// word alone is a line already.
func commandLine(words []string) string {
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 1 {
		return words[0]
	}
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = shellWord(w)
	}
	return strings.Join(quoted, " ")
}

// shellWord quotes a word if a shell would see more in it.
func shellWord(w string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-+./:,@%", r)
	}
	if w != "" && strings.IndexFunc(w, func(r rune) bool { return !plain(r) }) < 0 {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}

// sandbox connects to a sandbox that runs and leaves its end where it is, but for
// its last second. A paused one is resumed as its traffic would do it, with the life
// that it was created with; where traffic does not, its user has to say so.
func (d dataFlag) sandbox(in *invocation, id string) (*client.Sandbox, error) {
	c, err := d.server(in)
	if err != nil {
		return nil, err
	}
	info, err := c.Info(in.ctx, id)
	if err != nil {
		return nil, remote(err)
	}
	life := max(time.Second, time.Until(info.EndAt)-time.Second)
	if info.State == "paused" {
		if !info.Lifecycle.AutoResume {
			return nil, hearth.Errorf(hearth.FailedPrecondition, "sandbox %s is paused; let it go on with `hearth sandbox resume %s`", info.ID, info.ID)
		}
		life = max(time.Second, time.Duration(info.Timeout)*time.Second)
	}
	sb, err := c.Connect(in.ctx, id, life)
	return sb, remote(err)
}

type sandboxCodeCmd struct {
	dataFlag
	ID       string `arg:"" help:"Sandbox of a template with a code interpreter."`
	Code     string `arg:"" help:"What to run."`
	Language string `help:"Language; default: python."`
}

// Run prints what the code prints, then the value of its last expression.
func (s *sandboxCodeCmd) Run(in *invocation) error {
	sb, err := s.sandbox(in, s.ID)
	if err != nil {
		return err
	}
	r, err := sb.Code.Run(in.ctx, s.Code, client.CodeOptions{Language: s.Language, OnOutput: func(stream, text string) {
		if stream == "stderr" {
			fmt.Fprint(in.err, text)
			return
		}
		fmt.Fprint(in.out, text)
	}})
	if err != nil {
		return remote(err)
	}
	if r.Error != nil {
		fmt.Fprintln(in.err, r.Error.Traceback)
		return remoteExit(exitFailed)
	}
	if text := r.Text(); text != "" {
		fmt.Fprintln(in.out, text)
	}
	return nil
}

type sandboxPauseCmd struct {
	dataFlag
	ID    string `arg:"" help:"Sandbox."`
	Files bool   `help:"Keep the files alone: it boots when it is resumed."`
}

// Run returns when the sandbox is paused.
func (s *sandboxPauseCmd) Run(in *invocation) error {
	c, err := s.server(in)
	if err != nil {
		return err
	}
	if s.Files {
		return remote(c.PauseFiles(in.ctx, s.ID))
	}
	return remote(c.Pause(in.ctx, s.ID))
}

type sandboxResumeCmd struct {
	dataFlag
	ID      string         `arg:"" help:"Sandbox."`
	Timeout *time.Duration `help:"Life of the sandbox from now on; default: what it was created with."`
}

// Run returns when the sandbox runs.
func (s *sandboxResumeCmd) Run(in *invocation) error {
	if s.Timeout != nil {
		if err := lifetime(*s.Timeout); err != nil {
			return err
		}
	}
	c, err := s.server(in)
	if err != nil {
		return err
	}
	life := s.Timeout
	if life == nil {
		info, err := c.Info(in.ctx, s.ID)
		if err != nil {
			return remote(err)
		}
		life = new(time.Duration(info.Timeout) * time.Second)
	}
	_, err = c.Connect(in.ctx, s.ID, *life)
	return remote(err)
}

type sandboxKillCmd struct {
	dataFlag
	IDs []string `arg:"" optional:"" name:"id" help:"Sandboxes."`
	All bool     `help:"All of them."`
}

// Run ends every sandbox it is given, and fails if one was not there.
func (s *sandboxKillCmd) Run(in *invocation) error {
	c, err := s.server(in)
	if err != nil {
		return err
	}
	ids := s.IDs
	if s.All {
		for i, err := range c.List(in.ctx, client.ListOptions{}) {
			if err != nil {
				return remote(err)
			}
			ids = append(ids, i.ID)
		}
	} else if len(ids) == 0 {
		return hearth.Errorf(hearth.InvalidArgument, "name the sandboxes to kill, or use --all")
	}
	var errs []error
	for _, id := range ids {
		if err := c.Kill(in.ctx, id); err != nil && !(s.All && client.NotFound(err)) {
			errs = append(errs, remote(err))
		}
	}
	return errors.Join(errs...)
}

// remote gives a server's answer the kind that exitCode goes by.
func remote(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, client.ErrCut) {
		return hearth.Errorf(hearth.Unavailable, "%s", client.ErrCut)
	}
	e, ok := errors.AsType[*client.Error](err)
	if !ok {
		return hearth.Wrap(hearth.Unavailable, err, "the server cannot be reached")
	}
	kind := hearth.Internal
	switch {
	case client.NotFound(err):
		kind = hearth.NotFound
	case e.Status == 400:
		kind = hearth.InvalidArgument
	case e.Status == 401 || e.Status == 403:
		kind = hearth.PermissionDenied
	case e.Status == 429 || e.Status == 503:
		kind = hearth.Unavailable
	}
	return hearth.Errorf(kind, "%s", e.Error())
}
