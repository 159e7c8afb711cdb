package cli

import (
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	asked := answers(t, map[string]string{"GET /v2/snapshots/b/diff": `{"from":"a","to":"b","truncated":true,
		"added":{"count":1,"bytes":5},"changed":{"count":1,"bytes":20480},"removed":{"count":2,"bytes":7},"changes":[
		{"path":"/home/user/new","change":"added","kind":"file","size":5,"sizeBefore":0},
		{"path":"/etc/x\u001b[31m","change":"changed","kind":"file","size":20480,"sizeBefore":1},
		{"path":"/gone","change":"removed","kind":"symlink","size":0,"sizeBefore":0}]}`})
	code, out, complaint := run("snapshot", "diff", "a", "b")
	if code != 0 {
		t.Fatal(code, complaint, *asked)
	}
	for _, want := range []string{"+  5 B            /home/user/new", "~  1 B -> 20 KiB  \"/etc/x\\x1b[31m\"", "-  symlink        /gone", "the first 3", "1 added (5 B), 1 changed (20 KiB), 2 removed (7 B)"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if code, out, _ := run("snapshot", "diff", "--json", "a", "b"); code != 0 || !strings.Contains(out, `"sizeBefore": 1`) {
		t.Errorf("%d\n%s", code, out)
	}
}
