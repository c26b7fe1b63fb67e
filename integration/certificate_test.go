package integration

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCSR(t *testing.T, key crypto.Signer, names ...string) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// parsePEM reads certificates and fails on anything else.
func parsePEM(t *testing.T, text []byte) []*x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for len(text) > 0 {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" {
			t.Fatalf("not a PEM certificate: %.60q", text)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		certs, text = append(certs, cert), rest
	}
	return certs
}

func parseDER(t *testing.T, chain [][]byte) []*x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for _, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, cert)
	}
	return certs
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func readRoots(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(readFile(t, file)) {
		t.Fatalf("%s holds no certificate", file)
	}
	return pool
}

// readKey reads a private key in any of the forms that clients write.
func readKey(t *testing.T, file string) crypto.Signer {
	t.Helper()
	block, _ := pem.Decode(readFile(t, file))
	if block == nil {
		t.Fatalf("%s holds no PEM", file)
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		t.Fatalf("%s: a key of type %T", file, key)
	}
	return signer
}

// checkChain checks what a client was given: the leaf is for the key and for
// exactly the names, the chain leads to the right root and leaves it out.
func (w *world) checkChain(chain []*x509.Certificate, key crypto.PublicKey, names ...string) {
	w.t.Helper()
	if err := w.chainError(chain, key, names...); err != nil {
		w.t.Error(err)
	}
}

func (w *world) chainError(chain []*x509.Certificate, key crypto.PublicKey, names ...string) error {
	return w.chainErrorFor(30, chain, key, names...)
}

// chainErrorFor is chainError for a profile of so many days.
func (w *world) chainErrorFor(days int, chain []*x509.Certificate, key crypto.PublicKey, names ...string) error {
	if len(chain) < 2 || len(chain) > 5 {
		return fmt.Errorf("the chain has %d certificates", len(chain))
	}
	leaf, intermediates := chain[0], x509.NewCertPool()
	for _, c := range chain[1:] {
		if string(c.RawSubject) == string(c.RawIssuer) {
			return fmt.Errorf("the chain has the root in it")
		}
		intermediates.AddCert(c)
	}
	got, want := slices.Sorted(slices.Values(leaf.DNSNames)), slices.Sorted(slices.Values(names))
	if !slices.Equal(got, want) || len(leaf.IPAddresses)+len(leaf.EmailAddresses)+len(leaf.URIs) > 0 {
		return fmt.Errorf("the certificate is for %v, want %v", got, want)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: readRoots(w.t, w.issuerRoot), Intermediates: intermediates,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return err
	}
	if pub, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key) {
		return fmt.Errorf("the certificate for %v is for another key", names)
	}
	lifetime := time.Duration(days) * 24 * time.Hour
	if left := time.Until(leaf.NotAfter); left < lifetime-time.Hour || left > lifetime+time.Hour {
		return fmt.Errorf("the certificate lasts another %s, want %d days", left, days)
	}
	return nil
}

// checkServed connects to a server as its users do, and checks the chain it
// serves. Its key is proven by the handshake.
func (w *world) checkServed(address, name string, within time.Duration) *x509.Certificate {
	w.t.Helper()
	var chain []*x509.Certificate
	eventually(w.t, within, name+" is served over TLS", func() error {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", address,
			&tls.Config{ServerName: name, RootCAs: readRoots(w.t, w.issuerRoot)})
		if err != nil {
			return err
		}
		chain = conn.ConnectionState().PeerCertificates
		return conn.Close()
	})
	w.checkChain(chain, chain[0].PublicKey, name)
	return chain[0]
}

// certificateID is what RFC 9773, Section 4.1, calls a certificate.
func certificateID(c *x509.Certificate) string {
	serial := c.SerialNumber.Bytes()
	if len(serial) > 0 && serial[0]&0x80 != 0 {
		serial = append([]byte{0}, serial...)
	}
	return base64.RawURLEncoding.EncodeToString(c.AuthorityKeyId) + "." + base64.RawURLEncoding.EncodeToString(serial)
}
