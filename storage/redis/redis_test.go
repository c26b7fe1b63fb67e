package redis_test

import (
	"log/slog"
	"testing"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/storage/redis"
	"github.com/acme-bridge/acme-bridge/storage/storagetest"
)

func open(t testing.TB, opts redis.Options) *redis.Store {
	t.Helper()
	return openLog(t, opts, slog.New(slog.DiscardHandler))
}

func openLog(t testing.TB, opts redis.Options, log *slog.Logger) *redis.Store {
	t.Helper()
	if opts.KeyPrefix == "" {
		opts.KeyPrefix = "acme:"
	}
	s, err := redis.New(opts, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestStore(t *testing.T) {
	server := storagetest.StartRedis(t)
	storagetest.Run(t, func(t *testing.T) acme.Store {
		return open(t, redis.Options{Addresses: []string{server.Addr}})
	})
}
