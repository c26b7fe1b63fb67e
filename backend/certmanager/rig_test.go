package certmanager

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

// clock is the time of simulator, client and issuer; waiting moves it.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *clock) Wait(ctx context.Context, d time.Duration) error {
	c.Advance(d)
	return ctx.Err()
}

// memory keeps records as a store does.
type memory struct {
	mu       sync.Mutex
	data     map[string][]byte
	versions map[string]int64
	err      error
}

func (m *memory) Record(_ context.Context, name string) ([]byte, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data[name], m.versions[name], m.err
}

func (m *memory) PutRecord(_ context.Context, name string, data []byte, version int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	if m.versions[name] != version {
		return acme.ErrConflict
	}
	m.data[name], m.versions[name] = bytes.Clone(data), version+1
	return nil
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// zone is a publisher that serves its records from the simulator's DNS server
// after a number of calls.
type zone struct {
	sim *ncloudtest.Simulator

	mu      sync.Mutex
	names   []string // apexes
	slow    int      // calls before a record is served
	err     error
	calls   map[string]int
	removed []string
}

func (z *zone) Covers(_ context.Context, name string) (bool, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, n := range z.names {
		if name == n || strings.HasSuffix(name, "."+n) {
			return true, nil
		}
	}
	return false, nil
}

func (z *zone) Publish(_ context.Context, fqdn, value string) (bool, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.err != nil {
		return false, z.err
	}
	z.calls[fqdn]++
	if z.calls[fqdn] <= z.slow {
		return false, nil
	}
	return true, z.sim.Publish(fqdn, "TXT", value)
}

func (z *zone) Remove(_ context.Context, fqdn, value string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.removed = append(z.removed, fqdn)
	z.sim.Unpublish(fqdn, "TXT", value)
	return nil
}

type rig struct {
	t       *testing.T
	sim     *ncloudtest.Simulator
	clock   *clock
	records *memory
	zone    *zone
	log     *locked
	reg     *prometheus.Registry
	client  *ncloud.Client
	// unfetched are the certificates that Unfetched reports, by ID.
	unfetched map[string]string
	*Issuer
}

// newRig makes a simulator with a DNS server for example.com, and an issuer.
func newRig(t *testing.T, set func(*rig, *Config)) *rig {
	t.Helper()
	file, err := ncloudtest.CertificateManagerOpenAPIFile()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, clock: &clock{now: time.Now().Truncate(time.Second)}, records: &memory{data: map[string][]byte{}, versions: map[string]int64{}},
		log: new(locked), reg: prometheus.NewRegistry(), unfetched: map[string]string{}}
	if r.sim, err = ncloudtest.New(ncloudtest.Options{Now: r.clock.Now, OpenAPICM: file, DNSListen: "127.0.0.1:0"}); err != nil {
		t.Fatal(err)
	}
	r.sim.AddZone("example.com")
	r.sim.AddZone("example.net")
	r.zone = &zone{sim: r.sim, calls: map[string]int{}}
	srv := httptest.NewServer(r.sim)
	r.client, err = ncloud.New(ncloud.Config{Backend: "public", BaseURL: srv.URL, Timeout: 20 * time.Second, Now: r.clock.Now, Wait: r.clock.Wait,
		BreakerFailures: 1000, Metrics: r.reg, Credentials: ncloud.Credentials{AccessKey: ncloudtest.DefaultAccessKey, SecretKey: ncloudtest.DefaultSecretKey}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.client.Close()
		r.sim.Close()
		srv.Close()
		for _, v := range r.sim.Counters().OpenAPIViolations {
			if !strings.HasPrefix(v, "answer") || !r.violates() {
				t.Error(v)
			}
		}
	})
	cfg := Config{Backend: "public", Client: r.client, BaseURL: srv.URL, Records: r.records, RootsPEM: r.sim.CMRootPEM(),
		Unfetched: func(_ context.Context, order, certID string) (bool, error) { return r.unfetched[certID] == order, nil },
		Now:       r.clock.Now, Wait: r.clock.Wait, Metrics: r.reg, Log: slog.New(slog.NewTextHandler(r.log, nil))}
	if set != nil {
		set(r, &cfg)
	}
	if r.Issuer, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return r
}

// violates tells whether the simulator was told to leave the specification.
func (r *rig) violates() bool {
	var numbers bool
	r.change(func(x *ncloudtest.CMBehaviour) { numbers = x.NumbersAsStrings })
	return numbers
}

func withPublisher(r *rig, cfg *Config) {
	cfg.Publisher = r.zone
	r.zone.names = []string{"example.com"}
}

type locked struct {
	mu sync.Mutex
	w  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.String()
}

func (r *rig) change(f func(*ncloudtest.CMBehaviour)) {
	r.t.Helper()
	if err := r.sim.Change(func(b *ncloudtest.Behaviour) { f(&b.CM) }); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) inject(f ncloudtest.Fault) {
	r.t.Helper()
	if f.Operation == "" {
		f.Operation = "advancedCertificateRequest"
	}
	if err := r.sim.Inject(f); err != nil {
		r.t.Fatal(err)
	}
}

// domain puts a domain into a state; the record of a valid one is served.
func (r *rig) domain(name, state string) {
	r.t.Helper()
	if err := r.sim.ChangeDomain(ncloudtest.DomainChange{Domain: name, Create: true, State: &state}); err != nil {
		r.t.Fatal(err)
	}
	for _, d := range r.sim.CMDomains() {
		if d.Domain != name || state != DomainValid {
			continue
		}
		if err := r.sim.Publish(d.Record, "TXT", d.Value); err != nil {
			r.t.Fatal(err)
		}
	}
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (r *rig) request(order string, key crypto.Signer, names ...string) *acme.IssueRequest {
	r.t.Helper()
	return r.requestOf(order, key, pkix.Name{}, names...)
}

func (r *rig) requestOf(order string, key crypto.Signer, subject pkix.Name, names ...string) *acme.IssueRequest {
	r.t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject, DNSNames: names}, key)
	if err != nil {
		r.t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		r.t.Fatal(err)
	}
	req := &acme.IssueRequest{OrderID: order, AccountID: "00account", CSR: csr}
	for _, n := range names {
		req.Identifiers = append(req.Identifiers, acme.Identifier{Type: acme.TypeDNS, Value: n})
	}
	return req
}

// ended is what became of an order.
type ended struct {
	got      *acme.Issuance
	problem  *acme.Problem
	err      error // neither: given up
	history  []acme.Event
	took     time.Duration
	attempts int
}

func (e ended) events() string {
	var b strings.Builder
	for _, x := range e.history {
		b.WriteString(x.Name + ": " + x.Text + "\n")
	}
	return b.String()
}

// run does with an order what the worker does, each wait being the clock's.
func (r *rig) run(req *acme.IssueRequest) (e ended) {
	r.t.Helper()
	ctx := r.t.Context()
	begun := r.clock.Now()
	defer func() { e.took = r.clock.Now().Sub(begun) }()
	ticket := ""
	searches := 0
	for range 3000 {
		var got *acme.Issuance
		var err error
		switch {
		case ticket != "":
			if got, err = r.Poll(ctx, req, ticket); err != nil && e.problemOf(err) == nil {
				r.pass(10 * time.Second)
				continue
			}
		case searches > 0:
			got, err = r.Find(ctx, req)
			if errors.Is(err, acme.ErrNotIssued) {
				searches = 0
				continue
			}
			if err != nil {
				if searches++; searches > 20 {
					e.err = err
					return e
				}
				r.pass(min(time.Second<<searches, 10*time.Minute))
				continue
			}
		default:
			e.attempts++
			req.Submitted = r.clock.Now()
			got, err = r.Submit(ctx, req)
			if n, ok := errors.AsType[*acme.NotSentError](err); ok {
				if e.attempts > 50 {
					e.err = err
					return e
				}
				r.pass(max(n.After, time.Second))
				continue
			}
			if err != nil && e.problemOf(err) == nil {
				searches = 1
				r.pass(r.Timeout() + 2*time.Second)
				continue
			}
		}
		if got != nil {
			e.history = append(e.history, got.Events...)
		}
		if e.problem = e.problemOf(err); e.problem != nil {
			return e
		}
		if got.Leaf != nil {
			e.got = got
			if err := acme.CheckIssued(req, got, r.roots, r.clock.Now()); err != nil {
				r.t.Errorf("order %s: %v", req.OrderID, err)
			}
			return e
		}
		ticket = got.Ticket
		r.pass(max(got.RetryAfter, time.Second))
	}
	e.err = errors.New("never ended")
	return e
}

func (ended) problemOf(err error) *acme.Problem {
	p, _ := errors.AsType[*acme.Problem](err)
	return p
}

// pass lets time go by, in which Certificate Manager looks for records.
func (r *rig) pass(d time.Duration) {
	r.clock.Advance(d)
	r.sim.Tick(r.t.Context())
}

// issue runs an order and wants a certificate.
func (r *rig) issue(req *acme.IssueRequest) ended {
	r.t.Helper()
	e := r.run(req)
	if e.got == nil {
		r.t.Fatalf("order %s: no certificate: problem %v, err %v\n%s\n%s", req.OrderID, e.problem, e.err, e.events(), r.log)
	}
	return e
}

func (r *rig) counters() ncloudtest.CMCounters { return r.sim.Counters().CM }
