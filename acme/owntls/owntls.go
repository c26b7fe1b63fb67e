// Package owntls gives the server its own TLS certificate from one of its own
// profiles, and renews it.
//
// The certificate and its key are one record in the store, shared by all
// replicas; ordering goes through an order like any other, so that a crash or a
// second replica never has a certificate issued twice. Start reading at
// [Source.Run].
package owntls

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// Directory is the name under which the worker must know the profile: that of
// no tenant, so that no client can reach these orders.
const Directory = ""

// A Store is what of [acme.Store] is needed here.
type Store interface {
	Record(ctx context.Context, name string) ([]byte, int64, error)
	PutRecord(ctx context.Context, name string, data []byte, version int64) error
	CreateOrder(ctx context.Context, o *acme.Order, limits acme.OrderLimits, now time.Time) error
	Order(ctx context.Context, id string) (*acme.Order, error)
	Chain(ctx context.Context, ref string) ([]byte, error)
}

// A Queue is told of orders that have work to do.
type Queue interface{ Nudge(o *acme.Order) }

// Options are a Source's connections to the world.
type Options struct {
	Store Store
	Queue Queue
	Now   func() time.Time
	Rand  io.Reader
	Log   *slog.Logger
	Name  string // DNS name that clients know the server by
	// Profile is asked for the profile to order from, each time.
	Profile func() *acme.Profile
}

// A Source keeps the server's certificate.
type Source struct {
	Options
	current atomic.Pointer[tls.Certificate]
	ids     acme.IDs
}

// New makes a source that has no certificate until Run has found or ordered one.
func New(opts Options) *Source {
	return &Source{Options: opts, ids: acme.IDs{Rand: opts.Rand}}
}

// A record is what the store keeps under recordName.
type record struct {
	Key   []byte `json:"key,omitempty"` // PKCS #8
	Chain []byte `json:"chain,omitempty"`
	// Ordered is when that certificate was, so that one that is dated back is
	// not taken for old.
	Ordered time.Time `json:"ordered,omitzero"`
	// Next is the order that will replace Key and Chain.
	Next *next `json:"next,omitempty"`
	// Failures counts orders that became invalid since there was a certificate;
	// no replica orders again before Retry.
	Failures int       `json:"failures,omitempty"`
	Retry    time.Time `json:"retry,omitzero"`
}

type next struct {
	Key   []byte    `json:"key"`
	Order string    `json:"order"`
	Since time.Time `json:"since"`
}

func (s *Source) recordName() string { return "own-tls:" + s.Name }

const (
	look      = time.Hour        // how often the record is looked at, at least
	ageLeast  = time.Minute      // of a certificate that is renewed
	retry     = 2 * time.Second  // after trouble, doubling
	retryMost = 5 * time.Minute  // up to
	poll      = time.Second      // how often an order under way is looked at
	lostAfter = time.Minute      // an order that was announced and never made
	onceMost  = 30 * time.Second // one look at record and order
)

// Run finds, orders and renews the certificate until ctx ends. Trouble is logged
// and tried again.
func (s *Source) Run(ctx context.Context) error {
	wait := retry
	for {
		once, cancel := context.WithTimeout(ctx, onceMost)
		next, err := s.once(once)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.Log.ErrorContext(ctx, "the server's own certificate cannot be had yet, will retry", "name", s.Name, "retry", wait, "err", err)
			next, wait = wait, min(wait*2, retryMost)
		default:
			wait = retry
		}
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// Ready returns nil if there is a certificate to serve.
func (s *Source) Ready() error {
	cert := s.current.Load()
	if cert == nil {
		return errors.New("no certificate yet")
	}
	if s.Now().After(cert.Leaf.NotAfter) {
		return fmt.Errorf("the certificate ended at %s", cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// GetCertificate is for [tls.Config].
func (s *Source) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert := s.current.Load(); cert != nil {
		return cert, nil
	}
	return nil, errors.New("the server has no certificate of its own yet")
}

// once does what there is to do now, and says when to look again.
func (s *Source) once(ctx context.Context) (time.Duration, error) {
	data, version, err := s.Store.Record(ctx, s.recordName())
	if err != nil {
		return 0, fmt.Errorf("read record: %w", err)
	}
	var rec record
	if data != nil {
		if err := json.Unmarshal(data, &rec); err != nil {
			return 0, fmt.Errorf("decode record: %w", err)
		}
	}
	if rec.Chain != nil {
		if err := s.use(&rec); err != nil {
			return 0, err
		}
	}
	if rec.Next != nil {
		return s.advance(ctx, &rec, version)
	}
	now := s.Now()
	at := rec.Retry
	if rec.Chain != nil {
		at = later(at, renewal(s.current.Load().Leaf, rec.Ordered))
	}
	if now.Before(at) {
		return min(look, at.Sub(now)), nil
	}
	return s.order(ctx, &rec, version)
}

// renewal is when two thirds of a certificate's life are over.
func renewal(leaf *x509.Certificate, ordered time.Time) time.Time {
	life := leaf.NotAfter.Sub(later(leaf.NotBefore, ordered))
	return later(leaf.NotAfter.Add(-life/3), ordered.Add(ageLeast))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (s *Source) use(rec *record) error {
	key, err := x509.ParsePKCS8PrivateKey(rec.Key)
	if err != nil {
		return fmt.Errorf("parse own key: %w", err)
	}
	cert := &tls.Certificate{PrivateKey: key}
	for rest := rec.Chain; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	if len(cert.Certificate) == 0 {
		return errors.New("own chain is empty")
	}
	if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
		return fmt.Errorf("parse own certificate: %w", err)
	}
	s.current.Store(cert)
	return nil
}

// order announces an order in the record and then makes it. Of several replicas
// one wins the record. If the process dies between the two, the announced order
// is never found, nothing was asked of a CA, and advance clears the record.
func (s *Source) order(ctx context.Context, rec *record, version int64) (time.Duration, error) {
	profile := s.Profile()
	if profile == nil {
		return 0, errors.New("the profile for the server's own certificate is not configured")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), s.Rand)
	if err != nil {
		return 0, fmt.Errorf("make key: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return 0, fmt.Errorf("encode key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(s.Rand, &x509.CertificateRequest{DNSNames: []string{s.Name}}, key)
	if err != nil {
		return 0, fmt.Errorf("make CSR: %w", err)
	}
	now := s.Now()
	account, err := s.ids.Account(now)
	if err != nil {
		return 0, err
	}
	id := acme.Identifier{Type: acme.TypeDNS, Value: s.Name}
	proof := &acme.Proof{ // the operator named us in the configuration
		ProofKey: acme.ProofKey{AccountID: account, Name: id.Name()},
		Method:   acme.HTTP01, Validated: now, Expires: now.Add(profile.OrderLifetime),
	}
	o, err := acme.NewOrder(s.ids, &acme.Account{ID: account, Directory: Directory}, profile, []acme.Identifier{id}, []*acme.Proof{proof}, now)
	if err != nil {
		return 0, err
	}
	if err := o.Finalize(csr, now); err != nil {
		return 0, err
	}
	rec.Next = &next{Key: keyDER, Order: o.ID, Since: now}
	if err := s.put(ctx, rec, version); err != nil {
		if errors.Is(err, acme.ErrConflict) {
			return poll, nil // another replica orders
		}
		return 0, err
	}
	if err := s.Store.CreateOrder(ctx, o, acme.OrderLimits{}, now); err != nil {
		return 0, fmt.Errorf("make order: %w", err)
	}
	s.Log.InfoContext(ctx, "ordered the server's own certificate", "order", o.ID, "name", s.Name, "profile", profile.Name)
	s.Queue.Nudge(o)
	return poll / 20, nil
}

// advance looks what became of the announced order.
func (s *Source) advance(ctx context.Context, rec *record, version int64) (time.Duration, error) {
	o, err := s.Store.Order(ctx, rec.Next.Order)
	switch {
	case errors.Is(err, acme.ErrNotFound):
		if s.Now().Sub(rec.Next.Since) < lostAfter {
			return poll, nil // another replica may be about to make it
		}
		rec.Next = nil
		return s.replace(ctx, rec, version, 0)
	case err != nil:
		return 0, fmt.Errorf("read order: %w", err)
	case o.Status == acme.StatusProcessing:
		return poll, nil
	case o.Certificate == nil:
		wait := min(retry<<min(rec.Failures, 16), retryMost)
		rec.Next, rec.Failures, rec.Retry = nil, rec.Failures+1, s.Now().Add(wait)
		s.Log.ErrorContext(ctx, "the order for the server's own certificate failed, will order again",
			"order", o.ID, "name", s.Name, "status", string(o.Status), "retry", wait, "err", o.Error)
		return s.replace(ctx, rec, version, wait)
	}
	chain, err := s.Store.Chain(ctx, o.Certificate.ChainRef)
	if err != nil {
		return 0, fmt.Errorf("read chain: %w", err)
	}
	leaf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.Certificate.Leaf})
	rec.Key, rec.Chain, rec.Ordered = rec.Next.Key, append(leaf, chain...), rec.Next.Since
	rec.Next, rec.Failures, rec.Retry = nil, 0, time.Time{}
	if err := s.use(rec); err != nil {
		return 0, err
	}
	s.Log.InfoContext(ctx, "the server has its own certificate", "order", o.ID, "name", s.Name, "notAfter", o.Certificate.NotAfter)
	return s.replace(ctx, rec, version, 0)
}

// replace writes the record and says when to look again, unless another replica
// was faster.
func (s *Source) replace(ctx context.Context, rec *record, version int64, next time.Duration) (time.Duration, error) {
	switch err := s.put(ctx, rec, version); {
	case errors.Is(err, acme.ErrConflict):
		return poll, nil
	case err != nil:
		return 0, err
	}
	return next, nil
}

func (s *Source) put(ctx context.Context, rec *record, version int64) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	if err := s.Store.PutRecord(ctx, s.recordName(), data, version); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}
