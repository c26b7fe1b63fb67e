package validation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	bridge "github.com/acme-bridge/acme-bridge/acme"
)

func digestOf(s string) []byte {
	d := sha256.Sum256([]byte(s))
	return d[:]
}

func octetString(t testing.TB, b []byte) []byte {
	t.Helper()
	der, err := asn1.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func rightExtension(t testing.TB) pkix.Extension {
	return pkix.Extension{Id: oidACMEIdentifier, Critical: true, Value: octetString(t, digestOf(keyAuth))}
}

// challengeCertificate makes the certificate of a good responder, for
// demo.localhost, with what change does to it.
func challengeCertificate(t testing.TB, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"demo.localhost"}, ExtraExtensions: []pkix.Extension{rightExtension(t)},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serveTLS runs a responder; cfg needs no protocols for the usual one.
func serveTLS(t testing.TB, cfg *tls.Config) int {
	t.Helper()
	return serveRaw(t, func(c net.Conn) {
		conn := tls.Server(c, cfg)
		if conn.Handshake() == nil {
			io.Copy(io.Discard, conn)
		}
	})
}

func TestRFC8737_AGoodResponderIsBelieved(t *testing.T) {
	hello := make(chan *tls.ClientHelloInfo, 1)
	cert := challengeCertificate(t, nil)
	port := serveTLS(t, &tls.Config{NextProtos: []string{"h2", "acme-tls/1"}, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		hello <- h
		return cert, nil
	}})
	v := newTestValidator(t, Config{TLSPort: port})
	wantProblem(t, v.Validate(t.Context(), validationFor(bridge.TLSALPN01, "demo.localhost")), "", "")
	h := <-hello
	if h.ServerName != "demo.localhost" {
		t.Errorf("SNI %q", h.ServerName)
	}
	if len(h.SupportedProtos) != 1 || h.SupportedProtos[0] != "acme-tls/1" {
		t.Errorf("ALPN offer %q, want exactly acme-tls/1", h.SupportedProtos)
	}
	for _, version := range h.SupportedVersions {
		if version < tls.VersionTLS12 {
			t.Errorf("version %x is offered", version)
		}
	}
}

// A certificate as a widely used client library makes it.
func TestRFC8737_ALibrarysCertificateIsBelieved(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	client := &acme.Client{Key: key}
	cert, err := client.TLSALPN01ChallengeCert(token, "demo.localhost")
	if err != nil {
		t.Fatal(err)
	}
	thumbprint, err := acme.JWKThumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	v := newTestValidator(t, Config{TLSPort: serveTLS(t, &tls.Config{NextProtos: []string{acme.ALPNProto}, Certificates: []tls.Certificate{cert}})})
	c := validationFor(bridge.TLSALPN01, "demo.localhost")
	c.KeyAuthorization = token + "." + thumbprint
	wantProblem(t, v.Validate(t.Context(), c), "", "")
}

func TestLesson18_TheCertificateMustBeToTheLetter(t *testing.T) {
	san := func(names ...asn1.RawValue) pkix.Extension {
		der, err := asn1.Marshal(names)
		if err != nil {
			t.Fatal(err)
		}
		return pkix.Extension{Id: oidSubjectAltName, Value: der}
	}
	name := func(tag int, value string) asn1.RawValue {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(value)}
	}
	extension := func(e pkix.Extension) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{e} }
	}
	value := func(v []byte) func(*x509.Certificate) {
		return extension(pkix.Extension{Id: oidACMEIdentifier, Critical: true, Value: v})
	}
	names := func(e pkix.Extension) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames, c.ExtraExtensions = nil, append(c.ExtraExtensions, e) }
	}
	for _, tt := range []struct {
		name   string
		change func(*x509.Certificate)
		want   bridge.ProblemType
		detail string
	}{
		{"as it should be", nil, "", ""},
		{"another case of letters", func(c *x509.Certificate) { c.DNSNames = []string{"DEMO.LocalHost"} }, "", ""},
		{"expired, and for another purpose", func(c *x509.Certificate) {
			c.NotAfter, c.ExtKeyUsage = time.Now().Add(-time.Minute), []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		}, "", ""},
		{"unknown critical extensions beside it", func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
		}, "", ""},

		{"another name", func(c *x509.Certificate) { c.DNSNames = []string{"evil.localhost"} }, bridge.Unauthorized, "not the identifier"},
		{"two names", func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "evil.localhost") }, bridge.Unauthorized, "exactly one dNSName"},
		{"the same name twice", func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "demo.localhost") }, bridge.Unauthorized, "exactly one dNSName"},
		{"a wildcard", func(c *x509.Certificate) { c.DNSNames = []string{"*.localhost"} }, bridge.Unauthorized, "not the identifier"},
		{"an IP address besides", func(c *x509.Certificate) { c.IPAddresses = []net.IP{{127, 0, 0, 1}} }, bridge.Unauthorized, "exactly one dNSName"},
		{"a URI besides", func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "https", Host: "x"}} }, bridge.Unauthorized, "exactly one dNSName"},
		{"an e-mail address besides", func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b"} }, bridge.Unauthorized, "exactly one dNSName"},
		{"a registered ID besides", names(san(name(2, "demo.localhost"), name(8, "\x2a\x03"))), bridge.Unauthorized, "exactly one dNSName"},
		{"an e-mail address instead", names(san(name(1, "demo.localhost"))), bridge.Unauthorized, "exactly one dNSName"},
		{"no SAN, common name only", func(c *x509.Certificate) { c.DNSNames, c.Subject.CommonName = nil, "demo.localhost" }, bridge.Unauthorized, "subjectAltName is missing"},
		{"a NUL in the name", names(san(name(2, "demo.localhost\x00.evil.example"))), bridge.Unauthorized, "not the identifier"},
		{"a trailing dot", names(san(name(2, "demo.localhost."))), "", "*"},

		{"no acmeIdentifier", func(c *x509.Certificate) { c.ExtraExtensions = nil }, bridge.Unauthorized, "acmeIdentifier is missing"},
		{"not critical", extension(pkix.Extension{Id: oidACMEIdentifier, Value: octetString(t, digestOf(keyAuth))}), bridge.Unauthorized, "not critical"},
		{"OID of a draft", extension(pkix.Extension{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 30, 1}, Critical: true, Value: octetString(t, digestOf(keyAuth))}), bridge.Unauthorized, "acmeIdentifier is missing"},
		{"the value in another extension", extension(pkix.Extension{Id: []int{1, 2, 3, 4}, Critical: true, Value: octetString(t, digestOf(keyAuth))}), bridge.Unauthorized, "acmeIdentifier is missing"},
		{"digest of the token", value(octetString(t, digestOf(token))), bridge.Unauthorized, "not the digest"},
		{"no OCTET STRING", value(digestOf(keyAuth)), bridge.Unauthorized, "32 octets"},
		{"31 octets", value(octetString(t, digestOf(keyAuth)[:31])), bridge.Unauthorized, "32 octets"},
		{"33 octets", value(octetString(t, append(digestOf(keyAuth), 0))), bridge.Unauthorized, "32 octets"},
		{"octets after it", value(append(octetString(t, digestOf(keyAuth)), 5, 0)), bridge.Unauthorized, "32 octets"},
		{"a BIT STRING", value(append([]byte{3, 32}, digestOf(keyAuth)...)), bridge.Unauthorized, "32 octets"},
		{"a length that is not DER", value(append([]byte{4, 0x81, 32}, digestOf(keyAuth)...)), bridge.Unauthorized, "32 octets"},
		{"empty", value([]byte{}), bridge.Unauthorized, "32 octets"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cert := challengeCertificate(t, tt.change)
			v := newTestValidator(t, Config{TLSPort: serveTLS(t, &tls.Config{NextProtos: []string{"acme-tls/1"}, Certificates: []tls.Certificate{*cert}})})
			err := v.Validate(t.Context(), validationFor(bridge.TLSALPN01, "demo.localhost"))
			if tt.detail == "*" { // refused by whoever looks first
				if p, ok := errors.AsType[*bridge.Problem](err); !ok {
					t.Errorf("got %v, want a problem", p)
				}
				return
			}
			wantProblem(t, err, tt.want, tt.detail)
		})
	}
}

// What crypto/x509 refuses to parse is looked at here without it.
func TestLesson18_ExtensionsThatAParserMightLetPass(t *testing.T) {
	good := rightExtension(t)
	san := pkix.Extension{Id: oidSubjectAltName, Value: append([]byte{0x30, 16, 0x82, 14}, "demo.localhost"...)}
	if err := checkChallengeCertificate(&x509.Certificate{Extensions: []pkix.Extension{san, good}}, "demo.localhost", keyAuth); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	kelvin := "\u212a.example" // folds to k.example
	for _, tt := range []struct {
		name       string
		identifier string
		extensions []pkix.Extension
		want       string
	}{
		{"acmeIdentifier twice", "demo.localhost", []pkix.Extension{san, good, good}, "twice"},
		{"subjectAltName twice", "demo.localhost", []pkix.Extension{san, good, san}, "twice"},
		{"octets after the names", "demo.localhost", []pkix.Extension{{Id: oidSubjectAltName, Value: append(san.Value[:len(san.Value):len(san.Value)], 0)}, good}, "malformed"},
		{"no names", "demo.localhost", []pkix.Extension{{Id: oidSubjectAltName, Value: []byte{0x30, 0}}, good}, "exactly one"},
		{"letters that fold into ASCII", "k.example", []pkix.Extension{{Id: oidSubjectAltName, Value: append([]byte{0x30, byte(len(kelvin) + 2), 0x82, byte(len(kelvin))}, kelvin...)}, good}, "malformed"},
	} {
		err := checkChallengeCertificate(&x509.Certificate{Extensions: tt.extensions}, tt.identifier, keyAuth)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestLesson18_TheHandshakeMustBeToTheLetter(t *testing.T) {
	cert := *challengeCertificate(t, nil)
	for _, tt := range []struct {
		name   string
		cfg    *tls.Config
		want   bridge.ProblemType
		detail string
	}{
		{"TLS 1.2", &tls.Config{NextProtos: []string{"acme-tls/1"}, MaxVersion: tls.VersionTLS12}, "", ""},
		{"TLS 1.1", &tls.Config{NextProtos: []string{"acme-tls/1"}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, bridge.TLS, "protocol version not supported"},
		{"no ALPN", &tls.Config{}, bridge.Unauthorized, "did not select the ALPN protocol acme-tls/1"},
		{"ALPN of the web only", &tls.Config{NextProtos: []string{"h2", "http/1.1"}}, bridge.TLS, "no application protocol"},
		{"ALPN of another version", &tls.Config{NextProtos: []string{"acme-tls/2"}}, bridge.TLS, "no application protocol"},
	} {
		tt.cfg.Certificates = []tls.Certificate{cert}
		v := newTestValidator(t, Config{TLSPort: serveTLS(t, tt.cfg)})
		err := v.Validate(t.Context(), validationFor(bridge.TLSALPN01, "demo.localhost"))
		wantProblem(t, err, tt.want, tt.detail)
	}
	for name, answer := range map[string]func(net.Conn){
		"plain HTTP":     func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 CANARY\r\n\r\n") },
		"another server": func(c net.Conn) { io.WriteString(c, "220 CANARY ESMTP and more\r\n"); io.Copy(io.Discard, c) },
	} {
		v := newTestValidator(t, Config{TLSPort: serveRaw(t, answer)})
		err := v.Validate(t.Context(), validationFor(bridge.TLSALPN01, "demo.localhost"))
		wantProblem(t, err, bridge.TLS, "TLS handshake with demo.localhost")
		if p := bridge.AsProblem(err); strings.Contains(p.Detail, "CANARY") {
			t.Errorf("%s: %s", name, p.Detail)
		}
	}
	silent := newTestValidator(t, Config{TLSPort: serveRaw(t, func(c net.Conn) { io.Copy(io.Discard, c) }), Timeout: 200 * time.Millisecond})
	wantProblem(t, silent.Validate(t.Context(), validationFor(bridge.TLSALPN01, "demo.localhost")), bridge.Connection, "TLS handshake with demo.localhost")
	refused := newTestValidator(t, Config{TLSPort: 1, AllowNetworks: prefixes("10.0.0.0/8")})
	wantProblem(t, refused.Validate(t.Context(), validationFor(bridge.TLSALPN01, "demo.localhost")), bridge.Connection, "does not connect")
}

func FuzzACMEIdentifier(f *testing.F) {
	f.Add(octetString(f, digestOf(keyAuth)))
	f.Add([]byte{})
	f.Add([]byte{4, 0x81, 32})
	f.Add(append([]byte{0x24, 34}, octetString(f, digestOf(keyAuth))...))
	f.Fuzz(func(t *testing.T, der []byte) {
		digest, err := parseACMEIdentifier(der)
		if err != nil {
			return
		}
		// DER has one encoding of each value, so what was accepted is it.
		if got := octetString(t, digest); len(digest) != sha256.Size || string(got) != string(der) {
			t.Errorf("%x was read as %x", der, digest)
		}
	})
}

func FuzzSingleDNSName(f *testing.F) {
	f.Add(append([]byte{0x30, 16, 0x82, 14}, "demo.localhost"...))
	f.Add([]byte{0x30, 0})
	f.Add([]byte{0x30, 4, 0x82, 0, 0x82, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		name, err := parseSingleDNSName(der)
		if err != nil {
			return
		}
		want, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(name)}})
		if err != nil || string(want) != string(der) {
			t.Errorf("%x was read as %q, which is %x (%v)", der, name, want, err)
		}
	})
}
