package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/acme/server"
)

const indexLink = `<` + external + `/directory>;rel="index"`

func TestSection7_1_1_DirectoryListsWhatWorksAndNothingElse(t *testing.T) {
	c := newWorld(t).newClient()
	for dir, meta := range map[string]string{"": "website", "/corp": "termsOfService"} {
		a := c.plain(http.MethodGet, dir+"/directory").want(http.StatusOK)
		var got map[string]json.RawMessage
		a.decode(&got)
		for _, name := range []string{"newNonce", "newAccount", "newOrder", "revokeCert", "keyChange"} {
			var url string
			if err := json.Unmarshal(got[name], &url); err != nil || !strings.HasPrefix(url, external+dir+"/") {
				t.Errorf("%s in %q: %s (%v)", name, dir, got[name], err)
			}
			delete(got, name)
		}
		var m map[string]json.RawMessage
		if err := json.Unmarshal(got["meta"], &m); err != nil || m[meta] == nil || m["profiles"] == nil {
			t.Errorf("meta in %q: %s", dir, got["meta"])
		}
		delete(got, "meta")
		if len(got) > 0 {
			t.Errorf("directory %q has also %v", dir, got)
		}
		if link := a.header.Get("Link"); link != "" {
			t.Errorf("the directory links to %q as its index", link)
		}
	}
}

func TestSection7_2_NewNonce(t *testing.T) {
	c := newWorld(t).newClient()
	seen := map[string]bool{}
	for _, dir := range []string{"", "/corp"} {
		for method, status := range map[string]int{http.MethodHead: http.StatusOK, http.MethodGet: http.StatusNoContent} {
			a := c.plain(method, dir+"/new-nonce").want(status)
			nonce := a.header.Get("Replay-Nonce")
			if len(nonce) < 22 || seen[nonce] || strings.Trim(nonce, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
				t.Errorf("%s: nonce %q", method, nonce)
			}
			seen[nonce] = true
			if got := a.header.Get("Cache-Control"); got != "no-store" || len(a.body) > 0 {
				t.Errorf("%s: Cache-Control %q, body %q", method, got, a.body)
			}
			if got, want := a.header.Get("Link"), `<`+external+dir+`/directory>;rel="index"`; got != want {
				t.Errorf("%s: Link %q, want %q", method, got, want)
			}
		}
	}
}

func TestSection6_3_DirectoryAndNewNonceAnswerPostAsGet(t *testing.T) {
	c := newWorld(t).newAccountClient()
	var d map[string]any
	c.read("/directory").want(http.StatusOK).decode(&d)
	if d["newOrder"] != external+"/new-order" {
		t.Errorf("directory by POST-as-GET: %v", d)
	}
	a := c.read("/new-nonce").want(http.StatusNoContent)
	if a.header.Get("Replay-Nonce") == "" || a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("newNonce by POST-as-GET: %v", a.header)
	}
	c.post("/directory", "{}").wantProblem(http.StatusBadRequest, acme.Malformed)
}

// posts are all resources that take a signed request, with an existing order's.
func posts(o *order, c *client) []string {
	z := c.readAuthz(o.Authorizations[0])
	return []string{
		"/new-account", "/new-order", "/key-change", "/revoke-cert", path(c.kid), path(c.kid) + "/orders", path(o.URL), path(o.Finalize),
		path(o.Authorizations[0]), path(z.Challenges[0].URL), strings.Replace(path(o.URL), "/order/", "/certificate/", 1),
	}
}

func TestSection6_3_OtherMethodsAnswer405WithAProblem(t *testing.T) {
	c := newWorld(t).newAccountClient()
	o := c.newOrder("a.example")
	for _, target := range posts(o, c) {
		for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodPatch} {
			a := c.plain(method, target)
			a.wantProblem(http.StatusMethodNotAllowed, acme.Malformed)
			if got := a.header.Get("Allow"); got != "POST, OPTIONS" {
				t.Errorf("%s: Allow is %q", a.what, got)
			}
			if a.header.Get("Replay-Nonce") == "" || a.header.Get("Link") != indexLink {
				t.Errorf("%s: nonce or index link is missing: %v", a.what, a.header)
			}
		}
		if a := c.plain(http.MethodHead, target); a.status != http.StatusMethodNotAllowed || len(a.body) > 0 {
			t.Errorf("HEAD %s: %d %q", target, a.status, a.body)
		}
	}
	if got := c.plain(http.MethodDelete, "/directory").header.Get("Allow"); got != "GET, HEAD, POST, OPTIONS" {
		t.Errorf("Allow of the directory is %q", got)
	}
}

func TestUnknownPathsAnswer404WithAProblem(t *testing.T) {
	c := newWorld(t).newAccountClient()
	o := c.newOrder("a.example")
	id := strings.TrimPrefix(path(o.URL), "/order/")
	for _, target := range []string{
		"/", "/nothing", "/directory/", "/new-nonce/", "//directory", "/./directory", "/x/../directory", "/default/directory", "/Directory",
		"/nobody/directory", "/%64irectory", "/corp%2fdirectory", "/order/" + id + "/", "//order/" + id, "/order//" + id, "/order/" + strings.ToUpper(id),
		"/order/%30" + id[1:], "/order/" + id + "%20", "/order/" + id + "%00", "/order/" + id + ".", "/authz/" + id + "/1", "/authz/" + id + "/00",
		"/authz/" + id + "/999", "/authz/" + id + "/-1", "/challenge/" + id + "/0/none-01", "/certificate/" + id, "/order/" + strings.Repeat("z", 28),
		"/order/%C0%AE" + id[2:], "/order/" + id + ";a", "/.well-known/acme-challenge/x",
	} {
		a := c.post(target, "")
		a.wantProblem(http.StatusNotFound, acme.Malformed)
		if a.header.Get("Replay-Nonce") == "" || a.header.Get("Link") != indexLink || a.header.Get("Location") != "" {
			t.Errorf("%s: headers of the 404: %v", a.what, a.header)
		}
		if g := c.plain(http.MethodGet, target); g.status != http.StatusNotFound && g.status != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: %d", target, g.status)
		}
	}
}

func TestErrorsOfATenantLinkToItsOwnDirectory(t *testing.T) {
	c := newWorld(t).newClient()
	want := `<` + external + `/corp/directory>;rel="index"`
	for _, target := range []string{"/corp/directory", "/corp/new-order"} {
		a := c.plain(http.MethodPut, target)
		if got := a.header.Get("Link"); got != want {
			t.Errorf("%s: Link %q, want %q", a.what, got, want)
		}
	}
}

func TestSection6_2_OtherMediaTypesAnswer415(t *testing.T) {
	c := newWorld(t).newAccountClient()
	for _, tt := range []struct {
		contentType string
		ok          bool
	}{
		{"", false},
		{"application/json", false},
		{"application/jose", false},
		{"application/jose+jsonx", false},
		{"text/plain; application/jose+json", false},
		{"application/jose+json, application/json", false},
		{"application/jose+json", true},
		{"Application/JOSE+JSON", true},
		{"application/jose+json; charset=utf-8", true},
		{" application/jose+json ", true},
	} {
		a := c.post(c.kid, "", func(m *message) { m.contentType = tt.contentType })
		if tt.ok {
			a.want(http.StatusOK)
			continue
		}
		a.wantProblem(http.StatusUnsupportedMediaType, acme.Malformed)
		if a.header.Get("Replay-Nonce") == "" || a.header.Get("Link") != indexLink {
			t.Errorf("%q: headers of the 415: %v", tt.contentType, a.header)
		}
	}
}

func TestCORS_EveryAnswerIsReadableAndPreflightsPass(t *testing.T) {
	c := newWorld(t).newAccountClient()
	o := c.newOrder("a.example")
	expose := func(a *answer) {
		t.Helper()
		if a.header.Get("Access-Control-Allow-Origin") != "*" || a.header.Get("Access-Control-Allow-Credentials") != "" ||
			a.header.Get("Access-Control-Expose-Headers") != "Replay-Nonce, Location, Link, Retry-After" {
			t.Errorf("%s %d: %v", a.what, a.status, a.header)
		}
	}
	expose(c.plain(http.MethodGet, "/directory"))
	expose(c.plain(http.MethodGet, "/nothing"))
	expose(c.read(o.URL))
	expose(c.post("/new-order", "nonsense"))
	for _, target := range append(posts(o, c), "/directory", "/new-nonce") {
		a := c.plain(http.MethodOptions, target).want(http.StatusNoContent)
		expose(a)
		methods := a.header.Get("Access-Control-Allow-Methods")
		if !strings.Contains(methods, "POST") || a.header.Get("Access-Control-Allow-Headers") != "Content-Type" || a.header.Get("Access-Control-Max-Age") == "" {
			t.Errorf("%s: %v", a.what, a.header)
		}
	}
}

func TestBodiesAboveTheLimitAnswer413(t *testing.T) {
	c := newWorld(t).newAccountClient()
	fill := func(n int) edit {
		return func(m *message) { m.body = append(m.envelope(t), make([]byte, n)...) }
	}
	a := c.post(c.kid, "", fill(128<<10))
	a.wantProblem(http.StatusRequestEntityTooLarge, acme.Malformed)
	if a.header.Get("Replay-Nonce") == "" {
		t.Error("the 413 has no nonce")
	}
	c.post(c.kid, "", func(m *message) {
		m.body = append(m.envelope(t), []byte(strings.Repeat(" ", 100<<10))...) // white space may follow
	}).want(http.StatusOK)
}

func TestALimitOfZeroBytesMeansTheDefaultLimit(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(func(p *server.Policy) { p.Limits.RequestBody = 0 })
	c := w.newAccountClient()
	c.post(c.kid, "", func(m *message) { m.body = make([]byte, 1<<20) }).wantProblem(http.StatusRequestEntityTooLarge, acme.Malformed)
}

// TestLesson26_DeepJSONIsRefused: nesting under the size limit is a cheap attack.
func TestLesson26_DeepJSONIsRefused(t *testing.T) {
	c := newWorld(t).newAccountClient()
	for _, n := range []int{17, 100, 20_000} {
		for _, open := range []string{"[", `{"a":`} {
			nested := strings.Repeat(open, n)
			c.post(c.kid, "", func(m *message) { m.body = []byte(nested) }).wantProblem(http.StatusBadRequest, acme.Malformed)
			if len(nested) > 60_000 {
				continue // in base64 it is above the size limit
			}
			c.post(c.kid, nested).wantProblem(http.StatusBadRequest, acme.Malformed)
			c.post(c.kid, "", func(m *message) { m.protected = nested }).wantProblem(http.StatusBadRequest, acme.Malformed)
		}
	}
	deep := `{"contact":[],"x":` + strings.Repeat("[", 14) + strings.Repeat("]", 14) + `}`
	c.post(c.kid, deep).want(http.StatusOK)
}

func TestLongListsAreRefusedWithAShortAnswer(t *testing.T) {
	c := newWorld(t).newAccountClient()
	items := strings.Repeat(`{},`, 25_000) + "{}"
	a := c.post("/new-order", `{"identifiers":[`+items+`]}`)
	if a.status != http.StatusBadRequest || len(a.body) > 10_000 {
		t.Errorf("25001 identifiers: status %d, %d bytes of answer", a.status, len(a.body))
	}
	contacts := strings.Repeat(`"mailto:a@b.example",`, 3_000) + `"mailto:a@b.example"`
	a = c.post(c.kid, `{"contact":[`+contacts+`]}`)
	if a.status != http.StatusBadRequest || len(a.body) > 10_000 {
		t.Errorf("3001 contacts: status %d, %d bytes of answer", a.status, len(a.body))
	}
}

// TestSection6_7_PanicsAnswer500 (lesson 6): what a handler does not survive,
// the process does.
func TestLesson6_PanicsAnswer500AndTheProcessLives(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	for _, call := range []string{"Fetch", "CreateOrder"} {
		w.store.setHook(func(got string) error {
			if got == call {
				var none *order
				return fmt.Errorf("%s", none.Status) // a nil dereference
			}
			return nil
		})
		a := c.post("/new-order", orderFor("a.example"))
		p := a.wantProblem(http.StatusInternalServerError, acme.ServerInternal)
		if p.Detail != "internal error" || a.header.Get("Replay-Nonce") == "" {
			t.Errorf("panic in %s: detail %q, headers %v", call, p.Detail, a.header)
		}
	}
	w.store.setHook(nil)
	c.newOrder("a.example")
	if log := w.logs.String(); !strings.Contains(log, "panic: runtime error") || !strings.Contains(log, "goroutine") {
		t.Error("the log tells nothing of the panic")
	}
}

func TestNoRandomnessAnswers500WithoutANonce(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	c.takeNonce()
	m := c.message("/new-order", orderFor("a.example"))
	w.rand.broken.Store(true)
	c.send(m).wantProblem(http.StatusInternalServerError, acme.ServerInternal)
	c.plain(http.MethodHead, "/new-nonce").want(http.StatusInternalServerError)
	w.rand.broken.Store(false)
	c.newOrder("a.example")
}

func TestURLsNeverComeFromTheRequestsHost(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	a := c.post(c.kid, "", func(m *message) {
		m.extra = http.Header{"X-Forwarded-Host": {"evil.example"}, "Forwarded": {`host="evil.example";proto=http`}, "X-Forwarded-Proto": {"http"}}
	}).want(http.StatusOK)
	if strings.Contains(fmt.Sprint(a.header)+string(a.body), "evil") {
		t.Errorf("%v %s", a.header, a.body)
	}
	r := httptest.NewRequest(http.MethodGet, "http://evil.example/directory", nil)
	if a := c.serve(0, r); strings.Contains(string(a.body), "evil") {
		t.Errorf("%s", a.body)
	}
}

// TestRealTLS runs a whole order over HTTP/1.1 with chunks and over HTTP/2.
func TestWholeOrderOverTLSWithHTTP1AndHTTP2(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		w := newWorld(t)
		ts := httptest.NewUnstartedServer(w.replicas[0])
		ts.EnableHTTP2 = http2
		ts.StartTLS()
		c := w.newClient()
		c.wire = ts
		c.register()
		o, leaf := c.certificate(newECKey(t), "a.example", "*.b.example")
		if want := []string{"a.example", "*.b.example"}; !slices.Equal(leaf.DNSNames, want) || o.Status != "valid" {
			t.Errorf("HTTP/2 %t: order %s, names %v, want %v", http2, o.Status, leaf.DNSNames, want)
		}
		if got := c.proto; got != map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[http2] {
			t.Errorf("the flow ran over %s", got)
		}
		ts.Close()
	}
}

func TestLesson27_LogsHoldNoSecrets(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.newOrder("a.example")
	z := c.readAuthz(o.Authorizations[0])
	o = c.prove(o)
	csr := c.csr("a.example")
	m := c.message(o.Finalize, csr)
	signature := b64(signJWS(t, c.key, "{}", "x"))
	m.members["signature"] = signature
	c.send(m).wantProblem(http.StatusForbidden, acme.Unauthorized)
	c.post(o.Finalize, csr).want(http.StatusOK)
	eventually(t, "the log tells what happened", func() bool {
		log := w.logs.String()
		return strings.Contains(log, "order finalized") && strings.Contains(log, "certificate issued")
	})
	log := w.logs.String()
	var body struct{ CSR string }
	if err := json.Unmarshal([]byte(csr), &body); err != nil {
		t.Fatal(err)
	}
	for what, secret := range map[string]string{
		"challenge token": z.Challenges[0].Token, "signature": signature, "CSR": body.CSR, "key authorization": "." + thumbprint(t, c.key.Public()),
	} {
		if strings.Contains(log, secret) {
			t.Errorf("the log holds a %s", what)
		}
	}
}

func TestADirectoryThatIsGoneIs404(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	c.nonce = c.takeNonce()
	w.setPolicy(func(p *server.Policy) { delete(p.Directories, server.DefaultDirectory) })
	c.plain(http.MethodGet, "/directory").wantProblem(http.StatusNotFound, acme.Malformed)
	c.read(c.kid).wantProblem(http.StatusNotFound, acme.Malformed)
	c.plain(http.MethodGet, "/corp/directory").want(http.StatusOK)
}

// TestMetricsHaveNoLabelsOfTheClientsMaking: a series for each path that someone
// tries would cost unbounded memory.
func TestMetricsHaveNoLabelsOfTheClientsMaking(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	c.newOrder("a.example")
	for i := range 50 {
		c.plain(http.MethodGet, fmt.Sprintf("/nothing/%d", i))
		c.plain("METHOD"+fmt.Sprint(i), "/directory")
		c.plain(http.MethodGet, fmt.Sprintf("/tenant%d/directory", i))
		c.post("/new-order", fmt.Sprintf(`{"identifiers":[{"type":"t%d","value":"x"}]}`, i))
	}
	families, err := w.replicas[0].metrics.Gather()
	if err != nil || len(families) != 3 {
		t.Fatalf("%d metrics (%v)", len(families), err)
	}
	for _, f := range families {
		if n := len(f.GetMetric()); n == 0 || n > 10 {
			t.Errorf("%s has %d series after 5 kinds of requests", f.GetName(), n)
		}
	}
}
