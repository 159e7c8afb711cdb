package builder

import (
	"context"
	"fmt"
	"time"

	"hearth/internal/hearth"
)

// Command is a shell line to run in a sandbox, by /bin/bash -l -c.
type Command struct {
	Line string
	User string
	Dir  string // empty: the user's home
	Env  map[string]string
}

// Output is what a command wrote: one line, without its end.
type Output struct {
	Stream string // "stdout" or "stderr"
	Text   string
}

// Guest runs commands in one sandbox. What comes out of it is hostile; it is
// bounded by the implementation.
type Guest interface {
	// Run returns the command's exit status. An error is a command that could
	// not be run, such as Unauthenticated for a user that does not exist.
	Run(ctx context.Context, c Command, out func(Output)) (exit int, err error)

	// Start begins a command that goes on when ctx, which ends only the stream
	// of its output, is done. exited yields at most one status, if the command
	// ends before ctx.
	Start(ctx context.Context, c Command, out func(Output)) (exited <-chan int, err error)
}

// Say gets a line of what Prepare does and of what the commands print.
type Say func(level, message string)

// Prepare brings a machine that has booted from a build's layers to where its
// warm snapshot is taken: the start command runs and the ready command has
// succeeded. FailedPrecondition when a command fails, with its reason.
func Prepare(ctx context.Context, g Guest, b *hearth.Build, say Say) error {
	command := func(line string) Command {
		return Command{Line: line, User: b.User, Dir: b.Workdir, Env: b.Env}
	}
	stream, stop := context.WithCancel(ctx) // the start command lives on when its output is no longer read
	defer stop()
	var exited <-chan int
	if b.Start != "" {
		say(Info, "Running start command: "+b.Start)
		var err error
		exited, err = g.Start(stream, command(b.Start), func(o Output) { say(Info, "[start] ["+o.Stream+"]: "+o.Text) })
		if err != nil {
			return hearth.Wrap(hearth.FailedPrecondition, err, "start command failed: %s", reason(err))
		}
	}
	if b.Ready == "" {
		return nil
	}
	say(Info, "Waiting for template to be ready: "+b.Ready)
	ctx, cancel := context.WithTimeoutCause(ctx, maxReady,
		hearth.Errorf(hearth.DeadlineExceeded, "ready command timed out after %s", maxReady))
	defer cancel()
	return untilReady(ctx, g, command(b.Ready), exited, say)
}

// untilReady repeats the ready command until it succeeds. A start command that
// fails meanwhile ends the waiting.
func untilReady(ctx context.Context, g Guest, ready Command, exited <-chan int, say Say) error {
	began := time.Now()
	var last string
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		exit, err := g.Run(ctx, ready, func(o Output) { last = o.Text })
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return hearth.Wrap(hearth.FailedPrecondition, err, "failed to run command '%s': command failed: %s", ready.Line, reason(err))
		}
		if exit == 0 {
			say(Info, fmt.Sprintf("Template is ready [%.1f s]", time.Since(began).Seconds()))
			return nil
		}
		if wait == 2*time.Second {
			say(Debug, fmt.Sprintf("not ready: exit status %d %s", exit, last))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case code, ok := <-exited:
			timer.Stop()
			if ok && code != 0 {
				return hearth.Errorf(hearth.FailedPrecondition, "start command failed: exit status %d", code)
			}
			exited = nil // it went to the background by itself
		case <-timer.C:
		}
	}
}
