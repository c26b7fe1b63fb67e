package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/term"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/acme/owntls"
	"github.com/acme-bridge/acme-bridge/acme/server"
	"github.com/acme-bridge/acme-bridge/acme/validation"
	"github.com/acme-bridge/acme-bridge/acme/worker"
	"github.com/acme-bridge/acme-bridge/admin"
	"github.com/acme-bridge/acme-bridge/config"
	"github.com/acme-bridge/acme-bridge/storage/bolt"
	"github.com/acme-bridge/acme-bridge/storage/redis"
)

// An app is a running server's parts.
type app struct {
	log      *slog.Logger
	registry *prometheus.Registry
	store    closableStore
	worker   *worker.Worker
	server   *server.Server
	own      *owntls.Source // nil unless server.tls.mode is auto

	started   *config.Config // the one that listeners and storage were made from
	reloading sync.Mutex
	parts     atomic.Pointer[parts]
	reloaded  chan struct{} // has a value after each reload; for watch
}

type closableStore interface {
	acme.Store
	Close() error
}

// parts are what a reload replaces.
type parts struct {
	cfg        *config.Config
	publishers map[string]*dnsPublisher
	backends   map[string]*backend
	validators map[string]*zone
	profiles   map[string]*acme.Profile
}

type zone struct {
	acme.Validator
	cfg     *config.Validation
	metrics *prometheus.Registry
}

func (a *app) cfg() *config.Config { return a.parts.Load().cfg }

// newApp makes all parts. It touches the local CA's files and the embedded
// store, and does not wait for anything on the network.
func newApp(ctx context.Context, cfg *config.Config, log *slog.Logger) (*app, error) {
	a := &app{log: log, started: cfg, registry: prometheus.NewRegistry(), reloaded: make(chan struct{}, 1)}
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var err error
	if a.store, err = openStore(cfg.Storage, log); err != nil {
		return nil, err
	}
	p, err := a.build(ctx, cfg, nil)
	if err != nil {
		a.close()
		return nil, err
	}
	a.parts.Store(p)
	a.worker = worker.New(worker.Options{
		Store: a.store, Now: time.Now, Log: log, Metrics: a.registry, Boundary: failpoint(),
	}, p.workerPolicy())
	a.server, err = server.New(server.Options{
		Store: a.store, Queue: a.worker, Revoker: a, Preflight: a.preflight, Relay: a.worker.Relay, ExternalURL: cfg.Server.ExternalURL,
		TrustedProxies: config.Prefixes(cfg.Server.TrustedProxies),
		Now:            time.Now, Rand: rand.Reader, Log: log, Metrics: a.registry,
	}, p.serverPolicy())
	if err != nil {
		a.close()
		return nil, err
	}
	if cfg.Server.TLS.Mode == config.TLSAuto {
		host, err := hostOf(cfg.Server.ExternalURL)
		if err != nil {
			a.close()
			return nil, err
		}
		a.own = owntls.New(owntls.Options{
			Store: a.store, Queue: a.worker, Now: time.Now, Rand: rand.Reader, Log: log, Name: host,
			Profile: func() *acme.Profile {
				p := a.parts.Load()
				return p.profiles[p.cfg.Server.TLS.Profile]
			},
		})
	}
	return a, nil
}

func (a *app) close() {
	if err := a.store.Close(); err != nil {
		a.log.Error("store not closed cleanly", "err", err)
	}
}

// openStore picks the store: Redis where the configuration has it, else one file.
func openStore(cfg config.Storage, log *slog.Logger) (closableStore, error) {
	if cfg.Redis == nil {
		s, err := bolt.Open(bolt.Options{Dir: cfg.Embedded.Path}, log)
		if err != nil {
			return nil, fmt.Errorf("storage.embedded: %w", err)
		}
		return s, nil
	}
	tlsConfig, err := redisTLS(cfg.Redis.TLS)
	if err != nil {
		return nil, fmt.Errorf("storage.redis.tls: %w", err)
	}
	s, err := redis.New(redis.Options{
		Addresses: cfg.Redis.Addresses, Mode: redis.Mode(cfg.Redis.Mode), MasterName: cfg.Redis.MasterName,
		Username: cfg.Redis.Username, Password: cfg.Redis.Password.Reveal(), DB: cfg.Redis.DB,
		TLS: tlsConfig, KeyPrefix: cfg.Redis.KeyPrefix, PoolSize: cfg.Redis.PoolSize,
	}, log)
	if err != nil {
		return nil, fmt.Errorf("storage.redis: %w", err)
	}
	return s, nil
}

func redisTLS(cfg config.RedisTLS) (*tls.Config, error) {
	if !cfg.Enabled {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cfg.ServerName}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: %s holds no certificate", cfg.CAFile)
		}
	}
	if cfg.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}

// build makes the parts of a configuration, and keeps of the old ones what did
// not change: a circuit breaker's state and counters survive a reload.
func (a *app) build(ctx context.Context, cfg *config.Config, old *parts) (*parts, error) {
	p := &parts{
		cfg: cfg, publishers: make(map[string]*dnsPublisher), backends: make(map[string]*backend),
		validators: make(map[string]*zone), profiles: cfg.ACMEProfiles(),
	}
	var errs []error
	for name, c := range cfg.Publishers {
		if old != nil && old.publishers[name] != nil && reflect.DeepEqual(old.publishers[name].cfg, c) {
			p.publishers[name] = old.publishers[name]
			continue
		}
		made, err := a.newPublisher(name, c)
		if err != nil {
			errs = append(errs, fmt.Errorf("publishers.%s: %w", name, err))
			continue
		}
		p.publishers[name] = made
	}
	for name, b := range cfg.Backends {
		if old != nil && old.backends[name] != nil && reflect.DeepEqual(old.backends[name].cfg, b) && old.backends[name].publisher == p.publishers[b.Publisher] {
			p.backends[name] = old.backends[name]
			continue
		}
		made, err := a.newBackend(ctx, name, b, p.publishers)
		if err != nil {
			errs = append(errs, fmt.Errorf("backends.%s: %w", name, err))
			continue
		}
		p.backends[name] = made
	}
	for name, v := range cfg.Validation {
		if old != nil && old.validators[name] != nil && reflect.DeepEqual(old.validators[name].cfg, v) {
			p.validators[name] = old.validators[name]
			continue
		}
		made, err := a.newZone(name, v, cfg)
		if err != nil {
			errs = append(errs, fmt.Errorf("validation.%s: %w", name, err))
			continue
		}
		p.validators[name] = made
	}
	for _, profile := range p.profiles {
		// Our own CA builds the subject itself, and a public one puts nothing into
		// it that it has not verified; Private CA may copy the CSR's.
		profile.SubjectIgnored = cfg.Backends[profile.Backend].Type != config.BackendPrivateCA
	}
	return p, errors.Join(errs...)
}

func (a *app) newZone(name string, v *config.Validation, cfg *config.Config) (*zone, error) {
	z := &zone{cfg: v, metrics: prometheus.NewRegistry()}
	validator, err := validation.New(validation.Config{
		Resolvers: v.Resolvers, HTTPPort: v.HTTPPort, TLSPort: v.TLSPort,
		AllowNetworks: config.Prefixes(v.AllowNetworks), DenyNetworks: config.Prefixes(v.DenyNetworks),
		DenyEndpoints: ownEndpoints(cfg), Localhost: v.Localhost, Timeout: v.Timeout.Std(),
		Log: a.log.With("zone", name), Metrics: z.metrics,
	})
	if err != nil {
		return nil, err
	}
	z.Validator = validator
	return z, nil
}

// ownEndpoints are what validations must never be led to: our own listeners and
// Redis, as far as the configuration names them by address.
func ownEndpoints(cfg *config.Config) []netip.AddrPort {
	addresses := []string{cfg.Server.Listen, cfg.Admin.Listen}
	if cfg.Storage.Redis != nil {
		addresses = append(addresses, cfg.Storage.Redis.Addresses...)
	}
	var own []netip.AddrPort
	for _, address := range addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			continue
		}
		if host == "" {
			host = "::"
		}
		if strings.EqualFold(host, "localhost") {
			host = "127.0.0.1"
		}
		if ap, err := netip.ParseAddrPort(net.JoinHostPort(host, port)); err == nil {
			own = append(own, ap)
		}
	}
	return own
}

// Revoke passes a revocation on to the backend that issued.
func (a *app) Revoke(ctx context.Context, name string, leaf *x509.Certificate, reason int) error {
	b := a.parts.Load().backends[name]
	if b == nil {
		return fmt.Errorf("backend %s, which issued the certificate, is not configured", name)
	}
	return b.Issuer.Revoke(ctx, leaf, reason)
}

// preflight asks the backend of that name whether an order for these
// identifiers is bound to fail. A backend that cannot tell now is given the
// benefit of the doubt: the order's own end will tell.
func (a *app) preflight(ctx context.Context, name string, ids []acme.Identifier) error {
	b := a.parts.Load().backends[name]
	if b == nil || b.preflight == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, preflightTimeout)
	defer cancel()
	err := b.preflight(ctx, ids)
	if _, refused := errors.AsType[*acme.Problem](err); err != nil && !refused {
		a.log.WarnContext(ctx, "preflight could not tell, order admitted", "backend", name, "err", err)
		return nil
	}
	return err
}

// preflightTimeout bounds what newOrder may wait for a backend's word.
const preflightTimeout = 10 * time.Second

// watch keeps the backends' own jobs running, those of the present parts, until
// ctx ends; then it waits for them.
func (a *app) watch(ctx context.Context) error {
	running := make(map[*backend]context.CancelFunc)
	var jobs sync.WaitGroup
	defer jobs.Wait()
	for {
		present := make(map[*backend]bool)
		for name, b := range a.parts.Load().backends {
			present[b] = true
			if b.run == nil || running[b] != nil {
				continue
			}
			jobCtx, cancel := context.WithCancel(ctx)
			defer cancel()
			running[b] = cancel
			jobs.Go(func() {
				if err := b.run(jobCtx); err != nil && jobCtx.Err() == nil {
					a.log.ErrorContext(ctx, "watch of domains has ended; a reload with a changed backend or a restart begins it again", "backend", name, "err", err)
				}
			})
		}
		for b, cancel := range running {
			if !present[b] {
				cancel()
				delete(running, b)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.reloaded:
		}
	}
}

func (p *parts) workerPolicy() *worker.Policy {
	policy := &worker.Policy{
		Directories:       map[string]*worker.Directory{owntls.Directory: {Profiles: p.profiles}},
		Issuers:           make(map[string]acme.Issuer, len(p.backends)),
		FailedValidations: p.cfg.Limits.FailedValidationsPerAccountAndName.Limit(),
	}
	for name, b := range p.backends {
		policy.Issuers[name] = b.Issuer
	}
	for name, d := range p.cfg.Directories {
		policy.Directories[name] = &worker.Directory{Profiles: p.offered(d), Validator: p.validators[d.Validation]}
	}
	return policy
}

func (p *parts) serverPolicy() *server.Policy {
	l := p.cfg.Limits
	policy := &server.Policy{
		Directories: make(map[string]*server.Directory),
		Limits: server.Limits{
			NewAccountsPerIP: l.NewAccountsPerIP.Limit(), NewOrdersPerAccount: l.NewOrdersPerAccount.Limit(),
			PendingOrdersPerAccount: l.PendingOrdersPerAccount, FailedValidations: l.FailedValidationsPerAccountAndName.Limit(),
			RequestBody: int64(l.RequestBody),
		},
		FinalizeHold: p.cfg.Server.FinalizeHold.Std(),
	}
	for name, d := range p.cfg.Directories {
		policy.Directories[name] = &server.Directory{
			Name: name, Profiles: p.offered(d), DefaultProfile: d.DefaultProfile,
			TermsOfService: d.TermsOfService, Website: d.Website,
		}
	}
	return policy
}

// offered are the profiles of one directory.
func (p *parts) offered(d *config.Directory) map[string]*acme.Profile {
	offered := make(map[string]*acme.Profile, len(d.Profiles))
	for _, name := range d.Profiles {
		offered[name] = p.profiles[name]
	}
	return offered
}

// reload puts a changed configuration into force, as a whole or not at all.
// It returns the keys whose change has to wait for a restart.
func (a *app) reload(ctx context.Context, file string) (restart []string, err error) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	restart, err = a.load(ctx, file)
	switch {
	case file == "":
		a.log.Warn("nothing reloaded: the server runs without a configuration file")
	case err != nil:
		a.log.Error("configuration refused, the old one stays in force", "file", file, "err", err)
	case len(restart) > 0:
		a.log.Warn("configuration reloaded, but some changes need a restart", "file", file, "keys", strings.Join(restart, ", "))
	default:
		a.log.Info("configuration reloaded", "file", file)
	}
	return restart, err
}

func (a *app) load(ctx context.Context, file string) ([]string, error) {
	if file == "" {
		return nil, errors.New("the server runs without a configuration file")
	}
	cfg, err := config.Load(file)
	if err != nil {
		return nil, err
	}
	p, err := a.build(ctx, cfg, a.parts.Load())
	if err != nil {
		return nil, err
	}
	a.parts.Store(p)
	select {
	case a.reloaded <- struct{}{}:
	default: // watch has one to take already
	}
	a.worker.SetPolicy(p.workerPolicy())
	a.server.SetPolicy(p.serverPolicy())
	return config.RestartNeeded(a.started, cfg), nil
}

// adminHandler serves health, readiness, metrics and reload, as the present
// configuration has them.
func (a *app) adminHandler(file string, addr net.Addr) http.Handler {
	var (
		mu      sync.Mutex
		current *parts
		handler http.Handler
	)
	present := func() http.Handler {
		mu.Lock()
		defer mu.Unlock()
		if p := a.parts.Load(); p != current {
			current = p
			handler = admin.New(admin.Options{
				Token: p.cfg.Admin.Token.Reveal(), Loopback: admin.IsLoopback(addr),
				Gatherer: prometheus.GathererFunc(a.gather), Now: time.Now, Log: a.log,
				Needed: a.needed(), Backends: p.readiness(),
				Reload: func(ctx context.Context) ([]string, error) { return a.reload(ctx, file) },
				Orders: a.store.Order, Domains: p.domains(),
			})
		}
		return handler
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { present().ServeHTTP(w, r) })
}

// needed are the parts that no request can be served without.
func (a *app) needed() []admin.Part {
	needed := []admin.Part{{Name: "store", Check: a.store.Ping}}
	if a.own != nil {
		needed = append(needed, admin.Part{Name: "tls", Check: func(context.Context) error { return a.own.Ready() }})
	}
	return needed
}

// readiness asks of each backend whether it could issue now.
func (p *parts) readiness() []admin.Part {
	var backends []admin.Part
	for _, name := range slices.Sorted(maps.Keys(p.backends)) {
		backends = append(backends, admin.Part{Name: name, Check: p.backends[name].usable})
	}
	return backends
}

// domains are those of the backends that validate domains ahead of orders.
func (p *parts) domains() map[string]admin.Domains {
	domains := make(map[string]admin.Domains)
	for name, b := range p.backends {
		if b.domains != nil {
			domains[name] = b.domains
		}
	}
	return domains
}

// gather collects the process's metrics and those of the present parts.
func (a *app) gather() ([]*dto.MetricFamily, error) {
	all := prometheus.NewRegistry()
	p := a.parts.Load()
	for name, z := range p.validators {
		prometheus.WrapRegistererWith(prometheus.Labels{"zone": name}, all).MustRegister(z.metrics)
	}
	gatherers := prometheus.Gatherers{a.registry, all}
	for _, b := range p.backends { // these label themselves
		gatherers = append(gatherers, b.metrics)
	}
	for _, d := range p.publishers {
		gatherers = append(gatherers, d.metrics)
	}
	return gatherers.Gather()
}

func hostOf(externalURL string) (string, error) {
	u, err := url.Parse(externalURL)
	if err != nil {
		return "", fmt.Errorf("server.external_url: %w", err)
	}
	return u.Hostname(), nil
}

// newLogger writes to standard error: JSON, or text for people.
func newLogger(cfg config.Log) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.SlogLevel()}
	if cfg.Format == config.LogText || cfg.Format == config.LogAuto && term.IsTerminal(int(os.Stderr.Fd())) {
		return slog.New(slog.NewTextHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, opts))
}
