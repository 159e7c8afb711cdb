package auth_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/internal/auth"
	"hearth/internal/hearth"
)

func TestTokens(t *testing.T) {
	seed := bytes.Repeat([]byte{7}, auth.SeedSize)
	tokens, err := auth.NewTokens(seed)
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, seed)
	mac.Write([]byte("iabc"))
	if got, want := tokens.Access("iabc"), hex.EncodeToString(mac.Sum(nil)); got != want {
		t.Errorf("access token %s, want %s", got, want)
	}
	seen := map[string]string{}
	for _, id := range []hearth.SandboxID{"iabc", "iabd", "iab", "trafficiabc"} {
		for name, token := range map[string]string{"access": tokens.Access(id), "traffic": tokens.Traffic(id)} {
			what := name + " of " + string(id)
			if len(token) != 64 || seen[token] != "" {
				t.Errorf("%s is %q, as is %s", what, token, seen[token])
			}
			seen[token] = what
		}
	}
	for _, n := range []int{0, 31, 33} {
		if _, err := auth.NewTokens(make([]byte, n)); hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("a seed of %d bytes: %v", n, err)
		}
	}
}

func TestEqual(t *testing.T) {
	for _, tc := range []struct {
		got, want string
		equal     bool
	}{{"a", "a", true}, {"a", "b", false}, {"", "", false}, {"a", "", false}, {"", "a", false}, {"aa", "a", false}} {
		if auth.Equal(tc.got, tc.want) != tc.equal {
			t.Errorf("Equal(%q, %q) is not %v", tc.got, tc.want, tc.equal)
		}
	}
}

func TestFileURL(t *testing.T) {
	now := time.Unix(1000, 0)
	exp := func(n int64) *int64 { return &n }
	good := func(e *int64) string { return auth.Sign("a b/ü", auth.Read, "user", "tok", e) }
	for name, tc := range map[string]struct {
		op    string
		query url.Values
		want  string
	}{
		"good":           {auth.Read, url.Values{"path": {"a b/ü"}, "username": {"user"}, "signature": {good(nil)}}, ""},
		"expires later":  {auth.Read, url.Values{"path": {"a b/ü"}, "username": {"user"}, "signature": {good(exp(1000))}, "signature_expiration": {"1000"}}, ""},
		"expired":        {auth.Read, url.Values{"path": {"a b/ü"}, "username": {"user"}, "signature": {good(exp(999))}, "signature_expiration": {"999"}}, "signature is already expired"},
		"prolonged":      {auth.Read, url.Values{"path": {"a b/ü"}, "username": {"user"}, "signature": {good(exp(999))}, "signature_expiration": {"1999"}}, "invalid signature"},
		"unlimited":      {auth.Read, url.Values{"path": {"a b/ü"}, "username": {"user"}, "signature": {good(exp(999))}}, "invalid signature"},
		"odd expiration": {auth.Read, url.Values{"signature": {good(nil)}, "signature_expiration": {"+999"}}, "invalid signature"},
		"no number":      {auth.Read, url.Values{"signature": {good(nil)}, "signature_expiration": {"soon"}}, "invalid signature"},
		"other op":       {auth.Write, url.Values{"path": {"a b/ü"}, "username": {"user"}, "signature": {good(nil)}}, "invalid signature"},
		"other path":     {auth.Read, url.Values{"path": {"/a b/ü"}, "username": {"user"}, "signature": {good(nil)}}, "invalid signature"},
		"other user":     {auth.Read, url.Values{"path": {"a b/ü"}, "username": {"root"}, "signature": {good(nil)}}, "invalid signature"},
		"unsigned":       {auth.Read, url.Values{"path": {"a b/ü"}}, "missing signature query parameter"},
	} {
		u, err := auth.ParseFileURL(tc.op, tc.query)
		if err == nil {
			err = u.Verify("tok", now)
		}
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (err == nil || err.Error() != tc.want || hearth.KindOf(err) != hearth.Unauthenticated):
			t.Errorf("%s: error %v, want %s", name, err, tc.want)
		}
		if tc.want == "" && (u.SignedWith("") || u.SignedWith("tok2")) {
			t.Errorf("%s: signed with another token, too", name)
		}
	}
	// A value computed elsewhere: sha256 of "/f:read::t".
	if got, want := auth.Sign("/f", "read", "", "t", nil), "v1_/wdm836FjMCKJc6cVExKzNEoVw5YOHpoWMtiQOdBDpI"; got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
}

func FuzzFileURL(f *testing.F) {
	f.Add("path=/a&signature=v1_x&signature_expiration=1", "token")
	f.Add("path=%00&username=:&signature_expiration=-9", "t:1")
	f.Fuzz(func(t *testing.T, query, token string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		u, err := auth.ParseFileURL(auth.Read, q)
		if err != nil || token == "" {
			return
		}
		if u.SignedWith(token) {
			t.Fatalf("%q is signed with %q", query, token)
		}
		u.Signature = auth.Sign(u.Path, u.Op, u.Username, token, u.Expires)
		if !u.SignedWith(token) || u.SignedWith(token+"x") {
			t.Fatalf("own signature of %q with %q", query, token)
		}
	})
}

func TestSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seed")
	var wg sync.WaitGroup
	got := make([][]byte, 8)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = auth.LoadOrCreateSecret(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, secret := range got {
		if len(secret) != auth.SeedSize || !bytes.Equal(secret, got[0]) {
			t.Errorf("two starters got %x and %x", secret, got[0])
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
	again, err := auth.LoadOrCreateSecret(path)
	if err != nil || !bytes.Equal(again, got[0]) {
		t.Errorf("read again: %x (%v)", again, err)
	}
}

func TestSecretRefused(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		content string
		mode    os.FileMode
	}{
		"readable by others": {strings.Repeat("ab", 32), 0o644},
		"too short":          {strings.Repeat("ab", 31), 0o600},
		"not hex":            {strings.Repeat("xy", 32), 0o600},
		"empty":              {"", 0o600},
		"long":               {strings.Repeat("ab", 1000), 0o600},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(tc.content), tc.mode); err != nil {
			t.Fatal(err)
		}
		_, err := auth.LoadOrCreateSecret(path)
		if err == nil || hearth.KindOf(err) != hearth.FailedPrecondition || strings.Contains(err.Error(), "abab") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := auth.LoadOrCreateSecret(filepath.Join(dir, "no", "such", "dir")); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("missing directory: %v", err)
	}
}

// fakeTeams is a store of keys that counts how often it is asked.
type fakeTeams struct {
	mu    sync.Mutex
	keys  map[string]hearth.TeamID
	asked int
	err   error
}

func (f *fakeTeams) TeamByKeyHash(_ context.Context, hash string) (*hearth.Team, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.err != nil {
		return nil, f.err
	}
	if id, ok := f.keys[hash]; ok {
		return &hearth.Team{ID: id}, nil
	}
	return nil, hearth.Errorf(hearth.NotFound, "no")
}

func TestKeys(t *testing.T) {
	now := time.Unix(1000, 0)
	key, row := auth.NewKey("t1", "laptop", now)
	if strings.Contains(fmt.Sprintf("%+v", row), key) || row.Mask != key[:6]+"..."+key[40:] || row.Hash != auth.HashKey(key) {
		t.Errorf("row %+v of key %s", row, key)
	}
	st := &fakeTeams{keys: map[string]hearth.TeamID{row.Hash: "t1"}}
	keys := auth.NewKeys(st, func() time.Time { return now })
	ctx := context.Background()
	for range 3 {
		team, err := keys.Team(ctx, key)
		if err != nil || team.ID != "t1" {
			t.Fatal(team, err)
		}
		team.ID = "changed by the caller"
	}
	if st.asked != 1 {
		t.Errorf("the store was asked %d times, want once", st.asked)
	}
	for _, bad := range []string{"", "e2b_", "e2b_xyz", "E2B_00", key + "0", strings.ToUpper(key), key[1:], "e2b_" + strings.Repeat("0", 1<<16), "\x00"} {
		if _, err := keys.Team(ctx, bad); hearth.KindOf(err) != hearth.Unauthenticated {
			t.Errorf("key %.50q: %v", bad, err)
		}
	}
	now = now.Add(time.Minute)
	delete(st.keys, row.Hash)
	if _, err := keys.Team(ctx, key); hearth.KindOf(err) != hearth.Unauthenticated {
		t.Errorf("a removed key after a minute: %v", err)
	}
	st.err = hearth.Errorf(hearth.Unavailable, "away")
	if _, err := keys.Team(ctx, key); hearth.KindOf(err) != hearth.Unavailable {
		t.Errorf("with the store away: %v", err)
	}
}

func TestBruteForce(t *testing.T) {
	now := time.Unix(1000, 0)
	keys := auth.NewKeys(&fakeTeams{}, func() time.Time { return now })
	n := 0
	for remote := "2001:db8::1"; keys.Wait(remote) == 0 && n < 1000; n++ {
		keys.Failed(remote)
		remote = fmt.Sprintf("[2001:db8::%x]:80", n) // the same /64
	}
	if n != 20 {
		t.Errorf("%d guesses were let through, want 20", n)
	}
	if got := keys.Wait("2001:db8::77"); got != 3*time.Second {
		t.Errorf("the address waits %s, want 3s", got)
	}
	for _, other := range []string{"[2001:db8:0:1::1]:80", "10.0.0.1:5", "no address"} {
		if got := keys.Wait(other); got != 0 {
			t.Errorf("%s waits %s", other, got)
		}
	}
	now = now.Add(3 * time.Second)
	if got := keys.Wait("2001:db8::1"); got != 0 {
		t.Errorf("after one interval the address waits %s", got)
	}
	keys.Failed("2001:db8::1")
	now = now.Add(-time.Hour) // a clock that jumps back frees nobody
	if got := keys.Wait("2001:db8::1"); got <= 0 || got > time.Minute {
		t.Errorf("after a clock jump the address waits %s", got)
	}
	for i := range 10_000 { // the table is bounded: this forgets the first address
		keys.Failed(fmt.Sprintf("10.1.%d.%d", i/256, i%256))
	}
	if got := keys.Wait("2001:db8::1"); got != 0 {
		t.Errorf("after 10,000 other addresses the first waits %s", got)
	}
	for range 25 {
		keys.Failed("::ffff:10.9.9.9")
		keys.Failed("127.0.0.1:80")
		keys.Failed("[::1]:80")
	}
	if a, b := keys.Wait("127.0.0.1:81"), keys.Wait("[::1]:81"); a+b != 0 {
		t.Errorf("loopback waits %s, %s", a, b)
	}
	if keys.Wait("10.9.9.9:1") == 0 {
		t.Error("an IPv4 address in IPv6 clothes is another")
	}
}

func TestKeysConcurrently(t *testing.T) {
	st := &fakeTeams{keys: map[string]hearth.TeamID{}}
	var good []string
	for range 50 {
		key, row := auth.NewKey("t1", "", time.Now())
		st.keys[row.Hash] = "t1"
		good = append(good, key)
	}
	keys := auth.NewKeys(st, time.Now)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 300 {
				remote := fmt.Sprintf("10.%d.%d.%d:1", i, n/250, n%250)
				if _, err := keys.Team(context.Background(), good[n%50]); err != nil {
					t.Error(err)
				}
				if _, err := keys.Team(context.Background(), hearth.NewAPIKey()); err == nil {
					t.Error("a made-up key was accepted")
				}
				keys.Failed(remote)
				keys.Wait(remote)
			}
		})
	}
	wg.Wait()
}

func TestMask(t *testing.T) {
	for key, want := range map[string]string{
		"": "...", "e2b_short": "...", "e2b_0123456789abcdef0123456789abcdef01234567": "e2b_01...4567",
	} {
		if got := auth.Mask(key); got != want {
			t.Errorf("Mask(%q) = %q, want %q", key, got, want)
		}
	}
}
