package wish

import (
	"time"

	"hearth/internal/hearth"
)

// Create is everything a caller may ask of a new sandbox. Template is an
// ID or a name, also of a snapshot; the zero value of every other field but Team is a valid choice.
type Create struct {
	Team       hearth.TeamID
	Template   string
	Driver     string // isolation technology to run on; empty: the template's, else the node's choice
	Timeout    time.Duration
	OnTimeout  hearth.TimeoutAction
	AutoResume bool // traffic to the paused sandbox resumes it
	Open       bool // the guest daemon asks for no token
	Env        map[string]string
	Metadata   map[string]string
	Network    hearth.Network
	Lifecycle  hearth.Lifecycle
}

// Bounds and default of what a history may occupy, in bytes.
const (
	LeastHistory   = 64 << 20
	DefaultHistory = 1 << 30
	MostHistory    = 1 << 40
)

// CheckHistory refuses a budget that is out of bounds; 0 asks for no history.
func CheckHistory(field string, bytes int64) error {
	if bytes != 0 && (bytes < LeastHistory || bytes > MostHistory) {
		return hearth.Errorf(hearth.InvalidArgument, "%s must be within %d and %d bytes", field, LeastHistory, MostHistory)
	}
	return nil
}

// CheckCreate refuses what cannot be asked for, but for the timeout, and fills in
// defaults.
func CheckCreate(req *Create) error {
	switch req.OnTimeout {
	case "":
		req.OnTimeout = hearth.KillOnTimeout
	case hearth.KillOnTimeout, hearth.PauseOnTimeout:
	default:
		return hearth.Errorf(hearth.InvalidArgument, "the action on timeout must be kill or pause")
	}
	if err := CheckHistory("history.maxBytes", req.Lifecycle.History); err != nil {
		return err
	}
	if err := CheckMetadata(req.Metadata); err != nil {
		return err
	}
	if err := CheckEnv(req.Env); err != nil {
		return err
	}
	return CheckNetwork(req.Network)
}
