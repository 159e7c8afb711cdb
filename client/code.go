package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// maxEvent bounds one line of an execution's stream: a result with its pictures.
const maxEvent = 64 << 20

// Code runs code in the interpreter of a sandbox whose template has one.
type Code struct {
	sandbox *Sandbox
}

// CodeOptions say where and how code runs.
type CodeOptions struct {
	Language  string // default: python; not together with ContextID
	ContextID string // variables are shared within a context; default: the language's
	Env       map[string]string

	// MaxOutput is how many bytes of prints and results the Execution keeps; 0
	// is 64 MiB. What goes beyond is dropped and Execution.Truncated set.
	MaxOutput int

	// OnOutput gets what the code prints as it comes; OnResult each result. They
	// are called one at a time.
	OnOutput func(stream, text string) // stream is "stdout" or "stderr"
	OnResult func(CodeResult)
}

// CodeResult is one thing that code showed, in one or more formats.
type CodeResult struct {
	Main       bool            `json:"is_main_result"` // the value of the last expression
	Text       string          `json:"text"`
	HTML       string          `json:"html"`
	Markdown   string          `json:"markdown"`
	SVG        string          `json:"svg"`
	PNG        string          `json:"png"`  // base64
	JPEG       string          `json:"jpeg"` // base64
	PDF        string          `json:"pdf"`  // base64
	Latex      string          `json:"latex"`
	JavaScript string          `json:"javascript"`
	JSON       json.RawMessage `json:"json"`
	Data       json.RawMessage `json:"data"`  // a table, column by column
	Chart      json.RawMessage `json:"chart"` // a figure as numbers
}

// ExecutionError is an exception that code did not catch.
type ExecutionError struct {
	Name      string `json:"name"`
	Value     string `json:"value"`
	Traceback string `json:"traceback"`
}

// Execution is what became of a piece of code. An exception in it is data.
type Execution struct {
	Results        []CodeResult
	Stdout, Stderr []string
	Error          *ExecutionError // nil when it ran through
	Count          int             // number of the execution in its context
	Truncated      bool            // there was more than MaxOutput

	kept int // bytes of prints and results so far
}

// keep reports whether n more bytes may be kept.
func (e *Execution) keep(n int, o CodeOptions) bool {
	limit := o.MaxOutput
	if limit == 0 {
		limit = maxEvent
	}
	if e.kept+n > limit {
		e.Truncated = true
		return false
	}
	e.kept += n
	return true
}

// Text returns the value of the last expression as text.
func (e *Execution) Text() string {
	for _, r := range e.Results {
		if r.Main {
			return r.Text
		}
	}
	return ""
}

// Run runs code and waits for its end. When ctx ends first, it is interrupted.
func (c *Code) Run(ctx context.Context, code string, o CodeOptions) (*Execution, error) {
	body, err := json.Marshal(struct {
		Code     string            `json:"code"`
		Language string            `json:"language,omitempty"`
		Context  string            `json:"context_id,omitempty"`
		Env      map[string]string `json:"env_vars,omitempty"`
	}{code, o.Language, o.ContextID, o.Env})
	if err != nil {
		return nil, err
	}
	resp, err := c.send(ctx, http.MethodPost, "/execute", body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out := &Execution{}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxEvent)
	for lines.Scan() {
		end, err := out.take(lines.Bytes(), o)
		if err != nil {
			return nil, err
		}
		if end {
			_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10)) // lets the connection be used again
			return out, err
		}
	}
	return nil, endOf(lines.Err())
}

// take adds one line of the stream; end says that it was the last.
func (e *Execution) take(line []byte, o CodeOptions) (end bool, err error) {
	var head struct {
		Type  string `json:"type"`
		Text  string `json:"text"`
		Count int    `json:"execution_count"`
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return false, fmt.Errorf("the execution's stream is not what it should be: %w", err)
	}
	switch head.Type {
	case "stdout", "stderr":
		if e.keep(len(head.Text), o) {
			if head.Type == "stdout" {
				e.Stdout = append(e.Stdout, head.Text)
			} else {
				e.Stderr = append(e.Stderr, head.Text)
			}
		}
		if o.OnOutput != nil {
			o.OnOutput(head.Type, head.Text)
		}
	case "result":
		var r CodeResult
		if err := json.Unmarshal(line, &r); err != nil {
			return false, fmt.Errorf("a result is not what it should be: %w", err)
		}
		if e.keep(len(line), o) {
			e.Results = append(e.Results, r)
		}
		if o.OnResult != nil {
			o.OnResult(r)
		}
	case "error":
		e.Error = &ExecutionError{}
		return false, json.Unmarshal(line, e.Error)
	case "number_of_executions":
		e.Count = head.Count
	case "end_of_execution":
		return true, nil
	}
	return false, nil
}

// CodeContext is a kernel with its variables.
type CodeContext struct {
	ID       string `json:"id"`
	Language string `json:"language"`
	Dir      string `json:"cwd"`
}

// CreateContext starts a kernel; empty arguments are python and the home directory.
func (c *Code) CreateContext(ctx context.Context, language, dir string) (*CodeContext, error) {
	body, err := json.Marshal(struct {
		Language string `json:"language,omitempty"`
		Dir      string `json:"cwd,omitempty"`
	}{language, dir})
	if err != nil {
		return nil, err
	}
	var out CodeContext
	if err := c.call(ctx, http.MethodPost, "/contexts", body, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Contexts lists the kernels, the default ones included.
func (c *Code) Contexts(ctx context.Context) ([]CodeContext, error) {
	var out []CodeContext
	err := c.call(ctx, http.MethodGet, "/contexts", nil, &out)
	return out, err
}

// RestartContext forgets a kernel's variables.
func (c *Code) RestartContext(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodPost, "/contexts/"+url.PathEscape(id)+"/restart", nil, nil)
}

// RemoveContext ends a kernel.
func (c *Code) RemoveContext(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/contexts/"+url.PathEscape(id), nil, nil)
}

func (c *Code) call(ctx context.Context, method, path string, body []byte, out any) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(text, out); err != nil {
		return errors.Join(errors.New("the interpreter's answer is not what it should be"), err)
	}
	return nil
}

// send makes one request to the interpreter; an error status is an error.
func (c *Code) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	s := c.sandbox
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.baseURL(codePort)+path, r)
	if err != nil {
		return nil, err
	}
	s.route(req, codePort)
	req.Header.Set("Content-Type", "application/json")
	if s.AccessToken != "" {
		req.Header.Set("X-Access-Token", s.AccessToken)
	}
	resp, err := s.client.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, errorOf(resp)
	}
	return resp, nil
}
