package client

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Timing is how long one part of a request took, as the server says.
type Timing struct {
	Name string
	Took time.Duration
}

const (
	timingHeader = "Server-Timing" // https://www.w3.org/TR/server-timing/
	maxTimings   = 64
)

func timingOf(h http.Header) []Timing { return parseTiming(h.Get(timingHeader)) }

// parseTiming reads a header's value. What it does not understand is left out.
func parseTiming(value string) []Timing {
	var list []Timing
	for part := range strings.SplitSeq(value, ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		text, ok := strings.CutPrefix(strings.TrimSpace(params), "dur=")
		ms, err := strconv.ParseFloat(text, 64)
		const longest = 1e9 // ms; longer is not a duration of ours
		if !ok || err != nil || name == "" || !(ms >= 0 && ms < longest) || len(list) >= maxTimings {
			continue
		}
		list = append(list, Timing{Name: name, Took: time.Duration(ms * float64(time.Millisecond))})
	}
	return list
}
