package certmanager

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/acme-bridge/acme-bridge/acme"
)

// How long the list of domains is believed.
const (
	domainsAge = 10 * time.Minute
	// domainsAgain is for a list that would refuse an order: it is read again
	// unless it is this young.
	domainsAgain = 3 * time.Second
	// tryAgainLater is what clients are told when the list cannot be read.
	tryAgainLater = 30 * time.Second
)

type domainCache struct {
	reading *semaphore.Weighted // one reader

	mu   sync.Mutex
	list []Domain
	read time.Time // before the call was made; zero: never
}

// domainList is the list of domains, at most maxAge old.
func (i *Issuer) domainList(ctx context.Context, maxAge time.Duration) ([]Domain, error) {
	fresh := func() ([]Domain, bool) {
		i.domains.mu.Lock()
		defer i.domains.mu.Unlock()
		return i.domains.list, !i.domains.read.IsZero() && i.cfg.Now().Sub(i.domains.read) <= maxAge
	}
	if list, ok := fresh(); ok && maxAge > 0 {
		return list, nil
	}
	if err := i.domains.reading.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for the list of domains: %w", err)
	}
	defer i.domains.reading.Release(1)
	if list, ok := fresh(); ok && maxAge > 0 {
		return list, nil
	}
	now := i.cfg.Now()
	list, err := i.api.listDomains(ctx, "")
	if err != nil {
		return nil, err
	}
	i.domains.mu.Lock()
	defer i.domains.mu.Unlock()
	i.domains.list, i.domains.read = list, now
	return list, nil
}

func (i *Issuer) forgetDomains() {
	i.domains.mu.Lock()
	defer i.domains.mu.Unlock()
	i.domains.read = time.Time{}
}

// Preflight refuses an order whose names Certificate Manager could not
// validate: each must be covered by a VALID domain, itself or a parent, or lie
// in a zone that the publisher may write. If that cannot be told now the client
// is asked to try again, since the order would fail after its challenges.
func (i *Issuer) Preflight(ctx context.Context, ids []acme.Identifier) error {
	list, err := i.domainList(ctx, domainsAge)
	var subs []*acme.Problem
	if err == nil {
		subs, err = i.uncovered(ctx, ids, list)
	}
	if err == nil && len(subs) > 0 {
		// What was valid some minutes ago may be the cause, or a domain that was
		// validated since.
		if list, err = i.domainList(ctx, domainsAgain); err == nil {
			subs, err = i.uncovered(ctx, ids, list)
		}
	}
	if err != nil {
		i.cfg.Log.WarnContext(ctx, "preflight cannot tell: "+explain(err), "err", err)
		return acme.Problemf(acme.ServerInternal, "the certificate authority cannot be asked now; please try again").
			WithStatus(http.StatusServiceUnavailable).WithRetryAfter(max(tryAgainLater, i.pace.held())).WithCause(err)
	}
	if len(subs) == 0 {
		return nil
	}
	return acme.Combine("some names could not be validated by the certificate authority", subs)
}

// uncovered has one subproblem for each name that has no way to be validated.
func (i *Issuer) uncovered(ctx context.Context, ids []acme.Identifier, list []Domain) ([]*acme.Problem, error) {
	var subs []*acme.Problem
	for _, id := range ids {
		base, _ := id.Base()
		d := i.covering(list, base.Value)
		if d != nil && d.State == DomainValid {
			continue
		}
		if i.cfg.Publisher != nil {
			ok, err := i.cfg.Publisher.Covers(ctx, base.Value)
			if err != nil {
				return nil, fmt.Errorf("ask the publisher about %s: %w", base.Value, err)
			}
			if ok {
				continue
			}
		}
		text := fmt.Sprintf("neither %s nor a parent of it is validated at the certificate authority: its operator must add the domain", base.Value)
		if d != nil {
			text = fmt.Sprintf("the validation of %s at the certificate authority is %s", clip(d.Name, 253), clip(d.State, 20))
			// Any other than a record that is kept may be told to one account (see Relay): if others
			// published it, it would prove control for that one.
			if d.Method == "PTXT" && d.RecordName != "" && d.RecordValue != "" {
				text += fmt.Sprintf(": it wants the TXT record %s with the value %q", clip(d.RecordName, 300), clip(d.RecordValue, 300))
			}
		}
		subs = append(subs, acme.Problemf(acme.RejectedIdentifier, "%s", text).WithStatus(http.StatusForbidden).For(id))
	}
	return subs, nil
}

// covering is the domain that stands for a name: a valid one if there is any,
// else the nearest, else nil.
func (i *Issuer) covering(list []Domain, name string) *Domain {
	var best *Domain
	for n := range list {
		d := &list[n]
		if d.Name == "" || name != d.Name && !strings.HasSuffix(name, "."+d.Name) || !i.usable(d) {
			continue
		}
		switch {
		case best == nil, d.State == DomainValid && best.State != DomainValid,
			(d.State == DomainValid) == (best.State == DomainValid) && len(d.Name) > len(best.Name):
			best = d
		}
	}
	return best
}

// usable leaves out domains that serve other requests: those of NCP's own ACME
// server, and those that are bound to another organization.
func (i *Issuer) usable(d *Domain) bool {
	return d.IssueType != "ACME" && (d.OrganizationNo == 0 || d.OrganizationNo == i.cfg.OrganizationNo || i.cfg.CertificateType == TypeDV)
}
