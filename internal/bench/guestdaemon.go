package bench

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"hearth/client"
	"hearth/internal/bench/daemon"
	"hearth/internal/bench/figure"
)

// This file measures the guest daemon: row 15.

const daemonIdle = 10 * time.Second

// guestDaemon is row 15. In a sandbox the daemon is what started the command that
// looks; process 1, which keeps it, is the same program, and its time counts, too.
func (r *run) guestDaemon(ctx context.Context) ([]figure.Figure, error) {
	size, inside := figure.Mebibytes("guest daemon, its program"), figure.Mebibytes("the same as the sandbox's kernel tells it")
	resident, file := figure.Mebibytes("guest daemon, resident, on this host's kernel"), figure.Mebibytes("of that its program's file")
	anonymous, mapped, err := daemon.Resident(ctx)
	if err != nil {
		return nil, err
	}
	resident.Bytes(anonymous + mapped)
	file.Bytes(mapped)
	cpu := figure.In("%", "guest daemon, CPU while idle")
	err = r.within(ctx, baseTemplate, func(sb *client.Sandbox) error {
		ask := func(line string) (int64, error) {
			res, err := sb.Commands.Run(ctx, line, client.RunOptions{User: "root"})
			if err != nil {
				return 0, err
			}
			return strconv.ParseInt(strings.TrimSpace(res.Stdout), 10, 64)
		}
		for _, q := range []struct {
			line string
			into *figure.Samples
			unit int64
		}{
			{"stat -L -c %s /proc/1/exe", size, 1},
			{"awk '/^VmRSS/{print $2}' /proc/$PPID/status", inside, 1 << 10},
		} {
			n, err := ask(q.line)
			if err != nil {
				return err
			}
			q.into.Bytes(n * q.unit)
		}
		// In one command: starting one costs the daemon time of its own.
		ticks, err := ask(fmt.Sprintf("t() { awk '{n+=$14+$15} END{print n}' /proc/1/stat /proc/$PPID/stat; }; a=$(t); sleep %d; echo $(($(t)-a))", int(daemonIdle.Seconds())))
		cpu.Add(float64(ticks) / daemonIdle.Seconds()) // a tick is a hundredth of a second
		return err
	})
	held := resident.Figure().Against("15", figure.Target{P50: 10})
	held.Reference = append(held.Reference, file.Figure(), inside.Figure())
	return []figure.Figure{
		size.Figure().Against("15", figure.Target{P50: 12}), held, cpu.Figure().Against("15", figure.Target{P50: 0.1}),
	}, err
}
