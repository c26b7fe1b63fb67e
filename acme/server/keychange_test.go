package server_test

import (
	"crypto"
	"net/http"
	"testing"

	"github.com/acme-bridge/acme-bridge/acme"
)

// inner makes the inner JWS of a key change; edits make it wrong.
func (c *client) inner(newKey crypto.Signer, edits ...edit) string {
	c.Helper()
	m := &message{
		header: map[string]any{"alg": algOf(newKey), "url": external + c.dir + "/key-change", "jwk": jwkOf(newKey.Public())},
		key:    newKey, members: map[string]any{},
	}
	m.payload = string(mustJSON(c, map[string]any{"account": c.kid, "oldKey": jwkOf(c.key.Public())}))
	for _, e := range edits {
		e(m)
	}
	return string(m.envelope(c))
}

// rollover changes the client's key.
func (c *client) rollover() {
	c.Helper()
	key := newECKey(c)
	a := c.post(c.dir+"/key-change", c.inner(key)).want(http.StatusOK)
	if got := a.account(); got.Status != "valid" || a.header.Get("Location") != c.kid {
		c.Errorf("key change answered %s %s", a.header.Get("Location"), a.body)
	}
	c.key = key
}

func TestSection7_3_5_KeyChange(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	c.post(c.kid, `{"contact":["mailto:a@b.example"]}`).want(http.StatusOK)
	o := c.newOrder("a.example")
	old := *c
	old.nonce = ""
	c.rollover()
	old.read(c.kid).wantProblem(http.StatusForbidden, acme.Unauthorized) // at once
	if got := c.read(c.kid).want(http.StatusOK).account(); len(got.Contact) != 1 {
		t.Errorf("account after the change: %+v", got)
	}
	// The old key is free: it would make another account.
	old.kid = ""
	if a := old.post("/new-account", "{}").want(http.StatusCreated); a.header.Get("Location") == c.kid {
		t.Error("the old key leads to the account still")
	}
	// Lesson 31: an order in flight goes on under the new key.
	c.prove(o)
	v := w.validator.validations()
	if got, want := v[0].KeyAuthorization, v[0].Token+"."+thumbprint(t, c.key.Public()); got != want {
		t.Errorf("key authorization %s, want %s of the new key", got, want)
	}
	if got := c.post(o.Finalize, c.csr("a.example")).want(http.StatusOK).order().Status; got != "valid" {
		t.Errorf("order under the new key is %s", got)
	}
}

func TestSection7_3_5_KeyChangeInATenant(t *testing.T) {
	w := newWorld(t)
	c := w.newClient()
	c.dir = "/corp"
	c.register()
	c.rollover()
	c.newOrder("a.example")
}

// TestSection8_1_TheKeyAuthorizationIsFixedByTheResponse: a change of the key
// while a validation runs does not spoil it.
func TestSection8_1_TheKeyAuthorizationIsFixedByTheResponse(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.newOrder("a.example")
	before := thumbprint(t, c.key.Public())
	open := w.validator.close()
	defer open()
	ch := c.readAuthz(o.Authorizations[0]).Challenges[0]
	if got := c.post(ch.URL, "{}").want(http.StatusOK); got.header.Get("Retry-After") == "" {
		t.Errorf("a processing challenge without Retry-After: %s", got.body)
	}
	c.rollover()
	open()
	eventually(t, "the order is ready", func() bool { return c.readOrder(o.URL).Status == "ready" })
	if got := w.validator.validations()[0].KeyAuthorization; got != ch.Token+"."+before {
		t.Errorf("key authorization %s, want that of the key of the response", got)
	}
}

// TestLesson31_KeyChangeMatrix is rule 63 line by line.
func TestLesson31_KeyChangeMatrix(t *testing.T) {
	w := newWorld(t)
	c, other := w.newAccountClient(), w.newAccountClient()
	newKey := newECKey(t)
	payload := func(account any, oldKey any) edit {
		return func(m *message) {
			m.payload = string(mustJSON(t, map[string]any{"account": account, "oldKey": oldKey}))
		}
	}
	own := jwkOf(c.key.Public())
	rsa := newRSAKey(t, 1024)
	for name, tt := range map[string]struct {
		inner   string
		status  int
		problem acme.ProblemType
	}{
		"no JWS":                     {"{}", http.StatusBadRequest, acme.Malformed},
		"no JSON":                    {"x", http.StatusBadRequest, acme.Malformed},
		"inner nonce":                {c.inner(newKey, withHeader("nonce", "AAAA")), http.StatusBadRequest, acme.Malformed},
		"good inner nonce":           {c.inner(newKey, withHeader("nonce", c.takeNonce())), http.StatusBadRequest, acme.Malformed},
		"no inner jwk":               {c.inner(newKey, withHeader("jwk", nil)), http.StatusBadRequest, acme.Malformed},
		"inner kid":                  {c.inner(newKey, withHeader("jwk", nil), withHeader("kid", c.kid)), http.StatusBadRequest, acme.Malformed},
		"inner jwk and kid":          {c.inner(newKey, withHeader("kid", c.kid)), http.StatusBadRequest, acme.Malformed},
		"no inner url":               {c.inner(newKey, withHeader("url", nil)), http.StatusBadRequest, acme.Malformed},
		"another inner url":          {c.inner(newKey, withHeader("url", external+"/new-account")), http.StatusBadRequest, acme.Malformed},
		"inner url of a tenant":      {c.inner(newKey, withHeader("url", external+"/corp/key-change")), http.StatusBadRequest, acme.Malformed},
		"signed by the old key":      {c.inner(newKey, func(m *message) { m.key = c.key }), http.StatusForbidden, acme.Unauthorized},
		"signed by nobody":           {c.inner(newKey, func(m *message) { m.key = fixedSignature{signature: make([]byte, 64)} }), http.StatusForbidden, acme.Unauthorized},
		"inner alg none":             {c.inner(newKey, withHeader("alg", "none")), http.StatusBadRequest, acme.BadSignatureAlgorithm},
		"inner HS256":                {c.inner(newKey, withHeader("alg", "HS256")), http.StatusBadRequest, acme.BadSignatureAlgorithm},
		"a weak new key":             {c.inner(rsa), http.StatusBadRequest, acme.BadPublicKey},
		"unprotected inner header":   {c.inner(newKey, withMember("header", map[string]any{})), http.StatusBadRequest, acme.Malformed},
		"inner signatures":           {c.inner(newKey, withMember("signatures", []any{})), http.StatusBadRequest, acme.Malformed},
		"account of another":         {c.inner(newKey, payload(other.kid, own)), http.StatusBadRequest, acme.Malformed},
		"empty account":              {c.inner(newKey, payload("", own)), http.StatusBadRequest, acme.Malformed},
		"no account":                 {c.inner(newKey, payload(nil, own)), http.StatusBadRequest, acme.Malformed},
		"account with a slash":       {c.inner(newKey, payload(c.kid+"/", own)), http.StatusBadRequest, acme.Malformed},
		"no oldKey":                  {c.inner(newKey, payload(c.kid, nil)), http.StatusBadRequest, acme.Malformed},
		"oldKey of another":          {c.inner(newKey, payload(c.kid, jwkOf(other.key.Public()))), http.StatusBadRequest, acme.Malformed},
		"oldKey is the new key":      {c.inner(newKey, payload(c.kid, jwkOf(newKey.Public()))), http.StatusBadRequest, acme.Malformed},
		"oldKey is a string":         {c.inner(newKey, payload(c.kid, "x")), http.StatusBadRequest, acme.Malformed},
		"payload is no object":       {c.inner(newKey, func(m *message) { m.payload = "[]" }), http.StatusBadRequest, acme.Malformed},
		"payload is empty":           {c.inner(newKey, func(m *message) { m.payload = "" }), http.StatusBadRequest, acme.Malformed},
		"the key of another account": {c.inner(other.key), http.StatusConflict, acme.Malformed},
		"the account's own key":      {c.inner(c.key), http.StatusConflict, acme.Malformed},
	} {
		a := c.post("/key-change", tt.inner)
		a.what = "key change: " + name
		a.wantProblem(tt.status, tt.problem)
		want := ""
		switch name {
		case "the key of another account":
			want = other.kid
		case "the account's own key":
			want = c.kid
		}
		if got := a.header.Get("Location"); got != want {
			t.Errorf("%s: Location %q, want %q", name, got, want)
		}
	}
	c.read(c.kid).want(http.StatusOK) // nothing has changed
	(&client{world: w, key: newKey}).post("/new-account", `{"onlyReturnExisting":true}`).wantProblem(http.StatusBadRequest, acme.AccountDoesNotExist)
	c.post(c.kid, `{"status":"deactivated"}`).want(http.StatusOK)
	c.post("/key-change", c.inner(newKey)).wantProblem(http.StatusUnauthorized, acme.Unauthorized)
	// A deactivated account's key is not free either.
	other.post("/key-change", other.inner(c.key)).wantProblem(http.StatusConflict, acme.Malformed)
}

func TestLesson31_ConcurrentRolloversOfOneAccountEndWithOneKey(t *testing.T) {
	w, _ := newSharedWorld(t)
	c := w.newAccountClient()
	keys := make([]crypto.Signer, 20)
	messages := make([]*message, len(keys))
	for i := range messages {
		keys[i] = newECKey(t)
		messages[i] = c.message("/key-change", c.inner(keys[i]))
	}
	answers := c.together(messages)
	won := 0
	for i, a := range answers {
		holder := &client{world: w, key: keys[i], kid: c.kid}
		if a.status == http.StatusOK {
			won++
			holder.read(c.kid).want(http.StatusOK)
			continue
		}
		a.wantProblem(http.StatusForbidden, acme.Unauthorized)
		holder.read(c.kid).wantProblem(http.StatusForbidden, acme.Unauthorized)
	}
	if won != 1 {
		t.Errorf("%d of %d concurrent changes won: %v", won, len(keys), statuses(answers))
	}
}
