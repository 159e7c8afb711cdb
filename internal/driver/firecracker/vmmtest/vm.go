package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
)

// The bodies of calls, with every field that is known; others are refused.
type (
	bucket struct {
		Size         *int64 `json:"size"`
		OneTimeBurst int64  `json:"one_time_burst"`
		RefillTime   *int64 `json:"refill_time"`
	}
	limiter struct {
		Bandwidth *bucket `json:"bandwidth"`
		Ops       *bucket `json:"ops"`
	}
	bootSource struct {
		KernelImagePath string `json:"kernel_image_path"`
		InitrdPath      string `json:"initrd_path"`
		BootArgs        string `json:"boot_args"`
	}
	drive struct {
		DriveID      string   `json:"drive_id"`
		PartUUID     string   `json:"partuuid"`
		IsRootDevice *bool    `json:"is_root_device"`
		CacheType    string   `json:"cache_type"`
		IsReadOnly   bool     `json:"is_read_only"`
		PathOnHost   string   `json:"path_on_host"`
		RateLimiter  *limiter `json:"rate_limiter"`
		IOEngine     string   `json:"io_engine"`
		Socket       string   `json:"socket"`
	}
	netIface struct {
		IfaceID       string   `json:"iface_id"`
		HostDevName   string   `json:"host_dev_name"`
		GuestMAC      string   `json:"guest_mac"`
		RxRateLimiter *limiter `json:"rx_rate_limiter"`
		TxRateLimiter *limiter `json:"tx_rate_limiter"`
	}
	vsock struct {
		VsockID  string `json:"vsock_id"`
		GuestCID uint32 `json:"guest_cid"`
		UDSPath  string `json:"uds_path"`
	}
	machineConfig struct {
		VCPUCount       int    `json:"vcpu_count"`
		MemSizeMiB      int    `json:"mem_size_mib"`
		SMT             bool   `json:"smt"`
		TrackDirtyPages bool   `json:"track_dirty_pages"`
		HugePages       string `json:"huge_pages"`
		CPUTemplate     string `json:"cpu_template"`
	}
	balloon struct {
		AmountMiB             *int  `json:"amount_mib"`
		DeflateOnOOM          *bool `json:"deflate_on_oom"`
		StatsPollingIntervalS int   `json:"stats_polling_interval_s"`
		FreePageHinting       bool  `json:"free_page_hinting"`
		FreePageReporting     bool  `json:"free_page_reporting"`
	}
	entropy struct {
		RateLimiter *limiter `json:"rate_limiter"`
	}
	serial struct {
		SerialOutPath string `json:"serial_out_path"`
	}
	action struct {
		ActionType string `json:"action_type"`
	}
	stateChange struct {
		State string `json:"state"`
	}
	snapshotCreate struct {
		SnapshotType string `json:"snapshot_type"`
		SnapshotPath string `json:"snapshot_path"`
		MemFilePath  string `json:"mem_file_path"`
	}
	memBackend struct {
		BackendType string `json:"backend_type"`
		BackendPath string `json:"backend_path"`
	}
	netOverride struct {
		IfaceID     string `json:"iface_id"`
		HostDevName string `json:"host_dev_name"`
	}
	vsockOverride struct {
		UDSPath string `json:"uds_path"`
	}
	snapshotLoad struct {
		SnapshotPath        string         `json:"snapshot_path"`
		MemFilePath         string         `json:"mem_file_path"`
		MemBackend          *memBackend    `json:"mem_backend"`
		EnableDiffSnapshots bool           `json:"enable_diff_snapshots"`
		TrackDirtyPages     bool           `json:"track_dirty_pages"`
		ResumeVM            bool           `json:"resume_vm"`
		NetworkOverrides    []netOverride  `json:"network_overrides"`
		VsockOverride       *vsockOverride `json:"vsock_override"`
		ClockRealtime       bool           `json:"clock_realtime"`
	}
)

// The states, as the API names them.
const (
	notStarted = "Not started"
	running    = "Running"
	paused     = "Paused"
)

// config is what a machine is made of, and what a snapshot keeps of it.
type config struct {
	Machine machineConfig
	CPU     json.RawMessage
	Boot    bootSource
	Drives  []drive
	Nets    []netIface
	Vsock   *vsock
	Balloon *balloon
	Entropy bool
}

type vm struct {
	id     string
	script script
	log    callLog
	ended  chan int

	mu      sync.Mutex
	state   string
	cfg     config
	touched bool // something was configured, so no snapshot can be loaded
	ram     *memory
	guest   *guest
	gateMu  sync.Mutex
	gate    chan struct{} // closed while the vCPUs run
}

func newVM(id string, s script) *vm {
	v := &vm{id: id, script: s, ended: make(chan int, 8), state: notStarted, gate: make(chan struct{})}
	close(v.gate)
	v.cfg.Machine = machineConfig{VCPUCount: 1, MemSizeMiB: 128}
	return v
}

// pass waits while the vCPUs are stopped.
func (v *vm) pass() {
	v.gateMu.Lock()
	gate := v.gate
	v.gateMu.Unlock()
	<-gate
}

func (v *vm) stopVCPUs() {
	v.gateMu.Lock()
	defer v.gateMu.Unlock()
	select {
	case <-v.gate:
		v.gate = make(chan struct{})
	default:
	}
}

func (v *vm) letVCPUsGo() {
	v.gateMu.Lock()
	defer v.gateMu.Unlock()
	select {
	case <-v.gate:
	default:
		close(v.gate)
	}
}

var errAfterStart = refused("The requested operation is not supported after starting the microVM.")

// boot is InstanceStart.
func (v *vm) boot() error {
	switch {
	case v.state != notStarted:
		return errAfterStart
	case v.cfg.Boot.KernelImagePath == "":
		return refused("Cannot start microvm without kernel configuration.")
	}
	ram, err := newMemory(v.cfg.Machine.MemSizeMiB)
	if err != nil {
		return err
	}
	v.ram = ram
	return v.run(false)
}

// run begins the guest's life, in the state v.state becomes.
func (v *vm) run(restored bool) error {
	g, err := newGuest(v, restored)
	if err != nil {
		return err
	}
	v.guest, v.state = g, running
	if restored {
		v.state = paused
		v.stopVCPUs()
	} else {
		fmt.Println("Linux version of no processor: booting")
	}
	if _, yes := v.script[panickyGuest]; yes && !restored {
		fmt.Println("Kernel panic - not syncing: as it was told to")
		v.ended <- 0
		return nil
	}
	if v.cfg.Vsock != nil {
		return g.listen(v.cfg.Vsock.UDSPath)
	}
	return nil
}

func mustRead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}
