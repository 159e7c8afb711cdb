package e2e

import (
	"bytes"
	"slices"
	"time"

	"hearth/client"
)

// deed is something that is cut short by the server's death, at every point of it.
type deed struct {
	name    string
	prepare func(c *crashes) error // what has to be before it; is acknowledged
	do      func(c *crashes) error
	memory  bool             // memory must outlive it, however far it came
	look    func(c *crashes) // beside what every deed must leave; nil: nothing
	slow    bool             // it waits for seconds: a run that has not the time for all tries one of its points
}

// deeds are everything that moves a sandbox or a snapshot.
func deeds() []deed {
	nothing := func(*crashes) error { return nil }
	return []deed{
		{"pause", nothing, func(c *crashes) error { return c.api.Pause(c.t.Context(), c.sb.ID) }, true, nil, false},
		{"pause of files", nothing, func(c *crashes) error { return c.api.PauseFiles(c.t.Context(), c.sb.ID) }, false, nil, false},
		{"pause by timeout", nothing, (*crashes).outstay, true, nil, false},
		{"pause by idleness", (*crashes).keepBusy, (*crashes).rest, true, (*crashes).wantMemory, true},
		{"resume", func(c *crashes) error { return c.api.Pause(c.t.Context(), c.sb.ID) }, func(c *crashes) error {
			_, err := c.api.Connect(c.t.Context(), c.sb.ID, time.Hour)
			return err
		}, true, nil, false},
		{"snapshot", nothing, func(c *crashes) error {
			_, err := c.api.Snapshot(c.t.Context(), c.sb.ID, "")
			return err
		}, true, nil, false},
		{"fork", nothing, func(c *crashes) error {
			forks, err := c.api.Fork(c.t.Context(), c.sb.ID, 2, time.Hour)
			for _, f := range forks {
				if err == nil {
					err = f.Err
				}
			}
			return err
		}, true, nil, false},
		{"rollback", nothing, func(c *crashes) error {
			_, err := c.api.Rollback(c.t.Context(), c.sb.ID, c.kept)
			return err
		}, true, nil, false},
		{"deletion", (*crashes).take, func(c *crashes) error {
			return c.api.DeleteSnapshot(c.t.Context(), c.extra)
		}, true, nil, false},
		{"difference", (*crashes).take, func(c *crashes) error {
			_, err := c.api.Diff(c.t.Context(), c.kept, c.extra, 1000)
			return err
		}, true, (*crashes).wantDifference, false},
		{"import", nothing, func(c *crashes) error {
			_, err := c.api.Import(c.t.Context(), bytes.NewReader(c.file))
			return err
		}, true, nil, false},
		{"step", (*crashes).keepHistory, func(c *crashes) error {
			_, err := c.other.Commands.Run(c.t.Context(), "echo second >> log", client.RunOptions{})
			return err
		}, true, (*crashes).wantHistory, false},
	}
}

// outstay lets the sandbox's time run out, and returns when it is paused.
func (c *crashes) outstay() error {
	if err := c.sb.SetTimeout(c.t.Context(), time.Second); err != nil {
		return err
	}
	return c.paused(c.sb.ID)
}

// paused returns when a sandbox is paused, or when the server does not answer.
func (c *crashes) paused(id string) error {
	for {
		info, err := c.api.Info(c.t.Context(), id)
		if err != nil || info.State == "paused" {
			return err
		}
		<-time.After(20 * time.Millisecond)
	}
}

// keepBusy makes a sandbox that is to be paused when nobody uses it, and uses it.
func (c *crashes) keepBusy() (err error) {
	// The shortest there is; should it end between two calls here, the second wakes it.
	o := client.CreateOptions{Timeout: time.Hour, Idle: 5 * time.Second, AutoPause: true, AutoResume: true}
	if c.other, err = c.api.Create(c.t.Context(), o); err != nil {
		return err
	}
	if _, err = c.other.Commands.Run(c.t.Context(), "echo in memory > /dev/shm/word", client.RunOptions{}); err != nil {
		return err
	}
	c.busy, err = c.other.Commands.Start(c.t.Context(), "sleep 3600", client.RunOptions{})
	return err
}

// rest stops using the other sandbox, and returns when it is paused.
func (c *crashes) rest() error {
	c.busy.Detach()
	return c.paused(c.other.ID)
}

// wantMemory: the other sandbox, running or paused, has its memory.
func (c *crashes) wantMemory() {
	c.t.Helper()
	if got := c.runIn(c.other.ID, "cat /dev/shm/word || true"); got != "in memory\n" {
		c.t.Errorf("the memory of the other sandbox holds %q", got)
	}
}

// take makes a snapshot for the deed.
func (c *crashes) take() error {
	snap, err := c.api.Snapshot(c.t.Context(), c.sb.ID, "")
	if err == nil {
		c.extra = snap.ID
	}
	return err
}

// wantDifference: both snapshots are there, and what differs can be said after all.
func (c *crashes) wantDifference() {
	c.t.Helper()
	d, err := c.api.Diff(c.t.Context(), c.kept, c.extra, 1000)
	must(c.t, err)
	if !slices.ContainsFunc(d.Changes, func(e client.FileChange) bool { return e.Path == "/home/user/log" }) {
		c.t.Errorf("the difference is %+v", d)
	}
}

// keepHistory makes a sandbox whose first command was kept.
func (c *crashes) keepHistory() (err error) {
	if c.other, err = c.api.Create(c.t.Context(), client.CreateOptions{Timeout: time.Hour, History: -1}); err != nil {
		return err
	}
	_, err = c.other.Commands.Run(c.t.Context(), "echo first >> log", client.RunOptions{})
	return err
}

// wantHistory: the sandbox lives, its first step can be gone back to, and the
// second is there, or says why it is not.
func (c *crashes) wantHistory() {
	c.t.Helper()
	h, err := c.api.History(c.t.Context(), c.other.ID)
	must(c.t, err)
	if len(h.Steps) == 0 || h.Steps[0].Snapshot == "" {
		c.t.Fatalf("the acknowledged step is lost: %+v", h)
	}
	for _, s := range h.Steps {
		if (s.Snapshot == "") == (s.Error == "") {
			c.t.Errorf("step %+v is neither there nor failed", s)
		}
	}
	sb, err := c.api.RollbackTo(c.t.Context(), c.other.ID, h.Steps[0].Number)
	must(c.t, err)
	res, err := sb.Commands.Run(c.t.Context(), "cat log", client.RunOptions{})
	must(c.t, err)
	if res.Stdout != "first\n" {
		c.t.Errorf("after a return to the first step the file holds %q", res.Stdout)
	}
}
