package validation

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
)

// Config is a validation zone. The zero value validates against the public
// network with the system's resolvers.
type Config struct {
	// Resolvers are recursive DNS servers as host:port, asked in turn. Empty
	// means those of /etc/resolv.conf.
	Resolvers []string
	// HTTPPort and TLSPort are where http-01 and tls-alpn-01 are answered; 0 is
	// 80 and 443, which alone are right on the public network.
	HTTPPort, TLSPort int
	// AllowNetworks opens private and special ranges. A metadata service opens
	// only to a prefix of its single address.
	AllowNetworks []netip.Prefix
	// DenyNetworks and DenyEndpoints are never connected to. Endpoints are our
	// own listeners, Redis and the like; an unspecified address in one stands
	// for all addresses of this machine.
	DenyNetworks  []netip.Prefix
	DenyEndpoints []netip.AddrPort
	// Localhost makes localhost and names below it resolve to loopback, without
	// DNS (RFC 6761, Section 6.3). Loopback must be allowed besides.
	Localhost bool
	// Timeout bounds one try, from the first lookup to the last octet; 0 is 10 s.
	Timeout time.Duration
	// Pauses lie between the tries, so there is one try more than pauses; nil
	// is 1 s and 4 s.
	Pauses []time.Duration
	// MaxInFlight and MaxPerName bound the tries under way in total and for one
	// name; 0 is 64 and 4. Others wait, as long as their context lasts.
	MaxInFlight, MaxPerName int
	// UserAgent is sent with http-01; "" is "acme-bridge".
	UserAgent string

	// Resolver replaces DNS over Resolvers.
	Resolver Resolver
	// Dial replaces net.Dialer; it is given addresses that passed the guard.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now and Wait replace the clock of the metrics and the pauses.
	Now  func() time.Time
	Wait func(ctx context.Context, d time.Duration) error
	// Log and Metrics may be nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

const (
	defaultTimeout     = 10 * time.Second
	defaultMaxInFlight = 64
	defaultMaxPerName  = 4
	defaultUserAgent   = "acme-bridge"
)

// A Validator performs challenges in one zone. It is safe for concurrent use
// and keeps neither connections nor goroutines between validations.
type Validator struct {
	cfg      Config
	httpPort uint16
	tlsPort  uint16
	guard    *guard
	slots    *slots
	metrics  *metrics
}

var _ acme.Validator = (*Validator)(nil)

// New makes a validator; the error names everything that is wrong with cfg.
func New(cfg Config) (*Validator, error) {
	var errs []error
	setDefault(&cfg.HTTPPort, 80)
	setDefault(&cfg.TLSPort, 443)
	setDefault(&cfg.Timeout, defaultTimeout)
	setDefault(&cfg.MaxInFlight, defaultMaxInFlight)
	setDefault(&cfg.MaxPerName, defaultMaxPerName)
	setDefault(&cfg.UserAgent, defaultUserAgent)
	if cfg.Pauses == nil {
		cfg.Pauses = []time.Duration{time.Second, 4 * time.Second}
	}
	for _, p := range []struct {
		key  string
		port int
	}{{"http_port", cfg.HTTPPort}, {"tls_port", cfg.TLSPort}} {
		if p.port < 1 || p.port > 65535 {
			errs = append(errs, fmt.Errorf("%s: %d is not a port", p.key, p.port))
		}
	}
	if cfg.Timeout < 0 {
		errs = append(errs, fmt.Errorf("timeout: %s is negative", cfg.Timeout))
	}
	if cfg.MaxInFlight < 0 || cfg.MaxPerName < 0 {
		errs = append(errs, errors.New("the bounds on tries under way must be positive"))
	}
	for _, list := range []struct {
		key      string
		networks []netip.Prefix
	}{{"allow_networks", cfg.AllowNetworks}, {"deny_networks", cfg.DenyNetworks}} {
		for _, p := range list.networks {
			if !p.IsValid() {
				errs = append(errs, fmt.Errorf("%s: holds an invalid network", list.key))
			}
		}
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{KeepAlive: -1}).DialContext
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Wait == nil {
		cfg.Wait = wait
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Resolver == nil {
		r, err := newResolver(cfg.Resolvers)
		if err != nil {
			errs = append(errs, err)
		}
		cfg.Resolver = r
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("validation: %w", err)
	}
	return &Validator{
		cfg:      cfg,
		httpPort: uint16(cfg.HTTPPort),
		tlsPort:  uint16(cfg.TLSPort),
		guard: &guard{
			allow: cfg.AllowNetworks, deny: cfg.DenyNetworks, endpoints: cfg.DenyEndpoints,
			ownAddresses: net.InterfaceAddrs,
		},
		slots:   newSlots(cfg.MaxInFlight, cfg.MaxPerName),
		metrics: m,
	}, nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Validate implements [acme.Validator]: it tries, waits and tries again (RFC
// 8555, Section 8.2), also after a wrong answer, since DNS changes and files
// spread with a delay. The problem returned is that of the last try.
func (v *Validator) Validate(ctx context.Context, c *acme.Validation) error {
	began := v.cfg.Now()
	err := v.validate(ctx, c)
	v.metrics.observe(c.Type, err, v.cfg.Now().Sub(began))

	log := v.cfg.Log.With("order", c.OrderID, "account", c.AccountID, "type", c.Type, "identifier", c.Identifier.Value)
	switch p, refused := errors.AsType[*acme.Problem](err); {
	case err == nil:
		log.DebugContext(ctx, "challenge proven")
	case refused:
		log.InfoContext(ctx, "challenge failed", "problem", p.Type, "err", p)
	default:
		log.InfoContext(ctx, "validation broken off", "err", err)
	}
	return err
}

func (v *Validator) validate(ctx context.Context, c *acme.Validation) error {
	perform, err := v.method(c)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		err := v.try(ctx, c, perform)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil { // what failed then failed for that reason
			return fmt.Errorf("validation broken off: %w", context.Cause(ctx))
		}
		p, ok := errors.AsType[*acme.Problem](err)
		if !ok {
			return fmt.Errorf("validation: %w", err)
		}
		if _, refused := errors.AsType[*refusedError](p.Cause); refused || n == len(v.cfg.Pauses) {
			return p
		}
		v.cfg.Log.DebugContext(ctx, "challenge not proven yet, will be tried again", "order", c.OrderID,
			"account", c.AccountID, "type", c.Type, "problem", p.Type, "err", p, "pause", v.cfg.Pauses[n])
		if err := v.cfg.Wait(ctx, v.cfg.Pauses[n]); err != nil {
			return fmt.Errorf("validation broken off: %w", err)
		}
	}
}

// A method performs one try; its errors are problems.
type method func(ctx context.Context, c *acme.Validation) error

func (v *Validator) method(c *acme.Validation) (method, error) {
	if c.Identifier.Type != acme.TypeDNS || strings.HasPrefix(c.Identifier.Value, "*.") {
		return nil, acme.Problemf(acme.UnsupportedIdentifier, "%s cannot prove control over such an identifier", c.Type)
	}
	// The token becomes part of a path; ours are always like this.
	if !isBase64URL(c.Token) || !isKeyAuthorization(c.KeyAuthorization, c.Token) {
		return nil, acme.Problemf(acme.ServerInternal, "internal error").WithCause(errors.New("token or key authorization is malformed"))
	}
	switch c.Type {
	case acme.HTTP01:
		return v.http01, nil
	case acme.DNS01:
		return v.dns01, nil
	case acme.TLSALPN01:
		return v.tlsALPN01, nil
	}
	return nil, acme.Problemf(acme.Malformed, "challenge type is not supported")
}

func (v *Validator) try(ctx context.Context, c *acme.Validation, perform method) error {
	release, err := v.slots.acquire(ctx, c.Identifier.Value)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, v.cfg.Timeout)
	defer cancel()
	return perform(ctx, c)
}

func isBase64URL(s string) bool {
	return s != "" && !slices.ContainsFunc([]byte(s), func(c byte) bool {
		return (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_'
	})
}

// isKeyAuthorization checks the form token.thumbprint (RFC 8555, Section 8.1).
func isKeyAuthorization(s, token string) bool {
	thumbprint, ok := strings.CutPrefix(s, token+".")
	return ok && isBase64URL(thumbprint)
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
