package server_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"

	"github.com/acme-bridge/acme-bridge/acme"
)

// parseChain reads PEM as the strictest client would: CERTIFICATE blocks of 64
// columns with line feeds, and nothing before, between or after them.
func parseChain(t testing.TB, text []byte) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	var again bytes.Buffer
	for rest := text; len(rest) > 0; {
		block, next := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) > 0 {
			t.Fatalf("not only CERTIFICATE blocks: %q", rest)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := pem.Encode(&again, block); err != nil {
			t.Fatal(err)
		}
		chain, rest = append(chain, cert), next
	}
	if !bytes.Equal(again.Bytes(), text) {
		t.Errorf("the PEM is not as encoders write it: %q", text)
	}
	return chain
}

func parseLeaf(t testing.TB, text []byte) *x509.Certificate {
	t.Helper()
	chain := parseChain(t, text)
	if len(chain) == 0 {
		t.Fatal("no certificate")
	}
	return chain[0]
}

func TestSection7_4_2_CertificateIsAStrictChainLeafFirstWithoutTheRoot(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	key := newECKey(t)
	o, leaf := c.certificate(key, "a.example", "b.example")
	if !strings.HasPrefix(o.Certificate, external+"/") {
		t.Errorf("certificate URL %q", o.Certificate)
	}
	first := c.read(o.Certificate).want(http.StatusOK)
	if got := first.header.Get("Content-Type"); got != "application/pem-certificate-chain" {
		t.Errorf("Content-Type %q", got)
	}
	if got := first.header.Get("Link"); got != indexLink {
		t.Errorf("Link %q", got)
	}
	if first.header.Get("Replay-Nonce") == "" {
		t.Error("no Replay-Nonce")
	}
	chain := parseChain(t, first.body)
	if len(chain) != 2 || !bytes.Equal(chain[1].Raw, w.ca.intermediate.Raw) {
		t.Fatalf("%d certificates, want the leaf and the intermediate", len(chain))
	}
	if err := leaf.CheckSignatureFrom(chain[1]); err != nil {
		t.Errorf("the second certificate does not certify the first: %v", err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("the leaf has another key than the CSR")
	}
	again := c.read(o.Certificate, func(m *message) { m.extra = http.Header{"Accept": {"application/x-unheard-of"}} }).want(http.StatusOK)
	if !bytes.Equal(again.body, first.body) {
		t.Error("a second download differs")
	}
	c.post(o.Certificate, "{}").wantProblem(http.StatusBadRequest, acme.Malformed)
}

// TestLesson9_CertificateIsItsOwnOrders: bound by order and key, not to the
// newest order of the name.
func TestLesson9_EachOrderKeepsItsOwnCertificate(t *testing.T) {
	c := newWorld(t).newAccountClient()
	keyA, keyB := newECKey(t), newECKey(t)
	orderA, leafA := c.certificate(keyA, "a.example")
	_, leafB := c.certificate(keyB, "a.example")
	if bytes.Equal(leafA.Raw, leafB.Raw) {
		t.Fatal("two orders share a certificate")
	}
	if again := parseLeaf(t, c.read(orderA.Certificate).body); !keyA.PublicKey.Equal(again.PublicKey) {
		t.Error("the first order's URL gives another certificate now")
	}
}

func TestCertificateOfAnOrderWithoutOneIs404(t *testing.T) {
	c := newWorld(t).newAccountClient()
	o := c.readyOrder("a.example")
	if o.Certificate != "" {
		t.Errorf("a ready order shows the certificate %q", o.Certificate)
	}
	c.read(strings.Replace(o.URL, "/order/", "/certificate/", 1)).wantProblem(http.StatusNotFound, acme.Malformed)
}
