package server_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/acme-bridge/acme-bridge/acme"
)

func (a *answer) challenge() *challenge {
	a.Helper()
	ch := &challenge{}
	a.decode(ch)
	return ch
}

// find returns the authorization's challenge of that type.
func (z *authorization) find(t testing.TB, typ string) challenge {
	t.Helper()
	i := slices.IndexFunc(z.Challenges, func(ch challenge) bool { return ch.Type == typ })
	if i < 0 {
		t.Fatalf("no %s challenge in %+v", typ, z)
	}
	return z.Challenges[i]
}

func TestSection7_5_1_AChallengeBecomesValid(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.newOrder("a.example", "b.example")
	ch := c.readAuthz(o.Authorizations[0]).find(t, "dns-01")
	a := c.post(ch.URL, `{"type":"http-01","keyAuthorization":"x","resource":"challenge"}`).want(http.StatusOK)
	if links := a.header.Values("Link"); !slices.Equal(links, []string{indexLink, "<" + o.Authorizations[0] + `>;rel="up"`}) {
		t.Errorf("Link headers %q", links)
	}
	if got := a.challenge(); got.URL != ch.URL || got.Type != "dns-01" || got.Token != ch.Token || got.Status != "valid" || parseTime(t, got.Validated).IsZero() {
		t.Errorf("challenge after a quick validation: %+v", got)
	}
	z := c.readAuthz(o.Authorizations[0])
	if z.Status != "valid" || parseTime(t, z.Expires).IsZero() || len(z.Challenges) != 1 || z.Challenges[0].Type != "dns-01" || z.Challenges[0].Status != "valid" {
		t.Errorf("authorization: %+v", z)
	}
	if got := c.readOrder(o.URL).Status; got != "pending" {
		t.Errorf("order with one of two authorizations is %s", got)
	}
	v := w.validator.validations()
	if len(v) != 1 || v[0].Type != acme.DNS01 || v[0].Identifier.Value != "a.example" || v[0].KeyAuthorization != ch.Token+"."+thumbprint(t, c.key.Public()) {
		t.Errorf("validations: %+v", v)
	}
	if got := c.prove(o).Status; got != "ready" {
		t.Errorf("order with both is %s", got)
	}
}

// TestSection7_5_1_ReadingStartsNoValidation: POST-as-GET of a challenge.
func TestSection7_5_1_ReadingStartsNoValidation(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.newOrder("a.example")
	ch := c.readAuthz(o.Authorizations[0]).Challenges[0]
	a := c.read(ch.URL).want(http.StatusOK)
	if got := a.challenge(); got.Status != "pending" || len(a.header.Values("Link")) != 2 || a.header.Get("Retry-After") != "" {
		t.Errorf("challenge: %+v, headers %v", got, a.header)
	}
	for _, payload := range []string{"null", "[]", `"x"`, "x"} {
		c.post(ch.URL, payload).wantProblem(http.StatusBadRequest, acme.Malformed)
	}
	if got := c.readOrder(o.URL); got.Status != "pending" || len(w.validator.validations()) > 0 {
		t.Errorf("order %s, %d validations", got.Status, len(w.validator.validations()))
	}
}

// TestSection7_1_6_RepeatedResponsesAreHarmless: cert-manager posts a challenge
// again instead of polling.
func TestSection7_1_6_RepeatedResponsesAreHarmless(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.newOrder("a.example")
	ch := c.readAuthz(o.Authorizations[0]).find(t, "http-01")
	open := w.validator.close()
	defer open()
	for range 2 {
		a := c.post(ch.URL, "{}").want(http.StatusOK)
		if got := a.challenge(); got.Status != "processing" || a.header.Get("Retry-After") != "2" {
			t.Errorf("challenge: %+v, Retry-After %q", got, a.header.Get("Retry-After"))
		}
	}
	if a := c.read(o.Authorizations[0]); a.authorization().Status != "pending" || a.header.Get("Retry-After") != "2" {
		t.Errorf("authorization meanwhile: %s", a.body)
	}
	open()
	eventually(t, "the order is ready", func() bool { return c.readOrder(o.URL).Status == "ready" })
	first := c.post(ch.URL, "{}").want(http.StatusOK)
	again := c.post(ch.URL, "{}").want(http.StatusOK)
	if string(first.body) != string(again.body) || first.challenge().Status != "valid" {
		t.Errorf("after it became valid: %s, then %s", first.body, again.body)
	}
	if n := len(w.validator.validations()); n != 1 {
		t.Errorf("%d validations, want 1", n)
	}
}

func TestSection7_1_6_ManyResponsesAtOnceEndInOneState(t *testing.T) {
	w, _ := newSharedWorld(t)
	c := w.newAccountClient()
	o := c.newOrder("a.example")
	ch := c.readAuthz(o.Authorizations[0]).find(t, "http-01")
	messages := make([]*message, 20)
	for i := range messages {
		messages[i] = c.message(ch.URL, "{}")
	}
	if got := statuses(c.together(messages)); got[http.StatusOK] != 20 {
		t.Errorf("statuses %v, want 20 times 200", got)
	}
	eventually(t, "the order is ready", func() bool { return c.readOrder(o.URL).Status == "ready" })
	if n := len(w.validator.validations()); n != 1 {
		t.Errorf("%d validations by two replicas, want one", n)
	}
}

// TestTwoChallengesAnsweredAtOnce: the second is answered with 200 although the
// first makes it go away.
func TestTwoChallengesAnsweredAtOnceAreBothAccepted(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.newOrder("a.example")
	z := c.readAuthz(o.Authorizations[0])
	open := w.validator.close()
	messages := []*message{c.message(z.Challenges[0].URL, "{}"), c.message(z.Challenges[1].URL, "{}")}
	done := make(chan []*answer, 1)
	go func() { done <- c.together(messages) }()
	eventually(t, "both validations run", func() bool { return len(w.validator.validations()) == 2 })
	open()
	for _, a := range <-done {
		if a.want(http.StatusOK); len(a.header.Values("Link")) != 2 {
			t.Errorf("Link headers %q", a.header.Values("Link"))
		}
	}
	if got := c.readOrder(o.URL).Status; got != "ready" {
		t.Errorf("order is %s", got)
	}
}

// TestSection7_1_6_AFailedChallengeEndsAuthorizationAndOrder: autocert goes on to
// its next challenge only then.
func TestSection7_1_6_AFailedChallengeEndsAuthorizationAndOrder(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	w.validator.refuse("bad.example tls-alpn-01", acme.Problemf(acme.TLS, "the server selected no acme-tls/1").WithCause(http.ErrServerClosed))
	o := c.newOrder("bad.example", "a.example")
	z := c.readAuthz(o.Authorizations[0])
	ch := c.post(z.find(t, "tls-alpn-01").URL, "{}").want(http.StatusOK).challenge()
	if ch.Status != "invalid" || ch.Error == nil || ch.Error.Type != "urn:ietf:params:acme:error:tls" || ch.Error.Detail == "" || strings.Contains(ch.Error.Detail, "closed") {
		t.Errorf("challenge: %+v, error %+v", ch, ch.Error)
	}
	z = c.readAuthz(o.Authorizations[0])
	if z.Status != "invalid" || z.find(t, "tls-alpn-01").Status != "invalid" {
		t.Errorf("authorization: %+v", z)
	}
	got := c.readOrder(o.URL)
	if got.Status != "invalid" || got.Error == nil || len(got.Error.Subproblems) != 1 || got.Error.Subproblems[0].Identifier.Value != "bad.example" {
		t.Errorf("order: %+v", got)
	}
	// Final states stay.
	if again := c.post(z.find(t, "tls-alpn-01").URL, "{}").want(http.StatusOK).challenge(); again.Status != "invalid" {
		t.Errorf("challenge after a second response is %s", again.Status)
	}
	for _, typ := range []string{"http-01", "dns-01"} {
		for _, other := range z.Challenges {
			if other.Type == typ {
				c.post(other.URL, "{}").want(http.StatusOK)
			}
		}
	}
	if got := c.readAuthz(o.Authorizations[0]).Status; got != "invalid" {
		t.Errorf("authorization is %s after more responses", got)
	}
	c.post(o.Finalize, c.csr("bad.example", "a.example")).wantProblem(http.StatusForbidden, acme.OrderNotReady)
}

func TestSection7_5_2_AuthorizationDeactivation(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	for _, ready := range []bool{false, true} {
		o := c.newOrder("a.example")
		if ready {
			o = c.prove(o)
		}
		for _, payload := range []string{`{}`, `{"status":"valid"}`, `{"status":"invalid"}`, `{"status":7}`, `{"Status":"deactivated"}`} {
			c.post(o.Authorizations[0], payload).wantProblem(http.StatusBadRequest, acme.Malformed)
		}
		if z := c.post(o.Authorizations[0], `{"status":"deactivated","x":1}`).want(http.StatusOK).authorization(); z.Status != "deactivated" {
			t.Errorf("authorization: %+v", z)
		}
		if got := c.readOrder(o.URL); got.Status != "invalid" || got.Error == nil {
			t.Errorf("order: %+v", got)
		}
		c.post(o.Finalize, c.csr("a.example")).wantProblem(http.StatusForbidden, acme.OrderNotReady)
		c.post(o.Authorizations[0], `{"status":"deactivated"}`).wantProblem(http.StatusBadRequest, acme.Malformed)
	}
}

// TestDeactivationWhileAValidationRuns: what comes of it changes nothing more.
func TestSection7_5_2_DeactivationWhileAValidationRuns(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.newOrder("a.example")
	open := w.validator.close()
	ch := c.readAuthz(o.Authorizations[0]).Challenges[0]
	c.post(ch.URL, "{}").want(http.StatusOK)
	c.post(o.Authorizations[0], `{"status":"deactivated"}`).want(http.StatusOK)
	open()
	second := c.newOrder("b.example") // its validation comes after the first one's end is saved, or not: both are fine
	c.prove(second)
	if z := c.readAuthz(o.Authorizations[0]); z.Status != "deactivated" {
		t.Errorf("authorization is %s", z.Status)
	}
	if got := c.readOrder(o.URL).Status; got != "invalid" {
		t.Errorf("order is %s", got)
	}
}

func TestProblemsInObjectsAreWholeDocuments(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	w.validator.refuse("bad.example", acme.Problemf(acme.Unauthorized, "the file has other contents"))
	o := c.prove(c.newOrder("bad.example"))
	var raw map[string]json.RawMessage
	c.read(o.URL).decode(&raw)
	if !strings.Contains(string(raw["error"]), `"type":"urn:ietf:params:acme:error:unauthorized"`) {
		t.Errorf("error in the order: %s", raw["error"])
	}
	if raw["certificate"] != nil {
		t.Errorf("an invalid order has a certificate: %s", raw["certificate"])
	}
}
