package acme

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

// RFC 9773, Section 4.1, has this example.
func TestRFC9773_CertificateID(t *testing.T) {
	aki, err := hex.DecodeString("69885B6B87464041E1B37B847BA0AE2CDE01C8D4")
	if err != nil {
		t.Fatal(err)
	}
	const want = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
	if got := CertificateID(&x509.Certificate{AuthorityKeyId: aki, SerialNumber: big.NewInt(0x87654321)}); got != want {
		t.Errorf("CertificateID = %q, want %q", got, want)
	}
	for serial, want := range map[int64]string{0: "AA", 1: "AQ", 0x7f: "fw", 0x80: "AIA", 0x100: "AQA"} {
		if got := CertificateIDOf([]byte{1}, big.NewInt(serial)); got != "AQ."+want {
			t.Errorf("serial %d: %q, want %q", serial, got, "AQ."+want)
		}
	}
}

func TestCertificateIDWithoutAuthorityKey(t *testing.T) {
	one := &x509.Certificate{RawIssuer: []byte("one issuer"), SerialNumber: big.NewInt(1)}
	other := &x509.Certificate{RawIssuer: []byte("other issuer"), SerialNumber: big.NewInt(1)}
	if a, b := CertificateID(one), CertificateID(other); a == b {
		t.Errorf("two issuers share the ID %q", a)
	}
	if key, _, ok := strings.Cut(CertificateID(one), "."); !ok || len(key) != 27 {
		t.Errorf("CertificateID = %q, want a key part of 20 octets", CertificateID(one))
	}
}

// A testCA signs whatever it is told to: root, intermediate, leaf.
type testCA struct {
	root, intermediate *x509.Certificate
	key                crypto.Signer // of the intermediate
	roots              *x509.CertPool
}

func newTestCA(t *testing.T, name string) *testCA {
	t.Helper()
	authority := func(cn string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, NotBefore: start.Add(-24 * time.Hour),
			NotAfter: start.Add(10 * 365 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	rootKey, key := testKey(t), testKey(t)
	ca := &testCA{key: key, roots: x509.NewCertPool()}
	ca.root = sign(t, authority(name+" root"), nil, rootKey.Public(), rootKey)
	ca.intermediate = sign(t, authority(name+" intermediate"), ca.root, key.Public(), rootKey)
	ca.roots.AddCert(ca.root)
	return ca
}

func sign(t *testing.T, template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	if parent == nil {
		parent = template
	}
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

// An issueCase is a request and what a CA makes of it; alter changes either.
type issueCase struct {
	ca    *testCA
	key   *ecdsa.PrivateKey
	pub   crypto.PublicKey
	req   *IssueRequest
	leaf  *x509.Certificate // template
	chain []*x509.Certificate
	roots *x509.CertPool
	now   time.Time
}

const monthLong = 30 * 24 * time.Hour

func newIssueCase(t *testing.T, ca *testCA) *issueCase {
	t.Helper()
	key := testKey(t)
	csr, err := x509.ParseCertificateRequest(certificateRequest(t, key, "a.example", "*.b.example"))
	if err != nil {
		t.Fatal(err)
	}
	return &issueCase{
		ca: ca, key: key, pub: key.Public(), now: start.Add(10 * time.Second), roots: ca.roots,
		req: &IssueRequest{
			OrderID: "order", CSR: csr, Identifiers: dns("a.example", "*.b.example"), Lifetime: monthLong, Submitted: start,
		},
		leaf: &x509.Certificate{
			SerialNumber: big.NewInt(0x7f00), DNSNames: []string{"*.b.example", "a.example"},
			NotBefore: start.Add(-time.Minute), NotAfter: start.Add(monthLong),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			BasicConstraintsValid: true,
		},
		chain: []*x509.Certificate{ca.intermediate},
	}
}

func (c *issueCase) check(t *testing.T) error {
	t.Helper()
	leaf := sign(t, c.leaf, c.ca.intermediate, c.pub, c.ca.key)
	return CheckIssued(c.req, &Issuance{Leaf: leaf, Chain: c.chain}, c.roots, c.now)
}

func TestCheckIssued(t *testing.T) {
	ca, other := newTestCA(t, "our"), newTestCA(t, "other")
	otherKey := testKey(t)
	expiredCA := newTestCA(t, "short")
	for _, tt := range []struct {
		name  string
		alter func(c *issueCase)
		want  string // part of the error
	}{
		{"what was asked for", func(c *issueCase) {}, ""},
		{"a common name of the order", func(c *issueCase) { c.leaf.Subject.CommonName = "A.example" }, ""},
		{"other subject fields", func(c *issueCase) { c.leaf.Subject.Organization = []string{"Corp"} }, ""},
		{"upper case", func(c *issueCase) { c.leaf.DNSNames = []string{"A.Example", "*.B.example"} }, ""},
		{"server and client", func(c *issueCase) {
			c.leaf.ExtKeyUsage = append(c.leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		}, ""},
		{"no extended key usage, which means any", func(c *issueCase) { c.leaf.ExtKeyUsage = nil }, ""},
		{"the root in the chain", func(c *issueCase) { c.chain = append(c.chain, c.ca.root) }, ""},
		{"a day of back-dating", func(c *issueCase) { c.leaf.NotBefore = start.Add(-24 * time.Hour) }, ""},
		{"half an hour more and less", func(c *issueCase) { c.leaf.NotAfter = start.Add(monthLong + 30*time.Minute) }, ""},
		{"half an hour less", func(c *issueCase) { c.leaf.NotAfter = start.Add(monthLong - 30*time.Minute) }, ""},
		{"a clock four minutes ahead", func(c *issueCase) { c.leaf.NotBefore = c.now.Add(4 * time.Minute) }, ""},
		{"a serial number of 20 octets", func(c *issueCase) { c.leaf.SerialNumber = new(big.Int).Lsh(big.NewInt(0x7f), 152) }, ""},
		{"the notAfter asked for", func(c *issueCase) {
			c.req.NotAfter = start.Add(48 * time.Hour)
			c.leaf.NotAfter = c.req.NotAfter
		}, ""},
		{"the notBefore asked for", func(c *issueCase) {
			c.req.NotBefore, c.req.NotAfter = start.Add(48*time.Hour), start.Add(96*time.Hour)
			c.leaf.NotBefore, c.leaf.NotAfter = c.req.NotBefore, c.req.NotAfter
		}, ""},
		{"found a while after the submit", func(c *issueCase) { c.now = start.Add(3 * time.Hour) }, ""},

		{"another key", func(c *issueCase) { c.pub = otherKey.Public() }, "the key is not the CSR's"},

		{"a name dropped", func(c *issueCase) { c.leaf.DNSNames = []string{"a.example"} }, "lacks *.b.example"},
		{"a name added", func(c *issueCase) { c.leaf.DNSNames = append(c.leaf.DNSNames, "c.example") }, "has also c.example"},
		{"the base for the wildcard", func(c *issueCase) { c.leaf.DNSNames = []string{"a.example", "b.example"} }, "lacks *.b.example; it has also b.example"},
		{"no alternative names", func(c *issueCase) { c.leaf.DNSNames = nil; c.leaf.Subject.CommonName = "a.example" }, "lacks a.example, *.b.example"},
		{"an address added", func(c *issueCase) { c.leaf.IPAddresses = []net.IP{{192, 0, 2, 1}} }, "general name of tag 7"},
		{"an e-mail address added", func(c *issueCase) { c.leaf.EmailAddresses = []string{"root@a.example"} }, "general name of tag 1"},
		{"a URI added", func(c *issueCase) {
			c.leaf.URIs = []*url.URL{{Scheme: "https", Host: "a.example"}}
		}, "general name of tag 6"},
		{"a UPN added", func(c *issueCase) {
			upn := generalName(0, must(asn1.Marshal(oidUPN)), tlv(0xa0, tlv(12, []byte("admin@a.example"))))
			c.leaf.DNSNames = nil
			c.leaf.ExtraExtensions = []pkix.Extension{{Id: oidSAN, Value: sequence(dnsName("a.example"), dnsName("*.b.example"), upn)}}
		}, "general name of tag 0"},
		{"a foreign common name", func(c *issueCase) { c.leaf.Subject.CommonName = "c.example" }, "common name"},

		{"a lifetime cut by two hours", func(c *issueCase) { c.leaf.NotAfter = start.Add(monthLong - 2*time.Hour) }, "it ends at"},
		{"a lifetime cut to a day", func(c *issueCase) { c.leaf.NotAfter = start.Add(24 * time.Hour) }, "it ends at"},
		{"two hours too many", func(c *issueCase) { c.leaf.NotAfter = start.Add(monthLong + 2*time.Hour) }, "it ends at"},
		{"a year for a month", func(c *issueCase) { c.leaf.NotAfter = start.Add(12 * monthLong) }, "it ends at"},
		{"the profile's lifetime for a shorter one asked for", func(c *issueCase) { c.req.NotAfter = start.Add(48 * time.Hour) }, "it ends at"},
		{"a third of a short lifetime missing", func(c *issueCase) {
			c.req.Lifetime = time.Hour
			c.leaf.NotAfter = start.Add(40 * time.Minute)
		}, "it ends at"},
		{"not valid yet", func(c *issueCase) { c.leaf.NotBefore = c.now.Add(10 * time.Minute) }, "it begins at"},
		{"later than the notBefore asked for", func(c *issueCase) {
			c.req.NotBefore = start.Add(48 * time.Hour)
			c.leaf.NotBefore = c.req.NotBefore.Add(time.Hour)
		}, "it begins at"},
		{"a year of back-dating", func(c *issueCase) { c.leaf.NotBefore = start.Add(-12 * monthLong) }, "it begins at"},
		{"a stale certificate", func(c *issueCase) {
			c.leaf.NotBefore, c.leaf.NotAfter = start.Add(-monthLong), start.Add(24*time.Hour)
		}, "it ends at"},

		{"a CA certificate", func(c *issueCase) { c.leaf.IsCA = true }, "CA certificate"},
		{"keyCertSign", func(c *issueCase) { c.leaf.KeyUsage |= x509.KeyUsageCertSign; c.leaf.IsCA = true }, "CA certificate"},
		{"cRLSign", func(c *issueCase) { c.leaf.KeyUsage |= x509.KeyUsageCRLSign }, "CA certificate"},
		{"a client certificate", func(c *issueCase) { c.leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "lacks serverAuth"},
		{"a code-signing certificate", func(c *issueCase) { c.leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, "lacks serverAuth"},
		{"an unknown usage alone", func(c *issueCase) {
			c.leaf.ExtKeyUsage, c.leaf.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3, 4}}
		}, "lacks serverAuth"},
		{"serial number 0", func(c *issueCase) { c.leaf.SerialNumber = new(big.Int) }, "serial number"},
		{"a serial number of 21 octets", func(c *issueCase) { c.leaf.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 160) }, "serial number"},

		{"a chain of nothing", func(c *issueCase) { c.chain = nil }, "chain does not verify"},
		{"a chain of another CA", func(c *issueCase) { c.chain = []*x509.Certificate{other.intermediate} }, "chain does not verify"},
		{"another CA's root expected", func(c *issueCase) { c.roots = other.roots }, "chain does not verify"},
		{"no roots", func(c *issueCase) { c.roots = x509.NewCertPool() }, "chain does not verify"},
		{"the root trusted because it came along", func(c *issueCase) {
			c.chain, c.roots = append(c.chain, c.ca.root), other.roots
		}, "chain does not verify"},
		{"a name of the right issuer under a wrong key", func(c *issueCase) { c.ca = other; c.chain = []*x509.Certificate{ca.intermediate} }, "chain does not verify"},
		{"a chain that has expired", func(c *issueCase) {
			c.ca = expiredCA
			c.chain, c.roots = []*x509.Certificate{expiredCA.intermediate}, expiredCA.roots
			c.now = expiredCA.intermediate.NotAfter.Add(time.Hour)
			c.req.Submitted = c.now
			c.leaf.NotBefore, c.leaf.NotAfter = c.now, c.now.Add(monthLong)
		}, "chain does not verify"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newIssueCase(t, ca)
			tt.alter(c)
			err := c.check(t)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && err == nil:
				t.Errorf("believed, want an error about %q", tt.want)
			case tt.want != "" && !strings.Contains(err.Error(), tt.want):
				t.Errorf("got %q, want %q in it", err, tt.want)
			}
		})
	}
}

func TestCheckIssuedSaysAllThatIsWrong(t *testing.T) {
	c := newIssueCase(t, newTestCA(t, "our"))
	c.pub, c.leaf.DNSNames, c.chain = testKey(t).Public(), []string{"c.example"}, nil
	c.leaf.NotAfter = start.Add(24 * time.Hour)
	c.leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	err := c.check(t)
	if err == nil {
		t.Fatal("believed")
	}
	for _, want := range []string{"the key", "names", "ends at", "serverAuth", "chain"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want %q in it", err, want)
		}
	}
}

func TestCheckIssuedOfNothing(t *testing.T) {
	c := newIssueCase(t, newTestCA(t, "our"))
	if err := CheckIssued(c.req, &Issuance{}, c.roots, c.now); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("got %v, want an error that there is none", err)
	}
}
