package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
)

// scriptName is the file, beside the jailer, that tells a monitor how to
// misbehave. The jailer puts a copy into the jail.
const scriptName = "script.json"

// logName is the file in the jail that the monitor writes its calls to.
const logName = "calls.json"

// script maps "METHOD /path" to what happens instead of an answer.
type script map[string]string

// The misbehaviours: dying before or after the call, never answering, and
// answers that are none.
const (
	dieBefore = "die"
	dieAfter  = "die after"
	hang      = "hang"
	garbage   = "garbage"
	flood     = "flood"
	refuse    = "refuse"
	redirect  = "redirect"
)

// silentGuest in a script makes a guest that never answers, panickyGuest one that
// ends as it boots; restlessGuest says what one does that is to write out its disk.
const (
	silentGuest   = "silent guest"
	panickyGuest  = "panicky guest"
	restlessGuest = "restless guest"
)

func readScript(path string) (script, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s script
	return s, json.Unmarshal(raw, &s)
}

// callLog is a file of one JSON value per call and per Configure of the guest.
type callLog struct {
	mu sync.Mutex
	f  *os.File
}

type entry struct {
	Call string          `json:"call"`
	Body json.RawMessage `json:"body,omitempty"`
}

func (l *callLog) add(call string, body []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		f, err := os.OpenFile("/"+logName, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		l.f = f
	}
	if !json.Valid(body) {
		body = nil
	}
	_ = json.NewEncoder(l.f).Encode(entry{call, body})
}
