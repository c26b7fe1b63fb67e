package storagetest

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

func testOpenLimit(t *testing.T, f *fixture) {
	a := f.account(t)
	limits := acme.OrderLimits{Open: 3}
	create := func(now time.Time) (*acme.Order, error) {
		t.Helper()
		g := *f
		g.now = now
		o := g.newOrder(t, a)
		return o, f.s.CreateOrder(f.ctx, o, limits, now)
	}
	var orders []*acme.Order
	for i := range 3 {
		o, err := create(f.now.Add(time.Duration(i) * time.Hour))
		check(t, err)
		orders = append(orders, o)
	}
	now := f.now.Add(3 * time.Hour)
	refused, err := create(now)
	if limit := limitOf(t, err); limit.After != 21*time.Hour {
		t.Errorf("try again after %s, want 21h, when the first expires", limit.After)
	}
	_, err = f.s.Order(f.ctx, refused.ID)
	wantError(t, err, acme.ErrNotFound)

	// What ends makes room, and what is valid does not count.
	f.update(t, orders[1], func(o *acme.Order) error { return cancel(o) })
	o, err := create(now)
	check(t, err)
	f.update(t, o, func(o *acme.Order) error { o.Status = acme.StatusValid; return nil })
	o, err = create(now)
	check(t, err)
	_, err = create(now)
	limitOf(t, err)
	// Ready and processing count.
	f.update(t, o, func(o *acme.Order) error {
		o.Status = acme.StatusReady
		return o.Finalize([]byte("CSR"), now)
	})
	_, err = create(now)
	limitOf(t, err)

	// The first expires without anyone looking at it.
	_, err = create(f.now.Add(24*time.Hour - time.Second))
	limitOf(t, err)
	_, err = create(f.now.Add(24 * time.Hour))
	check(t, err)
	// An order that becomes ready may expire earlier than it was to.
	if _, err = f.s.UpdateOrder(f.ctx, orders[2], func(o *acme.Order) error { o.Expires = f.now.Add(24 * time.Hour); return nil }); err != nil {
		t.Fatal(err)
	}
	_, err = create(f.now.Add(24 * time.Hour))
	check(t, err)
	_, err = create(f.now.Add(24 * time.Hour))
	limitOf(t, err)
	check(t, f.s.CreateOrder(f.ctx, f.newOrder(t, a), acme.OrderLimits{}, f.now.Add(24*time.Hour)))
}

func testOrderRate(t *testing.T, f *fixture) {
	a := f.account(t)
	for _, subject := range []string{a.ID, f.random(t)} { // counted in the order's shard, and elsewhere
		rate := acme.LimitKey{Scope: "orders", Subject: subject, Limit: acme.Limit{Count: 3, Period: 3 * time.Hour}}
		create := func(now time.Time) error {
			return f.s.CreateOrder(f.ctx, f.newOrder(t, a), acme.OrderLimits{Rate: rate}, now)
		}
		for range 3 {
			check(t, create(f.now))
		}
		if limit := limitOf(t, create(f.now)); limit.Scope != "orders" || limit.After != time.Hour {
			t.Errorf("got %+v, want orders after 1h", limit)
		}
		// What creating counts, asking sees.
		found := must[*acme.Found](t)(f.s.Fetch(f.ctx, acme.Lookup{Limits: []acme.LimitKey{rate}}, f.now))
		if found.Limited == nil || found.Limited.After != time.Hour {
			t.Errorf("fetch says %+v, want after 1h", found.Limited)
		}
		check(t, create(f.now.Add(time.Hour)))
		limitOf(t, create(f.now.Add(time.Hour)))
	}
}

func testOrderLimitRivals(t *testing.T, f *fixture) {
	for _, limits := range []acme.OrderLimits{
		{Open: 7}, {Rate: acme.LimitKey{Scope: "orders", Limit: acme.Limit{Count: 7, Period: time.Hour}}},
	} {
		a := f.account(t)
		limits.Rate.Subject = a.ID
		var stored atomic.Int32
		race(20, func(i int) {
			if err := f.pick(i).CreateOrder(f.ctx, f.newOrder(t, a), limits, f.now); err == nil {
				stored.Add(1)
			}
		})
		if got := stored.Load(); got != 7 {
			t.Errorf("%d orders were created, want 7", got)
		}
	}
}

func testLimit(t *testing.T, f *fixture) {
	for _, tt := range []struct {
		limit acme.Limit
		every time.Duration
	}{
		{acme.Limit{Count: 1, Period: time.Second}, time.Second},
		{acme.Limit{Count: 300, Period: 3 * time.Hour}, 36 * time.Second},
		{acme.Limit{Count: 7, Period: time.Minute}, time.Minute / 7},
		{acme.Limit{Count: 100, Period: time.Hour}, 36 * time.Second},
	} {
		key := acme.LimitKey{Scope: "test", Subject: f.random(t), Limit: tt.limit}
		for i := range tt.limit.Count {
			if i > 20 { // the rest at once
				check(t, f.s.Take(f.ctx, key, tt.limit.Count-i, f.now))
				break
			}
			check(t, f.s.Take(f.ctx, key, 1, f.now))
		}
		limit := limitOf(t, f.replica.Take(f.ctx, key, 1, f.now))
		if early := tt.every - limit.After; early < 0 || early > time.Millisecond {
			t.Errorf("%+v: try again after %s, want %s", tt.limit, limit.After, tt.every)
		}
		limitOf(t, f.s.Take(f.ctx, key, 1, f.now.Add(tt.every-time.Millisecond)))
		check(t, f.s.Take(f.ctx, key, 1, f.now.Add(tt.every)))
		limitOf(t, f.s.Take(f.ctx, key, 1, f.now.Add(tt.every)))
		if tt.limit.Count > 2 {
			check(t, f.s.Take(f.ctx, key, 2, f.now.Add(3*tt.every)))
			limitOf(t, f.s.Take(f.ctx, key, 1, f.now.Add(3*tt.every)))
		}
		// After a long time all of it is there again, and no more.
		late := f.now.Add(10 * tt.limit.Period)
		limitOf(t, f.s.Take(f.ctx, key, tt.limit.Count+1, late))
		check(t, f.s.Take(f.ctx, key, tt.limit.Count, late))
		limitOf(t, f.s.Take(f.ctx, key, 1, late))
	}
	none := acme.LimitKey{Scope: "test", Subject: f.random(t)}
	for range 5 {
		check(t, f.s.Take(f.ctx, none, 1000, f.now))
	}
}

func testLimitPeek(t *testing.T, f *fixture) {
	key := acme.LimitKey{Scope: "test", Subject: f.random(t), Limit: acme.Limit{Count: 2, Period: time.Minute}}
	for range 5 {
		check(t, f.s.Take(f.ctx, key, 0, f.now))
	}
	check(t, f.s.Take(f.ctx, key, 2, f.now))
	if limit := limitOf(t, f.s.Take(f.ctx, key, 0, f.now)); limit.After != 30*time.Second {
		t.Errorf("try again after %s, want 30s", limit.After)
	}
	for _, tt := range []struct {
		at      time.Duration
		limited bool
	}{{0, true}, {29 * time.Second, true}, {30 * time.Second, false}, {time.Hour, false}} {
		found := must[*acme.Found](t)(f.replica.Fetch(f.ctx, acme.Lookup{Limits: []acme.LimitKey{key}}, f.now.Add(tt.at)))
		if (found.Limited != nil) != tt.limited {
			t.Errorf("after %s: limit %v, want %t", tt.at, found.Limited, tt.limited)
		}
	}
}

func testLimitRivals(t *testing.T, f *fixture) {
	key := acme.LimitKey{Scope: "test", Subject: f.random(t), Limit: acme.Limit{Count: 7, Period: time.Hour}}
	var taken atomic.Int32
	race(rivals, func(i int) {
		if f.pick(i).Take(f.ctx, key, 1, f.now) == nil {
			taken.Add(1)
		}
	})
	if got := taken.Load(); got != 7 {
		t.Errorf("%d were allowed, want 7", got)
	}
}

func testClaimCertificate(t *testing.T, f *fixture) {
	a := f.account(t)
	orders := make([]string, rivals)
	for i := range orders {
		orders[i] = must[string](t)(f.ids.Order(a.ID, f.now))
	}
	cert := f.random(t) + ".AQ"
	owners := make([]string, rivals)
	race(rivals, func(i int) {
		owner, err := f.pick(i).ClaimCertificate(f.ctx, cert, orders[i], f.now.Add(time.Hour))
		if err != nil {
			t.Error(err)
		}
		owners[i] = owner
	})
	won := 0
	for i := range owners {
		if owners[i] != owners[0] {
			t.Fatalf("owners %s and %s, want one", owners[i], owners[0])
		}
		if owners[i] == orders[i] {
			won++
		}
	}
	if won != 1 {
		t.Errorf("%d own the certificate, want 1", won)
	}
	if owner := must[string](t)(f.s.ClaimCertificate(f.ctx, cert, owners[0], time.Time{})); owner != owners[0] {
		t.Errorf("a repeated claim returned %s, want %s", owner, owners[0])
	}
	other := f.random(t) + ".AQ"
	must[string](t)(f.s.ClaimCertificate(f.ctx, other, orders[1], f.now.Add(time.Hour)))
	got := must[[]string](t)(f.replica.CertificateOwners(f.ctx, []string{"unknown.AQ", cert, other}))
	if want := []string{"", owners[0], orders[1]}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got owners %q, want %q", got, want)
	}
	if got, err := f.s.CertificateOwners(f.ctx, nil); err != nil || len(got) != 0 {
		t.Errorf("owners of nothing: %v, %v", got, err)
	}
}

func testChain(t *testing.T, f *fixture) {
	pem := []byte("-----BEGIN CERTIFICATE-----\n" + f.random(t) + "\n-----END CERTIFICATE-----\n")
	ref := must[string](t)(f.s.PutChain(f.ctx, pem))
	for i := range 4 {
		if again := must[string](t)(f.pick(i).PutChain(f.ctx, pem)); again != ref {
			t.Errorf("got name %s, want %s", again, ref)
		}
		got := must[[]byte](t)(f.pick(i).Chain(f.ctx, ref))
		if string(got) != string(pem) {
			t.Errorf("got %q, want %q", got, pem)
		}
		got[0] = 'X' // the caller's own
	}
	if other := must[string](t)(f.s.PutChain(f.ctx, []byte("other"+f.random(t)))); other == ref {
		t.Error("two chains have one name")
	}
	_, err := f.s.Chain(f.ctx, f.random(t))
	wantError(t, err, acme.ErrNotFound)
}

func testRecord(t *testing.T, f *fixture) {
	name := "record-" + f.random(t)
	data, version, err := f.s.Record(f.ctx, name)
	if err != nil || data != nil || version != 0 {
		t.Errorf("got %q version %d, %v; want nothing", data, version, err)
	}
	check(t, f.s.PutRecord(f.ctx, name, []byte("first\n\x00"), 0))
	wantError(t, f.s.PutRecord(f.ctx, name, []byte("rival"), 0), acme.ErrConflict)
	data, version, err = f.replica.Record(f.ctx, name)
	if err != nil || string(data) != "first\n\x00" || version == 0 {
		t.Errorf("got %q version %d, %v", data, version, err)
	}
	var won atomic.Int32
	race(rivals, func(i int) {
		if f.pick(i).PutRecord(f.ctx, name, fmt.Appendf(nil, "%d", i), version) == nil {
			won.Add(1)
		}
	})
	if won.Load() != 1 {
		t.Errorf("%d replaced one version, want 1", won.Load())
	}
	wantError(t, f.s.PutRecord(f.ctx, "record-"+f.random(t), nil, 5), acme.ErrConflict)
}

func testQuarantine(t *testing.T, f *fixture) {
	reader, ok := f.s.(interface {
		Quarantined(ctx context.Context, limit int) ([]*acme.Quarantine, error)
	})
	if !ok {
		t.Fatal("the operator cannot read the quarantine")
	}
	for i := range 3 {
		check(t, f.replica.PutQuarantine(f.ctx, &acme.Quarantine{
			OrderID: name(i), Backend: "lab", Reason: "another key", Time: f.now, Leaf: []byte{0, byte(i)},
		}))
	}
	got := must[[]*acme.Quarantine](t)(reader.Quarantined(f.ctx, 2))
	if len(got) != 2 || got[0].OrderID != name(2) || got[1].OrderID != name(1) || got[0].Leaf[1] != 2 || !got[0].Time.Equal(f.now) {
		t.Errorf("got %+v, want the newest two", got)
	}
}
