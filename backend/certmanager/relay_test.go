package certmanager

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

const relayTime = 24 * time.Hour

// relay asks for records and wants no error.
func (r *rig) relay(account string, names ...string) []*acme.RelayRecord {
	r.t.Helper()
	got, err := r.Relay(r.t.Context(), account, ids(names...), r.clock.Now().Add(relayTime))
	if err != nil || len(got) != len(names) {
		r.t.Fatalf("%s: got %d records for %v, %v", account, len(got), names, err)
	}
	return got
}

// status asks about a record: "pending", "valid", or the type of the problem.
func (r *rig) status(account string, record *acme.RelayRecord) string {
	r.t.Helper()
	seen, expires, err := r.RelayStatus(r.t.Context(), account, record)
	if p, ok := errors.AsType[*acme.Problem](err); ok {
		return string(p.Type)
	}
	switch {
	case err != nil:
		return "error"
	case !seen:
		return "pending"
	case expires.Before(r.clock.Now()):
		r.t.Errorf("valid until %s", expires)
	}
	return "valid"
}

func (r *rig) publish(record *acme.RelayRecord) {
	r.t.Helper()
	if err := r.sim.Publish(record.Name, record.Type, record.Value); err != nil {
		r.t.Fatal(err)
	}
}

func withLookup(r *rig, cfg *Config) { cfg.LookupTXT = r.lookup }

func TestRelay(t *testing.T) {
	for name, set := range map[string]func(*ncloudtest.CMBehaviour){
		"as documented":        func(*ncloudtest.CMBehaviour) {},
		"a bare answer":        func(b *ncloudtest.CMBehaviour) { b.RegisterAnswer = "bare" },
		"existing ones again":  func(b *ncloudtest.CMBehaviour) { b.RegisterTwice = "existing" },
		"other names":          func(b *ncloudtest.CMBehaviour) { b.NameField, b.ValueField = "recordName", "recordValue" },
		"relative record name": func(b *ncloudtest.CMBehaviour) { b.RecordD = "_dcv" },
		"numbers as strings":   func(b *ncloudtest.CMBehaviour) { b.NumbersAsStrings = true },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, withLookup)
			r.change(set)
			got := r.relay("anna", "shop.example.com", "*.shop.example.com", "other.example.com")
			for n, record := range got {
				if record == nil || record.Backend != "public" || record.Type != "TXT" || !strings.HasSuffix(record.Name, ".example.com") || record.Value == "" ||
					!record.Expires.Equal(r.clock.Now().Add(relayTime)) {
					t.Fatalf("record %d is %+v", n, record)
				}
			}
			if got[0].Ref != got[1].Ref || got[0].Value != got[1].Value || got[0].Value == got[2].Value {
				t.Errorf("records are %+v, want one for a domain and its wildcard", got)
			}
			if n := r.counters().Registered; n != 2 {
				t.Errorf("%d domains were registered", n)
			}
			r.pass(time.Minute)
			if got := r.status("anna", got[0]); got != "pending" {
				t.Errorf("before the record is there: %s", got)
			}
			r.publish(got[0])
			r.pass(time.Minute)
			for n, want := range []string{"valid", "valid", "pending"} {
				if s := r.status("anna", got[n]); s != want {
					t.Errorf("record %d is %s, want %s", n, s, want)
				}
			}
			// Now the domain is validated, the record says nothing about anyone.
			for _, account := range []string{"anna", "bert"} {
				if again := r.relay(account, "shop.example.com", "below.shop.example.com"); again[0] != nil || again[1] != nil {
					t.Errorf("%s is offered records of a validated domain: %+v", account, again)
				}
			}
			if err := r.Preflight(t.Context(), ids("shop.example.com", "*.shop.example.com")); err != nil {
				t.Error(err)
			}
		})
	}
}

// A value speaks for an account only if nobody else was told, or may publish it.
func TestRelayIsOneAccounts(t *testing.T) {
	r := newRig(t, withLookup)
	first := r.relay("anna", "shop.example.com")[0]
	if again := r.relay("anna", "shop.example.com")[0]; again == nil || again.Value != first.Value || again.Ref != first.Ref {
		t.Errorf("asked again, the account gets %+v after %+v", again, first)
	}
	if got := r.relay("bert", "shop.example.com")[0]; got != nil {
		t.Errorf("another account is told %+v", got)
	}
	r.publish(first)
	r.pass(time.Minute)
	if got := r.status("bert", first); got == "valid" {
		t.Error("the record is another account's proof")
	}
	if got := r.status("anna", first); got != "valid" {
		t.Errorf("for the account it is %s", got)
	}
}

// A value that is the same for every registration speaks for nobody.
func TestRelayNeedsARandomValue(t *testing.T) {
	for name, tt := range map[string]struct {
		value  string
		before func(*rig)
	}{
		"an account of the CA":     {"ca.example; accounturi=https://ca.example/1", nil},
		"the value of another one": {"same for all", func(r *rig) { r.domainOnce("www.example.com") }},
		"a value that is there": {"of {domain}", func(r *rig) {
			r.publish(&acme.RelayRecord{Name: "_ncp-dcv.shop.example.com", Type: "TXT", Value: "of shop.example.com"})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, withLookup)
			r.change(func(b *ncloudtest.CMBehaviour) { b.ValueD = tt.value })
			if tt.before != nil {
				tt.before(r)
			}
			if got := r.relay("anna", "shop.example.com")[0]; got != nil {
				t.Errorf("got %+v", got)
			}
			if log := r.log.String(); !strings.Contains(log, "is not random") {
				t.Errorf("the log does not say why:\n%s", log)
			}
		})
	}
}

// Control characters would reach terminals of operators and clients.
func TestRelayTellsPrintableRecordsOnly(t *testing.T) {
	r := newRig(t, nil)
	r.change(func(b *ncloudtest.CMBehaviour) { b.ValueD = "{token}\x1b[2J" })
	if got := r.relay("anna", "shop.example.com")[0]; got != nil {
		t.Errorf("got %+v", got)
	}
	if log := r.log.String(); !strings.Contains(log, "no record that can be told") {
		t.Errorf("the log does not say why:\n%s", log)
	}
}

// domainOnce registers a domain with a one-time record.
func (r *rig) domainOnce(name string) {
	r.t.Helper()
	if _, err := r.RegisterDomain(r.t.Context(), name, "TXT"); err != nil {
		r.t.Fatal(err)
	}
}

// When an account's time is over, the next one gets a registration of its own.
func TestRelayAfterAnotherAccountGaveUp(t *testing.T) {
	r := newRig(t, withLookup)
	first := r.relay("anna", "shop.example.com")[0]
	r.pass(relayTime + claimGrace + time.Minute)
	second := r.relay("bert", "shop.example.com")[0]
	if second == nil || second.Ref == first.Ref || second.Value == first.Value {
		t.Fatalf("got %+v after %+v, want a new registration", second, first)
	}
	if n := len(r.sim.CMDomains()); n != 1 {
		t.Errorf("%d registrations are left", n)
	}
	r.publish(first) // late
	r.pass(time.Minute)
	if a, b := r.status("anna", first), r.status("bert", second); a != string(acme.IncorrectResponse) || b != "pending" {
		t.Errorf("the old record makes them %s and %s", a, b)
	}
	// What nobody asks for again is cleaned up by whoever asks for anything.
	r.pass(relayTime + claimGrace + time.Minute)
	r.relay("carl", "www.example.com")
	domains := r.sim.CMDomains()
	if len(domains) != 1 || domains[0].Domain != "www.example.com" {
		t.Errorf("registrations are %+v", domains)
	}
	kept, _, err := load[relays](t.Context(), r.Issuer, r.relaysName())
	if err != nil || len(kept.Claims) != 1 {
		t.Errorf("claims are %+v, %v", kept.Claims, err)
	}
}

func TestRelayIsNotOffered(t *testing.T) {
	for name, tt := range map[string]struct {
		set  func(*rig, *Config)
		make func(*rig)
	}{
		"where a parent is validated":       {nil, func(r *rig) { r.domain("example.com", DomainValid) }},
		"where we write the zone":           {withPublisher, nil},
		"where the operator has a pending":  {nil, func(r *rig) { r.domain("shop.example.com", DomainPending) }},
		"where the operator has an invalid": {nil, func(r *rig) { r.domain("shop.example.com", DomainInvalid) }},
		"without a place for records":       {func(_ *rig, cfg *Config) { cfg.Records = nil }, nil},
		"where the operator takes over": {nil, func(r *rig) {
			r.relay("anna", "shop.example.com")
			if err := r.EndRelay(r.t.Context(), "shop.example.com"); err != nil {
				r.t.Fatal(err)
			}
		}},
		"where a registration appears too late to be ours": {nil, func(r *rig) {
			r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 503, Operation: "registerDomain", Count: 1})
			if got := r.relay("anna", "shop.example.com")[0]; got != nil {
				r.t.Fatalf("got %+v without a registration", got)
			}
			r.pass(registering + time.Minute)
			r.domain("shop.example.com", DomainPending)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tt.set)
			if tt.make != nil {
				tt.make(r)
			}
			before := r.counters().Registered
			if got := r.relay("anna", "shop.example.com")[0]; got != nil {
				t.Errorf("got %+v", got)
			}
			if n := r.counters().Registered - before; n != 0 {
				t.Errorf("%d domains were registered", n)
			}
		})
	}
}

func TestRelayEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		make func(*rig, *acme.RelayRecord)
		want string
	}{
		"the service gives up, nothing in DNS": {func(r *rig, _ *acme.RelayRecord) { r.domain("shop.example.com", DomainInvalid) }, string(acme.DNS)},
		"the service gives up, another value": {func(r *rig, record *acme.RelayRecord) {
			r.publish(&acme.RelayRecord{Name: record.Name, Type: "TXT", Value: "wrong"})
			r.domain("shop.example.com", DomainInvalid)
		}, string(acme.IncorrectResponse)},
		"the operator removes the domain": {func(r *rig, _ *acme.RelayRecord) {
			if err := r.RemoveDomain(r.t.Context(), "shop.example.com"); err != nil {
				r.t.Fatal(err)
			}
		}, string(acme.IncorrectResponse)},
		"the operator takes it over": {func(r *rig, record *acme.RelayRecord) {
			if err := r.EndRelay(r.t.Context(), "shop.example.com"); err != nil {
				r.t.Fatal(err)
			}
			r.publish(record)
		}, string(acme.IncorrectResponse)},
		"valid with its parent, and no record": {func(r *rig, _ *acme.RelayRecord) {
			r.domain("example.com", DomainValid)
			r.domain("shop.example.com", DomainValid)
			for _, d := range r.sim.CMDomains() {
				if d.Domain == "shop.example.com" {
					r.sim.Unpublish(d.Record, "TXT", d.Value)
				}
			}
		}, "pending"},
		"valid with its parent, and the record": {func(r *rig, record *acme.RelayRecord) {
			r.domain("example.com", DomainValid)
			r.publish(record)
		}, "valid"},
		"the service is away": {func(r *rig, _ *acme.RelayRecord) {
			r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 503, Operation: "listDomainValidations", Count: -1})
		}, "error"},
		"records are away": {func(r *rig, record *acme.RelayRecord) {
			r.publish(record)
			r.records.fail(errors.New("no store"))
		}, "error"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, withLookup)
			r.change(func(b *ncloudtest.CMBehaviour) { b.RemovedRecord, b.InvalidRecovers = "ignored", false })
			record := r.relay("anna", "shop.example.com")[0]
			tt.make(r, record)
			r.pass(time.Minute)
			if got := r.status("anna", record); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// The answer to a registration may be lost; it is found in the list.
func TestRelayLostAnswers(t *testing.T) {
	for _, kind := range []ncloudtest.Kind{ncloudtest.DropAfter, ncloudtest.DropBefore} {
		t.Run(string(kind), func(t *testing.T) {
			r := newRig(t, nil)
			r.inject(ncloudtest.Fault{Kind: kind, Operation: "registerDomain", Count: 1})
			got := r.relay("anna", "shop.example.com")[0]
			if kind == ncloudtest.DropAfter && got == nil {
				t.Error("a registration that was made is not found")
			}
			if got = r.relay("anna", "shop.example.com")[0]; got == nil || r.counters().Registered != 1 {
				t.Errorf("asked again, got %+v with %d registrations", got, r.counters().Registered)
			}
		})
	}
}

func TestRelayIsBounded(t *testing.T) {
	r := newRig(t, nil)
	var names []string
	for n := range maxRelay + 5 {
		names = append(names, fmt.Sprintf("n%d.example.com", n))
	}
	offered := 0
	for round := range 5 {
		for n := range names {
			names[n] = fmt.Sprintf("n%d-%d.example.com", round, n)
		}
		for _, record := range r.relay("anna", names...) {
			if record != nil {
				offered++
			}
		}
	}
	if offered != maxAccountClaims || r.counters().Registered != maxAccountClaims {
		t.Errorf("%d records were offered, %d domains registered, want %d", offered, r.counters().Registered, maxAccountClaims)
	}
	if r.relay("bert", "b.example.com")[0] == nil {
		t.Error("another account is refused for it")
	}
}

// Of accounts that ask at one time, one is told.
func TestRelayOfManyAccountsAtOnce(t *testing.T) {
	r := newRig(t, nil)
	var mu sync.Mutex
	told := map[string]bool{}
	var running sync.WaitGroup
	for n := range 6 {
		running.Go(func() {
			account := fmt.Sprint("account", n)
			got, err := r.Relay(context.Background(), account, ids("shop.example.com"), r.clock.Now().Add(relayTime))
			mu.Lock()
			defer mu.Unlock()
			if err == nil && got[0] != nil {
				told[account] = true
			}
		})
	}
	running.Wait()
	if len(told) != 1 || r.counters().Registered != 1 {
		t.Errorf("%v were told, %d registrations", told, r.counters().Registered)
	}
}

// Whoever is told the value by a refusal would publish it for another account.
func TestARefusalTellsNoRelayedRecord(t *testing.T) {
	r := newRig(t, nil)
	record := r.relay("anna", "shop.example.com")[0]
	for _, name := range []string{"shop.example.com", "*.shop.example.com", "below.shop.example.com"} {
		p := acme.AsProblem(r.Preflight(t.Context(), ids(name)))
		if len(p.Subproblems) != 1 || strings.Contains(p.Subproblems[0].Detail, record.Value) || strings.Contains(p.Detail, record.Value) {
			t.Errorf("%s: got %v", name, p)
		}
	}
}
