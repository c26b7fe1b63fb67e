package server_test

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"testing"

	"github.com/acme-bridge/acme-bridge/acme"
)

func revocationOf(cert *x509.Certificate) string {
	return fmt.Sprintf(`{"certificate":%q}`, b64(cert.Raw))
}

func TestSection7_6_WhoMayRevoke(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	key := newECKey(t)
	revoked := 0
	for name, by := range map[string]func(*x509.Certificate) *answer{
		"the account that ordered it": func(cert *x509.Certificate) *answer { return c.post("/revoke-cert", revocationOf(cert)) },
		"the certificate's key": func(cert *x509.Certificate) *answer {
			return (&client{world: w, key: key}).post("/revoke-cert", revocationOf(cert))
		},
		"an account with all authorizations": func(cert *x509.Certificate) *answer {
			d := w.newAccountClient()
			d.readyOrder("a.example")
			d.readyOrder("*.b.example")
			return d.post("/revoke-cert", revocationOf(cert))
		},
	} {
		_, cert := c.certificate(key, "a.example", "*.b.example")
		a := by(cert)
		a.what = "revocation by " + name
		if a.want(http.StatusOK); len(a.body) > 0 || a.header.Get("Replay-Nonce") == "" {
			t.Errorf("%s: body %q, headers %v", name, a.body, a.header)
		}
		revoked++
		got := w.ca.revocations()
		if last := got[len(got)-1]; len(got) != revoked || last != (revocation{"fake", cert.SerialNumber.Text(16), -1}) {
			t.Errorf("%s: revocations %v", name, got)
		}
		again := by(cert)
		again.what = "again by " + name
		again.wantProblem(http.StatusBadRequest, acme.AlreadyRevoked)
		if len(w.ca.revocations()) != revoked {
			t.Errorf("%s: the CA was told twice", name)
		}
	}
}

// TestLesson8_WhoMayNotRevoke: strangers, and certificates that only look like ours.
func TestLesson8_WhoMayNotRevoke(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	key := newECKey(t)
	o, cert := c.certificate(key, "a.example", "*.b.example")
	stranger, half, base := w.newAccountClient(), w.newAccountClient(), w.newAccountClient()
	half.readyOrder("a.example")
	base.readyOrder("a.example", "b.example") // the wildcard is another identifier
	given := w.newAccountClient()
	for _, name := range []string{"a.example", "*.b.example"} {
		z := given.readyOrder(name)
		given.post(z.Authorizations[0], `{"status":"deactivated"}`).want(http.StatusOK)
	}
	rolled := w.newAccountClient()
	rolled.readyOrder("a.example", "*.b.example")
	rolled.rollover()
	body := revocationOf(cert)
	for name, by := range map[string]*client{
		"a stranger": stranger, "an account with one of two": half, "an account with the base name": base,
		"one that gave its authorizations up": given, "one whose key changed since": rolled,
		"a stranger's key": {world: w, key: newECKey(t)}, "the account's key as jwk": {world: w, key: c.key},
	} {
		a := by.post("/revoke-cert", body)
		a.what = "revocation by " + name
		a.wantProblem(http.StatusForbidden, acme.Unauthorized)
	}
	// Lesson 7: a forged signature with the certificate's public key, and a kid
	// that is not signed.
	holder := &client{world: w, key: key}
	holder.post("/revoke-cert", body, func(m *message) { m.key = stranger.key }).wantProblem(http.StatusForbidden, acme.Unauthorized)
	holder.post("/revoke-cert", body, func(m *message) { m.key = fixedSignature{signature: make([]byte, 64)} }).wantProblem(http.StatusForbidden, acme.Unauthorized)
	stranger.post("/revoke-cert", body, withMember("header", map[string]any{"kid": c.kid})).wantProblem(http.StatusBadRequest, acme.Malformed)
	c.post("/revoke-cert", body, func(m *message) { m.key = stranger.key }).wantProblem(http.StatusForbidden, acme.Unauthorized)
	if got := w.ca.revocations(); len(got) > 0 {
		t.Fatalf("revoked: %v", got)
	}
	c.read(o.Certificate).want(http.StatusOK)

	// Certificates that are not ours, whoever asks.
	lookAlike := func(change func(*x509.Certificate), parent *x509.Certificate, signer any) *x509.Certificate {
		template := &x509.Certificate{
			SerialNumber: cert.SerialNumber, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, DNSNames: cert.DNSNames,
			AuthorityKeyId: cert.AuthorityKeyId, ExtKeyUsage: cert.ExtKeyUsage, KeyUsage: cert.KeyUsage,
		}
		change(template)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		got, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	evilKey := newECKey(t)
	evil := &x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: w.ca.intermediate.Subject, SubjectKeyId: w.ca.intermediate.SubjectKeyId,
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, IsCA: true, BasicConstraintsValid: true,
	}
	evilCA := sign(t, evil, evil, evilKey.Public(), evilKey)
	for name, fake := range map[string]*x509.Certificate{
		"the same serial and issuer name from another CA": lookAlike(func(*x509.Certificate) {}, evilCA, evilKey),
		"the same serial with other names, signed by us":  lookAlike(func(x *x509.Certificate) { x.DNSNames = []string{"z.example"} }, w.ca.intermediate, w.ca.key),
		"no names, signed by us":                          lookAlike(func(x *x509.Certificate) { x.DNSNames, x.SerialNumber = nil, big.NewInt(77) }, w.ca.intermediate, w.ca.key),
		"the intermediate":                                w.ca.intermediate,
		"the root":                                        w.ca.root,
	} {
		for _, by := range []*client{c, holder, stranger} {
			a := by.post("/revoke-cert", revocationOf(fake))
			a.what = "revocation of " + name
			if a.status != http.StatusNotFound && a.status != http.StatusForbidden {
				t.Errorf("%s: %d %s", a.what, a.status, a.body)
			}
		}
	}
	if got := w.ca.revocations(); len(got) > 0 {
		t.Fatalf("revoked: %v", got)
	}
}

func TestSection7_6_MalformedRevocations(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	_, cert := c.certificate(newECKey(t), "a.example")
	der := b64(cert.Raw)
	for _, payload := range []string{
		"", "{}", `{"certificate":""}`, `{"certificate":7}`, `{"certificate":"AAAA"}`, `{"certificate":null}`,
		fmt.Sprintf(`{"certificate":"%s="}`, der), fmt.Sprintf(`{"certificate":"%s\n"}`, der),
		fmt.Sprintf(`{"certificate":%q}`, b64(append(append([]byte(nil), cert.Raw...), 0))), // trailing byte
		fmt.Sprintf(`{"certificate":%q,"certificate":%q}`, der, der),
	} {
		a := c.post("/revoke-cert", payload)
		a.what = fmt.Sprintf("revocation %.40s", payload)
		a.wantProblem(http.StatusBadRequest, acme.Malformed)
	}
	for _, reason := range []string{"7", "8", "11", "-1", "1.0", "1e0", "01", `"1"`, "true", "{}", "[]", "99999999999999999999"} {
		a := c.post("/revoke-cert", fmt.Sprintf(`{"certificate":%q,"reason":%s}`, der, reason))
		a.what = "reason " + reason
		if reason == "01" {
			a.wantProblem(http.StatusBadRequest, acme.Malformed) // is no JSON
			continue
		}
		a.wantProblem(http.StatusBadRequest, acme.BadRevocationReason)
	}
	if got := w.ca.revocations(); len(got) > 0 {
		t.Errorf("revoked: %v", got)
	}
	// Lesson 5: the serial comes from the certificate, never from another field.
	c.post("/revoke-cert", fmt.Sprintf(`{"certificate":%q,"serial":"02","serialNumber":2,"reason":4}`, der)).want(http.StatusOK)
	if got := w.ca.revocations(); len(got) != 1 || got[0] != (revocation{"fake", cert.SerialNumber.Text(16), 4}) {
		t.Errorf("revoked: %v", got)
	}
}

func TestSection7_6_ConcurrentRevocationsAnswerOneSuccess(t *testing.T) {
	w, _ := newSharedWorld(t)
	c := w.newAccountClient()
	key := newECKey(t)
	_, cert := c.certificate(key, "a.example")
	holder := &client{world: w, key: key}
	var messages []*message
	for range 10 {
		messages = append(messages, c.message("/revoke-cert", revocationOf(cert)), holder.message("/revoke-cert", revocationOf(cert)))
	}
	answers := c.together(messages)
	if got := statuses(answers); got[http.StatusOK] != 1 || got[http.StatusBadRequest] != 19 {
		t.Errorf("statuses %v, want one 200", got)
	}
	for _, a := range answers {
		if a.status != http.StatusOK {
			a.wantProblem(http.StatusBadRequest, acme.AlreadyRevoked)
		}
	}
}

func TestARevocationThatTheCADidNotConfirmCanBeRepeated(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	_, cert := c.certificate(newECKey(t), "a.example")
	w.ca.breakRevoke(errors.New("dial 10.1.2.3: refused"))
	a := c.post("/revoke-cert", revocationOf(cert))
	p := a.wantProblem(http.StatusServiceUnavailable, acme.ServerInternal)
	wantRetryAfter(t, a)
	if p.Detail == "" || len(w.ca.revocations()) > 0 {
		t.Errorf("problem %+v, revocations %v", p, w.ca.revocations())
	}
	w.ca.breakRevoke(fmt.Errorf("revoke: %w", acme.Problemf(acme.BadRevocationReason, "this CA knows no such reason")))
	c.post("/revoke-cert", revocationOf(cert)).wantProblem(http.StatusBadRequest, acme.BadRevocationReason)
	w.ca.breakRevoke(nil)
	c.post("/revoke-cert", revocationOf(cert)).want(http.StatusOK)
}
