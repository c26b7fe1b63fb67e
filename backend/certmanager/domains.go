package certmanager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
)

// ErrNoDomain: Certificate Manager has no such domain.
var ErrNoDomain = errors.New("no such domain at Certificate Manager")

// ListDomains are the domains that Certificate Manager validates ahead of
// requests, read anew.
func (i *Issuer) ListDomains(ctx context.Context) ([]Domain, error) { return i.domainList(ctx, 0) }

func domainName(name string) (string, error) {
	id, err := acme.ParseIdentifier(acme.Identifier{Type: acme.TypeDNS, Value: strings.TrimSuffix(name, ".")})
	if err != nil {
		return "", err
	}
	base, wildcard := id.Base()
	if wildcard {
		return "", fmt.Errorf("%s: add %s, which stands for its wildcard and all names below it", id.Value, base.Value)
	}
	return id.Value, nil
}

// findDomain reads the domain of that name, preferring a valid one.
func (i *Issuer) findDomain(ctx context.Context, name string) (*Domain, error) {
	list, err := i.ListDomains(ctx)
	if err != nil {
		return nil, err
	}
	var best *Domain
	for n := range list {
		d := &list[n]
		if d.Name == name && i.usable(d) && (best == nil || d.State == DomainValid && best.State != DomainValid || d.State == best.State && d.ID > best.ID) {
			best = d
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%s: %w", name, ErrNoDomain)
	}
	return best, nil
}

// RegisterDomain has a domain validated ahead of requests: for itself, all names
// below it, and wildcards. Method is PTXT ("" too: a record that stays) or TXT.
// A domain that is there already is returned as it is. The record that has to be
// published is in the answer, if the service shows it by then; else CheckDomain
// brings it.
func (i *Issuer) RegisterDomain(ctx context.Context, name, method string) (Domain, error) {
	name, err := domainName(name)
	if err != nil {
		return Domain{}, err
	}
	if method == "" {
		method = "PTXT"
	}
	if method != "PTXT" && method != "TXT" {
		return Domain{}, fmt.Errorf("method: %.20q is neither PTXT nor TXT", method)
	}
	d, err := i.findDomain(ctx, name)
	if err == nil && d.State != DomainInvalid {
		return *d, nil
	}
	if err != nil && !errors.Is(err, ErrNoDomain) {
		return Domain{}, err
	}
	errRegister := i.api.registerDomain(ctx, name, method, i.cfg.OrganizationNo)
	i.forgetDomains()
	// Its answer may be lost, or say that the domain is there already: what
	// counts is the list, which may take a moment.
	for try := 0; ; try++ {
		if d, err = i.findDomain(ctx, name); err == nil {
			return *d, nil
		}
		if errRegister != nil {
			return Domain{}, fmt.Errorf("register %s: %w", name, errors.Join(errRegister, err))
		}
		if !errors.Is(err, ErrNoDomain) || try >= 4 {
			return Domain{}, fmt.Errorf("%s is registered, and the list does not show it yet: %w", name, err)
		}
		if err := i.cfg.Wait(ctx, time.Second<<try); err != nil {
			return Domain{}, err
		}
	}
}

// RemoveDomain deletes a domain's validation. Certificates stay valid; new
// orders for its names will be refused.
func (i *Issuer) RemoveDomain(ctx context.Context, name string) error {
	name, err := domainName(name)
	if err != nil {
		return err
	}
	d, err := i.findDomain(ctx, name)
	if err != nil {
		return err
	}
	err = i.api.deleteDomain(ctx, d.ID)
	i.forgetDomains()
	return err
}

// PublishDomain brings a domain's record into DNS through the publisher, and
// reports whether all authoritative servers serve it; call it again until they
// do. published is false if no publisher has the zone.
func (i *Issuer) PublishDomain(ctx context.Context, d Domain) (published, served bool, err error) {
	if d.RecordName == "" || d.RecordValue == "" {
		return false, false, fmt.Errorf("%s: the service shows no record: %s", d.Name, d.raw.String())
	}
	if i.cfg.Publisher == nil {
		return false, false, nil
	}
	if ok, err := i.cfg.Publisher.Covers(ctx, d.Name); err != nil || !ok {
		return false, false, err
	}
	served, err = i.cfg.Publisher.Publish(ctx, d.RecordName, d.RecordValue)
	return true, served, err
}

// A DomainStatus is what CheckDomain found.
type DomainStatus struct {
	Domain
	// Record is "served", "missing", "other" (a TXT record with another value),
	// or "unknown" if DNS or the record's name and value could not be had.
	Record   string   `json:"record"`
	Warnings []string `json:"warnings,omitempty"`
}

// Words of DomainStatus.Record.
const (
	RecordServed  = "served"
	RecordMissing = "missing"
	RecordOther   = "other"
	RecordUnknown = "unknown"
)

// CheckDomain reads a domain's state and looks for its record in DNS.
func (i *Issuer) CheckDomain(ctx context.Context, name string) (DomainStatus, error) {
	name, err := domainName(name)
	if err != nil {
		return DomainStatus{}, err
	}
	d, err := i.findDomain(ctx, name)
	if err != nil {
		return DomainStatus{}, err
	}
	return i.statusOf(ctx, *d), nil
}

// expiresSoon is when the end of a validation is worth a warning.
const expiresSoon = 30 * 24 * time.Hour

func (i *Issuer) statusOf(ctx context.Context, d Domain) DomainStatus {
	s := DomainStatus{Domain: d, Record: i.recordState(ctx, d)}
	warn := func(format string, args ...any) { s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...)) }
	if d.State != DomainValid {
		warn("%s is %s: orders for its names are refused", d.Name, clip(d.State, 20))
	} else if !d.Expires.IsZero() && i.cfg.Now().Add(expiresSoon).After(d.Expires) {
		warn("the validation of %s ends at %s", d.Name, d.Expires.Format(time.RFC3339))
	}
	if s.Record == RecordMissing || s.Record == RecordOther {
		warn("DNS does not serve the record of %s: TXT %s with the value %q", d.Name, clip(d.RecordName, 300), clip(d.RecordValue, 300))
	}
	return s
}

func (i *Issuer) recordState(ctx context.Context, d Domain) string {
	if i.cfg.LookupTXT == nil || d.RecordName == "" || d.RecordValue == "" || d.Method == "TXT" && d.State == DomainValid {
		return RecordUnknown // a one-time record may go once it was seen
	}
	texts, err := i.cfg.LookupTXT(ctx, d.RecordName)
	switch {
	case err != nil:
		return RecordUnknown
	case slices.Contains(texts, d.RecordValue):
		return RecordServed
	case len(texts) == 0:
		return RecordMissing
	}
	return RecordOther
}

// watched is what the watch remembers between rounds and across restarts, so
// that a change is told once: the record "certmanager:<backend>:domains".
type watched struct {
	Domains map[string]watchedDomain `json:"domains"`
}

type watchedDomain struct {
	State  string    `json:"state"`
	Record string    `json:"record,omitempty"`
	Warned time.Time `json:"warned,omitzero"` // of the end of the validation
}

// warnAgain is how often the coming end of a validation is told.
const warnAgain = 24 * time.Hour

// Run watches the domains until ctx ends: their state, the end of their
// validation, and whether DNS still serves their records.
func (i *Issuer) Run(ctx context.Context) error {
	for {
		if err := i.WatchDomains(ctx); err != nil && ctx.Err() == nil {
			i.cfg.Log.WarnContext(ctx, "domains not watched, will try again: "+explain(err), "err", err)
		}
		if i.cfg.Wait(ctx, i.cfg.WatchInterval) != nil {
			return nil
		}
	}
}

// watchLimit bounds one round of the watch.
const watchLimit = 5 * time.Minute

// WatchDomains is one round of Run.
func (i *Issuer) WatchDomains(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, watchLimit)
	defer cancel()
	defer func() {
		outcome := "ok"
		if err != nil {
			outcome = "error"
		}
		i.metrics.watchRuns.WithLabelValues(i.cfg.Backend, outcome).Inc()
	}()
	list, err := i.ListDomains(ctx)
	if err != nil {
		return err
	}
	now := map[string]DomainStatus{}
	for _, d := range list {
		if !i.usable(&d) || d.Name == "" {
			continue
		}
		if old, ok := now[d.Name]; ok && old.State == DomainValid {
			continue // the same name once more, by another method
		}
		now[d.Name] = i.statusOf(ctx, d)
	}
	i.observe(now)
	var tell []func()
	err = change(ctx, i, i.domainsName(), func(w *watched) bool {
		tell = i.news(ctx, w, now)
		return len(tell) > 0
	})
	// Of replicas, the one whose write came first tells; another finds nothing new.
	if err == nil {
		for _, f := range tell {
			f()
		}
	}
	return err
}

func (i *Issuer) observe(now map[string]DomainStatus) {
	b := i.cfg.Backend
	for _, g := range []*prometheus.GaugeVec{i.metrics.domainValid, i.metrics.domainExpires, i.metrics.domainRecord} {
		g.DeletePartialMatch(prometheus.Labels{"backend": b}) // domains that are gone
	}
	for name, s := range now {
		i.metrics.domainValid.WithLabelValues(b, name).Set(flag(s.State == DomainValid))
		if !s.Expires.IsZero() {
			i.metrics.domainExpires.WithLabelValues(b, name).Set(float64(s.Expires.Unix()))
		}
		if s.Record != RecordUnknown {
			i.metrics.domainRecord.WithLabelValues(b, name).Set(flag(s.Record == RecordServed))
		}
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// news brings w up to date and returns what to log about the differences.
func (i *Issuer) news(ctx context.Context, w *watched, now map[string]DomainStatus) []func() {
	var tell []func()
	log := i.cfg.Log
	if w.Domains == nil {
		w.Domains = map[string]watchedDomain{}
	}
	for name, s := range now {
		old, known := w.Domains[name]
		next := watchedDomain{State: s.State, Record: s.Record, Warned: old.Warned}
		if s.Record == RecordUnknown {
			next.Record = old.Record
		}
		if !known || old.State != s.State {
			switch {
			case s.State == DomainValid:
				tell = append(tell, func() {
					log.InfoContext(ctx, "domain is validated", "identifier", name, "expires", s.Expires)
				})
			case old.State == DomainValid || s.State == DomainInvalid:
				tell = append(tell, func() {
					log.ErrorContext(ctx, "domain is not validated any more: orders for its names are refused", "identifier", name, "state", s.State, "was", old.State, "record", s.RecordName)
				})
			default:
				tell = append(tell, func() {
					log.InfoContext(ctx, "domain waits for its validation", "identifier", name, "state", s.State, "record", s.RecordName)
				})
			}
		}
		if next.Record != old.Record {
			switch {
			case next.Record == RecordServed && known && old.Record != "":
				tell = append(tell, func() {
					log.InfoContext(ctx, "record of a domain is served again", "identifier", name, "record", s.RecordName)
				})
			case next.Record == RecordMissing || next.Record == RecordOther:
				if s.State == DomainValid {
					tell = append(tell, func() {
						log.WarnContext(ctx, "record of a validated domain is gone from DNS: it will not be validated again", "identifier", name, "record", s.RecordName)
					})
				}
			}
		}
		if s.State == DomainValid && !s.Expires.IsZero() && i.cfg.Now().Add(expiresSoon).After(s.Expires) {
			if i.cfg.Now().Sub(old.Warned) >= warnAgain {
				next.Warned = i.cfg.Now().UTC()
				tell = append(tell, func() {
					log.WarnContext(ctx, "validation of a domain ends soon", "identifier", name, "expires", s.Expires)
				})
			}
		} else {
			next.Warned = time.Time{}
		}
		if next != old {
			w.Domains[name] = next
			tell = append(tell, func() {}) // to be saved, if not to be told
		}
	}
	for name, old := range w.Domains {
		if _, ok := now[name]; !ok {
			delete(w.Domains, name)
			tell = append(tell, func() {
				log.WarnContext(ctx, "domain is gone from Certificate Manager", "identifier", name, "was", old.State)
			})
		}
	}
	return tell
}
