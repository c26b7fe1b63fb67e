package worker

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// A fakeCA signs real certificates, counts them, and misbehaves as told. It
// fails the test if it is searched while a request for the same order is under
// way, or asked with a Mark that it did not give.
type fakeCA struct {
	t       *testing.T
	now     func() time.Time
	owner   acme.KnownCertificates
	timeout time.Duration // for one Submit
	// onSubmit and onFind replace the honest behaviour, if set; n counts from 1.
	onSubmit func(ctx context.Context, n int, req *acme.IssueRequest) (*acme.Issuance, error)
	onFind   func(ctx context.Context, n int, req *acme.IssueRequest) (*acme.Issuance, error)
	onRoots  func() (*x509.CertPool, error)
	// heedless: its answers may come after their deadlines.
	heedless bool

	root, issuer *x509.Certificate
	key          *ecdsa.PrivateKey

	mu       sync.Mutex
	issued   []*x509.Certificate
	marks    map[string]bool
	inFlight map[string]int // by order
	submits  []time.Time
	finds    []time.Time
	bell     *bell
}

const month = 30 * 24 * time.Hour

func newCA(t *testing.T, now func() time.Time) *fakeCA {
	t.Helper()
	ca := &fakeCA{
		t: t, now: now, timeout: 30 * time.Second,
		marks: make(map[string]bool), inFlight: make(map[string]int), bell: newBell(),
	}
	rootKey := newKey(t)
	ca.key = newKey(t)
	authority := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
			NotBefore: now().Add(-48 * time.Hour), NotAfter: now().Add(365 * 24 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	ca.root = signed(t, authority("root"), nil, &rootKey.PublicKey, rootKey)
	ca.issuer = signed(t, authority("issuer"), ca.root, &ca.key.PublicKey, rootKey)
	return ca
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func signed(t *testing.T, template, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Error(err)
		return nil
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Error(err)
		return nil
	}
	return cert
}

// issue signs what was asked for, with what alter changes.
func (ca *fakeCA) issue(req *acme.IssueRequest, alter ...func(*x509.Certificate)) *acme.Issuance {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		ca.t.Error(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), PublicKey: req.CSR.PublicKey,
		NotBefore: ca.now().Add(-time.Minute), NotAfter: ca.now().Add(req.Lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, id := range req.Identifiers {
		leaf.DNSNames = append(leaf.DNSNames, id.Value)
	}
	for _, f := range alter {
		f(leaf)
	}
	cert := signed(ca.t, leaf, ca.issuer, leaf.PublicKey, ca.key)
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.issued = append(ca.issued, cert)
	return ca.issuance(cert)
}

func (ca *fakeCA) issuance(cert *x509.Certificate) *acme.Issuance {
	return &acme.Issuance{Leaf: cert, Chain: []*x509.Certificate{ca.issuer, ca.root}}
}

// honestFind compares by public key and leaves out what belongs to an order.
func (ca *fakeCA) honestFind(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	ca.mu.Lock()
	issued := slices.Clone(ca.issued)
	ca.mu.Unlock()
	for _, cert := range issued {
		if !bytes.Equal(cert.RawSubjectPublicKeyInfo, req.CSR.RawSubjectPublicKeyInfo) {
			continue
		}
		owners, err := ca.owner.CertificateOwners(ctx, []string{acme.CertificateID(cert)})
		if err != nil {
			return nil, err
		}
		if owners[0] == "" || owners[0] == req.OrderID {
			return ca.issuance(cert), nil
		}
	}
	return nil, acme.ErrNotIssued
}

func (ca *fakeCA) Mark(context.Context) string {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	mark := fmt.Sprintf("mark %d", len(ca.marks))
	ca.marks[mark] = true
	return mark
}

func (ca *fakeCA) Submit(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	ca.mu.Lock()
	ca.submits = append(ca.submits, ca.now())
	n := len(ca.submits)
	ca.inFlight[req.OrderID]++
	if !ca.marks[req.Mark] {
		ca.t.Errorf("submit %d with mark %q, which was not given", n, req.Mark)
	}
	if ca.inFlight[req.OrderID] > 1 && !ca.heedless {
		ca.t.Errorf("submit %d while another for order %s is under way", n, req.OrderID)
	}
	ca.bell.ring()
	ca.mu.Unlock()
	defer func() {
		ca.mu.Lock()
		defer ca.mu.Unlock()
		ca.inFlight[req.OrderID]--
		ca.bell.ring()
	}()
	if ca.onSubmit != nil {
		return ca.onSubmit(ctx, n, req)
	}
	return ca.issue(req), nil
}

func (ca *fakeCA) Find(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	ca.mu.Lock()
	ca.finds = append(ca.finds, ca.now())
	n := len(ca.finds)
	if !ca.marks[req.Mark] {
		ca.t.Errorf("find %d with mark %q, which was not given", n, req.Mark)
	}
	if ca.inFlight[req.OrderID] > 0 && !ca.heedless {
		ca.t.Errorf("find %d races a submit for order %s", n, req.OrderID)
	}
	ca.bell.ring()
	ca.mu.Unlock()
	if ca.onFind != nil {
		return ca.onFind(ctx, n, req)
	}
	return ca.honestFind(ctx, req)
}

func (ca *fakeCA) Revoke(context.Context, *x509.Certificate, int) error { return nil }

func (ca *fakeCA) Timeout() time.Duration { return ca.timeout }

func (ca *fakeCA) Roots(context.Context) (*x509.CertPool, error) {
	if ca.onRoots != nil {
		return ca.onRoots()
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.root)
	return pool, nil
}

// counts are the calls so far, and the certificates that exist.
func (ca *fakeCA) counts() (submits, finds, certificates int) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return len(ca.submits), len(ca.finds), len(ca.issued)
}

func (ca *fakeCA) expect(t *testing.T, submits, finds, certificates int) {
	t.Helper()
	s, f, c := ca.counts()
	if s != submits || f != finds || c != certificates {
		t.Errorf("CA saw %d submits, %d finds, made %d certificates; want %d, %d, %d", s, f, c, submits, finds, certificates)
	}
}

// await waits until the CA has had so many calls.
func (ca *fakeCA) await(t *testing.T, submits, finds int) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		called := ca.bell.wait()
		s, f, _ := ca.counts()
		if s >= submits && f >= finds {
			return
		}
		select {
		case <-called:
		case <-limit.C:
			t.Fatalf("CA had %d submits and %d finds only, want %d and %d", s, f, submits, finds)
		}
	}
}

var errLost = errors.New("the connection broke")

// Ways in which Submit can go wrong.
type submission = func(ctx context.Context, n int, req *acme.IssueRequest) (*acme.Issuance, error)

func (ca *fakeCA) first(k int, wrong submission) submission {
	return func(ctx context.Context, n int, req *acme.IssueRequest) (*acme.Issuance, error) {
		if n <= k {
			return wrong(ctx, n, req)
		}
		return ca.issue(req), nil
	}
}

func lose(context.Context, int, *acme.IssueRequest) (*acme.Issuance, error) {
	return nil, fmt.Errorf("%w: %w", acme.ErrOutcomeUnknown, errLost)
}

func (ca *fakeCA) applyAndLose(_ context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
	ca.issue(req)
	return nil, errLost
}
