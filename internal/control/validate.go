package control

import (
	"time"

	"hearth/internal/control/wish"
	"hearth/internal/hearth"
)

// check refuses what cannot be asked for, and fills in defaults.
func (c *Controller) check(req *CreateRequest) error {
	if err := c.checkTimeout(req.Timeout); err != nil {
		return err
	}
	return wish.CheckCreate(req)
}

// checkTimeout holds a timeout that starts a life against the limits.
func (c *Controller) checkTimeout(d time.Duration) error {
	if d <= 0 {
		return hearth.Errorf(hearth.InvalidArgument, "Timeout must be greater than 0")
	}
	return c.checkMaximum(d)
}

func (c *Controller) checkMaximum(d time.Duration) error {
	if d > c.limits.MaxTimeout {
		return hearth.Errorf(hearth.InvalidArgument, "Timeout cannot be greater than %g hours", c.limits.MaxTimeout.Hours())
	}
	return nil
}
