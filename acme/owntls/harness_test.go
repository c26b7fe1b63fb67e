package owntls

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/storage/bolt"
)

const name = "acme.example"

// A stage is a store, a profile, and someone who fulfils orders at once.
type stage struct {
	t       *testing.T
	store   *testStore
	profile *acme.Profile
	log     bytes.Buffer // JSON lines; read it when no source runs any more

	root, issuer *x509.Certificate
	rootKey, key *ecdsa.PrivateKey

	mu       sync.Mutex
	refuse   bool          // orders become invalid
	backdate time.Duration // of certificates
	orders   []time.Time   // when they were nudged
}

// bubble runs a test on a bolt file, with a clock that jumps to the next timer
// when nothing else can happen.
func bubble(t *testing.T, test func(s *stage)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		store, err := bolt.Open(bolt.Options{Dir: dir}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := store.Close(); err != nil {
				t.Error(err)
			}
		})
		s := &stage{
			t: t, store: &testStore{Store: store}, backdate: time.Minute,
			profile: &acme.Profile{
				Name: "web", Backend: "ca", Lifetime: 30 * 24 * time.Hour, OrderLifetime: 24 * time.Hour,
				Challenges: []acme.ChallengeType{acme.HTTP01},
			},
		}
		s.rootKey, s.key = newKey(t), newKey(t)
		s.root = s.authority("root", nil, &s.rootKey.PublicKey)
		s.issuer = s.authority("issuer", s.root, &s.key.PublicKey)
		test(s)
	})
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (s *stage) authority(cn string, parent *x509.Certificate, pub *ecdsa.PublicKey) *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-100 * time.Hour),
		NotAfter: time.Now().Add(365 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent = template
	}
	return s.sign(template, parent, pub, s.rootKey)
}

func (s *stage) sign(template, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
	s.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return cert
}

// Nudge does all of a worker's work.
func (s *stage) Nudge(o *acme.Order) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = append(s.orders, time.Now())
	ctx := context.Background()
	now := time.Now()
	o, err := s.store.Store.UpdateOrder(ctx, o, func(o *acme.Order) error {
		return o.Submit(acme.Intent{Since: now, Deadline: now, Backend: "ca", LifetimeSeconds: int64(s.profile.Lifetime / time.Second)})
	})
	if err != nil {
		s.t.Error(err)
		return
	}
	req, err := o.Request()
	if err != nil {
		s.t.Error(err)
		return
	}
	leaf := s.sign(&x509.Certificate{
		SerialNumber: big.NewInt(int64(len(s.orders) + 1)), DNSNames: []string{req.Identifiers[0].Value},
		NotBefore: now.Add(-s.backdate), NotAfter: now.Add(req.Lifetime),
	}, s.issuer, req.CSR.PublicKey, s.key)
	ref, err := s.store.Store.PutChain(ctx, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.issuer.Raw}))
	if err != nil {
		s.t.Error(err)
		return
	}
	if _, err := s.store.Store.UpdateOrder(ctx, o, func(o *acme.Order) error {
		if s.refuse {
			return o.Refused(1, acme.Problemf(acme.RejectedIdentifier, "not this name"))
		}
		return o.Issued(1, &acme.Certificate{ID: acme.CertificateID(leaf), Leaf: leaf.Raw, ChainRef: ref, NotAfter: leaf.NotAfter})
	}); err != nil {
		s.t.Error(err)
	}
}

func (s *stage) setRefuse(refuse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

func (s *stage) ordered() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]time.Time(nil), s.orders...)
}

// A runner is a source and its Run.
type runner struct {
	*Source
	cancel context.CancelFunc
	ended  chan struct{}
}

func (s *stage) start(set ...func(*Options)) *runner {
	opts := Options{
		Store: s.store, Queue: s, Now: time.Now, Rand: rand.Reader, Name: name,
		Log: slog.New(slog.NewJSONHandler(&s.log, nil)), Profile: func() *acme.Profile { return s.profile },
	}
	for _, f := range set {
		f(&opts)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &runner{Source: New(opts), cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		if err := r.Run(ctx); err != nil {
			s.t.Errorf("Run = %v", err)
		}
	}()
	s.t.Cleanup(r.stop)
	return r
}

func (r *runner) stop() {
	r.cancel()
	<-r.ended
}

// await looks every second of the bubble's time.
func (s *stage) await(what string, within time.Duration, done func() bool) {
	s.t.Helper()
	tick, limit := time.NewTicker(time.Second), time.NewTimer(within)
	defer tick.Stop()
	defer limit.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.C:
			s.t.Fatalf("not %s within %s", what, within)
		}
	}
}

func (s *stage) awaitReady(r *runner, within time.Duration) {
	s.t.Helper()
	s.await("ready", within, func() bool { return r.Ready() == nil })
}

// pass lets time go by.
func pass(d time.Duration) { <-time.After(d) }

// serial is the number of the certificate that is served.
func (r *runner) serial(t *testing.T) int64 {
	t.Helper()
	cert, err := r.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf.SerialNumber.Int64()
}

// A testStore may fail.
type testStore struct {
	acme.Store
	fault func(method string) error
}

func (s *testStore) try(method string) error {
	if s.fault == nil {
		return nil
	}
	return s.fault(method)
}

func (s *testStore) Record(ctx context.Context, name string) ([]byte, int64, error) {
	if err := s.try("Record"); err != nil {
		return nil, 0, err
	}
	return s.Store.Record(ctx, name)
}

func (s *testStore) PutRecord(ctx context.Context, name string, data []byte, version int64) error {
	if err := s.try("PutRecord"); err != nil {
		return err
	}
	return s.Store.PutRecord(ctx, name, data, version)
}

func (s *testStore) CreateOrder(ctx context.Context, o *acme.Order, limits acme.OrderLimits, now time.Time) error {
	if err := s.try("CreateOrder"); err != nil {
		return err
	}
	return s.Store.CreateOrder(ctx, o, limits, now)
}

func (s *testStore) Order(ctx context.Context, id string) (*acme.Order, error) {
	if err := s.try("Order"); err != nil {
		return nil, err
	}
	return s.Store.Order(ctx, id)
}

func (s *testStore) Chain(ctx context.Context, ref string) ([]byte, error) {
	if err := s.try("Chain"); err != nil {
		return nil, err
	}
	return s.Store.Chain(ctx, ref)
}

var _ Store = (*testStore)(nil)

// config is what a server that uses the source has.
func (r *runner) config() *tls.Config { return &tls.Config{GetCertificate: r.GetCertificate} }
