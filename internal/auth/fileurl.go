package auth

import (
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strconv"
	"time"

	"hearth/internal/hearth"
)

// Operations that a file URL is signed for.
const (
	Read  = "read"
	Write = "write"
)

// Sign returns the signature of a file URL: path, user name and expiration (Unix
// seconds, nil for none) exactly as the URL has them, op is Read or Write, token
// is the sandbox's access token.
func Sign(path, op, username, token string, exp *int64) string {
	text := path + ":" + op + ":" + username + ":" + token
	if exp != nil {
		text += ":" + strconv.FormatInt(*exp, 10)
	}
	sum := sha256.Sum256([]byte(text))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// FileURL is the signed part of a request for a file.
type FileURL struct {
	Path      string
	Op        string
	Username  string
	Signature string // empty when the request has none
	Expires   *int64 // Unix seconds; nil: never
}

// ParseFileURL reads the query of a request for /files. op is Read or Write, as
// the method says. An expiration that is no number is Unauthenticated.
func ParseFileURL(op string, query url.Values) (FileURL, error) {
	u := FileURL{Path: query.Get("path"), Op: op, Username: query.Get("username"), Signature: query.Get("signature")}
	if s := query.Get("signature_expiration"); s != "" {
		exp, err := strconv.ParseInt(s, 10, 64)
		if err != nil || strconv.FormatInt(exp, 10) != s {
			return FileURL{}, hearth.Errorf(hearth.Unauthenticated, "invalid signature")
		}
		u.Expires = &exp
	}
	return u, nil
}

// SignedWith reports whether the signature was made with the token, in a time
// that does not depend on how much of it is right. It does not look at Expires.
func (u FileURL) SignedWith(token string) bool {
	return token != "" && Equal(u.Signature, Sign(u.Path, u.Op, u.Username, token, u.Expires))
}

// Verify says why a request may not have the file: Unauthenticated, with the
// words that clients know.
func (u FileURL) Verify(token string, now time.Time) error {
	switch {
	case u.Signature == "":
		return hearth.Errorf(hearth.Unauthenticated, "missing signature query parameter")
	case !u.SignedWith(token):
		return hearth.Errorf(hearth.Unauthenticated, "invalid signature")
	case u.Expires != nil && *u.Expires < now.Unix():
		return hearth.Errorf(hearth.Unauthenticated, "signature is already expired")
	}
	return nil
}
