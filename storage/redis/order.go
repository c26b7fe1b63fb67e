package redis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/acme-bridge/acme-bridge/acme"
)

const (
	// tries bounds an update. Each failure means that another update succeeded,
	// so that fewer rivals than this never exhaust it.
	tries = 64
	// openScope names the limit of open orders as the configuration does.
	openScope = "pending_orders_per_account"
	// listAge is how long an order stays on its account's list. It outlasts
	// certificates as public CAs issue them; an older order keeps its URL.
	listAge = 400 * 24 * time.Hour
)

// pause waits a little, longer with each try, so that rivals come apart.
func pause(ctx context.Context, try int) error {
	limit := min(time.Millisecond<<min(try, 4), 16*time.Millisecond)
	t := time.NewTimer(rand.N(limit))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// CreateOrder stores a new order, sets its Version, and counts it; the rate
// limit's subject should begin with the account's ID, so that counting and
// storing are one step.
func (s *Store) CreateOrder(ctx context.Context, o *acme.Order, limits acme.OrderLimits, now time.Time) error {
	if !acme.ValidID(o.ID) || !acme.ValidID(o.AccountID) || acme.Shard(o.ID) != acme.Shard(o.AccountID) {
		return fmt.Errorf("create order %q: not an ID in the shard of account %q", o.ID, o.AccountID)
	}
	shard := acme.Shard(o.ID)
	rate := limits.Rate
	if limitShard(rate.Subject) != shard {
		// Counted in another slot it has to be counted before.
		if err := s.Take(ctx, rate, 1, now); err != nil {
			return err
		}
		rate = acme.LimitKey{}
	}
	interval, burst := cells(rate.Limit)
	value, err := encodeOrder(o, 1)
	if err != nil {
		return fmt.Errorf("create order %s: %w", o.ID, err)
	}
	wake, expiry, listed := "", "", ""
	if !o.Wake.IsZero() {
		wake = wakeMillis(o.Wake)
	}
	if o.Open() {
		expiry = millis(o.Expires)
	}
	if o.Status != acme.StatusInvalid {
		listed = "+"
	}
	rateKey := s.key.in(shard, "limit:"+rate.Scope+":"+rate.Subject)
	code, wait, err := createOrder.runPair(ctx, s.rdb,
		[]string{s.key.order(o.ID), s.key.due(shard), s.key.open(o.AccountID), s.key.orders(o.AccountID), rateKey},
		value, ttl(o.KeepUntil()), o.ID, wake, expiry, listed, max(limits.Open, 0), interval, burst, now.UnixMicro(),
		acme.IDBefore(o.AccountID, now.Add(-listAge)), s.key.in(shard, "order:"), rand.Float64(), rand.Float64())
	if err != nil {
		return s.failed(ctx, "create order "+o.ID, err)
	}
	switch code {
	case 1:
		return fmt.Errorf("create order %s: %w", o.ID, acme.ErrConflict)
	case 2:
		return limited(openScope, wait)
	case 3:
		return limited(rate.Scope, wait)
	}
	o.Version = 1
	return nil
}

// Order reads one order.
func (s *Store) Order(ctx context.Context, id string) (*acme.Order, error) {
	if !acme.ValidID(id) {
		return nil, fmt.Errorf("read order: %w", acme.ErrNotFound)
	}
	value, err := s.get(ctx, s.key.order(id))
	if err != nil {
		return nil, s.failed(ctx, "read order "+id, err)
	}
	if value == "" {
		return nil, fmt.Errorf("read order %s: %w", id, acme.ErrNotFound)
	}
	o, err := decodeOrder(id, value)
	if err != nil {
		return nil, s.judge(ctx, "read", err)
	}
	return o, nil
}

// UpdateOrder changes an order as last was read, without reading it again
// unless that fails: most updates follow a [Store.Fetch] of the same request.
func (s *Store) UpdateOrder(ctx context.Context, last *acme.Order, change func(*acme.Order) error) (*acme.Order, error) {
	id := last.ID
	fresh := last.Version == 0
	if fresh {
		var err error
		if last, err = s.Order(ctx, id); err != nil {
			return nil, err
		}
	}
	for try := range tries {
		o := last.Clone()
		o.Grants, o.Withdrawals = nil, nil
		refusal := change(o)
		if refusal == nil {
			saved, err := s.saveOrder(ctx, last, o)
			if err != nil {
				return nil, err
			}
			if saved {
				return o, nil
			}
			if err := pause(ctx, try); err != nil {
				return nil, s.failed(ctx, "update order "+id, err)
			}
		} else if fresh {
			return unchanged(last, refusal)
		}
		// Someone was faster, or what the caller had may be too old to refuse
		// anything for it.
		now, err := s.Order(ctx, id)
		if err != nil {
			return nil, err
		}
		if refusal != nil && now.Version == last.Version {
			return unchanged(now, refusal)
		}
		last, fresh = now, true
	}
	return nil, fmt.Errorf("update order %s: %w", id, acme.ErrConflict)
}

func unchanged[T any](last *T, refusal error) (*T, error) {
	if errors.Is(refusal, acme.ErrUnchanged) {
		return last, nil
	}
	return nil, refusal
}

// saveOrder writes o if the stored order is still last. Since the two are
// neighbours, the script is told only what differs.
func (s *Store) saveOrder(ctx context.Context, last, o *acme.Order) (bool, error) {
	id := last.ID
	if o.ID != id || o.AccountID != last.AccountID {
		return false, fmt.Errorf("update order %s: change moved it to another ID or account", id)
	}
	value, err := encodeOrder(o, last.Version+1)
	if err != nil {
		return false, fmt.Errorf("update order %s: %w", id, err)
	}
	wake, expiry, listed := "", "", ""
	switch {
	case !o.Wake.IsZero():
		wake = wakeMillis(o.Wake)
	case !last.Wake.IsZero():
		wake = "-"
	}
	switch {
	case o.Open() && (!last.Open() || !o.Expires.Equal(last.Expires)):
		expiry = millis(o.Expires)
	case !o.Open() && last.Open():
		expiry = "-"
	}
	if o.Status == acme.StatusInvalid && last.Status != acme.StatusInvalid {
		listed = "-"
	}
	keys := append(make([]string, 0, 6), s.key.order(id), s.key.due(acme.Shard(id)), s.key.open(o.AccountID), s.key.orders(o.AccountID))
	args := append(make([]any, 0, 9), version(last.Version), value, ttl(o.KeepUntil()), id, wake, expiry, listed)
	for _, p := range o.Grants {
		if acme.Shard(p.AccountID) != acme.Shard(id) {
			return false, fmt.Errorf("update order %s: it grants another account's proof", id)
		}
		proof, err := encode(p, 0)
		if err != nil {
			return false, fmt.Errorf("update order %s: %w", id, err)
		}
		keys, args = append(keys, s.key.proof(p.ProofKey)), append(args, proof, ttl(p.Expires))
	}
	for _, p := range o.Withdrawals {
		if acme.Shard(p.AccountID) != acme.Shard(id) {
			return false, fmt.Errorf("update order %s: it withdraws another account's proof", id)
		}
		keys, args = append(keys, s.key.proof(p)), append(args, "", "0")
	}
	saved, err := updateOrder.runBool(ctx, s.rdb, keys, args...)
	if err != nil {
		return false, s.failed(ctx, "update order "+id, err)
	}
	if saved {
		o.Version = last.Version + 1
		o.Grants, o.Withdrawals = nil, nil
	}
	return saved, nil
}

// AccountOrders lists an account's orders. Entries whose order is gone are
// removed when they are met, so that no later call meets them.
func (s *Store) AccountOrders(ctx context.Context, accountID, after string, limit int) ([]string, error) {
	if !acme.ValidID(accountID) || limit <= 0 {
		return nil, nil
	}
	list := s.key.orders(accountID)
	var ids []string
	for len(ids) < limit {
		from := "-"
		if after != "" {
			from = "(" + after
		}
		page, err := s.rdb.ZRangeByLex(ctx, list, &redis.ZRangeBy{Min: from, Max: "+", Count: int64(limit)}).Result()
		if err != nil {
			return nil, s.failed(ctx, "list orders of "+accountID, err)
		}
		if len(page) == 0 {
			break
		}
		pipe := s.rdb.Pipeline()
		exist := make([]*redis.IntCmd, len(page))
		for i, id := range page {
			exist[i] = pipe.Exists(ctx, s.key.order(id))
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return nil, s.failed(ctx, "list orders of "+accountID, err)
		}
		var gone []any
		for i, id := range page {
			if exist[i].Val() == 1 {
				ids = append(ids, id)
			} else {
				gone = append(gone, id)
			}
		}
		if len(gone) > 0 {
			if err := s.rdb.ZRem(ctx, list, gone...).Err(); err != nil {
				return nil, s.failed(ctx, "list orders of "+accountID, err)
			}
		}
		after = page[len(page)-1]
	}
	return ids[:min(limit, len(ids))], nil
}

// ClaimDue looks into the queues of all shards in one round trip, which is all
// that it does while nothing is due, and claims the most urgent orders in a
// second.
func (s *Store) ClaimDue(ctx context.Context, now time.Time, lease time.Duration, limit int) ([]string, error) {
	if limit <= 0 {
		return nil, nil
	}
	due, err := s.due(ctx, now, limit)
	if err != nil || len(due) == 0 {
		return nil, err
	}
	byShard := make(map[string][]any)
	for _, z := range due[:min(limit, len(due))] {
		id, _ := z.Member.(string)
		byShard[acme.Shard(id)] = append(byShard[acme.Shard(id)], id)
	}
	type claim struct {
		keys []string
		args []any
		cmd  once
	}
	var claims []claim
	pipe := s.rdb.Pipeline()
	for shard, ids := range byShard {
		c := claim{
			keys: []string{s.key.due(shard)},
			args: append([]any{millis(now), wakeMillis(now.Add(lease)), s.key.in(shard, "order:")}, ids...),
		}
		c.cmd = claimDue.command(ctx, c.keys, c.args)
		_ = pipe.Process(ctx, c.cmd)
		claims = append(claims, c)
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	var claimed []string
	var failure error
	for _, c := range claims {
		got, err := c.cmd.Result()
		if redis.HasErrorPrefix(err, "NOSCRIPT") {
			got, err = claimDue.runText(ctx, s.rdb, c.keys, c.args)
		}
		if err != nil {
			failure = err
			continue
		}
		list, _ := got.([]any)
		for _, id := range list {
			if text, ok := id.(string); ok {
				claimed = append(claimed, text)
			}
		}
	}
	if failure != nil && len(claimed) == 0 { // what is claimed must not wait for its lease to run out
		return nil, s.failed(ctx, "claim due orders", failure)
	}
	return claimed, nil
}

// due reads which orders are due, most urgent first.
func (s *Store) due(ctx context.Context, now time.Time, limit int) ([]redis.Z, error) {
	pipe := s.rdb.Pipeline()
	cmds := make([]*redis.ZSliceCmd, acme.Shards)
	for i := range cmds {
		cmds[i] = pipe.ZRangeByScoreWithScores(ctx, s.key.due(shardName(i)), &redis.ZRangeBy{
			Min: "-inf", Max: millis(now), Count: int64(limit),
		})
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, s.failed(ctx, "look for due orders", err)
	}
	var due []redis.Z
	for _, cmd := range cmds {
		due = append(due, cmd.Val()...)
	}
	slices.SortFunc(due, func(a, b redis.Z) int {
		if a.Score != b.Score {
			if a.Score < b.Score {
				return -1
			}
			return 1
		}
		left, _ := a.Member.(string)
		right, _ := b.Member.(string)
		return strings.Compare(left, right)
	})
	return due, nil
}
