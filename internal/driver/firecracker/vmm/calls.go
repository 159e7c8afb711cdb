package vmm

import (
	"context"
	"net/http"
	"net/url"
)

// Info asks for the machine's state and the process's version.
func (c *Client) Info(ctx context.Context) (InstanceInfo, error) {
	var info InstanceInfo
	err := c.get(ctx, "/", &info)
	return info, err
}

// Version asks for the process's version, "1.16.1".
func (c *Client) Version(ctx context.Context) (string, error) {
	var v struct {
		Version string `json:"firecracker_version"`
	}
	err := c.get(ctx, "/version", &v)
	return v.Version, err
}

// SetMachine sets the machine's size, before it starts.
func (c *Client) SetMachine(ctx context.Context, m MachineConfig) error {
	return c.put(ctx, "/machine-config", m)
}

// SetCPU sets a custom CPU template, before the machine starts.
func (c *Client) SetCPU(ctx context.Context, t CPUConfig) error { return c.put(ctx, "/cpu-config", t) }

// SetBoot sets kernel, initial ramdisk and kernel arguments.
func (c *Client) SetBoot(ctx context.Context, b BootSource) error {
	return c.put(ctx, "/boot-source", b)
}

// SetDrive adds a drive. The order of the calls is the order in the guest.
func (c *Client) SetDrive(ctx context.Context, d Drive) error {
	return c.put(ctx, "/drives/"+url.PathEscape(d.DriveID), d)
}

// SetNetwork adds a network device.
func (c *Client) SetNetwork(ctx context.Context, n NetworkInterface) error {
	return c.put(ctx, "/network-interfaces/"+url.PathEscape(n.IfaceID), n)
}

// SetVsock adds the socket device.
func (c *Client) SetVsock(ctx context.Context, v Vsock) error { return c.put(ctx, "/vsock", v) }

// SetBalloon adds the balloon.
func (c *Client) SetBalloon(ctx context.Context, b Balloon) error { return c.put(ctx, "/balloon", b) }

// SetEntropy adds the random number device.
func (c *Client) SetEntropy(ctx context.Context, e Entropy) error { return c.put(ctx, "/entropy", e) }

// SetSerial redirects the serial port.
func (c *Client) SetSerial(ctx context.Context, s Serial) error { return c.put(ctx, "/serial", s) }

// Start boots the machine.
func (c *Client) Start(ctx context.Context) error {
	return c.put(ctx, "/actions", action{"InstanceStart"})
}

// Inflate sets how much memory the balloon takes from a running guest.
func (c *Client) Inflate(ctx context.Context, mib int) error {
	return c.patch(ctx, "/balloon", struct {
		AmountMiB int `json:"amount_mib"`
	}{mib})
}

// BalloonStats asks for the last statistics the guest sent.
func (c *Client) BalloonStats(ctx context.Context) (BalloonStats, error) {
	var s BalloonStats
	err := c.get(ctx, "/balloon/statistics", &s)
	return s, err
}

// Pause stops the vCPUs in place.
func (c *Client) Pause(ctx context.Context) error { return c.patch(ctx, "/vm", vmState{"Paused"}) }

// Resume lets them go on.
func (c *Client) Resume(ctx context.Context) error { return c.patch(ctx, "/vm", vmState{"Resumed"}) }

// CreateSnapshot writes a paused machine to files. It takes as long as ctx lets it.
func (c *Client) CreateSnapshot(ctx context.Context, s SnapshotCreate) error {
	return c.call(ctx, http.MethodPut, "/snapshot/create", s, nil)
}

// LoadSnapshot restores a machine. It takes as long as ctx lets it.
func (c *Client) LoadSnapshot(ctx context.Context, s SnapshotLoad) error {
	return c.call(ctx, http.MethodPut, "/snapshot/load", s, nil)
}
