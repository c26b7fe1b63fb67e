package storagetest

import (
	"context"
	"crypto/rand"
	"strconv"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// Bench measures what the requests of a flow ask of a store.
func Bench(b *testing.B, s acme.Store) {
	f := &fixture{ctx: context.Background(), ids: acme.IDs{Rand: rand.Reader}, now: time.Now().UTC().Truncate(time.Second), s: s}
	a := f.account(b)
	create := func(b *testing.B) *acme.Order {
		o := f.newOrder(b, a)
		limits := acme.OrderLimits{Rate: acme.LimitKey{Scope: "orders", Subject: a.ID, Limit: acme.Limit{Count: 1 << 30, Period: 24 * 365 * time.Hour}}, Open: 1 << 30}
		if err := s.CreateOrder(f.ctx, o, limits, f.now); err != nil {
			b.Fatal(err)
		}
		return o
	}
	o := create(b)
	n := 0
	fetch := func(b *testing.B) {
		n++
		found, err := s.Fetch(f.ctx, acme.Lookup{Nonce: "nonce-of-usual-length-for-bench-" + strconv.Itoa(n), NonceLifetime: time.Hour, AccountID: a.ID, OrderID: o.ID}, f.now)
		if err != nil || found.Order == nil {
			b.Fatalf("got %+v, %v", found, err)
		}
	}
	update := func(b *testing.B, o *acme.Order) *acme.Order {
		o, err := s.UpdateOrder(f.ctx, o, func(o *acme.Order) error { o.Wake = f.now; return nil })
		if err != nil {
			b.Fatal(err)
		}
		return o
	}
	b.Run("fetch", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			fetch(b)
		}
	})
	b.Run("create order", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			create(b)
		}
	})
	b.Run("update order", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			o = update(b, o)
		}
	})
	b.Run("update orders in parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			o := create(b)
			for pb.Next() {
				o = update(b, o)
			}
		})
	})
}
