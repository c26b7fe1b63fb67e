package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

const orderID = "0301arz3ndektsv4rrffq69g5fav"

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// sample is an order for two names that waits for the client.
func sample() *acme.Order {
	return &acme.Order{
		ID: orderID, Directory: "default", AccountID: "03account", Profile: "public", Status: acme.StatusPending,
		Created: noon, Expires: noon.Add(24 * time.Hour),
		Authorizations: []acme.Authorization{
			{Identifier: acme.Identifier{Type: acme.TypeDNS, Value: "shop.example.com"}, Status: acme.StatusValid, Token: "secret-token-1",
				Challenges: []acme.Challenge{{Type: acme.HTTP01, Status: acme.StatusValid, Validated: noon.Add(time.Second)}}},
			{Identifier: acme.Identifier{Type: acme.TypeDNS, Value: "example.com"}, Wildcard: true, Status: acme.StatusPending, Token: "secret-token-2",
				Challenges: []acme.Challenge{{Type: acme.DNS01, Status: acme.StatusPending}}},
		},
	}
}

// finalized is an order that the CA may be at work on.
func finalized() *acme.Order {
	o := sample()
	o.Authorizations[1].Status = acme.StatusValid
	o.Authorizations[1].Challenges[0] = acme.Challenge{Type: acme.DNS01, Status: acme.StatusValid, Validated: noon.Add(2 * time.Second)}
	o.Status, o.CSR, o.CSRHash = acme.StatusProcessing, []byte("the CSR"), []byte("hash")
	return o
}

func asked(o *acme.Order) *acme.Order {
	o.Attempts = 1
	o.Intent = &acme.Intent{Attempt: 1, Since: noon.Add(3 * time.Second), Deadline: noon.Add(35 * time.Second), Backend: "public-dv"}
	o.Wake = noon.Add(time.Minute)
	return o
}

func ended(o *acme.Order, p *acme.Problem) *acme.Order {
	o.Status, o.Error, o.Intent = acme.StatusInvalid, p, nil
	return o
}

func TestAnOrdersStoryIsTold(t *testing.T) {
	certificate := &acme.Certificate{ID: "aki.serial", Issued: noon.Add(4 * time.Second), NotAfter: noon.Add(198 * 24 * time.Hour), Backend: "public-dv"}
	name := acme.Identifier{Type: acme.TypeDNS, Value: "shop.example.com"}
	for _, tt := range []struct {
		name  string
		order *acme.Order
		now   time.Time
		steps []string // parts of them, in this order
		waits string
		todo  string
	}{
		{"a name is not proven yet", sample(), noon,
			[]string{"created by account 03account", "shop.example.com: control was proven by http-01"}, "the client's response to a challenge for *.example.com", "client: prove control over *.example.com by dns-01"},
		{"a name is being checked", func() *acme.Order {
			o := sample()
			o.Authorizations[1].Challenges[0].Status = acme.StatusProcessing
			return o
		}(), noon, []string{"*.example.com: the client has responded to dns-01"}, "the check of *.example.com", ""},
		{"a proof failed", func() *acme.Order {
			o := sample()
			o.Authorizations[1].Challenges[0].Error = acme.Problemf(acme.DNS, "no TXT record")
			return ended(o, acme.Problemf(acme.DNS, "no TXT record"))
		}(), noon, []string{"*.example.com: dns-01 failed: dns: no TXT record", "ended without a certificate: dns"}, "", "client: let the challenge be answered"},
		{"the client has to finalize", func() *acme.Order { o := finalized(); o.Status, o.CSRHash = acme.StatusReady, nil; return o }(), noon,
			[]string{"*.example.com: control was proven by dns-01"}, "the client's finalize, until 2026-11-02 12:00:00 UTC", "client: send the CSR"},
		{"nobody has taken it up", finalized(), noon, []string{"finalized"}, "a worker", "operator: if it stays so"},
		{"the CA was not reached", func() *acme.Order { o := asked(finalized()); o.Intent = nil; return o }(), noon,
			[]string{"the backend was asked for the certificate, once"}, "the next attempt to ask the backend, at 2026-11-01 12:01:00 UTC", "operator: if it stays so, find out"},
		{"the CA is being asked", asked(finalized()), noon.Add(5 * time.Second), []string{"backend public-dv was asked for the certificate, attempt 1"}, "the backend's answer, until 2026-11-01 12:00:35 UTC", ""},
		{"the answer was lost", asked(finalized()), noon.Add(time.Hour), []string{"the answer was lost; searched for the certificate at the CA not yet"}, "it is not asked twice", "operator: see that the backend"},
		{"the CA is at work", func() *acme.Order {
			o := asked(finalized())
			o.Ticket = "cert:77"
			o.History = []acme.Event{{Time: noon.Add(6 * time.Second), Name: "shop.example.com", Text: "asks for TXT _dcv.shop.example.com"}}
			return o
		}(), noon.Add(time.Hour), []string{"shop.example.com: asks for TXT", "the CA is at work on it"}, "the CA, which is asked again at 2026-11-01 12:01:00 UTC; the last news: shop.example.com asks for TXT", "operator: if a record is asked for"},
		{"the CA did not see the record", ended(asked(finalized()), acme.Combine("not validated", []*acme.Problem{acme.Problemf(acme.DNS, "expected TXT _dcv").For(name)})), noon,
			[]string{"shop.example.com: dns: expected TXT _dcv"}, "", "operator: let the record named above be served"},
		{"the CA refused the CSR", ended(asked(finalized()), acme.Problemf(acme.BadCSR, "lint")), noon, []string{"badCSR: lint"}, "", "client: make a new order with a CSR"},
		{"the names may not be ordered", ended(finalized(), acme.Problemf(acme.RejectedIdentifier, "no")), noon, nil, "", "operator: allow the names"},
		{"the operator has to act at the CA", ended(finalized(), acme.Problemf(acme.UserActionRequired, "organization")), noon, nil, "", "operator: do what is said above"},
		{"too many", ended(finalized(), acme.Problemf(acme.RateLimited, "many")), noon, nil, "", "client: wait"},
		{"the CA failed", ended(asked(finalized()), acme.Problemf(acme.ServerInternal, "CT")), noon, []string{"serverInternal: CT"}, "", "operator: look for order " + orderID + " in the log"},
		{"time ran out", ended(sample(), acme.Problemf(acme.Malformed, "order expired")), noon, []string{"malformed: order expired"}, "", "client: make a new order"},
		{"it ended for no reason", ended(sample(), nil), noon, []string{"ended without a certificate"}, "", "client: make a new order"},
		{"a name was given up", func() *acme.Order {
			o := sample()
			o.Authorizations[1].Status = acme.StatusDeactivated
			return ended(o, acme.Problemf(acme.Unauthorized, "deactivated"))
		}(), noon, []string{"*.example.com: the client has deactivated"}, "", "client:"},
		{"it is done", func() *acme.Order {
			o := finalized()
			o.Status, o.Attempts, o.Certificate = acme.StatusValid, 2, certificate
			return o
		}(), noon, []string{"asked for the certificate, 2 times", "certificate aki.serial was issued by backend public-dv"}, "", ""},
		{"nobody came for it", func() *acme.Order {
			o, c := finalized(), *certificate
			c.Unfetched = true
			o.Status, o.Certificate = acme.StatusValid, &c
			return o
		}(), noon, []string{"nobody has fetched it yet"}, "", "client: download it"},
		{"it was revoked", func() *acme.Order {
			o, c := finalized(), *certificate
			c.Revoked = &acme.Revocation{Time: noon.Add(time.Hour), Reason: 4}
			o.Status, o.Certificate = acme.StatusValid, &c
			return o
		}(), noon, []string{"it was revoked, reason 4"}, "", "client: order a new certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := explain(tt.order, tt.now)
			rest := e.Steps
			for _, want := range tt.steps {
				for len(rest) > 0 && !strings.Contains(strings.TrimPrefix(rest[0].Name+": "+rest[0].Text, ": "), want) {
					rest = rest[1:]
				}
				if len(rest) == 0 {
					t.Errorf("got steps %+v, want %q", e.Steps, want)
				}
			}
			if !strings.Contains(e.WaitsFor, tt.waits) || (tt.waits == "") != (e.WaitsFor == "") {
				t.Errorf("waits for %q, want %q", e.WaitsFor, tt.waits)
			}
			if todo := strings.Join(e.ToDo, "\n"); !strings.Contains(todo, tt.todo) || (tt.todo == "") != (todo == "") {
				t.Errorf("to do: %q, want %q", todo, tt.todo)
			}
		})
	}
}

func TestOrdersAreShownWithoutWhatIsTheClients(t *testing.T) {
	const url = "http://127.0.0.1:14001/api/v1/orders/"
	o := options()
	o.Orders = func(_ context.Context, id string) (*acme.Order, error) {
		switch id {
		case orderID:
			order := asked(finalized())
			order.Ticket = "cert:77"
			return order, nil
		case orderID[:len(orderID)-1] + "w":
			return nil, acme.ErrUnavailable
		}
		return nil, acme.ErrNotFound
	}
	h := New(o)
	w := get(h, "GET", url+orderID, "Bearer "+token)
	var got Order
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
		t.Fatalf("got %d %s %v", w.Code, w.Body, err)
	}
	if got.ID != orderID || got.Status != acme.StatusProcessing || len(got.Names) != 2 || got.Names[1] != "*.example.com" ||
		got.Request == nil || got.Request.Ticket != "cert:77" || len(got.Explanation.Steps) == 0 {
		t.Errorf("got %s", w.Body)
	}
	for _, secret := range []string{"secret-token", "the CSR", "dGhlIENTUg"} {
		if strings.Contains(w.Body.String(), secret) {
			t.Errorf("%q is shown: %s", secret, w.Body)
		}
	}
	for id, want := range map[string]int{
		orderID[:len(orderID)-1] + "x": 404, orderID[:len(orderID)-1] + "w": 503, "..%2f..%2fsecrets": 404, "short": 404,
	} {
		if w := get(h, "GET", url+id, "Bearer "+token); w.Code != want || !strings.Contains(w.Body.String(), `"error"`) {
			t.Errorf("%s: got %d %s, want %d", id, w.Code, w.Body, want)
		}
	}
	if w := get(h, "GET", url+orderID, ""); w.Code != 401 {
		t.Errorf("without a token: got %d", w.Code)
	}
	o.Orders = nil
	if w := get(New(o), "GET", url+orderID, "Bearer "+token); w.Code != 404 {
		t.Errorf("without orders: got %d", w.Code)
	}
}

// fakeDomains is a CA with a memory; a name that begins with a fault's has it.
type fakeDomains map[string]*Domain

func (f fakeDomains) List(context.Context) ([]Domain, error) {
	var all []Domain
	for _, d := range f {
		all = append(all, *d)
	}
	return all, nil
}

func (f fakeDomains) Add(ctx context.Context, name string) (*Domain, error) {
	if _, ok := ctx.Deadline(); !ok {
		return nil, errors.New("no deadline")
	}
	switch {
	case strings.HasPrefix(name, "refused."):
		return nil, acme.Problemf(acme.RejectedIdentifier, "the organization has another domain")
	case strings.HasPrefix(name, "broken."):
		return nil, errors.New("call Certificate Manager: connection refused")
	case strings.HasPrefix(name, "slow."):
		return nil, context.DeadlineExceeded
	}
	f[name] = &Domain{Name: name, State: "PENDING", Record: &Record{Name: "_validation-persist." + name, Type: "TXT", Value: "ca.example"}}
	return f[name], nil
}

func (f fakeDomains) Check(_ context.Context, name string) (*Domain, error) {
	d := f[name]
	if d == nil {
		return nil, acme.ErrNotFound
	}
	d.State = "VALID"
	return d, nil
}

func (f fakeDomains) Remove(_ context.Context, name string) error {
	if f[name] == nil {
		return acme.ErrNotFound
	}
	delete(f, name)
	return nil
}

func TestDomainsAreAddedCheckedListedAndRemoved(t *testing.T) {
	o := options()
	o.Domains = map[string]Domains{"public-dv": fakeDomains{}}
	h := New(o)
	const domains = "/api/v1/backends/public-dv/domains"
	for _, tt := range []struct {
		name, method, path, body string
		want                     int
		text                     string
	}{
		{"none yet", "GET", domains, "", 200, `"domains": []`},
		{"a new one", "POST", domains, `{"domain": "Shop.Example.com."}`, 200, `"value": "ca.example"`},
		{"a wildcard is its base", "POST", domains, `{"domain": "*.other.example.com"}`, 200, `"domain": "other.example.com"`},
		{"another list", "GET", domains, "", 200, "_validation-persist.shop.example.com"},
		{"its state", "POST", domains + "/shop.example.com/check", "", 200, `"state": "VALID"`},
		{"away", "DELETE", domains + "/shop.example.com", "", 200, `"removed": true`},
		{"away twice", "DELETE", domains + "/shop.example.com", "", 404, "not found"},
		{"the state of none", "POST", domains + "/shop.example.com/check", "", 404, "not found"},
		{"a refusal", "POST", domains, `{"domain": "refused.example.com"}`, 422, "the organization has another domain"},
		{"a CA out of reach", "POST", domains, `{"domain": "broken.example.com"}`, 502, "connection refused"},
		{"a CA that does not answer", "POST", domains, `{"domain": "slow.example.com"}`, 504, "deadline"},
		{"no name", "POST", domains, `{"domain": "no name"}`, 422, "error"},
		{"a name of this machine", "POST", domains, `{"domain": "localhost"}`, 422, "no public domain"},
		{"a name below it", "POST", domains, `{"domain": "demo.localhost"}`, 422, "no public domain"},
		{"no JSON", "POST", domains, `domain=a`, 422, "send"},
		{"a name of no form in a path", "DELETE", domains + "/a..b", "", 422, "error"},
		{"another backend", "GET", "/api/v1/backends/lab/domains", "", 404, "these do: public-dv"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := send(h, tt.method, "http://127.0.0.1:14001"+tt.path, "Bearer "+token, tt.body)
			if w.Code != tt.want || !strings.Contains(w.Body.String(), tt.text) {
				t.Errorf("got %d %s, want %d %s", w.Code, w.Body, tt.want, tt.text)
			}
			if w := send(h, tt.method, "http://127.0.0.1:14001"+tt.path, "", tt.body); w.Code != http.StatusUnauthorized {
				t.Errorf("without a token: got %d", w.Code)
			}
		})
	}
	o.Domains = nil
	if w := get(New(o), "GET", "http://127.0.0.1:14001"+domains, "Bearer "+token); w.Code != 404 || !strings.Contains(w.Body.String(), "certmanager") {
		t.Errorf("without such a backend: got %d %s", w.Code, w.Body)
	}
}
