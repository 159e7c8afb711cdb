package cli

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// answers starts a server that gives routes' answers, and records what it was
// asked. The command line finds it through the environment.
func answers(t *testing.T, routes map[string]string) *[]string {
	t.Helper()
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		asked = append(asked, r.Method+" "+r.URL.Path+" "+body.String())
		answer, ok := routes[r.Method+" "+r.URL.Path]
		if strings.HasPrefix(r.URL.Path, "/process.") {
			w.Header().Set("Content-Type", "application/connect+proto")
		}
		if !ok {
			http.Error(w, `{"code":404,"message":"no such thing"}`, http.StatusNotFound)
			return
		}
		fmt.Fprint(w, answer)
	}))
	t.Cleanup(srv.Close)
	t.Setenv("E2B_API_KEY", "e2b_0")
	t.Setenv("E2B_API_URL", srv.URL)
	t.Setenv("E2B_SANDBOX_URL", srv.URL)
	t.Setenv("HEARTH_DATA", "")
	return &asked
}

func run(args ...string) (code int, out, complaint string) {
	var stdout, stderr bytes.Buffer
	code = Main(args, "test", &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// Connecting resumes a paused sandbox, and its new life would end with the
// command, killing it.
func TestExecLeavesPausedSandboxesPaused(t *testing.T) {
	asked := answers(t, map[string]string{
		"GET /sandboxes/i1": `{"sandboxID":"i1","state":"paused"}`,
	})
	for _, verb := range [][]string{{"exec", "i1", "true"}, {"code", "i1", "1"}} {
		code, _, complaint := run(append([]string{"sandbox"}, verb...)...)
		if code == 0 || !strings.Contains(complaint, "hearth sandbox resume i1") {
			t.Errorf("%s: got %d and %q, want a failure that says how to resume", verb[0], code, complaint)
		}
	}
	for _, a := range *asked {
		if strings.Contains(a, "connect") {
			t.Errorf("the sandbox was connected to: %s", a)
		}
	}
}

// TestExecResumesWhereTrafficDoes: the command is traffic, and gives a paused sandbox
// the life that it was created with.
func TestExecResumesWhereTrafficDoes(t *testing.T) {
	for _, verb := range [][]string{{"exec", "i1", "true"}, {"code", "i1", "1"}} {
		asked := answers(t, map[string]string{
			"GET /sandboxes/i1":             `{"sandboxID":"i1","state":"paused","timeout":7200,"lifecycle":{"autoResume":true,"onTimeout":"pause"}}`,
			"POST /v2/sandboxes/i1/connect": `{"sandboxID":"i1","templateID":"t"}`,
		})
		run(append([]string{"sandbox"}, verb...)...)
		if got := strings.Join(*asked, "\n"); !strings.Contains(got, `connect {"timeout":7200}`) {
			t.Errorf("%s asked for:\n%s", verb[0], got)
		}
	}
}

// TestExecSaysThatItWasCut: a connection that ends within the output, or between two
// pieces of it, is told in plain words.
func TestExecSaysThatItWasCut(t *testing.T) {
	for name, answer := range map[string]string{"within a message": "\x00\x00\x00\x00\x09{", "within a header": "\x00\x00", "between messages": "", "broken": "\x00\x00\x00\x00\x02]["} {
		t.Run(name, func(t *testing.T) {
			answers(t, map[string]string{
				"GET /sandboxes/i1":             `{"sandboxID":"i1","state":"running"}`,
				"POST /v2/sandboxes/i1/connect": `{"sandboxID":"i1","templateID":"t"}`,
				"POST /process.Process/Start":   answer,
			})
			code, _, complaint := run("sandbox", "exec", "i1", "true")
			cut := strings.Contains(complaint, "hearth: the connection ended before the command did")
			if code == 0 || cut != (name != "broken") || strings.Contains(complaint, "EOF") {
				t.Errorf("%d %s", code, complaint)
			}
		})
	}
}

func TestCreateArguments(t *testing.T) {
	const created = `{"sandboxID":"i1","templateID":"t","envdAccessToken":"x"}`
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string // in the request or the complaint
	}{
		{"commas belong to the value", []string{"--env", "A=1,2", "--env", "B=3"}, 0, `"envVars":{"A":"1,2","B":"3"}`},
		{"metadata with commas", []string{"--metadata", "k=a,b=c"}, 0, `"metadata":{"k":"a,b=c"}`},
		{"no name", []string{"--env", "=1"}, exitUsage, "must be NAME=VALUE"},
		{"negative life", []string{"--timeout=-3s"}, exitUsage, "--timeout -3s must be more than 0"},
		{"a history", []string{"--history", "base"}, 0, `"history":{},"metadata":{},"templateID":"base"`},
		{"a history with a budget", []string{"--history=512MiB"}, 0, `"history":{"maxBytes":536870912}`},
		{"a history in bytes", []string{"--history=67108864"}, 0, `"history":{"maxBytes":67108864}`},
		{"a history of nothing", []string{"--history=0"}, exitUsage, "must be a number of bytes"},
		{"a history of nonsense", []string{"--history=1MB"}, exitUsage, "must be a number of bytes"},
		{"a history beyond numbers", []string{"--history=9999999999999TiB"}, exitUsage, "must be a number of bytes"},
		{"idleness", []string{"--idle=90s"}, 0, `"idleTimeout":90`},
		{"idle from the start", []string{"--idle=0s"}, exitUsage, "--idle 0s must be at least 5s"},
		{"negative idleness", []string{"--idle=-1s"}, exitUsage, "--idle -1s must be at least 5s"},
		{"no life", []string{"--timeout=0"}, exitUsage, "must be more than 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked := answers(t, map[string]string{"POST /v2/sandboxes": created})
			code, _, complaint := run(append([]string{"sandbox", "create"}, tc.args...)...)
			if got := strings.Join(*asked, "\n") + complaint; code != tc.code || !strings.Contains(got, tc.want) {
				t.Errorf("got %d and %q, want %d and %q", code, got, tc.code, tc.want)
			}
		})
	}
}

// TestWordsArriveAsTheyAre lets a real shell take apart what exec makes of words.
func TestWordsArriveAsTheyAre(t *testing.T) {
	for _, words := range [][]string{
		{"sh", "-c", "a b"}, {"--", "sh", "-c", "echo $HOME; exit 3"}, {"printf", "%s", ""}, {"echo", "it's", `a "b" \c`, "*", "~", "x=1", "a\nb", "#", "ü", "!!"},
		{"x", "A=1", "b"},
	} {
		want := words
		if want[0] == "--" {
			want = want[1:]
		}
		out, err := exec.Command("sh", "-c", `printf '%s\0' `+commandLine(words)).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); !slices.Equal(got, want) {
			t.Errorf("%q arrive as %q", words, got)
		}
	}
	for _, line := range [][]string{{"echo a; echo b | cat"}, {"--", "echo a; echo b | cat"}} {
		if got := commandLine(line); got != "echo a; echo b | cat" {
			t.Errorf("the line %q becomes %q", line, got)
		}
	}
}

// TestResumeKeepsTheLife: a sandbox that is resumed lives as long as its create asked
// for, unless the command says how long.
func TestResumeKeepsTheLife(t *testing.T) {
	for _, tc := range []struct {
		args []string
		code int
		want string // in the requests or the complaint
	}{
		{nil, 0, `connect {"timeout":7200}`},
		{[]string{"--timeout=90s"}, 0, `connect {"timeout":90}`},
		{[]string{"--timeout=0s"}, exitUsage, "--timeout 0s must be more than 0"},
	} {
		asked := answers(t, map[string]string{
			"GET /sandboxes/i1":             `{"sandboxID":"i1","state":"paused","timeout":7200}`,
			"POST /v2/sandboxes/i1/connect": `{"sandboxID":"i1","templateID":"t"}`,
		})
		code, _, complaint := run(append([]string{"sandbox", "resume", "i1"}, tc.args...)...)
		if got := strings.Join(*asked, "\n") + complaint; code != tc.code || !strings.Contains(got, tc.want) {
			t.Errorf("%q: %d and %q, want %d and %q", tc.args, code, got, tc.code, tc.want)
		}
	}
}

func TestSnapshotList(t *testing.T) {
	answers(t, map[string]string{
		"GET /templates": `[{"templateID":"t1","aliases":["base"]}]`,
		"GET /snapshots": `[{"snapshotID":"me/golden:v2","names":["me/golden"],"sandboxID":"i1","templateID":"t1","createdAt":"2026-01-02T03:04:05Z","bytes":94371840},
			{"snapshotID":"s1:default","names":[],"sandboxID":"i2","templateID":"t2","createdAt":"2026-01-02T03:04:05Z","bytes":7}]`,
	})
	code, out, complaint := run("snapshot", "list")
	lines := strings.Split(out, "\n")
	if code != 0 || len(lines) != 4 || !strings.HasPrefix(lines[1], "me/golden:v2  i1       base      2026-01-") || !strings.HasSuffix(lines[1], "  90 MiB") ||
		!strings.HasPrefix(lines[2], "s1:default    i2       t2        2026-01-") || !strings.HasSuffix(lines[2], "  7 B") {
		t.Errorf("%d %s\n%s", code, complaint, out)
	}
}

// TestSnapshotDelete: one call of the protocol deletes snapshots and templates; the
// command deletes snapshots.
func TestSnapshotDelete(t *testing.T) {
	asked := answers(t, map[string]string{
		"GET /templates/aliases/base": `{"templateID":"t1","public":true}`,
		"DELETE /templates/base":      ``, "DELETE /templates/golden:v2": ``,
	})
	for name, want := range map[string]string{"base": "400: 'base' is a template, not a snapshot", "golden:v2": "", "nope": "404: snapshot 'nope' not found"} {
		if code, _, complaint := run("snapshot", "delete", name); (code == 0) != (want == "") || !strings.Contains(complaint, want) {
			t.Errorf("%s: %d %q, want %q", name, code, complaint, want)
		}
	}
	if got := strings.Join(*asked, "\n"); strings.Contains(got, "DELETE /templates/base") || !strings.Contains(got, "DELETE /templates/golden:v2") {
		t.Errorf("asked for\n%s", got)
	}
}
