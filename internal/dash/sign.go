package dash

import (
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"hearth/internal/hearth"
)

// cookieName names the cookie that holds a session's token. It is for Root alone:
// requests that the edge hands to sandboxes do not carry it.
const cookieName = "hearth_session"

// mostCookies bounds how many cookies of that name are looked at. Sandboxes on
// host names below this one's can set more of them, but none that is a session.
const mostCookies = 8

// signedIn shows a page to those who have a session, and others the way to one.
func (s *site) signedIn(page func(*visit) error) func(*visit) error {
	return func(v *visit) error {
		if err := s.recognise(v); err != nil {
			return err
		}
		if v.team == nil {
			return v.redirect("sign-in")
		}
		return page(v)
	}
}

// recognise finds out who has signed in. The key is looked up again, so that a
// session does not outlive it.
func (s *site) recognise(v *visit) error {
	for _, token := range presented(v.r) {
		one, ok := s.sessions.find(token)
		if !ok {
			continue
		}
		team, err := s.Keys.TeamByHash(v.r.Context(), one.key)
		switch {
		case err == nil:
			v.team = team
			return nil
		case !unknown(err):
			return err
		}
		s.sessions.end(token)
	}
	return nil
}

// presented returns the tokens that a request carries.
func presented(r *http.Request) []string {
	var tokens []string
	for _, c := range r.CookiesNamed(cookieName) {
		if len(tokens) < mostCookies && plausible(c.Value) {
			tokens = append(tokens, c.Value)
		}
	}
	return tokens
}

// unknown reports an error that says of a key that there is no such one.
func unknown(err error) bool {
	switch hearth.KindOf(err) {
	case hearth.NotFound, hearth.Unauthenticated, hearth.InvalidArgument:
		return true
	}
	return false
}

func (s *site) askForKey(v *visit) error {
	if err := s.recognise(v); err != nil {
		return err
	}
	if v.team != nil {
		return v.redirect("")
	}
	return s.render(v, http.StatusOK, "sign-in", entry{})
}

// signIn opens a session for who has a key. It is checked as the API checks keys.
func (s *site) signIn(v *visit) error {
	from := clientAddress(v.r)
	if s.Throttle != nil {
		if wait := s.Throttle.Wait(from); wait > 0 {
			v.w.Header().Set("Retry-After", strconv.Itoa(int((wait+time.Second-1)/time.Second)))
			return s.render(v, http.StatusTooManyRequests, "sign-in", entry{Problem: "Too many wrong keys came from your address. Wait a moment."})
		}
	}
	key, err := readKey(v)
	if err != nil {
		return err
	}
	if key == "" {
		return s.render(v, http.StatusBadRequest, "sign-in", entry{Problem: "Enter an API key."})
	}
	team, err := s.Keys.Team(v.r.Context(), key)
	if err != nil && !unknown(err) {
		return err
	}
	if err != nil {
		v.err = err
		if s.Throttle != nil {
			s.Throttle.Failed(from)
		}
		return s.render(v, http.StatusUnauthorized, "sign-in", entry{Problem: "There is no such API key."})
	}
	for _, old := range presented(v.r) {
		s.sessions.end(old)
	}
	v.team = team
	v.setCookie(s.sessions.begin(team.ID, s.Hash(key)), int(sessionAge/time.Second))
	return v.redirect("")
}

// readKey reads the form, within the limits of size and time.
func readKey(v *visit) (string, error) {
	conn := http.NewResponseController(v.w)
	_ = conn.SetReadDeadline(time.Now().Add(requestTime)) // not every writer has a connection
	v.r.Body = http.MaxBytesReader(v.w, v.r.Body, formBytes)
	err := v.r.ParseForm()
	_ = conn.SetReadDeadline(time.Time{})
	if err != nil {
		return "", hearth.Wrap(hearth.InvalidArgument, err, "The form must be valid and at most %d bytes", formBytes)
	}
	return strings.TrimSpace(v.r.PostForm.Get("key")), nil
}

func (s *site) signOut(v *visit) error {
	for _, token := range presented(v.r) {
		s.sessions.end(token)
	}
	v.setCookie("", -1)
	return v.redirect("sign-in")
}

// setCookie hands out a token. The server speaks plain HTTP and may have TLS in
// front; that it has, the browser says with the origin of the form.
func (v *visit) setCookie(token string, age int) {
	http.SetCookie(v.w, &http.Cookie{
		Name: cookieName, Value: token, Path: Root, MaxAge: age, HttpOnly: true, SameSite: http.SameSiteStrictMode,
		Secure: v.r.TLS != nil || strings.HasPrefix(v.r.Header.Get("Origin"), "https://"),
	})
}

// clientAddress is the address whose wrong keys are counted together: the
// connection's, as headers are the client's to choose.
func clientAddress(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
