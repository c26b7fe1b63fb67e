package storagetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// rivals is how many try for one thing at once.
const rivals = 50

// Run runs the suite on stores that newStore opens. All stores of one test are
// on the same data, as replicas of one server would be; an embedded store
// returns the same one each time.
func Run(t *testing.T, newStore func(t *testing.T) acme.Store) {
	for _, tt := range []struct {
		name string
		test func(*testing.T, *fixture)
	}{
		{"a nonce is redeemed once among 50 rivals", testNonceRivals},
		{"a nonce key is one for all rivals", testNonceKey},
		{"fetch finds what exists and nil for the rest", testFetch},
		{"an account is created once among 50 rivals", testAccountRivals},
		{"an account is found by its key in its directory only", testAccountByKey},
		{"an account update sees the last one", testUpdateAccount},
		{"50 rivals update an account without a loss", testAccountUpdateRivals},
		{"a key change moves the account to the new key", testKeyChange},
		{"a key change to a key in use changes nothing", testKeyChangeInUse},
		{"a key changed back is found again", testKeyChangeBack},
		{"of rivals for one key one account gets it", testKeyRivals},
		{"an order is stored as it was made", testOrderRoundTrip},
		{"an order with a certificate is stored as it was made", testOrderCertificate},
		{"an update begins with what is stored, however old the caller's copy is", testUpdateStale},
		{"an update that is refused or unnecessary changes nothing", testUpdateRefused},
		{"50 rivals update an order without a loss", testOrderRivals},
		{"of 50 rivals one submit wins", testSubmitRivals},
		{"of 50 rivals one finalize wins", testFinalizeRivals},
		{"an update gives up when its context ends", testUpdateContext},
		{"a change that panics is the caller's error alone", testChangePanics},
		{"due orders are claimed once until the lease ends", testClaimDue},
		{"due orders are claimed most urgent first, up to the limit", testClaimLimit},
		{"of rivals each due order goes to one", testClaimRivals},
		{"a save moves an order in the queue or takes it out", testReschedule},
		{"grants and withdrawals are saved with the order", testProofs},
		{"a proof that ran out is not found", testProofExpires},
		{"the list of orders leaves invalid ones out", testListInvalid},
		{"the list of orders can be paged while it grows", testListPages},
		{"open orders are limited and expired ones do not count", testOpenLimit},
		{"the rate of orders is limited", testOrderRate},
		{"of rivals as many orders are created as the limits allow", testOrderLimitRivals},
		{"a limit allows exactly its count and refills evenly", testLimit},
		{"a limit can be asked without being counted", testLimitPeek},
		{"of rivals as many are allowed as the limit says", testLimitRivals},
		{"a certificate belongs to the order that claimed it first", testClaimCertificate},
		{"a chain is kept under one name", testChain},
		{"a record is replaced by the version read only", testRecord},
		{"a quarantined certificate is kept for the operator", testQuarantine},
		{"an ID that is none finds nothing", testBadIDs},
		{"ping succeeds", testPing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			t.Cleanup(cancel)
			tt.test(t, &fixture{
				ctx: ctx, ids: acme.IDs{Rand: rand.Reader}, now: time.Now().UTC().Truncate(time.Second),
				s: newStore(t), replica: newStore(t),
			})
		})
	}
}

// A fixture is what each test works with: two replicas on the same data.
type fixture struct {
	ctx        context.Context
	ids        acme.IDs
	now        time.Time
	s, replica acme.Store
}

// pick spreads rivals over the replicas.
func (f *fixture) pick(i int) acme.Store {
	if i%2 == 0 {
		return f.s
	}
	return f.replica
}

// race runs do n times at once.
func race(n int, do func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			do(i)
		})
	}
	close(start)
	wg.Wait()
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// random is text that no other test uses.
func (f *fixture) random(t testing.TB) string {
	t.Helper()
	return must[string](t)(f.ids.Token())
}

func (f *fixture) newAccount(t testing.TB, directory string) *acme.Account {
	t.Helper()
	thumb := f.random(t)
	return &acme.Account{
		ID: must[string](t)(f.ids.Account(f.now)), Directory: directory, Status: acme.StatusValid,
		Key: []byte(`{"kty":"EC","x":"` + thumb + `"}`), Thumbprint: thumb,
		Contact: []string{"mailto:ops@example.com"}, TermsAgreed: "https://example.com/terms", Created: f.now,
	}
}

func (f *fixture) account(t testing.TB) *acme.Account {
	t.Helper()
	a, created, err := f.s.CreateAccount(f.ctx, f.newAccount(t, "default"))
	check(t, err)
	if !created {
		t.Fatal("account was not created")
	}
	return a
}

// cancel ends an order that has not been finalized.
func cancel(o *acme.Order) error {
	o.Status, o.Wake, o.Error = acme.StatusInvalid, time.Time{}, acme.Problemf(acme.Unauthorized, "cancelled")
	return nil
}

// lifetime of a proof.
const lifetime = 30 * 24 * time.Hour

// profile is what the suite's orders are made under.
func profile() *acme.Profile {
	return &acme.Profile{
		Name: "internal", Challenges: []acme.ChallengeType{acme.HTTP01, acme.DNS01, acme.TLSALPN01},
		OrderLifetime: 24 * time.Hour, AuthorizationLifetime: lifetime,
	}
}

func (f *fixture) newOrder(t testing.TB, a *acme.Account, names ...string) *acme.Order {
	t.Helper()
	if len(names) == 0 {
		names = []string{"www.example.com"}
	}
	ids := make([]acme.Identifier, len(names))
	for i, name := range names {
		ids[i] = acme.Identifier{Type: acme.TypeDNS, Value: name}
	}
	return must[*acme.Order](t)(acme.NewOrder(f.ids, a, profile(), ids, make([]*acme.Proof, len(ids)), f.now))
}

func (f *fixture) order(t testing.TB, a *acme.Account, names ...string) *acme.Order {
	t.Helper()
	o := f.newOrder(t, a, names...)
	check(t, f.s.CreateOrder(f.ctx, o, acme.OrderLimits{}, f.now))
	return o
}

// update applies changes to an order and returns it as saved.
func (f *fixture) update(t testing.TB, o *acme.Order, change func(*acme.Order) error) *acme.Order {
	t.Helper()
	return must[*acme.Order](t)(f.s.UpdateOrder(f.ctx, o, change))
}

// processing is an order that waits for a submit.
func (f *fixture) processing(t testing.TB, a *acme.Account) *acme.Order {
	t.Helper()
	return f.update(t, f.order(t, a), func(o *acme.Order) error {
		o.Status = acme.StatusReady
		return o.Finalize([]byte("CSR"), f.now)
	})
}

func wantError(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("got error %v, want %v", got, want)
	}
}

func limitOf(t testing.TB, err error) *acme.LimitError {
	t.Helper()
	var limit *acme.LimitError
	if !errors.As(err, &limit) {
		t.Fatalf("got error %v, want a LimitError", err)
	}
	return limit
}

func name(i int) string { return fmt.Sprintf("host-%d.example.com", i) }
