package gauge

import "testing"

func TestReclaimable(t *testing.T) {
	v1 := "cache 9\nactive_file 100\ninactive_file 200\ntotal_active_file 1\ntotal_inactive_file 2\ntotal_shmem 4\n"
	if got := reclaimable(v1, "total_"); got != 3 {
		t.Errorf("version 1: got %d", got)
	}
	v2 := "anon 7\nfile 9\nshmem 4\nworkingset_active_file 50\ninactive_file 2\nactive_file 1\n"
	if got := reclaimable(v2, ""); got != 3 {
		t.Errorf("version 2: got %d", got)
	}
}
