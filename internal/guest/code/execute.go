package code

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

const (
	silenceTime = 5 * time.Second        // between keep-alives of a stream
	replyTime   = 500 * time.Millisecond // for the reply after the end of output, and
	outputTime  = 10 * time.Second       // for the end of output after the reply
)

// interruptTimes are the pauses before each further interrupt of a cell whose
// client has gone and that does not stop.
func interruptTimes() []time.Duration {
	return []time.Duration{2 * time.Second, 5 * time.Second, 10 * time.Second}
}

// sink receives what an execution produces. An error means the reader has gone.
type sink interface {
	emit(event any) error
}

// cell is one piece of code to run.
type cell struct {
	code   string
	silent bool
	orders orders
}

// orders is the metadata that our Python kernel obeys (kernel.py).
type orders struct {
	Epoch   uint64            `json:"epoch,omitempty"`
	Globals map[string]string `json:"globals,omitempty"`
	Env     map[string]string `json:"env,omitempty"`
	Cwd     string            `json:"cwd,omitempty"`
	Preload []string          `json:"preload,omitempty"`

	Rehearse bool `json:"rehearse,omitempty"`
}

// outcome is how an execution ended when the kernel is still there.
type outcome struct {
	answered bool // the kernel said that the cell ended; not so when it was interrupted too early
	failed   bool
	name     string // of the exception
	value    string
}

// execution follows one cell from request to idle.
type execution struct {
	k        *kernel
	sink     sink
	outcome  outcome
	reported bool // an error event was emitted
	replied  bool
	idle     bool
	left     bool // the client has gone; output is thrown away
}

// run executes a cell and emits its output until it has ended. When ctx ends or
// the sink fails, the kernel is interrupted and run returns once the cell has
// really ended. The error is the cause of the kernel's end. The caller holds k.busy.
func (k *kernel) run(ctx context.Context, c cell, out sink) (outcome, error) {
	content := map[string]any{
		"code": c.code, "silent": c.silent, "store_history": !c.silent,
		"user_expressions": struct{}{}, "allow_stdin": false, "stop_on_error": !c.silent,
	}
	metadata := map[string]any{"cellId": newID(), "hearth": c.orders}
	r, err := k.send("execute_request", content, metadata)
	if err != nil {
		k.kill(errKernelDied)
		_, cause := k.end()
		return outcome{}, cause
	}
	defer k.finish(r)
	x := &execution{k: k, sink: out}
	err = x.follow(ctx, r)
	x.outcome.answered = x.replied
	return x.outcome, err
}

// follow reads messages until the end.
func (x *execution) follow(ctx context.Context, r *request) error {
	silence := time.NewTimer(silenceTime)
	defer silence.Stop()
	var end, again <-chan time.Time // fire when the rest of the end is overdue, and to interrupt again
	pauses, gone := interruptTimes(), ctx.Done()
	for !x.idle || !x.replied {
		select {
		case m := <-r.messages:
			x.handle(m)
			silence.Reset(silenceTime)
			switch {
			case x.idle:
				end = time.After(replyTime)
			case x.replied:
				end = time.After(outputTime)
			}
		case <-silence.C:
			x.emit(keepalive())
			silence.Reset(silenceTime)
		case <-gone:
			gone, x.left = nil, true
		case <-again:
			x.k.interrupt()
			again, pauses = next(pauses)
		case <-end:
			return nil
		case <-x.k.gone:
			_, cause := x.k.end()
			return cause
		case <-x.k.stop:
			_, cause := x.k.end()
			return cause
		}
		if x.left && again == nil && len(pauses) == len(interruptTimes()) {
			x.k.interrupt()
			again, pauses = next(pauses)
		}
	}
	return nil
}

// next arms the next pause; nil when there is none left.
func next(pauses []time.Duration) (<-chan time.Time, []time.Duration) {
	if len(pauses) == 0 {
		return nil, nil
	}
	return time.After(pauses[0]), pauses[1:]
}

func (x *execution) emit(event any) {
	if x.left {
		return
	}
	if err := x.sink.emit(event); err != nil {
		x.left = true
	}
}

// handle turns one Jupyter message into events. What does not parse is dropped: it
// is the sandbox's own output.
func (x *execution) handle(m message) {
	switch {
	case m.Skipped > 0:
		x.emit(streamEvent("stderr", fmt.Sprintf("An output of %d bytes was dropped: the limit is %d bytes.\n", m.Skipped, maxMessage)))
	case m.Shell:
		x.reply(m)
	default:
		x.output(m)
	}
}

func (x *execution) reply(m message) {
	if m.Type != "execute_reply" {
		return
	}
	x.replied = true
	var c struct {
		Status string   `json:"status"`
		Name   string   `json:"ename"`
		Value  string   `json:"evalue"`
		Trace  []string `json:"traceback"`
	}
	if json.Unmarshal(m.Content, &c) != nil {
		return
	}
	switch c.Status {
	case "ok":
		x.outcome = outcome{} // errors that the code shows without failing are not its own
	case "error":
		x.fail(c.Name, c.Value, strings.Join(c.Trace, "\n"))
	case "aborted", "abort":
		x.idle = true // nothing ran
		x.fail("ExecutionAborted", "Execution was aborted", "")
	}
}

// fail records an error and emits it unless it has been.
func (x *execution) fail(name, value, trace string) {
	x.outcome = outcome{failed: true, name: name, value: value}
	if !x.reported {
		x.reported = true
		x.emit(errorEvent(name, value, trace))
	}
}

// output handles a message of the iopub channel.
func (x *execution) output(m message) {
	var c struct {
		State string                     `json:"execution_state"`
		Count int64                      `json:"execution_count"`
		Data  map[string]json.RawMessage `json:"data"`
		Name  string                     `json:"name"`
		Text  string                     `json:"text"`
		Error string                     `json:"ename"`
		Value string                     `json:"evalue"`
		Trace []string                   `json:"traceback"`
	}
	if json.Unmarshal(m.Content, &c) != nil {
		return
	}
	switch m.Type {
	case "status":
		x.idle = x.idle || c.State == "idle"
	case "execute_input":
		x.emit(countEvent(c.Count))
	case "stream":
		if (c.Name == "stdout" || c.Name == "stderr") && c.Text != "" {
			x.emit(streamEvent(c.Name, c.Text))
		}
	case "error":
		x.fail(c.Error, c.Value, strings.Join(c.Trace, "\n"))
	case "execute_result", "display_data":
		if len(c.Data) > 0 {
			x.emit(resultEvent(c.Data, m.Type == "execute_result"))
		}
	}
}
