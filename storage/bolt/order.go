package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

const (
	idLen = 28
	// openScope names the limit of open orders as the configuration does.
	openScope = "pending_orders_per_account"
)

// CreateOrder stores a new order within the limits, sets its Version, and
// counts it, in one transaction.
func (s *Store) CreateOrder(ctx context.Context, o *acme.Order, limits acme.OrderLimits, now time.Time) error {
	if !acme.ValidID(o.ID) || !acme.ValidID(o.AccountID) || acme.Shard(o.ID) != acme.Shard(o.AccountID) {
		return fmt.Errorf("create order %q: not an ID in the shard of account %q", o.ID, o.AccountID)
	}
	err := s.write(ctx, "create order "+o.ID, func(t *txn) error {
		if _, exists := t.get(ordersBucket, []byte(o.ID)); exists {
			return acme.ErrConflict
		}
		if wait := t.waitOpen(o.AccountID, limits.Open, now); wait > 0 {
			return &acme.LimitError{Scope: openScope, After: wait}
		}
		if wait := t.wait(limits.Rate, 1, now); wait > 0 {
			return &acme.LimitError{Scope: limits.Rate.Scope, After: wait}
		}
		if err := s.putOrder(t, o, nil, 1); err != nil {
			return err
		}
		s.count(t, limits.Rate, 1, now)
		t.closeExpired(o.AccountID, now)
		return nil
	})
	if err == nil {
		o.Version = 1
	}
	return err
}

// waitOpen is when the first of an account's open orders expires, if there are
// too many; it looks at no more than it needs to know that.
func (t *txn) waitOpen(accountID string, allowed int, now time.Time) time.Duration {
	if allowed <= 0 {
		return 0
	}
	prefix := []byte(accountID)
	c := t.Bucket(openBucket).Cursor()
	var first []byte
	n := 0
	for k, _ := c.Seek(join(prefix, atTime(now.Add(time.Millisecond)))); n < allowed && bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		if n == 0 {
			first = k
		}
		n++
	}
	if n < allowed {
		return 0
	}
	return max(fromTime(first[idLen:]).Sub(now), time.Millisecond)
}

// closeExpired removes some open entries of orders that expired; a new order
// adds one.
func (t *txn) closeExpired(accountID string, now time.Time) {
	const some = 8
	prefix := []byte(accountID)
	bound := join(prefix, atTime(now.Add(time.Millisecond)))
	var keys [][]byte
	c := t.Bucket(openBucket).Cursor()
	for k, _ := c.Seek(prefix); len(keys) < some && bytes.HasPrefix(k, prefix) && bytes.Compare(k, bound) < 0; k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		t.remove(openBucket, k)
	}
}

func listKey(o *acme.Order) []byte { return []byte(o.AccountID + o.ID) }

func openKey(o *acme.Order) []byte {
	return join([]byte(o.AccountID), atTime(o.Expires), []byte(o.ID))
}

// putOrder writes an order and what hangs on it. last is what it replaces, nil
// for a new one.
func (s *Store) putOrder(t *txn, o, last *acme.Order, version int64) error {
	body, err := encode(o)
	if err != nil {
		return err
	}
	grants := make([][]byte, len(o.Grants))
	for i, p := range o.Grants {
		if acme.Shard(p.AccountID) != acme.Shard(o.ID) {
			return fmt.Errorf("it grants another account's proof")
		}
		if grants[i], err = encode(p); err != nil {
			return err
		}
	}
	id := []byte(o.ID)
	t.put(ordersBucket, id, version, s.until(o.KeepUntil()), body)
	t.schedule(o.ID, o.Wake)
	if last != nil && last.Open() && !(o.Open() && o.Expires.Equal(last.Expires)) {
		t.remove(openBucket, openKey(last))
	}
	if o.Open() && (last == nil || !last.Open() || !o.Expires.Equal(last.Expires)) {
		t.set(openBucket, openKey(o), nil)
	}
	switch {
	case o.Status == acme.StatusInvalid:
		t.remove(listsBucket, listKey(o))
	case last == nil:
		t.set(listsBucket, listKey(o), nil)
	}
	for i, p := range o.Grants {
		t.put(proofsBucket, proofKey(p.ProofKey), 0, s.until(p.Expires), grants[i])
	}
	for _, p := range o.Withdrawals {
		t.drop(proofsBucket, proofKey(p))
	}
	return nil
}

// schedule moves an order in the queue, or takes it out.
func (t *txn) schedule(id string, wake time.Time) {
	old := t.Bucket(wakesBucket).Get([]byte(id))
	if old == nil && wake.IsZero() {
		return
	}
	if old != nil {
		t.remove(dueBucket, join(old, []byte(id)))
	}
	if wake.IsZero() {
		t.remove(wakesBucket, []byte(id))
		return
	}
	at := wakeTime(wake)
	t.set(dueBucket, join(at, []byte(id)), nil)
	t.set(wakesBucket, []byte(id), at)
}

// dropOrder forgets an order whose time is over.
func (t *txn) dropOrder(id string) {
	if o, err := t.order(id); err == nil {
		t.remove(listsBucket, listKey(o))
		t.remove(openBucket, openKey(o))
	}
	t.schedule(id, time.Time{})
	t.drop(ordersBucket, []byte(id))
}

// Order reads one order.
func (s *Store) Order(ctx context.Context, id string) (*acme.Order, error) {
	var o *acme.Order
	err := s.read(ctx, "read order "+id, func(t *txn) (err error) {
		o, err = t.order(id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// UpdateOrder changes an order in one transaction; only its ID is taken from
// last, since reading it again costs little.
func (s *Store) UpdateOrder(ctx context.Context, last *acme.Order, change func(*acme.Order) error) (*acme.Order, error) {
	var o *acme.Order
	err := s.write(ctx, "update order "+last.ID, func(t *txn) error {
		stored, err := t.order(last.ID)
		if err != nil {
			return err
		}
		o = stored.Clone()
		if err := change(o); err != nil {
			o, err = unchanged(stored, err)
			return err
		}
		if o.ID != stored.ID || o.AccountID != stored.AccountID {
			return fmt.Errorf("change moved it to another ID or account")
		}
		if err := s.putOrder(t, o, stored, stored.Version+1); err != nil {
			return err
		}
		o.Version = stored.Version + 1
		o.Grants, o.Withdrawals = nil, nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// AccountOrders lists an account's orders.
func (s *Store) AccountOrders(ctx context.Context, accountID, after string, limit int) ([]string, error) {
	var ids []string
	err := s.read(ctx, "list orders of "+accountID, func(t *txn) error {
		prefix := []byte(accountID)
		from := prefix
		if after != "" {
			from = []byte(accountID + after + "\x00")
		}
		c := t.Bucket(listsBucket).Cursor()
		for k, _ := c.Seek(from); len(prefix) == idLen && len(ids) < limit && bytes.HasPrefix(k, prefix); k, _ = c.Next() {
			ids = append(ids, string(k[len(prefix):]))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

// ClaimDue takes the most urgent orders; while nothing is due it only reads.
func (s *Store) ClaimDue(ctx context.Context, now time.Time, lease time.Duration, limit int) ([]string, error) {
	var ids []string
	look := func(t *txn) error {
		ids = nil
		bound := atTime(now)
		c := t.Bucket(dueBucket).Cursor()
		for k, _ := c.First(); len(ids) < limit && len(k) > 8 && bytes.Compare(k[:8], bound) <= 0; k, _ = c.Next() {
			ids = append(ids, string(k[8:]))
		}
		return nil
	}
	const doing = "claim due orders"
	if err := s.read(ctx, doing, look); err != nil || len(ids) == 0 {
		return nil, err
	}
	err := s.write(ctx, doing, func(t *txn) error {
		if err := look(t); err != nil {
			return err
		}
		for _, id := range ids {
			t.schedule(id, now.Add(lease))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

func fromTime(b []byte) time.Time { return time.UnixMilli(int64(binary.BigEndian.Uint64(b[:8]))) }
