package server_test

import (
	"fmt"
	"net/http"
	"testing"
)

// all sends one message to each URL at once and fails unless each is answered
// with the status.
func (c *client) all(status int, targets, payloads []string) []*answer {
	c.Helper()
	messages := make([]*message, len(targets))
	for i, target := range targets {
		messages[i] = c.message(target, payloads[i])
	}
	answers := c.together(messages)
	for _, a := range answers {
		a.want(status)
	}
	return answers
}

// TestManyOrdersOfOneAccountAtOnce: rivals for one account's indexes cost no one
// an error, on either store.
func TestManyOrdersOfOneAccountAtOnceAllSucceed(t *testing.T) {
	shared, _ := newSharedWorld(t)
	for store, w := range map[string]*world{"bolt": newWorld(t), "Redis with two replicas": shared} {
		t.Run(store, func(t *testing.T) {
			c := w.newAccountClient()
			const n = 16
			repeat := func(s string) []string {
				list := make([]string, n)
				for i := range list {
					list[i] = s
				}
				return list
			}
			names, orders := make([]string, n), make([]*order, n)
			authz, finalize, csrs, certs := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
			for i := range names {
				names[i] = orderFor(fmt.Sprintf("n%d.example", i))
				csrs[i] = c.csr(fmt.Sprintf("n%d.example", i))
			}
			for i, a := range c.all(http.StatusCreated, repeat("/new-order"), names) {
				orders[i] = a.order()
				authz[i], finalize[i] = orders[i].Authorizations[0], orders[i].Finalize
			}
			challenges := make([]string, n)
			for i, a := range c.all(http.StatusOK, authz, repeat("")) {
				challenges[i] = a.authorization().Challenges[0].URL
			}
			c.all(http.StatusOK, challenges, repeat("{}"))
			for i := range orders {
				eventually(t, "the order is ready", func() bool { return c.readOrder(orders[i].URL).Status == "ready" })
			}
			for i, a := range c.all(http.StatusOK, finalize, csrs) {
				if certs[i] = a.order().Certificate; certs[i] == "" {
					t.Errorf("order %d is %s", i, a.order().Status)
				}
			}
			if t.Failed() {
				return
			}
			for i, a := range c.all(http.StatusOK, certs, repeat("")) {
				if got, want := parseLeaf(t, a.body).DNSNames[0], fmt.Sprintf("n%d.example", i); got != want {
					t.Errorf("order for %s got a certificate for %s", want, got)
				}
			}
			if got := w.ca.submits(); got != n {
				t.Errorf("the CA was asked %d times for %d orders", got, n)
			}
		})
	}
}

// TestDeactivationAndFinalizeAtOnce: whichever comes first, the order ends in
// one state and the CA is asked accordingly.
func TestDeactivationAndFinalizeAtOnceEndInOneState(t *testing.T) {
	w, _ := newSharedWorld(t)
	c := w.newAccountClient()
	for range 10 {
		before := w.ca.submits()
		o := c.readyOrder("a.example")
		answers := c.together([]*message{
			c.message(o.Authorizations[0], `{"status":"deactivated"}`), c.message(o.Finalize, c.csr("a.example")),
		})
		finalized := answers[1].status == http.StatusOK
		want := map[bool]string{true: "valid", false: "invalid"}[finalized]
		eventually(t, "the order is "+want, func() bool { return c.readOrder(o.URL).Status == want })
		if got := w.ca.submits() - before; got != map[bool]int{true: 1, false: 0}[finalized] {
			t.Errorf("finalize answered %d, the CA was asked %d times", answers[1].status, got)
		}
	}
}
