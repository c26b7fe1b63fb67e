package ncloudtest_test

import (
	"archive/zip"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

// object is a JSON object as it came.
type object = map[string]any

// cmBench is a simulator with a clock of its own, its DNS server, and a raw client.
type cmBench struct {
	*ncloudtest.Simulator
	t   *testing.T
	url string

	mu  sync.Mutex
	now time.Time
}

func startCM(t *testing.T) *cmBench {
	t.Helper()
	file, err := ncloudtest.CertificateManagerOpenAPIFile()
	if err != nil {
		t.Fatal(err)
	}
	b := &cmBench{t: t, now: time.Now().Truncate(time.Second)}
	if b.Simulator, err = ncloudtest.New(ncloudtest.Options{OpenAPICM: file, Now: b.clock, DNSListen: "127.0.0.1:0"}); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(b.Simulator)
	b.url = srv.URL
	t.Cleanup(func() {
		b.Close()
		srv.Close()
		for _, v := range b.Counters().OpenAPIViolations {
			if strings.HasPrefix(v, "answer") { // requests are wrong on purpose
				t.Error(v)
			}
		}
	})
	return b
}

func (b *cmBench) clock() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

func (b *cmBench) pass(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = b.now.Add(d)
}

func (b *cmBench) set(change func(*ncloudtest.CMBehaviour)) {
	b.t.Helper()
	if err := b.Change(func(x *ncloudtest.Behaviour) { change(&x.CM) }); err != nil {
		b.t.Fatal(err)
	}
}

// send makes a signed call and returns status, headers and body.
func (b *cmBench) send(method, path string, body any) (*http.Response, []byte) {
	b.t.Helper()
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			b.t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.url+path, bytes.NewReader(text))
	if err != nil {
		b.t.Fatal(err)
	}
	stamp := strconv.FormatInt(b.clock().UnixMilli(), 10)
	mac := hmac.New(sha256.New, []byte(ncloudtest.DefaultSecretKey))
	fmt.Fprintf(mac, "%s %s\n%s\n%s", method, req.URL.RequestURI(), stamp, ncloudtest.DefaultAccessKey)
	for k, v := range map[string]string{"Content-Type": "application/json", "x-ncp-apigw-timestamp": stamp, "x-ncp-iam-access-key": ncloudtest.DefaultAccessKey,
		"x-ncp-apigw-signature-v2": base64.StdEncoding.EncodeToString(mac.Sum(nil))} {
		req.Header.Set(k, v)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return res, answer
}

// ask makes a call and reads its JSON.
func (b *cmBench) ask(method, path string, body any) object {
	b.t.Helper()
	_, text := b.send(method, path, body)
	var o object
	if err := json.Unmarshal(text, &o); err != nil {
		b.t.Fatalf("%s %s: %v: %s", method, path, err, text)
	}
	return o
}

// ok makes a call that must succeed.
func (b *cmBench) ok(method, path string, body any) object {
	b.t.Helper()
	o := b.ask(method, path, body)
	if o["returnCode"] != "0" {
		b.t.Fatalf("%s %s: got %v", method, path, o)
	}
	return o
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func csrFor(t *testing.T, key crypto.Signer, names ...string) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: names[0], Country: []string{"KR"}}, DNSNames: names}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func (b *cmBench) body(name, method string, names ...string) object {
	return object{"csr": csrFor(b.t, newKey(b.t), names...), "certificateType": "NCP_PAID_DV_01", "certificateName": name,
		"commonName": names[0], "dnsName": names[1:], "validationMethod": method}
}

const paidPath = "/api/v2/certificate/requestPaidCertificateIssuance"

// request makes an Advanced request and returns its number.
func (b *cmBench) request(name, method string, names ...string) int64 {
	b.t.Helper()
	return numberOf(b.ok("POST", paidPath, b.body(name, method, names...)))
}

func numberOf(answer object) int64 {
	nested, _ := answer["certificate"].(object)
	n, _ := nested["certificateNo"].(float64)
	return int64(n)
}

// rows are a member's rows.
func rows(o object, key string) []object {
	list, _ := o[key].([]any)
	var out []object
	for _, x := range list {
		row, _ := x.(object)
		out = append(out, row)
	}
	return out
}

// certificates are all rows of the Advanced list.
func (b *cmBench) certificates(query string) []object {
	b.t.Helper()
	var all []object
	for _, o := range rows(b.ok("GET", "/api/v2/certificate/getPaidCertificates"+query, nil), "orders") {
		all = append(all, rows(o, "certificates")...)
	}
	return all
}

func (b *cmBench) status(name string) string {
	b.t.Helper()
	list := b.certificates("?certificateName=" + name)
	if len(list) == 0 {
		return ""
	}
	text, _ := list[len(list)-1]["statusCode"].(string)
	return text
}

func (b *cmBench) dcv(no int64, domain string) object {
	b.t.Helper()
	list := rows(b.ok("GET", fmt.Sprintf("/api/v2/certificate/getVerificationInfo/%d?domainAddress=%s", no, domain), nil), "dnsVerificationList")
	if len(list) != 1 {
		b.t.Fatalf("validation of %s: got %v", domain, list)
	}
	return list[0]
}

func (b *cmBench) publish(name, value any) {
	b.t.Helper()
	if err := b.Publish(fmt.Sprint(name), "TXT", fmt.Sprint(value)); err != nil {
		b.t.Fatal(err)
	}
}

// validDomain registers a domain, publishes its record and has it checked.
func (b *cmBench) validDomain(domain string) object {
	b.t.Helper()
	row := rows(b.ok("POST", "/api/v2/domain/domains", object{"dmnAddr": domain, "dcvType": "PTXT", "issueType": "CONSOLE"}), "domainVldList")[0]
	b.publish(row["txtName"], row["txtValue"])
	b.Tick(b.t.Context())
	return row
}

func TestARequestIsIssuedOnlyWhenEachRecordIsServed(t *testing.T) {
	b := startCM(t)
	no := b.request("ab-one", "D", "a.example.com", "*.example.com", "example.com")
	if got := b.status("ab-one"); got != "0" {
		t.Errorf("status: got %s, want 0", got)
	}
	b.Tick(t.Context())
	for i, domain := range []string{"a.example.com", "*.example.com"} { // which stands for example.com too
		row := b.dcv(no, domain)
		if row["validStatusCode"] != "VALID_STATUS_REG" {
			t.Errorf("%s: got %v", domain, row)
		}
		b.publish(row["txtName"], "something else")
		if got := b.Tick(t.Context()); got != 0 {
			t.Errorf("%d domains are valid by a wrong record", got)
		}
		b.publish(row["txtName"], row["txtValue"])
		if got := b.Tick(t.Context()); got != 1 {
			t.Errorf("%d domains have changed, want 1", got)
		}
		if got := b.dcv(no, domain)["validStatusCode"]; got != "VALID_STATUS_SUCCESS" {
			t.Errorf("%s: got %v", domain, got)
		}
		if got, want := b.status("ab-one"), []string{"0", "2"}[i]; got != want {
			t.Errorf("status: got %s, want %s", got, want)
		}
	}

	chain := b.ok("GET", fmt.Sprintf("/api/v2/certificate/exportCertificate/%d/chain", no), nil)
	leafText, _ := chain["certificate"].(string)
	subText, _ := chain["subCaCertificate"].(string)
	if strings.Count(leafText, "\r\n") != strings.Count(leafText, "\n") || chain["rootCaCertificate"] == "" {
		t.Errorf("got %v", chain)
	}
	leaf, roots, subs := parse(t, leafText), x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(b.CMRootPEM())
	subs.AddCert(parse(t, subText))
	for _, name := range []string{"a.example.com", "x.example.com", "example.com"} {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: subs, CurrentTime: b.clock()}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	res, file := b.send("POST", fmt.Sprintf("/api/v2/certificate/exportCertificate/%d", no), object{})
	if got := res.Header.Get("Content-Type"); got != "application/zip" {
		t.Errorf("download: got %s %s", got, file)
	}
	z, err := zip.NewReader(bytes.NewReader(file), int64(len(file)))
	if err != nil || len(z.File) != 2 {
		t.Errorf("zip: %v, %v", z, err)
	}
	if res, text := b.send("POST", fmt.Sprintf("/api/v2/certificate/exportCertificate/%d", no), nil); res.StatusCode != 400 {
		t.Errorf("download without a body: got %d %s", res.StatusCode, text)
	}
	if got := b.CMCertificates(); len(got) != 1 || got[0].No != no || got[0].Key != ncloudtest.KeyID(leaf.RawSubjectPublicKeyInfo) {
		t.Errorf("issued: got %+v", got)
	}
	if c := b.Counters().CM; c.Paid != 1 || c.PaidByName["ab-one"] != 1 || c.PaidByKey[ncloudtest.KeyID(leaf.RawSubjectPublicKeyInfo)] != 1 || c.Issued != 1 || c.MostForOneKey != 1 {
		t.Errorf("counters: got %+v", c)
	}
}

func TestAValidatedDomainCoversWhatIsBelow(t *testing.T) {
	b := startCM(t)
	b.validDomain("example.com")
	b.set(func(x *ncloudtest.CMBehaviour) { x.IssueDelayMS = 5000 })
	b.request("perm", "PD", "example.com", "*.example.com", "deep.down.example.com")
	b.request("one-time", "D", "example.com")
	b.request("other", "PD", "example.com", "notexample.com")
	if got := b.status("perm"); got != "0" {
		t.Errorf("before the delay: got %s", got)
	}
	b.pass(5 * time.Second)
	for name, want := range map[string]string{"perm": "2", "one-time": "0", "other": "0"} {
		if got := b.status(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	b.set(func(x *ncloudtest.CMBehaviour) { x.CoversD, x.CoveredRow, x.IssueDelayMS = true, "empty", 0 })
	no := b.request("one-too", "D", "www.example.com")
	if got := b.status("one-too"); got != "2" {
		t.Errorf("covers_d: got %s", got)
	}
	if got := rows(b.ok("GET", fmt.Sprintf("/api/v2/certificate/getVerificationInfo/%d?domainAddress=www.example.com", no), nil), "dnsVerificationList"); len(got) != 0 {
		t.Errorf("covered_row empty: got %v", got)
	}
}

func TestDomainStates(t *testing.T) {
	b := startCM(t)
	state := func(want string) {
		t.Helper()
		if got := b.CMDomains()[0]; got.State != want {
			t.Errorf("got %+v, want %s", got, want)
		}
		list := rows(b.ok("GET", "/api/v2/domain/domains?page=1&pageSize=10&domainAddress=example.com", nil), "domainVldList")
		if len(list) != 1 || list[0]["validState"] != want {
			t.Errorf("list: got %v, want %s", list, want)
		}
	}
	row := b.validDomain("example.com")
	state("VALID")
	if got := b.ask("POST", "/api/v2/domain/domains", object{"dmnAddr": "example.com", "dcvType": "TXT", "issueType": "CONSOLE"})["returnCode"]; got != "1000" {
		t.Errorf("registered twice: got %v", got)
	}
	if n := b.Unpublish(fmt.Sprint(row["txtName"]), "TXT", ""); n != 1 {
		t.Errorf("removed %d records", n)
	}
	b.set(func(x *ncloudtest.CMBehaviour) { x.RemovedRecord = "ignored" })
	b.Tick(t.Context())
	state("VALID")
	b.set(func(x *ncloudtest.CMBehaviour) { x.RemovedRecord = "invalid" })
	b.Tick(t.Context())
	state("INVALID")
	b.publish(row["txtName"], row["txtValue"])
	b.Tick(t.Context())
	state("VALID")
	b.set(func(x *ncloudtest.CMBehaviour) { x.InvalidRecovers = false })
	b.pass(198*24*time.Hour + time.Second)
	b.Tick(t.Context())
	state("INVALID")
	b.request("late", "PD", "example.com")
	b.Unpublish(fmt.Sprint(row["txtName"]), "", "")
	if got := b.status("late"); got != "0" {
		t.Errorf("an expired domain covers: got %s", got)
	}
	if err := b.ChangeDomain(ncloudtest.DomainChange{Domain: "made.example", Create: true, State: new("VALID")}); err != nil {
		t.Fatal(err)
	}
	b.request("made", "PD", "www.made.example")
	if got := b.status("made"); got != "2" {
		t.Errorf("a domain set to VALID: got %s", got)
	}
	id := strconv.FormatInt(b.CMDomains()[0].ID, 10)
	b.ok("DELETE", "/api/v2/domain/domains/"+id, nil)
	if got := b.ask("DELETE", "/api/v2/domain/domains/"+id, nil)["returnCode"]; got != "2200" {
		t.Errorf("deleted twice: got %v", got)
	}
	if got := b.ask("GET", "/api/v2/domain/domains?domainAddress=example.com", nil)["returnCode"]; got != "2200" {
		t.Errorf("list of a deleted one: got %v", got)
	}
}

func TestOutcomesCanBeForced(t *testing.T) {
	b := startCM(t)
	b.validDomain("example.com")
	for _, code := range []string{"-1", "-3", "-4", "-11", "-12", "-20"} {
		name := "out" + code
		if err := b.ForceOutcome(name, code, 0); err != nil {
			t.Fatal(err)
		}
		b.request("fine"+code, "PD", "example.com")
		b.request(name, "PD", "example.com")
		b.request("again"+code, "PD", "example.com")
		if got := []string{b.status("fine" + code), b.status(name), b.status("again" + code)}; !slices.Equal(got, []string{"2", code, "2"}) {
			t.Errorf("%s: got %v", code, got)
		}
	}
	if err := b.ForceOutcome("", "2", 0); err == nil {
		t.Error("success can be forced")
	}
	if c := b.Counters().CM; c.Failed != 6 || c.Issued != 12 || c.Paid != 18 {
		t.Errorf("counters: got %+v", c)
	}

	no := b.request("slow", "D", "slow.example")
	b.pass(3*24*time.Hour + time.Second)
	if got := b.status("slow"); got != "-4" {
		t.Errorf("after the timeout: got %s", got)
	}
	if got := b.dcv(no, "slow.example")["validStatusCode"]; got != "VALID_STATUS_TIMEOUT" {
		t.Errorf("after the timeout: got %s", got)
	}
	var words []string
	for _, o := range rows(b.ok("GET", "/api/v2/certificate/recentChanges?seconds=60", nil), "orders") {
		words = append(words, fmt.Sprint(o["certificateId"], " ", o["status"]))
	}
	if want := []string{fmt.Sprintf("%d Validation timed out", no)}; !slices.Equal(words, want) {
		t.Errorf("recent changes: got %v, want %v", words, want)
	}
}

func TestReissueAndRevoke(t *testing.T) {
	b := startCM(t)
	b.validDomain("example.com")
	no := b.request("first", "PD", "example.com")
	again := b.body("second", "PD", "example.com")
	delete(again, "certificateType")
	path := fmt.Sprintf("/api/v2/certificate/%d/reissue", no)
	if got := b.status("first"); got != "2" {
		t.Fatalf("got %s", got)
	}
	second := numberOf(b.ok("POST", path, again))
	if second == no || b.status("second") != "2" {
		t.Errorf("reissue: got number %d", second)
	}
	list := rows(b.ok("GET", "/api/v2/certificate/getPaidCertificates", nil), "orders")
	if len(list) != 1 || len(rows(list[0], "certificates")) != 2 {
		t.Errorf("one order with two certificates: got %v", list)
	}
	b.set(func(x *ncloudtest.CMBehaviour) { x.ReissueNumber, x.ReissueName = "kept", "same" })
	if got := b.ask("POST", path, again)["returnCode"]; got != "1004" {
		t.Errorf("another name: got %v", got)
	}
	again["certificateName"] = "first"
	if got := numberOf(b.ok("POST", path, again)); got != no {
		t.Errorf("kept number: got %d, want %d", got, no)
	}
	b.set(func(x *ncloudtest.CMBehaviour) { x.ReissueCode = "1004" })
	if got := b.ask("POST", path, again)["returnCode"]; got != "1004" {
		t.Errorf("refused: got %v", got)
	}
	if c := b.Counters().CM; c.Paid != 1 || c.Reissued != 2 || c.Issued != 3 || len(c.ReissuedByKey) != 1 {
		t.Errorf("counters: got %+v", c)
	}

	order := list[0]["orderId"]
	revoke := func(no int64, kind string) any {
		return b.ask("POST", "/api/v2/certificate/revoke", object{"orderId": order, "certificateNo": no, "revokeType": kind})["returnCode"]
	}
	b.set(func(x *ncloudtest.CMBehaviour) { x.RevokeDelayMS = 1000 })
	for _, tt := range []struct {
		no         int64
		kind, want string
	}{{no, "keyCompromise", "2101"}, {77, "superseded", "1006"}, {no, "superseded", "0"}, {no, "superseded", "26034"}, {0, "unspecified", "0"}} {
		if got := revoke(tt.no, tt.kind); got != tt.want {
			t.Errorf("%d %s: got %v, want %s", tt.no, tt.kind, got, tt.want)
		}
	}
	if got := b.status("first"); got != "-7" {
		t.Errorf("got %s, want -7", got)
	}
	b.pass(time.Second)
	if got := b.status("first"); got != "-5" {
		t.Errorf("got %s, want -5", got)
	}
	if got := b.CMCertificates(); got[0].Revoked || !got[1].Revoked || got[1].RevokeType != "unspecified" || got[2].RevokeType != "superseded" {
		t.Errorf("got %+v", got) // the first was replaced under its number
	}
	for _, tt := range []struct{ name, want string }{{"other", "1004"}, {"first", "0"}, {"first", "1006"}} {
		if got := b.ask("DELETE", fmt.Sprintf("/api/v2/certificate/deleteCertificate/%d?certificateName=%s", no, tt.name), nil)["returnCode"]; got != tt.want {
			t.Errorf("delete %s: got %v, want %s", tt.name, got, tt.want)
		}
	}
}
