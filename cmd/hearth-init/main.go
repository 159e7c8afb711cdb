// Command hearth-init is the first program of every virtual machine: it makes
// the machine out of its disks and speaks with the host.
package main

import "hearth/internal/driver/microvm/vminit"

func main() { vminit.Main() }
