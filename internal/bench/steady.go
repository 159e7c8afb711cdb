package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os/exec"
	"time"

	"hearth/client"
	"hearth/internal/bench/copier"
	"hearth/internal/bench/figure"
	"hearth/internal/guest"
)

// This file measures what happens in a sandbox that runs: rows 7, 13, 14.

// within makes a sandbox for as long as work takes.
func (r *run) within(ctx context.Context, template string, work func(*client.Sandbox) error) error {
	sb, err := r.create(ctx, template)
	if err != nil {
		return err
	}
	defer r.kill(ctx, sb)
	return work(sb)
}

// runTrue is row 7.
func (r *run) runTrue(ctx context.Context) ([]figure.Figure, error) {
	ours := figure.Milliseconds("commands.run('true') in a running sandbox, API to exit code")
	ref := figure.Milliseconds("bash -l -c true on the host")
	err := r.within(ctx, baseTemplate, func(sb *client.Sandbox) error {
		return r.times(ctx, r.opts.Runs+warmups, func(ctx context.Context, i int) error {
			began := time.Now()
			res, err := sb.Commands.Run(ctx, "true", client.RunOptions{})
			took := time.Since(began)
			if err != nil || res.ExitCode != 0 {
				return errors.Join(err, errUnexpected)
			}
			began = time.Now()
			if err := exec.CommandContext(ctx, "bash", "-l", "-c", "true").Run(); err != nil {
				return err
			}
			if i >= warmups {
				ours.Took(took)
				ref.Took(time.Since(began))
			}
			return nil
		})
	})
	return []figure.Figure{ours.Figure().Against("7", figure.Target{P50: 30}, ref.Figure())}, err
}

// address is where a sandbox's guest daemon listens, which only root of its host
// can reach.
func (r *run) address(sb *client.Sandbox) (string, error) {
	m, err := r.server.of(sb.ID)
	if err != nil {
		return "", err
	}
	var state struct{ Net struct{ Guest netip.Prefix } }
	if err := json.Unmarshal(m.Handle.State, &state); err != nil || !state.Net.Guest.IsValid() {
		return "", errors.Join(err, errors.New("the sandbox's driver does not say its address"))
	}
	return netip.AddrPortFrom(state.Net.Guest.Addr(), guest.Port).String(), nil
}

// straight returns the sandbox as seen by a client that connects to the guest's
// own address instead of the edge.
func (r *run) straight(ctx context.Context, sb *client.Sandbox) (*client.Sandbox, error) {
	at, err := r.address(sb)
	if err != nil {
		return nil, err
	}
	return r.through(ctx, sb, at)
}

// through returns the sandbox as seen by a client of a given address.
func (r *run) through(ctx context.Context, sb *client.Sandbox, address string) (*client.Sandbox, error) {
	c, err := client.New(client.Options{APIKey: r.server.key, APIURL: r.server.url, SandboxURL: "http://" + address})
	if err != nil {
		return nil, err
	}
	return c.Connect(ctx, sb.ID, life)
}

const bulk = 100 << 20 // bytes of a transfer

// transfers is row 13.
func (r *run) transfers(ctx context.Context) ([]figure.Figure, error) {
	up, upRef := figure.In("MB/s", "upload of 100 MB through the edge"), figure.In("MB/s", "the same straight into the sandbox")
	down, downRef := figure.In("MB/s", "download of 100 MB through the edge"), figure.In("MB/s", "the same straight from the sandbox")
	content := bytes.Repeat([]byte("hearth: "), bulk/8)
	rate := func(s *figure.Samples, d time.Duration) { s.Add(bulk / 1e6 / d.Seconds()) }
	err := r.within(ctx, baseTemplate, func(edge *client.Sandbox) error {
		direct, err := r.straight(ctx, edge)
		if err != nil {
			return err
		}
		ways := []struct {
			sb       *client.Sandbox
			up, down *figure.Samples
		}{{edge, up, down}, {direct, upRef, downRef}}
		return r.times(ctx, r.opts.Runs+1, func(ctx context.Context, i int) error {
			for w := range ways {
				way := ways[(i+w)%len(ways)] // each goes first as often as the other
				began := time.Now()
				if _, err := way.sb.Files.Write(ctx, "/home/user/bulk", bytes.NewReader(content)); err != nil {
					return err
				}
				wrote := time.Since(began)
				began = time.Now()
				if err := drain(ctx, way.sb); err != nil {
					return err
				}
				if i > 0 {
					rate(way.up, wrote)
					rate(way.down, time.Since(began))
				}
			}
			return nil
		})
	})
	t := figure.Target{Times: 0.9}
	return []figure.Figure{up.Figure().Against("13", t, upRef.Figure()), down.Figure().Against("13", t, downRef.Figure())}, err
}

func drain(ctx context.Context, sb *client.Sandbox) error {
	f, err := sb.Files.Open(ctx, "/home/user/bulk")
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(io.Discard, f)
	if err == nil && n != bulk {
		err = fmt.Errorf("%d bytes: %w", n, errUnexpected)
	}
	return err
}

// edgeLatency is row 14.
func (r *run) edgeLatency(ctx context.Context) ([]figure.Figure, error) {
	const requests = 1000
	extra := figure.Milliseconds("what the edge adds to a request over a kept connection")
	relayed := figure.Milliseconds("what a process adds that only copies the bytes")
	whole := []*figure.Samples{figure.Milliseconds("request through the edge"), figure.Milliseconds("request through that process"),
		figure.Milliseconds("request straight to the sandbox")}
	err := r.within(ctx, baseTemplate, func(edge *client.Sandbox) error {
		guests, err := r.address(edge)
		if err != nil {
			return err
		}
		relays, stop, err := copier.Start(ctx, guests)
		if err != nil {
			return err
		}
		defer stop()
		ways := []*client.Sandbox{edge, nil, nil}
		for i, at := range []string{relays, guests} {
			if ways[i+1], err = r.through(ctx, edge, at); err != nil {
				return err
			}
		}
		return r.times(ctx, requests+warmups, func(ctx context.Context, i int) error {
			var took [3]time.Duration
			for first := range ways {
				w := (i + first) % len(ways) // each goes first as often as the others
				began := time.Now()
				if err := ping(ctx, ways[w]); err != nil {
					return err
				}
				took[w] = time.Since(began)
			}
			if i >= warmups {
				extra.Took(took[0] - took[2])
				relayed.Took(took[1] - took[2])
				for w, s := range whole {
					s.Took(took[w])
				}
			}
			return nil
		})
	})
	f := extra.Figure().Against("14", figure.Target{P50: 0.15}, relayed.Figure())
	for _, s := range whole {
		f.Reference = append(f.Reference, s.Figure())
	}
	f.Note = "all ways in turn; the figures are the differences within a turn"
	return []figure.Figure{f}, err
}

// ping asks the daemon whether it is well and reads the whole answer, so that
// the connection is used again.
func ping(ctx context.Context, sb *client.Sandbox) error {
	resp, err := sb.Request(ctx, http.MethodGet, guest.Port, "/health", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
