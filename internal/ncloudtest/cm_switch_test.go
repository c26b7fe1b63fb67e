package ncloudtest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

func TestRequestsThatCertificateManagerRefuses(t *testing.T) {
	b := startCM(t)
	b.request("taken", "PD", "taken.example")
	weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change object // of a good body; nil removes
		want   string
		status int
	}{
		{"no CSR", object{"csr": nil}, "2101", 200},
		{"no method", object{"validationMethod": nil}, "2101", 200},
		{"e-mail", object{"validationMethod": "E"}, "2101", 200},
		{"no type", object{"certificateType": nil}, "2101", 200},
		{"another type", object{"certificateType": "NCP_FREE_DV_01"}, "2101", 200},
		{"OV without organization", object{"certificateType": "NCP_PAID_OV_01"}, "2101", 200},
		{"OV for one that is not validated", object{"certificateType": "NCP_PAID_OV_01", "organizationNo": 7}, "2101", 200},
		{"name of 2", object{"certificateName": "ab"}, "2000", 400},
		{"name of 21", object{"certificateName": "a23456789012345678901"}, "2000", 400},
		{"name that begins with a digit", object{"certificateName": "1abc"}, "2000", 400},
		{"name in use", object{"certificateName": "taken"}, "1000", 200},
		{"CSR that is no PEM", object{"csr": "MIIB"}, "1002", 200},
		{"CSR with other names", object{"dnsName": []string{"b.example"}}, "1002", 200},
		{"CSR with a weak key", object{"csr": csrFor(t, weak, "a.example")}, "1002", 200},
	} {
		body := b.body("fresh", "PD", "a.example")
		maps.Copy(body, tt.change)
		maps.DeleteFunc(body, func(_ string, v any) bool { return v == nil })
		res, text := b.send("POST", paidPath, body)
		if !strings.Contains(string(text), `"returnCode":"`+tt.want+`"`) || res.StatusCode != tt.status {
			t.Errorf("%s: got %d %s, want %d %s", tt.name, res.StatusCode, text, tt.status, tt.want)
		}
	}
	if c := b.Counters().CM; c.Paid != 1 || c.MostForOneName != 1 {
		t.Errorf("counters: got %+v", c)
	}
	b.set(func(x *ncloudtest.CMBehaviour) {
		x.MissingStatus, x.DuplicateName, x.CSRNames = 400, "accept", "ignored"
	})
	if res, _ := b.send("POST", paidPath, object{}); res.StatusCode != http.StatusBadRequest {
		t.Errorf("missing_status 400: got %d", res.StatusCode)
	}
	body := b.body("taken", "PD", "a.example")
	body["dnsName"], body["certificateType"], body["organizationNo"] = []string{"b.example"}, "NCP_PAID_OV_01", 1001
	b.ok("POST", paidPath, body)
	if c := b.Counters().CM; c.MostForOneName != 2 {
		t.Errorf("a name accepted twice: got %+v", c)
	}
	if got := len(b.certificates("?certificateName=taken")); got != 2 {
		t.Errorf("certificates under one name: got %d, want 2", got)
	}
}

func TestShapesOfAnswers(t *testing.T) {
	b := startCM(t)
	for i, tt := range []struct {
		shape         string
		number, order bool
		want          string // members of the answer and of its certificate
	}{
		{"nested", true, true, "no:false,true order:false,true"},
		{"nested", false, true, "no:false,false order:false,true"},
		{"top", true, false, "no:true,false order:false,false"},
		{"both", true, true, "no:true,true order:true,true"},
		{"bare", true, true, "no:false,false order:false,false"},
	} {
		b.set(func(x *ncloudtest.CMBehaviour) {
			x.AnswerShape, x.AnswerNumber, x.AnswerOrderID = tt.shape, tt.number, tt.order
		})
		o := b.ok("POST", paidPath, b.body(fmt.Sprintf("shape-%d", i), "D", "a.example", "b.example"))
		nested, _ := o["certificate"].(object)
		has := func(o object, key string) bool { _, ok := o[key]; return ok }
		got := fmt.Sprintf("no:%t,%t order:%t,%t", has(o, "certificateNo"), has(nested, "certificateNo"), has(o, "orderId"), has(nested, "orderId"))
		if got != tt.want {
			t.Errorf("%+v: got %s", tt, got)
		}
	}

	b.set(func(x *ncloudtest.CMBehaviour) { x.AnswerShape, x.RegisterAnswer = "nested", "bare" })
	if o := b.ok("POST", "/api/v2/domain/domains", object{"dmnAddr": "bare.example", "dcvType": "PTXT", "issueType": "CONSOLE"}); o["domainVldList"] != nil {
		t.Errorf("register_answer bare: got %v", o)
	}
	for _, field := range []string{"txtVal", "txtContent", "recordValue", "value", ""} {
		b.set(func(x *ncloudtest.CMBehaviour) {
			x.ValueField, x.NameField, x.ExpiryField, x.DateFormat, x.NumbersAsStrings = field, "recordName", "validUntil", "millis", true
			x.RecordPD, x.ValuePD = "_check", "{token}"
		})
		row := rows(b.ok("GET", "/api/v2/domain/domains?domainAddress=bare.example", nil), "domainVldList")[0]
		if _, ok := row[field]; ok != (field != "") || row["recordName"] == nil || row["dmnId"] == nil {
			t.Errorf("value field %q: got %v", field, row)
		}
		if _, ok := row["dmnId"].(string); !ok {
			t.Errorf("numbers_as_strings: got %v", row)
		}
	}
	// A label relative to the domain is looked for below it.
	b.ok("POST", "/api/v2/domain/domains", object{"dmnAddr": "relative.example", "dcvType": "PTXT", "issueType": "CONSOLE"})
	d := b.CMDomains()[1]
	if d.Record != "_check.relative.example." || len(d.Value) != 32 {
		t.Errorf("got %+v", d)
	}
	b.publish(d.Record, d.Value)
	b.Tick(t.Context())
	if got := b.CMDomains()[1].State; got != "VALID" {
		t.Errorf("relative label: got %s", got)
	}
	if err := b.Change(func(x *ncloudtest.Behaviour) { x.CM.AnswerShape = "round" }); err == nil {
		t.Error("an unknown shape is taken")
	}
}

func TestListsFilterAndPage(t *testing.T) {
	b := startCM(t)
	for i := range 12 {
		if _, err := b.AddCertificate(ncloudtest.CMSeed{Name: fmt.Sprintf("seed-%d", i), Names: []string{"a.example", "b.example"}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.AddCertificate(ncloudtest.CMSeed{Name: "cloud-basic", Type: "NCP_FREE_DV_01", Names: []string{"c.example"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.AddCertificate(ncloudtest.CMSeed{Name: "open-one", Names: []string{"d.example"}, Status: "0"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.AddCertificate(ncloudtest.CMSeed{Name: "gone-one", Type: "NCP_FREE_DV_01", Names: []string{"e.example"}, Status: "-5"}); err != nil {
		t.Fatal(err)
	}
	b.Tick(t.Context())
	if got := b.CMCertificates(); len(got) != 14 || !got[13].Revoked {
		t.Errorf("seeds: got %+v", got)
	}
	for _, tt := range []struct {
		list, key, query string
		want             int
	}{
		{"certificates", "sslCertificateList", "", 15},
		{"certificates", "sslCertificateList", "?page=2", 5},
		{"certificates", "sslCertificateList", "?page=3&pageSize=6", 3},
		{"certificates", "sslCertificateList", "?page=9", 0},
		{"getCertificates", "sslCertificateList", "", 2},
		{"getPaidCertificates", "orders", "", 13},
		{"getPaidCertificates", "orders", "?certificateName=seed-1", 1},
		{"getPaidCertificates", "orders", "?certificateName=open-one", 1},
	} {
		if got := len(rows(b.ok("GET", "/api/v2/certificate/"+tt.list+tt.query, nil), tt.key)); got != tt.want {
			t.Errorf("%s%s: got %d, want %d", tt.list, tt.query, got, tt.want)
		}
	}
	const none = "/api/v2/certificate/getPaidCertificates?certificateName=nobody"
	if got := b.ask("GET", none, nil)["returnCode"]; got != "2200" {
		t.Errorf("empty_list code: got %v", got)
	}
	b.set(func(x *ncloudtest.CMBehaviour) { x.EmptyList, x.NameFilter = "list", "contains" })
	b.ok("GET", none, nil)
	if got := len(b.certificates("?certificateName=seed-1")); got != 3 {
		t.Errorf("name_filter contains: got %d, want 3", got)
	}
	if got := rows(b.ok("GET", "/api/v2/certificate/certificateTypes", nil), "certificatetype"); len(got) != 3 {
		t.Errorf("types: got %v", got)
	}
	row := b.certificates("?certificateName=seed-0")[0]
	if row["dnsName"] != "b.example" || row["statusName"] != "NORMAL_UNREGISTERED_PRIVATE_KEY" || row["notAfter"] == nil {
		t.Errorf("row: got %v", row)
	}
	if got := rows(b.ok("GET", "/api/v1/certificates", nil), "sslCertificateList"); len(got) != 14 {
		t.Errorf("1.0 list: got %d, want 14", len(got))
	}
	b.pass(199 * 24 * time.Hour)
	if got := b.status("seed-0"); got != "-2" {
		t.Errorf("expired: got %s", got)
	}
}

func TestRecentChangesHasOddRules(t *testing.T) {
	b := startCM(t)
	b.request("recent", "D", "a.example")
	b.pass(90 * time.Second)
	korean := func(t time.Time) string {
		return url.QueryEscape(t.In(time.FixedZone("KST", 9*60*60)).Format(time.DateTime))
	}
	span := "startDateTime=" + korean(b.clock().Add(-time.Hour)) + "&endDateTime=" + korean(b.clock())
	for _, tt := range []struct {
		query, code string
		want        int
	}{
		{"", "2101", 0},
		{"seconds=60", "0", 0},
		{"seconds=120", "0", 1},
		{"minutes=2", "0", 1},
		{"minutes=2&seconds=120", "0", 0},
		{"seconds=0", "2101", 0},
		{"minutes=10081", "2101", 0},
		{span, "0", 1},
		{strings.Split(span, "&")[0], "2101", 0},
		{"startDateTime=yesterday&endDateTime=today", "2101", 0},
	} {
		o := b.ask("GET", "/api/v2/certificate/recentChanges?"+tt.query, nil)
		if o["returnCode"] != tt.code || len(rows(o, "orders")) != tt.want {
			t.Errorf("%q: got %v", tt.query, o)
		}
	}
}

func TestASubAccountsKeyGetsAnEmpty403FromAPI2Only(t *testing.T) {
	b := startCM(t)
	b.set(func(x *ncloudtest.CMBehaviour) { x.SubAccount = true })
	res, body := b.send("POST", paidPath, b.body("none", "D", "a.example"))
	if res.StatusCode != 403 || len(body) != 0 || res.Header.Get("x-ncp-apigw-response-origin") != "ENDPOINT" {
		t.Errorf("got %d %v %s", res.StatusCode, res.Header, body)
	}
	b.ok("GET", "/api/v1/certificates", nil)
	if c := b.Counters().CM; c.Paid != 0 {
		t.Errorf("counters: got %+v", c)
	}
}

func TestExternalCertificates(t *testing.T) {
	b := startCM(t)
	b.validDomain("example.com")
	var bodies []object
	for i := range 2 {
		key := newKey(t)
		body := b.body(fmt.Sprintf("source-%d", i), "PD", "example.com")
		body["csr"] = csrFor(t, key, "example.com")
		no := numberOf(b.ok("POST", paidPath, body))
		chain := b.ok("GET", fmt.Sprintf("/api/v2/certificate/exportCertificate/%d/chain", no), nil)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, object{"certificateName": "lb-cert", "privateKey": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
			"certificateBody": chain["certificate"], "certificateChain": chain["subCaCertificate"], "publicKeyCertificate": chain["certificate"]})
	}
	const path = "/api/v2/certificate/withExternal"
	first := rows(b.ok("POST", path, bodies[0]), "sslCertificateList")[0]
	if got := b.ask("POST", path, bodies[1])["returnCode"]; got != "1000" {
		t.Errorf("the same name without a number: got %v", got)
	}
	bodies[1]["certificateNo"] = first["certificateNo"]
	second := rows(b.ok("POST", path, bodies[1]), "sslCertificateList")[0]
	if second["certificateNo"] != first["certificateNo"] {
		t.Errorf("the number changes: %v, %v", first, second)
	}
	no, _ := second["certificateNo"].(float64)
	chain := b.ok("GET", fmt.Sprintf("/api/v2/certificate/exportCertificate/%d/chain", int64(no)), nil)
	if chain["certificate"] != bodies[1]["certificateBody"] {
		t.Error("the certificate was not replaced")
	}
	for _, tt := range []struct {
		change object
		want   string
	}{
		{object{"privateKey": ""}, "2100"}, {object{"certificateBody": "x"}, "1002"}, {object{"privateKey": bodies[0]["privateKey"]}, "26040"},
		{object{"certificateChain": bodies[0]["certificateBody"]}, "26034"}, {object{"certificateNo": 5}, "1004"},
	} {
		body := maps.Clone(bodies[1])
		maps.Copy(body, tt.change)
		if got := b.ask("POST", path, body)["returnCode"]; got != tt.want {
			t.Errorf("%v: got %v, want %s", tt.change, got, tt.want)
		}
	}
	delete(bodies[0], "certificateBody")
	bodies[0]["certificateName"] = "by-v1"
	old := rows(b.ok("POST", "/api/v1/certificate/withExternal", bodies[0]), "sslCertificateList")[0]
	no, _ = old["certificateNo"].(float64)
	b.ok("DELETE", fmt.Sprintf("/api/v1/certificate/%d?certificateName=by-v1", int64(no)), nil)
}

func TestFaultsOfRequests(t *testing.T) {
	for _, tt := range []struct {
		kind   ncloudtest.Kind
		status int
		paid   int64
	}{{ncloudtest.Throttle, 429, 0}, {ncloudtest.TimeoutAfter, 504, 1}, {ncloudtest.ApplyLate, 504, 0}} {
		b := startCM(t)
		if err := b.Inject(ncloudtest.Fault{Kind: tt.kind, Operation: "advancedCertificateRequest"}); err != nil {
			t.Fatal(err)
		}
		res, _ := b.send("POST", paidPath, b.body("fault", "D", "a.example"))
		if got := b.Counters().CM.Paid; res.StatusCode != tt.status || got != tt.paid {
			t.Errorf("%s: got %d, %d paid", tt.kind, res.StatusCode, got)
		}
		if tt.kind == ncloudtest.ApplyLate && (b.ApplyLate() != 1 || b.status("fault") != "0") {
			t.Error("what was put off was not applied")
		}
	}

	b := startCM(t)
	b.validDomain("example.com")
	if err := b.Inject(ncloudtest.Fault{Kind: ncloudtest.LateList, Operation: "advancedCertificateRequest", Reads: 2}); err != nil {
		t.Fatal(err)
	}
	b.request("hidden", "PD", "example.com")
	for _, want := range []string{"2200", "2200", "0"} {
		if got := b.ask("GET", "/api/v2/certificate/getPaidCertificates?certificateName=hidden", nil)["returnCode"]; got != want {
			t.Errorf("late-list: got %v, want %s", got, want)
		}
	}
	for _, kind := range []ncloudtest.Kind{ncloudtest.WrongKey, ncloudtest.AddName, ncloudtest.StaleCertificate} {
		if err := b.Inject(ncloudtest.Fault{Kind: kind, Operation: "advancedCertificateRequest"}); err != nil {
			t.Fatal(err)
		}
		before := b.CMCertificates()
		body := b.body(string(kind), "PD", "www.example.com")
		chain := b.ok("GET", fmt.Sprintf("/api/v2/certificate/exportCertificate/%d/chain", numberOf(b.ok("POST", paidPath, body))), nil)
		text, _ := chain["certificate"].(string)
		leaf := parse(t, text)
		block, _ := pem.Decode([]byte(body["csr"].(string)))
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		sameKey, names := string(csr.RawSubjectPublicKeyInfo) == string(leaf.RawSubjectPublicKeyInfo), len(leaf.DNSNames)
		if sameKey == (kind != ncloudtest.AddName) || names != map[ncloudtest.Kind]int{ncloudtest.WrongKey: 1, ncloudtest.AddName: 2, ncloudtest.StaleCertificate: 2}[kind] {
			t.Errorf("%s: same key %t, %d names", kind, sameKey, names)
		}
		if got := len(b.CMCertificates()); got != len(before)+1 {
			t.Errorf("%s: %d certificates", kind, got)
		}
	}
	hold, err := b.HoldCalls("advancedCertificateRequest", ncloudtest.After, 1)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.request("held", "PD", "example.com")
	}()
	<-hold.Entered()
	if got := b.status("held"); got != "2" {
		t.Errorf("held after it was applied: got %s", got)
	}
	b.Release(hold, ncloudtest.Continue)
	<-done
}
