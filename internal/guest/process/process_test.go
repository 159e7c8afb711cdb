package process

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"hearth/internal/gen/guestv1"
	"hearth/internal/gen/guestv1/guestv1connect"
	"hearth/internal/guest/process/account"
	"hearth/internal/guest/process/reap"
	"hearth/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

type fixture struct {
	*testing.T
	svc    *Service
	client guestv1connect.ProcessClient
}

func serve(t *testing.T) *fixture {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	reaper := reap.New(reap.Children)
	svc := New(Options{Reaper: reaper, Session: func() account.Session {
		return account.Session{User: me.Username, Env: map[string]string{"GLOBAL": "g", "BOTH": "global"}}
	}})
	mux := http.NewServeMux()
	path, handler := guestv1connect.NewProcessHandler(svc)
	mux.Handle(path, JoinEnds(handler))
	srv := httptest.NewServer(mux)
	hc := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		svc.Close()
		hc.CloseIdleConnections()
		srv.Close()
		reaper.Close()
	})
	return &fixture{T: t, svc: svc, client: guestv1connect.NewProcessClient(hc, srv.URL)}
}

type events = connect.ServerStreamForClient[guestv1.StartResponse]

// start starts a process and returns its pid; the stream is at its first data.
func (f *fixture) start(ctx context.Context, req *guestv1.StartRequest, headers ...string) (*events, uint32) {
	f.Helper()
	r := connect.NewRequest(req)
	for i := 0; i < len(headers); i += 2 {
		r.Header().Set(headers[i], headers[i+1])
	}
	s, err := f.client.Start(ctx, r)
	if err != nil {
		f.Fatal(err)
	}
	if !s.Receive() {
		f.Fatalf("no start event: %v", s.Err())
	}
	f.Cleanup(func() { _ = s.Close() })
	return s, s.Msg().GetEvent().GetStart().GetPid()
}

func shell(script string) *guestv1.StartRequest {
	off := false
	return &guestv1.StartRequest{Process: &guestv1.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}}, Stdin: &off}
}

type result struct {
	stdout, stderr, pty string
	end                 *guestv1.ProcessEvent_EndEvent
	err                 error
}

// drain reads a stream to its end.
func drain(s *events) (r result) {
	for s.Receive() {
		ev := s.Msg().GetEvent()
		if r.end != nil {
			r.err = fmt.Errorf("%v after the end", ev)
			return r
		}
		r.stdout += string(ev.GetData().GetStdout())
		r.stderr += string(ev.GetData().GetStderr())
		r.pty += string(ev.GetData().GetPty())
		r.end = ev.GetEnd()
	}
	r.err = s.Err()
	return r
}

func TestEnds(t *testing.T) {
	f := serve(t)
	for _, c := range []struct {
		script, stdout, stderr, status string
		code                           int32
	}{
		{"echo out; echo err >&2", "out\n", "err\n", "exit status 0", 0},
		{"exit 3", "", "", "exit status 3", 3},
		{"kill -9 $$", "", "", "signal: killed", -1},
		{"kill -TERM $$", "", "", "signal: terminated", -1},
		{"head -c 300000 /dev/zero | tr '\\0' x", strings.Repeat("x", 300000), "", "exit status 0", 0},
		{"echo $GLOBAL $BOTH $USER; pwd", "", "", "exit status 0", 0},
	} {
		req := shell(c.script)
		req.Process.Envs = map[string]string{"BOTH": "request"}
		dir := "/"
		req.Process.Cwd = &dir
		s, _ := f.start(t.Context(), req)
		r := drain(s)
		if r.err != nil || r.end.GetStatus() != c.status || r.end.GetExitCode() != c.code || r.stderr != c.stderr {
			t.Errorf("%s: got %.100q %q %v %v", c.script, r.stdout, r.stderr, r.end, r.err)
		}
		if r.end.GetExited() != (c.code >= 0) || (r.end.Error != nil) != (c.code != 0) {
			t.Errorf("%s: end is %v", c.script, r.end)
		}
		want := c.stdout
		if strings.Contains(c.script, "GLOBAL") {
			me, _ := user.Current()
			want = "g request " + me.Username + "\n/\n"
		}
		if r.stdout != want {
			t.Errorf("%s: stdout %.100q, want %.100q", c.script, r.stdout, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	f := serve(t)
	cwd := "/does/not/exist"
	file := "/etc/passwd"
	for name, c := range map[string]struct {
		req  *guestv1.StartRequest
		user string
		code connect.Code
		text string
	}{
		"no command":  {&guestv1.StartRequest{}, "", connect.CodeInvalidArgument, "cmd"},
		"missing cwd": {&guestv1.StartRequest{Process: &guestv1.ProcessConfig{Cmd: "true", Cwd: &cwd}}, "", connect.CodeInvalidArgument, "cwd '/does/not/exist' does not exist"},
		"file as cwd": {&guestv1.StartRequest{Process: &guestv1.ProcessConfig{Cmd: "true", Cwd: &file}}, "", connect.CodeInvalidArgument, "not a directory"},
		"NUL":         {&guestv1.StartRequest{Process: &guestv1.ProcessConfig{Cmd: "a\x00b"}}, "", connect.CodeInvalidArgument, "NUL"},
		"bad env":     {&guestv1.StartRequest{Process: &guestv1.ProcessConfig{Cmd: "true", Envs: map[string]string{"a=b": ""}}}, "", connect.CodeInvalidArgument, "envs"},
		"bad user":    {shell("true"), "zz", connect.CodeUnauthenticated, "invalid username: 'zz'"},
	} {
		r := connect.NewRequest(c.req)
		if c.user != "" {
			r.Header().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(c.user+":")))
		}
		s, err := f.client.Start(t.Context(), r)
		if err == nil {
			for s.Receive() {
			}
			err = s.Err()
			_ = s.Close()
		}
		if connect.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestMissingProgram(t *testing.T) {
	f := serve(t)
	plain := t.TempDir() + "/plain"
	if err := os.WriteFile(plain, []byte("echo by shell"), 0o600); err != nil {
		t.Fatal(err)
	}
	for cmd, code := range map[string]int32{"no-such-program": 127, "/no/such/program": 127, plain: 126} {
		s, _ := f.start(t.Context(), &guestv1.StartRequest{Process: &guestv1.ProcessConfig{Cmd: cmd}})
		if r := drain(s); r.end.GetExitCode() != code || r.stderr == "" {
			t.Errorf("%s: got %v %q", cmd, r.end, r.stderr)
		}
	}
	s, _ := f.start(t.Context(), &guestv1.StartRequest{Process: &guestv1.ProcessConfig{Cmd: "echo", Args: []string{"found"}}})
	if r := drain(s); r.stdout != "found\n" {
		t.Errorf("by PATH: %+v", r)
	}
}

func TestTimeoutKillsTheGroup(t *testing.T) {
	f := serve(t)
	for wait := 200; ; wait *= 4 { // a host may be so busy that the time is over before there is a process
		req := connect.NewRequest(shell("sleep 1000 & sleep 1000"))
		req.Header().Set("Connect-Timeout-Ms", strconv.Itoa(wait))
		s, err := f.client.Start(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if !s.Receive() && connect.CodeOf(s.Err()) == connect.CodeDeadlineExceeded && wait < 60_000 {
			_ = s.Close()
			continue
		}
		pid := s.Msg().GetEvent().GetStart().GetPid()
		if r := drain(s); connect.CodeOf(r.err) != connect.CodeDeadlineExceeded || pid == 0 {
			t.Fatalf("process %d, %v", pid, r.err)
		}
		_ = s.Close()
		f.gone(pid)
		return
	}
}

// gone waits until no process of a group is left.
func (f *fixture) gone(group uint32) {
	f.Helper()
	for end := time.Now().Add(time.Minute); syscall.Kill(-int(group), 0) == nil; {
		if time.Now().After(end) {
			f.Fatalf("processes of group %d are left", group)
		}
	}
}

// buried waits until a process has ended and its status was collected.
func (f *fixture) buried(pid uint32) {
	f.Helper()
	for end := time.Now().Add(time.Minute); ; {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			return
		}
		if time.Now().After(end) {
			f.Fatalf("process %d is left", pid)
		}
	}
}

func TestClientGoesProcessStays(t *testing.T) {
	f := serve(t)
	tag := "server"
	req := shell("while :; do echo tick; sleep 0.01; done")
	req.Tag = &tag
	ctx, cancel := context.WithCancel(t.Context())
	s, pid := f.start(ctx, req)
	cancel()
	for s.Receive() {
	}
	again, err := f.client.Connect(t.Context(), connect.NewRequest(&guestv1.ConnectRequest{Process: byTag(tag)}))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if !again.Receive() || again.Msg().GetEvent().GetStart().GetPid() != pid {
		t.Fatalf("no start of %d: %v %v", pid, again.Msg(), again.Err())
	}
	if !again.Receive() || !bytes.Contains(again.Msg().GetEvent().GetData().GetStdout(), []byte("tick")) {
		t.Fatalf("no data: %v", again.Err())
	}
	list, err := f.client.List(t.Context(), connect.NewRequest(&guestv1.ListRequest{}))
	if err != nil || len(list.Msg.Processes) != 1 || list.Msg.Processes[0].GetTag() != tag || list.Msg.Processes[0].GetConfig().GetCmd() != "/bin/sh" {
		t.Fatalf("list: %v, %v", list, err)
	}
	kill := connect.NewRequest(&guestv1.SendSignalRequest{Process: byPid(pid), Signal: guestv1.Signal_SIGNAL_SIGKILL})
	if _, err := f.client.SendSignal(t.Context(), kill); err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.SendSignal(t.Context(), kill); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("second kill: %v", err)
	}
	var end *guestv1.ProcessEvent_EndEvent
	for again.Receive() {
		end = again.Msg().GetEvent().GetEnd()
	}
	if end.GetStatus() != "signal: killed" || end.GetExitCode() != -1 {
		t.Errorf("end %v, %v", end, again.Err())
	}
	// The end is kept for a while, by tag and by pid.
	for _, sel := range []*guestv1.ProcessSelector{byTag(tag), byPid(pid)} {
		late, err := f.client.Connect(t.Context(), connect.NewRequest(&guestv1.ConnectRequest{Process: sel}))
		if err != nil {
			t.Fatal(err)
		}
		var got []*guestv1.ProcessEvent
		for late.Receive() {
			got = append(got, late.Msg().GetEvent())
		}
		_ = late.Close()
		if len(got) != 2 || got[0].GetStart().GetPid() != pid || got[1].GetEnd().GetExitCode() != -1 {
			t.Errorf("retained: %v %v", got, late.Err())
		}
	}
}

func byPid(pid uint32) *guestv1.ProcessSelector {
	return &guestv1.ProcessSelector{Selector: &guestv1.ProcessSelector_Pid{Pid: pid}}
}

func byTag(tag string) *guestv1.ProcessSelector {
	return &guestv1.ProcessSelector{Selector: &guestv1.ProcessSelector_Tag{Tag: tag}}
}

func TestUnknownProcess(t *testing.T) {
	f := serve(t)
	for sel, text := range map[*guestv1.ProcessSelector]string{byPid(4000000): "process with pid 4000000 not found", byTag("x"): "process with tag x not found"} {
		s, err := f.client.Connect(t.Context(), connect.NewRequest(&guestv1.ConnectRequest{Process: sel}))
		if err == nil {
			s.Receive()
			err = s.Err()
			_ = s.Close()
		}
		if connect.CodeOf(err) != connect.CodeNotFound || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %s", err, text)
		}
	}
}

func (f *fixture) send(pid uint32, in *guestv1.ProcessInput) error {
	_, err := f.client.SendInput(f.Context(), connect.NewRequest(&guestv1.SendInputRequest{Process: byPid(pid), Input: in}))
	return err
}

func stdin(s string) *guestv1.ProcessInput {
	return &guestv1.ProcessInput{Input: &guestv1.ProcessInput_Stdin{Stdin: []byte(s)}}
}

func typed(s string) *guestv1.ProcessInput {
	return &guestv1.ProcessInput{Input: &guestv1.ProcessInput_Pty{Pty: []byte(s)}}
}

func TestStdin(t *testing.T) {
	f := serve(t)
	s, pid := f.start(t.Context(), &guestv1.StartRequest{Process: &guestv1.ProcessConfig{Cmd: "cat"}})
	if err := f.send(pid, stdin("hello ")); err != nil {
		t.Fatal(err)
	}
	in := f.client.StreamInput(t.Context())
	for _, m := range []*guestv1.StreamInputRequest{
		{Event: &guestv1.StreamInputRequest_Start{Start: &guestv1.StreamInputRequest_StartEvent{Process: byPid(pid)}}},
		{Event: &guestv1.StreamInputRequest_Keepalive{}},
		{Event: &guestv1.StreamInputRequest_Data{Data: &guestv1.StreamInputRequest_DataEvent{Input: stdin("world")}}},
	} {
		if err := in.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := in.CloseAndReceive(); err != nil {
		t.Fatal(err)
	}
	if err := f.send(pid, typed("x")); connect.CodeOf(err) != connect.CodeInternal {
		t.Errorf("pty input to a pipe: %v", err)
	}
	if _, err := f.client.CloseStdin(t.Context(), connect.NewRequest(&guestv1.CloseStdinRequest{Process: byPid(pid)})); err != nil {
		t.Errorf("close: %v", err)
	}
	if r := drain(s); r.stdout != "hello world" || r.end.GetExitCode() != 0 {
		t.Errorf("got %+v", r)
	}
	_, pid = f.start(t.Context(), shell("sleep 1000"))
	for range 2 {
		if _, err := f.client.CloseStdin(t.Context(), connect.NewRequest(&guestv1.CloseStdinRequest{Process: byPid(pid)})); err != nil {
			t.Errorf("closing what is closed: %v", err)
		}
	}
	if err := f.send(pid, stdin("x")); connect.CodeOf(err) != connect.CodeInternal || !strings.Contains(err.Error(), "stdin not enabled or closed") {
		t.Errorf("input without stdin: %v", err)
	}
}

func TestBlockedInputEndsWithItsCall(t *testing.T) {
	f := serve(t)
	_, pid := f.start(t.Context(), &guestv1.StartRequest{Process: &guestv1.ProcessConfig{Cmd: "sleep", Args: []string{"1000"}}})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	big := &guestv1.ProcessInput{Input: &guestv1.ProcessInput_Stdin{Stdin: make([]byte, 1<<20)}}
	_, err := f.client.SendInput(ctx, connect.NewRequest(&guestv1.SendInputRequest{Process: byPid(pid), Input: big}))
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("got %v", err)
	}
}

func TestTerminal(t *testing.T) {
	f := serve(t)
	req := &guestv1.StartRequest{
		Process: &guestv1.ProcessConfig{Cmd: "/bin/sh"},
		Pty:     &guestv1.PTY{Size: &guestv1.PTY_Size{Cols: 80, Rows: 24}},
	}
	s, pid := f.start(t.Context(), req)
	resize := connect.NewRequest(&guestv1.UpdateRequest{Process: byPid(pid), Pty: &guestv1.PTY{Size: &guestv1.PTY_Size{Cols: 111, Rows: 33}}})
	if _, err := f.client.Update(t.Context(), resize); err != nil {
		t.Fatal(err)
	}
	if err := f.send(pid, stdin("x")); connect.CodeOf(err) != connect.CodeInternal {
		t.Errorf("stdin of a terminal: %v", err)
	}
	if _, err := f.client.CloseStdin(t.Context(), connect.NewRequest(&guestv1.CloseStdinRequest{Process: byPid(pid)})); connect.CodeOf(err) != connect.CodeUnknown {
		t.Errorf("closing a terminal's stdin: %v", err)
	}
	if err := f.send(pid, typed("stty size; exit 5\n")); err != nil {
		t.Fatal(err)
	}
	if r := drain(s); !strings.Contains(r.pty, "33 111") || r.end.GetExitCode() != 5 {
		t.Errorf("got %+v", r)
	}
	_, plain := f.start(t.Context(), shell("sleep 1000"))
	resize.Msg.Process = byPid(plain)
	if _, err := f.client.Update(t.Context(), resize); connect.CodeOf(err) != connect.CodeInternal {
		t.Errorf("resizing a pipe: %v", err)
	}
}

func TestKeepalive(t *testing.T) {
	f := serve(t)
	s, pid := f.start(t.Context(), &guestv1.StartRequest{Process: &guestv1.ProcessConfig{Cmd: "cat"}}, "Keepalive-Ping-Interval", "1")
	for s.Receive() && s.Msg().GetEvent().GetKeepalive() == nil {
	}
	if s.Err() != nil || s.Msg().GetEvent().GetKeepalive() == nil {
		t.Fatalf("%v instead of a sign of life, %v", s.Msg(), s.Err())
	}
	if _, err := f.client.CloseStdin(t.Context(), connect.NewRequest(&guestv1.CloseStdinRequest{Process: byPid(pid)})); err != nil {
		t.Fatal(err)
	}
	if r := drain(s); r.end == nil {
		t.Errorf("got %+v", r)
	}
	for value, want := range map[string]time.Duration{"": 90 * time.Second, "50": 50 * time.Second, "0": 90 * time.Second, "-1": 90 * time.Second, "x": 90 * time.Second, "99999999": 90 * time.Second} {
		if got := Keepalive(http.Header{"Keepalive-Ping-Interval": {value}}); got != want {
			t.Errorf("%q: %v", value, got)
		}
	}
}

func TestGrandchildHoldsTheStream(t *testing.T) {
	f := serve(t)
	s, pid := f.start(t.Context(), shell("sleep 1000 & echo started"))
	if !s.Receive() || string(s.Msg().GetEvent().GetData().GetStdout()) != "started\n" {
		t.Fatalf("got %v", s.Msg())
	}
	f.buried(pid) // or the signal might end the shell before it ends by itself
	term := connect.NewRequest(&guestv1.SendSignalRequest{Process: byPid(pid), Signal: guestv1.Signal_SIGNAL_SIGTERM})
	if _, err := f.client.SendSignal(t.Context(), term); err != nil {
		t.Fatal(err)
	}
	if r := drain(s); r.end.GetStatus() != "exit status 0" {
		t.Errorf("got %+v", r)
	}
	f.gone(pid)
	term.Msg.Signal = guestv1.Signal(2)
	_, pid = f.start(t.Context(), shell("sleep 1000"))
	term.Msg.Process = byPid(pid)
	if _, err := f.client.SendSignal(t.Context(), term); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Errorf("signal 2: %v", err)
	}
}

// TestBackPressure has a process print without end to a reader that does not
// read: it must stop, and go on for another reader once the first is dropped.
func TestBackPressure(t *testing.T) {
	f := serve(t)
	// Far more than a reader that does read is ever late.
	f.svc.stall = 5 * time.Second
	_, pid := f.start(t.Context(), shell("exec cat /dev/urandom")) // never read again; zeros would be compressed, and all fit in between
	s, err := f.client.Connect(t.Context(), connect.NewRequest(&guestv1.ConnectRequest{Process: byPid(pid)}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got := 0
	for got < 16<<20 && s.Receive() { // far more than all buffers on the way
		got += len(s.Msg().GetEvent().GetData().GetStdout())
	}
	if s.Err() != nil || got < 16<<20 {
		t.Errorf("%d bytes, then %v", got, s.Err())
	}
}

func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	f := serve(t)
	req := shell("id -u; id -G; echo x > /dev/stdout; echo $HOME")
	dir := "/"
	req.Process.Cwd = &dir
	s, _ := f.start(t.Context(), req, "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("nobody:")))
	who, err := account.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	want := fmt.Sprintf("%d\n%d\nx\n%s\n", who.UID, who.GID, who.Home)
	if r := drain(s); r.stdout != want {
		t.Errorf("got %q %q, want %q", r.stdout, r.stderr, want)
	}
}
