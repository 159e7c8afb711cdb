package firecracker

// Names in a jail. Snapshots refer to them, so a change is a change of layout.
const (
	kernelFile  = "kernel"
	initrdFile  = "initrd"
	guestFile   = "guest"
	diskFile    = "disk"
	stateFile   = "state"  // of the snapshot it is restored from
	memoryFile  = "memory" // likewise
	newState    = "new-state"
	newMemory   = "new-memory"
	apiSocket   = "api"
	vsockSocket = "vsock"
	pagerSocket = "pager"
	layerFile   = "layer" // and a number
)
