package privateca

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// DefaultQuota is how many certificates a CA may issue (NCP user guide).
const DefaultQuota = 30000

// A Config says which CA to issue from. Client and CATag are needed; the zero
// value of anything else means its default.
type Config struct {
	Backend string         // name in logs and metrics
	Client  *ncloud.Client // its base URL is scheme and host of the API
	CATag   string
	// Exclusive: nothing else issues from this CA, so that its signing count
	// alone can prove that nothing was issued.
	Exclusive bool
	Quota     int64 // certificates that the CA may issue, for metrics and reports; DefaultQuota
	// SendKeyType sends keyType and keyBits of the CSR with each request.
	SendKeyType bool
	// Known tells Find which certificates are other orders'. Nil: none are known.
	Known acme.KnownCertificates

	// Settle is how long after a Submit the service may still issue for it;
	// before that, Find does not conclude that it has not. The gateway's own
	// time-out is not documented. Default: twice the client's timeout.
	Settle time.Duration
	// Confirm lies between the two readings of the signing count that prove an
	// absence; 5 s.
	Confirm time.Duration
	// MaxFindCalls bounds the calls of one Find; what it has learnt is kept for
	// the next one. 2000.
	MaxFindCalls int

	Now     func() time.Time                                 // nil: time.Now
	Wait    func(ctx context.Context, d time.Duration) error // nil: a timer
	Log     *slog.Logger                                     // nil: discarded
	Metrics prometheus.Registerer                            // nil: none
}

// An Issuer issues from one CA. It implements [acme.Issuer] and is safe for
// concurrent use.
type Issuer struct {
	cfg      Config
	api      api
	metrics  *metrics
	reading  *semaphore.Weighted                   // one reader of the CA's state
	chaining *semaphore.Weighted                   // one reader of the CA chain
	listing  *semaphore.Weighted                   // one reader of the list of certificates
	keys     *lru.Cache[string, [sha256.Size]byte] // public keys by serial number
	odd      *lru.Cache[string, *x509.Certificate] // answers with another key, by order

	mu         sync.Mutex // guards what follows
	last       *caState
	since      int64 // certificates got since last was read, surely not counted in it
	floor      int64 // what the count must have reached if it counts our certificates
	countFalls bool
	chain      []*x509.Certificate
	chainUntil time.Time

	list *list // owned by who holds listing
}

var _ acme.Issuer = (*Issuer)(nil)

var caTagForm = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// New checks the configuration and makes an issuer; nothing is sent yet.
func New(cfg Config) (*Issuer, error) {
	if cfg.Client == nil {
		return nil, errors.New("no client")
	}
	if !caTagForm.MatchString(cfg.CATag) {
		return nil, fmt.Errorf("ca_tag: %.70q is no tag of a CA, such as 12345678-abcdefgh", cfg.CATag)
	}
	if cfg.Quota <= 0 {
		cfg.Quota = DefaultQuota
	}
	if cfg.Settle <= 0 {
		cfg.Settle = 2 * cfg.Client.Timeout()
	}
	if cfg.Confirm <= 0 {
		cfg.Confirm = 5 * time.Second
	}
	if cfg.MaxFindCalls <= 0 {
		cfg.MaxFindCalls = 2000
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
	// Twice the service's limit: the public keys of a whole CA fit.
	keys, err := lru.New[string, [sha256.Size]byte](2 * DefaultQuota)
	if err != nil {
		return nil, err
	}
	odd, err := lru.New[string, *x509.Certificate](maxOdd)
	if err != nil {
		return nil, err
	}
	return &Issuer{cfg: cfg, api: api{client: cfg.Client, caTag: cfg.CATag}, metrics: m,
		reading: semaphore.NewWeighted(1), chaining: semaphore.NewWeighted(1), listing: semaphore.NewWeighted(1), keys: keys, odd: odd}, nil
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

// Mark is a signing count that the CA has surely reached, "" if none is known
// or the CA is not exclusive. A low mark is safe: it makes Find look closer.
func (i *Issuer) Mark(ctx context.Context) string {
	if !i.cfg.Exclusive {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, asideTime)
	defer cancel()
	if _, err := i.state(ctx, markAge); err != nil {
		i.cfg.Log.WarnContext(ctx, "signing count not read before a submit", "err", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.last == nil {
		return ""
	}
	return strconv.FormatInt(i.last.SigningCount+i.since, 10)
}

// CheckLifetime reports a lifetime that the service cannot give: it counts
// whole days, 1 to 3650.
func CheckLifetime(d time.Duration) error {
	if d%(24*time.Hour) != 0 || d < 24*time.Hour || d > 3650*24*time.Hour {
		return fmt.Errorf("%s: Private CA issues for whole days, from 1d to 3650d", d)
	}
	return nil
}

// dayTolerance is how far the end of a certificate may be off what a client
// asked for because of whole days; below what acme.CheckIssued lets pass.
const dayTolerance = 30 * time.Minute

// period is the number of days to ask for.
func (i *Issuer) period(req *acme.IssueRequest, now time.Time) (int, *acme.Problem) {
	const day = 24 * time.Hour
	if req.NotBefore.After(now.Add(5 * time.Minute)) {
		return 0, acme.Problemf(acme.Malformed, "notBefore: this certificate authority issues certificates that are valid at once")
	}
	if req.NotAfter.IsZero() {
		if err := CheckLifetime(req.Lifetime); err != nil {
			return 0, acme.Problemf(acme.ServerInternal, "the certificate authority cannot issue for the profile's lifetime").WithCause(err)
		}
		return int(req.Lifetime / day), nil
	}
	left := req.NotAfter.Sub(now)
	days := (left + day/2) / day
	if days < 1 || days > 3650 || (left-days*day).Abs() > dayTolerance {
		return 0, acme.Problemf(acme.Malformed, "notAfter: this certificate authority issues for whole days from now, 1 to 3650")
	}
	return int(days), nil
}

// Submit calls Sign End Csr once. It never repeats it, and neither does the client.
func (i *Issuer) Submit(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	now := i.cfg.Now()
	days, problem := i.period(req, now)
	if problem != nil {
		return nil, problem
	}
	// What is known of the CA spares calls that it would refuse. If nothing can
	// be known, the CA itself is asked.
	aside, cancel := context.WithTimeout(ctx, min(asideTime, i.Timeout()/4))
	state, err := i.state(aside, stateAge)
	if err == nil && state.Status != statusActive {
		state, err = i.state(aside, 0) // it may have been activated since
	}
	cancel()
	if err == nil {
		if problem := refusedByState(state, now, days, req); problem != nil {
			return nil, problem
		}
	}
	keyType, keyBits := "", ""
	if i.cfg.SendKeyType {
		keyType, keyBits = keyWords(req.CSR.PublicKey)
	}
	i.odd.Remove(req.OrderID)
	before := i.lastState()
	got, err := i.api.signEndCSR(ctx, req.CSR, days, keyType, keyBits)
	if err != nil {
		return nil, i.submitError(ctx, err, req, days)
	}
	return i.issued(ctx, req, got, before)
}

// maxOdd bounds the orders whose answers held another key's certificate.
const maxOdd = 1000

// issued judges an answer of Sign End Csr that reports success. Whether the
// certificate is what was asked for is the caller's to check. Only an answer
// that may carry some earlier certificate is noticed here, since the right one
// can be found then; the documentation hints at such answers.
func (i *Issuer) issued(ctx context.Context, req *acme.IssueRequest, got *signed, before *caState) (*acme.Issuance, error) {
	key := serialKey(got.leaf.SerialNumber)
	odd := !sameKey(got.leaf, req.CSR) || got.leaf.NotBefore.Before(req.Submitted.Add(-clockSlack))
	if !odd && i.keys.Contains(key) {
		// Seen before with the right key: a Find of another order may have met
		// it in the list already, or the key is used again. Its owner tells.
		owners, err := i.owned(ctx, []string{acme.CertificateID(got.leaf)})
		if err != nil {
			return nil, fmt.Errorf("%w: whose certificate the answer holds could not be read: %w", acme.ErrOutcomeUnknown, err)
		}
		odd = owners[0] != "" && owners[0] != req.OrderID
	}
	if odd {
		// If Find brings no better one, this is what was issued for the order.
		i.odd.Add(req.OrderID, got.leaf)
		i.cfg.Log.ErrorContext(ctx, "the CA answered with a certificate that was not asked for now, will search for the right one",
			"order", req.OrderID, "serial", formatSerial(got.leaf.SerialNumber, 0))
		return nil, fmt.Errorf("%w: the answer holds another certificate", acme.ErrOutcomeUnknown)
	}
	i.keys.Add(key, spki(got.leaf))
	i.mu.Lock()
	if i.last == before && before != nil {
		// The count was read before this call began, so it lacks this
		// certificate. If it was read in between, it may have it: not added.
		i.since++
		i.floor = max(i.floor, i.last.SigningCount+i.since)
	}
	i.mu.Unlock()
	return i.issuance(ctx, got.leaf, got.others)
}

// issuance puts leaf and chain together. The answer's own chain is used if it
// leads to a root, else what Get CA and Get CA Chain know is added.
func (i *Issuer) issuance(ctx context.Context, leaf *x509.Certificate, others []*x509.Certificate) (*acme.Issuance, error) {
	chain, rooted := sortChain(leaf, others)
	if rooted {
		return &acme.Issuance{Leaf: leaf, Chain: chain}, nil
	}
	known, err := i.issuers(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: issued, but its chain could not be read: %w", acme.ErrOutcomeUnknown, err)
	}
	chain, _ = sortChain(leaf, unique(slices.Concat(others, known)))
	return &acme.Issuance{Leaf: leaf, Chain: chain}, nil
}

// Roots are the root certificates of the CA as the service states them, or the
// highest certificates that it shows.
func (i *Issuer) Roots(ctx context.Context) (*x509.CertPool, error) {
	certs, err := i.issuers(ctx)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range anchors(certs) {
		pool.AddCert(c)
	}
	return pool, nil
}

// keyWords are keyType and keyBits as NCP's own client words them.
func keyWords(pub any) (string, string) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return "RSA", strconv.Itoa(k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA", strconv.Itoa(k.Params().BitSize)
	}
	return "", "" // a kind that the service has no word for: let it judge the CSR
}

func spki(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

func sameKey(c *x509.Certificate, csr *x509.CertificateRequest) bool {
	return spki(c) == sha256.Sum256(csr.RawSubjectPublicKeyInfo)
}

// serialKey is a serial number as a key of maps.
func serialKey(n *big.Int) string { return string(n.Bytes()) }

// owned asks which orders the certificates belong to.
func (i *Issuer) owned(ctx context.Context, ids []string) ([]string, error) {
	if i.cfg.Known == nil {
		return make([]string, len(ids)), nil
	}
	owners, err := i.cfg.Known.CertificateOwners(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("read owners of certificates: %w", err)
	}
	if len(owners) != len(ids) {
		return nil, fmt.Errorf("asked for the owners of %d certificates, got %d", len(ids), len(owners))
	}
	return owners, nil
}

// Revoke revokes a certificate of this CA by its serial number. The service
// takes no reason. Since it does not say whether a refusal means "revoked
// already", the CRL decides.
func (i *Issuer) Revoke(ctx context.Context, leaf *x509.Certificate, _ int) error {
	certs, err := i.issuers(ctx)
	if err != nil {
		return notSent(err)
	}
	// A serial number is unique within a CA only.
	if issuerOf(leaf, certs) == nil {
		return acme.Problemf(acme.Malformed, "the certificate was not issued by this certificate authority")
	}
	err = i.revokeSerial(ctx, leaf.SerialNumber)
	e, ok := errors.AsType[*ncloud.Error](err)
	if !ok || e.Applied == ncloud.No && e.Outcome != ncloud.OutcomeRefused {
		return notSent(err)
	}
	crl, errCRL := i.CRL(ctx)
	if errCRL == nil {
		for _, r := range crl.RevokedCertificateEntries {
			if r.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
				return nil
			}
		}
	}
	switch {
	case e.Applied != ncloud.No:
		return fmt.Errorf("revoke: the answer was lost and the CRL does not show it yet: %w", errors.Join(e, errCRL))
	case i.cfg.Now().After(leaf.NotAfter):
		return acme.Problemf(acme.Malformed, "the certificate has expired").WithCause(e)
	case notThere(e):
		return acme.Problemf(acme.Malformed, "the certificate authority does not know the certificate").WithCause(e)
	}
	return acme.Problemf(acme.ServerInternal, "the certificate authority refused to revoke").WithCause(errors.Join(e, errCRL))
}

// revokeSerial tries the ways in which the service may write a serial number,
// one after the other as long as it knows no such certificate: neither case nor
// leading zero octets are documented.
func (i *Issuer) revokeSerial(ctx context.Context, serial *big.Int) error {
	short, long := formatSerial(serial, 0), formatSerial(serial, 20)
	var err error
	for _, text := range slices.Compact([]string{short, long, strings.ToUpper(long), strings.ToUpper(short)}) {
		err = i.api.revokeEndCert(ctx, text)
		if e, ok := errors.AsType[*ncloud.Error](err); !ok || e.Applied != ncloud.No || !notThere(e) {
			return err
		}
	}
	return err
}

// CRL is the CA's certificate revocation list, its signature checked.
func (i *Issuer) CRL(ctx context.Context) (*x509.RevocationList, error) {
	certs, err := i.issuers(ctx)
	if err != nil {
		return nil, err
	}
	crl, err := i.api.getCACRL(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range certs {
		if string(c.RawSubject) == string(crl.RawIssuer) && crl.CheckSignatureFrom(c) == nil {
			return crl, nil
		}
	}
	return nil, errors.New("the CRL is not signed by the CA")
}

// notThere reports the service's word for a certificate that it does not have.
func notThere(e *ncloud.Error) bool {
	return strings.HasPrefix(e.Code, "NOT_EXIST_CERT") || e.Code == "NOT_FOUND" ||
		strings.Contains(strings.ToLower(e.Message), "certificate doesn't exist")
}
