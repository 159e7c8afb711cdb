package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const maxBody = 51200 // the real one's default

// serveAPI answers calls, one after the other, until the process ends.
func (v *vm) serveAPI(socket string) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		v.ended <- 1
		return
	}
	_ = http.Serve(l, http.HandlerFunc(v.serve))
}

func (v *vm) serve(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	call := r.Method + " " + r.URL.Path
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil || len(body) > maxBody || r.ContentLength < 0 {
		refuseWith(w, "HTTP content length, or body, is not acceptable")
		return
	}
	v.log.add(call, body)
	if v.misbehave(w, call, dieBefore) {
		return
	}
	answer, err := v.call(r.Method, r.URL.Path, body)
	if v.misbehave(w, call, dieAfter) {
		return
	}
	w.Header().Set("Server", "Firecracker API")
	switch {
	case err != nil:
		refuseWith(w, err.Error())
	case answer != nil:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func refuseWith(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": text})
}

// fault is what the API answers with when it refuses a request.
type fault string

func (f fault) Error() string { return string(f) }

// refused is an error in the words of the API, which a client may show as they are.
func refused(format string, args ...any) error { return fault(fmt.Sprintf(format, args...)) }

// misbehave does what the script says for a call, at one of two moments.
func (v *vm) misbehave(w http.ResponseWriter, call, moment string) bool {
	switch what := v.script[call]; {
	case what == moment:
		os.Exit(1)
	case moment == dieAfter || what == "" || what == dieAfter:
		return false
	case what == hang:
		select {}
	case what == garbage:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("\x00\xff{{{"))
	case what == redirect:
		w.Header().Set("Location", "http://firecracker/elsewhere")
		w.WriteHeader(http.StatusTemporaryRedirect)
	case what == flood:
		w.Header().Set("Content-Type", "application/json")
		for range 1 << 10 {
			if _, err := w.Write(bytes.Repeat([]byte{' '}, 1<<20)); err != nil {
				break
			}
		}
	case what == refuse:
		refuseWith(w, "told to refuse, "+strings.Repeat("at length, ", 1000)+"\x1b[31m")
	}
	return true
}

// decode reads a body strictly.
func decode[T any](body []byte) (T, error) {
	var t T
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return t, refused("An error occurred when deserializing the json body of a request: %v.", err)
	}
	return t, nil
}

// with decodes a body and hands it on.
func with[T any](body []byte, do func(T) error) error {
	t, err := decode[T](body)
	if err != nil {
		return err
	}
	return do(t)
}

func (v *vm) call(method, path string, body []byte) (any, error) {
	switch method + " " + path {
	case "GET /":
		return map[string]string{"id": v.id, "state": v.state, "vmm_version": version, "app_name": "Firecracker"}, nil
	case "GET /version":
		return map[string]string{"firecracker_version": version}, nil
	case "GET /balloon/statistics":
		if v.state == notStarted || v.cfg.Balloon == nil {
			return nil, refused("The requested operation is not supported")
		}
		return map[string]any{"target_pages": 0, "actual_pages": 0, "target_mib": 0, "actual_mib": 0, "free_memory": 1 << 20}, nil
	case "PUT /actions":
		return nil, with(body, v.act)
	case "PATCH /vm":
		return nil, with(body, v.change)
	case "PUT /snapshot/create":
		return nil, with(body, v.createSnapshot)
	case "PUT /snapshot/load":
		return nil, with(body, v.loadSnapshot)
	case "PATCH /balloon":
		return nil, with(body, v.inflate)
	}
	if method != http.MethodPut {
		return nil, refused("Invalid request method and/or path: %s %s.", method, path)
	}
	if v.state != notStarted {
		return nil, errAfterStart
	}
	v.touched = true
	return nil, v.configure(path, body)
}

// configure is every PUT before the start.
func (v *vm) configure(path string, body []byte) error {
	switch {
	case path == "/machine-config":
		return with(body, v.setMachine)
	case path == "/cpu-config":
		v.cfg.CPU = body
		return nil
	case path == "/boot-source":
		return with(body, v.setBoot)
	case strings.HasPrefix(path, "/drives/"):
		return with(body, func(d drive) error { return v.addDrive(strings.TrimPrefix(path, "/drives/"), d) })
	case strings.HasPrefix(path, "/network-interfaces/"):
		return with(body, func(n netIface) error { return v.addNet(strings.TrimPrefix(path, "/network-interfaces/"), n) })
	case path == "/vsock":
		return with(body, func(s vsock) error {
			if s.GuestCID < 3 || s.UDSPath == "" {
				return errors.New("guest_cid or uds_path")
			}
			v.cfg.Vsock = &s
			return nil
		})
	case path == "/balloon":
		return with(body, func(b balloon) error {
			if b.AmountMiB == nil || b.DeflateOnOOM == nil {
				return errors.New("missing field `amount_mib` or `deflate_on_oom`")
			}
			v.cfg.Balloon = &b
			return nil
		})
	case path == "/entropy":
		return with(body, func(entropy) error { v.cfg.Entropy = true; return nil })
	case path == "/serial":
		return with(body, func(serial) error { return nil })
	}
	return refused("Invalid request method and/or path: PUT %s.", path)
}

func (v *vm) setMachine(m machineConfig) error {
	switch {
	case m.VCPUCount < 1 || m.VCPUCount > 32:
		return refused("The vCPU number is invalid! The vCPU number can only be 1 or an even number when SMT is enabled.")
	case m.MemSizeMiB < 1:
		return refused("The memory size (MiB) is invalid.")
	case m.HugePages != "" && m.HugePages != "None" && m.HugePages != "2M":
		return errors.New("unknown variant")
	}
	v.cfg.Machine = m
	return nil
}

func (v *vm) setBoot(b bootSource) error {
	kernel, err := os.ReadFile(b.KernelImagePath)
	if err != nil {
		return refused("The kernel file cannot be opened: %v", err)
	}
	if !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		return refused("Cannot load kernel due to invalid memory configuration or invalid kernel image: invalid Elf magic number")
	}
	if b.InitrdPath != "" {
		if err := mustRead(b.InitrdPath); err != nil {
			return refused("The initrd file cannot be opened: %v", err)
		}
	}
	if len(b.BootArgs) > 2048 {
		return refused("The kernel command line is invalid: Inserting string would make command line too long.")
	}
	v.cfg.Boot = b
	return nil
}

func (v *vm) addDrive(id string, d drive) error {
	switch {
	case d.DriveID != id:
		return refused("The id from the path does not match the id from the body!")
	case d.IsRootDevice == nil || d.PathOnHost == "":
		return errors.New("missing field `is_root_device` or `path_on_host`")
	case strings.ContainsFunc(id, func(r rune) bool { return r != '_' && (r < '0' || r > '9' && r < 'A' || r > 'Z' && r < 'a' || r > 'z') }):
		return refused("API Resource IDs can only contain alphanumeric characters and underscores.")
	}
	flags := os.O_RDWR
	if d.IsReadOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(d.PathOnHost, flags, 0)
	if err != nil {
		return refused("Unable to create the block device: %v", err)
	}
	_ = f.Close()
	if err := d.RateLimiter.check(); err != nil {
		return err
	}
	v.cfg.Drives = append(v.cfg.Drives, d)
	return nil
}

func (l *limiter) check() error {
	if l == nil {
		return nil
	}
	for _, b := range []*bucket{l.Bandwidth, l.Ops} {
		if b != nil && (b.Size == nil || b.RefillTime == nil) {
			return errors.New("missing field `size` or `refill_time`")
		}
	}
	return nil
}

func (v *vm) addNet(id string, n netIface) error {
	if n.IfaceID != id || n.HostDevName == "" {
		return errors.New("iface_id or host_dev_name")
	}
	if _, err := net.ParseMAC(n.GuestMAC); n.GuestMAC != "" && err != nil {
		return err
	}
	if err := openTap(n.HostDevName); err != nil {
		return err
	}
	if err := errors.Join(n.RxRateLimiter.check(), n.TxRateLimiter.check()); err != nil {
		return err
	}
	v.cfg.Nets = append(v.cfg.Nets, n)
	return nil
}

// openTap takes a tap of the process's network namespace, and keeps it.
func openTap(name string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return refused("Open tap device failed: %v", err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return refused("Open tap device failed: Error while creating ifreq structure: %v", err)
	}
	return nil
}

func (v *vm) act(a action) error {
	if a.ActionType != "InstanceStart" {
		return fmt.Errorf("unknown variant `%s`", a.ActionType)
	}
	return v.boot()
}

func (v *vm) change(s stateChange) error {
	if v.state == notStarted {
		return refused("The requested operation is not supported before starting the microVM.")
	}
	switch s.State {
	case "Paused":
		v.stopVCPUs()
		v.state = paused
	case "Resumed":
		v.state = running
		v.letVCPUsGo()
	default:
		return fmt.Errorf("unknown variant `%s`, expected `Paused` or `Resumed`", s.State)
	}
	return nil
}

func (v *vm) inflate(b struct {
	AmountMiB *int `json:"amount_mib"`
}) error {
	if b.AmountMiB == nil || v.cfg.Balloon == nil || v.state == notStarted {
		return errors.New("balloon")
	}
	v.cfg.Balloon.AmountMiB = b.AmountMiB
	return nil
}
