package certmanager

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

func TestManyNames(t *testing.T) {
	r := newRig(t, withPublisher)
	var names []string
	for n := range 45 {
		names = append(names, fmt.Sprintf("n%d.example.com", n))
	}
	e := r.issue(r.request("o1", newKey(t), names...))
	if e.took > 2*time.Minute {
		t.Errorf("took %s", e.took)
	}
	for _, n := range names {
		if !strings.Contains(e.events(), n+": validation is VALID_STATUS_SUCCESS") && !strings.Contains(e.events(), n+": validated") {
			t.Errorf("no event tells that %s was validated", n)
		}
	}
}

func TestDownloadWhereTheChainFails(t *testing.T) {
	for name, body := range map[string]string{
		"refused":        `{"returnCode":"1006","returnMessage":"No certificate exists."}`,
		"no certificate": `{"returnCode":"0","returnMessage":"Success"}`,
		"no PEM":         `{"returnCode":"0","returnMessage":"Success","certificate":"MII"}`,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.domain("example.com", DomainValid)
			r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 200, Body: body, Operation: "getCertificateChain", Count: -1})
			e := r.issue(r.request("o1", newKey(t), "a.example.com"))
			if len(e.got.Chain) != 1 {
				t.Errorf("got a chain of %d, want 1", len(e.got.Chain))
			}
		})
	}
}

func TestUnknownStatusIsWaitedFor(t *testing.T) {
	r := newRig(t, nil)
	r.domain("example.com", DomainValid)
	req := r.request("o1", newKey(t), "a.example.com")
	req.Submitted = r.clock.Now()
	got, err := r.Submit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 200, Operation: "listAdvancedCertificates",
		Body: `{"returnCode":"0","returnMessage":"Success","totalCount":1,"orders":[{"orderId":"x","certificates":[{"certificateNo":10002,"certificateName":"` + requestName("o1") + `","statusCode":"17","extra":"shown"}]}]}`})
	number, err := parseTicket(got.Ticket)
	if err != nil {
		t.Fatal(err)
	}
	if number.No != 10002 {
		t.Fatalf("the simulator's numbers have changed: %d", number.No)
	}
	r.pass(2 * time.Second)
	if got, err = r.Poll(t.Context(), req, got.Ticket); err != nil || got.Ticket == "" {
		t.Fatalf("got %+v, %v", got, err)
	}
	if !strings.Contains(r.log.String(), "unknown status") || !strings.Contains(r.log.String(), "shown") {
		t.Errorf("the row is not logged:\n%s", r.log)
	}
	r.pass(time.Minute)
	if got, err = r.Poll(t.Context(), req, got.Ticket); err != nil || got.Leaf == nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestRevokeOfAReplacedNumber(t *testing.T) {
	r := newRig(t, nil)
	r.domain("example.com", DomainValid)
	r.change(func(b *ncloudtest.CMBehaviour) { b.ReissueNumber = "kept" })
	first := r.issue(r.request("o1", newKey(t), "a.example.com"))
	second := r.issue(r.request("o2", newKey(t), "a.example.com"))
	p, ok := errors.AsType[*acme.Problem](r.Revoke(t.Context(), first.got.Leaf, 0))
	if !ok || r.counters().Revoked != 0 {
		t.Fatalf("got %v; %d revoked", p, r.counters().Revoked)
	}
	if err := r.Revoke(t.Context(), second.got.Leaf, 0); err != nil || r.counters().Revoked != 1 {
		t.Errorf("got %v; %d revoked", err, r.counters().Revoked)
	}
}

func TestHandedOutAgainOnlyOnce(t *testing.T) {
	r := newRig(t, nil)
	r.domain("example.com", DomainValid)
	key := newKey(t)
	first := r.issue(r.request("o1", key, "a.example.com"))
	r.unfetched[acme.CertificateID(first.got.Leaf)] = "o1" // for ever: o2 fetches its own
	for range 2 {                                          // the second time after a crash
		if e := r.issue(r.request("o2", key, "a.example.com")); !e.got.Again {
			t.Error("not handed out to o2")
		}
	}
	if e := r.issue(r.request("o3", key, "a.example.com")); e.got.Again || e.got.Leaf.Equal(first.got.Leaf) {
		t.Error("handed out to o3 as well")
	}
}

func TestANameThatIsTakenIsLookedFor(t *testing.T) {
	r := newRig(t, nil)
	r.domain("example.com", DomainValid)
	req := r.request("o1", newKey(t), "a.example.com")
	req.Submitted = r.clock.Now()
	r.inject(ncloudtest.Fault{Kind: ncloudtest.LateList, DelayMS: 120_000})
	if _, err := r.Submit(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	// As if that answer had been lost and Find had concluded too early.
	e := r.issue(req)
	if got := r.counters().Paid; got != 1 {
		t.Errorf("got %d paid, want 1: %s", got, e.events())
	}
}

// TestReplicas has two issuers, as two replicas have, poll the same orders.
func TestReplicas(t *testing.T) {
	r := newRig(t, withPublisher)
	cfg := r.cfg
	other, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var reqs []*acme.IssueRequest
	tickets := map[string]string{}
	for n := range 8 {
		req := r.request(fmt.Sprintf("o%d", n), newKey(t), fmt.Sprintf("n%d.example.com", n), "shared.example.com")
		req.Submitted = r.clock.Now()
		got, err := r.Submit(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		reqs, tickets[req.OrderID] = append(reqs, req), got.Ticket
	}
	var mu sync.Mutex
	leaves := map[string]bool{}
	for range 20 {
		r.pass(10 * time.Second)
		var group sync.WaitGroup
		for _, req := range reqs {
			for _, i := range []*Issuer{r.Issuer, other} {
				mu.Lock()
				ticket := tickets[req.OrderID]
				mu.Unlock()
				group.Go(func() {
					got, err := i.Poll(t.Context(), req, ticket)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if got.Leaf != nil {
						leaves[got.Leaf.SerialNumber.String()] = true
					} else {
						tickets[req.OrderID] = got.Ticket
					}
				})
			}
		}
		group.Wait()
	}
	if len(leaves) != len(reqs) || r.counters().Paid != int64(len(reqs)) {
		t.Errorf("got %d certificates, %d paid, want %d", len(leaves), r.counters().Paid, len(reqs))
	}
}

func TestWithoutTheCallsThatOnlyHelp(t *testing.T) {
	for name, f := range map[string]ncloudtest.Fault{
		"the feed fails":             {Kind: ncloudtest.Status, Status: 500, Operation: "listRecentCertChanges", Count: -1},
		"the feed is refused":        {Kind: ncloudtest.Status, Status: 200, Body: `{"returnCode":"2101","returnMessage":"missing"}`, Operation: "listRecentCertChanges", Count: -1},
		"validation is not shown":    {Kind: ncloudtest.Status, Status: 200, Body: `{"returnCode":"1000","returnMessage":"?"}`, Operation: "listDcvStatuses", Count: -1},
		"validation cannot be asked": {Kind: ncloudtest.Status, Status: 503, Operation: "listDcvStatuses", Count: -1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.domain("example.com", DomainValid)
			r.change(func(b *ncloudtest.CMBehaviour) { b.IssueDelayMS = 120_000 })
			r.inject(f)
			r.issue(r.request("o1", newKey(t), "a.example.com"))
			if got := strings.Count(r.log.String(), "changes not read"); got > 1 {
				t.Errorf("told %d times that the feed fails", got)
			}
		})
	}
}

func TestWrongHost(t *testing.T) {
	r := newRig(t, nil)
	r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 404, Operation: "advancedCertificateRequest", Body: `{"error":{"errorCode":"300","message":"Not Found Exception"}}`})
	r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 404, Operation: "listAdvancedCertificates", Count: -1, Body: `{"error":{"errorCode":"300","message":"Not Found Exception"}}`})
	if e := r.run(r.request("o1", newKey(t), "a.example.com")); e.problem == nil || e.took > time.Minute {
		t.Errorf("got %+v", e)
	}
}

func TestKeysThatAreRefusedLater(t *testing.T) {
	r := newRig(t, nil)
	r.domain("example.com", DomainValid)
	req := r.request("o1", newKey(t), "a.example.com")
	req.Submitted = r.clock.Now()
	got, err := r.Submit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	r.change(func(b *ncloudtest.CMBehaviour) { b.SubAccount = true })
	r.pass(got.RetryAfter)
	if _, err := r.Poll(t.Context(), req, got.Ticket); err == nil {
		t.Error("no error")
	} else if _, ok := errors.AsType[*acme.Problem](err); ok || !strings.Contains(r.log.String(), "sub account's") {
		t.Errorf("got %v: the order must go on, and the log tell why it does not\n%s", err, r.log)
	}
	r.change(func(b *ncloudtest.CMBehaviour) { b.SubAccount = false })
	if got, err = r.Poll(t.Context(), req, got.Ticket); err != nil || got.Leaf == nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestLongLists(t *testing.T) {
	r := newRig(t, func(_ *rig, cfg *Config) { cfg.Records = nil })
	for n := range 250 {
		if _, err := r.sim.AddCertificate(ncloudtest.CMSeed{Name: fmt.Sprintf("old-%d", n), Names: []string{fmt.Sprintf("n%d.example.net", n)}}); err != nil {
			t.Fatal(err)
		}
		r.domain(fmt.Sprintf("d%d.example.net", n), DomainPending)
	}
	r.domain("example.com", DomainValid)
	e := r.issue(r.request("o1", newKey(t), "a.example.com"))
	rows, err := r.api.listAdvanced(t.Context(), "")
	if err != nil || len(rows) != 251 {
		t.Errorf("got %d rows, %v", len(rows), err)
	}
	if rows, err = r.api.listAll(t.Context(), ""); err != nil || len(rows) != 251 {
		t.Errorf("got %d rows, %v", len(rows), err)
	}
	if list, err := r.ListDomains(t.Context()); err != nil || len(list) != 251 {
		t.Errorf("got %d domains, %v", len(list), err)
	}
	if err := r.Revoke(t.Context(), e.got.Leaf, 0); err != nil { // the last of the list
		t.Error(err)
	}
}
