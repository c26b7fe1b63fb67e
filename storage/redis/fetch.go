package redis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/acme-bridge/acme-bridge/acme"
)

// NonceKey returns the secret that all replicas sign nonces with.
func (s *Store) NonceKey(ctx context.Context, proposed []byte) ([]byte, error) {
	pipe := s.rdb.Pipeline()
	_ = pipe.Process(ctx, newOnce(ctx, "set", s.key.nonceKey(), proposed, "nx"))
	get := pipe.Get(ctx, s.key.nonceKey())
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, s.failed(ctx, "read nonce key", err)
	}
	key, err := get.Bytes()
	if err != nil {
		return nil, s.failed(ctx, "read nonce key", err)
	}
	return key, nil
}

// group collects the keys of one shard, which one MGET reads.
type group struct {
	shard string
	keys  []string
	sinks []func(value string) error
	cmd   *redis.SliceCmd
}

type groups []*group

func (gs *groups) add(shard, key string, sink func(string) error) {
	for _, g := range *gs {
		if g.shard == shard {
			g.keys, g.sinks = append(g.keys, key), append(g.sinks, sink)
			return
		}
	}
	*gs = append(*gs, &group{shard: shard, keys: []string{key}, sinks: []func(string) error{sink}})
}

func (gs groups) queue(ctx context.Context, pipe redis.Pipeliner) {
	for _, g := range gs {
		g.cmd = pipe.MGet(ctx, g.keys...)
	}
}

// deliver hands each value that exists to the one who wanted it.
func (gs groups) deliver() error {
	for _, g := range gs {
		values, err := g.cmd.Result()
		if err != nil {
			return err
		}
		if len(values) != len(g.keys) {
			return fmt.Errorf("%d values for %d keys", len(values), len(g.keys))
		}
		for i, v := range values {
			if text, ok := v.(string); ok {
				if err := g.sinks[i](text); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Fetch answers a lookup in one round trip: a SET for the nonce, and one MGET
// for each shard, which is one for what belongs to an account.
func (s *Store) Fetch(ctx context.Context, q acme.Lookup, now time.Time) (*acme.Found, error) {
	found := &acme.Found{Proofs: make([]*acme.Proof, len(q.Proofs))}
	var gs groups
	if acme.ValidID(q.AccountID) {
		gs.add(acme.Shard(q.AccountID), s.key.account(q.AccountID), func(v string) (err error) {
			found.Account, err = decodeAccount(q.AccountID, v)
			return err
		})
	}
	if acme.ValidID(q.OrderID) {
		gs.add(acme.Shard(q.OrderID), s.key.order(q.OrderID), func(v string) (err error) {
			found.Order, err = decodeOrder(q.OrderID, v)
			return err
		})
	}
	for i, key := range q.Proofs {
		if !acme.ValidID(key.AccountID) {
			continue
		}
		gs.add(acme.Shard(key.AccountID), s.key.proof(key), func(v string) error {
			p, err := decodeProof(key, v)
			if err == nil && now.Before(p.Expires) {
				found.Proofs[i] = p
			}
			return err
		})
	}
	reached := make([]*acme.LimitError, len(q.Limits))
	for i, key := range q.Limits {
		gs.add(limitShard(key.Subject), s.key.limit(key), func(v string) error {
			reached[i] = peek(key, v, now)
			return nil
		})
	}

	if q.Thumbprint != "" {
		gs.add(shardOf(q.Thumbprint), s.key.holder(q.Directory, q.Thumbprint), func(v string) error {
			found.KeyNamed = v != ""
			return nil
		})
	}

	pipe := s.rdb.Pipeline()
	var redeem once
	if q.Nonce != "" {
		// NX decides between rivals; whoever sets the mark redeems the nonce.
		redeem = newOnce(ctx, "set", s.key.nonce(q.Nonce), "", "nx", "px", max(q.NonceLifetime.Milliseconds(), 1))
		_ = pipe.Process(ctx, redeem)
	}
	nonceKey := pipe.Get(ctx, s.key.nonceKey())
	gs.queue(ctx, pipe)
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, s.failed(ctx, "fetch", err)
	}
	if q.Nonce != "" {
		switch text, err := redeem.Text(); {
		case err == nil:
			found.NonceFresh = text == "OK"
		case !errors.Is(err, redis.Nil):
			return nil, s.failed(ctx, "redeem nonce", err)
		}
	}
	switch key, err := nonceKey.Bytes(); {
	case err == nil:
		found.NonceKey = key
	case !errors.Is(err, redis.Nil):
		return nil, s.failed(ctx, "read nonce key", err)
	}
	if err := gs.deliver(); err != nil {
		return nil, s.judge(ctx, "fetch", err)
	}
	for _, e := range reached {
		if e != nil {
			found.Limited = e
			break
		}
	}
	return found, nil
}

// judge tells failures of Redis from values that cannot be what was stored.
// Those are logged where they are found: they mean that answers were mixed up,
// or that someone writes into our keys.
func (s *Store) judge(ctx context.Context, doing string, err error) error {
	if errors.Is(err, errForeign) {
		s.log.ErrorContext(ctx, "Redis returned a value that was not asked for", "err", err)
		return fmt.Errorf("%s: %w", doing, err)
	}
	var answer redis.Error
	if errors.As(err, &answer) {
		return s.failed(ctx, doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// get reads a value, "" if there is none.
func (s *Store) get(ctx context.Context, key string) (string, error) {
	v, err := s.rdb.Get(ctx, key).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return v, err
}
