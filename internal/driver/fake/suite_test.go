package fake_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/fake"
)

// testguest does what drivertest's program of that name does.
func testguest(g *fake.Guest) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ticks", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, 0) })
	cell := func(field string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				g.Put(r.FormValue(field), r.FormValue("value"))
				return
			}
			fmt.Fprint(w, g.Load(r.FormValue(field)))
		}
	}
	mux.HandleFunc("/memory", cell("key"))
	mux.HandleFunc("/file", cell("path"))
	mux.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		g.End(driver.Exit{Code: code, Reason: "exit", At: time.Now()})
	})
	g.ServeHTTP(8080, mux)
}

func TestConformance(t *testing.T) { conformance(t, fake.Config{Program: testguest}) }

func TestConformanceOfLayeredCheckpoints(t *testing.T) {
	conformance(t, fake.Config{Program: testguest, Layered: true})
}

func conformance(t *testing.T, cfg fake.Config) {
	h := fake.NewHost(cfg)
	n := 0
	specOf := func(t *testing.T) driver.Spec { n++; return spec(t, fmt.Sprintf("conf-%d", n)) }
	drivertest.Run(t, drivertest.Env{
		Driver: func(*testing.T) driver.Driver { return fake.New(h) },
		Spec:   specOf,
		Kill: func(t *testing.T, m driver.Machine) {
			if err := h.Kill(m.Handle().ID, driver.Exit{Code: 137, Reason: "killed"}); err != nil {
				t.Error(err)
			}
		},
		Doomed: func(t *testing.T) (driver.Driver, driver.Spec) {
			h.Fail(fake.Start, errors.New("doomed"))
			return fake.New(h), specOf(t)
		},
		Count: func(t *testing.T) map[string]int {
			fds, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			return map[string]int{"machines": len(h.Machines()), "descriptors": len(fds)}
		},
	})
}
