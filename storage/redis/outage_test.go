package redis_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/storage/redis"
	"github.com/acme-bridge/acme-bridge/storage/storagetest"
)

func TestStoreOnCluster(t *testing.T) {
	servers := storagetest.StartCluster(t)
	storagetest.Run(t, func(t *testing.T) acme.Store {
		return open(t, redis.Options{Mode: redis.Cluster, Addresses: []string{servers[0].Addr, servers[1].Addr}})
	})
	facts, err := open(t, redis.Options{Mode: redis.Cluster, Addresses: []string{servers[0].Addr}}).Facts(t.Context())
	check(t, err)
	if facts.Version == "" || facts.Policy != "noeviction" {
		t.Errorf("got facts %+v", facts)
	}
	for _, s := range servers {
		if n := s.Client(t).DBSize(t.Context()).Val(); n == 0 {
			t.Errorf("nothing is stored on %s: the shards are not spread", s.Addr)
		}
	}
}

func TestSentinelFailover(t *testing.T) {
	set := storagetest.StartSentinels(t)
	s := open(t, redis.Options{Mode: redis.Sentinel, Addresses: set.Addrs, MasterName: set.MasterName, IOTimeout: time.Second, DialTimeout: time.Second})
	ctx := within(t, 60*time.Second)
	a := account(t, s)
	o := order(t, s, a)
	if n := set.Master.Client(t).Wait(ctx, 1, 5*time.Second).Val(); n != 1 {
		t.Fatal("the replica did not catch up")
	}
	set.Master.Kill()
	attempts := 0
	if !storagetest.Await(ctx, func() bool {
		got, err := s.UpdateOrder(ctx, o, func(o *acme.Order) error { o.Attempts++; return nil })
		attempts++
		if err != nil && !errors.Is(err, acme.ErrUnavailable) {
			t.Fatalf("got error %v, want ErrUnavailable", err)
		}
		return err == nil && got.Attempts == 1
	}) {
		t.Fatal("the store did not find the new master")
	}
	if attempts < 2 {
		t.Error("the master's death went unnoticed, so the test shows nothing")
	}
	if n := set.Replica.Client(t).Exists(ctx, "acme:{"+acme.Shard(o.ID)+"}:order:"+o.ID).Val(); n != 1 {
		t.Error("the order is not on the former replica")
	}
	found, err := s.Fetch(ctx, acme.Lookup{AccountID: a.ID, OrderID: o.ID}, time.Now())
	if err != nil || found.Account == nil || found.Order == nil || found.Order.Attempts != 1 {
		t.Errorf("got %+v, %v", found, err)
	}
}

// calls are all methods of a store, for errors that all must have.
func calls(s *redis.Store, a *acme.Account, o *acme.Order) map[string]func(context.Context) error {
	now := time.Now()
	same := func(*acme.Order) error { return nil }
	limit := acme.LimitKey{Scope: "s", Subject: "x", Limit: acme.Limit{Count: 1, Period: time.Hour}}
	first := func(_ any, err error) error { return err }
	return map[string]func(context.Context) error{
		"NonceKey": func(ctx context.Context) error { return first(s.NonceKey(ctx, []byte("k"))) },
		"Fetch": func(ctx context.Context) error {
			return first(s.Fetch(ctx, acme.Lookup{Nonce: "n", NonceLifetime: time.Hour, AccountID: a.ID}, now))
		},
		"CreateAccount": func(ctx context.Context) error { _, _, err := s.CreateAccount(ctx, a); return err },
		"AccountByKey":  func(ctx context.Context) error { return first(s.AccountByKey(ctx, "default", a.Thumbprint)) },
		"UpdateAccount": func(ctx context.Context) error {
			return first(s.UpdateAccount(ctx, a.ID, func(*acme.Account) error { return nil }))
		},
		"ChangeAccountKey": func(ctx context.Context) error {
			_, _, err := s.ChangeAccountKey(ctx, a.ID, "t", func(*acme.Account) error { return nil })
			return err
		},
		"CreateOrder":       func(ctx context.Context) error { return s.CreateOrder(ctx, o, acme.OrderLimits{}, now) },
		"Order":             func(ctx context.Context) error { return first(s.Order(ctx, o.ID)) },
		"UpdateOrder":       func(ctx context.Context) error { return first(s.UpdateOrder(ctx, o, same)) },
		"AccountOrders":     func(ctx context.Context) error { return first(s.AccountOrders(ctx, a.ID, "", 10)) },
		"ClaimDue":          func(ctx context.Context) error { return first(s.ClaimDue(ctx, now, time.Minute, 10)) },
		"PutChain":          func(ctx context.Context) error { return first(s.PutChain(ctx, []byte("pem"))) },
		"Chain":             func(ctx context.Context) error { return first(s.Chain(ctx, "ref")) },
		"ClaimCertificate":  func(ctx context.Context) error { return first(s.ClaimCertificate(ctx, "c", o.ID, now)) },
		"CertificateOwners": func(ctx context.Context) error { return first(s.CertificateOwners(ctx, []string{"c"})) },
		"PutQuarantine":     func(ctx context.Context) error { return s.PutQuarantine(ctx, &acme.Quarantine{OrderID: o.ID}) },
		"Quarantined":       func(ctx context.Context) error { return first(s.Quarantined(ctx, 1)) },
		"Take":              func(ctx context.Context) error { return s.Take(ctx, limit, 1, now) },
		"Take nothing":      func(ctx context.Context) error { return s.Take(ctx, limit, 0, now) },
		"Record":            func(ctx context.Context) error { _, _, err := s.Record(ctx, "r"); return err },
		"PutRecord":         func(ctx context.Context) error { return s.PutRecord(ctx, "r", nil, 0) },
		"Ping":              func(ctx context.Context) error { return s.Ping(ctx) },
		"Facts":             func(ctx context.Context) error { return first(s.Facts(ctx)) },
	}
}

func TestRedisGoesAwayAndComesBack(t *testing.T) {
	server := storagetest.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	s := open(t, redis.Options{Addresses: []string{server.Addr}})
	a := account(t, s)
	o := order(t, s, a)
	server.Kill()
	for name, call := range calls(s, newAccount(t), o) {
		if err := call(t.Context()); !errors.Is(err, acme.ErrUnavailable) {
			t.Errorf("%s without Redis: got %v, want ErrUnavailable", name, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := call(ctx); err == nil || errors.Is(err, acme.ErrUnavailable) {
			t.Errorf("%s of a caller that went away: got %v, want its own error", name, err)
		}
	}
	server.Start(t)
	// The scripts are gone with the old process, and connections are broken.
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("ping after restart: %v", err)
	}
	got, err := s.UpdateOrder(t.Context(), o, func(o *acme.Order) error {
		o.Attempts++
		o.Wake = time.Now().Add(-time.Second)
		return nil
	})
	if err != nil || got.Attempts != 1 {
		t.Errorf("after restart: got %+v, %v", got, err)
	}
	if due, err := s.ClaimDue(t.Context(), time.Now(), time.Minute, 10); err != nil || len(due) != 1 {
		t.Errorf("after restart: claimed %v, %v", due, err)
	}
}

func TestRedisIsNotThereYet(t *testing.T) {
	server := storagetest.StartRedis(t)
	server.Stop()
	var log logBuffer
	s := openLog(t, redis.Options{Addresses: []string{server.Addr}}, log.logger())
	if err := s.Ping(t.Context()); !errors.Is(err, acme.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	server.Start(t)
	check(t, s.Ping(t.Context()))
	if log.String() != "" {
		t.Errorf("logged by itself: %s", &log)
	}
}

func TestRedisComesBackEmpty(t *testing.T) {
	server := storagetest.StartRedis(t)
	s := open(t, redis.Options{Addresses: []string{server.Addr}})
	ref, err := s.PutChain(t.Context(), []byte("chain"))
	check(t, err)
	key, err := s.NonceKey(t.Context(), []byte("first"))
	check(t, err)
	server.Kill()
	server.Start(t)
	found, err := s.Fetch(t.Context(), acme.Lookup{}, time.Now())
	if err != nil || found.NonceKey != nil {
		t.Errorf("got nonce key %q, %v; want none: marks of used nonces are lost", found.NonceKey, err)
	}
	again, err := s.NonceKey(t.Context(), []byte("second"))
	if err != nil || string(again) == string(key) {
		t.Errorf("got nonce key %q, %v; want the second", again, err)
	}
	// A chain that this process stored before is stored again.
	_, err = s.PutChain(t.Context(), []byte("chain"))
	check(t, err)
	other := open(t, redis.Options{Addresses: []string{server.Addr}})
	if pem, err := other.Chain(t.Context(), ref); err != nil || string(pem) != "chain" {
		t.Errorf("another replica reads %q, %v", pem, err)
	}
}

func TestRedisRefuses(t *testing.T) {
	server := storagetest.StartRedis(t)
	admin := server.Client(t)
	s := open(t, redis.Options{Addresses: []string{server.Addr}})
	o := order(t, s, account(t, s))
	for _, tt := range []struct {
		name      string
		do, undo  []any
		readsFail bool
	}{
		{"its memory is full", []any{"config", "set", "maxmemory", "1"}, []any{"config", "set", "maxmemory", "0"}, false},
		{"it became a replica", []any{"replicaof", "127.0.0.1", "1"}, []any{"replicaof", "no", "one"}, false},
		{"it has too few replicas", []any{"config", "set", "min-replicas-to-write", "1"}, []any{"config", "set", "min-replicas-to-write", "0"}, false},
		{"it wants a password", []any{"config", "set", "requirepass", "new"}, []any{"config", "set", "requirepass", ""}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check(t, admin.Do(t.Context(), tt.do...).Err())
			if tt.readsFail {
				admin.Do(t.Context(), "client", "kill", "type", "normal", "skipme", "yes")
			}
			before := o.Attempts
			_, err := s.UpdateOrder(t.Context(), o, func(o *acme.Order) error { o.Attempts++; return nil })
			if !errors.Is(err, acme.ErrUnavailable) {
				t.Errorf("update: got %v, want ErrUnavailable", err)
			}
			if err := s.Ping(t.Context()); !errors.Is(err, acme.ErrUnavailable) {
				t.Errorf("ping: got %v, want ErrUnavailable", err)
			}
			check(t, admin.Do(t.Context(), tt.undo...).Err())
			got, err := s.Order(t.Context(), o.ID)
			if err != nil || got.Attempts != before {
				t.Errorf("got %+v, %v; want no half-done write", got, err)
			}
			check(t, s.Ping(t.Context()))
		})
	}
}

// TestLostAnswer: the server does what it was told, and the answer is lost. A
// client that repeated the command would take its own first try for a rival's.
func TestLostAnswer(t *testing.T) {
	for _, mode := range []redis.Mode{redis.Single, redis.Cluster} {
		t.Run(string(mode), func(t *testing.T) {
			var server *storagetest.Server
			var p *proxy
			if mode == redis.Cluster {
				server, p = startClusterBehindProxy(t)
			} else {
				server = storagetest.StartRedis(t)
				p = startProxy(t, server.Addr)
			}
			direct := open(t, redis.Options{Addresses: []string{server.Addr}})
			s := open(t, redis.Options{Mode: mode, Addresses: []string{p.addr}, PoolSize: 4})
			check(t, s.Ping(t.Context()))
			a := account(t, s)
			o, err := s.UpdateOrder(t.Context(), order(t, s, a), func(*acme.Order) error { return nil }) // the script is known now
			check(t, err)
			// arm has the next answer lost, on a connection that is ready.
			arm := func() {
				check(t, s.Ping(t.Context()))
				p.armed.Store(true)
			}

			arm()
			runs := 0
			_, err = s.UpdateOrder(t.Context(), o, func(o *acme.Order) error { runs++; o.Attempts++; return nil })
			if !errors.Is(err, acme.ErrUnavailable) || runs != 1 {
				t.Errorf("update: got %v after %d runs, want ErrUnavailable after 1", err, runs)
			}
			got, err := direct.Order(t.Context(), o.ID)
			if err != nil || got.Attempts != 1 {
				t.Errorf("got %+v, %v; want the update made once", got, err)
			}

			fresh := newOrder(t, a)
			rate := acme.OrderLimits{Rate: acme.LimitKey{Scope: "orders", Subject: a.ID, Limit: acme.Limit{Count: 2, Period: time.Hour}}}
			arm()
			if err := s.CreateOrder(t.Context(), fresh, rate, time.Now()); !errors.Is(err, acme.ErrUnavailable) {
				t.Errorf("create: got %v, want ErrUnavailable", err)
			}
			if _, err := direct.Order(t.Context(), fresh.ID); err != nil {
				t.Errorf("the lost create was not made, so the test shows nothing: %v", err)
			}
			if err := direct.CreateOrder(t.Context(), newOrder(t, a), rate, time.Now()); err != nil {
				t.Errorf("the lost create was counted more than once: %v", err)
			}

			arm()
			if found, err := s.Fetch(t.Context(), acme.Lookup{Nonce: "nonce", NonceLifetime: time.Hour}, time.Now()); !errors.Is(err, acme.ErrUnavailable) {
				t.Errorf("fetch: got %+v, %v; want ErrUnavailable, not a fresh nonce called used", found, err)
			}
			check(t, s.Ping(t.Context()))
		})
	}
}

// startClusterBehindProxy starts a cluster of one master that tells clients to
// come through the proxy.
func startClusterBehindProxy(t *testing.T) (*storagetest.Server, *proxy) {
	t.Helper()
	server := storagetest.StartRedis(t, "--cluster-enabled", "yes", "--cluster-port", storagetest.FreePort(t))
	p := startProxy(t, server.Addr)
	admin := server.Client(t)
	_, port, _ := strings.Cut(p.addr, ":")
	check(t, admin.ConfigSet(t.Context(), "cluster-announce-ip", "127.0.0.1").Err())
	check(t, admin.ConfigSet(t.Context(), "cluster-announce-port", port).Err())
	check(t, admin.ClusterAddSlotsRange(t.Context(), 0, 16383).Err())
	if !storagetest.Await(within(t, 20*time.Second), func() bool {
		return strings.Contains(admin.ClusterInfo(t.Context()).Val(), "cluster_state:ok")
	}) {
		t.Fatal("cluster did not come up")
	}
	return server, p
}
