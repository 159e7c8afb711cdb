package edge

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// bench runs a benchmark straight to a server and through the edge.
func bench(b *testing.B, h http.Handler, do func(b *testing.B, c *http.Client, r *http.Request)) {
	town := newTown()
	town.serve(b, alpha, 3000, h)
	_, s := town.open(b, Config{})
	for _, way := range []struct{ name, url string }{
		{"direct", "http://" + town.ports[alpha+":3000"]},
		{"edge", s.URL},
	} {
		b.Run(way.name, func(b *testing.B) {
			tr := &http.Transport{DisableCompression: true}
			defer tr.CloseIdleConnections()
			r, err := http.NewRequest("GET", way.url, nil)
			must(b, err)
			r.Header.Set(SandboxHeader, alpha)
			r.Header.Set(PortHeader, "3000")
			do(b, &http.Client{Transport: tr}, r)
		})
	}
}

// BenchmarkLatency: a small request over a kept connection.
func BenchmarkLatency(b *testing.B) {
	bench(b, say("ok"), func(b *testing.B, c *http.Client, r *http.Request) {
		var all []time.Duration
		for b.Loop() {
			start := time.Now()
			resp, err := c.Do(r)
			must(b, err)
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			all = append(all, time.Since(start))
		}
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
	})
}

const bulk = 100 << 20

func BenchmarkDownload(b *testing.B) {
	chunk := strings.Repeat("x", 1<<20)
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "104857600")
		for range bulk >> 20 {
			io.WriteString(w, chunk)
		}
	})
	bench(b, h, func(b *testing.B, c *http.Client, r *http.Request) {
		b.SetBytes(bulk)
		buf := make([]byte, 1<<20)
		for b.Loop() {
			resp, err := c.Do(r)
			must(b, err)
			n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
			resp.Body.Close()
			if n != bulk || err != nil {
				b.Fatal(n, err)
			}
		}
	})
}

func BenchmarkUpload(b *testing.B) {
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 1<<20)
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, buf)
	})
	bench(b, h, func(b *testing.B, c *http.Client, r *http.Request) {
		b.SetBytes(bulk)
		body := strings.Repeat("x", bulk)
		for b.Loop() {
			r.Method, r.ContentLength = "POST", bulk
			r.Body = io.NopCloser(strings.NewReader(body))
			resp, err := c.Do(r)
			must(b, err)
			resp.Body.Close()
		}
	})
}
