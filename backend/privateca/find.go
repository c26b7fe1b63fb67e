package privateca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// clockSlack is how far clocks of replicas and of the service may differ when
// a certificate's begin is compared with the time of a Submit.
const clockSlack = 10 * time.Minute

// Find works out what became of a Submit whose answer was lost:
//
//  1. If the CA is exclusive and its signing count is still what it was before
//     the Submit, twice, some seconds apart and after the service must be done,
//     nothing was issued.
//  2. Else the list of certificates is read, less those that are known to be
//     other orders' or have other keys; what remains is read one by one until a
//     certificate has the CSR's key.
//  3. Absence is concluded only from a list that was read after the service
//     must be done, wholly and without gaps.
//
// Any other error means that Find cannot tell now; what it has read is kept, so
// that the next Find goes on from there.
func (i *Issuer) Find(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	got, err := i.find(ctx, req)
	return got, notSent(err)
}

func (i *Issuer) find(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	settled := req.Submitted.Add(i.cfg.Settle)
	unchanged, err := i.countUnchanged(ctx, req, settled)
	if err != nil {
		return nil, err
	}
	if unchanged {
		return nil, acme.ErrNotIssued
	}
	if err := i.listing.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for the list of certificates: %w", err)
	}
	defer i.listing.Release(1)
	budget := i.cfg.MaxFindCalls
	l, err := i.readList(ctx, req.Submitted, settled, &budget)
	if err != nil {
		return nil, err
	}
	leaf, err := i.search(ctx, req, l, &budget)
	switch {
	case err != nil:
		return nil, err
	case leaf != nil:
		return i.issuance(ctx, leaf, nil)
	case l.begun.Before(settled):
		return nil, fmt.Errorf("not found yet, and the service may still be at it until %s", settled.Format(time.RFC3339))
	}
	if leaf, ok := i.odd.Get(req.OrderID); ok {
		owners, err := i.owned(ctx, []string{acme.CertificateID(leaf)})
		if err != nil {
			return nil, err
		}
		if owners[0] == "" {
			// The order's Submit was answered with a certificate of another
			// key, and there is none of the right key: so that one it is. The
			// caller's check will refuse it.
			return i.issuance(ctx, leaf, nil)
		}
	}
	return nil, acme.ErrNotIssued
}

// countUnchanged reports that the signing count proves an absence. An error
// means that it would be too early to believe it, or that it cannot be read.
func (i *Issuer) countUnchanged(ctx context.Context, req *acme.IssueRequest, settled time.Time) (bool, error) {
	mark, err := strconv.ParseInt(req.Mark, 10, 64)
	if err != nil || !i.cfg.Exclusive {
		return false, nil
	}
	same := func() (bool, error) {
		s, err := i.state(ctx, 0)
		if err != nil {
			return false, fmt.Errorf("read signing count: %w", err)
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		// A count that has fallen, or lacks certificates that we got, does not
		// count what it should.
		return s.SigningCount == mark && s.SigningCount >= i.floor && !i.countFalls, nil
	}
	if first, err := same(); err != nil || !first {
		return false, err
	}
	// Whether the count rises in the same step as the certificate is made is
	// not documented: look again, and not before the service must be done.
	pause := max(i.cfg.Confirm, settled.Sub(i.cfg.Now()))
	if pause > 2*i.cfg.Confirm {
		return false, fmt.Errorf("signing count is unchanged, and the service may still be at it until %s", settled.Format(time.RFC3339))
	}
	if err := i.cfg.Wait(ctx, pause); err != nil {
		return false, fmt.Errorf("wait to read the signing count again: %w", err)
	}
	return same()
}

// search goes through a complete list for a certificate with the CSR's key that
// is no other order's. Nil without an error: there is none.
func (i *Issuer) search(ctx context.Context, req *acme.IssueRequest, l *list, budget *int) (*x509.Certificate, error) {
	aki, err := i.authorityKey(ctx)
	if err != nil {
		return nil, err
	}
	// Certificates of other keys are out, by what was read before.
	want := sha256.Sum256(req.CSR.RawSubjectPublicKeyInfo)
	var left []entry
	for _, e := range l.entries {
		if have, ok := i.keys.Get(serialKey(e.serial)); !ok || have == want {
			left = append(left, e)
		}
	}
	// Certificates of other orders are out, whatever their keys: a client may
	// use one key for many orders.
	var candidates []entry
	for chunk := range slices.Chunk(left, 500) {
		ids := make([]string, len(chunk))
		for n, e := range chunk {
			ids[n] = acme.CertificateIDOf(aki, e.serial)
		}
		owners, err := i.owned(ctx, ids)
		if err != nil {
			return nil, err
		}
		for n, e := range chunk {
			switch owners[n] {
			case req.OrderID: // claimed before a crash: this is it
				candidates = slices.Insert(candidates, 0, e)
			case "":
				candidates = append(candidates, e)
			}
		}
	}
	var found *x509.Certificate
	for _, e := range candidates {
		cert, err := i.candidate(ctx, req, e, budget)
		if err != nil {
			return nil, err
		}
		if cert == nil {
			continue
		}
		// Of several for one key, the one with the order's names: two orders
		// with one key may be in doubt at a time.
		if hasNames(cert, req) {
			return cert, nil
		}
		found = cert
	}
	return found, nil
}

// candidate reads one certificate, unless its key is known to be another, and
// returns it if it can be what the Submit asked for.
func (i *Issuer) candidate(ctx context.Context, req *acme.IssueRequest, e entry, budget *int) (*x509.Certificate, error) {
	if *budget--; *budget < 0 {
		return nil, errors.New("too many certificates to read at once, will go on later")
	}
	cert, err := i.api.getEndCert(ctx, e.text)
	if refusal, ok := errors.AsType[*ncloud.Error](err); ok && notThere(refusal) {
		return nil, nil // trimmed since the list was read, so it had expired
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", e.text, err)
	}
	if cert.SerialNumber.Cmp(e.serial) != 0 {
		return nil, fmt.Errorf("asked for certificate %s, got %s", e.text, formatSerial(cert.SerialNumber, 0))
	}
	i.keys.Add(serialKey(cert.SerialNumber), spki(cert))
	if !sameKey(cert, req.CSR) || cert.NotBefore.Before(req.Submitted.Add(-clockSlack)) {
		return nil, nil
	}
	// Asked again, now by the certificate's own word for its issuer.
	owners, err := i.owned(ctx, []string{acme.CertificateID(cert)})
	if err != nil {
		return nil, err
	}
	if owners[0] != "" && owners[0] != req.OrderID {
		return nil, nil
	}
	return cert, nil
}

// hasNames reports that a certificate has all the names of the request.
func hasNames(cert *x509.Certificate, req *acme.IssueRequest) bool {
	have := append([]string{}, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		have = append(have, ip.String())
	}
	want := append([]string{}, req.CSR.DNSNames...)
	for _, ip := range req.CSR.IPAddresses {
		want = append(want, ip.String())
	}
	slices.Sort(have)
	slices.Sort(want)
	return slices.Equal(have, want)
}

// authorityKey is the key identifier of the CA, by which orders' certificates
// are named.
func (i *Issuer) authorityKey(ctx context.Context) ([]byte, error) {
	s, err := i.state(ctx, stateAge)
	if err != nil {
		return nil, fmt.Errorf("read the CA's certificate: %w", err)
	}
	if s.Own == nil {
		return nil, errors.New("the CA has no certificate")
	}
	if ski := s.Own.SubjectKeyId; len(ski) > 0 {
		return ski, nil
	}
	// As acme.CertificateID does for certificates without an authority key identifier.
	sum := sha256.Sum256(s.Own.RawSubject)
	return sum[:20], nil
}

// An entry is a certificate in the list, its number as the service writes it.
type entry struct {
	serial *big.Int
	text   string
}
