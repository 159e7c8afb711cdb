package pager

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxHandshake  = 64 << 10 // bytes
	maxRegions    = 64
	handshakeTime = 10 * time.Second

	smallPage = 4 << 10
	hugePage  = 2 << 20
)

// Region is a piece of guest memory: where the process has it mapped, and where
// its content lies in the memory's file.
type Region struct {
	Address  uint64
	Size     uint64
	Offset   uint64
	PageSize uint64
}

// ParseHandshake reads what Firecracker says about a guest's memory of size
// bytes: a JSON list of regions. A list that cannot be true is an error.
func ParseHandshake(raw []byte, size uint64) ([]Region, error) {
	var list []struct {
		Address  uint64 `json:"base_host_virt_addr"`
		Size     uint64 `json:"size"`
		Offset   uint64 `json:"offset"`
		PageSize uint64 `json:"page_size"`
		OldSize  uint64 `json:"page_size_kib"` // bytes, its name notwithstanding; before page_size
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	if len(list) == 0 || len(list) > maxRegions {
		return nil, fmt.Errorf("%d regions, want 1 to %d", len(list), maxRegions)
	}
	regions := make([]Region, 0, len(list))
	for _, r := range list {
		regions = append(regions, Region{r.Address, r.Size, r.Offset, cmp.Or(r.PageSize, r.OldSize)})
	}
	return regions, checkRegions(regions, size)
}

// checkRegions wants regions that cover the memory's file once, without
// overlapping in the process, all with pages of one size.
func checkRegions(regions []Region, size uint64) error {
	page := regions[0].PageSize
	if page != smallPage && page != hugePage {
		return fmt.Errorf("pages of %d bytes", page)
	}
	for _, r := range regions {
		switch {
		case r.PageSize != page:
			return errors.New("pages of two sizes")
		case r.Size == 0 || (r.Address|r.Size|r.Offset)%page != 0:
			return fmt.Errorf("region %#x+%#x at %#x is not of whole pages", r.Address, r.Size, r.Offset)
		case r.Address == 0 || r.Address > 1<<57 || r.Size > 1<<57:
			return fmt.Errorf("region %#x+%#x is not within an address space", r.Address, r.Size)
		}
	}
	slices.SortFunc(regions, func(a, b Region) int { return cmp.Compare(a.Address, b.Address) })
	for i, r := range regions[1:] {
		if before := regions[i]; before.Address+before.Size > r.Address {
			return fmt.Errorf("regions %#x and %#x overlap", before.Address, r.Address)
		}
	}
	byOffset := slices.SortedFunc(slices.Values(regions), func(a, b Region) int { return cmp.Compare(a.Offset, b.Offset) })
	end := uint64(0)
	for _, r := range byOffset {
		if r.Offset != end {
			return fmt.Errorf("the memory's file is not covered at %#x", end)
		}
		end += r.Size
	}
	if end != size {
		return fmt.Errorf("regions are %d bytes in all, the memory is %d", end, size)
	}
	return nil
}

// receive reads a handshake and the descriptor that comes with it, which the
// caller closes.
func receive(conn *net.UnixConn, size uint64) (uffd int, regions []Region, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(handshakeTime)); err != nil {
		return -1, nil, err
	}
	uffd = -1
	defer func() {
		if err != nil && uffd >= 0 {
			_ = unix.Close(uffd)
		}
	}()
	var body []byte
	buf, oob := make([]byte, maxHandshake), make([]byte, unix.CmsgSpace(4*4))
	for {
		n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return uffd, nil, fmt.Errorf("no handshake: %w", err)
		}
		if uffd, err = oneDescriptor(oob[:oobn], uffd); err != nil {
			return uffd, nil, err
		}
		if body = append(body, buf[:n]...); len(body) > maxHandshake {
			return uffd, nil, fmt.Errorf("handshake of more than %d bytes", maxHandshake)
		}
		if json.Valid(body) {
			break
		}
		if n == 0 {
			return uffd, nil, errors.New("handshake ended half way")
		}
	}
	if uffd < 0 {
		return uffd, nil, errors.New("handshake without a descriptor")
	}
	if regions, err = ParseHandshake(body, size); err != nil {
		return uffd, nil, fmt.Errorf("handshake: %w", err)
	}
	return uffd, regions, conn.SetReadDeadline(time.Time{})
}

// oneDescriptor takes the descriptor out of a control message. A second one is
// closed, and an error.
func oneDescriptor(oob []byte, have int) (int, error) {
	if len(oob) == 0 {
		return have, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return have, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return have, err
		}
		for _, fd := range fds {
			if have >= 0 {
				_ = unix.Close(fd)
				err = errors.New("handshake with more than one descriptor")
				continue
			}
			have = fd
		}
		if err != nil {
			return have, err
		}
	}
	return have, nil
}
