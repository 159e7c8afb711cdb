package code

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Jupyter messages on the wire: routing identities, the delimiter, an HMAC of the
// next four parts, then header, parent header, metadata and content as JSON, then
// binary buffers, which are not used here.

const delimiter = "<IDS|MSG>"

// header names a message; of a parent header only ID matters.
type header struct {
	ID       string `json:"msg_id"`
	Type     string `json:"msg_type"`
	Username string `json:"username"`
	Session  string `json:"session"`
	Date     string `json:"date"`
	Version  string `json:"version"`
}

// message is one that a kernel sent.
type message struct {
	Type    string
	Parent  string          // id of the request it belongs to
	Content json.RawMessage // not yet validated
	Skipped int64           // size of a message that was too large to be read
	Shell   bool            // a reply on the shell channel; else iopub
}

// codec signs and checks the messages of one kernel.
type codec struct {
	key     []byte
	session string
}

var errMessage = errors.New("malformed Jupyter message")

func (c codec) encode(msgType string, content, metadata any) (id string, parts [][]byte, err error) {
	id = newID()
	h := header{
		ID: id, Type: msgType, Username: "hearth", Session: c.session,
		Date: time.Now().UTC().Format(time.RFC3339Nano), Version: "5.3",
	}
	parts = [][]byte{[]byte(delimiter), nil}
	for _, v := range []any{h, struct{}{}, metadata, content} {
		b, err := json.Marshal(v)
		if err != nil {
			return "", nil, err
		}
		parts = append(parts, b)
	}
	parts[1] = []byte(c.sign(parts[2:6]))
	return id, parts, nil
}

func (c codec) sign(parts [][]byte) string {
	mac := hmac.New(sha256.New, c.key)
	for _, p := range parts {
		mac.Write(p)
	}
	return hex.EncodeToString(mac.Sum(nil))
}

func (c codec) decode(parts [][]byte) (message, error) {
	at := -1
	for i, p := range parts {
		if bytes.Equal(p, []byte(delimiter)) {
			at = i
			break
		}
	}
	if at < 0 || len(parts) < at+6 {
		return message{}, errMessage
	}
	body := parts[at+2 : at+6]
	if !hmac.Equal([]byte(c.sign(body)), parts[at+1]) {
		return message{}, fmt.Errorf("%w: wrong signature", errMessage)
	}
	var h, parent header
	if err := json.Unmarshal(body[0], &h); err != nil {
		return message{}, fmt.Errorf("%w: header", errMessage)
	}
	if err := json.Unmarshal(body[1], &parent); err != nil {
		return message{}, fmt.Errorf("%w: parent header", errMessage)
	}
	return message{Type: h.Type, Parent: parent.ID, Content: body[3]}, nil
}

// newID returns a random UUID.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
