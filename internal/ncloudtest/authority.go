package ncloudtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Statuses of a CA.
const (
	statusActive      = "ACTIVE"
	statusPending     = "PENDING"
	statusDeactivated = "DEACTIVATED"
	statusDestroying  = "DESTROYING"
)

// name is the subject of a CA or certificate as the service takes it, with both
// spellings that the documentation has had.
type name struct {
	CommonName        string `json:"commonName"`
	AltName           string `json:"altName"`
	IP                string `json:"ip"`
	Country           string `json:"country"`
	Contry            string `json:"contry"`
	Locality          string `json:"locality"`
	StateProvince     string `json:"stateProvince"`
	Organization      string `json:"organization"`
	OrganizationUnit  string `json:"organizationUnit"`
	OrganicationUnit  string `json:"organicationUnit"`
	StreetAddress     string `json:"streetAddress"`
	UseCommonNameAsDN bool   `json:"useCnAsSan"`
}

func (n name) check() *refusal {
	switch {
	case n.CommonName == "":
		return &refusal{"EMPTY_COMMON_NAME", "common name is missing."}
	case len(n.CommonName) > 64:
		return &refusal{"EXCEED_COMMON_NAME", "common name exceeded the allowed length."}
	case len(n.Organization) > 64:
		return &refusal{"INVALID_INPUT_ORGANIZATION", "organization exceeded the allowed length."}
	}
	for _, v := range []string{n.OrganizationUnit, n.OrganicationUnit, n.Locality, n.StateProvince, n.StreetAddress} {
		if len(v) > 128 {
			return &refusal{"INVALID_REQUEST", "A name part exceeded the allowed length."}
		}
	}
	return nil
}

func (n name) pkix() pkix.Name {
	list := func(values ...string) []string {
		for _, v := range values {
			if v != "" {
				return []string{v}
			}
		}
		return nil
	}
	return pkix.Name{CommonName: n.CommonName, Country: list(n.Country, n.Contry), Locality: list(n.Locality),
		Province: list(n.StateProvince), Organization: list(n.Organization),
		OrganizationalUnit: list(n.OrganizationUnit, n.OrganicationUnit), StreetAddress: list(n.StreetAddress)}
}

// An authority is one CA of the service.
type authority struct {
	id                      int64
	tag, alias, memo, kind  string
	status                  string
	parent                  *authority // nil: root, or signed elsewhere
	key                     crypto.Signer
	cert                    *x509.Certificate   // nil while PENDING
	chain                   []*x509.Certificate // issuers, nearest first
	subject                 pkix.Name
	signingCount            int64
	hiddenCounts, hiddenIDs []hidden
	issued                  []*issuedCert
	registered, statusSet   time.Time
	destroy                 time.Time
	crlDays                 int // 0: no CRL configuration
	crlNumber               int64
	crl                     []byte // DER; nil: none made yet
	ocsp                    string
	users                   []user
}

// hidden is something that will show later.
type hidden struct {
	serial *big.Int
	reads  int
	until  time.Time
}

type issuedCert struct {
	cert    *x509.Certificate
	revoked time.Time // zero: not revoked
}

type user struct {
	LoginID string `json:"loginId"`
	MbrNo   any    `json:"mbrNo"`
	IDNo    string `json:"idNo"`
}

func generateKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "RSA2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "RSA4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "EC256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EC521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	}
	return nil, errors.New("unknown key type")
}

// newSerial has a high octet of zero now and then, which is where
// implementations that strip zeros differ.
func newSerial() (*big.Int, error) {
	b := make([]byte, 21)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] &= 0x7f
	if b[20]%8 == 0 {
		b[0] = 0
	}
	n := new(big.Int).SetBytes(b[:20])
	if n.Sign() == 0 {
		n.SetInt64(1)
	}
	return n, nil
}

// serial writes a serial number as the service does: 20 octets in hex, joined
// by colons.
func (s *Simulator) serial(n *big.Int) string {
	b := n.Bytes()
	if !s.behaviour.SerialStripped {
		b = n.FillBytes(make([]byte, 20))
	}
	pairs := make([]string, len(b))
	for i, x := range b {
		pairs[i] = hex.EncodeToString([]byte{x})
	}
	text := strings.Join(pairs, ":")
	if s.behaviour.SerialUpper {
		text = strings.ToUpper(text)
	}
	return text
}

// parseSerial reads colon form only: the service knows no other.
func parseSerial(text string) (*big.Int, bool) {
	n := new(big.Int)
	for pair := range strings.SplitSeq(text, ":") {
		b, err := hex.DecodeString(pair)
		if err != nil || len(b) != 1 {
			return nil, false
		}
		n.Lsh(n, 8).Or(n, big.NewInt(int64(b[0])))
	}
	return n, n.BitLen() <= 160
}

func certPEM(c *x509.Certificate) string { return pemText("CERTIFICATE", c.Raw) }

// pemText has no newline after its last line, as in the service's answers.
func pemText(kind string, der []byte) string {
	return strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}

// newAuthority makes a CA of Private CA. The caller holds mu or is New.
func (s *Simulator) newAuthority(alias, kind, keyType string, subject name, parent *authority, days int) (*authority, error) {
	ca, err := s.makeAuthority(alias, kind, keyType, subject, parent, days)
	if err != nil {
		return nil, err
	}
	s.cas[ca.tag] = ca
	s.caOrder = append(s.caOrder, ca.tag)
	return ca, nil
}

// makeAuthority makes a CA below parent; without one, a root is signed by itself
// and a subordinate stays PENDING. The caller holds mu or is New.
func (s *Simulator) makeAuthority(alias, kind, keyType string, subject name, parent *authority, days int) (*authority, error) {
	key, err := generateKey(keyType)
	if err != nil {
		return nil, err
	}
	s.nextID++
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %d", s.nextID, alias, s.now().UnixNano()))
	h := hex.EncodeToString(sum[:])
	ca := &authority{id: s.nextID, tag: h[:8] + "-" + h[8:16], alias: alias, kind: kind, status: statusPending,
		parent: parent, key: key, subject: subject.pkix(), registered: s.now(), statusSet: s.now()}
	if kind == "PRIVATE_ROOT" || parent != nil {
		signer, signerCert := key, (*x509.Certificate)(nil)
		if parent != nil {
			signer, signerCert = parent.key, parent.cert
			ca.chain = append([]*x509.Certificate{parent.cert}, parent.chain...)
		}
		if ca.cert, err = s.signCA(ca.subject, key.Public(), signer, signerCert, days); err != nil {
			return nil, err
		}
		ca.status = statusActive
	}
	return ca, nil
}

func keyIdentifier(pub any) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:20], nil
}

// signCA makes a CA certificate; issuer nil means self-signed.
func (s *Simulator) signCA(subject pkix.Name, pub any, signer crypto.Signer, issuer *x509.Certificate, days int) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	ski, err := keyIdentifier(pub)
	if err != nil {
		return nil, err
	}
	now := s.now()
	t := &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-30 * time.Second), NotAfter: now.Add(time.Duration(days) * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: ski}
	if issuer == nil {
		issuer = t
	} else {
		if t.NotAfter.After(issuer.NotAfter) {
			t.NotAfter = issuer.NotAfter
		}
		t.AuthorityKeyId = issuer.SubjectKeyId
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, pub, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// leafTemplate is what an end-entity certificate shall hold.
type leafTemplate struct {
	commonName string
	subject    pkix.Name
	dnsNames   []string
	ips        []net.IP
	emails     []string
	uris       []*url.URL
	key        any
	days       int // 0: as long as the CA
}

// issue makes an end-entity certificate and counts it. The caller holds mu.
func (ca *authority) issue(s *Simulator, l leafTemplate, f *Fault) (*issuedCert, error) {
	cert, err := ca.makeLeaf(s, l, f)
	if err != nil {
		return nil, err
	}
	c := &issuedCert{cert: cert}
	ca.issued = append(ca.issued, c)
	ca.signingCount++
	s.issued++
	s.byKey[KeyID(cert.RawSubjectPublicKeyInfo)]++
	if f != nil && (f.Kind == LateCount || f.Kind == LateList) {
		h := hidden{serial: cert.SerialNumber, reads: f.Reads, until: s.now().Add(f.delay())}
		if f.Kind == LateCount {
			ca.hiddenCounts = append(ca.hiddenCounts, h)
		} else {
			ca.hiddenIDs = append(ca.hiddenIDs, h)
		}
	}
	return c, nil
}

// makeLeaf makes an end-entity certificate, with what the fault does to it.
func (ca *authority) makeLeaf(s *Simulator, l leafTemplate, f *Fault) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := s.now()
	notAfter := ca.cert.NotAfter
	if l.days > 0 {
		notAfter = now.Add(time.Duration(l.days) * 24 * time.Hour)
	}
	if f != nil {
		switch f.Kind {
		case WrongKey:
			other, err := generateKey("EC256")
			if err != nil {
				return nil, err
			}
			l.key = other.Public()
		case DropNames:
			if n := len(l.dnsNames); n > 0 {
				l.dnsNames = l.dnsNames[:n-1]
			} else if n := len(l.ips); n > 0 {
				l.ips = l.ips[:n-1]
			}
		case AddName:
			l.dnsNames = append(slices.Clone(l.dnsNames), "intruder.example")
		case ShortLifetime:
			notAfter = now.Add(notAfter.Sub(now) / 2)
		}
	}
	ski, err := keyIdentifier(l.key)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{SerialNumber: serial, Subject: l.subject, NotBefore: now.Add(-30 * time.Second), NotAfter: notAfter,
		DNSNames: l.dnsNames, IPAddresses: l.ips, EmailAddresses: l.emails, URIs: l.uris,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, SubjectKeyId: ski, AuthorityKeyId: ca.cert.SubjectKeyId,
		CRLDistributionPoints: []string{ca.ext("crl")}, IssuingCertificateURL: []string{ca.ext("ca")}}
	if t.Subject.CommonName == "" {
		t.Subject.CommonName = l.commonName
	}
	if _, ok := l.key.(*rsa.PublicKey); ok {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	if ca.ocsp != "" {
		t.OCSPServer = []string{ca.ocsp}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, l.key, ca.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// stillHidden counts one read against what is hidden and returns what stays so.
func stillHidden(list []hidden, now time.Time) []hidden {
	keep := list[:0]
	for _, h := range list {
		if h.reads <= 0 && !now.Before(h.until) {
			continue
		}
		h.reads--
		keep = append(keep, h)
	}
	return keep
}

// ext is the address of what relying parties fetch.
func (ca *authority) ext(what string) string {
	if ca.kind == publicKind {
		return "http://pki.public-ca.example/" + what
	}
	return "https://pca.apigw.ntruss.com/ext/" + ca.tag + "/" + what
}

func (ca *authority) find(serial *big.Int) *issuedCert {
	for _, c := range ca.issued {
		if c.cert.SerialNumber.Cmp(serial) == 0 {
			return c
		}
	}
	return nil
}

// issuers are the certificates of a chain in the order and with the members
// that the behaviour wants; self is left out unless withSelf.
func (s *Simulator) issuers(ca *authority, withSelf bool) []*x509.Certificate {
	var list []*x509.Certificate
	if withSelf || len(ca.chain) == 0 {
		list = append(list, ca.cert)
	}
	list = append(list, ca.chain...)
	if !s.behaviour.ChainWithRoot {
		list = slices.DeleteFunc(list, func(c *x509.Certificate) bool {
			return len(list) > 1 && bytes.Equal(c.RawIssuer, c.RawSubject)
		})
	}
	if s.behaviour.ChainOrder == "root-first" {
		slices.Reverse(list)
	}
	return list
}

// makeCRL makes a new CRL of what is revoked now.
func (ca *authority) makeCRL(now time.Time) error {
	days := ca.crlDays
	if days == 0 {
		days = 3
	}
	ca.crlNumber++
	t := &x509.RevocationList{Number: big.NewInt(ca.crlNumber), ThisUpdate: now, NextUpdate: now.Add(time.Duration(days) * 24 * time.Hour)}
	for _, c := range ca.issued {
		if !c.revoked.IsZero() {
			t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.cert.SerialNumber, RevocationTime: c.revoked})
		}
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, ca.cert, ca.key)
	ca.crl = der
	return err
}
