package server_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/acme-bridge/acme-bridge/acme"
)

// objects are the resources that belong to one account, by the route's name,
// with what else but POST-as-GET may be sent to them.
func objects(c *client, o *order) map[string][]string {
	urls := map[string]string{
		"account": c.kid, "orders": c.kid + "/orders", "order": o.URL, "finalize": o.Finalize, "authz": o.Authorizations[0],
		"challenge": c.readAuthz(o.Authorizations[0]).Challenges[0].URL, "certificate": strings.Replace(o.URL, "/order/", "/certificate/", 1),
	}
	all := make(map[string][]string)
	for name, url := range urls {
		all[name] = []string{url, "", "{}", `{"status":"deactivated"}`, c.csr("a.example")}
	}
	return all
}

// TestLesson4_EveryRouteIsKnownHere: a new one must be thought of in the tests
// below.
func TestLesson4_EveryRouteIsKnownHere(t *testing.T) {
	w := newWorld(t)
	names, err := w.replicas[0].Routes()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, name := range []string{
		"account", "orders", "order", "finalize", "authz", "challenge", "certificate", // objects
		"directory", "new-nonce", "new-account", "new-order", "key-change", "revoke-cert",
	} {
		want = append(want, name, "tenant:"+name)
	}
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("routes %v, want %v", names, want)
	}
}

// TestLesson4_NothingIsSignedWithoutAReadyOrder: whatever is sent to any route,
// for an order in each state that is not ready.
func TestLesson4_NothingIsSignedWithoutAReadyOrder(t *testing.T) {
	w := newWorld(t)
	w.validator.refuse("bad.example", acme.Problemf(acme.Unauthorized, "no"))
	c := w.newAccountClient()
	invalid := c.prove(c.newOrder("bad.example"))
	pending := c.newOrder("a.example", "bad.example")
	deactivated := c.newOrder("a.example")
	c.post(deactivated.Authorizations[0], `{"status":"deactivated"}`).want(http.StatusOK)
	for what, o := range map[string]*order{"invalid": invalid, "pending": pending, "deactivated": deactivated} {
		for _, name := range []string{"order", "finalize", "certificate", "authz", "challenge"} {
			resource := objects(c, o)[name]
			for _, payload := range resource[1:] {
				if strings.Contains(payload, "deactivated") && what == "pending" {
					continue
				}
				c.post(resource[0], payload)
			}
		}
		c.post("/new-order", strings.TrimSuffix(orderFor("a.example"), "}")+`,"csr":"AAAA","status":"ready"}`).want(http.StatusCreated)
		c.post(o.Finalize, c.csr("a.example", "bad.example")).wantProblem(http.StatusForbidden, acme.OrderNotReady)
	}
	if n := w.ca.submits(); n != 0 {
		t.Errorf("the CA was asked %d times", n)
	}
}

// TestLesson9_EveryResourceByEveryWrongSigner is the matrix: each resource of an
// account, asked for by another account, with the key instead of the account,
// under another tenant, and after deactivation.
func TestLesson9_EveryResourceByEveryWrongSigner(t *testing.T) {
	w := newWorld(t)
	c, other := w.newAccountClient(), w.newAccountClient()
	corp := &client{world: w, key: c.key, dir: "/corp"}
	corp.register()
	pending := c.newOrder("a.example")
	valid, _ := c.certificate(newECKey(t), "a.example")
	unknown := "/order/" + strings.Repeat("0", 28)
	notThere := string(other.read(unknown).body)
	for what, o := range map[string]*order{"pending": pending, "valid": valid} {
		for name, resource := range objects(c, o) {
			url := resource[0]
			for _, payload := range resource[1:] {
				label := fmt.Sprintf("%s of a %s order with payload %.20q", name, what, payload)
				a := other.post(url, payload)
				a.what = label + " by another account"
				readOnly := name == "order" || name == "certificate" || name == "orders"
				switch {
				case readOnly && payload != "":
					a.wantProblem(http.StatusBadRequest, acme.Malformed)
				case name == "account" || name == "orders":
					a.wantProblem(http.StatusForbidden, acme.Unauthorized)
				default:
					a.wantProblem(http.StatusNotFound, acme.Malformed)
					if string(a.body) != notThere {
						t.Errorf("%s: %s differs from what an unknown resource gets: %s", a.what, a.body, notThere)
					}
				}
				a = c.post(url, payload, func(m *message) { m.header["jwk"], m.header["kid"] = jwkOf(c.key.Public()), nil })
				a.what = label + " by jwk"
				a.wantProblem(http.StatusBadRequest, acme.Malformed)
				a = corp.post(url, payload)
				a.what = label + " by an account of another tenant"
				a.wantProblem(http.StatusBadRequest, acme.AccountDoesNotExist)
				a = corp.post("/corp"+path(url), payload)
				if a.status < 400 || a.status >= 500 {
					t.Errorf("%s under another tenant: %d %s", label, a.status, a.body)
				}
			}
		}
	}
	if got := c.readOrder(pending.URL).Status; got != "pending" {
		t.Errorf("order is %s after foreign requests", got)
	}
	if n := w.ca.submits(); n != 1 {
		t.Errorf("the CA was asked %d times", n)
	}
}
