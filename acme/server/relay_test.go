package server_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/acme/server"
)

// A relayCA is the fake CA with domains: names below validated.example can be
// certified, and names below relayed.example after a record was seen.
type relayCA struct {
	fakeIssuer

	mu     sync.Mutex
	asked  [][]acme.Identifier
	broken error
	seen   bool
	refuse *acme.Problem
}

func below(id acme.Identifier, domain string) bool {
	return id.Value == domain || strings.HasSuffix(id.Value, "."+domain)
}

func (r *relayCA) preflight(_ context.Context, _ string, ids []acme.Identifier) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var subs []*acme.Problem
	for _, id := range ids {
		if !below(id, "validated.example") && !r.seen {
			subs = append(subs, acme.Problemf(acme.RejectedIdentifier, "%s is not validated", id.Value).WithStatus(http.StatusForbidden).For(id))
		}
	}
	if p := acme.Combine("not validated", subs); p != nil {
		return p.WithStatus(http.StatusForbidden)
	}
	return nil
}

func (r *relayCA) Relay(_ context.Context, account string, ids []acme.Identifier, until time.Time) ([]*acme.RelayRecord, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, ids)
	records := make([]*acme.RelayRecord, len(ids))
	for i, id := range ids {
		if base, _ := id.Base(); below(base, "relayed.example") {
			records[i] = &acme.RelayRecord{Backend: "fake", Ref: account, Type: "TXT", Name: "_v." + base.Value, Value: "secret of " + base.Value, Expires: until.UTC().Truncate(time.Second)}
		}
	}
	return records, r.broken
}

func (r *relayCA) RelayStatus(_ context.Context, account string, record *acme.RelayRecord) (bool, time.Time, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if account != record.Ref {
		return false, time.Time{}, errors.New("asked for another account")
	}
	if r.refuse != nil {
		return false, time.Time{}, r.refuse
	}
	return r.seen, time.Time{}, nil
}

func (r *relayCA) set(change func(*relayCA)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

// newRelayWorld has a replica whose CA relays; the profiles relay and relay-http
// offer it, the latter beside http-01 only.
func newRelayWorld(t *testing.T, limits func(*server.Policy)) (*client, *relayCA) {
	t.Helper()
	w := newWorld(t)
	ca := &relayCA{fakeIssuer: fakeIssuer{w.ca}}
	wp := workerPolicy(w)
	wp.Issuers["fake"] = ca
	policy := newPolicy()
	for _, name := range []string{"relay", "relay-http", "relay-reuse"} {
		p := *policy.Directories[server.DefaultDirectory].Profiles["plain"]
		p.Name, p.Relay = name, "ncp-dcv-01"
		if name == "relay-http" {
			p.Challenges = []acme.ChallengeType{acme.HTTP01}
		}
		p.ReuseAuthorizations = name == "relay-reuse"
		policy.Directories[server.DefaultDirectory].Profiles[name] = &p
		wp.Directories[server.DefaultDirectory].Profiles[name] = &p
	}
	if limits != nil {
		limits(policy)
	}
	w.replicas[0].worker.SetPolicy(wp)
	s, err := server.New(server.Options{
		Store: w.store, Queue: w.replicas[0].worker, Relay: w.replicas[0].worker.Relay, Revoker: w.ca, Preflight: ca.preflight, ExternalURL: external,
		Now: w.now, Rand: w.rand, Log: slog.New(slog.NewTextHandler(w.logs, nil)), Metrics: prometheus.NewRegistry(),
	}, policy)
	if err != nil {
		t.Fatal(err)
	}
	w.replicas[0].Server = s
	return w.newAccountClient(), ca
}

// relayObject is a challenge with all that clients may look at.
type relayObject struct {
	Type, URL, Status, Token                           string
	RecordType, RecordName, RecordValue, RecordExpires string
	Error                                              *problem
}

func (c *client) challenges(authz string) []relayObject {
	c.Helper()
	var z struct{ Challenges []relayObject }
	c.read(authz).want(http.StatusOK).decode(&z)
	return z.Challenges
}

func types(list []relayObject) []string {
	var names []string
	for _, ch := range list {
		names = append(names, ch.Type)
	}
	return names
}

func TestRelayChallengeObject(t *testing.T) {
	c, _ := newRelayWorld(t, nil)
	o := c.post("/new-order", withProfile(orderFor("a.validated.example", "shop.relayed.example", "*.shop.relayed.example"), "relay")).want(http.StatusCreated).order()
	for i, want := range [][]string{{"http-01", "dns-01", "tls-alpn-01"}, {"ncp-dcv-01"}, {"ncp-dcv-01"}} {
		list := c.challenges(o.Authorizations[i])
		if got := types(list); !slices.Equal(got, want) {
			t.Errorf("authorization %d offers %v, want %v", i, got, want)
		}
		for _, ch := range list {
			if ch.Token == "" || ch.Status != "pending" || ch.URL == "" {
				t.Errorf("challenge %+v", ch)
			}
			record := ch.RecordType + ch.RecordName + ch.RecordValue + ch.RecordExpires
			if i == 0 && record != "" {
				t.Errorf("%s has a record: %+v", ch.Type, ch)
			}
			if i > 0 && (ch.RecordType != "TXT" || ch.RecordName != "_v.shop.relayed.example" || ch.RecordValue != "secret of shop.relayed.example" || ch.RecordExpires != o.Expires) {
				t.Errorf("challenge %+v, want the record until %s", ch, o.Expires)
			}
		}
	}
	// Nobody else gets to see the value.
	if a := c.newAccountClient().read(o.Authorizations[1]); a.status != http.StatusNotFound {
		t.Errorf("another account reads the authorization: %d", a.status)
	}
}

func TestRelayChallengeFollowsTheCA(t *testing.T) {
	c, ca := newRelayWorld(t, nil)
	o := c.post("/new-order", withProfile(orderFor("shop.relayed.example"), "relay")).want(http.StatusCreated).order()
	ch := c.challenges(o.Authorizations[0])[0]
	a := c.post(ch.URL, "{}").want(http.StatusOK)
	var got relayObject
	a.decode(&got)
	after, err := strconv.Atoi(a.header.Get("Retry-After"))
	if got.Status != "processing" || got.RecordValue == "" || got.Token == "" || err != nil || after < 2 || after > 60 {
		t.Errorf("after the response: %+v, Retry-After %q", got, a.header.Get("Retry-After"))
	}
	c.post(ch.URL, "{}").want(http.StatusOK).decode(&got) // again does no harm
	if z := c.readAuthz(o.Authorizations[0]); z.Status != "pending" || got.Status != "processing" {
		t.Errorf("authorization is %s, challenge %s", z.Status, got.Status)
	}
	ca.set(func(r *relayCA) { r.seen = true })
	eventually(t, "the record is seen", func() bool { c.advance(time.Second); return c.readOrder(o.URL).Status == "ready" })
	z := c.readAuthz(o.Authorizations[0])
	if z.Status != "valid" || len(z.Challenges) != 1 || z.Challenges[0].Status != "valid" {
		t.Errorf("authorization %+v", z)
	}
	if d := parseTime(t, z.Expires).Sub(c.now()); d > 30*24*time.Hour || d < 29*24*time.Hour {
		t.Errorf("expires in %s", d)
	}
	if done := c.post(o.Finalize, c.csr("shop.relayed.example")).want(http.StatusOK).order(); done.Status != "valid" {
		t.Errorf("order is %s", done.Status)
	}
}

func TestRelayChallengeThatFails(t *testing.T) {
	c, ca := newRelayWorld(t, nil)
	o := c.post("/new-order", withProfile(orderFor("shop.relayed.example"), "relay")).want(http.StatusCreated).order()
	ca.set(func(r *relayCA) { r.refuse = acme.Problemf(acme.DNS, "the record was not there") })
	var got relayObject
	c.post(c.challenges(o.Authorizations[0])[0].URL, "{}").want(http.StatusOK).decode(&got)
	if got.Status != "invalid" || got.Error == nil || !strings.HasSuffix(got.Error.Type, ":dns") || c.readOrder(o.URL).Status != "invalid" {
		t.Errorf("challenge %+v of an order that is %s", got, c.readOrder(o.URL).Status)
	}
}

func TestRelayIsOfferedWhereNothingElseHelps(t *testing.T) {
	for name, tt := range map[string]struct {
		profile string
		names   []string
		broken  error
		asked   int // names that the CA is asked about
		refused []string
	}{
		"all names are validated":          {"relay", []string{"a.validated.example"}, nil, 0, nil},
		"the profile does not offer it":    {"plain", []string{"a.relayed.example"}, nil, 0, []string{"a.relayed.example"}},
		"some are, some can be":            {"relay", []string{"a.validated.example", "a.relayed.example"}, nil, 1, nil},
		"some can be, some cannot":         {"relay", []string{"a.relayed.example", "other.example"}, nil, 2, []string{"other.example"}},
		"none can be":                      {"relay", []string{"other.example", "b.other.example"}, nil, 2, []string{"other.example", "b.other.example"}},
		"records cannot be had":            {"relay", []string{"a.relayed.example"}, errors.New("connection refused"), 1, []string{"a.relayed.example"}},
		"a wildcard where http-01 is left": {"relay-http", []string{"*.validated.example"}, nil, 0, []string{"*.validated.example"}},
		"a wildcard of the relay":          {"relay-http", []string{"*.relayed.example"}, nil, 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c, ca := newRelayWorld(t, nil)
			ca.broken = tt.broken
			a := c.post("/new-order", withProfile(orderFor(tt.names...), tt.profile))
			if n := len(slices.Concat(ca.asked...)); n != tt.asked {
				t.Errorf("asked for %d names, want %d", n, tt.asked)
			}
			if tt.broken != nil && !strings.Contains(c.logs.String(), "relay challenge cannot be offered") {
				t.Error("no warning")
			}
			if len(tt.refused) == 0 {
				a.want(http.StatusCreated)
				return
			}
			p := a.wantProblem(a.status, acme.RejectedIdentifier)
			var got []string
			for _, sub := range p.Subproblems {
				got = append(got, sub.Identifier.Value)
			}
			if !slices.Equal(got, tt.refused) {
				t.Errorf("refused %v, want %v: %s", got, tt.refused, a.body)
			}
		})
	}
}

// A validation at the CA costs calls, so that the limit on orders comes first.
func TestRelayIsNotAskedBeyondTheLimitOfOrders(t *testing.T) {
	c, ca := newRelayWorld(t, func(p *server.Policy) { p.Limits.NewOrdersPerAccount = acme.Limit{Count: 2, Period: time.Hour} })
	body := withProfile(orderFor("a.relayed.example"), "relay")
	for range 2 {
		c.post("/new-order", body).want(http.StatusCreated)
	}
	c.post("/new-order", body).wantProblem(http.StatusTooManyRequests, acme.RateLimited)
	if len(ca.asked) != 2 {
		t.Errorf("the CA was asked %d times, want 2", len(ca.asked))
	}
}

// A proof to us from a time at which the CA knew the domain does not help it now.
func TestRelayComesBeforeAReusedProof(t *testing.T) {
	c, ca := newRelayWorld(t, nil)
	ca.set(func(r *relayCA) { r.seen = true })
	body := withProfile(orderFor("a.relayed.example"), "relay-reuse")
	c.prove(c.post("/new-order", body).want(http.StatusCreated).order())
	if o := c.post("/new-order", body).want(http.StatusCreated).order(); o.Status != "ready" {
		t.Fatalf("the proof is not reused: order is %s", o.Status)
	}
	ca.set(func(r *relayCA) { r.seen = false })
	o := c.post("/new-order", body).want(http.StatusCreated).order()
	if got := types(c.challenges(o.Authorizations[0])); o.Status != "pending" || !slices.Equal(got, []string{"ncp-dcv-01"}) {
		t.Errorf("order is %s with %v", o.Status, got)
	}
}
