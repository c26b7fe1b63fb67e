package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/acme-bridge/acme-bridge/acme"
)

// nonces are the key and the marks of used ones, in memory. Marks are kept in
// two generations, of which the older is dropped as a whole when the younger
// one is a lifetime old: so each lasts for one lifetime at least and two at most.
type nonces struct {
	mu           sync.Mutex
	key          []byte
	since        time.Time
	young, older map[string]struct{}
}

func (n *nonces) redeem(nonce string, lifetime time.Duration, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.young == nil || now.Sub(n.since) >= lifetime {
		if now.Sub(n.since) >= 2*lifetime {
			n.young = nil
		}
		n.older, n.young, n.since = n.young, make(map[string]struct{}), now
	}
	if _, used := n.young[nonce]; used {
		return false
	}
	if _, used := n.older[nonce]; used {
		return false
	}
	n.young[nonce] = struct{}{}
	return true
}

// NonceKey returns the secret that nonces are signed with, until the process
// ends.
func (s *Store) NonceKey(_ context.Context, proposed []byte) ([]byte, error) {
	if s.closed.Load() {
		return nil, fmt.Errorf("read nonce key: %w", errClosed)
	}
	s.nonces.mu.Lock()
	defer s.nonces.mu.Unlock()
	if s.nonces.key == nil {
		s.nonces.key = bytes.Clone(proposed)
	}
	return bytes.Clone(s.nonces.key), nil
}

// Fetch answers a lookup from one state of the file.
func (s *Store) Fetch(ctx context.Context, q acme.Lookup, now time.Time) (*acme.Found, error) {
	if s.closed.Load() {
		return nil, fmt.Errorf("fetch: %w", errClosed)
	}
	found := &acme.Found{Proofs: make([]*acme.Proof, len(q.Proofs))}
	if q.Nonce != "" {
		found.NonceFresh = s.nonces.redeem(q.Nonce, q.NonceLifetime, now)
	}
	s.nonces.mu.Lock()
	found.NonceKey = bytes.Clone(s.nonces.key)
	s.nonces.mu.Unlock()
	if q.AccountID == "" && q.OrderID == "" && len(q.Proofs) == 0 && len(q.Limits) == 0 && q.Thumbprint == "" {
		return found, nil
	}
	err := s.read(ctx, "fetch", func(t *txn) (err error) {
		if q.AccountID != "" {
			if found.Account, err = t.account(q.AccountID); err != nil && !errors.Is(err, acme.ErrNotFound) {
				return err
			}
		}
		if q.OrderID != "" {
			if found.Order, err = t.order(q.OrderID); err != nil && !errors.Is(err, acme.ErrNotFound) {
				return err
			}
		}
		for i, key := range q.Proofs {
			if found.Proofs[i], err = t.proof(key, now); err != nil {
				return err
			}
		}
		if q.Thumbprint != "" {
			switch _, err := t.holder(q.Directory, q.Thumbprint); {
			case err == nil:
				found.KeyNamed = true
			case !errors.Is(err, acme.ErrNotFound):
				return err
			}
		}
		for _, key := range q.Limits {
			if wait := t.wait(key, 1, now); wait > 0 {
				found.Limited = &acme.LimitError{Scope: key.Scope, After: wait}
				break
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func proofKey(k acme.ProofKey) []byte { return []byte(k.AccountID + k.Name) }

// proof returns nil if there is none that holds now.
func (t *txn) proof(key acme.ProofKey, now time.Time) (*acme.Proof, error) {
	v, ok := t.get(proofsBucket, proofKey(key))
	if !ok {
		return nil, nil
	}
	p := &acme.Proof{}
	if err := json.Unmarshal(v.body, p); err != nil {
		return nil, fmt.Errorf("proof of %s: %w", key.Name, err)
	}
	if p.ProofKey != key {
		return nil, fmt.Errorf("proof of %s: %w", key.Name, errForeign)
	}
	if !now.Before(p.Expires) {
		return nil, nil
	}
	return p, nil
}

// Take counts cost events against a limit, or returns *LimitError and counts
// nothing. With cost 0 it asks whether one more event would be refused. What is
// refused costs no write, so that a flood does not reach the disk.
func (s *Store) Take(ctx context.Context, key acme.LimitKey, cost int, now time.Time) error {
	interval, _ := cells(key.Limit)
	if interval == 0 {
		return nil
	}
	check := func(t *txn) error {
		if wait := t.wait(key, max(cost, 1), now); wait > 0 {
			return &acme.LimitError{Scope: key.Scope, After: wait}
		}
		return nil
	}
	doing := "count limit " + key.Scope
	if err := s.read(ctx, doing, check); err != nil || cost <= 0 {
		return err
	}
	return s.write(ctx, doing, func(t *txn) error {
		if err := check(t); err != nil {
			return err
		}
		s.count(t, key, cost, now)
		return nil
	})
}

// cells are a limit in the terms of GCRA: one event each interval, and so many
// at once as fit into burst, both in µs. The burst is a multiple of the interval
// and not the period, so that exactly Count events fit.
func cells(l acme.Limit) (interval, burst int64) {
	if l.Count <= 0 || l.Period <= 0 {
		return 0, 0
	}
	interval = max(l.Period.Microseconds()/int64(l.Count), 1)
	return interval, interval * int64(l.Count)
}

func limitKey(k acme.LimitKey) []byte { return []byte(k.Scope + "\x00" + k.Subject) }

// arrival is GCRA's theoretical arrival time, in Unix µs, no earlier than now.
func (t *txn) arrival(key acme.LimitKey, now time.Time) int64 {
	v, ok := t.get(limitsBucket, limitKey(key))
	if !ok || len(v.body) != 8 {
		return now.UnixMicro()
	}
	return max(int64(binary.BigEndian.Uint64(v.body)), now.UnixMicro())
}

// wait is how long cost events would have to wait.
func (t *txn) wait(key acme.LimitKey, cost int, now time.Time) time.Duration {
	interval, burst := cells(key.Limit)
	if interval == 0 {
		return 0
	}
	wait := t.arrival(key, now) + interval*int64(cost) - now.UnixMicro() - burst
	return time.Duration(max(wait, 0)) * time.Microsecond
}

func (s *Store) count(t *txn, key acme.LimitKey, cost int, now time.Time) {
	interval, _ := cells(key.Limit)
	if interval == 0 {
		return
	}
	next := t.arrival(key, now) + interval*int64(cost)
	lasts := time.Duration(next-now.UnixMicro()) * time.Microsecond
	t.put(limitsBucket, limitKey(key), 0, s.now().Add(lasts), binary.BigEndian.AppendUint64(nil, uint64(next)))
}
