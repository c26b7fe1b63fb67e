package privateca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// How long what Get CA and Get CA Chain said is believed.
const (
	// markAge is short: an old mark is safe, but makes Find read the list where
	// the count alone would have told.
	markAge  = 2 * time.Second
	stateAge = 5 * time.Minute
	chainAge = time.Hour
	// chainRetry is when a chain that could not be read again is asked for anew.
	chainRetry = time.Minute
	// asideTime bounds calls that a submit makes beside its own.
	asideTime = 5 * time.Second
)

// state is the CA's state, read anew if it is older than age. Only one caller
// reads at a time; the others wait for what it brings.
func (i *Issuer) state(ctx context.Context, age time.Duration) (*caState, error) {
	asked := i.cfg.Now()
	if s := i.lastState(); s != nil && asked.Sub(s.Read) < age {
		return s, nil
	}
	if err := i.reading.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for the state of the CA: %w", err)
	}
	defer i.reading.Release(1)
	if s := i.lastState(); s != nil && (i.cfg.Now().Sub(s.Read) < age || s.Read.After(asked)) {
		return s, nil
	}
	return i.readState(ctx)
}

// readState asks for the CA's state. Readings must not overlap, or the count
// would seem to fall; so only state calls it.
func (i *Issuer) readState(ctx context.Context) (*caState, error) {
	s, err := i.api.getCA(ctx, i.cfg.Now())
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.last != nil && s.SigningCount < i.last.SigningCount {
		// Undocumented, so noticed here: a count that falls proves nothing,
		// because a certificate trimmed makes up for one issued.
		if !i.countFalls {
			i.cfg.Log.WarnContext(ctx, "the CA's signing count fell: lost answers will be searched for in its list from now on",
				"before", i.last.SigningCount, "now", s.SigningCount)
		}
		i.countFalls = true
	}
	i.last, i.since, i.floor = s, 0, max(i.floor, s.SigningCount)
	i.metrics.observe(i.cfg.Backend, s, i.cfg.Quota)
	return s, nil
}

func (i *Issuer) lastState() *caState {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last
}

// issuers are the certificates above a leaf, from Get CA and Get CA Chain
// together, since either may leave out what the other has. What was once read
// is used on if the service cannot be reached.
func (i *Issuer) issuers(ctx context.Context) ([]*x509.Certificate, error) {
	if certs := i.knownIssuers(); certs != nil {
		return certs, nil
	}
	if err := i.chaining.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for the CA chain: %w", err)
	}
	defer i.chaining.Release(1)
	if certs := i.knownIssuers(); certs != nil {
		return certs, nil
	}
	state, errState := i.state(ctx, stateAge)
	chain, errChain := i.api.getCAChain(ctx)
	err := errors.Join(errState, errChain)
	var fresh []*x509.Certificate
	if state != nil {
		fresh = unique(append(append(fresh, state.Certs...), chain...))
	}
	if err == nil && len(anchors(fresh)) == 0 {
		err = errors.New("the service returned no CA certificate")
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err == nil {
		i.chain, i.chainUntil = fresh, i.cfg.Now().Add(chainAge)
		return fresh, nil
	}
	if i.chain == nil {
		return nil, fmt.Errorf("read CA chain: %w", err)
	}
	i.cfg.Log.WarnContext(ctx, "CA chain not read, using the one known", "err", err)
	i.chainUntil = i.cfg.Now().Add(chainRetry)
	return i.chain, nil
}

// knownIssuers is what was read, nil if it is time to read it again.
func (i *Issuer) knownIssuers() []*x509.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cfg.Now().Before(i.chainUntil) {
		return i.chain
	}
	return nil
}
