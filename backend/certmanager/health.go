package certmanager

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// Thresholds of [Issuer.Check] and [Issuer.Ready].
const (
	skewLimit  = time.Minute
	readyAge   = time.Minute
	readyLimit = 3 * time.Second
)

// A Report is what is known of an account's fitness to issue, for readiness and
// for "config check --online".
type Report struct {
	CertificateType  string         `json:"certificate_type"`
	ValidationMethod string         `json:"validation_method"`
	Domains          []DomainStatus `json:"domains,omitempty"`
	ClockSkew        time.Duration  `json:"clock_skew"`         // local clock minus the gateway's
	Errors           []string       `json:"errors,omitempty"`   // each prevents issuing
	Warnings         []string       `json:"warnings,omitempty"` // each will, some day
}

// OK reports that nothing prevents issuing.
func (r *Report) OK() bool { return len(r.Errors) == 0 }

func (r *Report) fail(format string, args ...any) {
	r.Errors = append(r.Errors, fmt.Sprintf(format, args...))
}

func (r *Report) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

// Check asks the service for all that issuing depends on, as far as that can be
// known without a request: credentials, certificate type, domains, clock. It
// changes nothing.
func (i *Issuer) Check(ctx context.Context) *Report {
	r := &Report{CertificateType: i.cfg.CertificateType, ValidationMethod: i.cfg.ValidationMethod}
	types, err := i.api.types(ctx)
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
	switch found := slices.ContainsFunc(types, func(o object) bool { return holds(o, i.cfg.CertificateType) }); {
	case len(types) == 0:
		r.warn("the service lists no certificate types: whether %s can be requested is not known", i.cfg.CertificateType)
	case !found:
		r.fail("certificate_type: the service does not list %s among the types that this account can request", i.cfg.CertificateType)
	}
	list, err := i.ListDomains(ctx)
	if err != nil {
		r.fail("the validated domains could not be read: %s", explain(err))
		return r
	}
	if i.cfg.ValidationMethod == "D" && i.cfg.Publisher == nil {
		r.warn("validation_method: whether validated domains serve requests with method D is not documented; without a publisher, use PD")
	}
	valid := false
	for _, d := range list {
		if !i.usable(&d) {
			continue
		}
		s := i.statusOf(ctx, d)
		r.Domains = append(r.Domains, s)
		r.Warnings = append(r.Warnings, s.Warnings...)
		valid = valid || d.State == DomainValid
	}
	if !valid && i.cfg.Publisher == nil {
		r.fail("no domain is VALID and there is no publisher: every order is refused; add a domain with \"acme-bridge domain add\"")
	}
	return r
}

// holds looks for a text anywhere in a row whose members are unknown.
func holds(o object, text string) bool {
	for name := range o {
		if strings.EqualFold(o.text(name), text) {
			return true
		}
	}
	return false
}

// subAccount reports the answer that API 2.0 gives to a sub account's key: 403
// without a body.
func subAccount(err error) bool {
	e, ok := errors.AsType[*ncloud.Error](err)
	return ok && e.Status == http.StatusForbidden && e.Code == "" && e.Message == ""
}

// explain says in the operator's words what kept the service from answering.
func explain(err error) string {
	e, ok := errors.AsType[*ncloud.Error](err)
	switch {
	case !ok:
		return err.Error()
	case subAccount(err):
		return fmt.Sprintf("access_key is a sub account's: API 2.0 of Certificate Manager wants the main account's, whatever the sub account's role: %v", err)
	case e.Outcome == ncloud.OutcomeUnauthorized && e.Code == "210":
		return fmt.Sprintf("the keys lack the permission, or Certificate Manager is not subscribed to: %v", err)
	case e.Outcome == ncloud.OutcomeUnauthorized:
		return fmt.Sprintf("access_key and secret_key are refused: %v", err)
	case e.Outcome == ncloud.OutcomeRefused && e.Gateway && e.Status == http.StatusNotFound:
		return fmt.Sprintf("base_url is not Certificate Manager's, or its zone has no API 2.0: %v", err)
	case e.Outcome == ncloud.OutcomeUnreachable:
		return fmt.Sprintf("base_url cannot be reached: %v", err)
	}
	return err.Error()
}

// Ready reports why Certificate Manager cannot be used now, nil if it can. It
// asks the service at most once a minute and takes no longer than 3 seconds.
func (i *Issuer) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	if !i.cfg.Client.Healthy() {
		return errors.New("the service fails: its circuit breaker is open")
	}
	last := func() (bool, error) {
		i.ready.mu.Lock()
		defer i.ready.mu.Unlock()
		return !i.ready.asked.IsZero() && i.cfg.Now().Sub(i.ready.asked) < readyAge, i.ready.err
	}
	if fresh, err := last(); fresh {
		return err
	}
	if err := i.ready.reading.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for the service: %w", err)
	}
	defer i.ready.reading.Release(1)
	if fresh, err := last(); fresh {
		return err
	}
	_, err := i.api.types(ctx)
	if e, ok := errors.AsType[*ncloud.Error](err); ok && e.Outcome == ncloud.OutcomeThrottled {
		err = nil // slow is not unfit
	}
	if err != nil {
		err = errors.New(explain(err))
	}
	i.ready.mu.Lock()
	defer i.ready.mu.Unlock()
	i.ready.asked, i.ready.err = i.cfg.Now(), err
	return err
}
