package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/acme-bridge/acme-bridge/backend/upstream"
)

// upstream makes b a client of another ACME server.
func (a *app) upstream(b *backend, name string, publisher *dnsPublisher) error {
	cfg := b.cfg
	if cfg.Publisher != "" && publisher == nil {
		return fmt.Errorf("its publisher %s cannot be used", cfg.Publisher)
	}
	c := upstream.Config{
		Backend: name, Directory: cfg.Directory, Mode: cfg.Mode, Records: records(a.store),
		EABKeyID: cfg.EABKeyID, EABKey: cfg.EABKey.Reveal(), Contact: cfg.Contact, AgreeTerms: cfg.AgreeTerms, Profile: cfg.Profile,
		Timeout: cfg.Timeout.Std(), OrderTimeout: cfg.OrderTimeout.Std(), Log: a.log, Metrics: b.metrics,
	}
	if publisher != nil {
		c.Publisher, b.publisher = publisher, publisher
	}
	var err error
	if c.RootsPEM, err = readOptional(cfg.RootsFile); err != nil {
		return fmt.Errorf("roots_file: %w", err)
	}
	if c.DirectoryRootsPEM, err = readOptional(cfg.DirectoryRootsFile); err != nil {
		return fmt.Errorf("directory_roots_file: %w", err)
	}
	ca, err := upstream.New(c)
	if err != nil {
		return err
	}
	b.Issuer, b.usable, b.preflight = ca, ca.Ready, ca.Preflight
	b.check = func(ctx context.Context, _ []time.Duration) ([]string, error) {
		return upstreamFacts(ca.Check(ctx), a.store != nil)
	}
	return nil
}

func readOptional(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	return os.ReadFile(path)
}

// upstreamFacts puts a report into words. Without a store, nothing can be said
// of the account.
func upstreamFacts(r *upstream.Report, stored bool) (facts []string, err error) {
	facts = []string{"directory " + r.Directory, "mode " + r.Mode}
	if r.Terms != "" {
		facts = append(facts, "terms of service "+r.Terms)
	}
	if r.ExternalAccount {
		facts = append(facts, "wants an external account binding")
	}
	if len(r.Profiles) > 0 {
		facts = append(facts, "profiles "+strings.Join(r.Profiles, " "))
	}
	switch {
	case r.Account != "":
		facts = append(facts, "account "+r.Account)
	case !stored:
		facts = append(facts, "account not tried: it is in the store")
	}
	for _, w := range r.Warnings {
		if stored || !strings.HasPrefix(w, "the account is not registered yet") {
			facts = append(facts, "warning: "+w)
		}
	}
	return facts, joined(r.Errors)
}
