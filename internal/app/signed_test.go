package app

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/internal/auth"
	"hearth/internal/blob"
	"hearth/internal/control"
	"hearth/internal/edge"
	"hearth/internal/guest"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/store/memstore"
)

// inn is a node whose sandboxes all have the same guest.
type inn struct {
	node.Service
	guest  string // its address
	starts int
}

func (n *inn) Node(hearth.NodeID) (node.Service, error) { return n, nil }

func (n *inn) Statuses() []*hearth.NodeStatus {
	return []*hearth.NodeStatus{{ID: "n1", Drivers: []string{"fake"}, Offers: []string{"fake"}}}
}

func (n *inn) List(context.Context) ([]*node.Instance, error) { return nil, nil }

func (n *inn) Start(_ context.Context, req node.StartRequest) (*node.Instance, error) {
	n.starts++
	return &node.Instance{ID: req.Sandbox.ID, Generation: req.Sandbox.Launch, State: hearth.Running, Driver: req.Driver}, nil
}

func (n *inn) DialSandbox(context.Context, hearth.SandboxID, uint16) (net.Conn, error) {
	return net.Dial("tcp", n.guest)
}

// noShelf has no files of snapshots, and does not mind.
type noShelf struct{}

func (noShelf) Remove(context.Context, hearth.SnapshotID) error { return nil }

func (noShelf) Weigh(context.Context, hearth.SnapshotID, ...hearth.SnapshotID) (int64, int64, error) {
	return 0, 0, nil
}

func (noShelf) Objects(context.Context, []hearth.SnapshotID) (map[hearth.SnapshotID][]blob.Object, error) {
	return nil, nil
}

func (noShelf) Pack(context.Context, []hearth.SnapshotID) error { return nil }

// paused returns a way into two paused sandboxes, of which traffic wakes the first.
func paused(t *testing.T) (traffic http.Handler, n *inn, tokens *auth.Tokens) {
	t.Helper()
	tokens, err := auth.NewTokens(bytes.Repeat([]byte{7}, auth.SeedSize))
	if err != nil {
		t.Fatal(err)
	}
	file := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the file") }))
	t.Cleanup(file.Close)
	n = &inn{guest: file.Listener.Addr().String()}
	db := memstore.New()
	ctx, now := t.Context(), time.Now()
	for _, err := range []error{
		db.CreateTemplate(ctx, &hearth.Template{ID: "tpl", Team: "t1", CreatedAt: now}),
		db.CreateBuild(ctx, &hearth.Build{ID: "b1", Template: "tpl", Status: hearth.BuildWaiting, CreatedAt: now}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for id, wakes := range map[hearth.SandboxID]bool{"iwakes": true, "isleeps": false} {
		snap := hearth.SnapshotID("s" + id)
		for _, err := range []error{
			db.CreateSnapshot(ctx, &hearth.Snapshot{ID: snap, Sandbox: id, Team: "t1", Build: "b1", Driver: "fake", Memory: true}),
			db.CreateSandbox(ctx, &hearth.Sandbox{
				ID: id, Team: "t1", Template: "tpl", Build: "b1", Driver: "fake", State: hearth.Paused, Snapshot: snap, Generation: 1,
				AutoResume: wakes, Timeout: time.Hour,
			}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	a := &App{tokens: tokens, control: control.New(control.Deps{
		Store: db, Nodes: n, Tokens: tokens, Shelf: noShelf{}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})}
	if err := a.control.Reconcile(ctx); err != nil {
		t.Fatal(err)
	}
	g := gateway{a}
	e := edge.New(edge.Config{Domain: "box.test"}, edge.Deps{Resolver: g, Dialer: n, Signed: g, Waker: g})
	t.Cleanup(e.Close)
	return e, n, tokens
}

// TestSignedURLWakes: who has a good signature gets the file of a sandbox that is
// paused, whether the URL names the sandbox or not. What is not good wakes nobody.
func TestSignedURLWakes(t *testing.T) {
	past, future := time.Now().Add(-time.Hour).Unix(), time.Now().Add(time.Hour).Unix()
	const open, named = "127.0.0.1:3000", "49983-iwakes.box.test"
	for _, test := range []struct {
		name, host string
		signer     hearth.SandboxID
		op, path   string
		expires    *int64
		token      string // that is sent with it
		code       int
		want       string
	}{
		{"a good one", open, "iwakes", auth.Read, "/a", nil, "", 200, "the file"},
		{"one with an end", open, "iwakes", auth.Read, "/a", &future, "", 200, "the file"},
		{"by host name", named, "iwakes", auth.Read, "/a", nil, "", 200, "the file"},
		{"of another path", open, "iwakes", auth.Read, "/b", nil, "", 401, "invalid signature"},
		{"for an upload", open, "iwakes", auth.Write, "/a", nil, "", 401, "invalid signature"},
		{"that has ended", open, "iwakes", auth.Read, "/a", &past, "", 401, "signature is already expired"},
		{"of a sandbox that traffic does not wake", open, "isleeps", auth.Read, "/a", nil, "", 401, "invalid signature"},
		{"of nobody", open, "inobody", auth.Read, "/a", nil, "", 401, "invalid signature"},
		{"of another sandbox, by host name", named, "isleeps", auth.Read, "/a", nil, "", 403, "can't be resumed"},
		{"that has ended, by host name", named, "iwakes", auth.Read, "/a", &past, "", 403, "can't be resumed"},
		{"beside a wrong token", named, "iwakes", auth.Read, "/a", nil, "wrong", 403, "can't be resumed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			traffic, n, tokens := paused(t)
			query := url.Values{"path": {"/a"}, "username": {"user"}}
			query.Set("signature", auth.Sign(test.path, test.op, "user", tokens.Access(test.signer), test.expires))
			if test.expires != nil {
				query.Set("signature_expiration", strconv.FormatInt(*test.expires, 10))
			}
			r := httptest.NewRequest("GET", "http://"+test.host+"/files?"+query.Encode(), nil)
			if test.token != "" {
				r.Header.Set(edge.GuestHeader, test.token)
			}
			w := httptest.NewRecorder()
			traffic.ServeHTTP(w, r)
			if w.Code != test.code || !strings.Contains(w.Body.String(), test.want) {
				t.Errorf("%d %s, want %d %s", w.Code, w.Body, test.code, test.want)
			}
			if woken := test.code == 200; (n.starts > 0) != woken {
				t.Errorf("started %d times", n.starts)
			}
		})
	}
}

// TestSignatureOpensFilesAlone: nothing else of the guest, and no other port.
func TestSignatureOpensFilesAlone(t *testing.T) {
	traffic, n, tokens := paused(t)
	signature := url.QueryEscape(auth.Sign("/a", auth.Read, "", tokens.Access("iwakes"), nil))
	r := httptest.NewRequest("GET", "http://"+strconv.Itoa(guest.Port)+"-iwakes.box.test/metrics?path=/a&signature="+signature, nil)
	w := httptest.NewRecorder()
	traffic.ServeHTTP(w, r)
	if w.Code != http.StatusForbidden || n.starts != 0 {
		t.Errorf("%d %s, started %d times", w.Code, w.Body, n.starts)
	}
}
