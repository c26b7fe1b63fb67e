package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// A fakeCA signs with an intermediate of its own, at once or when its gate is
// opened, and can refuse or lose an answer.
type fakeCA struct {
	now                func() time.Time
	root, intermediate *x509.Certificate
	key                *ecdsa.PrivateKey

	mu      sync.Mutex
	gate    chan struct{}
	outcome error // instead of the answer, if set
	calls   int
	issued  map[string]*acme.Issuance // by public key
	revoked []revocation
	broken  error // what Revoke returns, if set
}

type revocation struct {
	backend string
	serial  string
	reason  int
}

// fakeIssuer is the fake CA as the worker sees it: its Revoke has no backend.
type fakeIssuer struct{ *fakeCA }

func (i fakeIssuer) Revoke(_ context.Context, leaf *x509.Certificate, reason int) error {
	return i.revoke("fake", leaf, reason)
}

func newFakeCA(t testing.TB, now func() time.Time) *fakeCA {
	t.Helper()
	c := &fakeCA{now: now, issued: make(map[string]*acme.Issuance)}
	rootKey := newECKey(t)
	c.key = newECKey(t)
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: now().Add(-time.Hour), NotAfter: now().Add(10 * 365 * 24 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	rootTemplate := template("test root", 1)
	c.root = sign(t, rootTemplate, rootTemplate, rootKey.Public(), rootKey)
	c.intermediate = sign(t, template("test intermediate", 2), c.root, c.key.Public(), rootKey)
	return c
}

func newECKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, template, parent *x509.Certificate, pub, key any) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// close makes Submit wait until open.
func (c *fakeCA) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gate = make(chan struct{})
}

func (c *fakeCA) open() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gate != nil {
		close(c.gate)
		c.gate = nil
	}
}

// answer makes Submit return err from now on, or certificates again for nil.
func (c *fakeCA) answer(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcome = err
}

func (c *fakeCA) submits() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls
}

func (c *fakeCA) revocations() []revocation {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]revocation(nil), c.revoked...)
}

func (c *fakeCA) breakRevoke(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = err
}

func (c *fakeCA) revoke(backend string, leaf *x509.Certificate, reason int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	c.revoked = append(c.revoked, revocation{backend, leaf.SerialNumber.Text(16), reason})
	return nil
}

func (c *fakeCA) Mark(context.Context) string { return "" }

func (c *fakeCA) Submit(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	c.mu.Lock()
	c.calls++
	gate, outcome := c.gate, c.outcome
	c.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", acme.ErrOutcomeUnknown, ctx.Err())
		}
	}
	if outcome != nil {
		return nil, outcome
	}
	got, err := c.sign(req)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.issued[string(req.CSR.RawSubjectPublicKeyInfo)] = got
	return got, nil
}

func (c *fakeCA) sign(req *acme.IssueRequest) (*acme.Issuance, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: c.now().Add(-time.Minute), NotAfter: c.now().Add(req.Lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if !req.NotBefore.IsZero() {
		template.NotBefore = req.NotBefore
	}
	if !req.NotAfter.IsZero() {
		template.NotAfter = req.NotAfter
	}
	for _, id := range req.Identifiers {
		template.DNSNames = append(template.DNSNames, id.Value)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.intermediate, req.CSR.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &acme.Issuance{Leaf: leaf, Chain: []*x509.Certificate{c.intermediate, c.root}}, nil
}

func (c *fakeCA) Find(_ context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if got := c.issued[string(req.CSR.RawSubjectPublicKeyInfo)]; got != nil {
		return got, nil
	}
	return nil, acme.ErrNotIssued
}

func (c *fakeCA) Timeout() time.Duration { return 10 * time.Second }

func (c *fakeCA) Roots(context.Context) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	pool.AddCert(c.root)
	return pool, nil
}
