package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/backend/certmanager"
	"github.com/acme-bridge/acme-bridge/config"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
	"github.com/acme-bridge/acme-bridge/publisher"
	"github.com/acme-bridge/acme-bridge/publisher/globaldns"
	"github.com/acme-bridge/acme-bridge/publisher/rfc2136"
)

// A dnsPublisher is a publisher and what is asked of it besides publishing.
type dnsPublisher struct {
	certmanager.Publisher
	cfg     *config.Publisher
	metrics *prometheus.Registry
	// check tries, without changing anything, whether records could be written
	// for a name.
	check func(ctx context.Context, name string) error
}

// newPublisher is the switch over the types of publishers.
func (a *app) newPublisher(name string, cfg *config.Publisher) (*dnsPublisher, error) {
	p := &dnsPublisher{cfg: cfg, metrics: prometheus.NewRegistry()}
	confirmer, err := publisher.NewConfirmer(publisher.ConfirmerConfig{Resolvers: cfg.Resolvers, Servers: cfg.NameServers, Log: a.log})
	if err != nil {
		return nil, err
	}
	ttl := time.Duration(cfg.TTL) * time.Second
	switch cfg.Type {
	case config.PublisherRFC2136:
		algorithm := cfg.TSIGAlgorithm
		if cfg.TSIGName == "" {
			algorithm = ""
		}
		r, err := rfc2136.New(rfc2136.Config{
			Name: name, Server: cfg.Server, TSIGName: cfg.TSIGName, TSIGAlgorithm: algorithm, TSIGSecret: cfg.TSIGSecret.Reveal(),
			TTL: ttl, Confirmer: confirmer, Log: a.log, Metrics: p.metrics,
		})
		if err != nil {
			return nil, err
		}
		p.Publisher, p.check = r, r.Check
	case config.PublisherGlobalDNS:
		client, err := ncloud.New(ncloud.Config{
			// No backend has a dot in its name, so metrics of both can stand side by side.
			Backend: "publishers." + name, BaseURL: cfg.BaseURL,
			Credentials: ncloud.Credentials{AccessKey: cfg.AccessKey.Reveal(), SecretKey: cfg.SecretKey.Reveal()},
			Log:         a.log, Metrics: p.metrics,
		})
		if err != nil {
			return nil, err
		}
		g, err := globaldns.New(globaldns.Config{
			Name: name, Client: client, TTL: ttl, Confirmer: confirmer, ForeignEdits: globaldns.ForeignEdits(cfg.ForeignEdits),
			Records: records(a.store), Log: a.log, Metrics: p.metrics,
		})
		if err != nil {
			return nil, err
		}
		p.Publisher, p.check = g, g.Check
	default:
		return nil, fmt.Errorf("type %q is unknown", cfg.Type)
	}
	return p, nil
}

// zonesOf are the domains that profiles would have a publisher write records
// for, as far as they name any.
func zonesOf(cfg *config.Config, publisher string) []string {
	zones := map[string]bool{}
	for _, p := range cfg.Profiles {
		if b := cfg.Backends[p.Backend]; b == nil || b.Publisher != publisher {
			continue
		}
		for _, pattern := range p.Identifiers.Allow {
			if name := strings.TrimPrefix(pattern, "*."); name != "*" {
				zones[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(zones))
}

// checkPublisher tries a publisher on the domains that it is for.
func checkPublisher(ctx context.Context, p *dnsPublisher, zones []string) (facts []string, err error) {
	if len(zones) == 0 {
		return []string{"not tried: no profile that uses it names its domains (identifiers.allow)"}, nil
	}
	var errs []string
	for _, zone := range zones {
		if err := p.check(ctx, zone); err != nil {
			errs = append(errs, fmt.Sprintf("%s: %v", zone, err))
			continue
		}
		facts = append(facts, zone+" can be written")
	}
	return facts, joined(errs)
}
