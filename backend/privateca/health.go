package privateca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// Thresholds of a [Report]'s warnings.
const (
	endsSoon   = 60 * 24 * time.Hour
	quotaLow   = 20 // one part in so many of the quota left
	skewLimit  = time.Minute
	readyAge   = 30 * time.Second
	readyLimit = 3 * time.Second
)

// A Report is what is known of a CA's fitness to issue, for readiness and for
// "config check --online".
type Report struct {
	CATag        string        `json:"ca_tag"`
	Status       string        `json:"status,omitempty"`
	SigningCount int64         `json:"signing_count"`
	Quota        int64         `json:"quota"`
	QuotaLeft    int64         `json:"quota_left"`
	NotAfter     time.Time     `json:"not_after,omitzero"` // end of the CA's own certificate
	Chain        []ChainMember `json:"chain,omitempty"`    // the CA's own certificate first, its root last
	ClockSkew    time.Duration `json:"clock_skew"`         // local clock minus the gateway's
	Errors       []string      `json:"errors,omitempty"`   // each prevents issuing
	Warnings     []string      `json:"warnings,omitempty"` // each will, some day
}

// A ChainMember is one certificate of a CA chain.
type ChainMember struct {
	Subject  string    `json:"subject"`
	Issuer   string    `json:"issuer"`
	NotAfter time.Time `json:"not_after"`
	Root     bool      `json:"root"`
}

// OK reports that nothing prevents issuing.
func (r *Report) OK() bool { return len(r.Errors) == 0 }

// Check asks the service for all that issuing depends on: credentials, status,
// quota, end of validity, chain and clock. Lifetimes are those of the profiles
// that use this CA. It changes nothing.
func (i *Issuer) Check(ctx context.Context, lifetimes ...time.Duration) *Report {
	r := &Report{CATag: i.cfg.CATag, Quota: i.cfg.Quota}
	state, err := i.state(ctx, 0)
	if skew, ok := i.cfg.Client.ClockSkew(); ok {
		r.ClockSkew = skew
		if skew.Abs() >= skewLimit {
			r.warn("the local clock differs from the gateway's by %s: from 5m on every request is refused", skew)
		}
	}
	if err != nil {
		r.fail("%s", explain(err))
		return r
	}
	now := i.cfg.Now()
	r.Status, r.SigningCount, r.NotAfter = state.Status, state.SigningCount, state.NotAfter
	r.QuotaLeft = max(r.Quota-r.SigningCount, 0)
	switch {
	case state.Status != statusActive:
		r.fail("the CA is %.20s, not ACTIVE: it issues nothing", state.Status)
	case state.NotAfter.IsZero():
		r.fail("the CA has no certificate")
	case now.After(state.NotAfter):
		r.fail("the CA's certificate ended at %s", state.NotAfter.Format(time.RFC3339))
	case now.Add(endsSoon).After(state.NotAfter):
		r.warn("the CA's certificate ends at %s", state.NotAfter.Format(time.RFC3339))
	}
	switch {
	case r.QuotaLeft == 0:
		r.fail("all %d certificates of the quota are issued: if NCP has raised it, set quota", r.Quota)
	case r.QuotaLeft < r.Quota/quotaLow:
		r.warn("%d of %d certificates of the quota are left", r.QuotaLeft, r.Quota)
	}
	for _, l := range lifetimes {
		if err := CheckLifetime(l); err != nil {
			r.fail("lifetime %s", err)
		} else if !state.NotAfter.IsZero() && now.Add(l).After(state.NotAfter) {
			r.fail("lifetime %s: such a certificate would outlive the CA, which ends at %s", l, state.NotAfter.Format(time.RFC3339))
		}
	}
	i.checkChain(ctx, r, state)
	return r
}

// checkChain follows the chain up from the CA's own certificate.
func (i *Issuer) checkChain(ctx context.Context, r *Report, state *caState) {
	chain, err := i.api.getCAChain(ctx)
	if err != nil {
		r.fail("the CA chain could not be read: %s", explain(err))
		return
	}
	if state.Own == nil {
		return
	}
	all := unique(append(append([]*x509.Certificate{}, state.Certs...), chain...))
	for c := state.Own; c != nil && len(r.Chain) < maxChain; c = issuerOf(c, all) {
		root := selfSigned(c)
		r.Chain = append(r.Chain, ChainMember{Subject: c.Subject.String(), Issuer: c.Issuer.String(), NotAfter: c.NotAfter, Root: root})
		if i.cfg.Now().After(c.NotAfter) && c != state.Own {
			r.fail("%s in the CA chain ended at %s", c.Subject, c.NotAfter.Format(time.RFC3339))
		}
		if root {
			return
		}
	}
	r.warn("the service does not show the root of the CA: chains are checked up to %s", r.Chain[len(r.Chain)-1].Subject)
}

func (r *Report) fail(format string, args ...any) {
	r.Errors = append(r.Errors, fmt.Sprintf(format, args...))
}

func (r *Report) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

// explain says in the operator's words what kept the service from answering.
func explain(err error) string {
	e, ok := errors.AsType[*ncloud.Error](err)
	switch {
	case !ok:
		return err.Error()
	case e.Outcome == ncloud.OutcomeUnauthorized && e.Code == "210":
		return fmt.Sprintf("the keys lack the permission, or Private CA is not subscribed to: %v", err)
	case e.Outcome == ncloud.OutcomeUnauthorized:
		return fmt.Sprintf("access_key and secret_key are refused: %v", err)
	case e.Outcome == ncloud.OutcomeRefused && e.Gateway && e.Status == 404:
		return fmt.Sprintf("base_url is not Private CA's: %v", err)
	case e.Outcome == ncloud.OutcomeRefused:
		return fmt.Sprintf("is ca_tag right, and of this cloud? %v", err)
	case e.Outcome == ncloud.OutcomeUnreachable:
		return fmt.Sprintf("base_url cannot be reached: %v", err)
	}
	return err.Error()
}

// Ready reports why the CA cannot be used now, nil if it can. It asks the
// service at most every half minute and takes no longer than 3 seconds. The
// quota does not count: NCP may have raised it without the configuration.
func (i *Issuer) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	s, err := i.state(ctx, readyAge)
	switch {
	case !i.cfg.Client.Healthy():
		return errors.New("the service fails: its circuit breaker is open")
	case err != nil:
		return errors.New(explain(err))
	case s.Status != statusActive:
		return fmt.Errorf("the CA is %.20s, not ACTIVE", s.Status)
	case !s.NotAfter.IsZero() && i.cfg.Now().After(s.NotAfter):
		return fmt.Errorf("the CA's certificate ended at %s", s.NotAfter.Format(time.RFC3339))
	}
	return nil
}
