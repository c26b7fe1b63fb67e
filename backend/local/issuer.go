package local

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"path/filepath"
	"time"

	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/smallstep/certificates/cas/softcas"

	"github.com/acme-bridge/acme-bridge/acme"
)

const (
	// backdate is how far notBefore lies before the signing when the client asks
	// for nothing, for subscribers and clients whose clocks are behind.
	backdate = time.Minute
	// submitTimeout is generous: a signature takes well below a millisecond.
	submitTimeout = 5 * time.Second
	// expiresSoon is when [Issuer.Health] begins to complain.
	expiresSoon = 30 * 24 * time.Hour
	// maxCommonName is the upper bound ub-common-name of RFC 5280, Appendix A.
	maxCommonName = 64
)

// Config says where the certificate authority lives, and what it takes from the
// world.
type Config struct {
	// Path is the directory of root.crt, root.key, intermediate.crt and
	// intermediate.key. It is made, with mode 0700, if it does not exist.
	Path string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Rand is where serial numbers come from; nil is crypto/rand.
	Rand io.Reader
	// Log may be nil.
	Log *slog.Logger
}

// An Issuer signs with the intermediate certificate. It is safe for concurrent
// use.
type Issuer struct {
	cfg          Config
	cas          apiv1.CertificateAuthorityService
	root         *x509.Certificate
	intermediate *x509.Certificate
	roots        *x509.CertPool
}

var _ acme.Issuer = (*Issuer)(nil)

// New opens the certificate authority in cfg.Path, and makes what of it does
// not exist yet. Files that are broken or do not belong together are an error;
// they are never replaced.
func New(ctx context.Context, cfg Config) (*Issuer, error) {
	if cfg.Path == "" {
		return nil, errors.New("local CA: no directory is given")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m, err := open(ctx, &cfg)
	if err != nil {
		return nil, fmt.Errorf("local CA in %s: %w", cfg.Path, err)
	}
	// softcas is made directly and not by its registered name: which services
	// are linked in is to be read in the imports.
	cas, err := softcas.New(ctx, apiv1.Options{
		CertificateChain: []*x509.Certificate{m.intermediate},
		Signer:           m.signer,
	})
	if err != nil {
		return nil, fmt.Errorf("local CA in %s: %w", cfg.Path, err)
	}
	i := &Issuer{cfg: cfg, cas: cas, root: m.root, intermediate: m.intermediate, roots: x509.NewCertPool()}
	i.roots.AddCert(m.root)
	if err := i.Health().Err; err != nil {
		cfg.Log.ErrorContext(ctx, "local CA needs attention", "err", err)
	}
	return i, nil
}

// Mark is empty: Find needs to know nothing.
func (i *Issuer) Mark(context.Context) string { return "" }

// Submit signs a certificate. Of the CSR only the key is used.
//
// The CAS API takes no context; signing is computation only, so that a deadline
// is looked at before it and not while it runs.
func (i *Issuer) Submit(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	if err := ctx.Err(); err != nil {
		return nil, &acme.NotSentError{Err: err}
	}
	template, err := i.template(req)
	if err != nil {
		return nil, err
	}
	resp, err := i.cas.CreateCertificate(&apiv1.CreateCertificateRequest{
		Template: template,
		CSR:      req.CSR,
		// softcas looks at its own clock unless the template has both times, but
		// insists on a lifetime.
		Lifetime:  template.NotAfter.Sub(template.NotBefore),
		RequestID: req.OrderID,
	})
	if err != nil {
		// softcas keeps nothing, so what it did not return does not exist.
		return nil, &acme.NotSentError{Err: fmt.Errorf("local CA: %w", err)}
	}
	return &acme.Issuance{Leaf: resp.Certificate, Chain: resp.CertificateChain}, nil
}

// template builds the certificate from the request. Errors are problems, or
// NotSentError if there is no randomness.
func (i *Issuer) template(req *acme.IssueRequest) (*x509.Certificate, error) {
	t := &x509.Certificate{
		PublicKey:             req.CSR.PublicKey,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if t.PublicKey == nil {
		return nil, acme.Problemf(acme.BadCSR, "the key type of the CSR is not supported")
	}
	if _, ok := t.PublicKey.(*rsa.PublicKey); ok {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment // RSA key exchange of TLS 1.2
	}
	for _, id := range req.Identifiers {
		if id.Type != acme.TypeDNS {
			return nil, acme.Problemf(acme.UnsupportedIdentifier, "the local CA issues for DNS names only")
		}
		t.DNSNames = append(t.DNSNames, id.Value)
		if t.Subject.CommonName == "" && len(id.Value) <= maxCommonName {
			t.Subject = pkix.Name{CommonName: id.Value}
		}
	}
	if len(t.DNSNames) == 0 {
		return nil, acme.Problemf(acme.Malformed, "the order has no names")
	}
	if err := i.validity(t, req); err != nil {
		return nil, err
	}
	var serial [16]byte
	if _, err := io.ReadFull(i.cfg.Rand, serial[:]); err != nil {
		return nil, &acme.NotSentError{Err: fmt.Errorf("local CA: serial number: %w", err)}
	}
	t.SerialNumber = new(big.Int).SetBytes(serial[:])
	return t, nil
}

// validity sets NotBefore and NotAfter: as asked, else from a minute ago until
// the profile's lifetime has passed from now.
func (i *Issuer) validity(t *x509.Certificate, req *acme.IssueRequest) error {
	now := i.cfg.Now().UTC().Truncate(time.Second) // what X.509 can express
	t.NotBefore, t.NotAfter = now.Add(-backdate), now.Add(req.Lifetime)
	if !req.NotBefore.IsZero() {
		t.NotBefore = req.NotBefore.UTC()
	}
	if !req.NotAfter.IsZero() {
		t.NotAfter = req.NotAfter.UTC()
	}
	if !t.NotAfter.After(t.NotBefore) || !t.NotAfter.After(now) {
		return acme.Problemf(acme.Malformed, "the certificate would end before it begins, or has ended already")
	}
	end := i.intermediate.NotAfter
	if !t.NotAfter.After(end) {
		return nil
	}
	advice := fmt.Errorf("%s ends at %s: shorten the profile's lifetime, or move intermediate.crt and intermediate.key away and restart, so that a new intermediate is made",
		filepath.Join(i.cfg.Path, intermediateCert), end.Format(time.RFC3339))
	if !req.NotAfter.IsZero() {
		return acme.Problemf(acme.Malformed, "notAfter is later than the end of the certificate authority's own certificate, %s", end.Format(time.RFC3339)).WithCause(advice)
	}
	return acme.Problemf(acme.ServerInternal, "a certificate of the usual lifetime would outlive the certificate authority's own, which ends at %s; the operator has to renew it", end.Format(time.RFC3339)).WithCause(advice)
}

// Find proves that nothing was issued: softcas keeps no list, so a certificate
// exists only in what Submit returned. One that was not saved with its order
// was handed out to nobody and is gone with the process that made it.
func (i *Issuer) Find(context.Context, *acme.IssueRequest) (*acme.Issuance, error) {
	return nil, acme.ErrNotIssued
}

// Revoke has nothing to do: the order's document records the revocation, and
// the local CA publishes no CRL and answers no OCSP, so nobody else learns of it.
func (i *Issuer) Revoke(context.Context, *x509.Certificate, int) error { return nil }

// Timeout is the deadline for one Submit.
func (i *Issuer) Timeout() time.Duration { return submitTimeout }

// Roots holds the one root. The pool must not be changed.
func (i *Issuer) Roots(context.Context) (*x509.CertPool, error) { return i.roots, nil }

// RootFile is the path of the root certificate, for clients to trust.
func (i *Issuer) RootFile() string { return filepath.Join(i.cfg.Path, rootCert) }

// RootPEM is the root certificate in PEM.
func (i *Issuer) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: i.root.Raw})
}

// Health is the state of the certificate authority as of now.
type Health struct {
	RootExpires, IntermediateExpires time.Time
	// Err says what the operator has to do, now or within the next 30 days.
	Err error
}

// Health reports on the ends of root and intermediate.
func (i *Issuer) Health() Health {
	h := Health{RootExpires: i.root.NotAfter, IntermediateExpires: i.intermediate.NotAfter}
	soon := i.cfg.Now().Add(expiresSoon)
	var errs []error
	if soon.After(h.IntermediateExpires) {
		errs = append(errs, fmt.Errorf("%s ends at %s: move intermediate.crt and intermediate.key away and restart, so that a new one is made",
			filepath.Join(i.cfg.Path, intermediateCert), h.IntermediateExpires.Format(time.RFC3339)))
	}
	if soon.After(h.RootExpires) {
		errs = append(errs, fmt.Errorf("%s ends at %s: move the whole directory away and restart, and distribute the new root",
			i.RootFile(), h.RootExpires.Format(time.RFC3339)))
	}
	h.Err = errors.Join(errs...)
	return h
}
