package redis_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/storage/redis"
	"github.com/acme-bridge/acme-bridge/storage/storagetest"
)

// setUp is a store, and a client to look behind it.
func setUp(t *testing.T) (*redis.Store, *goredis.Client) {
	t.Helper()
	server := storagetest.StartRedis(t)
	return open(t, redis.Options{Addresses: []string{server.Addr}}), server.Client(t)
}

func key(id, kind, rest string) string { return "acme:{" + acme.Shard(id) + "}:" + kind + rest }

func TestRoundTrips(t *testing.T) {
	server := storagetest.StartRedis(t)
	p := startProxy(t, server.Addr)
	s := open(t, redis.Options{Addresses: []string{p.addr}, PoolSize: 1})
	ctx, now := t.Context(), time.Now()
	a := account(t, s)
	finish(t, s, a, order(t, s, a), []byte("leaf"), now.Add(time.Hour)) // scripts and chain are known now
	_, err := s.UpdateOrder(ctx, order(t, s, a), func(o *acme.Order) error { o.Wake = now; return nil })
	check(t, err)
	_, err = s.ClaimDue(ctx, now.Add(time.Second), time.Minute, 1)
	check(t, err)
	o := newOrder(t, a)
	limit := acme.LimitKey{Scope: "orders", Subject: a.ID, Limit: acme.Limit{Count: 300, Period: time.Hour}}
	for _, tt := range []struct {
		name string
		want int32
		do   func() error
	}{
		{"fetching nonce, account, proofs and limits for a new order", 1, func() error {
			_, err := s.Fetch(ctx, acme.Lookup{
				Nonce: "1", NonceLifetime: time.Hour, AccountID: a.ID, Limits: []acme.LimitKey{limit},
				Proofs: []acme.ProofKey{{AccountID: a.ID, Name: "dns:a.example.com"}, {AccountID: a.ID, Name: "dns:b.example.com"}},
			}, now)
			return err
		}},
		{"creating the order", 1, func() error {
			return s.CreateOrder(ctx, o, acme.OrderLimits{Rate: limit, Open: 200}, now)
		}},
		{"fetching nonce, account and order", 1, func() error {
			_, err := s.Fetch(ctx, acme.Lookup{Nonce: "2", NonceLifetime: time.Hour, AccountID: a.ID, OrderID: o.ID}, now)
			return err
		}},
		{"updating an order that was fetched", 1, func() error {
			_, err := s.UpdateOrder(ctx, o, func(o *acme.Order) error { return o.Respond(0, acme.HTTP01, a, now) })
			return err
		}},
		{"storing a known chain", 0, func() error { _, err := s.PutChain(ctx, []byte("chain")); return err }},
		{"reading it", 0, func() error { _, err := s.Chain(ctx, "lBSIax6_Al2wZ6TL0ToJA_vZczpTcruhtYvXLBaZt5g"); return err }},
		{"claiming a certificate", 1, func() error { _, err := s.ClaimCertificate(ctx, "id", o.ID, now.Add(time.Hour)); return err }},
		{"looking for due orders when there are none", 1, func() error { _, err := s.ClaimDue(ctx, now, time.Minute, 10); return err }},
		{"claiming due orders", 2, func() error { _, err := s.ClaimDue(ctx, now.Add(time.Hour), time.Minute, 10); return err }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := p.sent.Load()
			check(t, tt.do())
			if got := p.sent.Load() - before; got != tt.want {
				t.Errorf("%d round trips, want %d", got, tt.want)
			}
		})
	}
}

// TestMemory measures what a finished order takes, with all that belongs to it:
// its entries in the indexes, its proof, and the claim of its certificate.
func TestMemory(t *testing.T) {
	const orders, accounts = 2000, 100
	s, rdb := setUp(t)
	var owners []*acme.Account
	for range accounts {
		owners = append(owners, account(t, s))
	}
	leaf := make([]byte, 1200) // RSA-2048 with a CRL and a policy, as Private CA issues
	used := func() int64 {
		var n int64
		for line := range strings.Lines(rdb.Info(t.Context(), "memory").Val()) {
			_, _ = fmt.Sscanf(line, "used_memory:%d", &n)
		}
		return n
	}
	finish(t, s, owners[0], order(t, s, owners[0]), leaf, time.Now().Add(time.Hour))
	before := used()
	for i := range orders {
		_, _ = rand.Read(leaf)
		a := owners[i%accounts]
		finish(t, s, a, order(t, s, a), leaf, time.Now().Add(90*24*time.Hour))
	}
	each := (used() - before) / orders
	t.Logf("%d octets for a finished order with a certificate of %d", each, len(leaf))
	if each >= 3<<10 {
		t.Errorf("a finished order takes %d octets, want less than 3 KB", each)
	}
}

func TestLifetimes(t *testing.T) {
	s, rdb := setUp(t)
	ctx := t.Context()
	const day = 24 * time.Hour
	lasts := func(what, key string, want time.Duration) {
		t.Helper()
		got := rdb.PTTL(ctx, key).Val()
		if want < 0 && got != -1 || want >= 0 && (got > want || got < want-time.Minute) {
			t.Errorf("%s is kept for %s, want %s", what, got, want)
		}
	}
	a := account(t, s)
	lasts("an account", key(a.ID, "account:", a.ID), -1)
	o := order(t, s, a)
	lasts("a pending order", key(o.ID, "order:", o.ID), day+7*day)
	var err error
	update := func(change func(*acme.Order) error) {
		t.Helper()
		o, err = s.UpdateOrder(ctx, o, change)
		check(t, err)
	}
	now := time.Now()
	update(func(o *acme.Order) error { o.Status = acme.StatusReady; return o.Finalize([]byte("CSR"), now) })
	lasts("a processing order", key(o.ID, "order:", o.ID), -1)
	update(func(o *acme.Order) error { return o.Submit(acme.Intent{Since: now, Deadline: now.Add(time.Minute)}) })
	update(func(o *acme.Order) error {
		return o.Issued(1, &acme.Certificate{ID: "x", NotAfter: now.Add(30 * day)})
	})
	lasts("a valid order", key(o.ID, "order:", o.ID), 37*day)
	update(func(o *acme.Order) error { o.Certificate.NotAfter = now.Add(-100 * day); return nil })
	lasts("what was just written, however old,", key(o.ID, "order:", o.ID), time.Hour)

	p := order(t, s, a)
	_, err = s.UpdateOrder(ctx, p, func(o *acme.Order) error {
		check(t, o.Respond(0, acme.HTTP01, a, now))
		return o.Validated(0, acme.HTTP01, nil, 30*day, now)
	})
	check(t, err)
	lasts("a proof", key(a.ID, "proof:", a.ID+":dns:www.corp.example.com"), 30*day)

	_, err = s.Fetch(ctx, acme.Lookup{Nonce: "nonce", NonceLifetime: 2 * time.Hour}, now)
	check(t, err)
	lasts("the mark of a nonce", "acme:{nonce}:nonce", 2*time.Hour)
	_, err = s.NonceKey(ctx, []byte("k"))
	check(t, err)
	lasts("the nonce key", "acme:{nonce}:key", -1)
	limit := acme.LimitKey{Scope: "s", Subject: a.ID, Limit: acme.Limit{Count: 2, Period: 2 * time.Hour}}
	check(t, s.Take(ctx, limit, 1, now))
	lasts("a limit's state", key(a.ID, "limit:", "s:"+a.ID), time.Hour)
}

// TestForeignValues: an answer that is not what was asked for (security lesson
// 21) reaches nobody.
func TestForeignValues(t *testing.T) {
	server := storagetest.StartRedis(t)
	var log logBuffer
	s, rdb := openLog(t, redis.Options{Addresses: []string{server.Addr}}, log.logger()), server.Client(t)
	ctx, now := t.Context(), time.Now()
	a, b := account(t, s), account(t, s)
	o, p := order(t, s, a), order(t, s, b)
	swap := func(x, y string) {
		t.Helper()
		vx, vy := rdb.Get(ctx, x).Val(), rdb.Get(ctx, y).Val()
		if vx == "" || vy == "" {
			t.Fatalf("%s or %s is not there", x, y)
		}
		check(t, rdb.MSet(ctx, x, vy, y, vx).Err())
	}
	prove := func(a *acme.Account, o *acme.Order) {
		_, err := s.UpdateOrder(ctx, o, func(o *acme.Order) error {
			check(t, o.Respond(0, acme.HTTP01, a, now))
			return o.Validated(0, acme.HTTP01, nil, time.Hour, now)
		})
		check(t, err)
	}
	prove(a, o)
	prove(b, p)
	for i, id := range []string{"c1", "c2"} {
		_, err := s.ClaimCertificate(ctx, id, []string{o.ID, p.ID}[i], now.Add(time.Hour))
		check(t, err)
		check(t, s.PutRecord(ctx, id, []byte(id), 0))
	}
	refs := make([]string, 2)
	for i := range refs {
		refs[i], _ = s.PutChain(ctx, fmt.Appendf(nil, "chain %d", i))
	}
	other := openLog(t, redis.Options{Addresses: []string{server.Addr}}, log.logger())
	for pattern, n := range map[string]int{"*:order:*": 2, "*:account:*": 2, "*:proof:*": 2, "*:cert:*": 2, "*:record:*": 2, "*:chain:*": 2} {
		keys := rdb.Keys(ctx, pattern).Val()
		if len(keys) != n {
			t.Fatalf("%d keys like %s, want %d", len(keys), pattern, n)
		}
		swap(keys[0], keys[1])
	}
	proof := acme.ProofKey{AccountID: a.ID, Name: "dns:www.corp.example.com"}
	for name, read := range map[string]func() (any, error){
		"an order":      func() (any, error) { return s.Order(ctx, o.ID) },
		"fetched order": func() (any, error) { return s.Fetch(ctx, acme.Lookup{OrderID: o.ID}, now) },
		"an update": func() (any, error) {
			return s.UpdateOrder(ctx, &acme.Order{ID: o.ID}, func(*acme.Order) error { t.Error("change saw it"); return nil })
		},
		"fetched account": func() (any, error) { return s.Fetch(ctx, acme.Lookup{AccountID: a.ID}, now) },
		"account by key":  func() (any, error) { return s.AccountByKey(ctx, "default", a.Thumbprint) },
		"a proof":         func() (any, error) { return s.Fetch(ctx, acme.Lookup{Proofs: []acme.ProofKey{proof}}, now) },
		"an owner":        func() (any, error) { return s.CertificateOwners(ctx, []string{"c1"}) },
		"a claim":         func() (any, error) { return s.ClaimCertificate(ctx, "c1", p.ID, now) },
		"a record":        func() (any, error) { v, _, err := s.Record(ctx, "c1"); return v, err },
		"a chain":         func() (any, error) { return other.Chain(ctx, refs[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			logged := len(log.String())
			got, err := read()
			if err == nil {
				t.Errorf("got %+v, want an error", got)
			}
			if len(log.String()) == logged {
				t.Error("nothing was logged")
			}
		})
	}
}

// TestBrokenAccountIndex puts the index into the states that a crash between
// two writes leaves behind.
func TestBrokenAccountIndex(t *testing.T) {
	s, rdb := setUp(t)
	ctx := t.Context()
	index := func(thumb string) string {
		t.Helper()
		// The shard of an entry is the store's own business.
		for n := range acme.Shards {
			k := fmt.Sprintf("acme:{%02d}:key:default:%s", n, thumb)
			if rdb.Exists(ctx, k).Val() == 1 {
				return k
			}
		}
		t.Fatalf("no index entry of %s", thumb)
		return ""
	}
	create := func(thumb string) (*acme.Account, bool) {
		t.Helper()
		a := newAccount(t)
		a.Thumbprint = thumb
		got, created, err := s.CreateAccount(ctx, a)
		check(t, err)
		if created && got.ID != a.ID {
			t.Errorf("created %s, want %s", got.ID, a.ID)
		}
		return got, created
	}
	change := func(id, thumb string) func(*acme.Account) error {
		return func(a *acme.Account) error { return a.ChangeKey([]byte(`{}`), thumb) }
	}

	t.Run("an account whose creator stopped before the last step lasts once it is found", func(t *testing.T) {
		a := account(t, s)
		rdb.PExpire(ctx, key(a.ID, "account:", a.ID), time.Minute)
		if got, created := create(a.Thumbprint); created || got.ID != a.ID {
			t.Errorf("got %s created %t, want %s", got.ID, created, a.ID)
		}
		if ttl := rdb.PTTL(ctx, key(a.ID, "account:", a.ID)).Val(); ttl != -1 {
			t.Errorf("it still goes away in %s", ttl)
		}
	})
	t.Run("an entry whose account is gone does not lock the key", func(t *testing.T) {
		a := account(t, s)
		rdb.Del(ctx, key(a.ID, "account:", a.ID))
		if _, err := s.AccountByKey(ctx, "default", a.Thumbprint); err == nil {
			t.Error("found")
		}
		b, created := create(a.Thumbprint)
		if !created {
			t.Error("not created")
		}
		if got, err := s.AccountByKey(ctx, "default", a.Thumbprint); err != nil || got.ID != b.ID {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("a key change that stopped before the save does not lock the key, and cannot go on", func(t *testing.T) {
		a, wanted := account(t, s), account(t, s).Thumbprint
		entry := index(wanted)
		rdb.Del(ctx, key(rdb.Get(ctx, entry).Val(), "account:", rdb.Get(ctx, entry).Val()))
		rdb.Set(ctx, entry, fmt.Sprintf("%s?%d", a.ID, a.Version), 0)
		if _, created := create(wanted); !created {
			t.Error("not created")
		}
		now, err := s.AccountByKey(ctx, "default", a.Thumbprint)
		if err != nil || now.Version == a.Version {
			t.Errorf("got %+v, %v; want a version that the key change does not know", now, err)
		}
		// The same for another account's key change.
		c, d := account(t, s), account(t, s)
		entry = index(d.Thumbprint)
		rdb.Del(ctx, key(d.ID, "account:", d.ID))
		rdb.Set(ctx, entry, fmt.Sprintf("%s?%d", c.ID, c.Version), 0)
		if got, changed, err := s.ChangeAccountKey(ctx, a.ID, d.Thumbprint, change(a.ID, d.Thumbprint)); err != nil || !changed || got.ID != a.ID {
			t.Errorf("changed %t, %+v, %v", changed, got, err)
		}
		// And for its own, begun again.
		e, wanted2 := account(t, s), account(t, s)
		rdb.Del(ctx, key(wanted2.ID, "account:", wanted2.ID))
		rdb.Set(ctx, index(wanted2.Thumbprint), fmt.Sprintf("%s?%d", e.ID, e.Version), 0)
		if got, changed, err := s.ChangeAccountKey(ctx, e.ID, wanted2.Thumbprint, change(e.ID, wanted2.Thumbprint)); err != nil || !changed || got.ID != e.ID {
			t.Errorf("changed %t, %+v, %v", changed, got, err)
		}
	})
	t.Run("a key change that stopped behind the save leaves the old key free", func(t *testing.T) {
		a := account(t, s)
		entry := index(a.Thumbprint)
		thumb, err := ids.Token()
		check(t, err)
		_, _, err = s.ChangeAccountKey(ctx, a.ID, thumb, change(a.ID, thumb))
		check(t, err)
		rdb.Set(ctx, entry, a.ID, 0)
		if _, err := s.AccountByKey(ctx, "default", a.Thumbprint); err == nil {
			t.Error("found by its old key")
		}
		if _, created := create(a.Thumbprint); !created {
			t.Error("the old key was not free")
		}
	})
}

func TestListOfOrdersForgetsWhatIsGone(t *testing.T) {
	s, rdb := setUp(t)
	ctx := t.Context()
	a := account(t, s)
	list := key(a.ID, "orders:", a.ID)
	var all []*acme.Order
	for range 12 {
		all = append(all, order(t, s, a))
	}
	slices.SortFunc(all, func(a, b *acme.Order) int { return strings.Compare(a.ID, b.ID) })
	for _, o := range all[2:10] {
		rdb.Del(ctx, key(o.ID, "order:", o.ID))
	}
	got, err := s.AccountOrders(ctx, a.ID, "", 3)
	check(t, err)
	if len(got) != 3 {
		t.Errorf("got %d orders, want 3 of the 4 that exist", len(got))
	}
	if n := rdb.ZCard(ctx, list).Val(); n != 4 {
		t.Errorf("the list has %d entries, want 4", n)
	}
	// Without anyone listing them, each new order takes old ones along.
	for _, o := range append(all[:2:2], all[10:]...) {
		rdb.Del(ctx, key(o.ID, "order:", o.ID))
	}
	rdb.ZAdd(ctx, list, goredis.Z{Member: acme.IDBefore(a.ID, time.Now().Add(-500*24*time.Hour))})
	var last *acme.Order
	for range 8 {
		last = order(t, s, a)
		rdb.Del(ctx, key(last.ID, "order:", last.ID))
	}
	if n := rdb.ZCard(ctx, list).Val(); n > 4 {
		t.Errorf("the list has %d entries, want few", n)
	}
}

func TestQueueForgetsWhatIsGone(t *testing.T) {
	s, rdb := setUp(t)
	ctx, now := t.Context(), time.Now()
	a := account(t, s)
	for range 2 {
		o, err := s.UpdateOrder(ctx, order(t, s, a), func(o *acme.Order) error { o.Wake = now; return nil })
		check(t, err)
		rdb.Del(ctx, key(o.ID, "order:", o.ID))
	}
	if got, err := s.ClaimDue(ctx, now.Add(time.Second), time.Minute, 10); err != nil || len(got) != 0 {
		t.Errorf("claimed %v, %v", got, err)
	}
	if n := rdb.ZCard(ctx, key(a.ID, "due", "")).Val(); n != 0 {
		t.Errorf("the queue has %d entries, want 0", n)
	}
}

func TestPolicyIsToldOnce(t *testing.T) {
	for _, tt := range []struct {
		policy string
		want   int
	}{{"allkeys-lru", 1}, {"volatile-ttl", 1}, {"noeviction", 0}} {
		server := storagetest.StartRedis(t, "--maxmemory-policy", tt.policy)
		var log logBuffer
		s := openLog(t, redis.Options{Addresses: []string{server.Addr}}, log.logger())
		for range 3 {
			check(t, s.Ping(t.Context()))
			facts, err := s.Facts(t.Context())
			check(t, err)
			if facts.Policy != tt.policy || !strings.Contains(facts.Version, ".") || facts.AppendOnly != "no" || facts.Sync != "everysec" {
				t.Errorf("got facts %+v", facts)
			}
		}
		if got := strings.Count(log.String(), "noeviction"); got != tt.want {
			t.Errorf("%s: told %d times, want %d: %s", tt.policy, got, tt.want, &log)
		}
	}
}

// TestRestrictedUser runs as an ACL user that may use our keys and the commands
// that the store needs, but not ask how the server is set up.
func TestRestrictedUser(t *testing.T) {
	user := []any{"acl", "setuser", "bridge", "on", ">secret", "~acme:*", "+cluster|slots"}
	for _, c := range strings.Fields(allowed) {
		if c != "config|get" && c != "info" {
			user = append(user, "+"+c)
		}
	}
	server := storagetest.StartRedis(t)
	check(t, server.Client(t).Do(t.Context(), user...).Err())
	var log logBuffer
	opts := redis.Options{Addresses: []string{server.Addr}, Username: "bridge", Password: "secret"}
	s := openLog(t, opts, log.logger())
	storagetest.Run(t, func(t *testing.T) acme.Store { return open(t, opts) })
	if facts, err := s.Facts(t.Context()); err != nil || facts != (redis.Facts{}) {
		t.Errorf("got %+v, %v; want nothing known and no error", facts, err)
	}
	if log.String() != "" {
		t.Errorf("logged %s", &log)
	}
	cluster := storagetest.StartCluster(t)
	for _, server := range cluster {
		check(t, server.Client(t).Do(t.Context(), user...).Err())
	}
	onCluster := open(t, redis.Options{Mode: redis.Cluster, Addresses: []string{cluster[0].Addr}, Username: "bridge", Password: "secret"})
	a := account(t, onCluster)
	finish(t, onCluster, a, order(t, onCluster, a), []byte("leaf"), time.Now().Add(time.Hour))
	if _, err := onCluster.ClaimDue(t.Context(), time.Now(), time.Minute, 10); err != nil {
		t.Errorf("in a cluster: %v", err)
	}
	opts.Password = "wrong password"
	err := open(t, opts).Ping(context.WithoutCancel(t.Context()))
	if err == nil || bytes.Contains([]byte(err.Error()), []byte(opts.Password)) {
		t.Errorf("got %v, want an error without the password", err)
	}
}
