package drivertest

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/internal/driver"
)

// clonesDraw: what two machines of one checkpoint, and the one that it was taken
// of, draw from any source of randomness is their own.
func clonesDraw(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).get(t, "/random") // so that every generator is seeded, and has numbers left over
	c := take(t, m)
	a, b := restore(t, env, c), restore(t, env, c)
	ok(t, "Thaw", m.Thaw(t.Context()))
	seen, sources := map[string]string{}, map[string]bool{}
	for name, guest := range map[string]driver.Machine{"the parent": m, "a clone": a, "the other clone": b} {
		for range 2 {
			for line := range strings.Lines(Open(guest).get(t, "/random")) {
				source, drawn, _ := strings.Cut(strings.TrimSpace(line), "\t")
				if len(drawn) != 64 {
					t.Fatalf("%s: %s gives %q", name, source, drawn)
				}
				if who, again := seen[drawn]; again {
					t.Errorf("%s and %s drew the same %s from %s", name, who, drawn, source)
				}
				seen[drawn] = name
				sources[source] = true
			}
		}
	}
	if !sources["python uuid4"] || !sources["python secrets"] {
		t.Log("the host has no Python that the guest could run, so there was none that drew")
	}
}

// lostWrites: what was written before the n-th checkpoint, to memory and to disk,
// is there after the n-th restore and every later one.
func lostWrites(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	for n := range env.Generations {
		name := strconv.Itoa(n)
		Open(m).post(t, "/file", "path", "/root/"+name, "value", name)
		Open(m).post(t, "/memory", "key", name, "value", name)
		c := take(t, m)
		closeNow(t, m)
		m = restore(t, env, c)
		for k := range n + 1 {
			name := strconv.Itoa(k)
			if got := Open(m).get(t, "/file", "path", "/root/"+name); got != name {
				t.Errorf("file %s after restore %d: %q", name, n+1, got)
			}
			if got := Open(m).get(t, "/memory", "key", name); got != name {
				t.Errorf("memory %s after restore %d: %q", name, n+1, got)
			}
		}
	}
}

// lostFiles: what was written is there after the first and every later boot from
// a checkpoint of the files, and memory is not.
func lostFiles(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).post(t, "/memory", "key", "k", "value", "lost")
	for n := range env.Boots {
		name := fmt.Sprintf("/root/written-%d", n)
		Open(m).post(t, "/file", "path", name, "value", name)
		ok(t, "Freeze", m.Freeze(t.Context()))
		c, err := m.(driver.FileKeeper).CheckpointFiles(t.Context(), t.TempDir())
		ok(t, "CheckpointFiles", err)
		if !c.FilesOnly || len(c.Files) == 0 || c.Key == "" {
			t.Fatalf("checkpoint %+v is not complete", c)
		}
		ok(t, "Thaw", m.Thaw(t.Context()))
		Open(m).number(t, "/ticks")
		closeNow(t, m)
		m = restore(t, env, c)
		for k := range n + 1 {
			name := fmt.Sprintf("/root/written-%d", k)
			if got := Open(m).get(t, "/file", "path", name); got != name {
				t.Errorf("%s after boot %d: %q", name, n+1, got)
			}
		}
		if got := Open(m).get(t, "/memory", "key", "k"); got == "lost" {
			t.Errorf("memory outlived a checkpoint of the files: %q", got)
		}
	}
}

// identity: a machine has the name and the address of its own spec, restored or not.
func identity(t *testing.T, env Env) {
	spec := env.Spec(t)
	m := start(t, env.Driver(t), spec)
	wantIdentity(t, m, spec)
	c := take(t, m)
	for range 2 {
		spec := env.Spec(t)
		spec.From = c
		wantIdentity(t, start(t, env.Driver(t), spec), spec)
	}
}

func wantIdentity(t *testing.T, m driver.Machine, spec driver.Spec) {
	t.Helper()
	is := Open(m).get(t, "/identity")
	lines := strings.Split(is, "\n")
	if lines[0] != spec.Hostname {
		t.Errorf("the machine is called %q, want %q", lines[0], spec.Hostname)
	}
	if spec.Net.NetNS == "" {
		return
	}
	for _, line := range lines[1:] {
		if strings.Count(line, ".") == 3 && line != spec.Net.Guest.String() {
			t.Errorf("the machine has the address %s, want %s alone", line, spec.Net.Guest)
		}
	}
	if !strings.Contains(is, spec.Net.Guest.String()) {
		t.Errorf("the machine has not the address %s:\n%s", spec.Net.Guest, is)
	}
	if mac := spec.Net.MAC.String(); mac != "" && !strings.Contains(is, mac) {
		t.Errorf("the machine's card is not %s:\n%s", mac, is)
	}
}

// staleConnections: a restored machine's connections to the outside, and those that
// came from there, end at once, for those who wait for an answer, too; those within
// it live on, and so do the ones of the machine that the checkpoint was taken of.
func staleConnections(t *testing.T, env Env) {
	spec := env.Spec(t)
	l := outside(t, env, spec)
	m := start(t, env.Driver(t), spec)
	g := Open(m)
	g.post(t, "/connect", "name", "out", "address", l.Addr().String())
	peer, err := l.Accept()
	ok(t, "Accept", err)
	defer peer.Close()
	go func() { _, _ = io.Copy(peer, peer) }()
	g.post(t, "/loop", "name", "loop")
	if got := g.get(t, "/say", "name", "loop", "line", "before"); got != "before" {
		t.Fatalf("the loopback says %q", got)
	}
	if got := g.get(t, "/say", "name", "out", "line", "before"); got != "before" {
		t.Fatalf("the outside says %q", got)
	}
	hold(t, m, "in") // open until the end: what its host closes before the checkpoint is no connection of another life

	c := take(t, m)
	ok(t, "Thaw", m.Thaw(t.Context()))
	if got := g.get(t, "/say", "name", "out", "line", "thawed"); got != "thawed" {
		t.Errorf("the connection of the machine that goes on says %q", got)
	}
	clone := Open(restore(t, env, c))
	for _, name := range []string{"out", "in"} {
		if got := clone.get(t, "/ended", "name", name); got != "reset" && (got != "eof" || !env.EndsQuietly) {
			t.Errorf("whoever reads from the connection %q of the life before gets: %s; want a reset", name, got)
		}
	}
	if got := clone.get(t, "/say", "name", "loop", "line", "after"); got != "after" {
		t.Errorf("the loopback says %q after the restore", got)
	}
	if got := g.get(t, "/say", "name", "out", "line", "still"); got != "still" {
		t.Errorf("the connection of the machine that goes on says %q after a restore", got)
	}
}

// hold opens a connection into a machine, which the guest keeps under a name.
func hold(t *testing.T, m driver.Machine, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := dialListening(ctx, m)
	ok(t, "Dial", err)
	t.Cleanup(func() { _ = conn.Close() })
	ok(t, "SetDeadline", conn.SetDeadline(time.Now().Add(patience)))
	_, err = fmt.Fprintf(conn, "GET /hold?name=%s HTTP/1.1\r\nHost: guest\r\n\r\n", name)
	ok(t, "Write", err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	ok(t, "the answer's head", err)
	_, err = io.ReadAll(resp.Body)
	ok(t, "the answer", err)
}

// outside returns a listener that a machine of the spec can reach.
func outside(t *testing.T, env Env, spec driver.Spec) net.Listener {
	t.Helper()
	if env.Outside == nil {
		t.Skip("machines have no network here")
	}
	l := env.Outside(t, spec)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// justIssued: a restored machine believes a certificate of this second, before the
// second is over.
func justIssued(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	c := take(t, m)
	closeNow(t, m)
	<-time.After(2100 * time.Millisecond) // so that it is not valid yet by a clock that stood still
	spec := env.Spec(t)
	spec.From = c
	l := outside(t, env, spec)
	clone := start(t, env.Driver(t), spec)
	cert := issue(t)
	issued := time.Now()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(patience))
			_ = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}}).Handshake()
			_ = conn.Close()
		}
	}()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	for { // the guest's clock may be behind by a second
		asked := time.Now()
		got := Open(clone).get(t, "/trust", "address", l.Addr().String(), "pem", string(text))
		if got == "trusted" {
			return
		}
		if asked.Sub(issued) > time.Second {
			t.Fatalf("a certificate of this second: %s", got)
		}
	}
}

// issue makes a certificate that is valid from now on.
func issue(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ok(t, "GenerateKey", err)
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "outside"}, DNSNames: []string{"outside"},
		NotBefore: now, NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	raw, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	ok(t, "CreateCertificate", err)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}
}
