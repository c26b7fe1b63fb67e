package certmanager

import (
	"crypto/x509/pkix"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

func TestValidatedDomain(t *testing.T) {
	r := newRig(t, nil)
	r.domain("example.com", DomainValid)
	e := r.issue(r.request("o1", newKey(t), "shop.example.com", "www.shop.example.com"))
	if e.took > 5*time.Second {
		t.Errorf("took %s, want seconds", e.took)
	}
	if got, want := len(e.got.Chain), 1; got != want {
		t.Errorf("got a chain of %d, want %d: the root stays out", got, want)
	}
	if got, want := r.counters().Paid, int64(1); got != want {
		t.Errorf("got %d paid requests, want %d", got, want)
	}
	list := r.sim.CMCertificates()
	if len(list) != 1 || list[0].Name != requestName("o1") || list[0].Method != "PD" {
		t.Errorf("got %+v", list)
	}
}

func TestRequestName(t *testing.T) {
	name := requestName("07abc")
	if len(name) != 20 || !strings.HasPrefix(name, "ab-") || name != requestName("07abc") || name == requestName("07abd") {
		t.Errorf("got %q", name)
	}
}

func TestSwitches(t *testing.T) {
	for name, set := range map[string]func(*ncloudtest.CMBehaviour){
		"answers as documented":              func(*ncloudtest.CMBehaviour) {},
		"number at the top":                  func(b *ncloudtest.CMBehaviour) { b.AnswerShape = "top" },
		"bare answer":                        func(b *ncloudtest.CMBehaviour) { b.AnswerShape = "bare" },
		"no number in the answer":            func(b *ncloudtest.CMBehaviour) { b.AnswerNumber = false },
		"no order in the answer":             func(b *ncloudtest.CMBehaviour) { b.AnswerOrderID = false },
		"numbers as strings":                 func(b *ncloudtest.CMBehaviour) { b.NumbersAsStrings = true },
		"lines end with LF":                  func(b *ncloudtest.CMBehaviour) { b.ChainLineEnd = "lf" },
		"empty lists are lists":              func(b *ncloudtest.CMBehaviour) { b.EmptyList = "list" },
		"names are searched for":             func(b *ncloudtest.CMBehaviour) { b.NameFilter = "contains" },
		"covered names are not shown":        func(b *ncloudtest.CMBehaviour) { b.CoveredRow = "empty" },
		"status 1":                           func(b *ncloudtest.CMBehaviour) { b.IssuedCode = "1" },
		"value field txtVal":                 func(b *ncloudtest.CMBehaviour) { b.ValueField = "txtVal" },
		"value field txtContent":             func(b *ncloudtest.CMBehaviour) { b.ValueField = "txtContent" },
		"value field recordValue":            func(b *ncloudtest.CMBehaviour) { b.ValueField = "recordValue" },
		"value field value":                  func(b *ncloudtest.CMBehaviour) { b.ValueField = "value" },
		"record name relative to the domain": func(b *ncloudtest.CMBehaviour) { b.RecordPD = "_persist"; b.RecordD = "_once" },
		"record name with a dot at its end":  func(b *ncloudtest.CMBehaviour) { b.RecordPD = "_persist.{domain}." },
		"records come late":                  func(b *ncloudtest.CMBehaviour) { b.RecordDelayMS = 45_000 },
		"issue takes time":                   func(b *ncloudtest.CMBehaviour) { b.IssueDelayMS = 600_000 },
		"names of the CSR are not compared":  func(b *ncloudtest.CMBehaviour) { b.CSRNames = "ignored" },
		"dates as milliseconds":              func(b *ncloudtest.CMBehaviour) { b.DateFormat = "millis" },
		"duplicate names are accepted":       func(b *ncloudtest.CMBehaviour) { b.DuplicateName = "accept" },
	} {
		for _, method := range []string{"PD", "D"} {
			t.Run(name+", "+method, func(t *testing.T) {
				r := newRig(t, func(r *rig, cfg *Config) {
					withPublisher(r, cfg)
					cfg.ValidationMethod = method
				})
				r.domain("example.net", DomainValid)
				r.zone.slow = 2
				r.change(set)
				e := r.issue(r.request("o1", newKey(t), "a.example.com", "*.a.example.com", "b.example.com"))
				if got := r.counters(); got.Paid != 1 {
					t.Errorf("got %d paid requests, want 1", got.Paid)
				}
				if h := e.events(); !strings.Contains(h, "VALID_STATUS_REG: TXT record _") || !strings.Contains(h, "served by all") || strings.Contains(h, "*.") {
					t.Errorf("history:\n%s", h)
				}
				if got, want := len(r.zone.removed) > 0, method == "D"; got != want {
					t.Errorf("records removed: got %v, want %v", got, want)
				}
				if e := r.run(r.request("o2", newKey(t), "x.example.net")); method == "PD" && e.got == nil {
					t.Errorf("on a validated domain: %v %v", e.problem, e.err)
				}
			})
		}
	}
}

func TestEventsAreChangesOnly(t *testing.T) {
	r := newRig(t, withPublisher)
	r.zone.slow = 5
	r.change(func(b *ncloudtest.CMBehaviour) { b.IssueDelayMS = 300_000 })
	e := r.issue(r.request("o1", newKey(t), "a.example.com"))
	for _, want := range []string{"VALID_STATUS_REG", "VALID_STATUS_SUCCESS", "being published", "served by all"} {
		if got := strings.Count(e.events(), want); got != 1 {
			t.Errorf("got %d events with %q, want 1:\n%s", got, want, e.events())
		}
	}
}

func TestOutcomes(t *testing.T) {
	for _, tt := range []struct {
		code    string
		problem acme.ProblemType
		subs    int
	}{
		{"-1", acme.ServerInternal, 0},
		{"-3", acme.Unauthorized, 2},
		{"-4", acme.Unauthorized, 2},
		{"-11", acme.BadCSR, 0},
		{"-12", acme.ServerInternal, 0}, // after a good validation
		{"-20", acme.ServerInternal, 0},
	} {
		for _, delay := range []int64{0, 60_000} {
			t.Run(tt.code, func(t *testing.T) {
				r := newRig(t, withPublisher)
				r.change(func(b *ncloudtest.CMBehaviour) { b.IssueDelayMS = delay })
				if err := r.sim.ForceOutcome("", tt.code, 1); err != nil {
					t.Fatal(err)
				}
				e := r.run(r.request("o1", newKey(t), "a.example.com", "b.example.com"))
				if e.problem == nil || e.problem.Type != tt.problem || len(e.problem.Subproblems) != tt.subs {
					t.Fatalf("got %v, want %s with %d subproblems", e.problem, tt.problem, tt.subs)
				}
				for _, s := range e.problem.Subproblems {
					if s.Type != acme.DNS || s.Identifier == nil || delay > 0 && !strings.Contains(s.Detail, "_validation-persist."+s.Identifier.Value) {
						t.Errorf("subproblem: %v %+v", s, s.Identifier)
					}
				}
				if got := r.counters(); got.Paid != 1 || got.Issued != 0 {
					t.Errorf("got %+v", got)
				}
			})
		}
	}
}

func TestTimeouts(t *testing.T) {
	t.Run("nobody publishes the record, and the bridge gives up", func(t *testing.T) {
		r := newRig(t, nil)
		key := newKey(t)
		e := r.run(r.request("o1", key, "a.example.com", "*.a.example.com", "example.com"))
		if e.problem == nil || e.problem.Type != acme.Unauthorized || len(e.problem.Subproblems) != 3 {
			t.Fatalf("got %+v", e)
		}
		if e.took < DefaultDCVTimeout || e.took > DefaultDCVTimeout+2*time.Minute {
			t.Errorf("gave up after %s", e.took)
		}
		if !strings.Contains(e.events(), "waits for the domain's owner") {
			t.Errorf("history:\n%s", e.events())
		}
	})
	for _, tt := range []struct {
		name           string
		late           time.Duration // between the issue of the abandoned request and the next order
		new            bool          // its key
		paid, reissued int64
	}{
		{"the next order with the same key takes the request over while it is open", -1, false, 1, 0},
		{"and once it is issued", 2 * time.Hour, false, 1, 0},
		{"but not after days", 72 * time.Hour, false, 1, 1},
		{"with another key it is reissued", 2 * time.Hour, true, 1, 1},
		{"if it was issued by then", -1, true, 2, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			key := newKey(t)
			e := r.run(r.request("o1", key, "a.example.com", "*.a.example.com", "example.com"))
			if e.problem == nil {
				t.Fatalf("got %+v", e)
			}
			for _, c := range e.problem.Subproblems {
				name, value, ok := strings.Cut(strings.TrimPrefix(c.Detail, "expected TXT record "), " with the value ")
				if !ok {
					t.Fatal(c.Detail)
				}
				if err := r.sim.Publish(name, "TXT", strings.Trim(value, `"`)); err != nil {
					t.Fatal(err)
				}
			}
			if tt.late >= 0 {
				r.pass(time.Second) // now it is issued
				r.clock.Advance(tt.late)
			}
			if tt.new {
				key = newKey(t)
			}
			r.issue(r.request("o2", key, "a.example.com", "*.a.example.com", "example.com"))
			if got := r.counters(); got.Paid != tt.paid || got.Reissued != tt.reissued {
				t.Errorf("got %d paid, %d reissued, want %d, %d", got.Paid, got.Reissued, tt.paid, tt.reissued)
			}
		})
	}
	t.Run("the service gives up", func(t *testing.T) {
		r := newRig(t, withPublisher)
		r.zone.names = []string{"a.example.com"}
		r.change(func(b *ncloudtest.CMBehaviour) { b.ValidationTimeoutMS = 600_000 })
		e := r.run(r.request("o1", newKey(t), "a.example.com", "b.example.com"))
		if e.problem == nil || e.problem.Type != acme.Unauthorized || len(e.problem.Subproblems) != 1 || e.problem.Subproblems[0].Identifier.Value != "b.example.com" {
			t.Fatalf("got %+v", e.problem)
		}
	})
	t.Run("a publisher that fails", func(t *testing.T) {
		r := newRig(t, withPublisher)
		r.zone.err = errors.New("no such key")
		e := r.run(r.request("o1", newKey(t), "a.example.com"))
		if e.problem == nil || e.problem.Type != acme.Unauthorized || !strings.Contains(e.events(), "could not be published yet") || strings.Contains(e.events(), "no such key") {
			t.Fatalf("got %+v\n%s", e.problem, e.events())
		}
	})
}

func TestLostAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		fault ncloudtest.Fault
		paid  int64
	}{
		"applied, connection closed":              {ncloudtest.Fault{Kind: ncloudtest.DropAfter}, 1},
		"applied, 504":                            {ncloudtest.Fault{Kind: ncloudtest.TimeoutAfter}, 1},
		"applied, no JSON":                        {ncloudtest.Fault{Kind: ncloudtest.MalformedBody}, 1},
		"applied, half an answer":                 {ncloudtest.Fault{Kind: ncloudtest.TruncatedBody}, 1},
		"applied seconds after a 504":             {ncloudtest.Fault{Kind: ncloudtest.ApplyLate, DelayMS: 15_000}, 1},
		"not applied, connection closed":          {ncloudtest.Fault{Kind: ncloudtest.DropBefore}, 1},
		"not applied, twice":                      {ncloudtest.Fault{Kind: ncloudtest.DropBefore, Count: 2}, 1},
		"not applied, 500":                        {ncloudtest.Fault{Kind: ncloudtest.Status, Status: 500}, 1},
		"throttled":                               {ncloudtest.Fault{Kind: ncloudtest.Throttle, Count: 3, RetryAfter: "7"}, 1},
		"the lists show it late":                  {ncloudtest.Fault{Kind: ncloudtest.LateList, DelayMS: 120_000}, 1},
		"answered with an unknown success status": {ncloudtest.Fault{Kind: ncloudtest.TimeoutAfter, Status: 302, Body: "moved"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.domain("example.com", DomainValid)
			r.inject(tt.fault)
			e := r.issue(r.request("o1", newKey(t), "shop.example.com"))
			if got := r.counters(); got.Paid != tt.paid || got.MostForOneName > 1 || got.MostForOneKey > 1 {
				t.Errorf("got %+v, want %d paid\n%s", got, tt.paid, e.events())
			}
		})
	}
}

func TestFindNeedsThreeLooks(t *testing.T) {
	r := newRig(t, nil)
	req := r.request("o1", newKey(t), "a.example.com")
	req.Submitted = r.clock.Now()
	for _, tt := range []struct {
		after time.Duration
		done  bool
	}{{time.Second, false}, {21 * time.Second, false}, {10 * time.Second, false}, {10 * time.Second, false}, {10 * time.Second, true}} {
		r.clock.Advance(tt.after)
		_, err := r.Find(t.Context(), req)
		if got := errors.Is(err, acme.ErrNotIssued); got != tt.done {
			t.Errorf("%s after the submit: got %v, want not issued: %v", r.clock.Now().Sub(req.Submitted), err, tt.done)
		}
	}
	r.clock.Advance(time.Minute)
	req.Submitted = r.clock.Now() // the next attempt begins anew
	r.clock.Advance(time.Minute)
	if _, err := r.Find(t.Context(), req); errors.Is(err, acme.ErrNotIssued) {
		t.Error("concluded from the looks of an earlier attempt")
	}
}

func TestRefusals(t *testing.T) {
	status := func(status int, body string) ncloudtest.Fault {
		return ncloudtest.Fault{Kind: ncloudtest.Status, Status: status, Body: body}
	}
	for name, tt := range map[string]struct {
		fault ncloudtest.Fault
		want  acme.ProblemType
	}{
		"bad CSR with HTTP 200":    {status(200, `{"returnCode":"1002","returnMessage":"not PEM"}`), acme.BadCSR},
		"CSR in the words":         {status(200, `{"returnCode":"77","returnMessage":"The CSR is wrong"}`), acme.BadCSR},
		"bad name with HTTP 400":   {status(400, `{"returnCode":"2000","returnMessage":"bad certificateName"}`), acme.ServerInternal},
		"organization":             {status(200, `{"returnCode":"3000","returnMessage":"The organization is not validated"}`), acme.RejectedIdentifier},
		"quota":                    {status(200, `{"returnCode":"3000","returnMessage":"subscription exceeded"}`), acme.RejectedIdentifier},
		"credentials":              {status(401, `{"error":{"errorCode":"200","message":"Authentication Failed"}}`), acme.ServerInternal},
		"permission":               {status(401, `{"error":{"errorCode":"210","message":"Permission Denied"}}`), acme.ServerInternal},
		"a number as returnCode":   {status(200, `{"returnCode":26034,"returnMessage":"?"}`), acme.ServerInternal},
		"not found at the gateway": {status(404, `{"error":{"errorCode":"300","message":"Not Found Exception"}}`), acme.ServerInternal},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.domain("example.com", DomainValid)
			r.inject(tt.fault)
			e := r.run(r.request("o1", newKey(t), "a.example.com"))
			if e.problem == nil || e.problem.Type != tt.want {
				t.Errorf("got %+v, want %s", e, tt.want)
			}
			if e.attempts != 1 || r.counters().Paid != 0 {
				t.Errorf("%d attempts, %d paid", e.attempts, r.counters().Paid)
			}
		})
	}
}

func TestOrganization(t *testing.T) {
	r := newRig(t, func(_ *rig, cfg *Config) { cfg.CertificateType, cfg.OrganizationNo = TypeOV, 1001 })
	r.domain("example.com", DomainValid)
	if e := r.run(r.request("o1", newKey(t), "a.example.com")); e.problem == nil || e.problem.Type != acme.BadCSR {
		t.Errorf("without a country: got %+v", e)
	}
	r.issue(r.requestOf("o2", newKey(t), pkix.Name{Country: []string{"KR"}}, "a.example.com"))
}

func TestThrottlingSlowsEverybody(t *testing.T) {
	r := newRig(t, withPublisher)
	r.change(func(b *ncloudtest.CMBehaviour) { b.IssueDelayMS = 3_600_000 })
	req := r.request("o1", newKey(t), "a.example.com")
	req.Submitted = r.clock.Now()
	got, err := r.Submit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	r.inject(ncloudtest.Fault{Kind: ncloudtest.Throttle, Operation: "listAdvancedCertificates", Count: 8})
	r.pass(got.RetryAfter)
	if got, err = r.Poll(t.Context(), req, got.Ticket); err != nil || got.Ticket == "" || got.RetryAfter < 10*time.Second {
		t.Fatalf("got %+v, %v", got, err)
	}
	before := r.sim.Counters().Calls["listAdvancedCertificates"]
	other := r.request("o2", newKey(t), "b.example.com")
	if _, err := r.Submit(t.Context(), other); err == nil {
		t.Error("another order was submitted during the pause")
	} else if n, ok := errors.AsType[*acme.NotSentError](err); !ok || n.After <= 0 {
		t.Errorf("got %v, want not sent", err)
	}
	if after := r.sim.Counters().Calls["listAdvancedCertificates"]; after != before {
		t.Error("the service was asked during the pause")
	}
	if got := r.pace.stretch(time.Second); got < 2*time.Second {
		t.Errorf("the pace is %s for a second, want it doubled", got)
	}
	r.issue(other)
}

func TestOneFeedForAllOrders(t *testing.T) {
	r := newRig(t, withPublisher)
	r.change(func(b *ncloudtest.CMBehaviour) { b.IssueDelayMS = 3_600_000 })
	type open struct {
		req    *acme.IssueRequest
		ticket string
	}
	var orders []open
	for _, n := range []string{"a", "b", "c", "d", "e", "f"} {
		req := r.request("o"+n, newKey(t), n+".example.com")
		req.Submitted = r.clock.Now()
		got, err := r.Submit(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		orders = append(orders, open{req, got.Ticket})
	}
	rounds := 60
	for range rounds {
		r.pass(10 * time.Second)
		for n := range orders {
			got, err := r.Poll(t.Context(), orders[n].req, orders[n].ticket)
			if err != nil {
				t.Fatal(err)
			}
			orders[n].ticket = got.Ticket
		}
	}
	calls := r.sim.Counters().Calls
	if got := calls["listRecentCertChanges"]; got == 0 || got > int64(rounds) {
		t.Errorf("got %d calls of the feed in %d intervals", got, rounds)
	}
	if got, most := calls["listAdvancedCertificates"], int64(len(orders)*rounds); got > most {
		t.Errorf("got %d looks at rows, want fewer than %d", got, most)
	}
}
