package acme

import (
	"errors"
	"strings"
	"testing"
	"time"
)

const testRelay ChallengeType = "ncp-dcv-01"

func testRecord() *RelayRecord {
	return &RelayRecord{Backend: "public", Ref: "7 a.example", Type: "TXT", Name: "_validation.a.example", Value: "value", Expires: start.Add(orderLifetime)}
}

// relayed is an order whose first name has nothing but a relay challenge.
func relayed(t *testing.T, names ...string) *Order {
	t.Helper()
	o := newTestOrder(t, names...)
	if err := o.OfferRelay(0, testRelay, testRecord()); err != nil {
		t.Fatal(err)
	}
	return o
}

func relayRespond(o *Order) error { return o.Respond(0, testRelay, testAccount(), start) }
func relayProve(o *Order) error   { return o.Validated(0, testRelay, nil, proofLifetime, start) }
func relayWaits(n int, next time.Duration) func(*Order) error {
	return func(o *Order) error { return o.RelayWaits(0, testRelay, n, start.Add(next), start) }
}

func TestRelayTransitions(t *testing.T) {
	type state struct {
		order, authz, challenge Status
		wake                    time.Duration // after start; 0: never
	}
	for _, tt := range []struct {
		name   string
		events []func(*Order) error
		last   func(*Order) error
		err    error
		want   state
	}{
		{"offered", nil, func(*Order) error { return nil }, nil, state{StatusPending, StatusPending, StatusPending, 0}},
		{"responded", nil, relayRespond, nil, state{StatusPending, StatusPending, StatusProcessing, Handoff}},
		{"responded twice", []func(*Order) error{relayRespond}, relayRespond, ErrUnchanged, state{StatusPending, StatusPending, StatusProcessing, Handoff}},
		{"not asked for yet", nil, relayWaits(1, time.Minute), ErrUnchanged, state{StatusPending, StatusPending, StatusPending, 0}},
		{"not seen", []func(*Order) error{relayRespond}, relayWaits(1, time.Minute), nil, state{StatusPending, StatusPending, StatusProcessing, time.Minute}},
		{"not seen again", []func(*Order) error{relayRespond, relayWaits(1, time.Minute)}, relayWaits(2, time.Hour), nil, state{StatusPending, StatusPending, StatusProcessing, time.Hour}},
		{"asked by two replicas", []func(*Order) error{relayRespond, relayWaits(1, time.Minute)}, relayWaits(1, time.Hour), ErrUnchanged, state{StatusPending, StatusPending, StatusProcessing, time.Minute}},
		{"asked no later than the order's end", []func(*Order) error{relayRespond}, relayWaits(1, 30*24*time.Hour), nil, state{StatusPending, StatusPending, StatusProcessing, orderLifetime}},
		{"seen", []func(*Order) error{relayRespond, relayWaits(1, time.Minute)}, relayProve, nil, state{StatusReady, StatusValid, StatusValid, 0}},
		{"seen before the client has responded", nil, relayProve, ErrUnchanged, state{StatusPending, StatusPending, StatusPending, 0}},
		{"refused", []func(*Order) error{relayRespond}, func(o *Order) error { return o.Validated(0, testRelay, testProblem, 0, start) }, nil, state{StatusInvalid, StatusInvalid, StatusInvalid, 0}},
		{"out of time", []func(*Order) error{relayRespond, relayWaits(1, time.Minute)}, expireAt(start.Add(orderLifetime)), nil, state{StatusInvalid, StatusInvalid, StatusPending, 0}},
		{"late news", []func(*Order) error{relayRespond, relayProve}, relayWaits(1, time.Minute), ErrUnchanged, state{StatusReady, StatusValid, StatusValid, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := advance(t, relayed(t, "a.example"), tt.events...)
			if err := tt.last(o); !errors.Is(err, tt.err) {
				t.Errorf("got %v, want %v", err, tt.err)
			}
			a := &o.Authorizations[0]
			c := a.Challenge(testRelay)
			if c == nil || len(a.Challenges) != 1 || c.Relay == nil {
				t.Fatalf("challenges are %+v, want the relay only", a.Challenges)
			}
			got := state{o.Status, a.Status, c.Status, 0}
			if !o.Wake.IsZero() {
				got.wake = o.Wake.Sub(start)
			}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			checkInvariants(t, o)
		})
	}
}

func TestRelayGrantsAProofLikeAnyOther(t *testing.T) {
	o := advance(t, relayed(t, "*.a.example"), relayRespond, relayProve)
	if len(o.History) != 2 || o.History[0].Name != "*.a.example" || !strings.Contains(o.History[0].Text, `TXT record _validation.a.example with the value "value"`) {
		t.Errorf("history is %s", marshal(t, o.History))
	}
	if len(o.Grants) != 1 || o.Grants[0].Method != testRelay || o.Grants[0].Name != "dns:*.a.example" || o.Grants[0].KeyEpoch != 3 {
		t.Fatalf("granted %s", marshal(t, o.Grants))
	}
	account, profile := testAccount(), testProfile()
	profile.ReuseAuthorizations = true
	if o.Grants[0].Serves(account, profile, dns("*.a.example")[0], start) {
		t.Error("serves a profile that has no relay")
	}
	if profile.Relay = testRelay; !o.Grants[0].Serves(account, profile, dns("*.a.example")[0], start) {
		t.Error("does not serve a profile that has the relay")
	}
}

func TestTheRelayIsOfferedBeforeAnyoneSawTheOrder(t *testing.T) {
	o := newTestOrder(t, "a.example")
	if err := o.OfferRelay(1, testRelay, testRecord()); !errors.Is(err, ErrNotFound) {
		t.Errorf("for no authorization: %v", err)
	}
	if o.Version = 1; !errors.Is(o.OfferRelay(0, testRelay, testRecord()), ErrUnchanged) {
		t.Error("a stored order got another challenge")
	}
	proven := advance(t, newTestOrder(t, "a.example"), respond, prove)
	if err := proven.OfferRelay(0, testRelay, testRecord()); !errors.Is(err, ErrUnchanged) {
		t.Errorf("for a valid authorization: %v", err)
	}
}

// A record that is waited for does not put off what is checked at once.
func TestRelayBesideANetworkValidation(t *testing.T) {
	o := advance(t, relayed(t, "a.example", "b.example"), relayRespond, relayWaits(1, time.Hour))
	advance(t, o, func(o *Order) error { return o.Respond(1, HTTP01, testAccount(), start) })
	if got := o.Wake.Sub(start); got != Handoff {
		t.Errorf("looked at after %s, want %s", got, Handoff)
	}
	advance(t, o, relayWaits(2, 2*time.Hour))
	if got := o.Wake.Sub(start); got != Handoff {
		t.Errorf("with a validation running, looked at after %s, want %s", got, Handoff)
	}
	advance(t, o, func(o *Order) error { return o.Validated(1, HTTP01, nil, proofLifetime, start) })
	if got := o.Wake.Sub(start); got != 2*time.Hour {
		t.Errorf("with the record left, looked at after %s, want 2h", got)
	}
	if advance(t, o, relayProve).Status != StatusReady {
		t.Errorf("order is %s", o.Status)
	}
}

func TestAProfileWithRelayTakesWildcardsWithoutDNS01(t *testing.T) {
	p := testProfile()
	p.Challenges = []ChallengeType{HTTP01}
	if err := p.Check(dns("*.a.example")); err == nil {
		t.Error("accepted without any way to prove it")
	}
	if p.Relay = testRelay; p.Check(dns("*.a.example")) != nil {
		t.Error("refused though the relay could prove it")
	}
}
