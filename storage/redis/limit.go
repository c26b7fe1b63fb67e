package redis

import (
	"context"
	"strconv"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

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

// peek tells from the stored arrival time whether one event would be refused.
func peek(l acme.LimitKey, stored string, now time.Time) *acme.LimitError {
	interval, burst := cells(l.Limit)
	tat, err := strconv.ParseInt(stored, 10, 64)
	if err != nil || interval == 0 {
		return nil
	}
	nowMicros := now.UnixMicro()
	if wait := max(tat, nowMicros) + interval - nowMicros - burst; wait > 0 {
		return limited(l.Scope, wait)
	}
	return nil
}

func limited(scope string, micros int64) *acme.LimitError {
	return &acme.LimitError{Scope: scope, After: time.Duration(micros) * time.Microsecond}
}

// Take counts cost events against a limit, or returns *LimitError and counts
// nothing. With cost 0 it asks whether one more event would be refused.
func (s *Store) Take(ctx context.Context, key acme.LimitKey, cost int, now time.Time) error {
	interval, burst := cells(key.Limit)
	if interval == 0 {
		return nil
	}
	name := s.key.limit(key)
	if cost <= 0 {
		stored, err := s.get(ctx, name)
		if err != nil {
			return s.failed(ctx, "ask limit "+key.Scope, err)
		}
		if e := peek(key, stored, now); e != nil {
			return e
		}
		return nil
	}
	_, wait, err := takeLimit.runPair(ctx, s.rdb, []string{name}, interval, burst, cost, now.UnixMicro())
	if err != nil {
		return s.failed(ctx, "count limit "+key.Scope, err)
	}
	if wait > 0 {
		return limited(key.Scope, wait)
	}
	return nil
}
