package server_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/acme/server"
)

func TestSection7_4_NewOrder(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	a := c.post("/new-order", `{"identifiers":[{"type":"dns","value":"B.Example","x":1},{"type":"dns","value":"*.b.example"},{"type":"dns","value":"b.example"},{"type":"dns","value":"a.example"}],"status":"valid","certificate":"x","replaces":"x.y","x":1}`).want(http.StatusCreated)
	o := a.order()
	if !strings.HasPrefix(o.URL, external+"/order/") || !strings.HasPrefix(o.Finalize, external+"/") || o.Status != "pending" || o.Certificate != "" || o.Profile != "plain" {
		t.Errorf("order: %+v", o)
	}
	for _, field := range []string{`"x"`, "replaces", "notBefore", "notAfter", `"error"`} {
		if strings.Contains(string(a.body), field) {
			t.Errorf("the order has %s: %s", field, a.body)
		}
	}
	want := []identifier{{"dns", "b.example"}, {"dns", "*.b.example"}, {"dns", "a.example"}} // lower-cased, merged, in order
	if !slices.Equal(o.Identifiers, want) || len(o.Authorizations) != 3 {
		t.Errorf("identifiers %v with %d authorizations, want %v", o.Identifiers, len(o.Authorizations), want)
	}
	if d := parseTime(t, o.Expires).Sub(w.now()); d < orderLifetime-time.Minute || d > orderLifetime || !strings.HasSuffix(o.Expires, "Z") {
		t.Errorf("expires %s, in %s", o.Expires, d)
	}
	if a.header.Get("Link") != indexLink || a.header.Get("Replay-Nonce") == "" || a.header.Get("Cache-Control") != "no-store" || a.header.Get("Retry-After") != "" {
		t.Errorf("headers %v", a.header)
	}
	read := c.read(o.URL).want(http.StatusOK)
	if string(read.body) != string(a.body) || read.header.Get("Location") != o.URL {
		t.Errorf("read gives %s %s", read.header.Get("Location"), read.body)
	}
}

// TestSection7_1_4_Authorization: a wildcard is a flag, not a name, and proven by
// DNS only.
func TestSection7_1_4_Authorizations(t *testing.T) {
	c := newWorld(t).newAccountClient()
	o := c.newOrder("b.example", "*.b.example")
	tokens := map[string]bool{}
	for i, url := range o.Authorizations {
		z := c.readAuthz(url)
		if z.Identifier != (identifier{"dns", "b.example"}) || z.Status != "pending" || parseTime(t, z.Expires).IsZero() {
			t.Errorf("authorization %d: %+v", i, z)
		}
		if wildcard := z.Wildcard != nil && *z.Wildcard; wildcard != (i == 1) {
			t.Errorf("authorization %d: wildcard is %t", i, wildcard)
		}
		var types []string
		for _, ch := range z.Challenges {
			types = append(types, ch.Type)
			if ch.Status != "pending" || !strings.HasPrefix(ch.URL, external+"/") || ch.Validated != "" || ch.Error != nil {
				t.Errorf("challenge %+v", ch)
			}
			// Lesson 19 and 25: 128 bits at least, base64url and nothing else.
			if len(ch.Token) < 22 || strings.Trim(ch.Token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
				t.Errorf("token %q", ch.Token)
			}
			tokens[ch.Token] = true
		}
		if want := [][]string{{"http-01", "dns-01", "tls-alpn-01"}, {"dns-01"}}[i]; !slices.Equal(types, want) {
			t.Errorf("authorization %d: challenges %v, want %v", i, types, want)
		}
	}
	if len(tokens) != 2 {
		t.Errorf("%d tokens for 2 authorizations", len(tokens))
	}
}

func TestSection7_4_OrdersThatCannotBeFulfilledAreRefused(t *testing.T) {
	c := newWorld(t).newAccountClient()
	for name, tt := range map[string]struct {
		body    string
		problem acme.ProblemType
	}{
		"no identifiers":         {`{}`, acme.Malformed},
		"empty identifiers":      {`{"identifiers":[]}`, acme.Malformed},
		"null identifiers":       {`{"identifiers":null}`, acme.Malformed},
		"identifiers no list":    {`{"identifiers":{"type":"dns","value":"a.example"}}`, acme.Malformed},
		"an identifier a string": {`{"identifiers":["a.example"]}`, acme.Malformed},
		"no type":                {`{"identifiers":[{"value":"a.example"}]}`, acme.UnsupportedIdentifier},
		"unknown type":           {`{"identifiers":[{"type":"email","value":"a@b.example"}]}`, acme.UnsupportedIdentifier},
		"type ip":                {`{"identifiers":[{"type":"ip","value":"192.0.2.1"}]}`, acme.UnsupportedIdentifier},
		"type in capitals":       {`{"identifiers":[{"type":"DNS","value":"a.example"}]}`, acme.UnsupportedIdentifier},
		"no value":               {`{"identifiers":[{"type":"dns"}]}`, acme.Malformed},
		"lesson 2: an address":   {orderFor("192.0.2.1"), acme.Malformed},
		"octal address":          {orderFor("0300.0.2.1"), acme.Malformed},
		"hexadecimal address":    {orderFor("0xc0000201"), acme.Malformed},
		"decimal address":        {orderFor("3221225985"), acme.Malformed},
		"IPv6 address":           {orderFor("2001:db8::1"), acme.Malformed},
		"trailing dot":           {orderFor("a.example."), acme.Malformed},
		"a port":                 {orderFor("a.example:443"), acme.Malformed},
		"a path":                 {orderFor("a.example/b"), acme.Malformed},
		"percent encoding":       {orderFor("a%2eexample"), acme.Malformed},
		"underscore":             {orderFor("_a.example"), acme.Malformed},
		"empty label":            {orderFor("a..example"), acme.Malformed},
		"long label":             {orderFor(strings.Repeat("a", 64) + ".example"), acme.Malformed},
		"NUL":                    {`{"identifiers":[{"type":"dns","value":"a\u0000.example"}]}`, acme.Malformed},
		"U-label":                {orderFor("ü.example"), acme.Malformed},
		"fake A-label":           {orderFor("xn--a.example"), acme.Malformed},
		"wildcard inside":        {orderFor("a.*.example"), acme.Malformed},
		"two wildcards":          {orderFor("*.*.example"), acme.Malformed},
		"part of a label":        {orderFor("a*.b.example"), acme.Malformed},
		"wildcard alone":         {orderFor("*"), acme.Malformed},
		"wildcard of a suffix":   {orderFor("*.com"), acme.RejectedIdentifier},
		"denied":                 {orderFor("a.denied.example"), acme.RejectedIdentifier},
		"too many":               {orderFor(manyNames(101)...), acme.RejectedIdentifier},
		"unknown profile":        {withProfile(orderFor("a.example"), "nonesuch"), acme.InvalidProfile},
		"profile no string":      {`{"identifiers":[{"type":"dns","value":"a.example"}],"profile":7}`, acme.Malformed},
	} {
		a := c.post("/new-order", tt.body)
		a.what = "newOrder: " + name
		a.wantProblem(http.StatusBadRequest, tt.problem)
		if a.header.Get("Location") != "" {
			t.Errorf("%s: Location %s", name, a.header.Get("Location"))
		}
	}
	if got := c.newOrder(manyNames(100)...); len(got.Authorizations) != 100 {
		t.Errorf("%d authorizations of 100", len(got.Authorizations))
	}
}

func manyNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("n%d.example", i)
	}
	return names
}

func TestSection6_7_1_SubproblemsNameEachBadIdentifier(t *testing.T) {
	c := newWorld(t).newAccountClient()
	p := c.post("/new-order", orderFor("good.example", "a.denied.example", "*.b.denied.example")).wantProblem(http.StatusBadRequest, acme.RejectedIdentifier)
	var names []string
	for _, sub := range p.Subproblems {
		if sub.Identifier == nil || sub.Type != "urn:ietf:params:acme:error:rejectedIdentifier" || sub.Detail == "" {
			t.Fatalf("subproblem %+v", sub)
		}
		names = append(names, sub.Identifier.Value)
	}
	if want := []string{"a.denied.example", "*.b.denied.example"}; !slices.Equal(names, want) {
		t.Errorf("subproblems for %v, want %v", names, want)
	}
	c.post("/new-order", `{"identifiers":[{"type":"dns","value":"a..b"},{"type":"x","value":"y"}]}`).wantProblem(http.StatusBadRequest, acme.Compound)
}

func TestProfiles_ChosenOrDefault(t *testing.T) {
	c := newWorld(t).newAccountClient()
	for asked, want := range map[string]string{"": "plain", "reuse": "reuse", "dated": "dated"} {
		o := c.post("/new-order", withProfile(orderFor("a.example"), asked)).want(http.StatusCreated).order()
		if o.Profile != want || c.readOrder(o.URL).Profile != want {
			t.Errorf("asked for profile %q: got %q, want %q", asked, o.Profile, want)
		}
	}
}

func TestProfiles_OneThatIsGoneCannotBeFinalized(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.readyOrder("a.example")
	w.setPolicy(func(p *server.Policy) { delete(p.Directories[server.DefaultDirectory].Profiles, "plain") })
	c.post(o.Finalize, c.csr("a.example")).wantProblem(http.StatusBadRequest, acme.InvalidProfile)
	if got := c.readOrder(o.URL).Status; got != "ready" || w.ca.submits() != 0 {
		t.Errorf("order is %s, CA asked %d times", got, w.ca.submits())
	}
}

func TestSection7_4_Validity(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	at := func(d time.Duration) string { return w.now().Add(d).UTC().Format(time.RFC3339) }
	day := 24 * time.Hour
	for name, tt := range map[string]struct {
		profile, fields string
		problem         acme.ProblemType
	}{
		"the zero time of Go":      {"plain", `"notBefore":"0001-01-01T00:00:00Z","notAfter":"0001-01-01T00:00:00Z"`, ""},
		"zero time, dated":         {"dated", `"notBefore":"0001-01-01T00:00:00Z","notAfter":"0001-01-01T00:00:00Z"`, ""},
		"null":                     {"plain", `"notBefore":null,"notAfter":null`, ""},
		"not offered":              {"plain", `"notAfter":"` + at(day) + `"`, acme.Malformed},
		"offered":                  {"dated", `"notAfter":"` + at(10*day) + `"`, ""},
		"with an offset":           {"dated", `"notAfter":"` + w.now().Add(10*day).In(time.FixedZone("", 9*3600)).Format(time.RFC3339) + `"`, ""},
		"both":                     {"dated", `"notBefore":"` + at(day) + `","notAfter":"` + at(10*day) + `"`, ""},
		"in the past":              {"dated", `"notAfter":"` + at(-day) + `"`, acme.Malformed},
		"begins in the past":       {"dated", `"notBefore":"` + at(-2*day) + `"`, acme.Malformed},
		"reversed":                 {"dated", `"notBefore":"` + at(10*day) + `","notAfter":"` + at(day) + `"`, acme.Malformed},
		"too long":                 {"dated", `"notAfter":"` + at(31*day) + `"`, acme.Malformed},
		"no time":                  {"dated", `"notAfter":"tomorrow"`, acme.Malformed},
		"no RFC 3339":              {"dated", `"notAfter":"2030-01-01"`, acme.Malformed},
		"a number":                 {"dated", `"notAfter":1893456000`, acme.Malformed},
		"the empty string":         {"dated", `"notAfter":""`, acme.Malformed},
		"a year of five digits":    {"dated", `"notAfter":"10000-01-01T00:00:00Z"`, acme.Malformed},
		"a leap second no one has": {"dated", `"notAfter":"2030-01-01T00:00:61Z"`, acme.Malformed},
	} {
		a := c.post("/new-order", strings.TrimSuffix(withProfile(orderFor("a.example"), tt.profile), "}")+","+tt.fields+"}")
		a.what = "validity: " + name
		if tt.problem != "" {
			a.wantProblem(http.StatusBadRequest, tt.problem)
			continue
		}
		o := a.want(http.StatusCreated).order()
		if asked := strings.Contains(tt.fields, "20"); asked != (o.NotAfter != "") || strings.HasPrefix(o.NotBefore+o.NotAfter, "0001") {
			t.Errorf("%s: notBefore %q, notAfter %q", name, o.NotBefore, o.NotAfter)
		}
	}
	// What was accepted is honoured.
	notAfter := at(10 * day)
	o := c.prove(c.post("/new-order", strings.TrimSuffix(withProfile(orderFor("a.example"), "dated"), "}")+`,"notAfter":"`+notAfter+`"}`).want(http.StatusCreated).order())
	o = c.post(o.Finalize, c.csr("a.example")).want(http.StatusOK).order()
	if got := parseLeaf(t, c.read(o.Certificate).body).NotAfter.UTC().Format(time.RFC3339); got != notAfter || o.NotAfter != notAfter {
		t.Errorf("certificate ends %s, order says %s, want %s", got, o.NotAfter, notAfter)
	}
}

func wantRetryAfter(t *testing.T, a *answer) {
	t.Helper()
	if got := a.header.Get("Retry-After"); got == "" || got == "0" || strings.Trim(got, "0123456789") != "" {
		t.Errorf("%s: Retry-After %q is no positive integer", a.what, got)
	}
}

func TestLimits_NewOrdersPerAccount(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(func(p *server.Policy) { p.Limits.NewOrdersPerAccount = acme.Limit{Count: 3, Period: time.Hour} })
	c, other := w.newAccountClient(), w.newAccountClient()
	for range 3 {
		c.newOrder("a.example")
		c.post("/new-order", orderFor("a..example")).want(http.StatusBadRequest) // costs nothing
	}
	a := c.post("/new-order", orderFor("a.example"))
	p := a.wantProblem(http.StatusTooManyRequests, acme.RateLimited)
	wantRetryAfter(t, a)
	if !strings.Contains(p.Detail, "new_orders_per_account") {
		t.Errorf("detail %q names no limit", p.Detail)
	}
	other.newOrder("a.example")
	w.advance(20*time.Minute + time.Second)
	c.newOrder("a.example")
}

func TestLimits_PendingOrdersPerAccount(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(func(p *server.Policy) { p.Limits.PendingOrdersPerAccount = 2 })
	c := w.newAccountClient()
	first := c.newOrder("a.example")
	c.newOrder("a.example")
	a := c.post("/new-order", orderFor("a.example"))
	a.wantProblem(http.StatusTooManyRequests, acme.RateLimited)
	wantRetryAfter(t, a)
	// An order that ended makes room, and so does one that expired.
	o := c.prove(first)
	c.post(o.Finalize, c.csr("a.example")).want(http.StatusOK)
	c.newOrder("a.example")
	c.post("/new-order", orderFor("a.example")).want(http.StatusTooManyRequests)
	w.advance(orderLifetime + time.Minute)
	c.newOrder("a.example")
}

func TestLimits_FailedValidationsOfAName(t *testing.T) {
	w := newWorld(t)
	limit := acme.Limit{Count: 3, Period: time.Hour}
	w.setPolicy(func(p *server.Policy) { p.Limits.FailedValidations = limit })
	w.validator.refuse("bad.example", acme.Problemf(acme.Connection, "nobody answers"))
	c, other := w.newAccountClient(), w.newAccountClient()
	for range 3 {
		if got := c.prove(c.newOrder("bad.example")).Status; got != "invalid" {
			t.Fatalf("order is %s", got)
		}
	}
	for _, names := range [][]string{{"bad.example"}, {"good.example", "bad.example"}, {"*.bad.example"}} {
		a := c.post("/new-order", orderFor(names...))
		a.wantProblem(http.StatusTooManyRequests, acme.RateLimited)
		wantRetryAfter(t, a)
	}
	c.newOrder("good.example")
	other.newOrder("bad.example")
	w.advance(time.Hour)
	c.newOrder("bad.example")
}

// TestLesson11_ReuseOfAuthorizations: only for the same account, identifier,
// wildcard and method, and while it lasts.
func TestLesson11_AuthorizationsAreReusedForTheSameOnly(t *testing.T) {
	w := newWorld(t)
	c, other := w.newAccountClient(), w.newAccountClient()
	newOrder := func(c *client, profile string, names ...string) *order {
		t.Helper()
		return c.post(c.dir+"/new-order", withProfile(orderFor(names...), profile)).want(http.StatusCreated).order()
	}
	c.prove(newOrder(c, "reuse", "a.example"))
	again := newOrder(c, "reuse", "a.example")
	if again.Status != "ready" {
		t.Fatalf("a second order is %s, want ready", again.Status)
	}
	z := c.readAuthz(again.Authorizations[0])
	if z.Status != "valid" || len(z.Challenges) != 1 || z.Challenges[0].Status != "valid" || z.Challenges[0].Validated == "" || z.Challenges[0].Token == "" {
		t.Errorf("reused authorization: %+v", z)
	}
	if got := c.post(again.Finalize, c.csr("a.example")).want(http.StatusOK).order().Status; got != "valid" {
		t.Errorf("order with a reused authorization is %s", got)
	}
	corp := &client{world: w, key: c.key, dir: "/corp"}
	corp.register()
	for what, o := range map[string]*order{
		"another account":               newOrder(other, "reuse", "a.example"),
		"the wildcard":                  newOrder(c, "reuse", "*.a.example"),
		"a name below":                  newOrder(c, "reuse", "b.a.example"),
		"a profile without reuse":       newOrder(c, "plain", "a.example"),
		"a profile with other methods":  newOrder(c, "dns-only", "a.example"),
		"another name too":              newOrder(c, "reuse", "a.example", "z.example"),
		"the same key in other tenants": newOrder(corp, "reuse", "a.example"),
	} {
		if o.Status != "pending" {
			t.Errorf("order for %s is %s, want pending", what, o.Status)
		}
	}
	// The other way round: the wildcard does not serve the name.
	c.prove(newOrder(c, "reuse", "*.w.example"))
	if got := newOrder(c, "reuse", "w.example").Status; got != "pending" {
		t.Errorf("a wildcard's authorization made the name's order %s", got)
	}
	if got := newOrder(c, "reuse", "*.w.example").Status; got != "ready" {
		t.Errorf("the wildcard's second order is %s", got)
	}
	w.advance(7*24*time.Hour - 30*time.Minute)
	if got := newOrder(c, "reuse", "a.example").Status; got != "pending" {
		t.Errorf("order on an authorization about to end is %s", got)
	}
}

// TestLesson29_ReuseEndsWithTheKeyAndWithDeactivation: a stolen key must not
// leave authorizations behind.
func TestLesson29_ReuseEndsWithTheKeyAndWithDeactivation(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	reuse := func(name string) *order {
		return c.post("/new-order", withProfile(orderFor(name), "reuse")).want(http.StatusCreated).order()
	}
	c.prove(reuse("a.example"))
	c.rollover()
	if got := reuse("a.example").Status; got != "pending" {
		t.Errorf("after a key change the order is %s at once", got)
	}
	o := c.prove(reuse("b.example"))
	if got := reuse("b.example").Status; got != "ready" {
		t.Fatalf("order is %s, want ready", got)
	}
	c.post(o.Authorizations[0], `{"status":"deactivated"}`).want(http.StatusOK)
	if got := reuse("b.example").Status; got != "pending" {
		t.Errorf("after deactivation of the authorization the order is %s at once", got)
	}
	// A validation that was answered under the old key proves nothing for the new one.
	pending := reuse("c.example")
	open := w.validator.close()
	c.post(c.readAuthz(pending.Authorizations[0]).Challenges[0].URL, "{}").want(http.StatusOK)
	c.rollover()
	open()
	eventually(t, "the order is ready", func() bool { return c.readOrder(pending.URL).Status == "ready" })
	if got := reuse("c.example").Status; got != "pending" {
		t.Errorf("a proof under the old key made an order %s", got)
	}
}

func TestSection7_1_6_OrdersExpire(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	pending, ready := c.newOrder("a.example"), c.readyOrder("b.example")
	w.advance(orderLifetime + time.Second)
	for _, o := range []*order{pending, ready} {
		got := c.readOrder(o.URL)
		if got.Status != "invalid" || got.Error == nil || got.Error.Detail == "" {
			t.Errorf("expired order: %+v", got)
		}
		c.post(o.Finalize, c.csr("b.example")).wantProblem(http.StatusForbidden, acme.OrderNotReady)
	}
	if z := c.readAuthz(pending.Authorizations[0]); z.Status != "invalid" && z.Status != "expired" {
		t.Errorf("authorization of an expired order is %s", z.Status)
	} else if len(z.Challenges) > 0 {
		c.post(z.Challenges[0].URL, "{}").want(http.StatusOK)
		if got := c.readAuthz(pending.Authorizations[0]).Status; got == "valid" || got == "pending" {
			t.Errorf("authorization of an expired order became %s", got)
		}
	}
	if n := len(w.validator.validations()); n != 1 || w.ca.submits() != 0 {
		t.Errorf("%d validations and %d submits, want 1 and none", n, w.ca.submits())
	}
}

// TestSection7_1_6_AnExpiredOrderIsSavedAsAWhole: what a request sees as expired
// is stored as open still, and the next save must take it out of the indexes.
func TestSection7_1_6_AnExpiredOrderIsSavedAsAWhole(t *testing.T) {
	shared, _ := newSharedWorld(t)
	for store, w := range map[string]*world{"bolt": newWorld(t), "Redis": shared} {
		t.Run(store, func(t *testing.T) {
			c := w.newAccountClient()
			o := c.newOrder("a.example", "b.example")
			c.post(c.readAuthz(o.Authorizations[0]).Challenges[0].URL, "{}").want(http.StatusOK)
			w.advance(orderLifetime + time.Second)
			if z := c.post(o.Authorizations[0], `{"status":"deactivated"}`).want(http.StatusOK).authorization(); z.Status != "deactivated" {
				t.Errorf("authorization is %s", z.Status)
			}
			if got := c.readOrder(o.URL).Status; got != "invalid" {
				t.Errorf("order is %s", got)
			}
			var list struct {
				Orders []string `json:"orders"`
			}
			c.read(c.kid + "/orders").want(http.StatusOK).decode(&list)
			if len(list.Orders) > 0 {
				t.Errorf("the invalid order is listed: %v", list.Orders)
			}
		})
	}
}
