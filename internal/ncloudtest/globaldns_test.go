package ncloudtest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

// lookup asks the simulator's DNS server; the answer's values, sorted.
func (b *cmBench) lookup(network, name string, kind uint16) ([]string, int) {
	b.t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	in, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second}).ExchangeContext(b.t.Context(), m, b.DNSAddress())
	if err != nil {
		b.t.Fatal(err)
	}
	if in.Truncated {
		return []string{"truncated"}, in.Rcode
	}
	values := []string{}
	for _, rr := range in.Answer {
		switch rr := rr.(type) {
		case *dns.TXT:
			values = append(values, strings.Join(rr.Txt, ""))
		case *dns.NS:
			values = append(values, rr.Ns)
		case *dns.CNAME:
			values = append(values, rr.Target)
		case *dns.A:
			values = append(values, rr.A.String())
		default:
			values = append(values, dns.TypeToString[rr.Header().Rrtype])
		}
	}
	slices.Sort(values)
	return values, in.Rcode
}

func (b *cmBench) served(name string, want ...string) {
	b.t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		if got, _ := b.lookup(network, name, dns.TypeTXT); !slices.Equal(got, want) {
			b.t.Errorf("%s over %s: got %q, want %q", name, network, got, want)
		}
	}
}

// change makes a call of Global DNS that answers 200 with nothing.
func (b *cmBench) change(method, path string, body any) {
	b.t.Helper()
	res, text := b.send(method, "/dns/v1/ncpdns"+path, body)
	if res.StatusCode != 200 || len(text) != 0 {
		b.t.Fatalf("%s %s: got %d %s", method, path, res.StatusCode, text)
	}
}

func txt(host, content string) object {
	return object{"host": host, "type": "TXT", "content": content, "ttl": 60, "aliasId": nil, "lbId": nil}
}

func startDNS(t *testing.T) (b *cmBench, domain string) {
	t.Helper()
	b = startCM(t)
	b.change("POST", "/domain", object{"name": "example.com", "comments": "test"})
	list := rows(b.ask("GET", "/dns/v1/ncpdns/domain?page=0&size=20&domainName=example.com", nil), "content")
	if len(list) != 1 || list[0]["completeYn"] != true {
		t.Fatalf("domains: got %v", list)
	}
	return b, fmt.Sprint(int64(list[0]["id"].(float64)))
}

func (b *cmBench) records(domain string) []object {
	b.t.Helper()
	return rows(b.ask("GET", "/dns/v1/ncpdns/record/"+domain+"?page=0&size=1000&recordType=TXT&searchContent=_x", nil), "content")
}

func (b *cmBench) complete(domain string) any {
	b.t.Helper()
	return b.ask("GET", "/dns/v1/ncpdns/domain/"+domain, nil)["completeYn"]
}

func TestNothingIsServedBeforeAnApply(t *testing.T) {
	b, domain := startDNS(t)
	b.change("POST", "/record/"+domain, []object{txt("_x", "one"), txt("_x", "two")})
	b.served("_x.example.com")
	list := b.records(domain)
	if len(list) != 2 || list[0]["content"] != `"one"` || list[0]["delYn"] != false || b.complete(domain) != false {
		t.Errorf("before the apply: got %v, complete %v", list, b.complete(domain))
	}
	b.change("PUT", "/record/apply/"+domain, nil)
	b.served("_x.example.com", "one", "two")
	b.served("_X.Example.com", "one", "two")
	if b.complete(domain) != true {
		t.Error("not complete after the apply")
	}

	b.change("DELETE", "/record/"+domain, []any{list[0]["id"]})
	b.served("_x.example.com", "one", "two")
	if got := b.records(domain); len(got) != 2 || got[0]["delYn"] != true {
		t.Errorf("deleted: got %v", got)
	}
	b.change("PUT", "/record/rollback/"+domain, nil)
	if got := b.records(domain); len(got) != 2 || got[0]["delYn"] != false || b.complete(domain) != true {
		t.Errorf("rolled back: got %v", got)
	}
	b.change("DELETE", "/record/"+domain, []any{list[0]["id"]})
	second := txt("_x", "changed")
	second["id"] = list[1]["id"]
	b.change("PUT", "/record/"+domain, []object{second})
	if err := b.Change(func(x *ncloudtest.Behaviour) {
		x.DNS = ncloudtest.DNSBehaviour{ServeDelayMS: 2000, DeletedRows: "gone", ErrorStatus: 400}
	}); err != nil {
		t.Fatal(err)
	}
	if got := b.records(domain); len(got) != 1 || got[0]["content"] != "changed" {
		t.Errorf("other switches: got %v", got)
	}
	b.change("PUT", "/record/apply/"+domain, nil)
	b.served("_x.example.com", "one", "two")
	b.pass(2 * time.Second)
	b.served("_x.example.com", "changed")
	if c := b.Counters().DNS; c.Applies != 2 || c.Rollbacks != 1 || c.Created != 2 || c.Deleted != 2 || c.AppliesByDomain["example.com"] != 2 {
		t.Errorf("counters: got %+v", c)
	}
}

func TestAnApplyTakesForeignEditsAlong(t *testing.T) {
	b, domain := startDNS(t)
	edit := ncloudtest.ForeignEdit{Domain: "example.com", Host: "_x", Type: "TXT", Content: "foreign"}
	if err := b.EditElsewhere(edit, false); err != nil {
		t.Fatal(err)
	}
	if b.complete(domain) != false {
		t.Error("complete with a foreign edit that waits")
	}
	b.served("_x.example.com")
	b.change("PUT", "/record/rollback/"+domain, nil)
	if err := b.EditElsewhere(edit, false); err != nil {
		t.Fatal(err)
	}
	b.change("POST", "/record/"+domain, []object{txt("_x", "ours")})
	b.change("PUT", "/record/apply/"+domain, nil)
	b.served("_x.example.com", "foreign", "ours")
	edit.Delete = true
	if err := b.EditElsewhere(edit, true); err != nil {
		t.Fatal(err)
	}
	b.served("_x.example.com", "ours")
	if c := b.Counters().DNS; c.ForeignApplied != 1 || c.ForeignDiscarded != 1 || c.Applies != 1 || c.Rollbacks != 1 {
		t.Errorf("counters: got %+v", c)
	}
}

func TestWhatGlobalDNSRefuses(t *testing.T) {
	b, domain := startDNS(t)
	b.change("POST", "/record/"+domain, []object{{"host": "alias", "type": "CNAME", "content": "elsewhere.example", "ttl": 60}, txt("_x", "one")})
	for _, tt := range []struct {
		method, path string
		body         any
		want         string
	}{
		{"GET", "/domain", nil, "X00007"}, // page and size are required
		{"GET", "/record/" + domain, nil, "X00007"},
		{"GET", "/record/1?page=0&size=1", nil, "X00006"},
		{"PUT", "/record/apply/1", nil, "X00006"},
		{"POST", "/record/" + domain, txt("_y", "no list"), "X00007"},
		{"POST", "/record/" + domain, []object{txt("_y", "fine"), txt("alias", "beside a CNAME")}, "X00007"},
		{"POST", "/record/" + domain, []object{txt("_x", "one")}, "X00007"}, // there already
		{"POST", "/record/" + domain, []object{{"host": "a", "type": "A", "content": "no address", "ttl": 60}}, "X00007"},
		{"POST", "/record/" + domain, []object{{"host": "a", "type": "HINFO", "content": "a b", "ttl": 60}}, "X00007"},
		{"DELETE", "/record/" + domain, object{"recordIds": []int{1}}, "X00007"},
		{"DELETE", "/record/" + domain, []int{1}, "X00007"},
		{"POST", "/domain", object{"name": "example.com"}, "X00007"},
	} {
		res, text := b.send(tt.method, "/dns/v1/ncpdns"+tt.path, tt.body)
		var e struct {
			Result string
			Error  struct{ ErrorCode string }
		}
		if err := json.Unmarshal(text, &e); err != nil || e.Result != "FAIL" || e.Error.ErrorCode != tt.want || res.StatusCode != 400 {
			t.Errorf("%s %s: got %d %s, want %s", tt.method, tt.path, res.StatusCode, text, tt.want)
		}
	}
	if got := b.DNSRecords("example.com"); len(got) != 2 {
		t.Errorf("a refused list left something behind: %+v", got)
	}
	if res, _ := b.send("PUT", "/dns/v1/ncpdns/domain/"+domain+"/apply", nil); res.StatusCode != 404 {
		t.Errorf("apply at a wrong path: got %d", res.StatusCode)
	}
}

func TestTheDNSServerAnswersAsOne(t *testing.T) {
	b, domain := startDNS(t)
	b.AddZone("hand.example")
	long := strings.Repeat("0123456789", 60)
	b.publish("_long.hand.example", long)
	if err := b.Publish("_alias.hand.example", "CNAME", "_x.example.com"); err != nil {
		t.Fatal(err)
	}
	b.change("POST", "/record/"+domain, []object{txt("_x", `a\b; c="d"`), txt("deep.below", "x")})
	b.change("PUT", "/record/apply/"+domain, nil)
	for _, tt := range []struct {
		network, name string
		kind          uint16
		want          []string
		rcode         int
	}{
		{"udp", "_long.hand.example", dns.TypeTXT, []string{"truncated"}, 0},
		{"tcp", "_long.hand.example", dns.TypeTXT, []string{long}, 0},
		{"udp", "_alias.hand.example", dns.TypeTXT, []string{"_x.example.com.", `a\\b; c=\"d\"`}, 0},
		{"udp", "_alias.hand.example", dns.TypeCNAME, []string{"_x.example.com."}, 0},
		{"udp", "example.com", dns.TypeNS, []string{"ns1-1.simulated-dns.example.", "ns1-2.simulated-dns.example."}, 0},
		{"udp", "hand.example", dns.TypeSOA, []string{"SOA"}, 0},
		{"udp", "ns1-1.simulated-dns.example", dns.TypeA, []string{"127.0.0.1"}, 0},
		{"udp", "below.example.com", dns.TypeTXT, []string{}, 0}, // a name without records
		{"udp", "_x.example.com", dns.TypeA, []string{}, 0},
		{"udp", "none.example.com", dns.TypeTXT, []string{}, dns.RcodeNameError},
		{"udp", "elsewhere.example", dns.TypeTXT, []string{}, dns.RcodeNameError},
	} {
		if got, rcode := b.lookup(tt.network, tt.name, tt.kind); !slices.Equal(got, tt.want) || rcode != tt.rcode {
			t.Errorf("%s %s %s: got %q %s", tt.network, tt.name, dns.TypeToString[tt.kind], got, dns.RcodeToString[rcode])
		}
	}
	// Certificate Manager sees a long value, and one behind an alias.
	b.set(func(x *ncloudtest.CMBehaviour) { x.RecordD, x.ValueD = "_long.hand.example", long+`"é\b` })
	b.publish("_long.hand.example", long+`"é\b`)
	b.request("long", "D", "hand.example")
	b.Tick(t.Context())
	if got := b.status("long"); got != "2" {
		t.Errorf("long value: got %s", got)
	}
}

func TestControlOfCertificateManagerAndDNS(t *testing.T) {
	b := startCM(t)
	srv := httptest.NewServer(b.Control())
	defer srv.Close()
	ask := func(method, path, body string, want int) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+"/control"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != want {
			t.Errorf("%s %s: got %d %v, want %d: %s", method, path, res.StatusCode, err, want, text)
		}
		return string(text)
	}
	has := func(text, part string) {
		t.Helper()
		if !strings.Contains(text, part) {
			t.Errorf("got %s, want %s in it", text, part)
		}
	}
	has(ask("PATCH", "/behaviour", `{"certificate_manager":{"validity_days":90,"check_on_call":true},"global_dns":{"quoted_txt":false}}`, 200), `"validity_days":90`)
	ask("PATCH", "/behaviour", `{"certificate_manager":{"empty_list":"perhaps"}}`, 400)
	ask("PATCH", "/cm/domains", `{"domain":"example.com"}`, 400)
	ask("PATCH", "/cm/domains", `{"domain":"example.com","create":true}`, 200)
	has(ask("GET", "/cm/domains", "", 200), `"state":"PENDING"`)
	d := b.CMDomains()[0]
	ask("POST", "/dns/zones", `{"name":"example.com"}`, 200)
	record, err := json.Marshal(map[string]string{"name": d.Record, "type": "TXT", "value": d.Value})
	if err != nil {
		t.Fatal(err)
	}
	ask("POST", "/dns/records", string(record), 200)
	has(ask("POST", "/cm/tick", "", 200), `"changed":1`)
	ask("POST", "/cm/outcomes", `{"code":"-12"}`, 200)
	ask("POST", "/cm/outcomes", `{"code":"0"}`, 400)
	b.request("bad", "PD", "example.com")
	b.request("good", "PD", "example.com")
	if got := b.status("bad") + b.status("good"); got != "-122" {
		t.Errorf("outcomes: got %s", got)
	}
	ask("POST", "/cm/outcomes", `{"code":"-12","count":-1}`, 200)
	ask("DELETE", "/cm/outcomes", "", 200)
	has(ask("DELETE", "/dns/records", string(record), 200), `"removed":1`)
	b.status("good") // check_on_call
	has(ask("GET", "/cm/domains", "", 200), `"state":"INVALID"`)
	has(ask("POST", "/cm/certificates", `{"name":"other","names":["x.example"]}`, 200), `"certificate_no"`)
	ask("POST", "/cm/certificates", `{"name":"other"}`, 400)
	var certs []ncloudtest.CMCertificate
	if err := json.Unmarshal([]byte(ask("GET", "/cm/certificates", "", 200)), &certs); err != nil || len(certs) != 2 || certs[0].Name != "good" {
		t.Errorf("certificates: got %+v, %v", certs, err)
	}
	if got := certs[0].NotAfter.Sub(b.clock()); got != 90*24*time.Hour {
		t.Errorf("validity_days: got %s", got)
	}
	has(ask("GET", "/cm/root.pem", "", 200), "BEGIN CERTIFICATE")
	ask("POST", "/dns/domains", `{"name":"zone.example"}`, 200)
	ask("POST", "/dns/domains", `{"name":"zone.example"}`, 400)
	ask("POST", "/dns/edits", `{"domain":"zone.example","host":"www","type":"A","content":"192.0.2.1"}`, 200)
	ask("POST", "/dns/edits", `{"domain":"other.example","host":"www","type":"A","content":"192.0.2.1"}`, 400)
	has(ask("GET", "/dns/domains/zone.example", "", 200), `"applied":false`)
	ask("GET", "/dns/domains/other.example", "", 400)
	has(ask("GET", "/counters", "", 200), `"paid":2`)
}

func TestEachServiceHasAHostOfItsOwn(t *testing.T) {
	b := startCM(t)
	srv := httptest.NewServer(b.Only(ncloudtest.GlobalDNS))
	defer srv.Close()
	b.url = srv.URL
	if res, _ := b.send("GET", "/api/v1/certificates", nil); res.StatusCode != 404 {
		t.Errorf("Certificate Manager at Global DNS's host: got %d", res.StatusCode)
	}
	if res, _ := b.send("GET", "/dns/v1/ncpdns/domain?page=0&size=1", nil); res.StatusCode != 200 {
		t.Errorf("Global DNS at its own: got %d", res.StatusCode)
	}
}

func TestRecordsAreCheckedAtAnIntervalAndAtAnotherServer(t *testing.T) {
	other := startCM(t) // its DNS server is the other one
	sim, err := ncloudtest.New(ncloudtest.Options{Resolver: other.DNSAddress(), CheckInterval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer sim.Close()
	if err := sim.ChangeDomain(ncloudtest.DomainChange{Domain: "example.com", Create: true}); err != nil {
		t.Fatal(err)
	}
	d := sim.CMDomains()[0]
	other.publish(d.Record, d.Value)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for sim.CMDomains()[0].State != "VALID" {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("not valid in time")
		}
	}
	for _, o := range []ncloudtest.Options{{Resolver: "nowhere"}, {DNSListen: "0.0.0.0:0"}, {OpenAPICM: "/nowhere"}} {
		if _, err := ncloudtest.New(o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}
