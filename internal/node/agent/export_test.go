package agent

// Drop stops the agent as the death of its process would: what it was doing is
// neither finished nor undone.
func (a *Agent) Drop() {
	a.mu.Lock()
	a.state = closed
	a.mu.Unlock()
	a.end(errClosed())
}

// Settle waits until the machines are gone that are closed behind an answer.
func (a *Agent) Settle() { a.endings.Wait() }
