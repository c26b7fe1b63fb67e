package storagetest

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

func testNonceRivals(t *testing.T, f *fixture) {
	nonce := f.random(t)
	var fresh atomic.Int32
	race(rivals, func(i int) {
		found, err := f.pick(i).Fetch(f.ctx, acme.Lookup{Nonce: nonce, NonceLifetime: time.Hour}, f.now)
		if err != nil {
			t.Error(err)
		} else if found.NonceFresh {
			fresh.Add(1)
		}
	})
	if got := fresh.Load(); got != 1 {
		t.Errorf("%d of %d redeemed the nonce, want 1", got, rivals)
	}
	found := must[*acme.Found](t)(f.s.Fetch(f.ctx, acme.Lookup{Nonce: f.random(t), NonceLifetime: time.Hour}, f.now))
	if !found.NonceFresh {
		t.Error("another nonce was not fresh")
	}
	// A mark outlasts the nonce: at the end of its lifetime it still counts.
	found = must[*acme.Found](t)(f.s.Fetch(f.ctx, acme.Lookup{Nonce: nonce, NonceLifetime: time.Hour}, f.now.Add(time.Hour-time.Second)))
	if found.NonceFresh {
		t.Error("nonce was fresh again before its lifetime ended")
	}
}

func testNonceKey(t *testing.T, f *fixture) {
	keys := make([]string, rivals)
	race(rivals, func(i int) {
		key, err := f.pick(i).NonceKey(f.ctx, fmt.Appendf(nil, "key %d", i))
		if err != nil {
			t.Error(err)
		}
		keys[i] = string(key)
	})
	for _, k := range keys {
		if k == "" || k != keys[0] {
			t.Fatalf("got keys %q and %q, want one", k, keys[0])
		}
	}
	found := must[*acme.Found](t)(f.replica.Fetch(f.ctx, acme.Lookup{}, f.now))
	if string(found.NonceKey) != keys[0] {
		t.Errorf("fetch returned nonce key %q, want %q", found.NonceKey, keys[0])
	}
}

func testFetch(t *testing.T, f *fixture) {
	a := f.account(t)
	o := f.order(t, a)
	have := acme.ProofKey{AccountID: a.ID, Name: "dns:www.example.com"}
	o = f.update(t, o, func(o *acme.Order) error {
		check(t, o.Respond(0, acme.HTTP01, a, f.now))
		return o.Validated(0, acme.HTTP01, nil, lifetime, f.now)
	})
	limit := acme.LimitKey{Scope: "validations", Subject: a.ID + " x", Limit: acme.Limit{Count: 1, Period: time.Hour}}
	check(t, f.s.Take(f.ctx, limit, 1, f.now))

	found := must[*acme.Found](t)(f.replica.Fetch(f.ctx, acme.Lookup{
		Nonce: f.random(t), NonceLifetime: time.Hour, AccountID: a.ID, OrderID: o.ID,
		Proofs: []acme.ProofKey{{AccountID: a.ID, Name: "dns:none.example.com"}, have},
		Limits: []acme.LimitKey{{Scope: "other", Subject: "192.0.2.1", Limit: limit.Limit}, limit},
	}, f.now))
	if !found.NonceFresh {
		t.Error("nonce was not fresh")
	}
	if !reflect.DeepEqual(found.Account, a) {
		t.Errorf("got account %+v, want %+v", found.Account, a)
	}
	if !reflect.DeepEqual(found.Order, o) {
		t.Errorf("got order %+v, want %+v", found.Order, o)
	}
	if len(found.Proofs) != 2 || found.Proofs[0] != nil || found.Proofs[1] == nil || found.Proofs[1].ProofKey != have {
		t.Errorf("got proofs %v, want nil and that of %s", found.Proofs, have.Name)
	}
	if found.Limited == nil || found.Limited.Scope != "validations" || found.Limited.After != time.Hour {
		t.Errorf("got limit %+v, want validations after 1h", found.Limited)
	}

	other := must[string](t)(f.ids.Account(f.now))
	missing := must[*acme.Found](t)(f.s.Fetch(f.ctx, acme.Lookup{
		AccountID: other, OrderID: must[string](t)(f.ids.Order(other, f.now)),
		Proofs: []acme.ProofKey{{AccountID: other, Name: have.Name}},
	}, f.now))
	if missing.Account != nil || missing.Order != nil || len(missing.Proofs) != 1 || missing.Proofs[0] != nil || missing.NonceFresh || missing.Limited != nil {
		t.Errorf("got %+v, want nothing", missing)
	}
}

func testAccountRivals(t *testing.T, f *fixture) {
	model := f.newAccount(t, "default")
	ids := make([]string, rivals)
	var created atomic.Int32
	race(rivals, func(i int) {
		a := model.Clone()
		var err error
		if a.ID, err = f.ids.Account(f.now); err != nil {
			t.Error(err)
			return
		}
		got, won, err := f.pick(i).CreateAccount(f.ctx, a)
		if err != nil {
			t.Error(err)
			return
		}
		if won {
			created.Add(1)
			if got.ID != a.ID {
				t.Errorf("created account %s, want %s", got.ID, a.ID)
			}
		}
		if got.Version == 0 || got.Thumbprint != model.Thumbprint {
			t.Errorf("got version %d of key %s", got.Version, got.Thumbprint)
		}
		ids[i] = got.ID
	})
	if got := created.Load(); got != 1 {
		t.Errorf("%d of %d created an account, want 1", got, rivals)
	}
	if slices.Sort(ids); ids[0] != ids[len(ids)-1] {
		t.Errorf("rivals got accounts %v, want one", slices.Compact(ids))
	}
}

func testAccountByKey(t *testing.T, f *fixture) {
	a := f.account(t)
	got := must[*acme.Account](t)(f.replica.AccountByKey(f.ctx, "default", a.Thumbprint))
	if !reflect.DeepEqual(got, a) {
		t.Errorf("got %+v, want %+v", got, a)
	}
	_, err := f.s.AccountByKey(f.ctx, "tenant", a.Thumbprint)
	wantError(t, err, acme.ErrNotFound)
	_, err = f.s.AccountByKey(f.ctx, "default", f.random(t))
	wantError(t, err, acme.ErrNotFound)
	for _, tt := range []struct {
		directory, thumbprint string
		want                  bool
	}{{"default", a.Thumbprint, true}, {"tenant", a.Thumbprint, false}, {"default", f.random(t), false}, {"", "", false}} {
		found := must[*acme.Found](t)(f.replica.Fetch(f.ctx, acme.Lookup{Directory: tt.directory, Thumbprint: tt.thumbprint}, f.now))
		if found.KeyNamed != tt.want {
			t.Errorf("key %q of %q named: %t, want %t", tt.thumbprint, tt.directory, found.KeyNamed, tt.want)
		}
	}

	twin := a.Clone()
	twin.ID, twin.Directory = must[string](t)(f.ids.Account(f.now)), "tenant"
	if _, created, err := f.s.CreateAccount(f.ctx, twin); err != nil || !created {
		t.Errorf("another directory: created %t, error %v; want a second account", created, err)
	}
}

func testUpdateAccount(t *testing.T, f *fixture) {
	a := f.account(t)
	contact := []string{"mailto:new@example.com"}
	got := must[*acme.Account](t)(f.replica.UpdateAccount(f.ctx, a.ID, func(a *acme.Account) error { return a.SetContact(contact) }))
	if !slices.Equal(got.Contact, contact) || got.Version == a.Version {
		t.Errorf("got %v version %d, want %v and a new version", got.Contact, got.Version, contact)
	}
	again := must[*acme.Account](t)(f.s.UpdateAccount(f.ctx, a.ID, func(*acme.Account) error { return acme.ErrUnchanged }))
	if !reflect.DeepEqual(again, got) {
		t.Errorf("unchanged: got %+v, want %+v", again, got)
	}
	refusal := acme.Problemf(acme.Unauthorized, "no")
	_, err := f.s.UpdateAccount(f.ctx, a.ID, func(a *acme.Account) error {
		a.Status = acme.StatusDeactivated
		return refusal
	})
	wantError(t, err, refusal)
	if now := must[*acme.Account](t)(f.s.AccountByKey(f.ctx, "default", a.Thumbprint)); now.Status != acme.StatusValid {
		t.Errorf("refused update left status %s", now.Status)
	}
	_, err = f.s.UpdateAccount(f.ctx, must[string](t)(f.ids.Account(f.now)), func(*acme.Account) error { return nil })
	wantError(t, err, acme.ErrNotFound)
}

func testAccountUpdateRivals(t *testing.T, f *fixture) {
	a := f.account(t)
	race(rivals, func(i int) {
		if _, err := f.pick(i).UpdateAccount(f.ctx, a.ID, func(a *acme.Account) error {
			a.Contact = append(a.Contact, name(i))
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	got := must[*acme.Account](t)(f.s.AccountByKey(f.ctx, "default", a.Thumbprint))
	if len(got.Contact) != rivals+1 {
		t.Errorf("%d of %d updates are there", len(got.Contact)-1, rivals)
	}
}

func changeKey(f *fixture, s acme.Store, id, thumb string) (*acme.Account, bool, error) {
	return s.ChangeAccountKey(f.ctx, id, thumb, func(a *acme.Account) error {
		return a.ChangeKey([]byte(`{"kty":"EC","x":"`+thumb+`"}`), thumb)
	})
}

func testKeyChange(t *testing.T, f *fixture) {
	a, thumb := f.account(t), f.random(t)
	got, changed, err := changeKey(f, f.s, a.ID, thumb)
	check(t, err)
	if !changed || got.Thumbprint != thumb || got.KeyEpoch != a.KeyEpoch+1 || got.Version == a.Version {
		t.Errorf("changed %t to %+v", changed, got)
	}
	_, err = f.replica.AccountByKey(f.ctx, "default", a.Thumbprint)
	wantError(t, err, acme.ErrNotFound)
	if now := must[*acme.Account](t)(f.replica.AccountByKey(f.ctx, "default", thumb)); !reflect.DeepEqual(now, got) {
		t.Errorf("got %+v by the new key, want %+v", now, got)
	}
	// The old key is free for another account.
	other := f.newAccount(t, "default")
	other.Thumbprint = a.Thumbprint
	if _, created, err := f.s.CreateAccount(f.ctx, other); err != nil || !created {
		t.Errorf("account with the old key: created %t, error %v", created, err)
	}
	_, _, err = changeKey(f, f.s, must[string](t)(f.ids.Account(f.now)), f.random(t))
	wantError(t, err, acme.ErrNotFound)
}

func testKeyChangeInUse(t *testing.T, f *fixture) {
	a, b := f.account(t), f.account(t)
	for _, holder := range []*acme.Account{a, b} {
		got, changed, err := changeKey(f, f.s, a.ID, holder.Thumbprint)
		check(t, err)
		if changed || got.ID != holder.ID {
			t.Errorf("changed %t, holder %s; want the key's account %s", changed, got.ID, holder.ID)
		}
	}
	if now := must[*acme.Account](t)(f.s.AccountByKey(f.ctx, "default", a.Thumbprint)); !reflect.DeepEqual(now, a) {
		t.Errorf("got %+v, want it unchanged %+v", now, a)
	}
	refusal := acme.Problemf(acme.Unauthorized, "no")
	thumb := f.random(t)
	_, _, err := f.s.ChangeAccountKey(f.ctx, a.ID, thumb, func(*acme.Account) error { return refusal })
	wantError(t, err, refusal)
	_, err = f.s.AccountByKey(f.ctx, "default", thumb)
	wantError(t, err, acme.ErrNotFound)
}

func testKeyChangeBack(t *testing.T, f *fixture) {
	a, thumb := f.account(t), f.random(t)
	for _, to := range []string{thumb, a.Thumbprint, thumb, a.Thumbprint} {
		if got, changed, err := changeKey(f, f.s, a.ID, to); err != nil || !changed || got.Thumbprint != to {
			t.Fatalf("changed %t, error %v", changed, err)
		}
		if now := must[*acme.Account](t)(f.replica.AccountByKey(f.ctx, "default", to)); now.ID != a.ID {
			t.Errorf("key has account %s, want %s", now.ID, a.ID)
		}
	}
}

// testKeyRivals has creations, key changes of several accounts, and updates
// compete for one key.
func testKeyRivals(t *testing.T, f *fixture) {
	const accounts = 8
	for range 5 {
		thumb := f.random(t)
		ids := make([]string, accounts)
		for i := range ids {
			ids[i] = f.account(t).ID
		}
		var winners atomic.Int32
		race(3*accounts, func(i int) {
			s := f.pick(i)
			switch i % 3 {
			case 0:
				_, changed, err := changeKey(f, s, ids[i/3], thumb)
				if err != nil {
					t.Error(err)
				} else if changed {
					winners.Add(1)
				}
			case 1:
				model := f.newAccount(t, "default")
				model.Thumbprint = thumb
				_, created, err := s.CreateAccount(f.ctx, model)
				if err != nil {
					t.Error(err)
				} else if created {
					winners.Add(1)
				}
			case 2:
				if _, err := s.UpdateAccount(f.ctx, ids[i/3], func(a *acme.Account) error { return a.SetContact(nil) }); err != nil {
					t.Error(err)
				}
			}
		})
		if got := winners.Load(); got != 1 {
			t.Errorf("%d got the key, want 1", got)
		}
		if _, err := f.s.AccountByKey(f.ctx, "default", thumb); err != nil {
			t.Error(err)
		}
		with := 0
		for _, id := range ids {
			found := must[*acme.Found](t)(f.s.Fetch(f.ctx, acme.Lookup{AccountID: id}, f.now))
			if found.Account.Thumbprint == thumb {
				with++
			}
		}
		if with > 1 {
			t.Errorf("%d accounts have the key", with)
		}
	}
}

func testBadIDs(t *testing.T, f *fixture) {
	for _, id := range []string{"", "x", "07}", "07/../../../../../../../../..", "99aaaaaaaaaaaaaaaaaaaaaaaaaa"} {
		found, err := f.s.Fetch(f.ctx, acme.Lookup{AccountID: id, OrderID: id, Proofs: []acme.ProofKey{{AccountID: id, Name: "dns:x"}}}, f.now)
		if err != nil || found.Account != nil || found.Order != nil {
			t.Errorf("fetch of %q: %+v, %v", id, found, err)
		}
		_, err = f.s.Order(f.ctx, id)
		wantError(t, err, acme.ErrNotFound)
		_, err = f.s.UpdateOrder(f.ctx, &acme.Order{ID: id}, func(*acme.Order) error { return nil })
		wantError(t, err, acme.ErrNotFound)
		_, err = f.s.UpdateAccount(f.ctx, id, func(*acme.Account) error { return nil })
		wantError(t, err, acme.ErrNotFound)
		if list, err := f.s.AccountOrders(f.ctx, id, "", 10); err != nil || len(list) != 0 {
			t.Errorf("orders of %q: %v, %v", id, list, err)
		}
		if _, _, err := f.s.CreateAccount(f.ctx, &acme.Account{ID: id, Thumbprint: "x"}); err == nil {
			t.Errorf("an account with ID %q was stored", id)
		}
		if err := f.s.CreateOrder(f.ctx, &acme.Order{ID: id, AccountID: id}, acme.OrderLimits{}, f.now); err == nil {
			t.Errorf("an order with ID %q was stored", id)
		}
	}
	a := f.account(t)
	if err := f.s.CreateOrder(f.ctx, f.order(t, a), acme.OrderLimits{}, f.now); !errors.Is(err, acme.ErrConflict) {
		t.Errorf("an order stored twice: %v, want ErrConflict", err)
	}
}

func testPing(t *testing.T, f *fixture) { check(t, f.s.Ping(f.ctx)) }
