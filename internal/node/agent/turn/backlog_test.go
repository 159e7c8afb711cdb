package turn

import (
	"sync"
	"testing"
	"testing/synctest"
)

// TestBacklogIsBounded: what there is no room for is done by who asks for it.
func TestBacklogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBacklog()
		var all sync.WaitGroup
		gate := make(chan struct{})
		var behind [mostBehind]<-chan struct{}
		for i := range behind {
			behind[i] = b.Do(all.Go, func() { <-gate })
		}
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			<-b.Do(all.Go, func() { <-gate })
		}()
		synctest.Wait()
		select {
		case <-asked:
			t.Fatal("there was room for one more")
		case <-behind[0]:
			t.Fatal("what has not ended is done")
		default:
		}
		close(gate)
		<-asked
		b.Wait()
		<-behind[0]
		<-b.Do(all.Go, func() {}) // there is room again
		all.Wait()
	})
}
