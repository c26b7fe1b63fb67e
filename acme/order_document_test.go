package acme

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
)

func TestNewOrder(t *testing.T) {
	proof := func(method ChallengeType, expires time.Duration) *Proof {
		return &Proof{Method: method, Validated: start.Add(-time.Hour), Expires: start.Add(expires)}
	}
	for _, tt := range []struct {
		name    string
		ids     []string
		proofs  []*Proof
		status  Status
		authz   []Status
		expires time.Duration
	}{
		{"without proofs is pending", []string{"a.example", "b.example"}, []*Proof{nil, nil},
			StatusPending, []Status{StatusPending, StatusPending}, orderLifetime},
		{"with all proofs is ready at once", []string{"a.example", "*.a.example"}, []*Proof{proof(HTTP01, proofLifetime), proof(DNS01, proofLifetime)},
			StatusReady, []Status{StatusValid, StatusValid}, orderLifetime},
		{"with some proofs waits for the others", []string{"a.example", "b.example"}, []*Proof{proof(HTTP01, proofLifetime), nil},
			StatusPending, []Status{StatusValid, StatusPending}, orderLifetime},
		{"expires no later than its first proof", []string{"a.example", "b.example"}, []*Proof{proof(HTTP01, 2*time.Hour), proof(HTTP01, time.Hour)},
			StatusReady, []Status{StatusValid, StatusValid}, time.Hour},
		{"expires with a proof even while it waits", []string{"a.example", "b.example"}, []*Proof{nil, proof(HTTP01, time.Hour)},
			StatusPending, []Status{StatusPending, StatusValid}, time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := start.Add(700 * time.Millisecond).In(time.FixedZone("KST", 9*60*60))
			o, err := NewOrder(testIDs(), testAccount(), testProfile(), dns(tt.ids...), tt.proofs, at)
			if err != nil {
				t.Fatal(err)
			}
			if o.Status != tt.status {
				t.Errorf("status is %s, want %s", o.Status, tt.status)
			}
			if got, want := o.Expires, start.Add(tt.expires); got != want {
				t.Errorf("expires %v, want %v", got, want)
			}
			if got, want := o.Created, start; got != want {
				t.Errorf("created %v, want %v: whole seconds in UTC", got, want)
			}
			if !ValidID(o.ID) || Shard(o.ID) != Shard(o.AccountID) {
				t.Errorf("ID %q is not one in the shard of account %q", o.ID, o.AccountID)
			}
			if o.AccountID != testAccount().ID || o.Directory != "default" || o.Profile != "internal" {
				t.Errorf("belongs to account %q, directory %q, profile %q", o.AccountID, o.Directory, o.Profile)
			}
			if len(o.Grants) != 0 {
				t.Errorf("reused proofs were granted anew: %v", o.Grants)
			}
			for i, a := range o.Authorizations {
				if a.Status != tt.authz[i] {
					t.Errorf("authorization %d is %s, want %s", i, a.Status, tt.authz[i])
				}
				wantTypes, wantExpires := testProfile().ChallengesFor(a.Ordered()), o.Expires
				if p := tt.proofs[i]; p != nil {
					wantTypes, wantExpires = []ChallengeType{p.Method}, p.Expires
				}
				var types []ChallengeType
				for _, c := range a.Challenges {
					types = append(types, c.Type)
					if c.Status != a.Status {
						t.Errorf("challenge %s is %s, want %s", c.Type, c.Status, a.Status)
					}
				}
				if !slices.Equal(types, wantTypes) {
					t.Errorf("authorization %d has challenges %v, want %v", i, types, wantTypes)
				}
				if a.Expires != wantExpires {
					t.Errorf("authorization %d expires %v, want %v", i, a.Expires, wantExpires)
				}
			}
			checkInvariants(t, o)
		})
	}
}

func TestNewOrderNeedsRandomness(t *testing.T) {
	// One source is dry at once, one after the ID's ten octets.
	for _, octets := range []string{"", "0123456789"} {
		ids := IDs{Rand: strings.NewReader(octets)}
		if o, err := NewOrder(ids, testAccount(), testProfile(), dns("a.example"), []*Proof{nil}, start); err == nil {
			t.Errorf("made order %q with token %q of %d octets", o.ID, o.Authorizations[0].Token, len(octets))
		}
	}
}

// fullOrder has every field set, so that nothing that is added later escapes
// the tests of Clone and JSON.
func fullOrder(t *testing.T) *Order {
	t.Helper()
	at := start
	next := func() time.Time { at = at.Add(time.Second); return at }
	problem := fullProblem()
	o := &Order{
		ID: "order", Directory: "dir", AccountID: "acct", Profile: "profile", Status: StatusProcessing,
		Authorizations: []Authorization{{
			Identifier: dns("a.example")[0], Wildcard: true, Status: StatusValid, Expires: next(), Token: "token",
			Challenges: []Challenge{{Type: DNS01, Status: StatusValid, Validated: next(), Error: fullProblem(), Thumbprint: "thumb", KeyEpoch: 2,
				Relay: &RelayRecord{Backend: "ca", Ref: "7 a.example", Type: "TXT", Name: "_validation.a.example", Value: "value", Expires: next()}, Looks: 3, Next: next()}},
		}},
		NotBefore: next(), NotAfter: next(), Created: next(), Expires: next(), Error: problem,
		CSR: []byte("csr"), CSRHash: []byte("hash"), Intent: &Intent{Attempt: 1, Since: next(), Deadline: next(), Backend: "lab", LifetimeSeconds: 3600, Mark: "mark"},
		Ticket: "ticket", History: []Event{{Time: next(), Name: "a.example", Text: "asked"}},
		Attempts: 1, Searches: 2,
		Certificate: &Certificate{
			ID: "cert", Leaf: []byte("leaf"), ChainRef: "chain", Issued: next(), NotAfter: next(), Backend: "lab",
			Revoked: &Revocation{Time: next(), Reason: 1}, Unfetched: true,
		},
		Wake: next(), Version: 7,
		Grants:      []*Proof{{ProofKey: ProofKey{"acct", "dns:a.example"}, Method: DNS01, KeyEpoch: 2, Validated: next(), Expires: next()}},
		Withdrawals: []ProofKey{{"acct", "dns:b.example"}},
	}
	eachField(reflect.ValueOf(o), "Order", nil, func(path string, v reflect.Value) {
		if v.IsZero() && !strings.Contains(path, ".Subproblems[0]") {
			t.Fatalf("%s is not set, and so not tested", path)
		}
	})
	return o
}

func fullProblem() *Problem {
	return &Problem{
		Type: Compound, Detail: "detail", Status: 400, Identifier: &Identifier{TypeDNS, "a.example"},
		Subproblems: []*Problem{{Type: DNS, Detail: "sub", Identifier: &Identifier{TypeDNS, "b.example"}}},
		Algorithms:  []string{"ES256"}, Instance: "https://acme.example/terms",
		RetryAfter: time.Second, Location: "https://acme.example/location", Cause: errors.New("cause"),
	}
}

// eachField calls visit for all that v leads to, but not for what lies behind
// the paths that are shared.
func eachField(v reflect.Value, path string, shared map[string]bool, visit func(string, reflect.Value)) {
	if shared[path] {
		return
	}
	switch {
	case v.Type() == reflect.TypeFor[time.Time](), v.Type() == reflect.TypeFor[error]():
		visit(path, v)
	case v.Kind() == reflect.Pointer:
		if v.IsNil() {
			visit(path, v)
			return
		}
		eachField(v.Elem(), path, shared, visit)
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			eachField(v.Field(i), path+"."+v.Type().Field(i).Name, shared, visit)
		}
	case v.Kind() == reflect.Slice:
		if v.Len() == 0 {
			visit(path, v)
		}
		for i := range v.Len() {
			eachField(v.Index(i), fmt.Sprintf("%s[%d]", path, i), shared, visit)
		}
	default:
		visit(path, v)
	}
}

// deepCopy shares nothing with o but the causes of problems.
func deepCopy(o *Order) *Order {
	var copyOf func(reflect.Value) reflect.Value
	copyOf = func(v reflect.Value) reflect.Value {
		c := reflect.New(v.Type()).Elem()
		c.Set(v)
		switch {
		case v.Type() == reflect.TypeFor[time.Time]():
		case v.Kind() == reflect.Pointer && !v.IsNil():
			c.Set(reflect.New(v.Type().Elem()))
			c.Elem().Set(copyOf(v.Elem()))
		case v.Kind() == reflect.Struct:
			for i := range v.NumField() {
				c.Field(i).Set(copyOf(v.Field(i)))
			}
		case v.Kind() == reflect.Slice && !v.IsNil():
			c.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
			for i := range v.Len() {
				c.Index(i).Set(copyOf(v.Index(i)))
			}
		}
		return c
	}
	return copyOf(reflect.ValueOf(o)).Interface().(*Order)
}

func TestCloneIsIndependent(t *testing.T) {
	original := fullOrder(t)
	want := deepCopy(original)
	clone := original.Clone()
	if !reflect.DeepEqual(clone, original) {
		t.Fatalf("the clone differs: %+v", clone)
	}
	// What is only ever replaced as a whole may be shared.
	shared := map[string]bool{
		"Order.Error": true, "Order.Authorizations[0].Challenges[0].Error": true,
		"Order.CSR": true, "Order.CSRHash": true,
		"Order.Certificate.Leaf": true, "Order.Certificate.Revoked": true,
		"Order.Grants[0]": true,
	}
	eachField(reflect.ValueOf(clone), "Order", shared, func(path string, v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			v.SetString(v.String() + "?")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Int, reflect.Int64:
			v.SetInt(v.Int() + 1)
		case reflect.Struct:
			v.Set(reflect.ValueOf(v.Interface().(time.Time).Add(time.Hour)))
		default:
			t.Fatalf("%s: no test for a %s", path, v.Kind())
		}
	})
	// And the shared parts are replaced, as the transitions do.
	clone.Error, clone.CSR, clone.CSRHash = nil, nil, nil
	clone.Certificate.Leaf, clone.Certificate.Revoked = nil, nil
	clone.Authorizations[0].Challenges[0].Error = nil
	clone.Grants[0] = nil
	_ = append(clone.Authorizations[0].Challenges[:0], Challenge{})
	_ = append(clone.Authorizations[:0], Authorization{})
	if !reflect.DeepEqual(original, want) {
		t.Errorf("changing the clone changed the original to\n%s\nfrom\n%s", marshal(t, original), marshal(t, want))
	}
}

func TestEventsOnACloneLeaveTheOriginal(t *testing.T) {
	for _, state := range states {
		for name, event := range events {
			original := advance(t, newTestOrder(t, "a.example"), state.events...)
			want := deepCopy(original)
			clone := original.Clone()
			if err := event(clone); err != nil {
				continue
			}
			if !reflect.DeepEqual(original, want) {
				t.Errorf("%s on the clone of a %s order changed the original", name, state.name)
			}
		}
	}
}

func TestJSONKeepsAllOfAnOrder(t *testing.T) {
	full := fullOrder(t)
	// Not part of the document: kept beside it, or only for one answer.
	full.Version, full.Grants, full.Withdrawals = 0, nil, nil
	for _, p := range []*Problem{full.Error, full.Authorizations[0].Challenges[0].Error} {
		p.RetryAfter, p.Location, p.Cause = 0, "", nil
	}
	orders := map[string]*Order{"with everything": full, "new": newTestOrder(t, "a.example", "*.b.example")}
	for _, state := range states {
		o := advance(t, newTestOrder(t, "a.example"), state.events...)
		o.Grants, o.Withdrawals = nil, nil
		orders[state.name] = o
	}
	for name, o := range orders {
		var got Order
		if err := json.Unmarshal([]byte(marshal(t, o)), &got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(&got, o) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, marshal(t, got), marshal(t, o))
		}
		// The stricter library of the JWS path must be able to as well.
		text, err := jsonv2.Marshal(o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got = Order{}
		if err := jsonv2.Unmarshal(text, &got, jsonv2.RejectUnknownMembers(true)); err != nil || !reflect.DeepEqual(&got, o) {
			t.Errorf("%s: %v, got\n%s\nfrom\n%s", name, err, marshal(t, got), text)
		}
	}
}

func TestJSONOfAnOrderHidesWhatTheStoreKeepsBeside(t *testing.T) {
	text := marshal(t, fullOrder(t))
	for _, hidden := range []string{"Version", "Grants", "Withdrawals", "RetryAfter", "Cause", "acme.example/location", `"cause"`} {
		if strings.Contains(text, hidden) {
			t.Errorf("the document holds %s: %s", hidden, text)
		}
	}
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRequestRepeatsWhatTheIntentSaved(t *testing.T) {
	key := testKey(t)
	der := certificateRequest(t, key, "a.example", "*.b.example")
	o := newTestOrder(t, "a.example", "*.b.example")
	advance(t, o, respond, prove,
		func(o *Order) error { return o.Respond(1, DNS01, testAccount(), start) },
		func(o *Order) error { return o.Validated(1, DNS01, nil, proofLifetime, start) },
		finalize(der), submit)
	o.NotAfter = start.Add(time.Hour)
	req, err := o.Request()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(req.CSR.Raw, der) || !slices.Equal(req.Identifiers, dns("a.example", "*.b.example")) {
		t.Errorf("asks for %v with another CSR or other names", req.Identifiers)
	}
	if req.OrderID != o.ID || req.AccountID != o.AccountID || req.Mark != "mark" || !req.Submitted.Equal(start) ||
		!req.NotBefore.IsZero() || !req.NotAfter.Equal(o.NotAfter) || req.Lifetime != 30*24*time.Hour {
		t.Errorf("got %+v", req)
	}
	o.CSR = []byte("no CSR")
	if _, err := o.Request(); err == nil {
		t.Error("a broken document became a request")
	}
	for _, state := range states {
		o := advance(t, newTestOrder(t, "a.example"), state.events...)
		if _, err := o.Request(); o.Intent == nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("%s, without an intent: %v, want %v", state.name, err, ErrNotFound)
		}
	}
}
