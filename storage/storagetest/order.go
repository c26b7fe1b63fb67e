package storagetest

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

func testOrderRoundTrip(t *testing.T, f *fixture) {
	a := f.account(t)
	o := f.newOrder(t, a, "www.example.com", "*.example.com")
	o.NotBefore, o.NotAfter = f.now, f.now.Add(time.Hour)
	o.Error = acme.Problemf(acme.Compound, "several").WithStatus(400)
	o.Error.Subproblems = []*acme.Problem{acme.Problemf(acme.DNS, "first").For(o.Identifiers()[0])}
	check(t, f.s.CreateOrder(f.ctx, o, acme.OrderLimits{}, f.now))
	if o.Version == 0 {
		t.Error("a created order has no version")
	}
	if got := must[*acme.Order](t)(f.replica.Order(f.ctx, o.ID)); !reflect.DeepEqual(got, o) {
		t.Errorf("got %+v, want %+v", got, o)
	}
	_, err := f.s.Order(f.ctx, must[string](t)(f.ids.Order(a.ID, f.now)))
	wantError(t, err, acme.ErrNotFound)
}

func testOrderCertificate(t *testing.T, f *fixture) {
	leaf := []byte("DER with \n line feeds \x00 and { } all octets \xff\n")
	o := f.processing(t, f.account(t))
	submitted := f.update(t, o, func(o *acme.Order) error {
		return o.Submit(acme.Intent{Since: f.now, Deadline: f.now.Add(time.Minute), Backend: "lab", Mark: "mark"})
	})
	if got := must[*acme.Order](t)(f.replica.Order(f.ctx, o.ID)); !reflect.DeepEqual(got, submitted) {
		t.Errorf("got %+v, want %+v", got, submitted)
	}
	issued := f.update(t, submitted, func(o *acme.Order) error {
		return o.Issued(1, &acme.Certificate{
			ID: "a.b", Leaf: slices.Clone(leaf), ChainRef: "ref", Issued: f.now, NotAfter: f.now.Add(90 * 24 * time.Hour), Backend: "lab",
		})
	})
	got := must[*acme.Order](t)(f.replica.Order(f.ctx, o.ID))
	if !reflect.DeepEqual(got, issued) || !slices.Equal(got.Certificate.Leaf, leaf) || got.Status != acme.StatusValid {
		t.Errorf("got %+v, want %+v", got, issued)
	}
	revoked := f.update(t, issued, func(o *acme.Order) error { return o.Revoke(1, f.now) })
	if got := must[*acme.Order](t)(f.s.Order(f.ctx, o.ID)); !reflect.DeepEqual(got, revoked) {
		t.Errorf("got %+v, want %+v", got, revoked)
	}
}

func testUpdateStale(t *testing.T, f *fixture) {
	a := f.account(t)
	created := f.order(t, a)
	first := f.update(t, created, func(o *acme.Order) error { o.Attempts = 1; return nil })
	if created.Attempts != 0 {
		t.Error("the caller's copy was changed")
	}
	for _, last := range []*acme.Order{created, {ID: created.ID}, first} {
		var seen []int
		got, err := f.replica.UpdateOrder(f.ctx, last, func(o *acme.Order) error {
			seen = append(seen, o.Attempts)
			o.Attempts++
			return nil
		})
		check(t, err)
		want := seen[len(seen)-1] + 1
		if stored := must[*acme.Order](t)(f.s.Order(f.ctx, created.ID)); stored.Attempts != want || !reflect.DeepEqual(stored, got) {
			t.Errorf("change saw %v, returned %+v, stored %+v", seen, got, stored)
		}
	}
	if stored := must[*acme.Order](t)(f.s.Order(f.ctx, created.ID)); stored.Attempts != 4 {
		t.Errorf("%d updates are there, want 4", stored.Attempts)
	}
	// What an old copy would refuse may be right by now, and the other way round.
	got, err := f.s.UpdateOrder(f.ctx, created, func(o *acme.Order) error {
		switch o.Attempts {
		case 0:
			return acme.ErrUnchanged
		case 4:
			o.Attempts = 5
			return nil
		}
		return errors.New("neither")
	})
	if err != nil || got.Attempts != 5 {
		t.Errorf("got %+v, %v; want the change made on what is stored", got, err)
	}
}

func testUpdateRefused(t *testing.T, f *fixture) {
	o := f.order(t, f.account(t))
	for _, last := range []*acme.Order{o, {ID: o.ID}} {
		got := f.update(t, last, func(o *acme.Order) error {
			o.Status = acme.StatusInvalid
			return acme.ErrUnchanged
		})
		if !reflect.DeepEqual(got, o) {
			t.Errorf("unchanged: got %+v, want %+v", got, o)
		}
		refusal := acme.Problemf(acme.OrderNotReady, "no")
		_, err := f.s.UpdateOrder(f.ctx, last, func(o *acme.Order) error {
			o.Status = acme.StatusInvalid
			return refusal
		})
		wantError(t, err, refusal)
	}
	if stored := must[*acme.Order](t)(f.s.Order(f.ctx, o.ID)); !reflect.DeepEqual(stored, o) {
		t.Errorf("got %+v, want it as it was", stored)
	}
	for what, change := range map[string]func(*acme.Order) error{
		"an order's ID":      func(o *acme.Order) error { o.ID = o.AccountID; return nil },
		"an order's account": func(o *acme.Order) error { o.AccountID = o.ID; return nil },
	} {
		if _, err := f.s.UpdateOrder(f.ctx, o, change); err == nil {
			t.Errorf("%s could be changed", what)
		}
	}
}

func testOrderRivals(t *testing.T, f *fixture) {
	o := f.order(t, f.account(t))
	race(rivals, func(i int) {
		if _, err := f.pick(i).UpdateOrder(f.ctx, o, func(o *acme.Order) error {
			o.Attempts++
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	if got := must[*acme.Order](t)(f.s.Order(f.ctx, o.ID)); got.Attempts != rivals {
		t.Errorf("%d of %d updates are there", got.Attempts, rivals)
	}
}

func testSubmitRivals(t *testing.T, f *fixture) {
	o := f.processing(t, f.account(t))
	var won atomic.Int32
	race(rivals, func(i int) {
		mine := false
		got, err := f.pick(i).UpdateOrder(f.ctx, o, func(o *acme.Order) error {
			err := o.Submit(acme.Intent{Since: f.now, Deadline: f.now.Add(time.Minute)})
			mine = err == nil
			return err
		})
		if err != nil || got.Intent == nil {
			t.Errorf("got %+v, %v", got, err)
		}
		if mine {
			won.Add(1)
		}
	})
	if got := won.Load(); got != 1 {
		t.Errorf("%d submits won, want 1", got)
	}
	if got := must[*acme.Order](t)(f.s.Order(f.ctx, o.ID)); got.Attempts != 1 {
		t.Errorf("%d attempts, want 1", got.Attempts)
	}
}

func testFinalizeRivals(t *testing.T, f *fixture) {
	o := f.update(t, f.order(t, f.account(t)), func(o *acme.Order) error { o.Status = acme.StatusReady; return nil })
	var won, refused atomic.Int32
	race(rivals, func(i int) {
		_, err := f.pick(i).UpdateOrder(f.ctx, o, func(o *acme.Order) error {
			return o.Finalize([]byte{byte(i)}, f.now)
		})
		var p *acme.Problem
		switch {
		case err == nil:
			won.Add(1)
		case errors.As(err, &p) && p.Type == acme.OrderNotReady:
			refused.Add(1)
		default:
			t.Error(err)
		}
	})
	if won.Load() != 1 || refused.Load() != rivals-1 {
		t.Errorf("%d won and %d were refused, want 1 and %d", won.Load(), refused.Load(), rivals-1)
	}
}

func testUpdateContext(t *testing.T, f *fixture) {
	o := f.order(t, f.account(t))
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	_, err := f.s.UpdateOrder(ctx, o, func(o *acme.Order) error { o.Attempts++; return nil })
	wantError(t, err, context.Canceled)
	if errors.Is(err, acme.ErrUnavailable) {
		t.Errorf("got %v: the store was not unavailable, its caller went away", err)
	}
	if got := must[*acme.Order](t)(f.s.Order(f.ctx, o.ID)); got.Attempts != 0 {
		t.Errorf("the update was made")
	}
}

func testChangePanics(t *testing.T, f *fixture) {
	o := f.order(t, f.account(t))
	func() {
		// A store may let the panic through to its caller.
		defer func() { _ = recover() }()
		if _, err := f.s.UpdateOrder(f.ctx, o, func(o *acme.Order) error {
			o.Authorizations[99].Status = acme.StatusValid
			return nil
		}); err == nil {
			t.Error("a change that panicked was saved")
		}
	}()
	if got := f.update(t, o, func(o *acme.Order) error { o.Attempts++; return nil }); got.Attempts != 1 {
		t.Errorf("got %d attempts, want 1", got.Attempts)
	}
}

// dueNow claims until nothing more is due, and returns those asked about.
func (f *fixture) dueNow(t *testing.T, s acme.Store, now time.Time, lease time.Duration, about ...string) []string {
	t.Helper()
	var got []string
	for {
		ids := must[[]string](t)(s.ClaimDue(f.ctx, now, lease, 100))
		for _, id := range ids {
			if slices.Contains(about, id) {
				got = append(got, id)
			}
		}
		if len(ids) == 0 {
			return got
		}
	}
}

func testClaimDue(t *testing.T, f *fixture) {
	o := f.processing(t, f.account(t))
	if got := f.dueNow(t, f.s, o.Wake.Add(-time.Millisecond), time.Minute, o.ID); len(got) != 0 {
		t.Errorf("claimed before its time")
	}
	at := o.Wake
	if got := f.dueNow(t, f.s, at, time.Minute, o.ID); len(got) != 1 {
		t.Errorf("claimed %d times, want 1", len(got))
	}
	if got := f.dueNow(t, f.replica, at.Add(time.Minute-time.Millisecond), time.Minute, o.ID); len(got) != 0 {
		t.Error("claimed within the lease")
	}
	// A worker that died needs no clearing up: the lease runs out.
	if got := f.dueNow(t, f.replica, at.Add(time.Minute), time.Minute, o.ID); len(got) != 1 {
		t.Errorf("after the lease claimed %d times, want 1", len(got))
	}
	// A claim is no change: the version read before is good for a save.
	calls := 0
	f.update(t, o, func(o *acme.Order) error {
		calls++
		return o.Submit(acme.Intent{Since: at, Deadline: at.Add(time.Minute)})
	})
	if calls != 1 {
		t.Errorf("the save after a claim took %d tries, want 1", calls)
	}
}

func testClaimLimit(t *testing.T, f *fixture) {
	f.dueNow(t, f.s, f.now.Add(100*time.Hour), 1000*time.Hour)
	var want []string
	for i := range 12 {
		o := f.update(t, f.order(t, f.account(t)), func(o *acme.Order) error {
			o.Wake = f.now.Add(time.Duration(i) * time.Second)
			return nil
		})
		want = append(want, o.ID)
	}
	first := must[[]string](t)(f.s.ClaimDue(f.ctx, f.now.Add(time.Hour), time.Hour, 5))
	slices.Sort(first)
	most := slices.Sorted(slices.Values(want[:5]))
	if !slices.Equal(first, most) {
		t.Errorf("claimed %v, want the five most urgent %v", first, most)
	}
	rest := f.dueNow(t, f.s, f.now.Add(time.Hour), time.Hour, want...)
	if len(rest) != 7 {
		t.Errorf("claimed %d then, want 7", len(rest))
	}
	if got := must[[]string](t)(f.s.ClaimDue(f.ctx, f.now.Add(time.Hour), time.Hour, 0)); len(got) != 0 {
		t.Errorf("limit 0 claimed %v", got)
	}
}

func testClaimRivals(t *testing.T, f *fixture) {
	var orders []string
	for range 40 {
		orders = append(orders, f.processing(t, f.account(t)).ID)
	}
	counts := make([]atomic.Int32, len(orders))
	race(10, func(i int) {
		for {
			ids, err := f.pick(i).ClaimDue(f.ctx, f.now.Add(time.Minute), time.Hour, 7)
			if err != nil {
				t.Error(err)
			}
			if len(ids) > 7 {
				t.Errorf("claimed %d, want 7 at most", len(ids))
			}
			if len(ids) == 0 {
				return
			}
			for _, id := range ids {
				if n := slices.Index(orders, id); n >= 0 {
					counts[n].Add(1)
				}
			}
		}
	})
	// Rivals may all come away with nothing while others hold the claims, so
	// what is left over is taken here.
	for _, id := range f.dueNow(t, f.s, f.now.Add(time.Minute), time.Hour, orders...) {
		counts[slices.Index(orders, id)].Add(1)
	}
	for i := range counts {
		if n := counts[i].Load(); n != 1 {
			t.Errorf("order %d was claimed %d times, want 1", i, n)
		}
	}
}

func testReschedule(t *testing.T, f *fixture) {
	o := f.processing(t, f.account(t))
	later := f.now.Add(time.Hour)
	o = f.update(t, o, func(o *acme.Order) error { o.Wake = later; return nil })
	if got := f.dueNow(t, f.s, later.Add(-time.Second), time.Minute, o.ID); len(got) != 0 {
		t.Error("due at the old time")
	}
	if got := f.dueNow(t, f.s, later, time.Minute, o.ID); len(got) != 1 {
		t.Error("not due at the new time")
	}
	// A save during a lease says itself when the order is due again.
	o = f.update(t, o, func(o *acme.Order) error { o.Wake = later.Add(time.Second); return nil })
	if got := f.dueNow(t, f.s, later.Add(time.Second), time.Minute, o.ID); len(got) != 1 {
		t.Error("not due at the time of the last save")
	}
	f.update(t, o, func(o *acme.Order) error { return o.Refused(0, acme.Problemf(acme.ServerInternal, "no")) })
	if got := f.dueNow(t, f.s, later.Add(100*time.Hour), time.Minute, o.ID); len(got) != 0 {
		t.Error("due though it ended")
	}
}

func (f *fixture) proofs(t *testing.T, a *acme.Account, now time.Time, names ...string) []*acme.Proof {
	t.Helper()
	q := acme.Lookup{}
	for _, n := range names {
		q.Proofs = append(q.Proofs, acme.ProofKey{AccountID: a.ID, Name: n})
	}
	return must[*acme.Found](t)(f.replica.Fetch(f.ctx, q, now)).Proofs
}

func testProofs(t *testing.T, f *fixture) {
	a, stranger := f.account(t), f.account(t)
	a.KeyEpoch = 3
	o := f.order(t, a, "www.example.com", "*.example.com")
	names := []string{"dns:www.example.com", "dns:*.example.com", "dns:example.com"}
	o = f.update(t, o, func(o *acme.Order) error {
		check(t, o.Respond(0, acme.HTTP01, a, f.now))
		check(t, o.Respond(1, acme.DNS01, a, f.now))
		check(t, o.Validated(0, acme.HTTP01, nil, lifetime, f.now))
		return o.Validated(1, acme.DNS01, nil, lifetime, f.now)
	})
	if len(o.Grants) != 0 {
		t.Error("a saved order still has grants, which the next save would write again")
	}
	got := f.proofs(t, a, f.now, names...)
	want := &acme.Proof{
		ProofKey: acme.ProofKey{AccountID: a.ID, Name: names[0]}, Method: acme.HTTP01, KeyEpoch: 3,
		Validated: f.now, Expires: f.now.Add(lifetime),
	}
	if !reflect.DeepEqual(got[0], want) {
		t.Errorf("got %+v, want %+v", got[0], want)
	}
	if got[1] == nil || got[1].Method != acme.DNS01 || got[2] != nil {
		t.Errorf("got %+v and %+v, want the wildcard's and nil", got[1], got[2])
	}
	if others := f.proofs(t, stranger, f.now, names...); others[0] != nil || others[1] != nil {
		t.Error("another account has the proofs too")
	}
	o = f.update(t, o, func(o *acme.Order) error { return o.DeactivateAuthorization(0) })
	if len(o.Withdrawals) != 0 {
		t.Error("a saved order still has withdrawals")
	}
	if got := f.proofs(t, a, f.now, names...); got[0] != nil || got[1] == nil {
		t.Errorf("got %+v and %+v, want the first withdrawn", got[0], got[1])
	}
	foreign := f.order(t, a)
	if _, err := f.s.UpdateOrder(f.ctx, foreign, func(o *acme.Order) error {
		other := *want
		other.AccountID = otherShard(a.ID)
		o.Grants = append(o.Grants, &other)
		return nil
	}); err == nil {
		t.Error("an order could grant a proof to another shard's account")
	}
}

// otherShard is an account ID in another shard.
func otherShard(id string) string {
	shard := "00"
	if strings.HasPrefix(id, shard) {
		shard = "01"
	}
	return shard + id[len(shard):]
}

func testProofExpires(t *testing.T, f *fixture) {
	a := f.account(t)
	f.update(t, f.order(t, a), func(o *acme.Order) error {
		check(t, o.Respond(0, acme.HTTP01, a, f.now))
		return o.Validated(0, acme.HTTP01, nil, lifetime, f.now)
	})
	end := f.now.Add(lifetime)
	if f.proofs(t, a, end.Add(-time.Second), "dns:www.example.com")[0] == nil {
		t.Error("gone before it ran out")
	}
	if f.proofs(t, a, end, "dns:www.example.com")[0] != nil {
		t.Error("found though it ran out")
	}
}

func testListInvalid(t *testing.T, f *fixture) {
	a := f.account(t)
	pending, cancelled, processing := f.order(t, a), f.order(t, a), f.processing(t, a)
	f.update(t, cancelled, func(o *acme.Order) error { return cancel(o) })
	want := slices.Sorted(slices.Values([]string{pending.ID, processing.ID}))
	if got := must[[]string](t)(f.replica.AccountOrders(f.ctx, a.ID, "", 10)); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := must[[]string](t)(f.s.AccountOrders(f.ctx, f.account(t).ID, "", 10)); len(got) != 0 {
		t.Errorf("a new account has orders %v", got)
	}
}

func testListPages(t *testing.T, f *fixture) {
	a := f.account(t)
	add := func(from, to int) (ids []string) {
		for i := from; i < to; i++ {
			o := f.newOrder(t, a)
			o.ID = must[string](t)(f.ids.Order(a.ID, f.now.Add(time.Duration(i)*time.Second)))
			check(t, f.s.CreateOrder(f.ctx, o, acme.OrderLimits{}, f.now))
			ids = append(ids, o.ID)
		}
		return ids
	}
	want := add(0, 10)
	var got []string
	after := ""
	for page := 0; ; page++ {
		ids := must[[]string](t)(f.s.AccountOrders(f.ctx, a.ID, after, 4))
		if len(ids) > 4 {
			t.Fatalf("page of %d, want 4 at most", len(ids))
		}
		if len(ids) == 0 {
			break
		}
		got, after = append(got, ids...), ids[len(ids)-1]
		if page == 0 {
			want = append(want, add(10, 13)...)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d orders %v, want %v", len(got), got, want)
	}
	// A page may begin after an order that has left the list.
	gone := &acme.Order{ID: want[3]}
	f.update(t, gone, func(o *acme.Order) error { return cancel(o) })
	if ids := must[[]string](t)(f.s.AccountOrders(f.ctx, a.ID, want[3], 2)); !slices.Equal(ids, want[4:6]) {
		t.Errorf("got %v, want %v", ids, want[4:6])
	}
}
