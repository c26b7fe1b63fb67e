package bolt_test

import (
	"log/slog"
	"testing"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/storage/bolt"
	"github.com/acme-bridge/acme-bridge/storage/storagetest"
)

func open(t testing.TB, opts bolt.Options) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStore(t *testing.T) {
	s := open(t, bolt.Options{Dir: t.TempDir()})
	storagetest.Run(t, func(*testing.T) acme.Store { return s })
}
