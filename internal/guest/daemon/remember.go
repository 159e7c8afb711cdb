package daemon

import (
	"encoding/json"

	"hearth/internal/guest/process/account"
)

// Memory outlives this process, so that a daemon that was killed is the same to its
// users when it has been started again.
type Memory interface {
	// Save replaces what is kept. After an error nothing is.
	Save([]byte) error
	// Load returns what was saved last; nil: nothing.
	Load() ([]byte, error)
	// Forget removes what is kept.
	Forget() error
}

// kept is an identity as it is saved, in JSON.
type kept struct {
	Sealed  bool            `json:"sealed"`
	Control string          `json:"control"`
	Token   string          `json:"token"`
	ID      string          `json:"id"`
	Session account.Session `json:"session"`
}

// keep saves the identity. One that nobody has claimed is not worth it.
func (i identity) keep(m Memory) error {
	if m == nil {
		return nil
	}
	if i.control == "" {
		return m.Forget()
	}
	raw, err := json.Marshal(kept{Sealed: i.sealed, Control: i.control, Token: i.token, ID: i.id, Session: i.session})
	if err != nil {
		return err // strings: cannot be
	}
	return m.Save(raw)
}

// recall takes the identity of the daemon before this one, if there was one that
// somebody had claimed. Requests that a seal held back ended with that daemon.
func (d *Daemon) recall() {
	if d.state.memory == nil {
		return
	}
	raw, err := d.state.memory.Load()
	if err != nil || raw == nil {
		if err != nil {
			d.log.Error("what the daemon before knew is lost", "err", err)
		}
		return
	}
	var k kept
	if err := json.Unmarshal(raw, &k); err != nil || k.Control == "" {
		d.log.Error("what the daemon before knew cannot be read", "err", err)
		return
	}
	d.state.now = identity{sealed: k.Sealed, control: k.Control, token: k.Token, id: k.ID, session: k.Session}
	if d.system != nil {
		d.system.name, d.system.template = k.ID, k.Session.Env[templateVariable]
	}
	if d.code != nil {
		if err := d.code.reset(k.Session); err != nil {
			d.log.Warn("the code interpreter does not start", "err", err)
		}
	}
}
