package vmm

import "encoding/json"

// The requests and replies, named as in Firecracker's API description. Optional
// fields are left out when they are zero. Sizes are bytes unless a name says
// otherwise, times milliseconds.

// BootSource is what a guest boots.
type BootSource struct {
	KernelImagePath string `json:"kernel_image_path"`
	InitrdPath      string `json:"initrd_path,omitempty"`
	BootArgs        string `json:"boot_args,omitempty"`
}

// TokenBucket lets Size tokens through per RefillTime; OneTimeBurst more, once.
type TokenBucket struct {
	Size         int64 `json:"size"`
	OneTimeBurst int64 `json:"one_time_burst,omitempty"`
	RefillTime   int64 `json:"refill_time"`
}

// RateLimiter bounds a device by bytes and by operations; nil bounds neither.
type RateLimiter struct {
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"`
	Ops       *TokenBucket `json:"ops,omitempty"`
}

// Drive is a block device backed by a file.
type Drive struct {
	DriveID      string       `json:"drive_id"`
	PathOnHost   string       `json:"path_on_host"`
	IsRootDevice bool         `json:"is_root_device"`
	IsReadOnly   bool         `json:"is_read_only"`
	CacheType    string       `json:"cache_type,omitempty"` // Unsafe or Writeback
	IOEngine     string       `json:"io_engine,omitempty"`  // Sync or Async
	RateLimiter  *RateLimiter `json:"rate_limiter,omitempty"`
}

// NetworkInterface joins a guest's network device to a tap.
type NetworkInterface struct {
	IfaceID       string       `json:"iface_id"`
	HostDevName   string       `json:"host_dev_name"`
	GuestMAC      string       `json:"guest_mac,omitempty"`
	RxRateLimiter *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TxRateLimiter *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// Vsock is the guest's socket device, seen on the host as one unix socket.
type Vsock struct {
	GuestCID uint32 `json:"guest_cid"`
	UDSPath  string `json:"uds_path"`
}

// MachineConfig is a machine's size.
type MachineConfig struct {
	VCPUCount       int    `json:"vcpu_count"`
	MemSizeMiB      int    `json:"mem_size_mib"`
	SMT             bool   `json:"smt"`
	TrackDirtyPages bool   `json:"track_dirty_pages"`
	HugePages       string `json:"huge_pages,omitempty"` // None or 2M
}

// CPUConfig is a custom CPU template, passed through as it is.
type CPUConfig = json.RawMessage

// Balloon is the device that gives a guest's memory back to the host.
type Balloon struct {
	AmountMiB             int  `json:"amount_mib"`
	DeflateOnOOM          bool `json:"deflate_on_oom"`
	StatsPollingIntervalS int  `json:"stats_polling_interval_s,omitempty"`
	FreePageReporting     bool `json:"free_page_reporting,omitempty"` // the guest tells what it has freed; since 1.14
}

// BalloonStats is what the guest says about its memory; bytes. A guest may lie.
type BalloonStats struct {
	TargetMiB       int   `json:"target_mib"`
	ActualMiB       int   `json:"actual_mib"`
	FreeMemory      int64 `json:"free_memory"`
	TotalMemory     int64 `json:"total_memory"`
	AvailableMemory int64 `json:"available_memory"`
}

// Entropy is the guest's random number device.
type Entropy struct {
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// Serial says where the serial port writes; without it, to standard output.
type Serial struct {
	SerialOutPath string `json:"serial_out_path"`
}

type action struct {
	ActionType string `json:"action_type"`
}

type vmState struct {
	State string `json:"state"`
}

// SnapshotType says how much of memory a snapshot holds.
type SnapshotType string

// The types: all of it, or the pages written since the last snapshot or load.
const (
	Full SnapshotType = "Full"
	Diff SnapshotType = "Diff"
)

// SnapshotCreate asks for a snapshot of a paused machine.
type SnapshotCreate struct {
	SnapshotType SnapshotType `json:"snapshot_type"`
	SnapshotPath string       `json:"snapshot_path"`
	MemFilePath  string       `json:"mem_file_path"`
}

// BackendType says who provides a restored machine's memory.
type BackendType string

// The types: a file that is mapped, or a process that answers page faults.
const (
	File BackendType = "File"
	Uffd BackendType = "Uffd"
)

// MemBackend is where a restored machine's memory comes from.
type MemBackend struct {
	BackendType BackendType `json:"backend_type"`
	BackendPath string      `json:"backend_path"`
}

// NetworkOverride gives a restored network device another tap.
type NetworkOverride struct {
	IfaceID     string `json:"iface_id"`
	HostDevName string `json:"host_dev_name"`
}

// VsockOverride gives a restored socket device another unix socket.
type VsockOverride struct {
	UDSPath string `json:"uds_path"`
}

// SnapshotLoad restores a machine in a process that has none yet.
type SnapshotLoad struct {
	SnapshotPath     string            `json:"snapshot_path"`
	MemBackend       MemBackend        `json:"mem_backend"`
	TrackDirtyPages  bool              `json:"track_dirty_pages,omitempty"`
	ResumeVM         bool              `json:"resume_vm,omitempty"`
	NetworkOverrides []NetworkOverride `json:"network_overrides,omitempty"`
	VsockOverride    *VsockOverride    `json:"vsock_override,omitempty"`
}

// State is a machine's state as Firecracker names it.
type State string

// The states.
const (
	NotStarted State = "Not started"
	Running    State = "Running"
	Paused     State = "Paused"
)

// InstanceInfo is what a process says about itself.
type InstanceInfo struct {
	ID         string `json:"id"`
	State      State  `json:"state"`
	VMMVersion string `json:"vmm_version"`
	AppName    string `json:"app_name"`
}
