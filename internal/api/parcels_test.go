package api

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hearth/client"
	"hearth/internal/api/describe"
	"hearth/internal/hearth"
)

// fakeParcels has the file of one snapshot, and takes what it can read.
type fakeParcels struct {
	fail error // at the end of an export that is half written
	took int64
	body string
}

func (f *fakeParcels) Export(_ context.Context, team hearth.TeamID, name string, w io.Writer) error {
	if team != testTeam.ID || name != "golden:v2" {
		return hearth.Errorf(hearth.NotFound, "snapshot '%s' not found", name)
	}
	_, err := io.WriteString(w, strings.Repeat("parcel ", 100_000))
	if f.fail != nil {
		return f.fail
	}
	return err
}

func (f *fakeParcels) Import(ctx context.Context, team hearth.TeamID, r io.Reader) (*hearth.Snapshot, error) {
	b := make([]byte, 64<<10)
	f.took = 0
	for ctx.Err() == nil {
		n, err := r.Read(b)
		if f.took == 0 {
			f.body = string(b[:min(n, 100)])
		}
		f.took += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	switch f.body {
	case "full":
		return nil, hearth.Errorf(hearth.ResourceExhausted, "the node's disk is full")
	case "bad":
		return nil, hearth.Errorf(hearth.InvalidArgument, "the file is damaged")
	}
	return &hearth.Snapshot{ID: "s00000000000000000007", Team: team}, ctx.Err()
}

func withParcels(f *fakeParcels) func(*Deps) { return func(d *Deps) { d.Parcels = f } }

func TestParcelCalls(t *testing.T) {
	p := &fakeParcels{}
	f := newFixture(t, withParcels(p))
	for _, c := range []struct {
		method, path, body, key string
		status                  int
		want                    string
	}{
		{"GET", "/v2/snapshots/golden:v2/export", "", testKey, 200, "parcel parcel"},
		{"GET", "/v2/snapshots/first%2Fgolden%3Av2/export", "", testKey, 200, "parcel parcel"},
		{"GET", "/v2/snapshots/golden:v2/export", "", otherKey, 404, "not found"},
		{"GET", "/v2/snapshots/golden:v2/export", "", "e2b_wrong", 401, ""},
		{"GET", "/v2/snapshots/none/export", "", testKey, 404, "not found"},
		{"GET", "/v2/snapshots/No%20Name!/export", "", testKey, 400, "snapshotID must be"},
		{"POST", "/v2/snapshots/import", "good", testKey, 201, `"snapshotID":"s00000000000000000007:default"`},
		{"POST", "/v2/snapshots/import", "good", "e2b_wrong", 401, ""},
		{"POST", "/v2/snapshots/import", "bad", testKey, 400, "damaged"},
		{"POST", "/v2/snapshots/import", "full", testKey, 429, "disk is full"},
	} {
		got := f.do(c.method, c.path, c.body, "X-API-Key", c.key)
		want(t, got, c.status, c.want)
		if c.status == 200 && got.Header().Get("Content-Type") != "application/zstd" {
			t.Errorf("%s: sent as %s", c.path, got.Header().Get("Content-Type"))
		}
	}
	bare := newFixture(t, func(d *Deps) { d.Parcels = nil })
	want(t, bare.do("GET", "/v2/snapshots/golden:v2/export", ""), 501)
	want(t, bare.do("POST", "/v2/snapshots/import", "good"), 501)
}

// TestParcelLimits: the limit of other bodies is not an import's, its own is.
func TestParcelLimits(t *testing.T) {
	p := &fakeParcels{}
	f := newFixture(t, withParcels(p))
	send := func(r io.Reader, size int64) *httptest.ResponseRecorder {
		req := httptest.NewRequest("POST", "/v2/snapshots/import", r)
		req.Header.Set("X-API-Key", testKey)
		req.ContentLength = size
		w := httptest.NewRecorder()
		f.handler.ServeHTTP(w, req)
		return w
	}
	want(t, send(io.LimitReader(zeros{}, describe.MaxBody+1), describe.MaxBody+1), 201)
	if p.took != describe.MaxBody+1 {
		t.Errorf("took %d bytes", p.took)
	}
	p.took = 0
	want(t, send(zeros{}, describe.MaxStream+1), 400, "at most 68719476736 bytes")
	if p.took != 0 {
		t.Errorf("read %d bytes of what is too long", p.took)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestParcelTimes: an import may take longer than other calls, and not for ever.
func TestParcelTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, withParcels(&fakeParcels{}))
		slow := func(parts int) int {
			r, w := io.Pipe()
			var sender sync.WaitGroup
			defer sender.Wait()
			sender.Go(func() {
				for range parts {
					time.Sleep(time.Minute)
					if _, err := w.Write([]byte("part")); err != nil {
						return
					}
				}
				w.Close()
			})
			req := httptest.NewRequest("POST", "/v2/snapshots/import", r)
			req.Header.Set("X-API-Key", testKey)
			rec := httptest.NewRecorder()
			f.handler.ServeHTTP(rec, req)
			r.Close()
			return rec.Code
		}
		if code := slow(30); code != 201 {
			t.Errorf("half an hour: %d", code)
		}
		if code := slow(90); code != 504 {
			t.Errorf("an hour and a half: %d", code)
		}
	})
}

// TestCutExport: a client does not take a part for the whole.
func TestCutExport(t *testing.T) {
	p := &fakeParcels{}
	f := newFixture(t, withParcels(p))
	srv := httptest.NewServer(f.handler)
	defer srv.Close()
	c, err := client.New(client.Options{APIKey: testKey, APIURL: srv.URL, HTTPClient: srv.Client()})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := c.Export(t.Context(), "golden:v2", &b); err != nil || b.Len() != 700_000 {
		t.Errorf("%d bytes, %v", b.Len(), err)
	}
	p.fail = hearth.Errorf(hearth.InvalidArgument, "file is damaged")
	if err := c.Export(t.Context(), "golden:v2", io.Discard); err == nil {
		t.Error("a part passes for the whole")
	}
	p.fail = nil
	if err := c.Export(t.Context(), "none", io.Discard); !client.NotFound(err) {
		t.Errorf("got %v", err)
	}
	snap, err := c.Import(t.Context(), strings.NewReader("good"))
	if err != nil || snap.ID != "s00000000000000000007:default" {
		t.Errorf("got %+v, %v", snap, err)
	}
	if _, err := c.Import(t.Context(), strings.NewReader("bad")); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v", err)
	}
	if resp, err := http.Get(srv.URL + "/v2/snapshots/golden:v2/export"); err != nil || resp.Body.Close() != nil || resp.StatusCode != 401 {
		t.Errorf("without a key: %v, %v", resp, err)
	}
}
