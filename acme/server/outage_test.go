package server_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/acme-bridge/acme-bridge/acme"
)

// without makes that call of the store fail until the hook is taken away.
func (w *world) without(call string) {
	w.store.setHook(func(got string) error {
		if got == call {
			return fmt.Errorf("%s: %w: connection refused to 10.9.8.7:6379", call, acme.ErrUnavailable)
		}
		return nil
	})
}

func TestStoreUnavailable_RequestsAnswer503AndNothingIsHalfDone(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.readyOrder("a.example")
	csr := c.csr("a.example")
	for _, call := range []string{"Fetch", "UpdateOrder"} {
		w.without(call)
		a := c.post(o.Finalize, csr)
		p := a.wantProblem(http.StatusServiceUnavailable, acme.ServerInternal)
		if got := a.header.Get("Retry-After"); got != "5" {
			t.Errorf("%s fails: Retry-After %q", call, got)
		}
		if strings.Contains(p.Detail, "10.9.8.7") || a.header.Get("Replay-Nonce") == "" {
			t.Errorf("%s fails: detail %q, headers %v", call, p.Detail, a.header)
		}
	}
	w.store.setHook(nil)
	if got := c.readOrder(o.URL).Status; got != "ready" || w.ca.submits() != 0 {
		t.Errorf("order is %s after finalizes that failed, the CA was asked %d times", got, w.ca.submits())
	}
	if got := c.post(o.Finalize, csr).want(http.StatusOK).order().Status; got != "valid" {
		t.Errorf("order is %s when the store is back", got)
	}
}

// TestStoreUnavailable_RedisComesBack: with a real server that goes away.
func TestStoreUnavailable_RedisGoesAwayAndComesBackWithoutARestart(t *testing.T) {
	w, redis := newSharedWorld(t)
	c := w.newAccountClient()
	m := c.message("/new-order", orderFor("a.example"))
	redis.stop()
	a := c.send(m)
	a.wantProblem(http.StatusServiceUnavailable, acme.ServerInternal)
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	redis.start(t)
	eventually(t, "the store is back", func() bool { return w.store.Ping(context.Background()) == nil })
	// It came back empty: the nonce key is gone with the accounts. A client that
	// follows the protocol gets along, as if it were new.
	c.nonce, c.since = a.header.Get("Replay-Nonce"), c.now()
	for range 3 {
		c.kid = ""
		a = c.post("/new-account", `{}`)
		if a.status != http.StatusBadRequest {
			break
		}
		a.wantProblem(http.StatusBadRequest, acme.BadNonce)
	}
	a.want(http.StatusCreated)
	c.kid = a.header.Get("Location")
	c.newOrder("a.example")
}

func TestStoreUnavailable_AServerStartsWithoutItsStore(t *testing.T) {
	w := newWorld(t)
	c := w.newClient()
	w.without("NonceKey")
	a := c.plain(http.MethodHead, "/new-nonce").want(http.StatusServiceUnavailable)
	if a.header.Get("Retry-After") != "5" || a.header.Get("Replay-Nonce") != "" {
		t.Errorf("headers %v", a.header)
	}
	c.plain(http.MethodGet, "/new-nonce").wantProblem(http.StatusServiceUnavailable, acme.ServerInternal)
	c.plain(http.MethodGet, "/directory").want(http.StatusOK)
	w.store.setHook(nil)
	c.register()
}

func TestStoreUnavailable_NewAccountAndNewOrderMakeNothing(t *testing.T) {
	w := newWorld(t)
	c := w.newClient()
	w.without("CreateAccount")
	c.post("/new-account", "{}").wantProblem(http.StatusServiceUnavailable, acme.ServerInternal)
	w.store.setHook(nil)
	c.post("/new-account", `{"onlyReturnExisting":true}`).wantProblem(http.StatusBadRequest, acme.AccountDoesNotExist)
	c.register()
	w.without("CreateOrder")
	c.post("/new-order", orderFor("a.example")).wantProblem(http.StatusServiceUnavailable, acme.ServerInternal)
	w.store.setHook(nil)
	var list struct {
		Orders []string `json:"orders"`
	}
	c.read(c.kid + "/orders").decode(&list)
	if len(list.Orders) > 0 {
		t.Errorf("orders: %v", list.Orders)
	}
}

// TestStoreUnavailable_ARevocationThatWasNotRecorded: the CA has revoked, and
// the client's next try records it.
func TestStoreUnavailable_ARevocationThatWasNotRecordedIsRepeated(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	_, cert := c.certificate(newECKey(t), "a.example")
	w.without("UpdateOrder")
	c.post("/revoke-cert", revocationOf(cert)).wantProblem(http.StatusServiceUnavailable, acme.ServerInternal)
	w.store.setHook(nil)
	c.post("/revoke-cert", revocationOf(cert)).want(http.StatusOK)
	c.post("/revoke-cert", revocationOf(cert)).wantProblem(http.StatusBadRequest, acme.AlreadyRevoked)
}

// TestAClientThatGoesAway during a held finalize costs nothing but its answer.
func TestAClientThatGoesAwayDuringTheHoldDoesNotStopTheOrder(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.readyOrder("a.example")
	w.ca.close()
	m := c.message(o.Finalize, c.csr("a.example"))
	ctx, leave := context.WithCancel(t.Context())
	r := httptest.NewRequest(http.MethodPost, m.target, strings.NewReader(string(m.envelope(t)))).WithContext(ctx)
	r.Header.Set("Content-Type", m.contentType)
	done := make(chan *answer, 1)
	go func() { done <- c.serve(0, r) }()
	eventually(t, "the CA is asked", func() bool { return w.ca.submits() == 1 })
	leave()
	(<-done).want(http.StatusOK)
	w.ca.open()
	eventually(t, "the order is valid", func() bool { return c.readOrder(o.URL).Status == "valid" })
}
