package worker

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/storage/bolt"
)

// patience bounds what a test waits for. Most tests run in a synctest bubble,
// whose clock jumps to the next timer when nothing else can happen, so that
// hours of backoff pass at once; the others end with the limit of go test.
const patience = 100 * time.Hour

// A stage is a store, a CA, and the workers that a test sets on them.
type stage struct {
	t       *testing.T
	store   *testStore
	ca      *fakeCA
	checker *fakeValidator
	now     func() time.Time
	log     *logbook
	profile *acme.Profile
	policy  *Policy
}

// bubble runs a test on a stage with a bolt store and a clock that jumps.
func bubble(t *testing.T, test func(s *stage)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		store, err := bolt.Open(bolt.Options{Dir: dir}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := store.Close(); err != nil {
				t.Error(err)
			}
		})
		test(newStage(t, store, time.Now))
	})
}

func newStage(t *testing.T, store acme.Store, now func() time.Time) *stage {
	t.Helper()
	s := &stage{
		t: t, store: &testStore{Store: store, bell: newBell()}, ca: newCA(t, now),
		checker: &fakeValidator{}, now: now, log: newLogbook(),
		profile: &acme.Profile{
			Name: "web", Backend: "ca", Lifetime: month, OrderLifetime: 24 * time.Hour, AuthorizationLifetime: 2 * time.Hour,
			Challenges: []acme.ChallengeType{acme.HTTP01, acme.DNS01},
		},
	}
	s.ca.owner = s.store
	s.policy = &Policy{
		Directories: map[string]*Directory{"": {Profiles: map[string]*acme.Profile{"web": s.profile}, Validator: s.checker}},
		Issuers:     map[string]acme.Issuer{"ca": s.ca}, FailedValidations: acme.Limit{Count: 2, Period: time.Hour},
	}
	return s
}

// without is the policy after a reload that took something away.
func (s *stage) without(profile, backend bool) *Policy {
	p := *s.policy
	if profile {
		p.Directories = map[string]*Directory{"": {Validator: s.checker}}
	}
	if backend {
		p.Issuers = nil
	}
	return &p
}

// A runner is a worker and its Run.
type runner struct {
	*Worker
	metrics *prometheus.Registry
	cancel  context.CancelFunc
	ended   chan struct{}
}

// start runs a worker until the test ends.
func (s *stage) start(set ...func(*Options)) *runner {
	s.t.Helper()
	r := s.idle(set...)
	r.run(s.t)
	return r
}

// idle makes a worker that does not run yet.
func (s *stage) idle(set ...func(*Options)) *runner {
	r := &runner{metrics: prometheus.NewRegistry(), cancel: func() {}, ended: make(chan struct{})}
	opts := Options{Store: s.store, Now: s.now, Log: slog.New(s.log), Metrics: r.metrics}
	for _, f := range set {
		f(&opts)
	}
	r.Worker = New(opts, s.policy)
	return r
}

func (r *runner) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		defer close(r.ended)
		if err := r.Run(ctx); err != nil {
			t.Errorf("Run = %v", err)
		}
	}()
	t.Cleanup(func() { r.stop(t) })
}

// stop shuts the worker down and waits until it has.
func (r *runner) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	select {
	case <-r.ended:
	case <-time.After(patience):
		t.Fatal("Run did not return")
	}
}

// settled waits until the worker is idle.
func (r *runner) settled(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for limit := time.After(patience); ; {
		r.mu.Lock()
		n := len(r.jobs)
		r.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%d jobs do not end", n)
		}
	}
}

// metric is the sum of a counter family over its labels that contain all of with.
func (r *runner) metric(t *testing.T, name string, with ...string) float64 {
	t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			if !slices.ContainsFunc(with, func(v string) bool { return !slices.Contains(labels, v) }) {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// pending stores an order that waits for its challenges.
func (s *stage) pending(names ...string) *acme.Order {
	s.t.Helper()
	return s.newOrder(names, false, nil)
}

// finalized stores an order that waits for its certificate, as a finalize
// leaves it: due after acme.Handoff.
func (s *stage) finalized(names ...string) *acme.Order {
	s.t.Helper()
	return s.newOrder(names, true, newKey(s.t))
}

func (s *stage) newOrder(names []string, proven bool, key *ecdsa.PrivateKey) *acme.Order {
	s.t.Helper()
	ids := acme.IDs{Rand: rand.Reader}
	account, err := ids.Account(s.now())
	if err != nil {
		s.t.Fatal(err)
	}
	identifiers := make([]acme.Identifier, len(names))
	proofs := make([]*acme.Proof, len(names))
	for i, name := range names {
		identifiers[i] = acme.Identifier{Type: acme.TypeDNS, Value: name}
		if proven {
			proofs[i] = &acme.Proof{
				ProofKey: acme.ProofKey{AccountID: account, Name: identifiers[i].Name()}, Method: acme.HTTP01,
				Validated: s.now(), Expires: s.now().Add(s.profile.OrderLifetime),
			}
		}
	}
	o, err := acme.NewOrder(ids, &acme.Account{ID: account}, s.profile, identifiers, proofs, s.now())
	if err != nil {
		s.t.Fatal(err)
	}
	if key != nil {
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
		if err != nil {
			s.t.Fatal(err)
		}
		if err := o.Finalize(csr, s.now()); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.store.CreateOrder(context.Background(), o, acme.OrderLimits{}, s.now()); err != nil {
		s.t.Fatal(err)
	}
	return o
}

// read returns the order as it is stored now.
func (s *stage) read(o *acme.Order) *acme.Order {
	s.t.Helper()
	got, err := s.store.Store.Order(context.Background(), o.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

// await waits for a save that makes the condition true, and returns the order.
func (s *stage) await(o *acme.Order, what string, done func(*acme.Order) bool) *acme.Order {
	s.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		changed := s.store.bell.wait()
		got := s.read(o)
		if done(got) {
			return got
		}
		select {
		case <-changed:
		case <-limit.C:
			s.t.Fatalf("order is %s (intent %+v, error %v), want it %s\n%s", got.Status, got.Intent, got.Error, what, s.log)
		}
	}
}

func (s *stage) awaitStatus(o *acme.Order, want acme.Status) *acme.Order {
	s.t.Helper()
	got := s.await(o, string(want), func(o *acme.Order) bool { return o.Status == want || !o.Open() })
	if got.Status != want {
		s.t.Fatalf("order is %s (%v), want %s\n%s", got.Status, got.Error, want, s.log)
	}
	return got
}

// awaitIntent waits until some worker has saved that it will ask the CA.
func (s *stage) awaitIntent(o *acme.Order) *acme.Order {
	s.t.Helper()
	return s.await(o, "with an intent", func(o *acme.Order) bool { return o.Intent != nil })
}

// expectCertificate checks that a valid order has the only certificate that the
// CA made for its key, and its chain without the root.
func (s *stage) expectCertificate(o *acme.Order) {
	s.t.Helper()
	s.ca.mu.Lock()
	issued := slices.Clone(s.ca.issued)
	s.ca.mu.Unlock()
	if len(issued) != 1 {
		s.t.Fatalf("%d certificates were made, want one", len(issued))
	}
	if o.Certificate == nil || !slices.Equal(o.Certificate.Leaf, issued[0].Raw) {
		s.t.Fatalf("order has certificate %+v, want the one that was made", o.Certificate)
	}
	chain, err := s.store.Store.Chain(context.Background(), o.Certificate.ChainRef)
	if err != nil {
		s.t.Fatal(err)
	}
	if n := strings.Count(string(chain), "BEGIN CERTIFICATE"); n != 1 {
		s.t.Errorf("chain has %d certificates, want the issuer and no root", n)
	}
	if o.CSR != nil || o.Intent != nil || !o.Wake.IsZero() {
		s.t.Errorf("valid order has CSR %v, intent %v, wake %v", o.CSR != nil, o.Intent, o.Wake)
	}
}

// expectProblem checks why an order is invalid, and that it has no certificate.
func (s *stage) expectProblem(o *acme.Order, want acme.ProblemType) {
	s.t.Helper()
	if o.Status != acme.StatusInvalid || o.Error == nil || o.Error.Type != want {
		s.t.Errorf("order is %s with error %v, want invalid with %s", o.Status, o.Error, want)
	}
	if o.Certificate != nil {
		s.t.Errorf("an invalid order has a certificate")
	}
}

// A testStore is a real store that can fail, and that tells of order saves.
type testStore struct {
	acme.Store
	// fault, if set, fails calls of the worker with what it returns: before they
	// are done, or when they are done and only the answer is lost. The order is
	// the one that UpdateOrder was given, or has saved; else nil.
	fault func(method string, done bool, o *acme.Order) error

	bell *bell // shared by the stores of replicas

	mu         sync.Mutex
	saves      int
	quarantine []*acme.Quarantine
}

// A bell wakes all who wait for it.
type bell struct {
	mu   sync.Mutex
	next chan struct{}
}

func newBell() *bell { return &bell{next: make(chan struct{})} }

// wait returns a channel that is closed at the next ring.
func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.next
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.next)
	b.next = make(chan struct{})
}

func try[T any](s *testStore, method string, do func() (T, error)) (T, error) {
	if s.fault == nil {
		return do()
	}
	var none T
	if err := s.fault(method, false, nil); err != nil {
		return none, err
	}
	v, err := do()
	if err == nil {
		err = s.fault(method, true, nil)
	}
	if err != nil {
		return none, err
	}
	return v, nil
}

func (s *testStore) Order(ctx context.Context, id string) (*acme.Order, error) {
	return try(s, "Order", func() (*acme.Order, error) { return s.Store.Order(ctx, id) })
}

func (s *testStore) ClaimDue(ctx context.Context, now time.Time, lease time.Duration, limit int) ([]string, error) {
	return try(s, "ClaimDue", func() ([]string, error) { return s.Store.ClaimDue(ctx, now, lease, limit) })
}

func (s *testStore) ClaimCertificate(ctx context.Context, certID, orderID string, keepUntil time.Time) (string, error) {
	return try(s, "ClaimCertificate", func() (string, error) { return s.Store.ClaimCertificate(ctx, certID, orderID, keepUntil) })
}

func (s *testStore) PutChain(ctx context.Context, pem []byte) (string, error) {
	return try(s, "PutChain", func() (string, error) { return s.Store.PutChain(ctx, pem) })
}

func (s *testStore) Take(ctx context.Context, key acme.LimitKey, cost int, now time.Time) error {
	_, err := try(s, "Take", func() (struct{}, error) { return struct{}{}, s.Store.Take(ctx, key, cost, now) })
	return err
}

func (s *testStore) PutQuarantine(ctx context.Context, q *acme.Quarantine) error {
	_, err := try(s, "PutQuarantine", func() (struct{}, error) {
		s.mu.Lock()
		s.quarantine = append(s.quarantine, q)
		s.mu.Unlock()
		return struct{}{}, s.Store.PutQuarantine(ctx, q)
	})
	return err
}

func (s *testStore) UpdateOrder(ctx context.Context, last *acme.Order, change func(*acme.Order) error) (*acme.Order, error) {
	if s.fault != nil {
		if err := s.fault("UpdateOrder", false, last); err != nil {
			return nil, err
		}
	}
	o, err := s.Store.UpdateOrder(ctx, last, change)
	s.mu.Lock()
	s.saves++
	s.mu.Unlock()
	s.bell.ring()
	if err == nil && s.fault != nil {
		if err := s.fault("UpdateOrder", true, o); err != nil {
			return nil, err
		}
	}
	return o, err
}

// once makes a fault that happens the first time that when says so.
func once(err error, when func(method string, done bool, o *acme.Order) bool) func(string, bool, *acme.Order) error {
	var happened atomic.Bool
	return func(method string, done bool, o *acme.Order) error {
		if when(method, done, o) && happened.CompareAndSwap(false, true) {
			return err
		}
		return nil
	}
}

// awayUntil makes every call fail until that time, in Unix nanoseconds.
func (s *stage) awayUntil() *atomic.Int64 {
	var back atomic.Int64
	s.store.fault = func(string, bool, *acme.Order) error {
		if s.now().UnixNano() < back.Load() {
			return fmt.Errorf("%w: connection refused", acme.ErrUnavailable)
		}
		return nil
	}
	return &back
}

func (s *testStore) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saves
}

func (s *testStore) quarantined() []*acme.Quarantine {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.quarantine)
}

// A fakeValidator proves what it is told to.
type fakeValidator struct {
	onValidate func(ctx context.Context, v *acme.Validation) error

	mu    sync.Mutex
	calls []*acme.Validation
}

func (f *fakeValidator) Validate(ctx context.Context, v *acme.Validation) error {
	f.mu.Lock()
	f.calls = append(f.calls, v)
	f.mu.Unlock()
	if f.onValidate != nil {
		return f.onValidate(ctx, v)
	}
	return nil
}

func (f *fakeValidator) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

// A logbook keeps what was logged.
type logbook struct {
	mu    *sync.Mutex
	lines *[]string
	attrs map[string]string // of the logger that this is the handler of
}

func newLogbook() *logbook { return &logbook{mu: new(sync.Mutex), lines: new([]string)} }

func (l *logbook) Enabled(context.Context, slog.Level) bool { return true }

func (l *logbook) Handle(_ context.Context, r slog.Record) error {
	attrs := make(map[string]string)
	maps.Copy(attrs, l.attrs)
	r.Attrs(func(a slog.Attr) bool {
		attrs[a.Key] = a.Value.String()
		return true
	})
	line := fmt.Sprintf("%s %s", r.Level, r.Message)
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		line += fmt.Sprintf(" %s=%q", k, attrs[k])
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	*l.lines = append(*l.lines, line)
	return nil
}

func (l *logbook) WithAttrs(attrs []slog.Attr) slog.Handler {
	all := make(map[string]string)
	maps.Copy(all, l.attrs)
	for _, a := range attrs {
		all[a.Key] = a.Value.String()
	}
	return &logbook{mu: l.mu, lines: l.lines, attrs: all}
}

func (l *logbook) WithGroup(string) slog.Handler { return l }

// find returns the first line of that level and message, or "".
func (l *logbook) find(level slog.Level, message string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range *l.lines {
		if strings.HasPrefix(line, level.String()+" "+message) {
			return line
		}
	}
	return ""
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join((*l.lines)[max(0, len(*l.lines)-20):], "\n") // the last say why
}
