package certmanager

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// DefaultBaseURL is the public zone's, the only one with API 2.0.
const DefaultBaseURL = "https://certificatemanager.apigw.ntruss.com"

// Certificate types that take a CSR.
const (
	TypeDV = "NCP_PAID_DV_01"
	TypeOV = "NCP_PAID_OV_01"
)

// Values of [Config.Renewal].
const (
	RenewReissue        = "reissue"          // reissue where there is a live certificate; a refusal ends the order
	RenewNew            = "new"              // always a new, paid request
	RenewReissueThenNew = "reissue_then_new" // a refused reissue becomes a new, paid request
)

// Values of [Config.KeyCompromise].
const (
	CompromiseRefuse      = "refuse"
	CompromiseUnspecified = "unspecified"
)

// Defaults of [Config].
const (
	DefaultDCVTimeout    = 30 * time.Minute
	MaxDCVTimeout        = 7 * 24 * time.Hour
	DefaultWatchInterval = time.Hour
)

// A Publisher puts validation records into DNS.
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

// A Config says what to ask Certificate Manager for. Client is needed; the zero
// value of anything else means its default.
type Config struct {
	Backend string         // name in logs, metrics and records
	Client  *ncloud.Client // with the main account's key
	// BaseURL is what the client was made with, to refuse zones without API 2.0.
	BaseURL string

	CertificateType string // TypeDV (default) or TypeOV
	OrganizationNo  int64  // a validated organization; with TypeOV only
	// ValidationMethod: PD (default), a record that is published once and kept,
	// or D, a random one for each request.
	ValidationMethod string
	// DCVTimeout is how long a request may wait for its validation, counted from
	// when its records are served; 30 m, at most 7 days.
	DCVTimeout time.Duration
	Renewal    string // RenewReissueThenNew
	// ReissueSameName asks for reissues under the old certificate's name instead
	// of one made from the order. Which of them the service wants is not documented.
	ReissueSameName bool
	// KeyCompromise says what becomes of a revocation with reason keyCompromise,
	// which the service does not know: CompromiseRefuse (default), or
	// CompromiseUnspecified, which revokes without it and raises an alarm.
	KeyCompromise string

	Publisher Publisher    // nil: names must be covered by validated domains
	Records   acme.Records // nil: nothing is remembered, so nothing is reissued
	// Unfetched tells whether that ACME order has that certificate (see
	// acme.CertificateID) and nobody has downloaded it yet. Nil: none is handed
	// out again.
	Unfetched func(ctx context.Context, orderID, certID string) (bool, error)

	// RootsPEM are trusted beside the system's roots.
	RootsPEM []byte
	// LookupTXT asks DNS for the texts of a name, for the watch of domains; no
	// such name is an empty answer. Nil: records are not looked at.
	LookupTXT     func(ctx context.Context, name string) ([]string, error)
	WatchInterval time.Duration // 1 h

	Now     func() time.Time                                 // nil: time.Now
	Wait    func(ctx context.Context, d time.Duration) error // nil: a timer
	Log     *slog.Logger                                     // nil: discarded
	Metrics prometheus.Registerer                            // nil: none
}

// An Issuer issues from Certificate Manager. It is safe for concurrent use.
type Issuer struct {
	cfg     Config
	api     api
	pace    *pace
	metrics *metrics
	feed    feed
	domains domainCache
	roots   *x509.CertPool
	looks   *lru.Cache[string, looks] // what Find has seen, by order

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

// CheckType reports a certificate type that cannot serve ACME, and why.
func CheckType(certificateType string, organizationNo int64) error {
	switch t := strings.ToUpper(certificateType); {
	case certificateType == TypeDV && organizationNo != 0:
		return errors.New("organization_no: goes with " + TypeOV + " only")
	case certificateType == TypeDV:
		return nil
	case certificateType == TypeOV && organizationNo <= 0:
		return errors.New("organization_no: " + TypeOV + " needs the number of a validated organization")
	case certificateType == TypeOV:
		return nil
	case strings.Contains(t, "BASIC") || strings.Contains(t, "CLOUD"):
		return fmt.Errorf("certificate_type: %.40q is Cloud Basic, which takes no CSR: NCP makes the key, and ACME certificates are for the client's; use %s", certificateType, TypeDV)
	case strings.Contains(t, "GED") || strings.Contains(t, "EDGE"):
		return fmt.Errorf("certificate_type: %.40q is Global Edge, which takes no CSR: NCP makes the key, and ACME certificates are for the client's; use %s", certificateType, TypeDV)
	case strings.Contains(t, "PRIVATE"):
		return fmt.Errorf("certificate_type: %.40q is a private certificate, whose key NCP makes; use a backend of type privateca", certificateType)
	case strings.Contains(t, "EXTERNAL"):
		return fmt.Errorf("certificate_type: %.40q is not issued by NCP; use %s", certificateType, TypeDV)
	}
	return fmt.Errorf("certificate_type: %.40q is neither %s nor %s, the types that take a CSR", certificateType, TypeDV, TypeOV)
}

// CheckBaseURL reports a zone that has no API 2.0.
func CheckBaseURL(base string) error {
	u, err := url.Parse(base)
	if err != nil {
		return fmt.Errorf("base_url: %w", err)
	}
	switch host := strings.ToLower(u.Hostname()); {
	case strings.HasSuffix(host, ".gov-ntruss.com"):
		return errors.New("base_url: the government zone has API 1.0 only, which takes no CSR; use a backend of type privateca there")
	case strings.HasSuffix(host, ".fin-ntruss.com"):
		return errors.New("base_url: the financial zone has API 1.0 only, which takes no CSR; use a backend of type privateca there")
	}
	return nil
}

// Normalize fills in the defaults and reports all that is wrong with the
// settings that an operator makes.
func (c *Config) Normalize() error {
	set := func(s *string, fallback string) {
		if *s == "" {
			*s = fallback
		}
	}
	set(&c.CertificateType, TypeDV)
	set(&c.ValidationMethod, "PD")
	set(&c.Renewal, RenewReissueThenNew)
	set(&c.KeyCompromise, CompromiseRefuse)
	if c.DCVTimeout == 0 {
		c.DCVTimeout = DefaultDCVTimeout
	}
	if c.WatchInterval <= 0 {
		c.WatchInterval = DefaultWatchInterval
	}
	var errs []error
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			errs = append(errs, fmt.Errorf("%s: %.40q is none of %s", key, value, strings.Join(allowed, ", ")))
		}
	}
	errs = append(errs, CheckType(c.CertificateType, c.OrganizationNo), CheckBaseURL(c.BaseURL))
	switch c.ValidationMethod {
	case "PD", "D":
	case "E":
		errs = append(errs, errors.New("validation_method: E (e-mail) ended in 2026; use PD or D"))
	default:
		oneOf("validation_method", c.ValidationMethod, "PD", "D")
	}
	oneOf("renewal", c.Renewal, RenewReissue, RenewNew, RenewReissueThenNew)
	oneOf("key_compromise", c.KeyCompromise, CompromiseRefuse, CompromiseUnspecified)
	if c.DCVTimeout < time.Minute || c.DCVTimeout > MaxDCVTimeout {
		errs = append(errs, fmt.Errorf("dcv_timeout: %s is not between 1m and 7d", c.DCVTimeout))
	}
	return errors.Join(errs...)
}

// maxOrders bounds the orders of which Find remembers what it has seen.
const maxOrders = 10000

// New checks the configuration and makes an issuer; nothing is sent yet.
func New(cfg Config) (*Issuer, error) {
	if cfg.Client == nil {
		return nil, errors.New("no client")
	}
	if err := cfg.Normalize(); err != nil {
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
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	found, err := lru.New[string, looks](maxOrders)
	if err != nil {
		return nil, err
	}
	i := &Issuer{cfg: cfg, metrics: m, looks: found, pace: &pace{now: cfg.Now}}
	i.api = api{client: cfg.Client, pace: i.pace}
	i.domains.reading = semaphore.NewWeighted(1)
	i.ready.reading = semaphore.NewWeighted(1)
	// The public CA behind Advanced is not named in NCP's documents, so its root
	// is trusted if the system does, as clients of the certificates will do. The
	// root that comes beside each certificate is no ground for trust: it arrives
	// by the very answer that is to be checked.
	if i.roots, err = x509.SystemCertPool(); err != nil {
		if len(cfg.RootsPEM) == 0 {
			return nil, fmt.Errorf("the system's roots: %w", err)
		}
		i.roots = x509.NewCertPool()
	}
	if len(cfg.RootsPEM) > 0 && !i.roots.AppendCertsFromPEM(cfg.RootsPEM) {
		return nil, errors.New("roots_file: holds no certificate in PEM")
	}
	return i, nil
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
func (i *Issuer) Timeout() time.Duration { return i.cfg.Client.Timeout() }

// Mark is "": a request is found by its name, which is made from the order.
func (i *Issuer) Mark(context.Context) string { return "" }

// Roots are the system's and the configured ones.
func (i *Issuer) Roots(context.Context) (*x509.CertPool, error) { return i.roots, nil }

// requestName is the certificateName that an ACME order asks under: 20
// characters, the most that are allowed, and a letter first. It is the same for
// each attempt of an order, so that a service which refuses a name twice cannot
// issue twice.
func requestName(order string) string {
	sum := sha256.Sum256([]byte(order))
	return "ab-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:17])
}

// A ticket is all that Poll needs to know of a request; it is kept with the order.
type ticket struct {
	Name   string `json:"name"`
	No     int64  `json:"no,omitempty"`    // 0: not known yet
	Order  string `json:"order,omitempty"` // orderId
	Of     int64  `json:"of,omitempty"`    // a reissue of that certificate,
	Serial string `json:"old,omitempty"`   // which had this serial number
	Same   bool   `json:"same,omitempty"`  // and this name
	Since  int64  `json:"since"`           // Unix seconds, of the request
	Next   int64  `json:"next,omitempty"`  // Unix seconds, of the next look
	Looks  int    `json:"looks,omitempty"` // in the present phase
	Gone   int64  `json:"gone,omitempty"`  // since when no list shows it, Unix seconds
	Done   bool   `json:"done,omitempty"`  // all names are validated
	Cursor int    `json:"cursor,omitempty"`
	DCV    []dcv  `json:"dcv,omitempty"`
}

// A dcv is what was last known of a name's validation.
type dcv struct {
	Domain string `json:"d"`
	State  string `json:"s,omitempty"` // "": nothing shown yet
	Looked bool   `json:"l,omitempty"`
	Record string `json:"r,omitempty"`
	Value  string `json:"v,omitempty"`
	Served int64  `json:"t,omitempty"` // when its record was first seen served by all, Unix seconds
	Note   string `json:"n,omitempty"` // what publishing last came to
}

func (t *ticket) String() string {
	b, err := json.Marshal(t)
	if err != nil { // a struct of strings and numbers does not fail
		return ""
	}
	return string(b)
}

func parseTicket(s string) (*ticket, error) {
	t := new(ticket)
	if err := json.Unmarshal([]byte(s), t); err != nil {
		return nil, fmt.Errorf("read ticket: %w", err)
	}
	if t.Name == "" {
		return nil, errors.New("read ticket: it names no request")
	}
	return t, nil
}

// firstPoll is when a request is looked at first: one for a validated domain is
// done in seconds.
const firstPoll = 2 * time.Second

// newTicket is the ticket of a request, or with re of a reissue.
func (i *Issuer) newTicket(req *acme.IssueRequest, r row, re *reissue) *ticket {
	t := &ticket{Name: requestName(req.OrderID), No: r.No, Order: r.OrderID, Since: i.cfg.Now().Unix()}
	if re != nil {
		t.Of, t.Serial, t.Same = re.Of, re.Serial, re.Name != t.Name
		t.Name = re.Name
		if t.No == t.Of { // kept, or only repeated to us: the lists tell
			t.No = 0
		}
	}
	for _, id := range req.Identifiers {
		base, _ := id.Base()
		if !slices.ContainsFunc(t.DCV, func(d dcv) bool { return d.Domain == base.Value }) {
			t.DCV = append(t.DCV, dcv{Domain: base.Value}) // a wildcard is validated at its base name
		}
	}
	return t
}

// pending is an issuance that is to be polled after d.
func (i *Issuer) pending(t *ticket, d time.Duration, events ...acme.Event) *acme.Issuance {
	return &acme.Issuance{Ticket: t.String(), RetryAfter: d, Events: events}
}

func (i *Issuer) event(name, format string, args ...any) acme.Event {
	return acme.Event{Time: i.cfg.Now().UTC().Truncate(time.Second), Name: name, Text: fmt.Sprintf(format, args...)}
}
