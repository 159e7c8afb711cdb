package api

import (
	"net/http"
	"testing"
)

// What the API itself adds to a create: authentication, check, decoding, answer.
func BenchmarkCreate(b *testing.B) {
	f := newFixture(b)
	body := `{"templateID":"base","timeout":300,"metadata":{"user":"1"},"envVars":{"A":"b"},"autoPause":false}`
	b.ReportAllocs()
	for b.Loop() {
		if w := f.do("POST", "/v2/sandboxes", body); w.Code != http.StatusCreated {
			b.Fatal(w.Body)
		}
	}
}
