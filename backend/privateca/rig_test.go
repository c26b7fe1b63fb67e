package privateca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
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

// owners is a store of whose certificate is whose.
type owners struct {
	mu   sync.Mutex
	byID map[string]string
	err  error
}

func (o *owners) CertificateOwners(_ context.Context, ids []string) ([]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]string, len(ids))
	for n, id := range ids {
		out[n] = o.byID[id]
	}
	return out, o.err
}

func (o *owners) claim(cert *x509.Certificate, order string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	id := acme.CertificateID(cert)
	if owner := o.byID[id]; owner != "" {
		return owner == order
	}
	o.byID[id] = order
	return true
}

type rig struct {
	t     *testing.T
	sim   *ncloudtest.Simulator
	clock *clock
	known *owners
	log   *bytes.Buffer
	reg   *prometheus.Registry
	*Issuer
}

// specification is where the simulator finds what each call must look like.
func specification(t testing.TB) string {
	t.Helper()
	file, err := ncloudtest.OpenAPIFile()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// newRig makes a simulator and an exclusive issuer of its subordinate CA.
func newRig(t *testing.T, set func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, clock: &clock{now: time.Now().Truncate(time.Second)}, known: &owners{byID: map[string]string{}}, log: new(bytes.Buffer), reg: prometheus.NewRegistry()}
	var err error
	if r.sim, err = ncloudtest.New(ncloudtest.Options{Now: r.clock.Now, OpenAPI: specification(t)}); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r.sim)
	client, err := ncloud.New(ncloud.Config{Backend: "corp-ca", BaseURL: srv.URL, Timeout: 20 * time.Second, Now: r.clock.Now, Wait: r.clock.Wait,
		BreakerFailures: 1000, Metrics: r.reg, Credentials: ncloud.Credentials{AccessKey: ncloudtest.DefaultAccessKey, SecretKey: ncloudtest.DefaultSecretKey}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		r.sim.Close()
		srv.Close()
		for _, v := range r.sim.Counters().OpenAPIViolations {
			if !r.violates() {
				t.Error(v)
			}
		}
	})
	cfg := Config{Backend: "corp-ca", Client: client, CATag: r.sim.CATag(), Exclusive: true, Known: r.known, Now: r.clock.Now, Wait: r.clock.Wait,
		Metrics: r.reg, Log: slog.New(slog.NewTextHandler(&locked{w: r.log}, nil))}
	if set != nil {
		set(&cfg)
	}
	if r.Issuer, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return r
}

// violates tells whether the simulator was told to leave the specification.
func (r *rig) violates() bool {
	var b ncloudtest.Behaviour
	r.change(func(x *ncloudtest.Behaviour) { b = *x })
	return b.NumbersAsStrings || b.ErrorStatus != "documented"
}

type locked struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (r *rig) change(f func(*ncloudtest.Behaviour)) {
	r.t.Helper()
	if err := r.sim.Change(f); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) inject(f ncloudtest.Fault) {
	r.t.Helper()
	if f.Operation == "" {
		f.Operation = "signEndCsr"
	}
	if err := r.sim.Inject(f); err != nil {
		r.t.Fatal(err)
	}
}

func newKey(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "rsa-2048":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "ecdsa-p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// request is an order's request as the worker makes it, its mark taken now.
func (r *rig) request(order string, key crypto.Signer, names ...string) *acme.IssueRequest {
	r.t.Helper()
	return r.requestCN(order, "", key, names...)
}

func (r *rig) requestCN(order, cn string, key crypto.Signer, names ...string) *acme.IssueRequest {
	r.t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}, DNSNames: names}, key)
	if err != nil {
		r.t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		r.t.Fatal(err)
	}
	req := &acme.IssueRequest{OrderID: order, CSR: csr, Lifetime: 30 * 24 * time.Hour, Mark: r.Mark(r.t.Context()), Submitted: r.clock.Now()}
	for _, n := range names {
		req.Identifiers = append(req.Identifiers, acme.Identifier{Type: "dns", Value: n})
	}
	return req
}

// check is the worker's check of what came back.
func (r *rig) check(req *acme.IssueRequest, got *acme.Issuance) error {
	r.t.Helper()
	roots, err := r.Roots(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return acme.CheckIssued(req, got, roots, r.clock.Now())
}

// issue submits and wants success.
func (r *rig) issue(req *acme.IssueRequest) *acme.Issuance {
	r.t.Helper()
	got, err := r.Submit(r.t.Context(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.check(req, got); err != nil {
		r.t.Fatal(err)
	}
	if !r.known.claim(got.Leaf, req.OrderID) {
		r.t.Fatal("certificate belongs to another order")
	}
	return got
}

func (r *rig) certificates(req *acme.IssueRequest) int64 {
	return r.sim.Counters().IssuedByKey[ncloudtest.KeyID(req.CSR.RawSubjectPublicKeyInfo)]
}

// verdict puts what Submit and Find return into a word.
func verdict(err error) string {
	if p, ok := errors.AsType[*acme.Problem](err); ok {
		return fmt.Sprintf("problem %s", p.Type)
	}
	if _, ok := errors.AsType[*acme.NotSentError](err); ok {
		return "not sent"
	}
	switch {
	case err == nil:
		return "issued"
	case errors.Is(err, acme.ErrNotIssued):
		return "not issued"
	case errors.Is(err, acme.ErrOutcomeUnknown):
		return "unknown"
	}
	return "cannot tell"
}
