package ncloudtest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

type bench struct {
	*ncloudtest.Simulator
	t      *testing.T
	client *ncloud.Client
	url    string
}

// start makes a simulator that checks everything against the OpenAPI file, and
// a client of it.
func start(t *testing.T) *bench {
	t.Helper()
	file, err := ncloudtest.OpenAPIFile()
	if err != nil {
		t.Fatal(err)
	}
	sim, err := ncloudtest.New(ncloudtest.Options{OpenAPI: file})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(sim)
	t.Cleanup(func() {
		sim.Close()
		srv.Close()
	})
	return &bench{sim, t, client(t, srv.URL, nil), srv.URL}
}

func client(t *testing.T, url string, set func(*ncloud.Config)) *ncloud.Client {
	t.Helper()
	cfg := ncloud.Config{BaseURL: url, Timeout: 10 * time.Second, Attempts: 1, BreakerFailures: 1000,
		Credentials: ncloud.Credentials{AccessKey: ncloudtest.DefaultAccessKey, SecretKey: ncloudtest.DefaultSecretKey}}
	if set != nil {
		set(&cfg)
	}
	c, err := ncloud.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (b *bench) do(method, path string, body, into any) error {
	r := ncloud.Request{Operation: method + " " + path, Method: method, Path: "/api/v1" + path, Body: body}
	if p, q, ok := strings.Cut(path, "?"); ok {
		r.Path, r.Query = "/api/v1"+p, map[string][]string{}
		for pair := range strings.SplitSeq(q, "&") {
			k, v, _ := strings.Cut(pair, "=")
			r.Query.Set(k, v)
		}
	}
	r.Decode = ncloud.Envelope(into)
	return b.client.Do(b.t.Context(), r)
}

func (b *bench) must(method, path string, body, into any) {
	b.t.Helper()
	if err := b.do(method, path, body, into); err != nil {
		b.t.Fatal(err)
	}
}

// refused makes a call that must be refused and returns the service's code.
func (b *bench) refused(method, path string, body any) string {
	b.t.Helper()
	e, ok := errors.AsType[*ncloud.Error](b.do(method, path, body, nil))
	if !ok {
		b.t.Fatalf("%s %s was not refused", method, path)
	}
	return e.Code
}

func newCSR(t *testing.T, cn string, names ...string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}, DNSNames: names}, key)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})))
}

func parse(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no PEM: %q", text)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type signed struct {
	Certificate string   `json:"certificate"`
	CAChain     []string `json:"caChain"`
	Issuer      string   `json:"issuer"`
	SerialNo    string   `json:"serialNo"`
}

type caData struct {
	Info struct {
		Tag          string `json:"caTag"`
		Status       string `json:"status"`
		SigningCount int64  `json:"signingCount"`
	} `json:"caInfo"`
	Cert *struct {
		Pem string `json:"certPem"`
	} `json:"caCertInfo"`
}

func (b *bench) path(rest string) string { return "/ca/" + b.CATag() + rest }

func (b *bench) sign(names ...string) signed {
	b.t.Helper()
	var s signed
	b.must("POST", b.path("/cert/sign"), map[string]string{"csrPem": newCSR(b.t, "", names...), "period": "30"}, &s)
	return s
}

func TestAll24OperationsFitTheOpenAPIFile(t *testing.T) {
	b := start(t)
	leaf := b.sign("a.example", "b.example")
	cert := parse(t, leaf.Certificate)
	if got := cert.DNSNames; !slices.Equal(got, []string{"a.example", "b.example"}) {
		t.Errorf("names: got %v", got)
	}
	if got, want := cert.NotAfter.Sub(cert.NotBefore), 30*24*time.Hour+30*time.Second; got != want {
		t.Errorf("validity: got %s, want %s", got, want)
	}
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(b.RootPEM())
	inter.AddCert(parse(t, leaf.Issuer))
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter}); err != nil {
		t.Error(err)
	}
	if got := len(strings.Split(leaf.SerialNo, ":")); got != 20 {
		t.Errorf("serial %s has %d pairs, want 20", leaf.SerialNo, got)
	}

	var one struct {
		CertPem string `json:"certPem"`
	}
	b.must("GET", b.path("/cert/"+leaf.SerialNo), nil, &one)
	if one.CertPem != leaf.Certificate {
		t.Error("Get End Cert gives another certificate")
	}
	x509params := map[string]any{"commonName": "c.example", "altName": "c.example,me@c.example", "ip": "192.0.2.1"}
	var whole struct {
		PrivateKey string `json:"privateKey"`
	}
	b.must("POST", b.path("/cert"), map[string]any{"keyType": "EC256", "period": "MAX", "x509Parameters": x509params}, &whole)
	var list struct {
		TotalCnt  int      `json:"totalCnt"`
		ListCerts []string `json:"listCerts"`
	}
	b.must("GET", b.path("/cert?pageNo=1"), nil, &list)
	if list.TotalCnt != 2 || !slices.Contains(list.ListCerts, leaf.SerialNo) {
		t.Errorf("list: got %+v", list)
	}

	var crlText string
	b.must("PUT", b.path("/crl/config"), map[string]string{"expiry": "7"}, nil)
	b.must("GET", b.path("/crl/config"), nil, new(any))
	b.must("POST", b.path("/cert/"+leaf.SerialNo+"/revoke"), nil, nil)
	b.must("POST", b.path("/cert/"+leaf.SerialNo+"/revoke"), nil, nil)
	b.must("POST", b.path("/crl/rotate"), nil, nil)
	b.must("GET", b.path("/crl"), nil, &crlText)
	block, _ := pem.Decode([]byte(crlText))
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := crl.CheckSignatureFrom(parse(t, leaf.Issuer)); err != nil || len(crl.RevokedCertificateEntries) != 1 {
		t.Errorf("CRL: %v, %d entries", err, len(crl.RevokedCertificateEntries))
	}
	ocsp := "https://pca.apigw.ntruss.com/ext/" + b.CATag() + "/ocsp"
	b.must("PUT", b.path("/urls"), map[string]string{"ocsp_servers": ocsp}, nil)
	if got := parse(t, b.sign("d.example").Certificate).OCSPServer; !slices.Equal(got, []string{ocsp}) {
		t.Errorf("OCSP: got %v", got)
	}
	b.must("DELETE", b.path("/urls"), nil, nil)
	id := strings.Repeat("a1b2", 9)
	b.must("POST", b.path("/users"), map[string]string{"idNo": id}, nil)
	b.must("GET", b.path("/users"), nil, new(any))
	b.must("DELETE", b.path("/users/"+id), nil, nil)
	b.must("POST", b.path("/trim"), nil, nil)
	var chain string
	b.must("GET", b.path("/chain"), nil, &chain)
	if got := strings.Count(chain, "BEGIN CERTIFICATE"); got != 2 {
		t.Errorf("chain has %d certificates, want 2", got)
	}

	// A subordinate signed elsewhere: here by the first one.
	var sub, active caData
	var csr struct {
		Pem string `json:"csrPem"`
	}
	var ca signed
	b.must("POST", "/ca?caType=PRIVATE_SUB", map[string]any{"alias": "third", "keyType": "EC256", "period": "100",
		"x509Parameters": map[string]any{"commonName": "Third", "contry": "KR"}}, &sub)
	if sub.Info.Status != "PENDING" || sub.Cert != nil {
		t.Errorf("got %+v, want a pending CA", sub)
	}
	b.must("GET", "/ca/"+sub.Info.Tag+"/sub/csr", nil, &csr)
	b.must("POST", b.path("/sub/sign"), map[string]string{"csrPem": csr.Pem, "period": "100"}, &ca)
	b.must("POST", "/ca/"+sub.Info.Tag+"/activate", map[string]string{"certPem": ca.Certificate, "caChainPem": strings.Join(ca.CAChain, "\n")}, &active)
	if active.Info.Status != "ACTIVE" {
		t.Errorf("got %+v, want an active CA", active)
	}
	b.must("GET", "/ca", nil, new(any))
	b.must("PUT", "/ca/"+sub.Info.Tag, map[string]string{"status": "DESTROYING"}, nil)
	b.must("DELETE", "/ca/"+sub.Info.Tag, nil, nil)
	var state caData
	b.must("GET", b.path(""), nil, &state)
	if state.Info.SigningCount != 4 {
		t.Errorf("signing count: got %d, want 4", state.Info.SigningCount)
	}

	c := b.Counters()
	if len(c.Calls) != 24 {
		t.Errorf("%d operations were called, want all 24", len(c.Calls))
	}
	for _, v := range c.OpenAPIViolations {
		t.Error(v)
	}
}

func TestRefusals(t *testing.T) {
	b := start(t)
	leaf := b.sign("a.example")
	csr := newCSR(t, "", "b.example")
	body := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	var ca caData
	b.must("GET", b.path(""), nil, &ca)
	caSerial := parse(t, ca.Cert.Pem).SerialNumber.FillBytes(make([]byte, 20))
	var pairs []string
	for _, x := range caSerial {
		pairs = append(pairs, strconv.FormatInt(0x100|int64(x), 16)[1:])
	}
	for _, tt := range []struct {
		method, path string
		body         any
		want         string
	}{
		{"POST", b.path("/cert/sign"), body("csrPem", csr), "INVALID_INPUT_PERIOD"},
		{"POST", b.path("/cert/sign"), body("csrPem", csr, "period", "3650"), "EXCEED_EXPIRY_DATE"},
		{"POST", b.path("/cert/sign"), body("period", "1"), "EMPTY_CSR"},
		{"POST", b.path("/cert/sign"), body("csrPem", "x", "period", "1"), "INVALID_CSR"},
		{"POST", b.path("/cert/sign"), body("csrPem", newCSR(t, strings.Repeat("x", 65), "b.example"), "period", "1"), "EXCEED_COMMON_NAME"},
		{"POST", b.path("/cert/sign"), body("csrPem", csr, "period", "1", "keyType", "RSA"), "INVALID_INPUT_KEYTYPE"},
		{"POST", b.path("/cert/sign"), body("csrPem", csr, "period", "1", "keyBits", "384"), "INVALID_INPUT_KEYBITS"},
		{"POST", "/ca/00000000-00000000/cert/sign", body("csrPem", csr, "period", "1"), "NOT_EXIST_CA"},
		{"GET", b.path("/cert/01:02"), nil, "NOT_EXIST_CERT"},
		{"POST", b.path("/cert/" + strings.Join(pairs, ":") + "/revoke"), nil, "INVALID_CERT"},
		{"GET", b.path("/crl/config"), nil, "NOT_EXIST_CRL_CONFIG"},
		{"POST", "/ca?caType=PRIVATE_ROOT", map[string]any{"alias": "simroot", "keyType": "EC256", "period": "1", "x509Parameters": body("commonName", "x")}, "ALREADY_EXIST_ALIAS"},
		{"DELETE", b.path(""), nil, "INVALID_CA_STATUS"},
	} {
		if got := b.refused(tt.method, tt.path, tt.body); got != tt.want {
			t.Errorf("%s %s %v: got %s, want %s", tt.method, tt.path, tt.body, got, tt.want)
		}
	}
	if err := b.Change(func(x *ncloudtest.Behaviour) { x.Quota = 1 }); err != nil {
		t.Fatal(err)
	}
	if got := b.refused("POST", b.path("/cert/sign"), body("csrPem", csr, "period", "1")); got != "EXCEED_SIGNING_COUNT" {
		t.Errorf("over the quota: got %s", got)
	}
	if err := b.Change(func(x *ncloudtest.Behaviour) { x.RevokeTwice = "error" }); err != nil {
		t.Fatal(err)
	}
	b.must("POST", b.path("/cert/"+leaf.SerialNo+"/revoke"), nil, nil)
	if got := b.refused("POST", b.path("/cert/"+leaf.SerialNo+"/revoke"), nil); got != "INVALID_STATUS" {
		t.Errorf("revoked twice: got %s", got)
	}
	for _, v := range b.Counters().OpenAPIViolations {
		if strings.HasPrefix(v, "answer") { // one request is wrong on purpose
			t.Error(v)
		}
	}
}

func TestTheGatewayRefusesWhatIsNotSignedWell(t *testing.T) {
	b := start(t)
	for _, tt := range []struct {
		name string
		set  func(*ncloud.Config)
		ok   bool
	}{
		{"right keys", nil, true},
		{"wrong secret", func(c *ncloud.Config) { c.Credentials.SecretKey = "x" }, false},
		{"wrong access key", func(c *ncloud.Config) { c.Credentials.AccessKey = "x" }, false},
		{"clock 4:50 behind", func(c *ncloud.Config) { c.Now = func() time.Time { return time.Now().Add(-290 * time.Second) } }, true},
		{"clock 5:10 behind", func(c *ncloud.Config) { c.Now = func() time.Time { return time.Now().Add(-310 * time.Second) } }, false},
		{"clock 5:10 ahead", func(c *ncloud.Config) { c.Now = func() time.Time { return time.Now().Add(310 * time.Second) } }, false},
	} {
		b.client = client(t, b.url, tt.set)
		err := b.do("GET", b.path(""), nil, nil)
		e, _ := errors.AsType[*ncloud.Error](err)
		if tt.ok != (err == nil) || err != nil && (e.Status != 401 || e.Code != "200" || e.Applied != ncloud.No) {
			t.Errorf("%s: got %v", tt.name, err)
		}
		if !tt.ok && strings.HasPrefix(tt.name, "clock") && e.Hint == "" {
			t.Errorf("%s: no hint at the clock: %v", tt.name, err)
		}
	}
	b.client = client(t, b.url, nil)
	if e, _ := errors.AsType[*ncloud.Error](b.do("GET", "/cas", nil, nil)); e == nil || e.Status != 404 || e.Code != "300" {
		t.Errorf("unknown URL: got %v", e)
	}
	w := httptest.NewRecorder()
	b.ServeHTTP(w, httptest.NewRequest("GET", "/api/v1"+b.path(""), nil))
	if w.Code != 401 || !strings.Contains(w.Body.String(), "are missing") {
		t.Errorf("without headers: got %d %s", w.Code, w.Body)
	}
}

func TestFaultsDoWhatTheySay(t *testing.T) {
	for _, tt := range []struct {
		fault   ncloudtest.Fault
		applied ncloud.Applied
		issued  int64
	}{
		{ncloudtest.Fault{Kind: ncloudtest.Status, Status: 502, Body: "<html>"}, ncloud.Unknown, 0},
		{ncloudtest.Fault{Kind: ncloudtest.Throttle}, ncloud.No, 0},
		{ncloudtest.Fault{Kind: ncloudtest.DropBefore}, ncloud.Unknown, 0},
		{ncloudtest.Fault{Kind: ncloudtest.DropAfter}, ncloud.Unknown, 1},
		{ncloudtest.Fault{Kind: ncloudtest.TimeoutAfter}, ncloud.Unknown, 1},
		{ncloudtest.Fault{Kind: ncloudtest.MalformedBody}, ncloud.Unknown, 1},
		{ncloudtest.Fault{Kind: ncloudtest.TruncatedBody}, ncloud.Unknown, 1},
		{ncloudtest.Fault{Kind: ncloudtest.ApplyLate}, ncloud.Unknown, 0},
	} {
		t.Run(string(tt.fault.Kind), func(t *testing.T) {
			b := start(t)
			tt.fault.Operation = "signEndCsr"
			if err := b.Inject(tt.fault); err != nil {
				t.Fatal(err)
			}
			e, _ := errors.AsType[*ncloud.Error](b.do("POST", b.path("/cert/sign"), map[string]string{"csrPem": newCSR(t, "", "a.example"), "period": "1"}, new(signed)))
			if e == nil || e.Applied != tt.applied {
				t.Errorf("got %v, want applied %s", e, tt.applied)
			}
			if got := b.Counters().Issued; got != tt.issued {
				t.Errorf("issued %d, want %d", got, tt.issued)
			}
			if tt.fault.Kind == ncloudtest.ApplyLate && (b.ApplyLate() != 1 || b.Counters().Issued != 1) {
				t.Error("what was put off was not applied")
			}
			b.sign("a.example") // the fault is used up
		})
	}
}

func TestFaultsInCertificates(t *testing.T) {
	b := start(t)
	first := b.sign("first.example")
	sign := func(f ncloudtest.Fault) *x509.Certificate {
		f.Operation = "signEndCsr"
		if err := b.Inject(f); err != nil {
			t.Fatal(err)
		}
		return parse(t, b.sign("a.example", "b.example").Certificate)
	}
	if got := sign(ncloudtest.Fault{Kind: ncloudtest.StaleCertificate}); got.DNSNames[0] != "first.example" || first.SerialNo == "" {
		t.Errorf("stale certificate: got %v", got.DNSNames)
	}
	if got := sign(ncloudtest.Fault{Kind: ncloudtest.DropNames}); len(got.DNSNames) != 1 {
		t.Errorf("names dropped: got %v", got.DNSNames)
	}
	if got := sign(ncloudtest.Fault{Kind: ncloudtest.AddName}); len(got.DNSNames) != 3 {
		t.Errorf("name added: got %v", got.DNSNames)
	}
	if got := sign(ncloudtest.Fault{Kind: ncloudtest.ShortLifetime}); got.NotAfter.After(time.Now().AddDate(0, 0, 16)) {
		t.Errorf("lifetime shortened: got %s", got.NotAfter)
	}
	sign(ncloudtest.Fault{Kind: ncloudtest.WrongKey})
	count := func() int64 {
		var ca caData
		b.must("GET", b.path(""), nil, &ca)
		return ca.Info.SigningCount
	}
	before := count()
	sign(ncloudtest.Fault{Kind: ncloudtest.LateCount, Reads: 2})
	if got := []int64{count(), count(), count()}; !slices.Equal(got, []int64{before, before, before + 1}) {
		t.Errorf("late count: got %v after %d", got, before)
	}
	if got := b.Counters().MostForOneKey; got != 1 {
		t.Errorf("one key has %d certificates", got)
	}
}

func TestAHeldCallGoesOnAfterItsClientHasLeft(t *testing.T) {
	b := start(t)
	for _, tt := range []struct {
		point  ncloudtest.Point
		action string
		issued int64
	}{
		{ncloudtest.Before, ncloudtest.Discard, 0},
		{ncloudtest.Before, ncloudtest.Continue, 1},
		{ncloudtest.After, ncloudtest.Discard, 2},
	} {
		h, err := b.HoldCalls("signEndCsr", tt.point, 1)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- b.client.Do(ctx, ncloud.Request{Operation: "signEndCsr", Method: "POST", Path: "/api/v1" + b.path("/cert/sign"),
				Body: map[string]string{"csrPem": newCSR(t, "", "a.example"), "period": "1"}})
		}()
		<-h.Entered()
		cancel()
		if e, _ := errors.AsType[*ncloud.Error](<-done); e == nil || e.Applied != ncloud.Unknown {
			t.Errorf("got %v", e)
		}
		b.Release(h, tt.action)
		// The released call and this one are not ordered; the list is asked
		// until it shows the former, bounded by the test's own deadline.
		for b.Counters().Issued < tt.issued {
			b.must("GET", b.path(""), nil, nil)
		}
	}
}

func TestSwitchesChangeTheAnswers(t *testing.T) {
	b := start(t)
	change := func(f func(*ncloudtest.Behaviour)) {
		t.Helper()
		if err := b.Change(f); err != nil {
			t.Fatal(err)
		}
	}
	sign := func(body map[string]string) error {
		return b.do("POST", b.path("/cert/sign"), body, new(signed))
	}
	csr := newCSR(t, "", "a.example")
	change(func(x *ncloudtest.Behaviour) { x.PeriodMissing = "max" })
	if err := sign(map[string]string{"csrPem": csr}); err != nil {
		t.Error(err)
	}
	change(func(x *ncloudtest.Behaviour) { x.RequireCommonName = true })
	if sign(map[string]string{"csrPem": csr}) == nil {
		t.Error("a CSR without common name was taken")
	}
	change(func(x *ncloudtest.Behaviour) { x.RequireCommonName, x.KeyFields = false, "required" })
	if sign(map[string]string{"csrPem": csr}) == nil || sign(map[string]string{"csrPem": csr, "keyType": "ECDSA", "keyBits": "256"}) != nil {
		t.Error("key fields are not required")
	}
	change(func(x *ncloudtest.Behaviour) { x.KeyFields, x.ErrorStatus = "refused", "ok" })
	if e, _ := errors.AsType[*ncloud.Error](sign(map[string]string{"csrPem": csr, "keyType": "ECDSA", "keyBits": "256"})); e == nil || e.Status != 200 || e.Applied != ncloud.No {
		t.Errorf("refusal with HTTP 200: got %v", e)
	}
	change(func(x *ncloudtest.Behaviour) { x.ChainWithRoot, x.ChainWithSelf = false, false })
	var chain string
	b.must("GET", b.path("/chain"), nil, &chain)
	if got := strings.Count(chain, "BEGIN"); got != 1 {
		t.Errorf("chain has %d certificates, want 1", got)
	}
	change(func(x *ncloudtest.Behaviour) { x.PageSize, x.PagePastEnd, x.SerialUpper = 1, "error", true })
	b.must("GET", b.path("/cert?pageNo=1"), nil, new(any))
	if got := b.refused("GET", b.path("/cert?pageNo=9"), nil); got != "INVALID_INPUT_PAGENUMBBER" {
		t.Errorf("page past the end: got %s", got)
	}
	if b.Change(func(x *ncloudtest.Behaviour) { x.KeyFields = "perhaps" }) == nil {
		t.Error("a position that does not exist was taken")
	}
	if b.Inject(ncloudtest.Fault{Kind: "rain"}) == nil || b.Inject(ncloudtest.Fault{Kind: ncloudtest.Latency, Operation: "signCsr"}) == nil {
		t.Error("a fault that does not exist was taken")
	}
}
