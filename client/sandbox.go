package client

import (
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"hearth/internal/gen/guestv1/guestv1connect"
)

// Ports of the services inside a sandbox.
const (
	daemonPort = 49983
	codePort   = 49999
)

// maxMessage bounds one message of a sandbox's daemon.
const maxMessage = 64 << 20

// created is the answer to create and connect.
type created struct {
	ID       string  `json:"sandboxID"`
	Template string  `json:"templateID"`
	Name     string  `json:"alias"`
	Access   string  `json:"envdAccessToken"`
	Traffic  string  `json:"trafficAccessToken"`
	Domain   *string `json:"domain"`
}

// Sandbox is one machine to work in. It is safe for concurrent use.
type Sandbox struct {
	ID           string
	Template     string // ID of its template
	AccessToken  string // opens the daemon inside; a secret
	TrafficToken string // opens other ports where they are not public; a secret

	// Timing is what the server says it spent Create or Connect on, part by part;
	// parts may lie within each other. Empty if it does not say.
	Timing []Timing

	Commands *Commands
	Files    *Files
	Pty      *Pty
	Code     *Code

	client *Client
	domain string
}

func newSandbox(c *Client, from created, header http.Header) *Sandbox {
	s := &Sandbox{
		ID: from.ID, Template: from.Template, AccessToken: from.Access, TrafficToken: from.Traffic,
		client: c, domain: c.domain, Timing: timingOf(header),
	}
	if from.Domain != nil && *from.Domain != "" {
		s.domain = *from.Domain
	}
	via := doer{s}
	base := s.baseURL(daemonPort)
	limit := connect.WithReadMaxBytes(maxMessage)
	process := guestv1connect.NewProcessClient(via, base, limit)
	s.Commands = &Commands{rpc: process}
	s.Pty = &Pty{rpc: process, commands: s.Commands}
	s.Files = &Files{sandbox: s, rpc: guestv1connect.NewFilesystemClient(via, base, limit)}
	s.Code = &Code{sandbox: s}
	return s
}

// doer sends the RPC clients' requests with the sandbox's routing headers.
type doer struct{ s *Sandbox }

// Do implements connect.HTTPClient.
func (d doer) Do(req *http.Request) (*http.Response, error) {
	d.s.route(req, daemonPort)
	return d.s.client.http.Do(req)
}

// route says which port of which sandbox a request is for and proves that it may.
func (s *Sandbox) route(req *http.Request, port int) {
	req.Header.Set("E2b-Sandbox-Id", s.ID)
	req.Header.Set("E2b-Sandbox-Port", strconv.Itoa(port))
	if port == daemonPort && s.AccessToken != "" {
		req.Header.Set("X-Access-Token", s.AccessToken)
	}
	if port != daemonPort && s.TrafficToken != "" {
		req.Header.Set("E2b-Traffic-Access-Token", s.TrafficToken)
	}
}

// Host returns the public host name of a port inside the sandbox. It resolves
// where the server has a wildcard domain; Request works everywhere.
func (s *Sandbox) Host(port int) string {
	return strconv.Itoa(port) + "-" + s.ID + "." + s.domain
}

func (s *Sandbox) baseURL(port int) string {
	if s.client.sandboxURL != "" {
		return s.client.sandboxURL
	}
	return "https://" + s.Host(port)
}

// Request sends an HTTP request to a server inside the sandbox. The path may
// carry a query. The caller closes the body of the response, whatever its status.
func (s *Sandbox) Request(ctx context.Context, method string, port int, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.baseURL(port)+path, body)
	if err != nil {
		return nil, err
	}
	s.route(req, port)
	return s.client.http.Do(req)
}

// Info describes the sandbox.
func (s *Sandbox) Info(ctx context.Context) (*Info, error) { return s.client.Info(ctx, s.ID) }

// Kill ends the sandbox.
func (s *Sandbox) Kill(ctx context.Context) error { return s.client.Kill(ctx, s.ID) }

// Pause writes the sandbox's state away; Client.Connect resumes it.
func (s *Sandbox) Pause(ctx context.Context) error { return s.client.Pause(ctx, s.ID) }

// SetTimeout lets the sandbox end d from now.
func (s *Sandbox) SetTimeout(ctx context.Context, d time.Duration) error {
	return s.client.SetTimeout(ctx, s.ID, d)
}

// Running reports whether the sandbox answers.
func (s *Sandbox) Running(ctx context.Context) (bool, error) {
	resp, err := s.Request(ctx, http.MethodGet, daemonPort, "/health", nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusBadGateway:
		return false, nil
	case resp.StatusCode >= 300:
		return false, errorOf(resp)
	}
	return true, nil
}

// asUser selects the Unix user of a request; empty is the template's default.
func asUser(h http.Header, user string) {
	if user != "" {
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
}

// query encodes pairs, leaving out those with an empty value.
func query(pairs ...string) string {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + strings.ReplaceAll(q.Encode(), "+", "%20")
}
