package client

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Timing is how long one part of a request took, as the server says.
type Timing struct {
	Name  string
	Start time.Duration // since the request began; 0 also when the server does not say
	Took  time.Duration
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
		took, ok := duration(params, "dur")
		if !ok || name == "" || len(list) >= maxTimings {
			continue
		}
		start, _ := duration(params, "start")
		list = append(list, Timing{Name: name, Start: start, Took: took})
	}
	return list
}

// duration finds a parameter that is a number of milliseconds.
func duration(params, name string) (time.Duration, bool) {
	for p := range strings.SplitSeq(params, ";") {
		text, ok := strings.CutPrefix(strings.TrimSpace(p), name+"=")
		if !ok {
			continue
		}
		ms, err := strconv.ParseFloat(text, 64)
		const longest = 1e9 // longer is not a duration of ours
		if err != nil || !(ms >= 0 && ms < longest) {
			return 0, false
		}
		return time.Duration(ms * float64(time.Millisecond)), true
	}
	return 0, false
}
