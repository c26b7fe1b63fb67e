package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/admin"
	"github.com/acme-bridge/acme-bridge/backend/local"
	"github.com/acme-bridge/acme-bridge/backend/privateca"
	"github.com/acme-bridge/acme-bridge/config"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// A backend is an issuer and what is asked of it besides issuing.
type backend struct {
	acme.Issuer
	cfg     *config.Backend
	metrics *prometheus.Registry
	usable  func(ctx context.Context) error
	// check is for config check --online; lifetimes are those of its profiles.
	check func(ctx context.Context, lifetimes []time.Duration) (facts []string, err error)

	// The rest is nil for those that have none of it.

	// preflight is Preflighter's, for newOrder.
	preflight func(ctx context.Context, ids []acme.Identifier) error
	// run watches what must be watched, until ctx ends.
	run     func(ctx context.Context) error
	domains admin.Domains
	// publisher is what the backend was made with, to tell whether it is still
	// the one of its name.
	publisher *dnsPublisher
}

// newBackend is the switch over the types of backends.
func (a *app) newBackend(ctx context.Context, name string, cfg *config.Backend, publishers map[string]*dnsPublisher) (*backend, error) {
	b := &backend{cfg: cfg, metrics: prometheus.NewRegistry()}
	switch cfg.Type {
	case config.BackendLocal:
		ca, err := local.New(ctx, local.Config{Path: cfg.Path, Log: a.log.With("backend", name)})
		if err != nil {
			return nil, err
		}
		b.Issuer = ca
		b.usable = func(context.Context) error {
			if h := ca.Health(); time.Now().After(h.IntermediateExpires) {
				return h.Err
			}
			return nil
		}
		b.check = func(context.Context, []time.Duration) ([]string, error) {
			h := ca.Health()
			return []string{"root certificate " + ca.RootFile(), "intermediate ends " + h.IntermediateExpires.Format(time.DateOnly)}, h.Err
		}
	case config.BackendPrivateCA:
		client, err := ncloud.New(ncloud.Config{
			Backend: name, BaseURL: cfg.BaseURL,
			Credentials: ncloud.Credentials{AccessKey: cfg.AccessKey.Reveal(), SecretKey: cfg.SecretKey.Reveal()},
			Timeout:     cfg.Timeout.Std(), MaxInFlight: cfg.MaxInFlight, Log: a.log, Metrics: b.metrics,
		})
		if err != nil {
			return nil, err
		}
		ca, err := privateca.New(privateca.Config{
			Backend: name, Client: client, CATag: cfg.CATag, Exclusive: cfg.Exclusive, Quota: int64(cfg.Quota),
			SendKeyType: cfg.SendKeyType, Known: known(a.store), Log: a.log, Metrics: b.metrics,
		})
		if err != nil {
			return nil, err
		}
		b.Issuer, b.usable = ca, ca.Ready
		b.check = func(ctx context.Context, lifetimes []time.Duration) ([]string, error) {
			return privateCAFacts(ca.Check(ctx, lifetimes...))
		}
	case config.BackendCertManager:
		if err := a.certManager(b, name, publishers[cfg.Publisher]); err != nil {
			return nil, err
		}
	case config.BackendACME:
		if err := a.upstream(b, name, publishers[cfg.Publisher]); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("type %q is unknown", cfg.Type)
	}
	return b, nil
}

// known is nil where there is no store, as in config check.
func known(s closableStore) acme.KnownCertificates {
	if s == nil {
		return nil
	}
	return s
}

// records are never nil: without a store there are none, and none can be kept.
func records(s closableStore) acme.Records {
	if s == nil {
		return noRecords{}
	}
	return s
}

type noRecords struct{}

func (noRecords) Record(context.Context, string) ([]byte, int64, error) { return nil, 0, nil }

func (noRecords) PutRecord(context.Context, string, []byte, int64) error {
	return fmt.Errorf("a check keeps nothing: %w", acme.ErrUnavailable)
}

// privateCAFacts puts a report into words.
func privateCAFacts(r *privateca.Report) (facts []string, err error) {
	if r.Status != "" {
		facts = []string{
			"CA " + r.CATag + " is " + r.Status, fmt.Sprintf("%d of %d certificates left", r.QuotaLeft, r.Quota),
			"ends " + r.NotAfter.Format(time.DateOnly), fmt.Sprintf("chain of %d", len(r.Chain)),
		}
	}
	for _, w := range r.Warnings {
		facts = append(facts, "warning: "+w)
	}
	return facts, joined(r.Errors)
}

func joined(errs []string) error {
	if len(errs) == 0 {
		return nil
	}
	return errors.New(strings.Join(errs, "; "))
}
