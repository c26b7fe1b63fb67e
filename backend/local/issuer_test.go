package local

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

var start = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRequest(t testing.TB, key crypto.Signer, names ...string) *acme.IssueRequest {
	t.Helper()
	// The CSR asks for much that must not be in the certificate.
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:        pkix.Name{CommonName: "evil.example", Organization: []string{"Evil"}},
		DNSNames:       []string{"evil.example"},
		EmailAddresses: []string{"root@evil.example"},
		URIs:           []*url.URL{{Scheme: "spiffe", Host: "evil"}},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA:TRUE
		},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	req := &acme.IssueRequest{OrderID: "o1", AccountID: "a1", CSR: csr, Lifetime: 30 * 24 * time.Hour, Submitted: start}
	for _, n := range names {
		req.Identifiers = append(req.Identifiers, acme.Identifier{Type: acme.TypeDNS, Value: n})
	}
	return req
}

func newIssuer(t testing.TB, cfg Config) *Issuer {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = t.TempDir()
	}
	if cfg.Now == nil {
		cfg.Now = func() time.Time { return start }
	}
	i, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestACertificateIsBuiltFromTheRequestAlone(t *testing.T) {
	i := newIssuer(t, Config{})
	req := newRequest(t, newKey(t), "a.example", "*.b.example")
	got, err := i.Submit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := i.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := acme.CheckIssued(req, got, roots, start); err != nil {
		t.Errorf("CheckIssued: %v", err)
	}
	leaf := got.Leaf
	if got, want := leaf.Subject.String(), "CN=a.example"; got != want {
		t.Errorf("subject %s, want %s", got, want)
	}
	if len(leaf.EmailAddresses)+len(leaf.URIs)+len(leaf.IPAddresses) > 0 || leaf.IsCA {
		t.Errorf("taken from the CSR: %v %v %v CA:%v", leaf.EmailAddresses, leaf.URIs, leaf.IPAddresses, leaf.IsCA)
	}
	if got, want := leaf.KeyUsage, x509.KeyUsageDigitalSignature; got != want {
		t.Errorf("key usage %v, want %v", got, want)
	}
	if got := leaf.ExtKeyUsage; len(got) != 2 || got[0] != x509.ExtKeyUsageServerAuth || got[1] != x509.ExtKeyUsageClientAuth {
		t.Errorf("extended key usage %v", got)
	}
	if got, want := leaf.NotBefore, start.Add(-time.Minute); !got.Equal(want) {
		t.Errorf("notBefore %v, want %v", got, want)
	}
	if got, want := leaf.NotAfter, start.Add(req.Lifetime); !got.Equal(want) {
		t.Errorf("notAfter %v, want %v", got, want)
	}
	if !bytes.Equal(leaf.AuthorityKeyId, i.intermediate.SubjectKeyId) || len(leaf.AuthorityKeyId) == 0 || len(leaf.SubjectKeyId) == 0 {
		t.Errorf("key identifiers: authority %x, subject %x, issuer's %x", leaf.AuthorityKeyId, leaf.SubjectKeyId, i.intermediate.SubjectKeyId)
	}
	if len(got.Chain) != 1 || !got.Chain[0].Equal(i.intermediate) {
		t.Errorf("chain of %d certificates, want the intermediate", len(got.Chain))
	}
}

func TestValidityAskedForIsGivenExactly(t *testing.T) {
	i := newIssuer(t, Config{})
	req := newRequest(t, newKey(t), "a.example")
	req.NotBefore, req.NotAfter = start.Add(-3*time.Hour), start.Add(77*time.Hour)
	got, err := i.Submit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Leaf.NotBefore.Equal(req.NotBefore) || !got.Leaf.NotAfter.Equal(req.NotAfter) {
		t.Errorf("validity %v to %v, want %v to %v", got.Leaf.NotBefore, got.Leaf.NotAfter, req.NotBefore, req.NotAfter)
	}
}

func TestCommonNameIsTheFirstNameThatFits(t *testing.T) {
	long := strings.Repeat("a", 60) + ".example" // 68
	i := newIssuer(t, Config{})
	for _, tt := range []struct {
		names []string
		want  string
	}{
		{[]string{long, "b.example"}, "b.example"},
		{[]string{long}, ""},
	} {
		got, err := i.Submit(t.Context(), newRequest(t, newKey(t), tt.names...))
		if err != nil {
			t.Fatal(err)
		}
		if got := got.Leaf.Subject.CommonName; got != tt.want {
			t.Errorf("%v: common name %q, want %q", tt.names, got, tt.want)
		}
		for _, e := range got.Leaf.Extensions { // RFC 5280, Section 4.2.1.6
			if e.Id.Equal([]int{2, 5, 29, 17}) && e.Critical != (tt.want == "") {
				t.Errorf("%v: SAN critical is %v", tt.names, e.Critical)
			}
		}
	}
}

func TestSerialNumbersAre128BitsOfTheInjectedSource(t *testing.T) {
	want := bytes.Repeat([]byte{0xab}, 16)
	i := newIssuer(t, Config{})
	i.cfg.Rand = bytes.NewReader(want)
	req := newRequest(t, newKey(t), "a.example")
	got, err := i.Submit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if got := got.Leaf.SerialNumber.Bytes(); !bytes.Equal(got, want) {
		t.Errorf("serial %x, want %x", got, want)
	}
	_, err = i.Submit(t.Context(), req) // the source is used up
	if _, ok := errors.AsType[*acme.NotSentError](err); !ok {
		t.Errorf("without randomness: %v, want a NotSentError", err)
	}
}

func TestRSAKeysMayEncipherKeys(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	got, err := newIssuer(t, Config{}).Submit(t.Context(), newRequest(t, key, "a.example"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Leaf.KeyUsage&x509.KeyUsageKeyEncipherment == 0 {
		t.Error("no keyEncipherment")
	}
}

func TestWhatCannotBeIssuedIsAProblem(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*acme.IssueRequest)
		want   acme.ProblemType
		cause  string
	}{
		{"notAfter beyond the intermediate", func(r *acme.IssueRequest) { r.NotAfter = start.AddDate(5, 0, 1) }, acme.Malformed, "shorten"},
		{"a lifetime beyond the intermediate", func(r *acme.IssueRequest) { r.Lifetime = 6 * 365 * 24 * time.Hour }, acme.ServerInternal, "intermediate.crt"},
		{"end before begin", func(r *acme.IssueRequest) { r.NotBefore, r.NotAfter = start.Add(2*time.Hour), start.Add(time.Hour) }, acme.Malformed, ""},
		{"ended already", func(r *acme.IssueRequest) {
			r.NotBefore, r.NotAfter = start.Add(-2*time.Hour), start.Add(-time.Hour)
		}, acme.Malformed, ""},
		{"no names", func(r *acme.IssueRequest) { r.Identifiers = nil }, acme.Malformed, ""},
		{"another identifier type", func(r *acme.IssueRequest) { r.Identifiers[0].Type = "ip" }, acme.UnsupportedIdentifier, ""},
		{"a key of unknown type", func(r *acme.IssueRequest) { csr := *r.CSR; csr.PublicKey = nil; r.CSR = &csr }, acme.BadCSR, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := newRequest(t, newKey(t), "a.example")
			tt.change(req)
			_, err := newIssuer(t, Config{}).Submit(t.Context(), req)
			p, ok := errors.AsType[*acme.Problem](err)
			if !ok {
				t.Fatalf("%v, want a problem", err)
			}
			if p.Type != tt.want {
				t.Errorf("%v, want %s", p, tt.want)
			}
			if tt.cause != "" && (p.Cause == nil || !strings.Contains(p.Cause.Error(), tt.cause)) {
				t.Errorf("cause %v, want it to advise %q", p.Cause, tt.cause)
			}
		})
	}
}

func TestALostAnswerIsProvenNotIssued(t *testing.T) {
	i := newIssuer(t, Config{})
	req := newRequest(t, newKey(t), "a.example")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := i.Submit(ctx, req)
	if _, ok := errors.AsType[*acme.NotSentError](err); !ok {
		t.Errorf("Submit with an ended context: %v, want a NotSentError", err)
	}
	if _, err := i.Find(t.Context(), req); !errors.Is(err, acme.ErrNotIssued) {
		t.Errorf("Find: %v, want %v", err, acme.ErrNotIssued)
	}
	got, err := i.Submit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := i.Revoke(t.Context(), got.Leaf, 1); err != nil {
			t.Errorf("Revoke: %v", err)
		}
	}
	if i.Mark(t.Context()) != "" || i.Timeout() <= 0 {
		t.Errorf("mark %q, timeout %v", i.Mark(t.Context()), i.Timeout())
	}
}

func TestHealthWarnsBeforeTheEnd(t *testing.T) {
	now := start
	i := newIssuer(t, Config{Now: func() time.Time { return now }})
	if h := i.Health(); h.Err != nil || !h.RootExpires.Equal(start.AddDate(10, 0, 0)) || !h.IntermediateExpires.Equal(start.AddDate(5, 0, 0)) {
		t.Errorf("fresh: %+v", h)
	}
	now = start.AddDate(5, 0, -29)
	if h := i.Health(); h.Err == nil || !strings.Contains(h.Err.Error(), "intermediate.crt ends at") || strings.Contains(h.Err.Error(), "root.crt ends at") {
		t.Errorf("29 days before the intermediate's end: %v", h.Err)
	}
	now = start.AddDate(10, 0, 1)
	if h := i.Health(); h.Err == nil || !strings.Contains(h.Err.Error(), "root.crt ends at") {
		t.Errorf("after the root's end: %v", h.Err)
	}
}

func BenchmarkSubmit(b *testing.B) {
	i := newIssuer(b, Config{})
	req := newRequest(b, newKey(b), "a.example")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := i.Submit(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}
