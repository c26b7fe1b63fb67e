package upstream

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

func TestIssuesByDNSAndThenBeforehand(t *testing.T) {
	r := newRig(t, rigOptions{})
	i := r.issuer(ModeDNS01)
	r.zone.slow = 2
	o := r.obtain(i, newRequest(t, "one", "example.com", "*.example.com", "www.example.com"))
	story := strings.Join(o.events, "\n")
	for _, want := range []string{
		"order made at the upstream", "upstream order is pending", "www.example.com TXT record _acme-challenge.www.example.com with the value",
		"is being published", "*.example.com TXT record _acme-challenge.example.com", "the certificate authority is to look at it", "upstream order is valid",
	} {
		if !strings.Contains(story, want) {
			t.Errorf("the events lack %q:\n%s", want, story)
		}
	}
	r.zone.left(t)
	// The same account has the names validated now.
	published := r.zone.publish
	pre := r.issuer(ModePre)
	r.obtain(pre, newRequest(t, "two", "www.example.com"))
	if r.zone.publish != published || r.called("new-account") != 2 {
		t.Errorf("%d records published, %d calls of newAccount; want no more and 2 (asked, made)", r.zone.publish-published, r.called("new-account"))
	}
	r.issued(2)
}

func TestRefusesWhatIsNotValidatedBeforehand(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.obtain(r.issuer(ModeDNS01), newRequest(t, "one", "known.example"))
	i, req := r.issuer(ModePre), newRequest(t, "two", "known.example", "a.example", "*.b.example")
	got := r.submit(i, req)
	// Some patience first: it may only not be shown yet.
	if next, err := i.Poll(t.Context(), req, got.Ticket); err != nil || next.Ticket == "" {
		t.Fatalf("first Poll = %+v, %v, want a ticket", next, err)
	}
	r.now.Add(int64(preGrace) + int64(time.Second))
	o := r.follow(req, got, i)
	if o.problem == nil || o.problem.Type != acme.Unauthorized || len(o.problem.Subproblems) != 2 {
		t.Fatalf("problem %+v, want unauthorized with two subproblems", o.problem)
	}
	for n, want := range []string{"a.example", "*.b.example"} {
		if s := o.problem.Subproblems[n]; s.Identifier == nil || s.Identifier.Value != want || s.Type != acme.Unauthorized {
			t.Errorf("subproblem %+v, want unauthorized for %s", s, want)
		}
	}
	r.issued(1)
}

func TestFailedValidationIsCopied(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.zone.failNext = acme.Problemf(acme.IncorrectResponse, "found \"x\"\x07 at https://upstream.example/order/17?key=1 instead")
	i, req := r.issuer(ModeDNS01), newRequest(t, "one", "a.example")
	o := r.follow(req, r.submit(i, req), i)
	if o.problem == nil || len(o.problem.Subproblems) != 1 {
		t.Fatalf("problem %+v, want one subproblem", o.problem)
	}
	s := o.problem.Subproblems[0]
	if s.Type != acme.IncorrectResponse || *s.Identifier != req.Identifiers[0] || !strings.Contains(s.Detail, "found \"x\"") ||
		strings.Contains(s.Detail, "://") || strings.Contains(s.Detail, "\x07") {
		t.Errorf("subproblem %+v, want incorrectResponse, cleaned", s)
	}
	r.zone.left(t)
	r.issued(0)
}

func TestRecordThatIsNeverServedEndsTheOrder(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.zone.refuse = errors.New("zone is locked")
	i, req := r.issuer(ModeDNS01), newRequest(t, "one", "a.example")
	got := r.submit(i, req)
	got, err := i.Poll(t.Context(), req, got.Ticket)
	if err != nil {
		t.Fatal(err)
	}
	r.now.Add(int64(DefaultOrderTimeout + time.Minute))
	o := r.follow(req, got, i)
	if o.problem == nil || o.problem.Type != acme.Unauthorized || len(o.problem.Subproblems) != 1 {
		t.Fatalf("problem %+v, want unauthorized with a subproblem", o.problem)
	}
	if s := o.problem.Subproblems[0]; s.Type != acme.DNS || !strings.Contains(s.Detail, "expected TXT record _acme-challenge.a.example with the value") {
		t.Errorf("subproblem %+v, want dns with the record", s)
	}
	if strings.Contains(strings.Join(o.events, " "), "locked") {
		t.Errorf("the publisher's error is among the events: %v", o.events)
	}
}

// A crash after each poll, and answers that are lost on the way.
func TestLostAnswersNeverCostASecondCertificate(t *testing.T) {
	for _, lost := range []string{"order", "authz", "challenge", "finalize", "certificate"} {
		t.Run(lost, func(t *testing.T) {
			r := newRig(t, rigOptions{})
			i, req := r.issuer(ModeDNS01), newRequest(t, "one", "a.example")
			got := r.submit(i, req)
			dropped := false
			r.setFault(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				r.mu.Lock()
				now := kind(q) == lost && !dropped
				dropped = dropped || now
				r.mu.Unlock()
				if now {
					drop(q, next)
				}
				next.ServeHTTP(w, q)
			})
			// Every poll is by another process.
			o := r.follow(req, got, r.issuer(ModeDNS01), r.issuer(ModeDNS01), r.issuer(ModeDNS01))
			r.good(i, req, o)
			r.issued(1)
			r.zone.left(t)
			if !dropped {
				t.Error("nothing was lost")
			}
			// The outcome was not saved: the same poll comes once more.
			again := r.follow(req, got, r.issuer(ModeDNS01))
			if !again.Leaf.Equal(o.Leaf) {
				t.Error("another poll with the first ticket brought another certificate")
			}
			r.issued(1)
		})
	}
}

func TestReplicasThatPollSideBySideGetOneCertificate(t *testing.T) {
	r := newRig(t, rigOptions{})
	req := newRequest(t, "one", "a.example", "b.example")
	first := r.issuer(ModeDNS01)
	got := r.submit(first, req)
	outcomes := make([]*outcome, 3)
	var group sync.WaitGroup
	for n := range outcomes {
		group.Go(func() { outcomes[n] = r.follow(req, got, r.issuer(ModeDNS01)) })
	}
	group.Wait()
	for _, o := range outcomes {
		r.good(first, req, o)
		if !o.Leaf.Equal(outcomes[0].Leaf) {
			t.Error("replicas have different certificates")
		}
	}
	r.issued(1)
}

func TestLostNewOrderIsSentAgain(t *testing.T) {
	r := newRig(t, rigOptions{})
	i, req := r.issuer(ModeDNS01), newRequest(t, "one", "a.example")
	r.setFault(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if kind(q) == "new-order" {
			drop(q, next)
		}
		next.ServeHTTP(w, q)
	})
	_, err := i.Submit(t.Context(), req)
	if _, ok := errors.AsType[*acme.NotSentError](err); !ok {
		t.Fatalf("Submit: %v, want not sent", err)
	}
	if n := r.called("new-order"); n != 1 {
		t.Errorf("newOrder was called %d times, want once", n)
	}
	if _, err := i.Find(t.Context(), req); !errors.Is(err, acme.ErrNotIssued) {
		t.Errorf("Find: %v, want not issued", err)
	}
	r.setFault(nil)
	r.obtain(i, req)
	r.issued(1)
}

func TestAnswersToNewOrder(t *testing.T) {
	r := newRig(t, rigOptions{})
	i := r.issuer(ModePre)
	if _, err := i.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		status int
		body   map[string]any
		after  string
		want   acme.ProblemType // "": not sent
		detail string
		subs   int
	}{
		{"refused names", 403, problemBody("rejectedIdentifier", "not allowed, account https://upstream.example/acct/1",
			map[string]any{"type": typeURN + "caa", "detail": "CAA", "identifier": map[string]any{"type": "dns", "value": "b.example"}},
			map[string]any{"type": typeURN + "caa", "detail": "for nobody", "identifier": map[string]any{"type": "dns", "value": "z.example"}}),
			"", acme.RejectedIdentifier, "not allowed, account (URL)", 1},
		{"not validated beforehand", 403, problemBody("unauthorized", "domain is not pre-validated"), "", acme.Unauthorized, "domain is not pre-validated", 0},
		{"a request that it does not like", 400, problemBody("malformed", "account kid-1 is odd"), "", acme.ServerInternal, "the certificate authority refused the order", 0},
		{"rate limit", 429, problemBody("rateLimited", "slow down"), "120", "", "", 0},
		{"server error", 500, problemBody("serverInternal", "oops"), "", "", "", 0},
		{"maintenance", 503, map[string]any{}, "30", "", "", 0},
		{"new terms", 403, problemBody("userActionRequired", "new terms"), "", "", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := r.called("new-order")
			r.setFault(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if kind(q) != "new-order" {
					next.ServeHTTP(w, q)
					return
				}
				h := http.Header{}
				if tt.after != "" {
					h.Set("Retry-After", tt.after)
				}
				reply(w, q, next, tt.status, h, tt.body)
			})
			_, err := i.Submit(t.Context(), newRequest(t, "one", "a.example", "b.example"))
			if n := r.called("new-order") - before; n != 1 {
				t.Errorf("newOrder was called %d times, want once", n)
			}
			p, refused := errors.AsType[*acme.Problem](err)
			notSent, _ := errors.AsType[*acme.NotSentError](err)
			switch {
			case tt.want == "" && notSent == nil, tt.want != "" && !refused:
				t.Fatalf("Submit: %v, want %q", err, tt.want)
			case refused && (p.Type != tt.want || p.Detail != tt.detail || len(p.Subproblems) != tt.subs):
				t.Errorf("problem %+v, want %s, %q, %d subproblems", p, tt.want, tt.detail, tt.subs)
			case notSent != nil && tt.after == "120" && notSent.After != 2*time.Minute:
				t.Errorf("to be sent after %s, want 2m", notSent.After)
			}
		})
	}
}

func TestRefusedCSREndsTheOrder(t *testing.T) {
	r := newRig(t, rigOptions{})
	i := r.issuer(ModeDNS01)
	req := newRequest(t, "one", "a.example")
	got := r.submit(i, req)
	req.CSR = newRequest(t, "one", "other.example").CSR
	o := r.follow(req, got, i)
	if o.problem == nil || o.problem.Type != acme.BadCSR {
		t.Fatalf("problem %+v, want badCSR", o.problem)
	}
	if n := r.called("finalize"); n != 1 {
		t.Errorf("finalize was called %d times, want once", n)
	}
	r.zone.left(t)
}

func TestFailureOfTheCAIsCopied(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.ca.refuse.Store(acme.Problemf(caa, "CAA record forbids it"))
	i, req := r.issuer(ModeDNS01), newRequest(t, "one", "a.example")
	o := r.follow(req, r.submit(i, req), i)
	if o.problem == nil || o.problem.Type != caa || o.problem.Detail != "CAA record forbids it" {
		t.Fatalf("problem %+v, want the CA's", o.problem)
	}
	r.zone.left(t)
}

// While the CA works its Retry-After is passed on, and each poll asks once.
func TestProcessingOrderIsLeftAloneAsTheServerSays(t *testing.T) {
	gate := make(chan struct{})
	r := newRig(t, rigOptions{gate: gate})
	defer func() {
		if gate != nil {
			close(gate)
		}
	}()
	i, req := r.issuer(ModeDNS01), newRequest(t, "one", "a.example")
	r.setFault(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if k := kind(q); k != "order" && k != "finalize" {
			next.ServeHTTP(w, q)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, q)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Retry-After", "77")
		w.WriteHeader(rec.Code)
		if _, err := w.Write(rec.Body.Bytes()); err != nil {
			t.Error(err)
		}
	})
	got := r.submit(i, req)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for state := ""; state != "processing"; <-tick.C {
		next, err := i.Poll(t.Context(), req, got.Ticket)
		if err != nil {
			t.Fatal(err)
		}
		got = next
		ticket, err := parseTicket(got.Ticket)
		if err != nil {
			t.Fatal(err)
		}
		state = ticket.State
	}
	before := r.called("order")
	next, err := i.Poll(t.Context(), req, got.Ticket)
	if err != nil || next.RetryAfter != 77*time.Second {
		t.Errorf("Poll = %+v, %v, want 77 s", next, err)
	}
	if n := r.called("order") - before; n != 1 {
		t.Errorf("one poll asked %d times", n)
	}
	close(gate)
	gate = nil
	r.good(i, req, r.follow(req, got, i))
	if n := r.called("finalize"); n != 1 {
		t.Errorf("finalize was called %d times, want once", n)
	}
	r.issued(1)
}

// Let's Encrypt answers newOrder with an order that is open already.
func TestOrderThatIsAnothersIsReplaced(t *testing.T) {
	r := newRig(t, rigOptions{})
	i := r.issuer(ModeDNS01)
	var first *httptest.ResponseRecorder
	reused := 0
	r.setFault(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if kind(q) != "new-order" {
			next.ServeHTTP(w, q)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if first == nil {
			first = httptest.NewRecorder()
			next.ServeHTTP(first, q)
			reply(w, q, next, first.Code, http.Header{"Location": first.Header()["Location"]}, json.RawMessage(first.Body.Bytes()))
			return
		}
		if reused++; reused == 1 {
			reply(w, q, next, first.Code, http.Header{"Location": first.Header()["Location"]}, json.RawMessage(first.Body.Bytes()))
			return
		}
		next.ServeHTTP(w, q)
	})
	one, two := newRequest(t, "one", "a.example"), newRequest(t, "two", "a.example")
	ticketOne, ticketTwo := r.submit(i, one), r.submit(i, two)
	r.good(i, one, r.follow(one, ticketOne, i))
	o := r.follow(two, ticketTwo, i)
	r.good(i, two, o)
	if !slices.ContainsFunc(o.events, func(s string) bool { return strings.Contains(s, "another's") }) {
		t.Errorf("the events do not tell: %v", o.events)
	}
	r.issued(2)
	r.zone.left(t)
}

func TestValidityThatWasAskedForIsPassedOn(t *testing.T) {
	r := newRig(t, rigOptions{})
	i, req := r.issuer(ModeDNS01), newRequest(t, "one", "a.example")
	req.NotAfter = time.Now().Add(5 * day).Truncate(time.Second)
	r.obtain(i, req)
}

func TestRevocation(t *testing.T) {
	r := newRig(t, rigOptions{})
	i := r.issuer(ModeDNS01)
	leaf := r.obtain(i, newRequest(t, "one", "a.example")).Leaf
	if _, ok := errors.AsType[*acme.Problem](i.Revoke(t.Context(), leaf, 7)); !ok {
		t.Error("reason 7 was not refused with a problem")
	}
	for n := range 2 { // twice is no error
		if err := r.issuer(ModePre).Revoke(t.Context(), leaf, -1); err != nil {
			t.Errorf("revocation %d: %v", n+1, err)
		}
	}
	if err := i.Revoke(t.Context(), &x509.Certificate{Raw: []byte("none")}, 1); err == nil {
		t.Error("nonsense was revoked")
	}
}

func TestPreflight(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.zone.foreign = "b.example"
	ids := newRequest(t, "one", "a.example", "*.b.example").Identifiers
	err := r.issuer(ModeDNS01).Preflight(t.Context(), ids)
	p, ok := errors.AsType[*acme.Problem](err)
	if !ok || p.Type != acme.RejectedIdentifier || len(p.Subproblems) != 1 || *p.Subproblems[0].Identifier != ids[1] {
		t.Errorf("Preflight = %v, want rejectedIdentifier for %s", err, ids[1].Value)
	}
	if err := r.issuer(ModePre).Preflight(t.Context(), ids); err != nil {
		t.Errorf("Preflight without publisher: %v", err)
	}
}

func TestUpstreamThatHangsOrSendsTooMuch(t *testing.T) {
	r := newRig(t, rigOptions{})
	i, req := r.issuer(ModePre, func(c *Config) { c.Timeout = time.Second }), newRequest(t, "one", "a.example")
	got := r.submit(i, req)
	for name, fault := range map[string]func(w http.ResponseWriter, q *http.Request, next http.Handler){
		"endless": func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusOK)
			for q.Context().Err() == nil {
				if _, err := w.Write([]byte(`{"status":"` + strings.Repeat("x", 1<<16))); err != nil {
					return
				}
			}
		},
		"silent":   func(_ http.ResponseWriter, q *http.Request, _ http.Handler) { <-q.Context().Done() },
		"nonsense": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.Write([]byte("<html>")) },
		"elsewhere": func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
			http.Redirect(w, q, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		},
	} {
		r.setFault(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
			if kind(q) != "order" {
				next.ServeHTTP(w, q)
				return
			}
			peek(t, q) // or its end would not be noticed
			fault(w, q, next)
		})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		next, err := i.Poll(ctx, req, got.Ticket)
		if err != nil || next.Ticket == "" || ctx.Err() != nil {
			t.Errorf("%s: Poll = %+v, %v, want the ticket", name, next, err)
		}
		cancel()
	}
}

// The ticket that knew of the record was lost in a crash, and meanwhile the
// validation has failed.
func TestRecordsOfALostTicketAreRemoved(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.zone.failNext = acme.Problemf(acme.DNS, "no TXT record")
	i, req := r.issuer(ModeDNS01), newRequest(t, "one", "a.example")
	first := r.submit(i, req)
	if _, err := i.Poll(t.Context(), req, first.Ticket); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(patience); ; {
		c, err := i.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := parseTicket(first.Ticket)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := c.GetOrder(t.Context(), parsed.URL); err != nil {
			t.Fatal(err)
		} else if o.Status == "invalid" {
			break
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("the order does not fail")
		}
	}
	if o := r.follow(req, first, r.issuer(ModeDNS01)); o.problem == nil {
		t.Error("the order has no problem")
	}
	r.zone.left(t)
	if r.zone.removed == 0 {
		t.Error("nothing was removed")
	}
}
