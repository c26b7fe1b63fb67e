package acme

import (
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const (
	orderLifetime = 24 * time.Hour
	proofLifetime = 30 * 24 * time.Hour
)

func testIDs() IDs { return IDs{Rand: rand.NewChaCha8([32]byte{1})} }

func testAccount() *Account {
	return &Account{ID: "0301kj0000000000000000000000", Directory: "default", Status: StatusValid, Thumbprint: "thumb", KeyEpoch: 3}
}

func testProfile() *Profile {
	return &Profile{
		Name: "internal", Backend: "lab", Lifetime: 30 * 24 * time.Hour,
		Challenges: []ChallengeType{HTTP01, DNS01, TLSALPN01},
		Identifiers: IdentifierPolicy{
			Types: []IdentifierType{TypeDNS}, Wildcards: true, Max: 100,
		},
		KeyTypes:      KeyTypes,
		OrderLifetime: orderLifetime, AuthorizationLifetime: proofLifetime,
	}
}

func dns(values ...string) []Identifier {
	ids := make([]Identifier, len(values))
	for i, v := range values {
		ids[i] = Identifier{Type: TypeDNS, Value: v}
	}
	return ids
}

func newTestOrder(t *testing.T, names ...string) *Order {
	t.Helper()
	o, err := NewOrder(testIDs(), testAccount(), testProfile(), dns(names...), make([]*Proof, len(names)), start)
	if err != nil {
		t.Fatalf("NewOrder: %v", err)
	}
	return o
}

// advance applies events that must all change the order.
func advance(t *testing.T, o *Order, events ...func(*Order) error) *Order {
	t.Helper()
	for i, event := range events {
		if err := event(o); err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
	}
	return o
}

var (
	csrOne, csrTwo = []byte("one CSR"), []byte("another CSR")
	testProblem    = Problemf(Unauthorized, "no proof was found")
	deadline       = start.Add(2 * time.Minute)
)

func testCertificate() *Certificate {
	return &Certificate{
		ID: "aki.serial", Leaf: []byte("leaf"), ChainRef: "chain", Issued: start,
		NotAfter: start.Add(30 * 24 * time.Hour), Backend: "lab",
	}
}

func respond(o *Order) error { return o.Respond(0, HTTP01, testAccount(), start) }
func prove(o *Order) error   { return o.Validated(0, HTTP01, nil, proofLifetime, start) }
func disprove(o *Order) error {
	return o.Validated(0, HTTP01, testProblem, proofLifetime, start)
}
func finalize(csr []byte) func(*Order) error {
	return func(o *Order) error { return o.Finalize(csr, start) }
}
func testIntent(mark string, deadline time.Time) Intent {
	return Intent{Since: start, Deadline: deadline, Backend: "lab", LifetimeSeconds: 30 * 24 * 3600, Mark: mark}
}
func submit(o *Order) error { return o.Submit(testIntent("mark", deadline)) }
func notIssued(attempt int) func(*Order) error {
	return func(o *Order) error { return o.NotIssued(attempt, start.Add(time.Minute)) }
}
func unresolved(attempt int) func(*Order) error {
	return func(o *Order) error { return o.Unresolved(attempt, start.Add(time.Minute)) }
}
func postpone(attempt int) func(*Order) error {
	return func(o *Order) error { return o.Postpone(attempt, start.Add(time.Hour)) }
}
func issued(attempt int) func(*Order) error {
	return func(o *Order) error { return o.Issued(attempt, testCertificate()) }
}
func refused(attempt int) func(*Order) error {
	return func(o *Order) error { return o.Refused(attempt, Problemf(BadCSR, "the CA refuses the CSR")) }
}
func revoke(o *Order) error { return o.Revoke(1, start) }
func expireAt(now time.Time) func(*Order) error {
	return func(o *Order) error {
		if !o.Expire(now) {
			return ErrUnchanged
		}
		return nil
	}
}

// The states an order can be in, each reached by the events that lead there.
var states = []struct {
	name   string
	status Status
	events []func(*Order) error
}{
	{"pending", StatusPending, nil},
	{"responded", StatusPending, []func(*Order) error{respond}},
	{"ready", StatusReady, []func(*Order) error{respond, prove}},
	{"finalized", StatusProcessing, []func(*Order) error{respond, prove, finalize(csrOne)}},
	{"submitted", StatusProcessing, []func(*Order) error{respond, prove, finalize(csrOne), submit}},
	{"valid", StatusValid, []func(*Order) error{respond, prove, finalize(csrOne), submit, issued(1)}},
	{"revoked", StatusValid, []func(*Order) error{respond, prove, finalize(csrOne), submit, issued(1), revoke}},
	{"failed", StatusInvalid, []func(*Order) error{respond, disprove}},
	{"expired", StatusInvalid, []func(*Order) error{respond, expireAt(start.Add(orderLifetime))}},
	{"refused", StatusInvalid, []func(*Order) error{respond, prove, finalize(csrOne), submit, refused(1)}},
}

var events = map[string]func(*Order) error{
	"respond":         respond,
	"respond-unknown": func(o *Order) error { return o.Respond(1, HTTP01, testAccount(), start) },
	"respond-other":   func(o *Order) error { return o.Respond(0, "dns-99", testAccount(), start) },
	"respond-late":    func(o *Order) error { return o.Respond(0, HTTP01, testAccount(), start.Add(orderLifetime)) },
	"prove":           prove,
	"prove-unknown":   func(o *Order) error { return o.Validated(-1, HTTP01, nil, proofLifetime, start) },
	"disprove":        disprove,
	"deactivate":      func(o *Order) error { return o.DeactivateAuthorization(0) },
	"deactivate-none": func(o *Order) error { return o.DeactivateAuthorization(1) },
	"finalize":        finalize(csrOne),
	"finalize-other":  finalize(csrTwo),
	"submit":          submit,
	"not-issued-1":    notIssued(1),
	"not-issued-2":    notIssued(2),
	"postpone-1":      postpone(1),
	"postpone-2":      postpone(2),
	"unresolved-1":    unresolved(1),
	"unresolved-2":    unresolved(2),
	"issued-1":        issued(1),
	"issued-0":        issued(0),
	"issued-2":        issued(2),
	"refused-any":     refused(0),
	"refused-1":       refused(1),
	"refused-2":       refused(2),
	"revoke":          revoke,
	"expire-early":    expireAt(start.Add(orderLifetime - time.Second)),
	"expire":          expireAt(start.Add(orderLifetime)),
	"expire-ages":     expireAt(start.Add(10 * 365 * 24 * time.Hour)),
}

// What each event makes of each state: the status afterwards, "=" for
// ErrUnchanged, "404" for ErrNotFound, else the type of the problem. Whatever
// is not a status must leave the order exactly as it was.
const transitions = `
                 pending        responded      ready       finalized      submitted      valid          revoked         failed         expired        refused
respond          pending        =              =           =              =              =              =               =              =              =
respond-unknown  404            404            404         404            404            404            404             404            404            404
respond-other    404            404            404         404            404            404            404             404            404            404
respond-late     =              =              =           =              =              =              =               =              =              =
prove            =              ready          =           =              =              =              =               =              =              =
prove-unknown    404            404            404         404            404            404            404             404            404            404
disprove         =              invalid        =           =              =              =              =               =              =              =
deactivate       invalid        invalid        invalid     processing     processing     valid          valid           malformed      malformed      invalid
deactivate-none  404            404            404         404            404            404            404             404            404            404
finalize         orderNotReady  orderNotReady  processing  =              =              =              =               orderNotReady  orderNotReady  =
finalize-other   orderNotReady  orderNotReady  processing  orderNotReady  orderNotReady  orderNotReady  orderNotReady   orderNotReady  orderNotReady  orderNotReady
submit           =              =              =           processing     =              =              =               =              =              =
not-issued-1     =              =              =           =              processing     =              =               =              =              =
not-issued-2     =              =              =           =              =              =              =               =              =              =
postpone-1       =              =              =           =              processing     =              =               =              =              =
postpone-2       =              =              =           =              =              =              =               =              =              =
unresolved-1     =              =              =           =              processing     =              =               =              =              =
unresolved-2     =              =              =           =              =              =              =               =              =              =
issued-1         =              =              =           =              valid          =              =               =              =              =
issued-0         =              =              =           =              =              =              =               =              =              =
issued-2         =              =              =           =              =              =              =               =              =              =
refused-any      =              =              =           invalid        invalid        =              =               =              =              =
refused-1        =              =              =           =              invalid        =              =               =              =              =
refused-2        =              =              =           =              =              =              =               =              =              =
revoke           404            404            404         404            404            valid          alreadyRevoked  404            404            404
expire-early     =              =              =           =              =              =              =               =              =              =
expire           invalid        invalid        invalid     =              =              =              =               =              =              =
expire-ages      invalid        invalid        invalid     =              =              =              =               =              =              =
`

func TestEveryEventInEveryState(t *testing.T) {
	rows := strings.Split(strings.TrimSpace(transitions), "\n")
	columns := strings.Fields(rows[0])
	if got, want := len(rows)-1, len(events); got != want {
		t.Fatalf("the table has %d events, want all %d", got, want)
	}
	if got, want := len(columns), len(states); got != want {
		t.Fatalf("the table has %d states, want all %d", got, want)
	}
	for _, row := range rows[1:] {
		cells := strings.Fields(row)
		event, ok := events[cells[0]]
		if !ok || len(cells) != len(columns)+1 {
			t.Fatalf("bad row %q", row)
		}
		for i, state := range states {
			if columns[i] != state.name {
				t.Fatalf("column %d is %q, want %q", i, columns[i], state.name)
			}
			want := cells[i+1]
			t.Run(cells[0]+" when "+state.name, func(t *testing.T) {
				o := advance(t, newTestOrder(t, "a.example"), state.events...)
				if o.Status != state.status {
					t.Fatalf("status is %s before the event, want %s", o.Status, state.status)
				}
				before := deepCopy(o)
				got := outcome(o, event(o))
				if got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				if changed := !reflect.DeepEqual(o, before); changed != slices.Contains(statuses, want) {
					t.Errorf("changed: %t\n got %+v\nfrom %+v", changed, o, before)
				}
				checkInvariants(t, o)
			})
		}
	}
}

var statuses = []string{
	string(StatusPending), string(StatusReady), string(StatusProcessing), string(StatusValid), string(StatusInvalid),
}

func outcome(o *Order, err error) string {
	problem, isProblem := errors.AsType[*Problem](err)
	switch {
	case err == nil:
		return string(o.Status)
	case errors.Is(err, ErrUnchanged):
		return "="
	case errors.Is(err, ErrNotFound):
		return "404"
	case isProblem:
		return string(problem.Type)
	}
	return err.Error()
}

// checkInvariants states what holds for an order whatever has happened to it.
func checkInvariants(t *testing.T, o *Order) {
	t.Helper()
	processing := o.Status == StatusProcessing
	if got := o.Intent != nil; got && !processing {
		t.Errorf("a %s order has an intent", o.Status)
	}
	if got := o.CSR != nil; got != processing {
		t.Errorf("order is %s and has a CSR: %t", o.Status, got)
	}
	if o.CSR != nil {
		if hash := sha256.Sum256(o.CSR); !slices.Equal(o.CSRHash, hash[:]) {
			t.Errorf("CSRHash is not that of the CSR")
		}
	}
	if got, want := o.Certificate != nil, o.Status == StatusValid; got != want {
		t.Errorf("order is %s and has a certificate: %t", o.Status, got)
	}
	if got, want := o.Error != nil, o.Status == StatusInvalid; got != want {
		t.Errorf("order is %s and has an error: %t", o.Status, got)
	}
	wakes := processing || len(o.ProcessingChallenges()) > 0
	if got := !o.Wake.IsZero(); got != wakes {
		t.Errorf("order is %s with %d processing challenges and has a wake time: %t", o.Status, len(o.ProcessingChallenges()), got)
	}
	if got, want := o.Open(), o.Status != StatusValid && o.Status != StatusInvalid; got != want {
		t.Errorf("order is %s and open: %t", o.Status, got)
	}
	if got, want := o.KeepUntil().IsZero(), processing; got != want {
		t.Errorf("order is %s and kept without end: %t", o.Status, got)
	}
	if o.Status == StatusReady {
		for _, a := range o.Authorizations {
			if a.Status != StatusValid || a.Expires.Before(o.Expires) {
				t.Errorf("order is ready until %s with an authorization that is %s until %s", o.Expires, a.Status, a.Expires)
			}
		}
	}
	for _, a := range o.Authorizations {
		if a.Status == StatusValid && (len(a.Challenges) != 1 || a.Challenges[0].Status != StatusValid || a.Challenges[0].Validated.IsZero()) {
			t.Errorf("a valid authorization has challenges %+v, want the one that was validated", a.Challenges)
		}
	}
}

func TestRandomWalksKeepTheInvariants(t *testing.T) {
	random := rand.New(rand.NewPCG(8555, 716))
	for range 300 {
		o := newTestOrder(t, "a.example", "*.a.example", "b.example")
		now := start
		certificates := 0
		for range 40 {
			now = now.Add(time.Duration(random.IntN(40)) * time.Minute)
			authz, kind := random.IntN(4)-1, []ChallengeType{HTTP01, DNS01, TLSALPN01}[random.IntN(3)]
			attempt := random.IntN(3)
			before := deepCopy(o)
			var err error
			switch random.IntN(21) {
			case 0:
				err = o.DeactivateAuthorization(authz)
			case 1:
				err = o.Validated(authz, kind, testProblem, proofLifetime, now)
			case 2, 3, 4, 5:
				err = o.Respond(authz, kind, testAccount(), now)
			case 6, 7, 8, 9:
				err = o.Validated(authz, kind, nil, proofLifetime, now)
			case 10, 11:
				err = o.Finalize([]byte{byte(random.IntN(2))}, now)
			case 12, 13:
				err = o.Submit(testIntent("", now.Add(time.Minute)))
			case 14:
				err = o.NotIssued(attempt, now.Add(time.Minute))
			case 15:
				err = o.Unresolved(attempt, now.Add(time.Minute))
			case 16:
				if err = o.Issued(attempt, testCertificate()); err == nil {
					certificates++
				}
			case 17:
				err = o.Refused(attempt, testProblem)
			case 18:
				err = o.Revoke(1, now)
			case 19:
				err = expireAt(now)(o)
			case 20:
				err = o.Postpone(attempt, now.Add(time.Hour))
			}
			if err != nil && !reflect.DeepEqual(o, before) {
				t.Fatalf("an event that failed with %v changed\n%+v\nto\n%+v", err, before, o)
			}
			if before.Status != StatusPending && before.Status != StatusReady && before.Status != StatusProcessing && o.Status != before.Status {
				t.Fatalf("%s became %s, and it was final", before.Status, o.Status)
			}
			if before.Status == StatusProcessing && (o.Status == StatusPending || o.Status == StatusReady) {
				t.Fatalf("processing became %s, and clients finalize that again", o.Status)
			}
			checkInvariants(t, o)
		}
		if certificates > 1 {
			t.Fatalf("%d certificates were accepted for one order", certificates)
		}
	}
}
