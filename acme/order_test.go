package acme

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSection7_1_6_SeveralAuthorizations(t *testing.T) {
	o := newTestOrder(t, "a.example", "*.a.example")
	if got, want := o.Identifiers(), dns("a.example", "*.a.example"); !slices.Equal(got, want) {
		t.Errorf("Identifiers() = %v, want %v", got, want)
	}
	plain, wildcard := &o.Authorizations[0], &o.Authorizations[1]
	if plain.Identifier != wildcard.Identifier || plain.Wildcard || !wildcard.Wildcard {
		t.Fatalf("authorizations are %+v and %+v, want one plain and one wildcard of the same identifier", plain, wildcard)
	}
	if got, want := plain.Ordered().Name()+" "+wildcard.Ordered().Name(), "dns:a.example dns:*.a.example"; got != want {
		t.Errorf("names are %q, want %q: a proof of one is none of the other", got, want)
	}
	if plain.Token == wildcard.Token || plain.Token == "" {
		t.Errorf("tokens are %q and %q, want two", plain.Token, wildcard.Token)
	}
	if c := wildcard.Challenge(HTTP01); c != nil {
		t.Errorf("a wildcard is offered %s", c.Type)
	}

	later := start.Add(time.Hour)
	if err := o.Respond(1, HTTP01, testAccount(), start); !errors.Is(err, ErrNotFound) {
		t.Errorf("http-01 for a wildcard: %v, want %v", err, ErrNotFound)
	}
	advance(t, o,
		func(o *Order) error { return o.Respond(1, DNS01, testAccount(), start) },
		func(o *Order) error { return o.Validated(1, DNS01, nil, proofLifetime, later) },
	)
	if o.Status != StatusPending {
		t.Fatalf("the order is %s with one of two authorizations valid, want pending", o.Status)
	}
	if err := o.Finalize(csrOne, later); outcome(o, err) != string(OrderNotReady) {
		t.Fatalf("Finalize: %v, want %s", err, OrderNotReady)
	}
	advance(t, o,
		func(o *Order) error { return o.Respond(0, TLSALPN01, testAccount(), later) },
		func(o *Order) error { return o.Validated(0, TLSALPN01, nil, proofLifetime, later) },
	)
	if o.Status != StatusReady {
		t.Fatalf("the order is %s with both authorizations valid, want ready", o.Status)
	}
	want := []*Proof{
		{ProofKey{o.AccountID, "dns:*.a.example"}, DNS01, 3, later, later.Add(proofLifetime)},
		{ProofKey{o.AccountID, "dns:a.example"}, TLSALPN01, 3, later, later.Add(proofLifetime)},
	}
	if !reflect.DeepEqual(o.Grants, want) {
		t.Errorf("granted %s, want %s", marshal(t, o.Grants), marshal(t, want))
	}
}

func TestSection7_1_6_OneFailureEndsTheOrder(t *testing.T) {
	o := newTestOrder(t, "*.a.example", "b.example")
	cause := Problemf(DNS, "no TXT record").WithCause(errors.New("internal detail"))
	advance(t, o,
		func(o *Order) error { return o.Respond(0, DNS01, testAccount(), start) },
		func(o *Order) error { return o.Respond(1, HTTP01, testAccount(), start) },
		func(o *Order) error { return o.Validated(0, DNS01, cause, proofLifetime, start) },
	)
	if o.Status != StatusInvalid || o.Error == nil {
		t.Fatalf("order is %s with error %v, want invalid with one", o.Status, o.Error)
	}
	if got, want := o.Error.Type, DNS; got != want {
		t.Errorf("the order's error is %s, want %s", got, want)
	}
	if len(o.Error.Subproblems) != 1 || *o.Error.Subproblems[0].Identifier != dns("*.a.example")[0] {
		t.Errorf("the order's error is %s, want a subproblem for the wildcard", marshal(t, o.Error))
	}
	a := &o.Authorizations[0]
	if c := a.Challenge(DNS01); a.Status != StatusInvalid || c.Status != StatusInvalid || c.Error.Detail != "no TXT record" || c.Error.Identifier != nil {
		t.Errorf("authorization is %+v, want it and its challenge invalid with the problem", a)
	}
	if text := marshal(t, o); strings.Contains(text, "internal detail") {
		t.Errorf("the cause is in what is stored: %s", text)
	}
	if got := o.ProcessingChallenges(); got != nil {
		t.Errorf("%v still wait for a validation", got)
	}
	if c := o.Authorizations[1].Challenge(HTTP01); c.Status == StatusProcessing {
		t.Errorf("the other challenge is processing, and no validation will follow")
	}
	if len(o.Grants) != 0 {
		t.Errorf("granted %v", o.Grants)
	}
}

func TestSection7_5_1_KeyAuthorizationIsFixedByTheResponse(t *testing.T) {
	o := advance(t, newTestOrder(t, "a.example"), respond)
	a := &o.Authorizations[0]
	c := a.Challenge(HTTP01)
	if got, want := a.KeyAuthorization(c), a.Token+".thumb"; got != want {
		t.Errorf("key authorization is %q, want %q", got, want)
	}
	rolled := testAccount()
	rolled.Thumbprint, rolled.KeyEpoch = "new-thumb", 4
	if err := o.Respond(0, HTTP01, rolled, start); !errors.Is(err, ErrUnchanged) {
		t.Errorf("a second response: %v, want %v", err, ErrUnchanged)
	}
	if got, want := a.KeyAuthorization(c), a.Token+".thumb"; got != want {
		t.Errorf("after a key change it is %q, want %q as at the response", got, want)
	}
	if err := o.Respond(0, DNS01, rolled, start); err != nil {
		t.Fatalf("a response to another challenge: %v", err)
	}
	if got, want := a.KeyAuthorization(a.Challenge(DNS01)), a.Token+".new-thumb"; got != want {
		t.Errorf("a challenge not answered before has %q, want %q", got, want)
	}
	advance(t, o, prove)
	if got, want := o.Grants[0].KeyEpoch, 3; got != want {
		t.Errorf("the proof was granted to key epoch %d, want %d: the one that responded", got, want)
	}
	if got := a.Challenge(DNS01); got != nil {
		t.Errorf("a valid authorization still shows %s", got.Type)
	}
	if err := o.Validated(0, DNS01, testProblem, proofLifetime, start); !errors.Is(err, ErrNotFound) {
		t.Errorf("a late failure of the other challenge: %v, want %v", err, ErrNotFound)
	}
}

func TestTwoChallengesOfOneAuthorizationAtOnce(t *testing.T) {
	o := advance(t, newTestOrder(t, "a.example"), respond,
		func(o *Order) error { return o.Respond(0, DNS01, testAccount(), start) })
	want := []ChallengeRef{{0, HTTP01}, {0, DNS01}}
	if got := o.ProcessingChallenges(); !slices.Equal(got, want) {
		t.Errorf("ProcessingChallenges() = %v, want %v", got, want)
	}
	advance(t, o, disprove)
	if err := o.Validated(0, DNS01, nil, proofLifetime, start); !errors.Is(err, ErrUnchanged) {
		t.Errorf("a success after the authorization failed: %v, want %v", err, ErrUnchanged)
	}
	if got := o.Authorizations[0].Status; got != StatusInvalid {
		t.Errorf("the authorization is %s, want invalid for good", got)
	}
}

func TestValidatedTimesAreWholeSecondsInUTC(t *testing.T) {
	zone := time.FixedZone("KST", 9*60*60)
	o := advance(t, newTestOrder(t, "a.example"), respond)
	at := start.Add(1500 * time.Millisecond).In(zone)
	if err := o.Validated(0, HTTP01, nil, proofLifetime, at); err != nil {
		t.Fatal(err)
	}
	want := start.Add(time.Second)
	a := o.Authorizations[0]
	if got := a.Challenges[0].Validated; got != want {
		t.Errorf("validated at %v, want %v", got, want)
	}
	if got, want := a.Expires, want.Add(proofLifetime); got != want {
		t.Errorf("the authorization expires at %v, want %v", got, want)
	}
}

func TestSection7_5_2_DeactivatedAuthorization(t *testing.T) {
	t.Run("ends an order that needs it and withdraws the proof", func(t *testing.T) {
		for _, state := range states[:3] {
			o := advance(t, newTestOrder(t, "*.a.example"))
			if state.name == "ready" {
				advance(t, o,
					func(o *Order) error { return o.Respond(0, DNS01, testAccount(), start) },
					func(o *Order) error { return o.Validated(0, DNS01, nil, proofLifetime, start) })
			}
			advance(t, o, func(o *Order) error { return o.DeactivateAuthorization(0) })
			if o.Status != StatusInvalid || o.Authorizations[0].Status != StatusDeactivated || o.Error.Type != Unauthorized {
				t.Errorf("%s: order is %s by %v, authorization %s", state.name, o.Status, o.Error, o.Authorizations[0].Status)
			}
			if want := []ProofKey{{o.AccountID, "dns:*.a.example"}}; !slices.Equal(o.Withdrawals, want) {
				t.Errorf("%s: withdrawn %v, want %v", state.name, o.Withdrawals, want)
			}
			if o.Error.Identifier != nil {
				t.Errorf("%s: the order's error has an identifier outside of a subproblem", state.name)
			}
		}
	})
	t.Run("leaves a certificate under way or issued alone", func(t *testing.T) {
		for _, state := range states[3:7] {
			o := advance(t, newTestOrder(t, "a.example"), state.events...)
			intent, certificate, wake := o.Intent, o.Certificate, o.Wake
			advance(t, o, func(o *Order) error { return o.DeactivateAuthorization(0) })
			if o.Status != state.status || o.Intent != intent || o.Certificate != certificate || o.Wake != wake {
				t.Errorf("%s: became %+v", state.name, o)
			}
			if want := []ProofKey{{o.AccountID, "dns:a.example"}}; !slices.Equal(o.Withdrawals, want) {
				t.Errorf("%s: withdrawn %v, want %v", state.name, o.Withdrawals, want)
			}
		}
	})
	t.Run("cannot be done twice", func(t *testing.T) {
		o := advance(t, newTestOrder(t, "a.example"), func(o *Order) error { return o.DeactivateAuthorization(0) })
		if err := o.DeactivateAuthorization(0); outcome(o, err) != string(Malformed) {
			t.Errorf("got %v, want a %s problem", err, Malformed)
		}
		if len(o.Withdrawals) != 1 {
			t.Errorf("withdrawn %v", o.Withdrawals)
		}
	})
}

func TestSection7_1_6_Expiry(t *testing.T) {
	t.Run("ends pending authorizations and those that ran out, and no others", func(t *testing.T) {
		o := newTestOrder(t, "a.example", "b.example", "c.example")
		advance(t, o,
			func(o *Order) error { return o.Respond(0, HTTP01, testAccount(), start) },
			func(o *Order) error { return o.Validated(0, HTTP01, nil, time.Hour, start) },
			func(o *Order) error { return o.Respond(1, HTTP01, testAccount(), start) },
			func(o *Order) error { return o.Validated(1, HTTP01, nil, proofLifetime, start) },
			func(o *Order) error { return o.Respond(2, HTTP01, testAccount(), start) },
			expireAt(start.Add(orderLifetime)))
		var got []Status
		for _, a := range o.Authorizations {
			got = append(got, a.Status)
		}
		if want := []Status{StatusExpired, StatusValid, StatusInvalid}; !slices.Equal(got, want) {
			t.Errorf("authorizations are %v, want %v", got, want)
		}
		if o.Status != StatusInvalid || o.Error == nil || !strings.Contains(o.Error.Detail, o.Expires.Format(time.RFC3339)) {
			t.Errorf("order is %s by %v, want invalid with the time it expired", o.Status, o.Error)
		}
		if len(o.Withdrawals) != 0 {
			t.Errorf("withdrawn %v: the proof of b.example still holds", o.Withdrawals)
		}
	})
	t.Run("comes with the second named, not before", func(t *testing.T) {
		o := newTestOrder(t, "a.example")
		if o.Expire(o.Expires.Add(-time.Nanosecond)) {
			t.Error("expired too early")
		}
		if !o.Expire(o.Expires) {
			t.Error("not expired at its time")
		}
		if o.Expire(o.Expires) {
			t.Error("expired twice")
		}
	})
}

func TestReadyOrderExpiresWithItsFirstAuthorization(t *testing.T) {
	o := newTestOrder(t, "a.example", "b.example")
	advance(t, o,
		func(o *Order) error { return o.Respond(0, HTTP01, testAccount(), start) },
		func(o *Order) error { return o.Validated(0, HTTP01, nil, time.Hour, start) },
		func(o *Order) error { return o.Respond(1, HTTP01, testAccount(), start) },
		func(o *Order) error { return o.Validated(1, HTTP01, nil, 2*time.Hour, start) })
	if got, want := o.Expires, start.Add(time.Hour); got != want {
		t.Errorf("expires %v, want %v", got, want)
	}
	long := newTestOrder(t, "a.example")
	advance(t, long, respond, prove)
	if got, want := long.Expires, start.Add(orderLifetime); got != want {
		t.Errorf("expires %v, want %v: long proofs do not extend an order", got, want)
	}
}

func TestWakeTimes(t *testing.T) {
	o := newTestOrder(t, "a.example", "b.example")
	wakes := func(what string, want time.Time) {
		t.Helper()
		if !o.Wake.Equal(want) {
			t.Errorf("%s: wakes at %v, want %v", what, o.Wake, want)
		}
	}
	wakes("new", time.Time{})
	advance(t, o, func(o *Order) error { return o.Respond(0, HTTP01, testAccount(), start) })
	wakes("first response", start.Add(Handoff))
	advance(t, o, func(o *Order) error { return o.Respond(1, HTTP01, testAccount(), start.Add(time.Second)) })
	wakes("second response", start.Add(Handoff))
	advance(t, o, func(o *Order) error { return o.Validated(0, HTTP01, nil, proofLifetime, start.Add(2*time.Second)) })
	wakes("one validated, one still processing", start.Add(2*time.Second+Handoff))
	advance(t, o, func(o *Order) error { return o.Validated(1, HTTP01, nil, proofLifetime, start) })
	wakes("ready", time.Time{})
	later := start.Add(time.Hour)
	advance(t, o, func(o *Order) error { return o.Finalize(csrOne, later) })
	wakes("finalized", later.Add(Handoff))
	advance(t, o, func(o *Order) error { return o.Submit(testIntent("", later.Add(time.Minute))) })
	wakes("submitted", later.Add(time.Minute))
	advance(t, o, func(o *Order) error { return o.Unresolved(1, later.Add(2*time.Minute)) })
	wakes("unresolved", later.Add(2*time.Minute))
	advance(t, o, func(o *Order) error { return o.Postpone(1, later.Add(150*time.Second)) })
	wakes("postponed", later.Add(150*time.Second))
	advance(t, o, func(o *Order) error { return o.NotIssued(1, later.Add(3*time.Minute)) })
	wakes("not issued", later.Add(3*time.Minute))
	advance(t, o, func(o *Order) error { return o.Submit(testIntent("", later.Add(4*time.Minute))) })
	wakes("submitted again", later.Add(4*time.Minute))
	advance(t, o, func(o *Order) error { return o.Issued(2, testCertificate()) })
	wakes("issued", time.Time{})

	one := advance(t, newTestOrder(t, "a.example", "b.example"), respond, prove)
	if !one.Wake.IsZero() {
		t.Errorf("nothing is processing, and it wakes at %v", one.Wake)
	}
	for _, state := range states[7:] {
		if o := advance(t, newTestOrder(t, "a.example"), state.events...); !o.Wake.IsZero() {
			t.Errorf("%s wakes at %v, want never", state.name, o.Wake)
		}
	}
}

func TestIntentsOfOtherAttemptsChangeNothing(t *testing.T) {
	first := testIntent("mark 1", deadline)
	first.Attempt = 7 // counted by the order, whatever the caller says
	o := advance(t, newTestOrder(t, "a.example"), respond, prove, finalize(csrOne),
		func(o *Order) error { return o.Submit(first) },
		unresolved(1), unresolved(1), postpone(1))
	first.Attempt = 1
	if !reflect.DeepEqual(o.Intent, &first) {
		t.Errorf("intent is %+v, want %+v", o.Intent, first)
	}
	if o.Searches != 2 {
		t.Errorf("%d searches, want 2", o.Searches)
	}
	advance(t, o, notIssued(1))
	if o.Intent != nil || o.Searches != 0 || o.Attempts != 1 {
		t.Errorf("intent %+v, %d searches, %d attempts, want none, 0, 1", o.Intent, o.Searches, o.Attempts)
	}
	advance(t, o, func(o *Order) error { return o.Submit(testIntent("mark 2", deadline)) })
	if o.Intent.Attempt != 2 || o.Intent.Mark != "mark 2" || o.Searches != 0 {
		t.Errorf("intent %+v, %d searches, want attempt 2, none", o.Intent, o.Searches)
	}
	// The worker of the first attempt comes back late, whatever it brings.
	before := deepCopy(o)
	for what, late := range map[string]func(*Order) error{
		"issued": issued(1), "refused": refused(1), "not issued": notIssued(1), "unresolved": unresolved(1), "postpone": postpone(1),
	} {
		if err := late(o); !errors.Is(err, ErrUnchanged) {
			t.Errorf("a late %s: %v, want %v", what, err, ErrUnchanged)
		}
	}
	if !reflect.DeepEqual(o, before) {
		t.Errorf("a late answer changed the order to %+v", o)
	}
	advance(t, o, issued(2))
	if o.CSR != nil || o.CSRHash == nil || o.Attempts != 2 {
		t.Errorf("CSR %q, hash %x, %d attempts, want no CSR, its hash, 2", o.CSR, o.CSRHash, o.Attempts)
	}
	if got := o.Authorizations[0].Challenges[0].Thumbprint; got != "" {
		t.Errorf("the thumbprint %q is kept for nothing", got)
	}
}

func TestFinalizeKeepsItsOwnCopyOfTheCSR(t *testing.T) {
	csr := []byte("a CSR")
	o := advance(t, newTestOrder(t, "a.example"), respond, prove, finalize(csr))
	csr[0] = 'b'
	if got := string(o.CSR); got != "a CSR" {
		t.Errorf("the order's CSR became %q", got)
	}
	hash := sha256.Sum256([]byte("a CSR"))
	if got, want := o.CSRFingerprint(), base64.RawURLEncoding.EncodeToString(hash[:]); got != want {
		t.Errorf("CSRFingerprint() = %q, want %q", got, want)
	}
	err := o.Finalize(csrTwo, start)
	if p := AsProblem(err); p.Type != OrderNotReady || p.Status != 403 || !strings.Contains(p.Detail, "processing") {
		t.Errorf("a second finalize: %v, want 403 %s that names the state", err, OrderNotReady)
	}
}

func TestRefusedShowsTheClientTheReason(t *testing.T) {
	o := advance(t, newTestOrder(t, "a.example"), respond, prove, finalize(csrOne), submit, refused(1))
	if o.Error.Type != BadCSR || o.CSR != nil || o.Intent != nil || o.CSRHash == nil {
		t.Errorf("got %+v, want a badCSR error, the CSR's hash, neither CSR nor intent", o)
	}
	if got, want := o.Authorizations[0].Status, StatusValid; got != want {
		t.Errorf("the authorization is %s, want %s: the proof still holds", got, want)
	}
}

func TestRevokeRecordsTimeAndReason(t *testing.T) {
	o := advance(t, newTestOrder(t, "a.example"), states[5].events...)
	at := start.Add(1500 * time.Millisecond).In(time.FixedZone("KST", 9*60*60))
	if err := o.Revoke(-1, at); err != nil {
		t.Fatal(err)
	}
	if got, want := *o.Certificate.Revoked, (Revocation{start.Add(time.Second), -1}); got != want {
		t.Errorf("revoked %+v, want %+v", got, want)
	}
	if err := o.Revoke(4, start.Add(time.Hour)); outcome(o, err) != string(AlreadyRevoked) {
		t.Errorf("again: %v, want %s", err, AlreadyRevoked)
	}
	if got := o.Certificate.Revoked.Reason; got != -1 {
		t.Errorf("a second revocation changed the reason to %d", got)
	}
	if o.Status != StatusValid {
		t.Errorf("the order is %s, want valid: its history does not change", o.Status)
	}
}

func TestKeepUntil(t *testing.T) {
	const week = 7 * 24 * time.Hour
	for _, state := range states {
		o := advance(t, newTestOrder(t, "a.example"), state.events...)
		want := start.Add(orderLifetime + week)
		switch state.status {
		case StatusProcessing:
			want = time.Time{}
		case StatusValid:
			want = o.Certificate.NotAfter.Add(week)
		}
		if got := o.KeepUntil(); !got.Equal(want) {
			t.Errorf("%s: kept until %v, want %v", state.name, got, want)
		}
	}
}
