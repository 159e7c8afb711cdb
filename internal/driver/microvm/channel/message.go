package channel

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"hearth/internal/hearth"
)

// The first bytes of a stream are the host's request: what it wants, the length
// of the payload as a uint16 (big endian), the payload. The guest's answer has
// the same form, with a status in the place of the wish. After a successful
// wantDial the stream carries the connection's bytes.
const (
	wantDial      = 'd' // payload: the port, a uint16
	wantConfigure = 'c' // payload: Settings as JSON
	wantExit      = 'w' // no payload; the answer is Exit as JSON
	wantSettle    = 's' // no payload; answered when the disk is whole and stands still

	statusOK      = 'k' // payload: the answer, if any
	statusRefused = 'r' // nothing listens on the port
	statusSealed  = 's' // Configure was not called in this session
	statusFailed  = 'f' // payload: text
)

const (
	maxMessage = 8 << 10 // bytes of a payload
	maxText    = 512     // bytes of the guest's text that are shown
)

func writeMessage(w io.Writer, what byte, payload []byte) error {
	if len(payload) > maxMessage {
		return hearth.Errorf(hearth.InvalidArgument, "a message of %d bytes is larger than the %d allowed", len(payload), maxMessage)
	}
	b := binary.BigEndian.AppendUint16([]byte{what}, uint16(len(payload)))
	_, err := w.Write(append(b, payload...))
	return err
}

func readMessage(r io.Reader) (what byte, payload []byte, err error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if n > maxMessage {
		return 0, nil, fmt.Errorf("%w: a message of %d bytes", errGarbage, n)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r, payload)
	return head[0], payload, err
}

// answered turns a guest's answer into a result. Texts of the guest are quoted: it may lie.
func answered(status byte, payload []byte) ([]byte, error) {
	switch status {
	case statusOK:
		return payload, nil
	case statusRefused:
		return nil, hearth.Wrap(hearth.Unavailable, syscall.ECONNREFUSED, "nothing listens on the port")
	case statusSealed:
		return nil, hearth.Errorf(hearth.FailedPrecondition, "the machine was not configured since it was connected to")
	case statusFailed:
		return nil, hearth.Errorf(hearth.Unavailable, "the machine says %q", strings.ToValidUTF8(string(payload[:min(len(payload), maxText)]), "?"))
	default:
		return nil, fmt.Errorf("%w: an answer with status %#x", errGarbage, status)
	}
}

// refusal is the guest's answer for an error.
func refusal(err error) (byte, []byte) {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return statusRefused, nil
	}
	text := err.Error()
	return statusFailed, []byte(text[:min(len(text), maxText)])
}

// Check returns an InvalidArgument error that names the first field of s that no
// guest accepts.
func (s Settings) Check() error {
	switch {
	case s.Now.IsZero():
		return hearth.Errorf(hearth.InvalidArgument, "settings: now is not set")
	case len(s.Seed) < minSeed || len(s.Seed) > maxSeed:
		return hearth.Errorf(hearth.InvalidArgument, "settings: seed has %d bytes, want %d to %d", len(s.Seed), minSeed, maxSeed)
	case len(s.Hostname) > 64:
		return hearth.Errorf(hearth.InvalidArgument, "settings: hostname is longer than 64 bytes")
	case len(s.Device) > 15:
		return hearth.Errorf(hearth.InvalidArgument, "settings: device is longer than 15 bytes")
	case s.Device != "" && !s.Address.IsValid():
		return hearth.Errorf(hearth.InvalidArgument, "settings: device %s has no address", s.Device)
	case s.Device == "" && (s.Address.IsValid() || s.Gateway.IsValid() || s.MAC != ""):
		return hearth.Errorf(hearth.InvalidArgument, "settings: address, gateway and mac need a device")
	}
	return nil
}

const (
	minSeed = 16
	maxSeed = 64
)

// decodeSettings reads what Configure sent.
func decodeSettings(raw []byte) (Settings, error) {
	var s Settings
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, hearth.Errorf(hearth.InvalidArgument, "settings: %v", err)
	}
	return s, s.Check()
}
