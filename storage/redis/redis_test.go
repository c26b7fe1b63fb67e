package redis_test

import (
	"log/slog"
	"strings"
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

// allowed are the commands that the store may use: none of them looks at more
// than the values it names. The package's comment has them as an ACL rule.
const allowed = " get set mget persist exists del getrange evalsha eval config|get info ping select client|setname hello auth" +
	" zadd zrem zcard zscore zrange zrangebyscore zrangebylex zremrangebyscore zremrangebylex lpush ltrim lrange "

func TestStore(t *testing.T) {
	server := storagetest.StartRedis(t)
	storagetest.Run(t, func(t *testing.T) acme.Store {
		return open(t, redis.Options{Addresses: []string{server.Addr}})
	})
	stats := server.Client(t).Info(t.Context(), "commandstats").Val()
	for line := range strings.Lines(stats) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_"); ok {
			command, _, _ := strings.Cut(rest, ":")
			// The test's own clients say who they are.
			if !strings.Contains(allowed, " "+command+" ") && !strings.HasPrefix(command, "client|") {
				t.Errorf("the store used %s", command)
			}
		}
	}
}

func TestOptionsThatCannotBeMeant(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts redis.Options
		want string
	}{
		{"no address", redis.Options{}, "addresses"},
		{"two single servers", redis.Options{Addresses: []string{"a:1", "b:1"}}, "addresses"},
		{"an unknown mode", redis.Options{Addresses: []string{"a:1"}, Mode: "ring"}, "mode"},
		{"Sentinels without a name", redis.Options{Addresses: []string{"a:1"}, Mode: redis.Sentinel}, "master_name"},
		{"a cluster with a database", redis.Options{Addresses: []string{"a:1"}, Mode: redis.Cluster, DB: 1}, "db"},
		{"a prefix with a brace", redis.Options{Addresses: []string{"a:1"}, KeyPrefix: "{a}"}, "key_prefix"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := redis.New(tt.opts, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one that names %s", err, tt.want)
			}
		})
	}
}

func BenchmarkStore(b *testing.B) {
	server := storagetest.StartRedis(b, "--appendonly", "yes")
	storagetest.Bench(b, open(b, redis.Options{Addresses: []string{server.Addr}}))
}
