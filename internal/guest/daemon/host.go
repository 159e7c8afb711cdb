package daemon

import (
	"encoding/json"
	"errors"
	"net/http"

	"golang.org/x/sys/unix"

	"hearth/internal/guest"
	"hearth/internal/guest/files"
	"hearth/internal/guest/process/account"
	"hearth/internal/hearth"
)

// versionHeader tells clients of Init which protocol version this daemon speaks.
const versionHeader = "X-Envd-Version"

// Version is the version of the E2B in-sandbox protocol that the daemon implements.
const Version = "0.6.13"

func (d *Daemon) init(w http.ResponseWriter, r *http.Request) {
	d.state.initMu.Lock()
	defer d.state.initMu.Unlock()
	was := d.state.get()
	if was.control != "" && !was.host(r.Header.Get(guest.ControlHeader)) {
		unauthorized(w, "the control secret is missing or wrong")
		return
	}
	var req guest.InitRequest
	if err := decode(w, r, &req); err != nil {
		files.WriteError(w, http.StatusBadRequest, err.Error())
		return
	}
	if err := check(req); err != nil {
		files.WriteError(w, http.StatusBadRequest, err.Error())
		return
	}
	if d.system != nil {
		for _, err := range d.system.apply(req) {
			d.log.Warn("init: a part of the system could not be set", "err", err)
		}
	}
	next := identity{
		control: req.Control, token: req.Token, id: req.SandboxID,
		session: account.Session{User: req.User, Workdir: req.Workdir, Env: environment(req)},
	}
	if next.session.User == "" {
		next.session.User = "root"
	}
	if was.id != "" && !req.GoesOn {
		// Whoever was connected talked to the machine that this one was started from.
		d.conns.closeOthers(r)
	}
	if d.code != nil {
		if err := d.code.reset(next.session); err != nil {
			d.log.Warn("init: the code interpreter does not start", "err", err)
		}
	}
	d.remember(next)
	if was.wait != nil {
		was.wait.goesOn = req.GoesOn
		close(was.wait.lifted)
	}
	w.Header().Set(versionHeader, Version)
	w.WriteHeader(http.StatusNoContent)
}

func (d *Daemon) quiesce(w http.ResponseWriter, r *http.Request) {
	d.state.initMu.Lock()
	defer d.state.initMu.Unlock()
	now := d.state.get()
	if !now.host(r.Header.Get(guest.ControlHeader)) {
		unauthorized(w, "the control secret is missing or wrong")
		return
	}
	var req guest.QuiesceRequest
	if err := decode(w, r, &req); err != nil {
		files.WriteError(w, http.StatusBadRequest, err.Error())
		return
	}
	now.sealed = true
	if req.Hold && now.wait == nil {
		now.wait = &hold{lifted: make(chan struct{})}
	}
	if req.Forget {
		now = identity{sealed: true, id: now.id, session: account.Session{User: "root"}, wait: now.wait}
		d.conns.closeOthers(r)
	}
	d.remember(now)
	if d.system != nil {
		if req.Forget {
			d.system.forget()
		}
		unix.Sync()
		if req.Forget || idleHeap() > muchIdle {
			d.shrink()
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

// remember makes an identity the daemon's.
func (d *Daemon) remember(i identity) {
	if err := d.state.set(i); err != nil {
		d.log.Error("a daemon after this one will not know whose it is", "err", err)
	}
	d.collect(i.sealed)
}

// decode reads a JSON body of bounded size that holds exactly one value.
func decode(w http.ResponseWriter, r *http.Request, into any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxInit))
	err := dec.Decode(into)
	if tooBig, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return hearth.Errorf(hearth.InvalidArgument, "the body is larger than %d bytes", tooBig.Limit)
	}
	if err != nil {
		return hearth.Errorf(hearth.InvalidArgument, "the body is not the expected JSON: %v", err)
	}
	return nil
}

func (d *Daemon) health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

func (d *Daemon) envs(w http.ResponseWriter, _ *http.Request) {
	env := d.state.session().Env
	if env == nil {
		env = map[string]string{}
	}
	writeJSON(w, env)
}

func (d *Daemon) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, d.meter.read())
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(v)
}
