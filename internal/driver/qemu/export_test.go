package qemu

// ShareHost lets d know of the host what o has found out: looking takes a
// second, and tests make many drivers.
func (d *Driver) ShareHost(o *Driver) { d.host = o.host }
