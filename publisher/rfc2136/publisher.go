// Package rfc2136 publishes TXT records by DNS dynamic update (RFC 2136) signed
// with TSIG (RFC 8945): BIND, Knot, PowerDNS, Windows DNS and others.
//
// It finds the zone of a name at the server itself, adds one record beside
// those that are there, and removes that one record. It needs no state: adding
// twice and removing twice are harmless.
//
// It is built on miekg/dns, which this program uses for DNS anyway, because
// neither libdns (see package publisher) nor lego's provider of the same name
// has errors that tell the operator what to change.
//
// Start reading at [Publisher.Publish].
package rfc2136

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/publisher"
)

// Defaults of [Config].
const (
	DefaultTTL           = 60 * time.Second
	DefaultTimeout       = 5 * time.Second
	DefaultTSIGAlgorithm = "hmac-sha256"
)

// minSecret is the shortest secret that is taken, in bytes: RFC 8945, Section 8,
// wants as many as the hash has; old keys of 16 are still common.
const minSecret = 16

// A Config says which server to update. Server, Confirmer and, unless the server
// trusts addresses, the TSIG fields are needed.
type Config struct {
	Name   string // in logs and metrics
	Server string // the zone's primary, host:port

	TSIGName      string // name of the key; empty: updates are not signed
	TSIGAlgorithm string // hmac-sha1, -sha224, -sha256 (default), -sha384, -sha512
	TSIGSecret    string // base64

	TTL       time.Duration // of records, whole seconds; DefaultTTL
	Timeout   time.Duration // of one exchange by one protocol; DefaultTimeout
	Confirmer *publisher.Confirmer

	Dial    func(ctx context.Context, network, address string) (net.Conn, error) // nil: net.Dialer
	Now     func() time.Time                                                     // nil: time.Now
	Log     *slog.Logger                                                         // nil: discarded
	Metrics prometheus.Registerer                                                // nil: none
}

// A Publisher updates the zones of one server. It is safe for concurrent use.
type Publisher struct {
	cfg     Config
	query   *publisher.Querier
	metrics *publisher.Metrics
}

// New checks the configuration; nothing is sent yet.
func New(cfg Config) (*Publisher, error) {
	var errs []error
	if err := publisher.CheckAddress(cfg.Server); err != nil {
		errs = append(errs, fmt.Errorf("server: %w", err))
	}
	if cfg.Confirmer == nil {
		errs = append(errs, errors.New("no confirmer"))
	}
	cfg.TTL = cmp.Or(cfg.TTL, DefaultTTL)
	if cfg.TTL < time.Second || cfg.TTL%time.Second != 0 || cfg.TTL > 7*24*time.Hour {
		errs = append(errs, fmt.Errorf("ttl: %s is not a number of whole seconds from 1 to 604800", cfg.TTL))
	}
	cfg.Timeout = cmp.Or(max(cfg.Timeout, 0), DefaultTimeout)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Log = cfg.Log.With("publisher", cfg.Name)
	key, err := newTSIG(cfg)
	errs = append(errs, err)
	m, err := publisher.NewMetrics(cfg.Metrics, cfg.Name)
	if err != nil {
		errs = append(errs, fmt.Errorf("register metrics: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	query := &publisher.Querier{Timeout: cfg.Timeout, Dial: cfg.Dial, Now: cfg.Now, TSIG: key}
	return &Publisher{cfg: cfg, query: query, metrics: m}, nil
}

// newTSIG never puts the secret into an error.
func newTSIG(cfg Config) (*publisher.TSIG, error) {
	if cfg.TSIGName == "" {
		if cfg.TSIGSecret != "" {
			return nil, errors.New("tsig_name: missing")
		}
		return nil, nil
	}
	var errs []error
	if _, ok := dns.IsDomainName(cfg.TSIGName); !ok {
		errs = append(errs, fmt.Errorf("tsig_name: %.70q is no name of a key", cfg.TSIGName))
	}
	algorithm := dns.CanonicalName(cmp.Or(cfg.TSIGAlgorithm, DefaultTSIGAlgorithm))
	known := []string{dns.HmacSHA1, dns.HmacSHA224, dns.HmacSHA256, dns.HmacSHA384, dns.HmacSHA512}
	if !slices.Contains(known, algorithm) {
		errs = append(errs, fmt.Errorf("tsig_algorithm: %.70q is none of hmac-sha1, hmac-sha224, hmac-sha256, hmac-sha384, hmac-sha512", cfg.TSIGAlgorithm))
	}
	secret := strings.TrimSpace(cfg.TSIGSecret)
	if raw, err := base64.StdEncoding.DecodeString(secret); err != nil {
		errs = append(errs, errors.New("tsig_secret: not base64"))
	} else if len(raw) < minSecret {
		errs = append(errs, fmt.Errorf("tsig_secret: shorter than %d bytes", minSecret))
	}
	return &publisher.TSIG{Name: dns.CanonicalName(cfg.TSIGName), Algorithm: algorithm, Secret: secret}, errors.Join(errs...)
}

// Covers reports whether the server is authoritative for the zone of a name.
// It does not try whether the key may update it; see [Publisher.Check].
func (p *Publisher) Covers(ctx context.Context, name string) (ok bool, err error) {
	defer func(begun time.Time) { p.metrics.Observe("covers", begun, p.cfg.Now(), true, err) }(p.cfg.Now())
	_, err = p.zone(ctx, name)
	if errors.Is(err, errNotCovered) {
		return false, nil
	}
	return err == nil, err
}

// Check asks the server to update the zone of a name under a condition that
// never holds: it tells a bad key, clock or permission, and changes nothing.
// Servers that look at conditions before permissions find less.
func (p *Publisher) Check(ctx context.Context, name string) error {
	zone, err := p.zone(ctx, name)
	if err != nil {
		return err
	}
	m := new(dns.Msg).SetUpdate(zone)
	m.NameNotUsed([]dns.RR{&dns.ANY{Hdr: dns.RR_Header{Name: zone}}}) // a zone's apex always is (RFC 2136, Section 2.4.5)
	msg, err := p.query.Exchange(ctx, p.cfg.Server, m)
	if err == nil && msg.Rcode == dns.RcodeYXDomain {
		return nil
	}
	return p.explain(zone, msg, err)
}

// Publish adds the record unless it is there, and reports whether every name
// server of the zone serves it.
func (p *Publisher) Publish(ctx context.Context, fqdn, value string) (served bool, err error) {
	defer func(begun time.Time) { p.metrics.Observe("publish", begun, p.cfg.Now(), served, err) }(p.cfg.Now())
	fqdn = dns.CanonicalName(fqdn)
	zone, err := p.zone(ctx, fqdn)
	if err != nil {
		return false, err
	}
	there, err := p.look(ctx, fqdn, value)
	if err != nil {
		return false, err
	}
	if !there {
		// A server passes over what is added beside a CNAME without an error (RFC
		// 2136, Section 3.4.2.2), hence the condition. A query could not tell a
		// CNAME in the way from one made up from a wildcard, which is not.
		m := new(dns.Msg).SetUpdate(zone)
		m.RRsetNotUsed([]dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: fqdn, Rrtype: dns.TypeCNAME}}})
		m.Insert([]dns.RR{publisher.NewTXT(fqdn, value, p.cfg.TTL)})
		if err := p.update(ctx, zone, m); err != nil {
			return false, fmt.Errorf("add TXT record %s: %w", fqdn, err)
		}
		p.cfg.Log.InfoContext(ctx, "record added", "zone", zone, "record", fqdn)
	}
	return p.cfg.Confirmer.Served(ctx, zone, fqdn, value)
}

// Remove removes exactly that record; that it is not there is no error.
func (p *Publisher) Remove(ctx context.Context, fqdn, value string) (err error) {
	defer func(begun time.Time) { p.metrics.Observe("remove", begun, p.cfg.Now(), true, err) }(p.cfg.Now())
	fqdn = dns.CanonicalName(fqdn)
	zone, err := p.zone(ctx, fqdn)
	if err != nil {
		return err
	}
	m := new(dns.Msg).SetUpdate(zone)
	m.Remove([]dns.RR{publisher.NewTXT(fqdn, value, p.cfg.TTL)})
	if err := p.update(ctx, zone, m); err != nil {
		return fmt.Errorf("remove TXT record %s: %w", fqdn, err)
	}
	p.cfg.Log.InfoContext(ctx, "record removed", "zone", zone, "record", fqdn)
	return nil
}

// errNotCovered: the server is not the one to update for the name.
var errNotCovered = errors.New("not in a zone of this server")

// zone finds the zone of a name by asking the server for the SOA of the name
// and those above it. A zone cut on the way, to a zone that this server does not
// have, means that what is written above it would not be seen.
func (p *Publisher) zone(ctx context.Context, name string) (string, error) {
	delegated := ""
	for _, candidate := range publisher.Parents(name) {
		msg, err := p.query.Query(ctx, p.cfg.Server, candidate, dns.TypeSOA, false)
		if err != nil {
			return "", fmt.Errorf("find the zone of %s: %w", name, p.explain(candidate, nil, err))
		}
		switch msg.Rcode {
		case dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeRefused, dns.RcodeNotAuth:
		default:
			return "", fmt.Errorf("find the zone of %s: server %s answers %s", name, p.cfg.Server, dns.RcodeToString[msg.Rcode])
		}
		if msg.Authoritative && slices.ContainsFunc(msg.Answer, func(rr dns.RR) bool {
			return rr.Header().Rrtype == dns.TypeSOA && dns.CanonicalName(rr.Header().Name) == candidate
		}) {
			if delegated != "" {
				return "", fmt.Errorf("%w: %w: server %s has %s, but %s is delegated to other servers", publisher.ErrBlocked, errNotCovered, p.cfg.Server, candidate, delegated)
			}
			return candidate, nil
		}
		for _, rr := range msg.Ns {
			if owner := dns.CanonicalName(rr.Header().Name); !msg.Authoritative && rr.Header().Rrtype == dns.TypeNS && owner == candidate {
				delegated = owner
			}
		}
	}
	return "", fmt.Errorf("%w: %s: %w: server %s is authoritative for no zone above it", publisher.ErrBlocked, name, errNotCovered, p.cfg.Server)
}

// look asks the server for the record.
func (p *Publisher) look(ctx context.Context, fqdn, value string) (bool, error) {
	msg, err := p.query.Query(ctx, p.cfg.Server, fqdn, dns.TypeTXT, false)
	if err != nil {
		return false, fmt.Errorf("look for TXT record %s: %w", fqdn, p.explain(fqdn, nil, err))
	}
	if msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError {
		return false, fmt.Errorf("look for TXT record %s: server %s answers %s", fqdn, p.cfg.Server, dns.RcodeToString[msg.Rcode])
	}
	values, _ := publisher.At(msg.Answer, fqdn)
	return slices.Contains(values, value), nil
}

// update sends an update, perhaps twice: by UDP, then TCP. None of ours does
// more when it is done twice.
func (p *Publisher) update(ctx context.Context, zone string, m *dns.Msg) error {
	msg, err := p.query.Exchange(ctx, p.cfg.Server, m)
	if err == nil && msg.Rcode == dns.RcodeSuccess {
		return nil
	}
	return p.explain(zone, msg, err)
}

// explain words what went wrong so that the operator knows what to change.
func (p *Publisher) explain(zone string, msg *dns.Msg, err error) error {
	if refused, ok := errors.AsType[*publisher.TSIGError](err); ok {
		key := strings.TrimSuffix(dns.CanonicalName(p.cfg.TSIGName), ".")
		switch refused.Code {
		case "BADKEY":
			return fmt.Errorf("%w: server %s does not know the key %s with this algorithm: compare tsig_name and tsig_algorithm with the server's (%w)", publisher.ErrBlocked, p.cfg.Server, key, err)
		case "BADSIG":
			return fmt.Errorf("%w: server %s has another secret for the key %s: compare tsig_secret with the server's (%w)", publisher.ErrBlocked, p.cfg.Server, key, err)
		case "BADTIME":
			return fmt.Errorf("%w: the clocks here and at server %s differ by more than 5 minutes (%w)", publisher.ErrBlocked, p.cfg.Server, err)
		}
		return fmt.Errorf("%w: server %s: %w", publisher.ErrBlocked, p.cfg.Server, err)
	}
	if err != nil {
		return err
	}
	words, blocked := "", true
	switch msg.Rcode {
	case dns.RcodeRefused:
		words = "the server allows this key no such update: look at its update-policy or allow-update"
		if p.cfg.TSIGName == "" {
			words = "the server allows no unsigned update: set tsig_name and tsig_secret"
		}
	case dns.RcodeNotAuth:
		words = "the server is not authoritative for the zone, or wants another key"
	case dns.RcodeYXRrset:
		words = "there is a CNAME, beside which no TXT record can stand: remove it"
	case dns.RcodeNotZone:
		words = "the name lies outside of the zone"
	case dns.RcodeNotImplemented:
		words = "the server knows no dynamic updates"
	case dns.RcodeFormatError:
		words = "the server does not understand the update"
	case dns.RcodeServerFailure:
		words, blocked = "the server failed, its log says why: often it cannot write its journal", false
	default:
		words, blocked = "unexpected answer", false
	}
	code, ok := dns.RcodeToString[msg.Rcode]
	if !ok {
		code = fmt.Sprint("code ", msg.Rcode)
	}
	if blocked {
		return fmt.Errorf("%w: update of %s at %s: %s: %s", publisher.ErrBlocked, zone, p.cfg.Server, code, words)
	}
	return fmt.Errorf("update of %s at %s: %s: %s", zone, p.cfg.Server, code, words)
}
