package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	client "golang.org/x/crypto/acme"
	"golang.org/x/sync/semaphore"

	"github.com/acme-bridge/acme-bridge/acme"
)

// Values of [Config.Mode].
const (
	// ModePre: the upstream server's authorizations come valid, since the
	// domains were validated beforehand.
	ModePre = "pre"
	// ModeDNS01: its dns-01 challenges are met by a Publisher.
	ModeDNS01 = "dns01"
)

// Defaults of [Config].
const (
	DefaultTimeout      = 15 * time.Second
	MaxTimeout          = time.Minute
	DefaultOrderTimeout = 30 * time.Minute
	MaxOrderTimeout     = 7 * 24 * time.Hour
)

// A Publisher puts challenge records into DNS.
type Publisher interface {
	// Covers reports whether records of this name can be published: the name is
	// an order's, without "*.".
	Covers(ctx context.Context, name string) (bool, error)
	// Publish sees to it that the TXT record is there, and reports whether all
	// authoritative servers serve it. It is quick, may be repeated, and is
	// called again at each poll until it reports true.
	Publish(ctx context.Context, fqdn, value string) (served bool, err error)
	// Remove takes the record away; that there is none is no error.
	Remove(ctx context.Context, fqdn, value string) error
}

// A Config says which server to ask, and how. Backend, Directory, Mode and
// Records are needed; the zero value of anything else means its default.
type Config struct {
	Backend   string // name in logs, metrics and records
	Directory string // URL: https, or http on a loopback address
	Mode      string // ModePre or ModeDNS01
	Publisher Publisher
	// Records keep the account key. It is made on first use, is the same for all
	// replicas, and whoever can read the store can read it.
	Records acme.Records

	// EABKeyID and EABKey (base64url) bind the account to one at the CA
	// (RFC 8555, Section 7.3.4); they are used once.
	EABKeyID, EABKey string
	Contact          []string // mailto: URLs
	// AgreeTerms says that the operator agrees to the server's terms of service.
	AgreeTerms bool
	// Profile is ordered if set; the server must offer it.
	Profile string

	// DirectoryRootsPEM are trusted beside the system's roots for connections to
	// the server, RootsPEM for the chains of certificates.
	DirectoryRootsPEM, RootsPEM []byte

	// Timeout bounds one Submit, and each exchange with the server; 15 s, at
	// most 1 m.
	Timeout time.Duration
	// OrderTimeout is how long an upstream order may wait for its
	// authorizations; 30 m, at most 7 days. A finalized one is waited for up to
	// 24 h.
	OrderTimeout time.Duration

	Now     func() time.Time                                 // nil: time.Now
	Wait    func(ctx context.Context, d time.Duration) error // before a request refused for its nonce is repeated; nil: a timer
	Log     *slog.Logger                                     // nil: discarded
	Metrics prometheus.Registerer                            // nil: none
}

// An Issuer has another ACME server issue. It is safe for concurrent use.
type Issuer struct {
	cfg     Config
	eab     *client.ExternalAccountBinding
	http    *http.Client
	metrics *metrics
	roots   *x509.CertPool

	account struct {
		opening *semaphore.Weighted // one at a time
		mu      sync.Mutex
		client  *client.Client // nil: not known to be registered
		since   time.Time
	}
	ready struct {
		reading *semaphore.Weighted
		mu      sync.Mutex
		asked   time.Time
		err     error
	}
}

var (
	_ acme.Poller      = (*Issuer)(nil)
	_ acme.Preflighter = (*Issuer)(nil)
)

// Normalize fills in the defaults and reports all that is wrong with the
// settings that an operator makes. No error holds the EAB key.
func (c *Config) Normalize() error {
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.OrderTimeout == 0 {
		c.OrderTimeout = DefaultOrderTimeout
	}
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := checkDirectory(c.Directory); err != nil {
		add("directory: %w", err)
	}
	if c.Mode != ModePre && c.Mode != ModeDNS01 {
		add("mode: %.40q is neither %s nor %s", c.Mode, ModePre, ModeDNS01)
	}
	if (c.EABKeyID == "") != (c.EABKey == "") {
		add("eab_key_id, eab_key: one goes with the other")
	}
	if c.EABKey != "" {
		if _, err := decodeEABKey(c.EABKey); err != nil {
			add("eab_key: %w", err)
		}
	}
	for _, contact := range c.Contact {
		if !strings.HasPrefix(contact, "mailto:") || !strings.Contains(contact, "@") {
			add("contact: %.100q is not a mailto: URL", contact)
		}
	}
	if c.Timeout < time.Second || c.Timeout > MaxTimeout {
		add("timeout: %s is not between 1s and %s", c.Timeout, MaxTimeout)
	}
	if c.OrderTimeout < time.Minute || c.OrderTimeout > MaxOrderTimeout {
		add("order_timeout: %s is not between 1m and 7d", c.OrderTimeout)
	}
	return errors.Join(errs...)
}

func checkDirectory(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return errors.New("not a URL")
	case u.Host == "" || u.User != nil || u.Fragment != "":
		return errors.New("not a URL with a host, and without user and fragment")
	case u.Scheme == "https", u.Scheme == "http" && loopback(u):
		return nil
	}
	return errors.New("neither https nor, on a loopback address, http")
}

func loopback(u *url.URL) bool {
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
}

// decodeEABKey takes base64url with and without padding: CAs show both.
func decodeEABKey(s string) ([]byte, error) {
	key, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(s, "="))
	if err != nil {
		return nil, errors.New("not base64url")
	}
	if len(key) < 16 {
		return nil, errors.New("shorter than 128 bits")
	}
	return key, nil
}

// New checks the configuration and makes an issuer; nothing is sent yet.
func New(cfg Config) (*Issuer, error) {
	errs := []error{cfg.Normalize()}
	if cfg.Mode == ModeDNS01 && cfg.Publisher == nil {
		errs = append(errs, errors.New("publisher: mode dns01 needs one"))
	}
	if cfg.Records == nil {
		errs = append(errs, errors.New("no records to keep the account key in"))
	}
	roots, err := systemAnd("roots_file", cfg.RootsPEM)
	errs = append(errs, err)
	directoryRoots, err := systemAnd("directory_roots_file", cfg.DirectoryRootsPEM)
	errs = append(errs, err)
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		errs = append(errs, fmt.Errorf("register metrics: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
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
	cfg.Log = cfg.Log.With("backend", cfg.Backend)
	i := &Issuer{cfg: cfg, metrics: m, roots: roots}
	if cfg.EABKeyID != "" {
		key, err := decodeEABKey(cfg.EABKey)
		if err != nil {
			return nil, fmt.Errorf("eab_key: %w", err)
		}
		i.eab = &client.ExternalAccountBinding{KID: cfg.EABKeyID, Key: key}
	}
	i.http = newHTTPClient(&cfg, m, &tls.Config{RootCAs: directoryRoots, MinVersion: tls.VersionTLS12})
	i.account.opening = semaphore.NewWeighted(1)
	i.ready.reading = semaphore.NewWeighted(1)
	return i, nil
}

func systemAnd(key string, pem []byte) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		if len(pem) == 0 {
			return nil, fmt.Errorf("%s: none, and the system's roots: %w", key, err)
		}
		pool = x509.NewCertPool()
	}
	if len(pem) > 0 && !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: holds no certificate in PEM", key)
	}
	return pool, nil
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

// Timeout is the deadline of one Submit.
func (i *Issuer) Timeout() time.Duration { return i.cfg.Timeout }

// Mark is "": Find has nothing to look for.
func (i *Issuer) Mark(context.Context) string { return "" }

// Roots are the system's and the configured ones.
func (i *Issuer) Roots(context.Context) (*x509.CertPool, error) { return i.roots, nil }

// Submit makes an order at the upstream server; its URL is the ticket. As long
// as nobody finalizes the order, which Poll does and only with a ticket, no
// certificate can come of it. So whatever is no refusal is "not sent": an order
// whose URL was lost stays behind unused and expires there.
func (i *Issuer) Submit(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	order, err := i.newOrder(ctx, req)
	if err != nil {
		return nil, err
	}
	t := &ticket{URL: order.URI, Since: i.cfg.Now().Unix()}
	return i.pending(t, firstPoll, i.event("", "order made at the upstream certificate authority")), nil
}

// newOrder returns a *acme.Problem or a *acme.NotSentError if there is no order.
func (i *Issuer) newOrder(ctx context.Context, req *acme.IssueRequest) (*client.Order, error) {
	ctx, heard := listen(ctx)
	c, err := i.open(ctx)
	if err != nil {
		return nil, &acme.NotSentError{After: heard.wait(), Err: err}
	}
	ids := make([]client.AuthzID, len(req.Identifiers))
	for n, id := range req.Identifiers {
		ids[n] = client.AuthzID{Type: string(id.Type), Value: id.Value}
	}
	var options []client.OrderOption
	if i.cfg.Profile != "" {
		options = append(options, client.WithOrderIssuanceProfile(client.ProfileName(i.cfg.Profile)))
	}
	if !req.NotBefore.IsZero() {
		options = append(options, client.WithOrderNotBefore(req.NotBefore.UTC()))
	}
	if !req.NotAfter.IsZero() {
		options = append(options, client.WithOrderNotAfter(req.NotAfter.UTC()))
	}
	order, err := c.AuthorizeOrder(ctx, ids, options...)
	if err == nil && order.URI == "" {
		err = errors.New("the answer to newOrder names no order")
	}
	if err == nil {
		return order, nil
	}
	if problem := i.refused(ctx, c, req, err); problem != nil {
		return nil, problem
	}
	return nil, &acme.NotSentError{After: heard.wait(), Err: fmt.Errorf("new order: %w", err)}
}

// Find is called when a Submit's answer, and with it the ticket, was lost. Then
// nobody has finalized the upstream order, so nothing was issued.
func (i *Issuer) Find(context.Context, *acme.IssueRequest) (*acme.Issuance, error) {
	return nil, acme.ErrNotIssued
}

// Revoke revokes with the account's key. That it is revoked already is no error.
func (i *Issuer) Revoke(ctx context.Context, leaf *x509.Certificate, reason int) error {
	ctx, cancel := context.WithTimeout(ctx, i.cfg.Timeout)
	defer cancel()
	c, err := i.open(ctx)
	if err != nil {
		return err
	}
	// The library always sends a reason; none is the same as unspecified (RFC
	// 5280, Section 5.3.1).
	err = c.RevokeCert(ctx, nil, leaf.Raw, client.CRLReasonCode(max(reason, 0)))
	e, ok := errors.AsType[*client.Error](err)
	switch {
	case err == nil, ok && problemType(e.ProblemType) == acme.AlreadyRevoked:
		return nil
	case ok && problemType(e.ProblemType) == acme.BadRevocationReason:
		return acme.Problemf(acme.BadRevocationReason, "%s", i.detail(e.Detail, "the certificate authority does not know this reason")).WithCause(err)
	case ok:
		i.lost(ctx, c, e)
	}
	return fmt.Errorf("revoke at the upstream server: %w", err)
}

// Preflight refuses names whose challenge records could not be published. What
// is validated beforehand only the upstream order tells.
func (i *Issuer) Preflight(ctx context.Context, ids []acme.Identifier) error {
	if i.cfg.Mode != ModeDNS01 {
		return nil
	}
	var subs []*acme.Problem
	for _, id := range ids {
		base, _ := id.Base()
		covered, err := i.cfg.Publisher.Covers(ctx, base.Value)
		if err != nil {
			i.cfg.Log.WarnContext(ctx, "preflight cannot tell", "identifier", base.Value, "err", err)
			return acme.Problemf(acme.ServerInternal, "the name's zone cannot be looked up now; please try again").
				WithStatus(http.StatusServiceUnavailable).WithRetryAfter(30 * time.Second).WithCause(err)
		}
		if id.Type != acme.TypeDNS || !covered {
			subs = append(subs, acme.Problemf(acme.RejectedIdentifier, "no publisher has the zone of %s: its challenge record for the certificate authority could not be published", base.Value).
				WithStatus(http.StatusForbidden).For(id))
		}
	}
	if len(subs) == 0 {
		return nil
	}
	return acme.Combine("some names could not be validated by the certificate authority", subs)
}

// orderIdentifier finds the order's identifier that an upstream authorization
// is for.
func orderIdentifier(req *acme.IssueRequest, id client.AuthzID, wildcard bool) (acme.Identifier, bool) {
	value := strings.ToLower(id.Value)
	if wildcard && !strings.HasPrefix(value, "*.") {
		value = "*." + value
	}
	n := slices.IndexFunc(req.Identifiers, func(x acme.Identifier) bool { return string(x.Type) == id.Type && x.Value == value })
	if n < 0 {
		return acme.Identifier{}, false
	}
	return req.Identifiers[n], true
}
