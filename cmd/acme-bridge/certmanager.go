package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/admin"
	"github.com/acme-bridge/acme-bridge/backend/certmanager"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// certManager makes b a backend of Certificate Manager.
func (a *app) certManager(b *backend, name string, publisher *dnsPublisher) error {
	cfg := b.cfg
	if cfg.Publisher != "" && publisher == nil {
		return fmt.Errorf("its publisher %s cannot be used", cfg.Publisher)
	}
	client, err := ncloud.New(ncloud.Config{
		Backend: name, BaseURL: cfg.BaseURL,
		Credentials: ncloud.Credentials{AccessKey: cfg.AccessKey.Reveal(), SecretKey: cfg.SecretKey.Reveal()},
		Timeout:     cfg.Timeout.Std(), MaxInFlight: cfg.MaxInFlight, Log: a.log, Metrics: b.metrics,
	})
	if err != nil {
		return err
	}
	c := certmanager.Config{
		Backend: name, Client: client, BaseURL: cfg.BaseURL,
		CertificateType: cfg.CertificateType, OrganizationNo: cfg.OrganizationNo, ValidationMethod: cfg.ValidationMethod,
		DCVTimeout: cfg.DCVTimeout.Std(), Renewal: cfg.Renewal, ReissueSameName: cfg.ReissueSameName, KeyCompromise: cfg.KeyCompromise,
		Records: records(a.store), Unfetched: a.unfetched, LookupTXT: txtLookup(cfg.Resolvers), Log: a.log, Metrics: b.metrics,
	}
	if publisher != nil {
		c.Publisher, b.publisher = publisher, publisher
	}
	if cfg.RootsFile != "" {
		if c.RootsPEM, err = os.ReadFile(cfg.RootsFile); err != nil {
			return fmt.Errorf("roots_file: %w", err)
		}
	}
	ca, err := certmanager.New(c)
	if err != nil {
		return err
	}
	b.Issuer, b.usable, b.preflight, b.run = ca, ca.Ready, ca.Preflight, ca.Run
	b.domains = &caDomains{ca: ca, publisher: cfg.Publisher}
	b.check = func(ctx context.Context, _ []time.Duration) ([]string, error) { return certManagerFacts(ca.Check(ctx)) }
	return nil
}

// certManagerFacts puts a report into words.
func certManagerFacts(r *certmanager.Report) (facts []string, err error) {
	facts = []string{"type " + r.CertificateType, "validation " + r.ValidationMethod}
	for _, d := range r.Domains {
		fact := "domain " + d.Name + " is " + d.State
		if !d.Expires.IsZero() {
			fact += " until " + d.Expires.Format(time.DateOnly)
		}
		facts = append(facts, fact)
	}
	for _, w := range r.Warnings {
		facts = append(facts, "warning: "+w)
	}
	return facts, joined(r.Errors)
}

// unfetched tells whether an order has that certificate and nobody has
// downloaded it.
func (a *app) unfetched(ctx context.Context, orderID, certID string) (bool, error) {
	o, err := a.store.Order(ctx, orderID)
	if errors.Is(err, acme.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return o.Certificate != nil && o.Certificate.ID == certID && o.Certificate.Unfetched, nil
}

// txtLookup asks DNS for TXT records: these servers in turn, or the system's.
func txtLookup(resolvers []string) func(context.Context, string) ([]string, error) {
	r := &net.Resolver{}
	if len(resolvers) > 0 {
		var next atomic.Uint64
		r.PreferGo = true
		r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, resolvers[next.Add(1)%uint64(len(resolvers))])
		}
	}
	return func(ctx context.Context, name string) ([]string, error) {
		texts, err := r.LookupTXT(ctx, name+".") // whole: no search list
		if failure, ok := errors.AsType[*net.DNSError](err); ok && failure.IsNotFound {
			return nil, nil
		}
		return texts, err
	}
}

// caDomains are a backend's domains as operators see them.
type caDomains struct {
	ca        *certmanager.Issuer
	publisher string // name, "" if there is none
}

func (c *caDomains) List(ctx context.Context) ([]admin.Domain, error) {
	list, err := c.ca.ListDomains(ctx)
	if err != nil {
		return nil, c.explained(ctx, err)
	}
	domains := make([]admin.Domain, len(list))
	for i, d := range list {
		domains[i] = domainView(d)
		hideRelayed(d, &domains[i])
		if d.IssueType == "ACME" {
			domains[i].Notes = append(domains[i].Notes, "for NCP's own ACME server, not for this one")
		}
	}
	return domains, nil
}

func (c *caDomains) Add(ctx context.Context, name string) (*admin.Domain, error) {
	d, err := c.ca.RegisterDomain(ctx, name, "")
	if err != nil {
		return nil, c.explained(ctx, err)
	}
	// A client may have been told the record by a relay challenge: its appearance
	// must not speak for that account any more, now that the operator brings it.
	if err := c.ca.EndRelay(ctx, name); err != nil {
		return nil, fmt.Errorf("the domain is registered, but its record may be a client's (relay challenge) and that could not be ended; try again: %w", err)
	}
	view := domainView(d)
	if d.State != certmanager.DomainValid {
		c.publish(ctx, d, &view)
	}
	return &view, nil
}

func (c *caDomains) Check(ctx context.Context, name string) (*admin.Domain, error) {
	s, err := c.ca.CheckDomain(ctx, name)
	if err != nil {
		return nil, c.explained(ctx, err)
	}
	view := domainView(s.Domain)
	if s.State == certmanager.DomainValid {
		view.Notes = append(view.Notes, s.Warnings...)
	}
	if s.Record != certmanager.RecordUnknown {
		view.Notes = append(view.Notes, "DNS: the record is "+recordWords(s.Record))
	}
	if hideRelayed(s.Domain, &view) {
		return &view, nil
	}
	if s.Record != certmanager.RecordServed && (s.State != certmanager.DomainValid || s.Record != certmanager.RecordUnknown) {
		c.publish(ctx, s.Domain, &view)
	}
	return &view, nil
}

// hideRelayed keeps to itself the record of a domain that waits for a client
// (relay challenge), and tells of it: whoever publishes it speaks for that
// client's account.
func hideRelayed(d certmanager.Domain, view *admin.Domain) bool {
	if d.Method == "PTXT" || d.State == certmanager.DomainValid {
		return false
	}
	view.Record = nil
	view.Notes = append(view.Notes, "registered with a one-time record, as for a client by the relay challenge: domain add shows the record, and ends that challenge")
	return true
}

func recordWords(record string) string {
	switch record {
	case certmanager.RecordMissing:
		return "missing"
	case certmanager.RecordOther:
		return "there with another value"
	}
	return record
}

// publish has the record written if there is someone for it, and notes what
// came of it: that the domain is registered stands in any case.
func (c *caDomains) publish(ctx context.Context, d certmanager.Domain, view *admin.Domain) {
	if d.RecordName == "" || d.RecordValue == "" {
		view.Notes = append(view.Notes, "the service does not show the record yet: check again in a while, or look in its console")
		return
	}
	published, served, err := c.ca.PublishDomain(ctx, d)
	switch {
	case err != nil:
		view.Notes = append(view.Notes, fmt.Sprintf("publisher %s: %v", c.publisher, err))
	case !published && c.publisher != "":
		view.Notes = append(view.Notes, fmt.Sprintf("publisher %s has no zone for it: publish the record yourself", c.publisher))
	case published && served:
		view.Publisher = c.publisher
		view.Notes = append(view.Notes, "all name servers serve the record; the service has to see it")
	case published:
		view.Publisher = c.publisher
		view.Notes = append(view.Notes, "the record is written; not all name servers serve it yet")
	}
}

func (c *caDomains) Remove(ctx context.Context, name string) error {
	return c.explained(ctx, c.ca.RemoveDomain(ctx, name))
}

// explained is an error with what readiness knows of its cause, such as a key
// that the service does not take.
func (c *caDomains) explained(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, certmanager.ErrNoDomain):
		return fmt.Errorf("%w: %w", err, acme.ErrNotFound)
	}
	if why := c.ca.Ready(ctx); why != nil {
		return why
	}
	return err
}

func domainView(d certmanager.Domain) admin.Domain {
	view := admin.Domain{Name: d.Name, State: d.State, Kind: d.Method, Expires: d.Expires}
	if d.RecordName != "" || d.RecordValue != "" {
		view.Record = &admin.Record{Name: d.RecordName, Type: "TXT", Value: d.RecordValue}
	}
	return view
}
