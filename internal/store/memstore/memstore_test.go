package memstore_test

import (
	"testing"

	"hearth/internal/store"
	"hearth/internal/store/memstore"
	"hearth/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return memstore.New() })
}
