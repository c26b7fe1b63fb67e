// Package globaldns publishes TXT records through NAVER Cloud's Global DNS.
//
// Global DNS serves nothing before an apply, and an apply concerns every change
// that waits in the zone, whoever made it. So a zone has one writer at a time
// across all replicas (a lease in the store), the changes of several orders go
// into one apply, and edits of other people that wait in the zone are neither
// rolled back nor, unless the configuration says so, applied for them.
//
// Start reading at [Publisher.Publish], then at batch in writer.go.
package globaldns

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
	"github.com/acme-bridge/acme-bridge/publisher"
)

// DefaultTTL is the time to live of records.
const DefaultTTL = 60 * time.Second

// ForeignEdits says what to do about edits of other people that wait in a zone.
type ForeignEdits string

// What to do about them.
const (
	// WaitForForeignEdits writes nothing until somebody has applied or
	// discarded them; the error says so.
	WaitForForeignEdits ForeignEdits = "wait"
	// ApplyForeignEdits applies them with our own, and logs it.
	ApplyForeignEdits ForeignEdits = "apply"
)

// A Config says which account's zones to write. Client, Records and Confirmer
// are needed; the zero value of anything else means its default.
type Config struct {
	Name    string         // in logs and metrics
	Client  *ncloud.Client // its base URL is scheme and host of the API
	Records acme.Records   // keeps the leases: shared by all replicas
	// Owner names this process in leases: no two that run have the same.
	// Default: a random one.
	Owner        string
	Confirmer    *publisher.Confirmer
	TTL          time.Duration // whole seconds; DefaultTTL
	ForeignEdits ForeignEdits  // WaitForForeignEdits

	Now     func() time.Time      // nil: time.Now
	Log     *slog.Logger          // nil: discarded
	Metrics prometheus.Registerer // nil: none
}

// A Publisher writes zones of one account. It is safe for concurrent use.
type Publisher struct {
	cfg     Config
	api     api
	metrics *publisher.Metrics
	batches *prometheus.HistogramVec
	foreign *prometheus.CounterVec
	found   *lru.Cache[string, *foundZone] // by candidate's name

	mu      sync.Mutex
	writers map[string]*writer // by zone; as many as the account has zones
}

// foundZone is what is known of a name: a zone's id, or 0 if it is no zone.
type foundZone struct {
	id    int64
	until time.Time
}

const (
	maxFound = 10000
	// zoneAge is how long a zone is known by its id, noZoneAge how long a name is
	// known to be none: somebody who has just made one does not like to wait.
	zoneAge   = 10 * time.Minute
	noZoneAge = time.Minute
)

// New checks the configuration; nothing is sent yet.
func New(cfg Config) (*Publisher, error) {
	var errs []error
	if cfg.Client == nil || cfg.Records == nil || cfg.Confirmer == nil {
		errs = append(errs, errors.New("client, records and confirmer are all needed"))
	}
	cfg.TTL = cmp.Or(cfg.TTL, DefaultTTL)
	if cfg.TTL < time.Second || cfg.TTL%time.Second != 0 || cfg.TTL > 7*24*time.Hour {
		errs = append(errs, fmt.Errorf("ttl: %s is not a number of whole seconds from 1 to 604800", cfg.TTL))
	}
	cfg.ForeignEdits = cmp.Or(cfg.ForeignEdits, WaitForForeignEdits)
	if cfg.ForeignEdits != WaitForForeignEdits && cfg.ForeignEdits != ApplyForeignEdits {
		errs = append(errs, fmt.Errorf("foreign_edits: %q is neither wait nor apply", cfg.ForeignEdits))
	}
	cfg.Owner = cmp.Or(cfg.Owner, rand.Text())
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Log = cfg.Log.With("publisher", cfg.Name)
	m, err := publisher.NewMetrics(cfg.Metrics, cfg.Name)
	batches, err1 := publisher.Register(cfg.Metrics, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "acme_bridge_publisher_changes_per_apply",
		Help:    "Changes that one apply of a zone brought into effect.",
		Buckets: []float64{1, 2, 5, 10, 20, 50, 100},
	}, []string{"publisher"}))
	foreign, err2 := publisher.Register(cfg.Metrics, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "acme_bridge_publisher_foreign_edits_total",
		Help: "Times that edits of other people waited in a zone that was to be written: waited or applied.",
	}, []string{"publisher", "action"}))
	found, err3 := lru.New[string, *foundZone](maxFound)
	if err := errors.Join(append(errs, err, err1, err2, err3)...); err != nil {
		return nil, err
	}
	return &Publisher{cfg: cfg, api: api{cfg.Client, cfg.Log}, metrics: m, batches: batches, foreign: foreign, found: found, writers: map[string]*writer{}}, nil
}

// Covers reports whether the account has a zone for a name.
func (p *Publisher) Covers(ctx context.Context, name string) (ok bool, err error) {
	defer func(begun time.Time) { p.metrics.Observe("covers", begun, p.cfg.Now(), true, err) }(p.cfg.Now())
	z, err := p.zone(ctx, name)
	return z != nil, err
}

// Publish sees to it that the record is in its zone and applied, and reports
// whether every name server serves it. While another replica writes the zone it
// returns false, and the next call tries again.
func (p *Publisher) Publish(ctx context.Context, fqdn, value string) (served bool, err error) {
	defer func(begun time.Time) { p.metrics.Observe("publish", begun, p.cfg.Now(), served, err) }(p.cfg.Now())
	fqdn = dns.CanonicalName(fqdn)
	if value == "" {
		return false, fmt.Errorf("%w: %s: an empty TXT record cannot be published", publisher.ErrBlocked, fqdn)
	}
	w, err := p.mustZone(ctx, fqdn)
	if err != nil {
		return false, err
	}
	// Most calls are polls after the apply: they cost no call of the API. If the
	// name servers cannot be asked now, the record can still be written.
	served, errServed := p.cfg.Confirmer.Served(ctx, w.zone, fqdn, value)
	if served {
		return true, nil
	}
	change := key{hostOf(strings.TrimSuffix(fqdn, "."), w.zone), value}
	done, err := w.there(ctx, change)
	if err != nil {
		return false, p.forget(w, err)
	}
	if done { // applied, and on its way to the name servers
		return false, errServed
	}
	switch err := w.do(ctx, change, false); {
	case errors.Is(err, errBusy):
		p.cfg.Log.InfoContext(ctx, "another replica writes the zone, will try again", "zone", w.zone, "record", fqdn, "err", err)
		return false, nil
	case err != nil:
		return false, p.forget(w, err)
	}
	return p.cfg.Confirmer.Served(ctx, w.zone, fqdn, value)
}

// Remove deletes the records of that name and value. It is for records that
// serve once; what a CA wants to find again must not be removed. While another
// replica writes the zone it fails, to be called again.
func (p *Publisher) Remove(ctx context.Context, fqdn, value string) (err error) {
	defer func(begun time.Time) { p.metrics.Observe("remove", begun, p.cfg.Now(), true, err) }(p.cfg.Now())
	fqdn = dns.CanonicalName(fqdn)
	w, err := p.mustZone(ctx, fqdn)
	if err != nil {
		return err
	}
	return p.forget(w, w.do(ctx, key{hostOf(strings.TrimSuffix(fqdn, "."), w.zone), value}, true))
}

// Check reads the zone of a name as Publish would, and changes nothing: it
// tells a key without permission, and edits that wait.
func (p *Publisher) Check(ctx context.Context, name string) error {
	w, err := p.mustZone(ctx, name)
	if err != nil {
		return err
	}
	if _, err := p.api.at(ctx, w.zone, w.id, apex); err != nil {
		return p.forget(w, err)
	}
	complete, err := p.api.complete(ctx, w.zone, w.id)
	if err == nil && !complete && p.cfg.ForeignEdits == WaitForForeignEdits {
		err = errForeign(w.zone)
	}
	return err
}

// mustZone is zone, and an error if there is none.
func (p *Publisher) mustZone(ctx context.Context, name string) (*writer, error) {
	w, err := p.zone(ctx, name)
	if err == nil && w == nil {
		err = fmt.Errorf("%w: %s: the account has no zone for it in Global DNS", publisher.ErrBlocked, name)
	}
	return w, err
}

// zone finds the zone of a name: of those above it, or itself, the longest that
// the account has. It is nil if there is none.
func (p *Publisher) zone(ctx context.Context, name string) (*writer, error) {
	for _, candidate := range publisher.Parents(name) {
		candidate = strings.TrimSuffix(candidate, ".")
		if !strings.Contains(candidate, ".") {
			break // nobody has a zone for a top-level domain there, and the search would list all
		}
		known, ok := p.found.Get(candidate)
		if !ok || !p.cfg.Now().Before(known.until) {
			d, err := p.api.find(ctx, candidate)
			if err != nil {
				return nil, fmt.Errorf("find the zone of %s: %w", name, err)
			}
			known = &foundZone{until: p.cfg.Now().Add(noZoneAge)}
			if d != nil {
				known = &foundZone{int64(d.ID), p.cfg.Now().Add(zoneAge)}
			}
			p.found.Add(candidate, known)
		}
		if known.id != 0 {
			return p.writer(candidate, known.id), nil
		}
	}
	return nil, nil
}

// forget drops what is known of a zone if an error says that its id is wrong: a
// zone made anew has another one.
func (p *Publisher) forget(w *writer, err error) error {
	if gone(err) {
		p.found.Remove(w.zone)
	}
	return err
}

// writer returns the one writer of a zone in this process.
func (p *Publisher) writer(zone string, id int64) *writer {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.writers[zone]
	if w == nil || w.id != id {
		w = &writer{p: p, zone: zone, id: id, turn: make(chan struct{}, 1)}
		p.writers[zone] = w
	}
	return w
}

// there reports that the record is in its zone and nothing waits for an apply.
func (w *writer) there(ctx context.Context, k key) (bool, error) {
	rows, err := w.p.api.at(ctx, w.zone, w.id, k.host)
	if err != nil || !slices.ContainsFunc(rows, k.is) {
		return false, err
	}
	return w.p.api.complete(ctx, w.zone, w.id)
}
