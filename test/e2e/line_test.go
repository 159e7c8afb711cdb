package e2e

import (
	"slices"
	"testing"
	"time"

	"hearth/client"
)

// goesBack takes a sandbox of a driver through its line: a snapshot, forks that go
// their own way, steps, a difference, and back again. The counter is in the memory of
// a process, what is written in files; a rollback brings both back.
func goesBack(t *testing.T, s *server, d tried) {
	c := s.client(t)
	sb := s.sandbox(t, client.CreateOptions{Template: "small-" + d.name, Driver: d.name, History: 1 << 30})
	// A process that tells a word that is nowhere but in its memory.
	sh(t, sb, "mkfifo /tmp/ask /tmp/tell; nohup bash -c 'w=first; while read l </tmp/ask; do [ \"$l\" = tell ] || w=$l; echo $w >/tmp/tell; done' >/dev/null 2>&1 &")
	said := func(sb *client.Sandbox, word string) string {
		t.Helper()
		return sh(t, sb, "echo "+word+" >/tmp/ask; cat /tmp/tell")
	}
	if got := said(sb, "before"); got != "before\n" {
		t.Fatalf("the process says %q", got)
	}
	sh(t, sb, "echo before >/root/word; echo stays >/root/stays")
	snap, err := c.Snapshot(t.Context(), sb.ID, "")
	must(t, err)

	forks, err := c.Fork(t.Context(), sb.ID, 2, 5*time.Minute)
	must(t, err)
	for i, f := range forks {
		must(t, f.Err)
		fork := f.Sandbox
		t.Cleanup(func() { _ = fork.Kill(t.Context()) })
		if got := said(fork, "tell") + sh(t, fork, "cat /root/word"); got != "before\nbefore\n" {
			t.Errorf("fork %d has %q", i, got)
		}
		if own := sh(t, fork, "cat /proc/sys/kernel/hostname"); own == sh(t, sb, "cat /proc/sys/kernel/hostname") {
			t.Errorf("fork %d is called %q, as its parent is", i, own)
		}
		said(fork, "forked")
		sh(t, fork, "echo forked >/root/word")
		must(t, fork.Kill(t.Context()))
	}

	if got := said(sb, "after"); got != "after\n" {
		t.Errorf("the process says %q", got)
	}
	sh(t, sb, "echo afterwards >/root/word; rm /root/stays; echo new >/root/new")
	later, err := c.Snapshot(t.Context(), sb.ID, "")
	must(t, err)
	diff, err := c.Diff(t.Context(), snap.ID, later.ID, 0)
	must(t, err)
	var changes []string
	for _, f := range diff.Changes {
		if slices.Contains([]string{"/root/word", "/root/stays", "/root/new"}, f.Path) {
			changes = append(changes, f.Change+" "+f.Path)
		}
	}
	if want := []string{"added /root/new", "removed /root/stays", "changed /root/word"}; !slices.Equal(changes, want) {
		t.Errorf("differences %q, want %q", changes, want)
	}

	tree, err := c.Tree(t.Context(), sb.ID)
	must(t, err)
	weighed := 0
	for _, s := range tree.Snapshots {
		if id := s.ID + ":default"; id != snap.ID && id != later.ID { // as E2B's calls name it
			continue
		}
		if weighed++; s.WholeBytes == nil || s.AddedBytes == nil || *s.AddedBytes <= 0 || *s.AddedBytes > *s.WholeBytes || *s.WholeBytes < s.Bytes {
			t.Errorf("in the tree there is %+v", s)
		}
	}
	if weighed != 2 {
		t.Errorf("of the two snapshots the tree has %d", weighed)
	}

	history, err := c.History(t.Context(), sb.ID)
	must(t, err)
	if len(history.Steps) < 4 || history.Head == 0 {
		t.Fatalf("history %+v", history)
	}
	for _, step := range history.Steps {
		if step.Error != "" {
			t.Errorf("step %d: %s", step.Number, step.Error)
		}
	}
	again, err := c.Rollback(t.Context(), sb.ID, snap.ID)
	must(t, err)
	if again.ID != sb.ID {
		t.Errorf("it is %s now, it was %s", again.ID, sb.ID)
	}
	if got := said(again, "tell") + sh(t, again, "cat /root/word /root/stays; ls /root/new 2>&1 | grep -c 'No such'"); got != "before\nbefore\nstays\n1\n" {
		t.Errorf("after the rollback it has %q", got)
	}
	last := history.Steps[len(history.Steps)-1]
	forward, err := c.RollbackTo(t.Context(), sb.ID, last.Number)
	must(t, err)
	if got := said(forward, "tell") + sh(t, forward, "cat /root/word"); got != "after\nafterwards\n" {
		t.Errorf("at step %d (%s) it has %q", last.Number, last.Label, got)
	}
}
