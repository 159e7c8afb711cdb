package cli

import (
	"strings"
	"testing"
)

const steps = `{"maxBytes":1073741824,"bytes":31457280,"head":3,"steps":[
	{"step":1,"snapshotID":"s1","createdAt":"2026-01-02T03:04:05Z","label":"pip install x","bytes":31457280,"kept":true},
	{"step":2,"parent":1,"error":"the node's disk is full","createdAt":"2026-01-02T03:04:06Z","label":"dd","bytes":0,"kept":false},
	{"step":3,"parent":1,"snapshotID":"s3","createdAt":"2026-01-02T03:04:07Z","label":"ls","bytes":100,"kept":false}]}`

func TestHistory(t *testing.T) {
	answers(t, map[string]string{
		"GET /v2/sandboxes/i1/history": steps,
		"GET /v2/sandboxes/i2/history": `{"maxBytes":0,"bytes":0,"steps":[]}`,
	})
	code, out, complaint := run("sandbox", "history", "i1")
	if code != 0 {
		t.Fatal(code, complaint)
	}
	for _, want := range []string{"1     -  ", "30 MiB  s1 (kept)", "not taken: the node's disk is full  dd", "3*    1 ", "100 B   s3", "30 MiB of 1024 MiB"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if code, out, _ := run("sandbox", "history", "--json", "i1"); code != 0 || !strings.Contains(out, `"step": 2`) {
		t.Errorf("%d\n%s", code, out)
	}
	if code, _, complaint := run("sandbox", "history", "i2"); code == 0 || !strings.Contains(complaint, "without --history") {
		t.Errorf("%d %s", code, complaint)
	}
}

// TestRollbackTakesStepsAndSnapshots: digits are a step.
func TestRollbackTakesStepsAndSnapshots(t *testing.T) {
	const created = `{"sandboxID":"i1","templateID":"t"}`
	for arg, want := range map[string]string{"2": `{"step":2}`, "s00000000000000000001": `{"snapshotID":"s00000000000000000001"}`, "7:default": `{"snapshotID":"7:default"}`} {
		asked := answers(t, map[string]string{"POST /v2/sandboxes/i1/rollback": created})
		if code, _, complaint := run("sandbox", "rollback", "i1", arg); code != 0 || !strings.Contains(strings.Join(*asked, ""), want) {
			t.Errorf("%s: %d %s %q", arg, code, complaint, *asked)
		}
	}
	asked := answers(t, map[string]string{"POST /sandboxes/i1/snapshots": `{"snapshotID":"x:default","names":[]}`})
	if code, _, complaint := run("sandbox", "snapshot", "i1", "--step", "2", "--name", "good"); code != 0 || !strings.Contains(strings.Join(*asked, ""), `{"name":"good","step":2}`) {
		t.Errorf("%d %s %q", code, complaint, *asked)
	}
}

// TestStepsBeginWithOne: what cannot be a step is told so, without asking the server,
// though a negative number looks like a flag.
func TestStepsBeginWithOne(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"rollback i1 -1", "-1 is no step: steps begin with 1, and 'hearth sandbox history ID' lists them"},
		{"rollback i1 -12 --data /tmp", "-12 is no step"},
		{"rollback -3 i1", "-3 is no step"},
		{"rollback i1 -- -1", "-1 is no step"},
		{"rollback i1 0", "0 is no step"},
		{"snapshot i1 --step -1", "-1 is no step"},
		{"snapshot i1 --step=-1", "-1 is no step"},
		{"snapshot i1 --step 0", "0 is no step"},
		{"rollback i1 -x", "unknown flag -x"},
		{"kill -1", "unknown flag -1"},
	} {
		asked := answers(t, nil)
		code, _, complaint := run(append([]string{"sandbox"}, strings.Fields(tc.args)...)...)
		if code != exitUsage || !strings.Contains(complaint, tc.want) || len(*asked) > 0 {
			t.Errorf("%s: %d %s %q, want %d %s", tc.args, code, complaint, *asked, exitUsage, tc.want)
		}
	}
}

func TestTree(t *testing.T) {
	answers(t, map[string]string{"GET /v2/sandboxes/i1/tree": `{"snapshots":[
		{"id":"s1","sandboxID":"i1","kind":"kept","usable":false,"createdAt":"2026-01-02T03:04:05Z","bytes":0},
		{"id":"s2","parent":"s1","sandboxID":"i1","kind":"step","step":7,"label":"ls","usable":true,"createdAt":"2026-01-02T03:04:06Z","bytes":99,"wholeBytes":94371840,"addedBytes":0}],
		"sandboxes":[{"sandboxID":"i1","head":"s2","state":"running"}]}`})
	code, out, complaint := run("sandbox", "tree", "i1")
	lines := strings.Split(out, "\n")
	if code != 0 || len(lines) != 4 || strings.Contains(lines[0], "B") || !strings.HasPrefix(lines[1], "  s2 ") ||
		!strings.Contains(lines[1], "+0 B of 90 MiB  of i1  ls") || !strings.HasPrefix(lines[2], "    i1 ") {
		t.Errorf("%d %s\n%s", code, complaint, out)
	}
}
