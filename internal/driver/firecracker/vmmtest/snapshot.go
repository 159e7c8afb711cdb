package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"os"
)

// stateFile is what a snapshot's state holds; a CRC64 of it follows.
type stateFile struct {
	Magic   string
	Version string
	Config  config
}

const stateMagic = "vmmtest-state"

var crcTable = crc64.MakeTable(crc64.ISO)

func (v *vm) createSnapshot(s snapshotCreate) error {
	switch {
	case v.state == notStarted:
		return refused("The requested operation is not supported before starting the microVM.")
	case v.state != paused:
		return refused("Cannot save the microVM state: the microVM is not paused.")
	case s.SnapshotPath == "" || s.MemFilePath == "":
		return errors.New("missing field `snapshot_path` or `mem_file_path`")
	case s.SnapshotType != "" && s.SnapshotType != "Full" && s.SnapshotType != "Diff":
		return fmt.Errorf("unknown variant `%s`", s.SnapshotType)
	case s.SnapshotType == "Diff" && !v.cfg.Machine.TrackDirtyPages:
		return refused("Diff snapshots are not allowed on uVMs with dirty page tracking disabled.")
	}
	raw, err := json.Marshal(stateFile{stateMagic, version, v.cfg})
	if err != nil {
		return err
	}
	raw = fmt.Appendf(raw, "\n%016x", crc64.Checksum(raw, crcTable))
	if err := os.WriteFile(s.SnapshotPath, raw, 0o600); err != nil {
		return err
	}
	return v.ram.dump(s.MemFilePath, s.SnapshotType != "Diff")
}

func readState(path string) (config, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return config{}, err
	}
	if len(raw) < 17 {
		return config{}, refused("Failed to restore from snapshot: CRC64 validation failed")
	}
	body, sum := raw[:len(raw)-17], string(raw[len(raw)-16:])
	if fmt.Sprintf("%016x", crc64.Checksum(body, crcTable)) != sum {
		return config{}, refused("Failed to restore from snapshot: CRC64 validation failed")
	}
	var s stateFile
	if err := json.Unmarshal(body, &s); err != nil {
		return config{}, err
	}
	if s.Magic != stateMagic || s.Version != version {
		return config{}, refused("Failed to restore from snapshot: snapshot version is not supported")
	}
	return s.Config, nil
}

func (v *vm) loadSnapshot(s snapshotLoad) error {
	switch {
	case v.state != notStarted:
		return errAfterStart
	case v.touched:
		return refused("Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	case s.MemBackend == nil || s.MemFilePath != "":
		return errors.New("missing field `mem_backend`")
	}
	cfg, err := readState(s.SnapshotPath)
	if err != nil {
		return err
	}
	if err := cfg.override(s); err != nil {
		return err
	}
	if v.ram, err = restoredMemory(*s.MemBackend, cfg.Machine.MemSizeMiB); err != nil {
		return err
	}
	cfg.Machine.TrackDirtyPages = s.TrackDirtyPages || s.EnableDiffSnapshots
	v.cfg = cfg
	if err := v.run(true); err != nil {
		return err
	}
	if s.ResumeVM {
		v.state = running
		v.letVCPUsGo()
	}
	return nil
}

// override gives devices of a snapshot their new ends on the host.
func (c *config) override(s snapshotLoad) error {
	for _, d := range c.Drives {
		if err := mustRead(d.PathOnHost); err != nil {
			return refused("Error restoring drive %s: %v", d.DriveID, err)
		}
	}
	for _, o := range s.NetworkOverrides {
		found := false
		for i := range c.Nets {
			if c.Nets[i].IfaceID == o.IfaceID {
				c.Nets[i].HostDevName, found = o.HostDevName, true
			}
		}
		if !found {
			return refused("Unknown Network Device: %s", o.IfaceID)
		}
	}
	for _, n := range c.Nets {
		if err := openTap(n.HostDevName); err != nil {
			return err
		}
	}
	if s.VsockOverride != nil {
		if c.Vsock == nil {
			return refused("Unknown Vsock Device")
		}
		c.Vsock.UDSPath = s.VsockOverride.UDSPath
	}
	return nil
}

func restoredMemory(b memBackend, mib int) (*memory, error) {
	switch b.BackendType {
	case "File":
		return mapFile(b.BackendPath, mib)
	case "Uffd":
		return pagedMemory(b.BackendPath, mib)
	}
	return nil, fmt.Errorf("unknown variant `%s`, expected `File` or `Uffd`", b.BackendType)
}
