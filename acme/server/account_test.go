package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/acme/server"
)

func (a *answer) account() *account {
	a.Helper()
	v := &account{}
	a.decode(v)
	return v
}

func TestSection7_3_NewAccount(t *testing.T) {
	c := newWorld(t).newClient()
	a := c.post("/new-account", `{"contact":["mailto:a@b.example"],"status":"deactivated","orders":"https://evil.example/","x":1}`).want(http.StatusCreated)
	kid := a.header.Get("Location")
	got := a.account()
	if !strings.HasPrefix(kid, external+"/account/") || got.Status != "valid" || got.Orders != kid+"/orders" || !slices.Equal(got.Contact, []string{"mailto:a@b.example"}) {
		t.Errorf("account %s: %+v", kid, got)
	}
	if strings.Contains(string(a.body), `"x"`) || a.header.Get("Cache-Control") != "no-store" || a.header.Get("Replay-Nonce") == "" || a.header.Get("Link") != indexLink {
		t.Errorf("%v %s", a.header, a.body)
	}
	// Section 7.3.1: a known key gets the account as it is.
	for _, payload := range []string{`{}`, `{"contact":["mailto:other@b.example"]}`, `{"onlyReturnExisting":true}`, `{"onlyReturnExisting":true,"contact":["tel:+1"]}`} {
		again := c.post("/new-account", payload).want(http.StatusOK)
		if again.header.Get("Location") != kid || string(again.body) != string(a.body) {
			t.Errorf("newAccount %s again: %s %s", payload, again.header.Get("Location"), again.body)
		}
	}
}

func TestSection7_3_1_OnlyReturnExistingMakesNothing(t *testing.T) {
	w := newWorld(t)
	c := w.newClient()
	c.post("/new-account", `{"onlyReturnExisting":true}`).wantProblem(http.StatusBadRequest, acme.AccountDoesNotExist)
	c.post("/corp/new-account", `{"onlyReturnExisting":true}`).wantProblem(http.StatusBadRequest, acme.AccountDoesNotExist)
	if a := c.register(); a.status != http.StatusCreated {
		t.Errorf("newAccount after that: %d", a.status)
	}
}

func TestSection7_3_Contacts(t *testing.T) {
	w := newWorld(t)
	registered := w.newAccountClient()
	for contact, typ := range map[string]acme.ProblemType{
		"mailto:a@b.example":                     "",
		"MAILTO:a@b.example":                     "",
		"tel:+821012345678":                      acme.UnsupportedContact,
		"https://b.example/":                     acme.UnsupportedContact,
		"a@b.example":                            acme.InvalidContact,
		"":                                       acme.InvalidContact,
		"mailto:":                                acme.InvalidContact,
		"mailto:nobody":                          acme.InvalidContact,
		"mailto:a@b.example?subject=x":           acme.InvalidContact,
		"mailto:a@b.example,c@d.example":         acme.InvalidContact,
		"mailto:A <a@b.example>":                 acme.InvalidContact,
		"mailto:a@b.example\r\nBcc: c@d.example": acme.InvalidContact,
		"mailto:" + strings.Repeat("a", 400) + "@b": acme.InvalidContact,
	} {
		payload := fmt.Sprintf(`{"contact":[%s]}`, mustJSON(t, contact))
		created, updated := w.newClient().post("/new-account", payload), registered.post(registered.kid, payload)
		if typ == "" {
			created.want(http.StatusCreated)
			updated.want(http.StatusOK)
			continue
		}
		created.what, updated.what = "newAccount "+payload, "update "+payload
		created.wantProblem(http.StatusBadRequest, typ)
		updated.wantProblem(http.StatusBadRequest, typ)
	}
	w.newClient().post("/new-account", `{"contact":"mailto:a@b.example"}`).wantProblem(http.StatusBadRequest, acme.Malformed)
}

func TestSection7_3_3_TermsOfService(t *testing.T) {
	w := newWorld(t)
	c := w.newClient()
	c.dir = "/corp"
	for _, payload := range []string{`{}`, `{"termsOfServiceAgreed":false}`} {
		a := c.post("/corp/new-account", payload)
		p := a.wantProblem(http.StatusForbidden, acme.UserActionRequired)
		if links := a.header.Values("Link"); p.Instance != "https://www.example/terms" || !slices.Contains(links, `<https://www.example/terms>;rel="terms-of-service"`) || len(links) != 2 {
			t.Errorf("instance %q, links %v", p.Instance, links)
		}
	}
	c.post("/corp/new-account", `{"termsOfServiceAgreed":"yes"}`).wantProblem(http.StatusBadRequest, acme.Malformed)
	if a := c.post("/corp/new-account", `{"termsOfServiceAgreed":true}`).want(http.StatusCreated); !a.account().Agreed {
		t.Errorf("account: %s", a.body)
	}
	c.post("/corp/new-account", `{}`).want(http.StatusOK)
}

func TestSection7_3_ManyNewAccountsWithOneKeyMakeOneAccount(t *testing.T) {
	w, _ := newSharedWorld(t)
	c := w.newClient()
	messages := make([]*message, 50)
	for i := range messages {
		messages[i] = c.message("/new-account", "{}")
	}
	locations := map[string]bool{}
	answers := c.together(messages)
	for _, a := range answers {
		locations[a.header.Get("Location")] = true
	}
	if got := statuses(answers); got[http.StatusCreated] != 1 || got[http.StatusOK] != 49 || len(locations) != 1 {
		t.Errorf("statuses %v, locations %v", got, locations)
	}
}

func TestSection7_3_2_Update(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	c.post(c.kid, `{"contact":["mailto:a@b.example"]}`).want(http.StatusOK)
	for _, payload := range []string{`{}`, `{"x":1}`, `{"orders":"https://evil.example/","termsOfServiceAgreed":true}`, `{"status":"valid"}`, `{"status":"revoked"}`, ``} {
		got := c.post(c.kid, payload).want(http.StatusOK)
		if v := got.account(); v.Status != "valid" || !slices.Equal(v.Contact, []string{"mailto:a@b.example"}) || v.Agreed || got.header.Get("Location") != c.kid {
			t.Errorf("update with %s: %+v", payload, v)
		}
	}
	if v := c.post(c.kid, `{"contact":[]}`).want(http.StatusOK).account(); len(v.Contact) > 0 {
		t.Errorf("contact after an empty list: %v", v.Contact)
	}
}

func TestLesson9_OneAccountCannotTouchAnother(t *testing.T) {
	w := newWorld(t)
	a, b := w.newAccountClient(), w.newAccountClient()
	for _, payload := range []string{``, `{}`, `{"status":"deactivated"}`, `{"contact":["mailto:b@b.example"]}`} {
		b.post(a.kid, payload).wantProblem(http.StatusForbidden, acme.Unauthorized)
	}
	b.read(a.kid+"/orders").wantProblem(http.StatusForbidden, acme.Unauthorized)
	nobody := external + "/account/" + strings.Repeat("0", 28)
	foreign, unknown := b.read(a.kid), b.read(nobody)
	if string(foreign.body) != string(unknown.body) {
		t.Errorf("a foreign account answers %s, an unknown one %s", foreign.body, unknown.body)
	}
	if v := a.read(a.kid).want(http.StatusOK).account(); v.Status != "valid" || len(v.Contact) > 0 {
		t.Errorf("account of A: %+v", v)
	}
}

// TestSection7_3_6_Deactivation: 401 for everything from then on.
func TestSection7_3_6_ADeactivatedAccountIs401Everywhere(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	key := newECKey(t)
	o, leaf := c.certificate(key, "a.example")
	open := c.newOrder("b.example")
	targets := append(posts(open, c), path(o.Certificate), "/directory", "/new-nonce")
	if v := c.post(c.kid, `{"status":"deactivated"}`).want(http.StatusOK).account(); v.Status != "deactivated" {
		t.Errorf("status %q", v.Status)
	}
	for _, target := range targets {
		for _, payload := range []string{"", "{}", orderFor("a.example")} {
			if target == "/new-account" {
				continue
			}
			c.post(target, payload).wantProblem(http.StatusUnauthorized, acme.Unauthorized)
		}
	}
	kid := c.kid
	c.kid = ""
	c.post("/new-account", "{}").wantProblem(http.StatusUnauthorized, acme.Unauthorized)
	c.post("/new-account", `{"onlyReturnExisting":true}`).wantProblem(http.StatusUnauthorized, acme.Unauthorized)
	body := fmt.Sprintf(`{"certificate":%q}`, b64(leaf.Raw))
	c.post("/revoke-cert", body).wantProblem(http.StatusForbidden, acme.Unauthorized) // the account's key as jwk
	c.kid = kid
	c.post("/revoke-cert", body).wantProblem(http.StatusUnauthorized, acme.Unauthorized)
	(&client{world: w, key: key}).post("/revoke-cert", body).want(http.StatusOK) // the certificate's own key still may
}

func TestSection7_1_2_1_OrdersListInPagesThatStay(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	type list struct {
		Orders []string `json:"orders"`
	}
	var empty list
	a := c.read(c.kid + "/orders").want(http.StatusOK)
	a.decode(&empty)
	if empty.Orders == nil || len(empty.Orders) != 0 {
		t.Errorf("orders of a new account: %s", a.body)
	}
	var made []string
	for range 230 {
		made = append(made, c.newOrder("a.example").URL)
	}
	invalid := c.newOrder("bad.example")
	w.validator.refuse("bad.example", acme.Problemf(acme.Connection, "no"))
	c.prove(invalid)
	var seen []string
	for target := c.kid + "/orders"; target != ""; {
		a := c.read(target).want(http.StatusOK)
		var page list
		a.decode(&page)
		seen = append(seen, page.Orders...)
		if len(page.Orders) > 100 {
			t.Errorf("a page of %d orders", len(page.Orders))
		}
		again := c.read(target).want(http.StatusOK)
		var same list
		again.decode(&same)
		if !slices.Equal(same.Orders, page.Orders) {
			t.Error("the page changed between two reads")
		}
		target = nextLink(a)
		if target != "" {
			w.advance(time.Second)
			made = append(made, c.newOrder("a.example").URL) // pages stay what they are meanwhile
		}
	}
	slices.Sort(made) // within a millisecond the order is as it comes
	slices.Sort(seen)
	if !slices.Equal(seen, made) {
		t.Errorf("the pages list %d orders, want the %d made and not the invalid one", len(seen), len(made))
	}
	for _, cursor := range []string{"x", "0", "../..", strings.Repeat("9", 28), "%00"} {
		c.read(c.kid+"/orders?cursor="+cursor).wantProblem(http.StatusBadRequest, acme.Malformed)
	}
}

func nextLink(a *answer) string {
	for _, link := range a.header.Values("Link") {
		if url, ok := strings.CutSuffix(link, `>;rel="next"`); ok {
			return strings.TrimPrefix(url, "<")
		}
	}
	return ""
}

func TestLimits_NewAccountsPerAddress(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(func(p *server.Policy) { p.Limits.NewAccountsPerIP = acme.Limit{Count: 3, Period: time.Hour} })
	from := func(remote string) edit { return func(m *message) { m.remote = remote } }
	var known *client
	for range 3 {
		known = w.newClient()
		known.post("/new-account", "{}", from("[2001:db8::1]:1")).want(http.StatusCreated)
	}
	a := w.newClient().post("/new-account", "{}", from("[2001:db8::ffff:1]:1")) // the same /64
	a.wantProblem(http.StatusTooManyRequests, acme.RateLimited)
	if got := a.header.Get("Retry-After"); got == "" || strings.Trim(got, "0123456789") != "" {
		t.Errorf("Retry-After %q", got)
	}
	known.post("/new-account", "{}", from("[2001:db8::1]:1")).want(http.StatusOK) // a known key makes nothing
	w.newClient().post("/new-account", "{}", from("[2001:db8:0:1::1]:1")).want(http.StatusCreated)
	// What an untrusted peer claims to forward for counts for nothing.
	spoofed := func(m *message) {
		m.extra = http.Header{"X-Forwarded-For": {"203.0.113.9"}}
		m.remote = "[2001:db8::2]:1"
	}
	w.newClient().post("/new-account", "{}", spoofed).want(http.StatusTooManyRequests)
	w.advance(time.Hour)
	w.newClient().post("/new-account", "{}", from("[2001:db8::1]:1")).want(http.StatusCreated)
}

// TestLesson28_Tenants: what is one directory's is unknown in another.
func TestLesson28_NothingOfOneDirectoryWorksInAnother(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o, leaf := c.certificate(newECKey(t), "a.example")
	targets := append(posts(o, c), path(o.Certificate))
	corp := &client{world: w, key: c.key, dir: "/corp"} // the same key is another account there
	if a := corp.register(); a.status != http.StatusCreated {
		t.Fatalf("newAccount in the other directory: %d", a.status)
	}
	for _, target := range targets {
		if strings.HasPrefix(target, "/new-") || target == "/key-change" || target == "/revoke-cert" {
			continue
		}
		// The resource of the one under the path of the other, by either account.
		a := corp.read("/corp" + target)
		if a.status != http.StatusNotFound && a.status != http.StatusForbidden {
			t.Errorf("%s: %d %s", a.what, a.status, a.body)
		}
		a = corp.post("/corp"+target, "", withHeader("kid", c.kid))
		a.wantProblem(http.StatusBadRequest, acme.AccountDoesNotExist)
		// And the own path, by the other's account.
		a = corp.post(target, "")
		a.wantProblem(http.StatusBadRequest, acme.AccountDoesNotExist)
	}
	corp.post("/corp/revoke-cert", fmt.Sprintf(`{"certificate":%q}`, b64(leaf.Raw))).wantProblem(http.StatusNotFound, acme.Malformed)
	// A URL inside a tenant stays inside.
	own := corp.newOrder("a.example")
	for _, url := range append([]string{own.URL, own.Finalize, corp.kid}, own.Authorizations...) {
		if !strings.HasPrefix(url, external+"/corp/") {
			t.Errorf("URL %s of the directory corp", url)
		}
	}
	var v account
	if err := json.Unmarshal(corp.read(corp.kid).body, &v); err != nil || v.Orders != corp.kid+"/orders" {
		t.Errorf("account %+v (%v)", v, err)
	}
}
