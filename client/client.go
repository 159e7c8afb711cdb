// Package client is the Go SDK: it makes sandboxes and works in them, on a
// Hearth server or any other that speaks the E2B protocol.
//
//	c, err := client.New(client.Options{})          // reads E2B_API_KEY, E2B_API_URL, ...
//	sb, err := c.Create(ctx, client.CreateOptions{})
//	defer sb.Kill(context.WithoutCancel(ctx))
//	res, err := sb.Commands.Run(ctx, "uname -a", client.RunOptions{})
//
// Everything that a sandbox answers is somebody else's code: outputs are cut at
// stated limits, and nothing in them is trusted.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
)

// maxAnswer bounds the body of a control-plane answer.
const maxAnswer = 64 << 20

// Options say which server to use. Empty fields are read from the environment
// variable named beside them.
type Options struct {
	APIKey     string // E2B_API_KEY
	APIURL     string // E2B_API_URL; else https://api.<Domain>
	SandboxURL string // E2B_SANDBOX_URL; else a host name per sandbox and port
	Domain     string // E2B_DOMAIN; else e2b.app

	// HTTPClient makes all requests. Nil is a client that keeps many
	// connections open and has no time limit of its own: use contexts.
	HTTPClient *http.Client
}

// Client speaks to one server with one API key. It is safe for concurrent use.
type Client struct {
	key        string
	api        string // without a slash at the end
	sandboxURL string // the same, or empty
	domain     string
	http       *http.Client
}

// New returns a client. It makes no request; it fails when there is no key or a
// URL is not one.
func New(o Options) (*Client, error) {
	env := func(value, name, def string) string {
		if value == "" {
			value = os.Getenv(name)
		}
		if value == "" {
			value = def
		}
		return value
	}
	c := &Client{key: env(o.APIKey, "E2B_API_KEY", ""), domain: env(o.Domain, "E2B_DOMAIN", "e2b.app"), http: o.HTTPClient}
	c.api = strings.TrimRight(env(o.APIURL, "E2B_API_URL", "https://api."+c.domain), "/")
	c.sandboxURL = strings.TrimRight(env(o.SandboxURL, "E2B_SANDBOX_URL", ""), "/")
	if c.key == "" {
		return nil, errors.New("no API key: set E2B_API_KEY or Options.APIKey")
	}
	for _, u := range []string{c.api, c.sandboxURL} {
		p, err := url.Parse(u)
		if u != "" && (err != nil || p.Host == "" || p.Scheme != "http" && p.Scheme != "https") {
			return nil, fmt.Errorf("%q is not an http or https URL", u)
		}
	}
	if c.http == nil {
		c.http = &http.Client{Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 256, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
		}}
	}
	return c, nil
}

// Error is what a server answered instead of a result.
type Error struct {
	Status     int           // HTTP status; 0 when the error came within a stream
	Code       string        // machine-readable detail; may be empty
	Message    string        // for people
	RetryAfter time.Duration // how long the server asks to wait; 0 when it does not
}

// Error implements error.
func (e *Error) Error() string {
	if e.Status == 0 {
		return e.Code + ": " + e.Message
	}
	return strconv.Itoa(e.Status) + ": " + e.Message
}

// NotFound reports whether err says that a sandbox, process, file or template
// does not exist.
func NotFound(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && (e.Status == http.StatusNotFound || e.Code == connect.CodeNotFound.String())
}

// Conflict reports whether err says that something already is as asked, or in
// the wrong state for it (pausing a paused sandbox, making a directory that exists).
func Conflict(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && (e.Status == http.StatusConflict || e.Code == connect.CodeAlreadyExists.String())
}

// call sends a control-plane request. in and out may be nil. The header is the answer's.
func (c *Client) call(ctx context.Context, method, path string, in, out any) (http.Header, error) {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.api+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-API-Key", c.key)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return nil, errorOf(resp)
	}
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
		return resp.Header, err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return nil, fmt.Errorf("%s %s: answer is not what it should be: %w", method, path, err)
	}
	return resp.Header, nil
}

// errorOf reads an error answer of the control plane, the edge or a sandbox.
func errorOf(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what there is of it
	var body struct {
		Message   string `json:"message"`
		ErrorCode string `json:"error_code"`
	}
	if json.Unmarshal(text, &body) == nil && body.Message != "" {
		e.Message, e.Code = body.Message, body.ErrorCode
	} else if e.Message = strings.TrimSpace(string(text)); e.Message == "" {
		e.Message = http.StatusText(resp.StatusCode)
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}

// fromRPC turns an error of the sandbox's daemon into an *Error.
func fromRPC(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	if cause := ce.Unwrap(); errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return &Error{Code: ce.Code().String(), Message: ce.Message()}
}
