package e2e

import "syscall"

// nobody is the identity of a process that may do nothing special.
func nobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}
