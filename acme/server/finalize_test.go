package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/acme/server"
)

// TestFinalizeHold: a quick CA makes the first answer the last.
func TestFinalizeHold_AFastCAAnswersValidAtOnce(t *testing.T) {
	c := newWorld(t).newAccountClient()
	o := c.readyOrder("a.example")
	a := c.post(o.Finalize, c.csr("a.example")).want(http.StatusOK)
	got := a.order()
	if got.URL != o.URL || got.Status != "valid" || got.Certificate == "" || got.Error != nil || a.header.Get("Retry-After") != "" {
		t.Errorf("finalize answered %s with %+v", got.URL, got)
	}
}

func TestFinalizeHold_ASlowCAAnswersProcessingWithRetryAfter(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(func(p *server.Policy) { p.FinalizeHold = 20 * time.Millisecond })
	c := w.newAccountClient()
	o := c.readyOrder("a.example")
	w.ca.close()
	csr := c.csr("a.example")
	for _, a := range []*answer{c.post(o.Finalize, csr), c.post(o.Finalize, csr), c.read(o.URL)} { // the second by a client that lost the first
		got := a.want(http.StatusOK).order()
		if got.URL != o.URL || got.Status != "processing" || got.Certificate != "" {
			t.Errorf("%s: %s %+v", a.what, got.URL, got)
		}
		if s := a.header.Get("Retry-After"); s < "2" || s > "5" || len(s) != 1 {
			t.Errorf("%s: Retry-After %q, want 2 to 5", a.what, s)
		}
	}
	c.post(o.Finalize, c.csr("a.example")).wantProblem(http.StatusForbidden, acme.OrderNotReady) // another CSR
	c.read(strings.Replace(o.URL, "/order/", "/certificate/", 1)).wantProblem(http.StatusNotFound, acme.Malformed)
	w.ca.open()
	eventually(t, "the order is valid", func() bool { return c.readOrder(o.URL).Status == "valid" })
	if n := w.ca.submits(); n != 1 {
		t.Errorf("the CA was asked %d times", n)
	}
}

func TestFinalizeHold_EndsWhenTheCAAnswers(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.readyOrder("a.example")
	w.ca.close()
	m := c.message(o.Finalize, c.csr("a.example"))
	done := make(chan *answer, 1)
	go func() { done <- c.send(m) }()
	eventually(t, "the CA is asked", func() bool { return w.ca.submits() == 1 })
	w.ca.open()
	if got := (<-done).want(http.StatusOK).order().Status; got != "valid" {
		t.Errorf("held finalize answered %s", got)
	}
}

// TestFinalizeHold_OnAnotherReplica: the one that is asked does not issue itself.
func TestFinalizeHold_SeesWhatAnotherReplicaDoes(t *testing.T) {
	w, _ := newSharedWorld(t)
	c := w.newAccountClient()
	o := c.readyOrder("a.example")
	w.ca.close()
	csr := c.csr("a.example")
	first, second := c.message(o.Finalize, csr), c.message(o.Finalize, csr)
	done := make(chan *answer, 2)
	go func() { done <- c.sendTo(0, first) }()
	eventually(t, "the CA is asked", func() bool { return w.ca.submits() == 1 })
	go func() { done <- c.sendTo(1, second) }()
	w.ca.open()
	for range 2 {
		if got := (<-done).want(http.StatusOK).order().Status; got != "valid" {
			t.Errorf("held finalize answered %s", got)
		}
	}
	if n := w.ca.submits(); n != 1 {
		t.Errorf("the CA was asked %d times", n)
	}
}

func TestSection7_4_OnlyReadyOrdersAreFinalized(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	pending := c.newOrder("a.example")
	c.post(pending.Finalize, c.csr("a.example")).wantProblem(http.StatusForbidden, acme.OrderNotReady)
	half := c.newOrder("a.example", "b.example")
	c.post(c.readAuthz(half.Authorizations[0]).Challenges[0].URL, "{}").want(http.StatusOK)
	c.post(half.Finalize, c.csr("a.example", "b.example")).wantProblem(http.StatusForbidden, acme.OrderNotReady)
	valid, leaf := c.certificate(newECKey(t), "a.example")
	c.post(valid.Finalize, c.csr("a.example")).wantProblem(http.StatusForbidden, acme.OrderNotReady)
	got := parseLeaf(t, c.read(valid.Certificate).body)
	if !got.Equal(leaf) || c.readOrder(valid.URL).Status != "valid" || w.ca.submits() != 1 {
		t.Errorf("a refused finalize changed something: %d submits", w.ca.submits())
	}
}

// TestLesson17_TheSameCSRAgain: a client that lost the answer gets the order.
func TestLesson17_TheSameCSRAgainGetsTheOrderAsItIs(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.readyOrder("a.example")
	csr := c.csr("a.example")
	first := c.post(o.Finalize, csr).want(http.StatusOK)
	for range 3 {
		again := c.post(o.Finalize, csr).want(http.StatusOK)
		if string(again.body) != string(first.body) || again.header.Get("Location") != o.URL {
			t.Errorf("finalize again: %s, want %s", again.body, first.body)
		}
	}
	if n := w.ca.submits(); n != 1 {
		t.Errorf("the CA was asked %d times", n)
	}
}

// TestLesson16_FiftyFinalizesOverTwoReplicas: one CA call.
func TestLesson16_FiftyFinalizesOverTwoReplicasAskTheCAOnce(t *testing.T) {
	for _, sameCSR := range []bool{true, false} {
		t.Run(fmt.Sprintf("same CSR %t", sameCSR), func(t *testing.T) {
			w, _ := newSharedWorld(t)
			c := w.newAccountClient()
			o := c.readyOrder("a.example")
			csr := c.csr("a.example")
			messages := make([]*message, 50)
			for i := range messages {
				if !sameCSR {
					csr = c.csr("a.example")
				}
				messages[i] = c.message(o.Finalize, csr)
			}
			got := statuses(c.together(messages))
			if sameCSR && got[http.StatusOK] != 50 || !sameCSR && (got[http.StatusOK] != 1 || got[http.StatusForbidden] != 49) {
				t.Errorf("statuses %v", got)
			}
			eventually(t, "the order is valid", func() bool { return c.readOrder(o.URL).Status == "valid" })
			if n := w.ca.submits(); n != 1 {
				t.Errorf("the CA was asked %d times", n)
			}
		})
	}
}

// TestLesson16_AnUncheckedCSR: the order becomes ready between the moment a
// finalize reads it and the one it changes it.
func TestLesson16_ACSRIsCheckedEvenIfTheOrderBecomesReadyMeanwhile(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.newOrder("a.example")
	ch := c.readAuthz(o.Authorizations[0]).Challenges[0]
	respond := c.message(ch.URL, "{}")
	ready := false
	w.store.setHook(func(call string) error {
		if call == "UpdateOrder" && !ready {
			ready = true
			c.send(respond).want(http.StatusOK)
			eventually(t, "the order is ready", func() bool {
				id := strings.TrimPrefix(path(o.URL), "/order/")
				got, err := w.store.Order(t.Context(), id)
				return err == nil && got.Status == acme.StatusReady
			})
		}
		return nil
	})
	c.post(o.Finalize, c.csr("evil.example")).wantProblem(http.StatusForbidden, acme.OrderNotReady)
	w.store.setHook(nil)
	if got := c.readOrder(o.URL).Status; got != "ready" || !ready || w.ca.submits() != 0 {
		t.Errorf("order is %s, the CA was asked %d times", got, w.ca.submits())
	}
	if got := c.post(o.Finalize, c.csr("a.example")).want(http.StatusOK).order().Status; got != "valid" {
		t.Errorf("order is %s after a good CSR", got)
	}
}

// TestLesson10_BadCSRsKeepTheOrderReady: nothing is copied that was not ordered.
func TestLesson10_BadCSRsKeepTheOrderReady(t *testing.T) {
	w := newWorld(t)
	c, other := w.newAccountClient(), w.newAccountClient()
	o := c.readyOrder("a.example", "b.example")
	key := newECKey(t)
	names := []string{"a.example", "b.example"}
	with := func(change func(*x509.CertificateRequest)) string {
		template := &x509.CertificateRequest{DNSNames: names}
		change(template)
		return c.csrWith(key, template)
	}
	ext := func(id asn1.ObjectIdentifier, value any) string {
		der, err := asn1.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return with(func(r *x509.CertificateRequest) { r.ExtraExtensions = []pkix.Extension{{Id: id, Value: der}} })
	}
	good := c.csrWith(key, &x509.CertificateRequest{DNSNames: names})
	var der []byte
	if err := decodeCSR(good, &der); err != nil {
		t.Fatal(err)
	}
	broken := append([]byte(nil), der...)
	broken[len(broken)-1] ^= 1
	for name, payload := range map[string]string{
		"no csr":                    `{}`,
		"null":                      `{"csr":null}`,
		"empty":                     `{"csr":""}`,
		"garbage":                   `{"csr":"AAAA"}`,
		"PEM":                       `{"csr":"-----BEGIN CERTIFICATE REQUEST-----"}`,
		"trailing bytes":            fmt.Sprintf(`{"csr":%q}`, b64(append(append([]byte(nil), der...), 0))),
		"a certificate":             fmt.Sprintf(`{"csr":%q}`, b64(w.ca.intermediate.Raw)),
		"a bad signature":           fmt.Sprintf(`{"csr":%q}`, b64(broken)),
		"too large":                 fmt.Sprintf(`{"csr":%q}`, b64(make([]byte, 66<<10))),
		"a name missing":            c.csr("a.example"),
		"a name too many":           c.csr("a.example", "b.example", "c.example"),
		"another name":              c.csr("a.example", "c.example"),
		"no names":                  c.csr(),
		"the wildcard":              c.csr("a.example", "*.b.example"),
		"CN outside the names":      with(func(r *x509.CertificateRequest) { r.Subject = commonName("evil.example") }),
		"an organization":           with(func(r *x509.CertificateRequest) { r.Subject = pkix.Name{Organization: []string{"Evil"}} }),
		"an IP address":             with(func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)} }),
		"an e-mail address":         with(func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@a.example"} }),
		"a URI":                     with(func(r *x509.CertificateRequest) { r.URIs = []*url.URL{{Scheme: "https", Host: "a.example"}} }),
		"a CA":                      ext(asn1.ObjectIdentifier{2, 5, 29, 19}, struct{ CA bool }{true}),
		"code signing":              ext(asn1.ObjectIdentifier{2, 5, 29, 37}, []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 3}}),
		"an empty EKU (lesson 6)":   ext(asn1.ObjectIdentifier{2, 5, 29, 30}, []int{}),
		"must-staple":               ext(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, []int{5}),
		"a key of 1024 bits":        c.csrWith(newRSAKey(t, 1024), &x509.CertificateRequest{DNSNames: names}),
		"the account's key":         c.csrWith(c.key, &x509.CertificateRequest{DNSNames: names}),
		"another account's key":     c.csrWith(other.key, &x509.CertificateRequest{DNSNames: names}),
		"a type not in the profile": c.csrWith(newRSAKey(t, 3072), &x509.CertificateRequest{DNSNames: names}),
	} {
		a := c.post(o.Finalize, payload)
		a.what = "finalize: " + name
		a.wantProblem(http.StatusBadRequest, acme.BadCSR)
	}
	for _, payload := range []string{"", "null", "[]", `{"csr":7}`, `{"csr":"","csr":""}`} {
		c.post(o.Finalize, payload).want(http.StatusBadRequest)
	}
	if got := c.readOrder(o.URL).Status; got != "ready" || w.ca.submits() != 0 {
		t.Fatalf("order is %s after bad CSRs, the CA was asked %d times", got, w.ca.submits())
	}
	// CN only, in other case and order, is fine.
	got := c.post(o.Finalize, c.csrWith(key, &x509.CertificateRequest{Subject: commonName("B.example"), DNSNames: []string{"a.example"}})).want(http.StatusOK).order()
	if got.Status != "valid" {
		t.Errorf("order is %s", got.Status)
	}
}

func TestACARefusalMakesTheOrderInvalidWithItsReason(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.readyOrder("a.example")
	w.ca.answer(acme.Problemf(acme.BadCSR, "the CA does not like the key").WithCause(fmt.Errorf("upstream said 4711")))
	a := c.post(o.Finalize, c.csr("a.example")).want(http.StatusOK)
	got := a.order()
	if got.Status != "invalid" || got.Error == nil || got.Error.Type != "urn:ietf:params:acme:error:badCSR" || strings.Contains(string(a.body), "4711") {
		t.Errorf("order: %s", a.body)
	}
}

// TestLesson9_ACertificateWithAnotherKeyIsNeverHandedOut: what comes back is
// compared with what was asked for.
func TestLesson10_AWrongCertificateIsNeverHandedOut(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.readyOrder("a.example")
	wrong := &wrongIssuer{fakeIssuer{w.ca}}
	p := workerPolicy(w)
	p.Issuers["fake"] = wrong
	w.replicas[0].worker.SetPolicy(p)
	got := c.post(o.Finalize, c.csr("a.example")).want(http.StatusOK).order()
	if got.Status != "invalid" || got.Certificate != "" || got.Error == nil || got.Error.Type != "urn:ietf:params:acme:error:serverInternal" {
		t.Errorf("order: %+v", got)
	}
	c.read(strings.Replace(o.URL, "/order/", "/certificate/", 1)).wantProblem(http.StatusNotFound, acme.Malformed)
}

// A wrongIssuer signs whatever key it likes.
type wrongIssuer struct{ fakeIssuer }

func (i *wrongIssuer) Submit(_ context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: i.now(), NotAfter: i.now().Add(req.Lifetime), DNSNames: []string{"a.example"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.intermediate, key.Public(), i.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &acme.Issuance{Leaf: leaf, Chain: []*x509.Certificate{i.intermediate}}, err
}

func decodeCSR(payload string, der *[]byte) error {
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimSuffix(strings.TrimPrefix(payload, `{"csr":"`), `"}`))
	*der = b
	return err
}

// A staleQueue shows a watcher first what was saved before it came.
type staleQueue struct {
	server.Queue
	stale *acme.Order
}

func (q *staleQueue) Watch(string) (<-chan *acme.Order, func()) {
	c := make(chan *acme.Order, 1)
	c <- q.stale
	return c, func() {}
}

// TestFinalizeNeverAnswersReady: to cert-manager and acmez that is an error.
func TestFinalizeNeverAnswersReady(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.readyOrder("a.example")
	stale, err := w.store.Order(t.Context(), strings.TrimPrefix(path(o.URL), "/order/"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.New(server.Options{
		Store: w.store, Queue: &staleQueue{w.replicas[0].worker, stale}, Revoker: w.ca, ExternalURL: external,
		Now: w.now, Rand: w.rand, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	}, newPolicy())
	if err != nil {
		t.Fatal(err)
	}
	w.replicas = append(w.replicas, &replica{Server: s})
	c.via = 1
	if got := c.post(o.Finalize, c.csr("a.example")).want(http.StatusOK).order().Status; got != "valid" {
		t.Errorf("finalize answered %s", got)
	}
}
