package process

import (
	"fmt"
	"syscall"

	"hearth/internal/gen/guestv1"
)

func startEvent(pid uint32) *guestv1.ProcessEvent {
	return &guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Start{Start: &guestv1.ProcessEvent_StartEvent{Pid: pid}}}
}

func keepaliveEvent() *guestv1.ProcessEvent {
	return &guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Keepalive{Keepalive: &guestv1.ProcessEvent_KeepAlive{}}}
}

func stdoutEvent(b []byte) *guestv1.ProcessEvent {
	return dataEvent(&guestv1.ProcessEvent_DataEvent{Output: &guestv1.ProcessEvent_DataEvent_Stdout{Stdout: b}})
}

func stderrEvent(b []byte) *guestv1.ProcessEvent {
	return dataEvent(&guestv1.ProcessEvent_DataEvent{Output: &guestv1.ProcessEvent_DataEvent_Stderr{Stderr: b}})
}

func ptyEvent(b []byte) *guestv1.ProcessEvent {
	return dataEvent(&guestv1.ProcessEvent_DataEvent{Output: &guestv1.ProcessEvent_DataEvent_Pty{Pty: b}})
}

func dataEvent(d *guestv1.ProcessEvent_DataEvent) *guestv1.ProcessEvent {
	return &guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_Data{Data: d}}
}

func wrapEnd(e *guestv1.ProcessEvent_EndEvent) *guestv1.ProcessEvent {
	return &guestv1.ProcessEvent{Event: &guestv1.ProcessEvent_End{End: e}}
}

// endEvent words a wait status as Go's os.ProcessState would.
func endEvent(ws syscall.WaitStatus) *guestv1.ProcessEvent_EndEvent {
	e := &guestv1.ProcessEvent_EndEvent{ExitCode: int32(ws.ExitStatus()), Exited: ws.Exited()}
	switch {
	case ws.Exited():
		e.Status = fmt.Sprintf("exit status %d", ws.ExitStatus())
	case ws.Signaled():
		e.ExitCode = -1
		e.Status = "signal: " + ws.Signal().String()
		if ws.CoreDump() {
			e.Status += " (core dumped)"
		}
	}
	if e.ExitCode != 0 {
		e.Error = &e.Status
	}
	return e
}
