package server_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/acme-bridge/acme-bridge/acme"
)

// A client speaks ACME, and can be made to speak it wrongly. It signs by itself
// and not with the library that the server verifies with. It is not safe for
// concurrent use; its messages may be sent concurrently.
type client struct {
	*world
	via   int    // the replica that it talks to
	dir   string // "" or the path of another directory: "/corp"
	key   crypto.Signer
	kid   string
	nonce string
	since time.Time        // when the nonce came
	wire  *httptest.Server // if set, requests go over the network to it
	proto string           // of the last answer from there
}

func (w *world) newClient() *client { return &client{world: w, key: newECKey(w)} }

// newAccountClient is one that has registered.
func (w *world) newAccountClient() *client {
	w.Helper()
	c := w.newClient()
	c.register()
	return c
}

// A message is a request on its way: a test changes what it wants wrong.
type message struct {
	method      string
	target      string // path and query as sent
	contentType string
	header      map[string]any // protected; a nil value removes
	protected   string         // JSON text instead of header, if not ""
	payload     string
	key         crypto.Signer
	members     map[string]any // of the envelope, added or replaced; a nil value removes
	body        []byte         // instead of the envelope, if not nil
	extra       http.Header    // of the HTTP request
	remote      string
}

type edit func(*message)

func withHeader(name string, value any) edit { return func(m *message) { m.header[name] = value } }
func withMember(name string, value any) edit { return func(m *message) { m.members[name] = value } }

// answer is what came back.
type answer struct {
	testing.TB
	what   string
	status int
	header http.Header
	body   []byte
}

// problem is a problem document as a client sees it.
type problem struct {
	Type        string      `json:"type"`
	Detail      string      `json:"detail"`
	Status      int         `json:"status"`
	Identifier  *identifier `json:"identifier"`
	Subproblems []problem   `json:"subproblems"`
	Algorithms  []string    `json:"algorithms"`
	Instance    string      `json:"instance"`
}

type identifier struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

type account struct {
	Status  string   `json:"status"`
	Contact []string `json:"contact"`
	Agreed  bool     `json:"termsOfServiceAgreed"`
	Orders  string   `json:"orders"`
}

type order struct {
	URL            string       `json:"-"`
	Status         string       `json:"status"`
	Expires        string       `json:"expires"`
	NotBefore      string       `json:"notBefore"`
	NotAfter       string       `json:"notAfter"`
	Identifiers    []identifier `json:"identifiers"`
	Profile        string       `json:"profile"`
	Error          *problem     `json:"error"`
	Authorizations []string     `json:"authorizations"`
	Finalize       string       `json:"finalize"`
	Certificate    string       `json:"certificate"`
}

type authorization struct {
	Identifier identifier  `json:"identifier"`
	Status     string      `json:"status"`
	Expires    string      `json:"expires"`
	Wildcard   *bool       `json:"wildcard"`
	Challenges []challenge `json:"challenges"`
}

type challenge struct {
	Type      string   `json:"type"`
	URL       string   `json:"url"`
	Status    string   `json:"status"`
	Token     string   `json:"token"`
	Validated string   `json:"validated"`
	Error     *problem `json:"error"`
}

// path turns an absolute URL of ours into what is sent on the wire.
func path(u string) string { return strings.TrimPrefix(u, external) }

// message makes a correct request for a URL or path; edits make it wrong.
func (c *client) message(target, payload string, edits ...edit) *message {
	c.Helper()
	target = path(target)
	m := &message{
		method: http.MethodPost, target: target, contentType: "application/jose+json",
		header:  map[string]any{"alg": algOf(c.key), "url": external + target, "nonce": c.takeNonce()},
		payload: payload, key: c.key, members: map[string]any{}, extra: http.Header{}, remote: "192.0.2.1:4711",
	}
	if c.kid != "" {
		m.header["kid"] = c.kid
	} else {
		m.header["jwk"] = jwkOf(c.key.Public())
	}
	for _, e := range edits {
		e(m)
	}
	return m
}

// post sends a request and keeps the nonce of its answer.
func (c *client) post(target, payload string, edits ...edit) *answer {
	c.Helper()
	a := c.send(c.message(target, payload, edits...))
	c.nonce, c.since = a.header.Get("Replay-Nonce"), c.now()
	return a
}

// read is POST-as-GET.
func (c *client) read(target string, edits ...edit) *answer {
	c.Helper()
	return c.post(target, "", edits...)
}

// takeNonce returns a nonce that no other message gets.
func (c *client) takeNonce() string {
	c.Helper()
	n := c.nonce
	c.nonce = ""
	if n == "" || c.now().Sub(c.since) > 30*time.Minute {
		n = c.plain(http.MethodHead, c.dir+"/new-nonce").header.Get("Replay-Nonce")
	}
	if n == "" {
		c.Fatal("newNonce gave no nonce")
	}
	return n
}

// send delivers a message to the client's replica.
func (c *client) send(m *message) *answer { c.Helper(); return c.sendTo(c.via, m) }

func (c *client) sendTo(replica int, m *message) *answer {
	c.Helper()
	body := m.body
	if body == nil {
		body = m.envelope(c)
	}
	r := httptest.NewRequest(m.method, m.target, bytes.NewReader(body))
	if m.contentType != "" {
		r.Header.Set("Content-Type", m.contentType)
	}
	for name, values := range m.extra {
		r.Header[name] = values
	}
	r.RemoteAddr = m.remote
	return c.serve(replica, r)
}

// plain sends a request without a body.
func (c *client) plain(method, target string) *answer {
	c.Helper()
	return c.serve(c.via, httptest.NewRequest(method, target, nil))
}

func (c *client) serve(replica int, r *http.Request) *answer {
	c.Helper()
	if c.wire != nil {
		return c.overTLS(r)
	}
	rec := httptest.NewRecorder()
	c.replicas[replica].ServeHTTP(rec, r)
	res := rec.Result()
	return &answer{TB: c.TB, what: r.Method + " " + r.URL.Path, status: res.StatusCode, header: res.Header, body: rec.Body.Bytes()}
}

// overTLS sends a request in chunks to a server that listens.
func (c *client) overTLS(r *http.Request) *answer {
	c.Helper()
	body := io.Reader(http.NoBody)
	if r.Method == http.MethodPost {
		body = io.MultiReader(r.Body) // of unknown length
	}
	req, err := http.NewRequestWithContext(r.Context(), r.Method, c.wire.URL+r.URL.RequestURI(), body)
	if err != nil {
		c.Fatal(err)
	}
	req.Header = r.Header
	res, err := c.wire.Client().Do(req)
	if err != nil {
		c.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		c.Fatal(err)
	}
	c.proto = res.Proto
	return &answer{TB: c.TB, what: r.Method + " " + r.URL.Path, status: res.StatusCode, header: res.Header, body: text}
}

// envelope is the JWS in flattened JSON serialization.
func (m *message) envelope(t testing.TB) []byte {
	t.Helper()
	protected := m.protected
	if protected == "" {
		for name, v := range m.header {
			if v == nil {
				delete(m.header, name)
			}
		}
		protected = string(mustJSON(t, m.header))
	}
	env := map[string]any{"protected": b64([]byte(protected)), "payload": b64([]byte(m.payload))}
	if m.key != nil {
		env["signature"] = b64(signJWS(t, m.key, protected, m.payload))
	}
	for name, v := range m.members {
		env[name] = v
		if v == nil {
			delete(env, name)
		}
	}
	return mustJSON(t, env)
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signJWS signs as RFC 7518 wants it for the kind of the key.
func signJWS(t testing.TB, key crypto.Signer, protected, payload string) []byte {
	t.Helper()
	input := []byte(b64([]byte(protected)) + "." + b64([]byte(payload)))
	fail := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		h, size := hashOf(key), (key.Curve.Params().BitSize+7)/8
		h.Write(input)
		r, s, err := ecdsa.Sign(rand.Reader, key, h.Sum(nil))
		fail(err)
		sig := make([]byte, 2*size)
		r.FillBytes(sig[:size])
		s.FillBytes(sig[size:])
		return sig
	case *rsa.PrivateKey:
		sum := sha256.Sum256(input)
		sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
		fail(err)
		return sig
	case ed25519.PrivateKey:
		return ed25519.Sign(key, input)
	case fixedSignature:
		return key.signature
	}
	t.Fatalf("no signer for %T", key)
	return nil
}

func hashOf(key *ecdsa.PrivateKey) hash.Hash {
	switch key.Curve {
	case elliptic.P384():
		return crypto.SHA384.New()
	case elliptic.P521():
		return crypto.SHA512.New()
	}
	return sha256.New()
}

// A fixedSignature is the key of one who cannot sign.
type fixedSignature struct {
	crypto.Signer
	signature []byte
}

func algOf(key crypto.Signer) string {
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		return map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[key.Curve.Params().BitSize]
	case *rsa.PrivateKey:
		return "RS256"
	case ed25519.PrivateKey:
		return "EdDSA"
	}
	return "ES256"
}

// jwkOf is the JWK as a map, so that a test can spoil it.
func jwkOf(pub crypto.PublicKey) map[string]any {
	k := jose.JSONWebKey{Key: pub}
	text, err := k.MarshalJSON()
	if err != nil {
		return nil
	}
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil {
		return nil
	}
	return m
}

func thumbprint(t testing.TB, pub crypto.PublicKey) string {
	t.Helper()
	k := jose.JSONWebKey{Key: pub}
	sum, err := k.Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return b64(sum)
}

// want fails the test unless the answer has the status.
func (a *answer) want(status int) *answer {
	a.Helper()
	if a.status != status {
		a.Fatalf("%s: status %d, want %d: %s", a.what, a.status, status, a.body)
	}
	return a
}

// wantProblem checks all that every problem must have (RFC 8555, Section 6.7).
func (a *answer) wantProblem(status int, typ acme.ProblemType) problem {
	a.Helper()
	var p problem
	if err := json.Unmarshal(a.body, &p); err != nil {
		a.Errorf("%s: answer %d is no problem document: %s", a.what, a.status, a.body)
		return p
	}
	if got, want := p.Type, "urn:ietf:params:acme:error:"+string(typ); got != want || a.status != status {
		a.Errorf("%s: problem %d %s (%s), want %d %s", a.what, a.status, got, p.Detail, status, want)
	}
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		a.Errorf("%s: Content-Type of the problem is %q", a.what, got)
	}
	if p.Status != a.status || p.Detail == "" {
		a.Errorf("%s: problem document has status %d and detail %q in an answer %d", a.what, p.Status, p.Detail, a.status)
	}
	if p.Identifier != nil {
		a.Errorf("%s: a top-level problem has an identifier", a.what)
	}
	return p
}

func (a *answer) decode(v any) {
	a.Helper()
	if got := a.header.Get("Content-Type"); got != "application/json" {
		a.Errorf("%s: Content-Type is %q, want application/json", a.what, got)
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		a.Fatalf("%s: %v: %s", a.what, err, a.body)
	}
}

func (a *answer) order() *order {
	a.Helper()
	o := &order{URL: a.header.Get("Location")}
	a.decode(o)
	if o.URL == "" {
		a.Errorf("%s: an order without Location", a.what)
	}
	return o
}

func (a *answer) authorization() *authorization {
	a.Helper()
	z := &authorization{}
	a.decode(z)
	return z
}

// register makes the client's account, or finds it.
func (c *client) register() *answer {
	c.Helper()
	c.kid = ""
	a := c.post(c.dir+"/new-account", `{"termsOfServiceAgreed":true}`)
	if a.status != http.StatusCreated && a.status != http.StatusOK {
		c.Fatalf("newAccount: %d %s", a.status, a.body)
	}
	c.kid = a.header.Get("Location")
	return a
}

func orderFor(names ...string) string {
	ids := make([]string, len(names))
	for i, n := range names {
		ids[i] = fmt.Sprintf(`{"type":"dns","value":%q}`, n)
	}
	return `{"identifiers":[` + strings.Join(ids, ",") + `]}`
}

func withProfile(body, profile string) string {
	return strings.TrimSuffix(body, "}") + fmt.Sprintf(`,"profile":%q}`, profile)
}

func (c *client) newOrder(names ...string) *order {
	c.Helper()
	return c.post(c.dir+"/new-order", orderFor(names...)).want(http.StatusCreated).order()
}

// readOrder returns the order as it is now.
func (c *client) readOrder(url string) *order {
	c.Helper()
	return c.read(url).want(http.StatusOK).order()
}

func (c *client) readAuthz(url string) *authorization {
	c.Helper()
	return c.read(url).want(http.StatusOK).authorization()
}

// prove answers one challenge of each authorization and returns the order then.
func (c *client) prove(o *order) *order {
	c.Helper()
	for _, url := range o.Authorizations {
		z := c.readAuthz(url)
		if z.Status == "valid" {
			continue
		}
		ch := z.Challenges[0]
		c.post(ch.URL, "{}").want(http.StatusOK)
		eventually(c, "the authorization leaves pending", func() bool { return c.readAuthz(url).Status != "pending" })
	}
	return c.readOrder(o.URL)
}

func (c *client) readyOrder(names ...string) *order {
	c.Helper()
	o := c.prove(c.newOrder(names...))
	if o.Status != "ready" {
		c.Fatalf("order is %s after its challenges, want ready: %+v", o.Status, o.Error)
	}
	return o
}

// csr makes a request for the names with a key of its own.
func (c *client) csr(names ...string) string {
	c.Helper()
	return c.csrWith(newECKey(c), &x509.CertificateRequest{DNSNames: names})
}

func (c *client) csrWith(key crypto.Signer, template *x509.CertificateRequest) string {
	c.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		c.Fatal(err)
	}
	return fmt.Sprintf(`{"csr":%q}`, b64(der))
}

// certificate gets a certificate for the names, with the key given.
func (c *client) certificate(key crypto.Signer, names ...string) (*order, *x509.Certificate) {
	c.Helper()
	o := c.readyOrder(names...)
	o = c.post(o.Finalize, c.csrWith(key, &x509.CertificateRequest{DNSNames: names})).want(http.StatusOK).order()
	if o.Status != "valid" {
		c.Fatalf("order is %s after finalize, want valid: %+v", o.Status, o.Error)
	}
	return o, parseLeaf(c, c.read(o.Certificate).want(http.StatusOK).body)
}

// rsaJWK is the JWK of a public key that Go would refuse to make.
func rsaJWK(n *big.Int, e []byte) map[string]any {
	return map[string]any{"kty": "RSA", "n": b64(n.Bytes()), "e": b64(e)}
}

func commonName(name string) pkix.Name { return pkix.Name{CommonName: name} }

func parseTime(t testing.TB, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Errorf("time %q: %v", s, err)
	}
	return at
}
