package certmanager

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// How far 429 answers slow everything down, and when that is forgotten.
const (
	maxFactor  = 64
	pauseUnit  = 5 * time.Second
	calmPeriod = time.Minute
)

// A pace is shared by all orders of a backend: an answer 429 doubles their
// intervals, and a minute without one halves them again. The service's limits
// are not documented.
type pace struct {
	now func() time.Time

	mu     sync.Mutex
	factor int
	until  time.Time // nothing is asked before
	eased  time.Time // when the factor changed last
}

func (p *pace) observe(err error) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	p.factor = max(p.factor, 1)
	if e, ok := errors.AsType[*ncloud.Error](err); ok && e.Outcome == ncloud.OutcomeThrottled {
		// Calls that were under way together count as one.
		if !now.Before(p.until) {
			p.factor, p.eased = min(2*p.factor, maxFactor), now
			p.until = now.Add(max(pauseUnit*time.Duration(p.factor), e.Retry))
		} else if asked := now.Add(e.Retry); asked.After(p.until) {
			p.until = asked
		}
		return
	}
	if p.factor > 1 && now.Sub(p.eased) >= calmPeriod && now.Sub(p.until) >= 0 {
		p.factor, p.eased = p.factor/2, now
	}
}

// held is for how long nothing should be asked; 0: ask.
func (p *pace) held() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.until.Sub(p.now()), 0)
}

// stretch is an interval at the present pace.
func (p *pace) stretch(d time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return d * time.Duration(max(p.factor, 1))
}

// The feed of changes is asked once per interval for all open orders, with
// windows that overlap. Its words are a hint only: a failure may never show.
const (
	feedInterval = 10 * time.Second
	feedOverlap  = 50 * time.Second
	feedLongest  = time.Hour
)

type feed struct {
	reading sync.Mutex // who reads; others take what is there

	mu     sync.Mutex
	read   time.Time
	status map[int64]string
	failed bool // the last reading: told once
}

// hint is the feed's word for a certificate, "" if it says nothing new.
func (i *Issuer) hint(ctx context.Context, no int64) string {
	f := &i.feed
	now := i.cfg.Now()
	f.mu.Lock()
	last := f.read
	f.mu.Unlock()
	if now.Sub(last) >= i.pace.stretch(feedInterval) && f.reading.TryLock() {
		window := min(max(now.Sub(last)+feedOverlap, feedInterval+feedOverlap), feedLongest)
		if last.IsZero() {
			window = feedInterval + feedOverlap
		}
		status, err := i.api.changes(ctx, int64(window/time.Second))
		f.mu.Lock()
		if err != nil && !f.failed {
			i.cfg.Log.WarnContext(ctx, "changes not read, orders are looked at one by one until they can be", "err", err)
		}
		f.failed = err != nil
		f.read, f.status = now, status // also after an error: the next one has its interval
		f.mu.Unlock()
		f.reading.Unlock()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status[no]
}
