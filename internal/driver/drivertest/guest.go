package drivertest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"hearth/internal/driver"
)

const (
	port = 8080 // where testguest listens
	// patience is for one answer of a guest, and for a machine's end: only what
	// hangs takes as long, however slow guests are and however busy the host is.
	patience = 2 * time.Minute
)

// Guest talks to the testguest inside a machine.
type Guest struct{ client *http.Client }

// Open returns a client of the machine's testguest. Each request makes its own
// connection, and waits for the guest to listen.
func Open(m driver.Machine) Guest {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return dialListening(ctx, m) }
	return Guest{&http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// dialListening dials until the guest listens: a machine runs before its first
// process does.
func dialListening(ctx context.Context, m driver.Machine) (net.Conn, error) {
	retry := time.NewTicker(time.Millisecond)
	defer retry.Stop()
	for {
		c, err := m.Dial(ctx, port)
		if err == nil {
			return c, nil
		}
		select {
		case <-m.Done():
			return nil, err
		case <-ctx.Done():
			return nil, fmt.Errorf("%w, last: %w", ctx.Err(), err)
		case <-retry.C:
		}
	}
}

// Ask makes a request with form values and returns the answer.
func (g Guest) Ask(ctx context.Context, method, path string, form url.Values) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path+"?"+form.Encode(), nil)
	if err != nil {
		return "", err
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// get is Ask for tests: it must succeed, within patience.
func (g Guest) get(t *testing.T, path string, form ...string) string {
	t.Helper()
	return g.must(t, http.MethodGet, path, form)
}

func (g Guest) post(t *testing.T, path string, form ...string) {
	t.Helper()
	g.must(t, http.MethodPost, path, form)
}

func (g Guest) must(t *testing.T, method, path string, form []string) string {
	t.Helper()
	answer, err := g.patiently(t, method, path, form)
	if err != nil {
		t.Fatalf("%s %s %v: %v", method, path, form, err)
	}
	return answer
}

// try is get that may fail, for requests that a guest may die of.
func (g Guest) try(t *testing.T, path string, form ...string) (string, error) {
	t.Helper()
	return g.patiently(t, http.MethodGet, path, form)
}

func (g Guest) patiently(t *testing.T, method, path string, form []string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return g.Ask(ctx, method, path, values(form))
}

func (g Guest) number(t *testing.T, path string) int64 {
	t.Helper()
	text := g.get(t, path)
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return n
}

func values(form []string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(form); i += 2 {
		v.Add(form[i], form[i+1])
	}
	return v
}
