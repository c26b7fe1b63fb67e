package privateca

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

// lose submits with a fault and wants the outcome to be unknown.
func (r *rig) lose(req *acme.IssueRequest, f ncloudtest.Fault) {
	r.t.Helper()
	r.inject(f)
	_, err := r.Submit(r.t.Context(), req)
	if verdict(err) != "unknown" {
		r.t.Fatalf("%s: got %v, want an unknown outcome", f.Kind, err)
	}
}

// find searches once.
func (r *rig) find(req *acme.IssueRequest) (*acme.Issuance, string) {
	r.t.Helper()
	got, err := r.Find(r.t.Context(), req)
	v := verdict(err)
	if v == "issued" {
		if err := r.check(req, got); err != nil {
			r.t.Fatalf("found a certificate that fails the check: %v", err)
		}
		if !r.known.claim(got.Leaf, req.OrderID) {
			r.t.Fatal("found another order's certificate")
		}
	}
	return got, v
}

func TestFindAfterEachFault(t *testing.T) {
	faults := []struct {
		fault ncloudtest.Fault
		want  string
	}{
		{ncloudtest.Fault{Kind: ncloudtest.DropBefore}, "not issued"},
		{ncloudtest.Fault{Kind: ncloudtest.Status, Status: 502, Body: "<html>"}, "not issued"},
		{ncloudtest.Fault{Kind: ncloudtest.Status, Status: 503, Body: `{"error":{"errorCode":"500","message":"Endpoint Error"}}`}, "not issued"},
		{ncloudtest.Fault{Kind: ncloudtest.Status, Status: 200, Body: `{}`}, "not issued"},
		{ncloudtest.Fault{Kind: ncloudtest.Status, Status: 400, Body: `{"code":"FAIL_CORE","msg":"oops"}`}, "not issued"},
		{ncloudtest.Fault{Kind: ncloudtest.DropAfter}, "issued"},
		{ncloudtest.Fault{Kind: ncloudtest.TimeoutAfter}, "issued"},
		{ncloudtest.Fault{Kind: ncloudtest.TimeoutAfter, Status: 500, Body: `{"error":{"errorCode":"900","message":"Unexpected Error"}}`}, "issued"},
		{ncloudtest.Fault{Kind: ncloudtest.MalformedBody}, "issued"},
		{ncloudtest.Fault{Kind: ncloudtest.MalformedBody, Body: `{"code":"SUCCESS","msg":"Success","data":null}`}, "issued"},
		{ncloudtest.Fault{Kind: ncloudtest.MalformedBody, Body: `{"code":"SUCCESS","msg":"Success","data":{"certificate":"-----BEGIN"}}`}, "issued"},
		{ncloudtest.Fault{Kind: ncloudtest.TruncatedBody}, "issued"},
		{ncloudtest.Fault{Kind: ncloudtest.StaleCertificate}, "issued"},
	}
	type behaviour = ncloudtest.Behaviour
	switches := map[string]func(*behaviour){
		"by serial":            func(*behaviour) {},
		"by time":              func(b *behaviour) { b.ListOrder = "issued" },
		"newest first":         func(b *behaviour) { b.ListOrder = "newest" },
		"one page":             func(b *behaviour) { b.PageSize = 1000 },
		"tiny pages":           func(b *behaviour) { b.PageSize, b.PagePastEnd = 1, "error" },
		"the CA listed":        func(b *behaviour) { b.ListCA = true },
		"revoked not listed":   func(b *behaviour) { b.ListRevoked, b.ListExpired = false, false },
		"strings and capitals": func(b *behaviour) { b.NumbersAsStrings, b.SerialUpper, b.SerialStripped = true, true, true },
	}
	for name, set := range switches {
		for _, exclusive := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, exclusive %t", name, exclusive), func(t *testing.T) {
				r := newRig(t, func(c *Config) { c.Exclusive = exclusive })
				r.change(set)
				r.change(func(b *behaviour) { b.ListCA = b.ListCA && !exclusive })
				for n := range 4 {
					r.issue(r.request(fmt.Sprint("before-", n), newKey(t, ""), "a.example"))
				}
				if err := r.Revoke(t.Context(), r.issue(r.request("revoked", newKey(t, ""), "a.example")).Leaf, -1); err != nil {
					t.Fatal(err)
				}
				for n, tt := range faults {
					r.clock.Advance(3 * time.Second)
					req := r.request(fmt.Sprint("order-", n), newKey(t, ""), "a.example", "b.example")
					r.lose(req, tt.fault)
					r.clock.Advance(time.Minute)
					if !exclusive {
						if err := r.sim.IssueElsewhere("elsewhere.example"); err != nil {
							t.Fatal(err)
						}
					}
					_, got := r.find(req)
					if got != tt.want {
						t.Errorf("%s: got %s, want %s\n%s", tt.fault.Kind, got, tt.want, r.log)
					}
					if got == "not issued" {
						r.issue(req) // the worker submits again
					}
					if n := r.certificates(req); n != 1 {
						t.Errorf("%s: %d certificates for one order", tt.fault.Kind, n)
					}
				}
				if got := r.sim.Counters().MostForOneKey; got != 1 {
					t.Errorf("%d certificates for one key", got)
				}
			})
		}
	}
}

func TestAbsenceIsNotConcludedWhileTheServiceMayStillBeAtIt(t *testing.T) {
	for _, exclusive := range []bool{true, false} {
		r := newRig(t, func(c *Config) { c.Exclusive = exclusive })
		req := r.request("o", newKey(t, ""), "a.example")
		r.lose(req, ncloudtest.Fault{Kind: ncloudtest.ApplyLate})
		for range 3 {
			r.clock.Advance(8 * time.Second) // settled after 40 s
			if _, got := r.find(req); got != "cannot tell" {
				t.Fatalf("exclusive %t: got %s before the service must be done", exclusive, got)
			}
		}
		if r.sim.ApplyLate() != 1 {
			t.Fatal("nothing was put off")
		}
		r.clock.Advance(time.Minute)
		if _, got := r.find(req); got != "issued" {
			t.Errorf("exclusive %t: got %s, want it found\n%s", exclusive, got, r.log)
		}
	}
}

func TestACountOrListThatIsLateIsReadTwice(t *testing.T) {
	r := newRig(t, nil)
	req := r.request("o", newKey(t, ""), "a.example")
	r.inject(ncloudtest.Fault{Kind: ncloudtest.LateCount, Reads: 1})
	if _, err := r.Submit(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	// The answer is thrown away, as a crash would; the first reading shows the
	// old count, the second, Confirm later, the new one.
	fresh := newRig(t, nil)
	fresh.Issuer = r.restart()
	fresh.sim, fresh.clock, fresh.known = r.sim, r.clock, r.known
	r.clock.Advance(time.Minute)
	if _, got := fresh.find(req); got != "issued" {
		t.Errorf("got %s, want it found", got)
	}
}

// restart is a new process: another issuer of the same CA and store.
func (r *rig) restart() *Issuer {
	r.t.Helper()
	cfg := r.cfg
	cfg.Metrics = nil
	i, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return i
}

func TestACountThatFallsProvesNothing(t *testing.T) {
	r := newRig(t, nil)
	r.change(func(b *ncloudtest.Behaviour) { b.CountFalls = true })
	short := r.request("short", newKey(t, ""), "a.example")
	short.Lifetime = 24 * time.Hour
	r.issue(short)
	r.issue(r.request("long", newKey(t, ""), "a.example"))
	r.clock.Advance(25 * time.Hour)
	r.Mark(t.Context())

	// The expired certificate is trimmed and another issued: the count is
	// where it was at the mark, at two of three readings.
	req := r.request("o", newKey(t, ""), "a.example")
	trim := ncloud.Request{Operation: "trimCa", Method: "POST", Path: "/api/v1/ca/" + r.sim.CATag() + "/trim"}
	if err := r.cfg.Client.Do(t.Context(), trim); err != nil {
		t.Fatal(err)
	}
	r.clock.Advance(3 * time.Second)
	r.Mark(t.Context()) // sees the fall
	r.lose(req, ncloudtest.Fault{Kind: ncloudtest.DropAfter})
	r.clock.Advance(time.Minute)
	if _, got := r.find(req); got != "issued" {
		t.Errorf("got %s, want it found\n%s", got, r.log)
	}
	if !strings.Contains(r.log.String(), "signing count fell") {
		t.Error("the fall was not logged")
	}
}

func TestACountThatLacksOurCertificatesProvesNothing(t *testing.T) {
	r := newRig(t, nil)
	// As if Sign End Csr did not count.
	r.inject(ncloudtest.Fault{Kind: ncloudtest.LateCount, Reads: 1000, Count: -1})
	r.issue(r.request("first", newKey(t, ""), "a.example"))
	r.clock.Advance(time.Minute)
	req := r.request("o", newKey(t, ""), "a.example")
	h, err := r.sim.HoldCalls("signEndCsr", ncloudtest.After, 1)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-h.Entered()
		r.sim.Release(h, ncloudtest.Discard) // applied, and the answer lost
	}()
	if _, err := r.Submit(t.Context(), req); verdict(err) != "unknown" {
		t.Fatalf("got %v", err)
	}
	r.clock.Advance(time.Minute)
	// The list has grown and the count has not, so even the list is doubted
	// until both were read at rest.
	if _, got := r.find(req); got != "issued" {
		t.Errorf("got %s, want it found\n%s", got, r.log)
	}
}

func TestARenewalWithTheSameKeyIsNotMistaken(t *testing.T) {
	for _, exclusive := range []bool{true, false} {
		r := newRig(t, func(c *Config) { c.Exclusive = exclusive })
		key := newKey(t, "")
		first := r.issue(r.request("first", key, "a.example"))
		second := r.request("second", key, "a.example") // minutes later: begins are no help
		r.lose(second, ncloudtest.Fault{Kind: ncloudtest.DropBefore})
		r.clock.Advance(time.Minute)
		if _, got := r.find(second); got != "not issued" {
			t.Errorf("exclusive %t, lost before: got %s", exclusive, got)
		}
		second = r.request("second", key, "a.example") // a new intent
		r.lose(second, ncloudtest.Fault{Kind: ncloudtest.DropAfter})
		r.clock.Advance(time.Minute)
		got, v := r.find(second)
		if v != "issued" || got.Leaf.Equal(first.Leaf) {
			t.Errorf("exclusive %t, lost after: got %s", exclusive, v)
		}
	}
}

func TestTwoLostOrdersWithOneKeyGetACertificateEach(t *testing.T) {
	r := newRig(t, nil)
	key := newKey(t, "")
	a, b := r.request("a", key, "a.example"), r.request("b", key, "b.example")
	r.lose(a, ncloudtest.Fault{Kind: ncloudtest.DropAfter})
	r.lose(b, ncloudtest.Fault{Kind: ncloudtest.DropAfter})
	r.clock.Advance(time.Minute)
	for _, req := range []*acme.IssueRequest{b, a} {
		got, v := r.find(req)
		if v != "issued" || got.Leaf.DNSNames[0] != req.Identifiers[0].Value {
			t.Errorf("order %s: got %s", req.OrderID, v)
		}
	}
}

func TestACertificateClaimedBeforeACrashIsFoundAgain(t *testing.T) {
	r := newRig(t, nil)
	req := r.request("o", newKey(t, ""), "a.example")
	got := r.issue(req) // claims; then the crash
	r.clock.Advance(time.Minute)
	r.Issuer = r.restart()
	again, v := r.find(req)
	if v != "issued" || !again.Leaf.Equal(got.Leaf) {
		t.Errorf("got %s", v)
	}
}

func TestFindReadsNoCertificateTwiceAndNoneOfOtherOrders(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Exclusive = false })
	for n := range 15 {
		r.issue(r.request(fmt.Sprint("ours-", n), newKey(t, ""), "a.example"))
	}
	for range 7 {
		if err := r.sim.IssueElsewhere("elsewhere.example"); err != nil {
			t.Fatal(err)
		}
	}
	r.Issuer = r.restart() // knows ours by the store only
	lost := []*acme.IssueRequest{}
	for n := range 3 {
		req := r.request(fmt.Sprint("lost-", n), newKey(t, ""), "a.example")
		r.lose(req, ncloudtest.Fault{Kind: ncloudtest.DropBefore})
		lost = append(lost, req)
	}
	r.clock.Advance(time.Minute)
	for _, req := range lost {
		if _, got := r.find(req); got != "not issued" {
			t.Errorf("got %s", got)
		}
	}
	c := r.sim.Counters()
	if got := c.Calls["getEndCert"]; got != 7 {
		t.Errorf("read %d certificates, want the 7 unknown ones once each", got)
	}
	if got := c.Calls["getEndCertList"]; got != 3 {
		t.Errorf("read %d pages, want one list of 3 for all orders", got)
	}
}

func TestABoundedFindGoesOnWhereItStopped(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Exclusive, c.MaxFindCalls = false, 5 })
	for range 30 {
		if err := r.sim.IssueElsewhere("elsewhere.example"); err != nil {
			t.Fatal(err)
		}
	}
	r.change(func(b *ncloudtest.Behaviour) { b.PageSize = 4 })
	req := r.request("o", newKey(t, ""), "a.example")
	r.lose(req, ncloudtest.Fault{Kind: ncloudtest.DropAfter})
	r.clock.Advance(time.Minute)
	tries := 0
	for v := ""; v != "issued"; tries++ {
		if tries > 12 {
			t.Fatalf("not found after %d searches", tries)
		}
		_, v = r.find(req)
		if v == "not issued" {
			t.Fatal("absence concluded from half a list")
		}
		if err := r.sim.IssueElsewhere("meanwhile.example"); err != nil { // pages shift
			t.Fatal(err)
		}
	}
	if tries < 2 {
		t.Error("the bound had no effect")
	}
}

func TestListsThatCannotBeTrustedProveNothing(t *testing.T) {
	page := func(total, pages, current int, serials string) string {
		return fmt.Sprintf(`{"code":"SUCCESS","msg":"Success","data":{"totalCnt":%d,"totalPageNo":%d,"currentPageNo":%d,"listCerts":[%s]}}`, total, pages, current, serials)
	}
	for _, tt := range []struct {
		name  string
		pages []string
	}{
		{"a list that is shorter than it says", []string{page(2, 1, 1, `"01"`)}},
		{"an entry twice", []string{page(2, 1, 1, `"01","00:01"`)}},
		{"a page repeated", []string{page(2, 2, 1, `"01"`), page(2, 2, 1, `"01"`)}},
		{"a page repeated under another number", []string{page(2, 2, 1, `"01"`), page(2, 2, 2, `"01"`)}},
		{"a list that becomes shorter", []string{page(3, 2, 1, `"01","02"`), page(2, 2, 2, `"03"`)}},
		{"a list that grows although nothing was issued", []string{page(2, 2, 1, `"01"`), page(3, 2, 2, `"02","03"`)}},
		{"a page that is empty", []string{page(2, 2, 1, ``)}},
		{"more entries than it says", []string{page(1, 1, 1, `"01","02"`)}},
		{"no serial number", []string{page(1, 1, 1, `"xyz"`)}},
		{"a serial number that is too long", []string{page(1, 1, 1, `"`+strings.Repeat("01:", 40)+`01"`)}},
		{"no total", []string{`{"code":"SUCCESS","msg":"Success","data":{"listCerts":[]}}`}},
		{"a service error", []string{`{"code":"INVALID_INPUT_PAGENUMBBER","msg":"Invalid page no value."}`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.Exclusive = false })
			req := r.request("o", newKey(t, ""), "a.example")
			r.lose(req, ncloudtest.Fault{Kind: ncloudtest.DropBefore})
			r.clock.Advance(time.Minute)
			for n, p := range tt.pages {
				count := 1
				if n == len(tt.pages)-1 {
					count = -1
				}
				r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 200, Operation: "getEndCertList", Body: p, Count: count})
			}
			if _, got := r.find(req); got != "cannot tell" {
				t.Errorf("got %s", got)
			}
			r.sim.ClearFaults()
			if _, got := r.find(req); got != "not issued" {
				t.Errorf("with a good list again: got %s", got)
			}
		})
	}
}

func TestAServiceThatIgnoresPageNumbersProvesNothing(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Exclusive = false })
	for range 12 {
		if err := r.sim.IssueElsewhere("elsewhere.example"); err != nil {
			t.Fatal(err)
		}
	}
	r.change(func(b *ncloudtest.Behaviour) { b.PageIgnored = true })
	req := r.request("o", newKey(t, ""), "a.example")
	r.lose(req, ncloudtest.Fault{Kind: ncloudtest.DropBefore})
	r.clock.Advance(time.Minute)
	_, err := r.Find(t.Context(), req)
	if verdict(err) != "cannot tell" || !strings.Contains(err.Error(), "pageNo") {
		t.Errorf("got %v", err)
	}
}

func TestFindSurvivesTroubleOnItsWay(t *testing.T) {
	for _, operation := range []string{"getCa", "getEndCertList", "getEndCert", "getCaChain"} {
		r := newRig(t, nil)
		req := r.request("o", newKey(t, ""), "a.example")
		r.lose(req, ncloudtest.Fault{Kind: ncloudtest.DropAfter})
		r.clock.Advance(time.Minute)
		r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 503, Operation: operation, Count: -1})
		if _, err := r.Find(t.Context(), req); err == nil || errors.Is(err, acme.ErrNotIssued) {
			t.Errorf("%s away: got %v", operation, err)
		}
		r.sim.ClearFaults()
		r.inject(ncloudtest.Fault{Kind: ncloudtest.Throttle, RetryAfter: "2", Operation: operation})
		r.inject(ncloudtest.Fault{Kind: ncloudtest.MalformedBody, Operation: operation})
		if _, got := r.find(req); got != "issued" {
			t.Errorf("%s in trouble for a moment: got %s", operation, got)
		}
	}
	r := newRig(t, func(c *Config) { c.Exclusive = false })
	req := r.request("o", newKey(t, ""), "a.example")
	r.lose(req, ncloudtest.Fault{Kind: ncloudtest.DropAfter})
	r.clock.Advance(time.Minute)
	r.known.err = errors.New("store away")
	if _, got := r.find(req); got != "cannot tell" {
		t.Errorf("without the store: got %s", got)
	}
}

// TestOneCertificateEachWhateverHappens is the worker's loop in small, many
// orders at a time, with faults drawn at random.
func TestOneCertificateEachWhateverHappens(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	faults := []ncloudtest.Kind{ncloudtest.DropBefore, ncloudtest.DropAfter, ncloudtest.TimeoutAfter, ncloudtest.Throttle, ncloudtest.ApplyLate,
		ncloudtest.MalformedBody, ncloudtest.TruncatedBody, ncloudtest.StaleCertificate, ncloudtest.LateCount, ncloudtest.LateList}
	for _, exclusive := range []bool{true, false} {
		r := newRig(t, func(c *Config) { c.Exclusive = exclusive })
		r.change(func(b *ncloudtest.Behaviour) { b.PageSize = 3 })
		for round := range 6 {
			for range 8 {
				f := ncloudtest.Fault{Kind: faults[random.IntN(len(faults))], Skip: random.IntN(3)}
				switch f.Kind {
				case ncloudtest.ApplyLate, ncloudtest.LateCount, ncloudtest.LateList:
					f.DelayMS, f.Reads = 20_000, 1 // by the injected clock
				}
				r.inject(f)
			}
			var open []*acme.IssueRequest
			for n := range 8 {
				open = append(open, r.request(fmt.Sprintf("%t-%d-%d", exclusive, round, n), newKey(t, ""), fmt.Sprintf("n%d.example", n)))
			}
			sent := make([]bool, len(open))
			done := make([]bool, len(open))
			for step := 0; ; step++ {
				if step > 40 {
					t.Fatalf("orders not done after %d steps\n%s", step, r.log)
				}
				var wg sync.WaitGroup
				for n, req := range open {
					if done[n] {
						continue
					}
					wg.Go(func() {
						var got *acme.Issuance
						var err error
						if !sent[n] {
							// A new intent, saved before the call.
							again := *req
							again.Mark, again.Submitted = r.Mark(t.Context()), r.clock.Now()
							*req = again
							sent[n] = true
							got, err = r.Submit(t.Context(), req)
						} else {
							got, err = r.Find(t.Context(), req)
						}
						switch v := verdict(err); v {
						case "issued":
							if err := r.check(req, got); err != nil {
								t.Errorf("order %s: %v", req.OrderID, err)
							} else if !r.known.claim(got.Leaf, req.OrderID) {
								t.Errorf("order %s got another order's certificate", req.OrderID)
							}
							done[n] = true
						case "not sent", "not issued":
							sent[n] = false
						case "unknown", "cannot tell":
						default:
							t.Errorf("order %s: %v", req.OrderID, err)
							done[n] = true
						}
					})
				}
				wg.Wait()
				r.clock.Advance(45 * time.Second)
				left := false
				for n := range done {
					left = left || !done[n]
				}
				if !left {
					break
				}
			}
			r.sim.ClearFaults()
		}
		c := r.sim.Counters()
		if c.MostForOneKey != 1 || c.Issued != 48 {
			t.Errorf("exclusive %t: %d certificates for 48 orders, up to %d for one key", exclusive, c.Issued, c.MostForOneKey)
		}
	}
}
