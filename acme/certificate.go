package acme

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// CertificateID names a certificate by its issuer's key and its serial number,
// in the form of RFC 9773, Section 4.1. A certificate without an authority key
// identifier is named by a hash of its issuer instead.
func CertificateID(cert *x509.Certificate) string {
	aki := cert.AuthorityKeyId
	if len(aki) == 0 {
		sum := sha256.Sum256(cert.RawIssuer)
		aki = sum[:20]
	}
	return CertificateIDOf(aki, cert.SerialNumber)
}

// CertificateIDOf is [CertificateID] for a certificate of which only the
// issuer's key identifier and the serial number are known.
func CertificateIDOf(authorityKeyID []byte, serial *big.Int) string {
	octets := serial.Bytes()
	if len(octets) == 0 || octets[0]&0x80 != 0 {
		octets = append([]byte{0}, octets...) // the DER value of a positive INTEGER
	}
	enc := base64.RawURLEncoding
	return enc.EncodeToString(authorityKeyID) + "." + enc.EncodeToString(octets)
}

// Tolerances of [CheckIssued]: how far a certificate's lifetime may be off what
// was asked, for clocks, back-dating and the time that signing took.
const (
	maxBackdate      = 25 * time.Hour
	lifetimeDeviates = time.Hour
)

// CheckIssued compares what a CA returned with what it was asked for, before
// anyone believes it: the CSR's key, the order's names and no others, the
// lifetime asked for, a server certificate, and a chain to one of roots. The
// error is for the operator. That the certificate is not another order's the
// store tells.
func CheckIssued(req *IssueRequest, got *Issuance, roots *x509.CertPool, now time.Time) error {
	leaf := got.Leaf
	if leaf == nil {
		return errors.New("no certificate returned")
	}
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, req.CSR.RawSubjectPublicKeyInfo) {
		add("the key is not the CSR's")
	}
	if err := checkIssuedNames(leaf, req.Identifiers); err != nil {
		add("%w", err)
	}
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		add("it is a CA certificate")
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && (len(leaf.ExtKeyUsage) > 0 || len(leaf.UnknownExtKeyUsage) > 0) {
		add("its extended key usage lacks serverAuth")
	}
	if n := len(leaf.SerialNumber.Bytes()); leaf.SerialNumber.Sign() <= 0 || n > 20 {
		add("its serial number is not positive or longer than 20 octets")
	}
	if err := checkValidity(leaf, req, now); err != nil {
		add("%w", err)
	}
	pool := x509.NewCertPool()
	for _, c := range got.Chain {
		pool.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		CurrentTime: later(now, leaf.NotBefore),
	})
	if err != nil {
		add("its chain does not verify: %w", err)
	} else if !slices.ContainsFunc(chains, func(verified []*x509.Certificate) bool {
		// Clients get the chain as it stands (RFC 8555, Section 7.4.2).
		return len(got.Chain) < len(verified) && slices.EqualFunc(got.Chain, verified[1:1+len(got.Chain)], (*x509.Certificate).Equal)
	}) {
		add("its chain is out of order or holds certificates that do not belong to it")
	}
	return errors.Join(errs...)
}

func checkIssuedNames(leaf *x509.Certificate, ids []Identifier) error {
	names, err := sanDNSNames(leaf.Extensions)
	if err != nil {
		return fmt.Errorf("its subject alternative names: %w", err)
	}
	have := make(map[string]bool, len(names))
	for _, n := range names {
		have[lower(n)] = true
	}
	var missing []string
	cnSeen := leaf.Subject.CommonName == ""
	for _, id := range ids {
		if !have[id.Value] {
			missing = append(missing, id.Value)
		}
		delete(have, id.Value)
		cnSeen = cnSeen || lower(leaf.Subject.CommonName) == id.Value
	}
	if len(missing) > 0 || len(have) > 0 {
		extra := make([]string, 0, len(have))
		for n := range have {
			extra = append(extra, truncate(n, 253))
		}
		slices.Sort(extra)
		return fmt.Errorf("its names are not the order's: %s", difference(missing, extra))
	}
	if !cnSeen {
		return errors.New("its common name is not among the order's names")
	}
	return nil
}

func checkValidity(leaf *x509.Certificate, req *IssueRequest, now time.Time) error {
	wantAfter := req.NotAfter
	if wantAfter.IsZero() {
		wantAfter = req.Submitted.Add(req.Lifetime)
	}
	wantBefore, earliest := req.NotBefore, req.NotBefore.Add(-lifetimeDeviates)
	if wantBefore.IsZero() {
		wantBefore, earliest = req.Submitted, req.Submitted.Add(-maxBackdate)
	}
	if req.NotAfter.IsZero() && req.Lifetime == 0 {
		if !leaf.NotAfter.After(now) {
			return fmt.Errorf("it ended at %s", leaf.NotAfter.Format(time.RFC3339))
		}
	} else {
		slack := min(lifetimeDeviates, wantAfter.Sub(wantBefore)/4)
		if d := leaf.NotAfter.Sub(wantAfter); d > lifetimeDeviates || d < -slack {
			return fmt.Errorf("it ends at %s, not at %s as asked", leaf.NotAfter.Format(time.RFC3339), wantAfter.Format(time.RFC3339))
		}
	}
	if leaf.NotBefore.Before(earliest) || leaf.NotBefore.After(later(wantBefore, now).Add(5*time.Minute)) {
		return fmt.Errorf("it begins at %s", leaf.NotBefore.Format(time.RFC3339))
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// smallPrimes catch moduli that were not made by a key generator.
var smallPrimes = []uint64{3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211, 223, 227, 229, 233, 239, 241, 251}

func modSmall(k *rsa.PublicKey, p uint64) uint64 {
	return new(big.Int).Mod(k.N, new(big.Int).SetUint64(p)).Uint64()
}
