package bolt_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/storage/bolt"
	"github.com/acme-bridge/acme-bridge/storage/storagetest"
)

var ids = acme.IDs{Rand: rand.Reader}

func open(t testing.TB, opts bolt.Options) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(opts, slog.New(slog.DiscardHandler))
	check(t, err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func account(t testing.TB, s acme.Store) *acme.Account {
	t.Helper()
	id, err := ids.Account(time.Now())
	check(t, err)
	thumb, err := ids.Token()
	check(t, err)
	a, _, err := s.CreateAccount(t.Context(), &acme.Account{ID: id, Directory: "default", Status: acme.StatusValid, Thumbprint: thumb})
	check(t, err)
	return a
}

func newOrder(t testing.TB, a *acme.Account, now time.Time) *acme.Order {
	t.Helper()
	o, err := acme.NewOrder(ids, a, &acme.Profile{
		Name: "internal", OrderLifetime: 24 * time.Hour, Challenges: []acme.ChallengeType{acme.HTTP01},
	}, []acme.Identifier{{Type: acme.TypeDNS, Value: "www.example.com"}}, []*acme.Proof{nil}, now)
	check(t, err)
	return o
}

func order(t testing.TB, s acme.Store, a *acme.Account, now time.Time) *acme.Order {
	t.Helper()
	o := newOrder(t, a, now)
	check(t, s.CreateOrder(t.Context(), o, acme.OrderLimits{}, now))
	return o
}

func TestStore(t *testing.T) {
	s := open(t, bolt.Options{Dir: t.TempDir()})
	storagetest.Run(t, func(*testing.T) acme.Store { return s })
}

func TestFileIsForOneProcessAndItsUser(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	open(t, bolt.Options{Dir: dir})
	_, err := bolt.Open(bolt.Options{Dir: dir}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "another process") || !strings.Contains(err.Error(), bolt.FileName) {
		t.Errorf("got error %v, want one that names the file and says that another process has it", err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, bolt.FileName): 0o600} {
		info, err := os.Stat(path)
		check(t, err)
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
	if _, err := bolt.Open(bolt.Options{Dir: filepath.Join(dir, bolt.FileName)}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a file was taken for the directory")
	}
	broken := t.TempDir()
	check(t, os.WriteFile(filepath.Join(broken, bolt.FileName), bytes.Repeat([]byte("not a database "), 1000), 0o600))
	if _, err := bolt.Open(bolt.Options{Dir: broken}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), bolt.FileName) {
		t.Errorf("got error %v, want one that names the broken file", err)
	}
}

func TestRestartKeepsObjectsAndForgetsNonces(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	s := open(t, bolt.Options{Dir: dir})
	a := account(t, s)
	o, err := s.UpdateOrder(t.Context(), order(t, s, a, now), func(o *acme.Order) error { o.Wake = now; return nil })
	check(t, err)
	key, err := s.NonceKey(t.Context(), []byte("first"))
	check(t, err)
	limit := acme.LimitKey{Scope: "s", Subject: "x", Limit: acme.Limit{Count: 1, Period: time.Hour}}
	check(t, s.Take(t.Context(), limit, 1, now))
	check(t, s.Close())

	again := open(t, bolt.Options{Dir: dir})
	found, err := again.Fetch(t.Context(), acme.Lookup{AccountID: a.ID, OrderID: o.ID, Limits: []acme.LimitKey{limit}}, now)
	check(t, err)
	if found.Account == nil || found.Order == nil || found.Order.Version != o.Version || found.Limited == nil {
		t.Errorf("got %+v, want account, order and limit", found)
	}
	if found.NonceKey != nil {
		t.Errorf("nonce key %q outlived the marks of used nonces", found.NonceKey)
	}
	if second, err := again.NonceKey(t.Context(), []byte("second")); err != nil || bytes.Equal(second, key) {
		t.Errorf("got nonce key %q, %v; want the second", second, err)
	}
	if due, err := again.ClaimDue(t.Context(), now.Add(time.Second), time.Minute, 10); err != nil || len(due) != 1 || due[0] != o.ID {
		t.Errorf("claimed %v, %v", due, err)
	}
}

func TestClosedStoreIsUnavailable(t *testing.T) {
	s := open(t, bolt.Options{Dir: t.TempDir()})
	a := account(t, s)
	o := order(t, s, a, time.Now())
	check(t, s.Close())
	for name, call := range map[string]func() error{
		"read": func() error { _, err := s.Order(t.Context(), o.ID); return err },
		"update": func() error {
			_, err := s.UpdateOrder(t.Context(), o, func(*acme.Order) error { return nil })
			return err
		},
		"fetch":     func() error { _, err := s.Fetch(t.Context(), acme.Lookup{Nonce: "n"}, time.Now()); return err },
		"nonce key": func() error { _, err := s.NonceKey(t.Context(), nil); return err },
		"ping":      func() error { return s.Ping(t.Context()) },
	} {
		if err := call(); !errors.Is(err, acme.ErrUnavailable) {
			t.Errorf("%s: got %v, want ErrUnavailable", name, err)
		}
	}
}

// TestCloseAmongWrites: each write is stored or reported as not stored.
func TestCloseAmongWrites(t *testing.T) {
	dir := t.TempDir()
	s := open(t, bolt.Options{Dir: dir})
	a := account(t, s)
	var mu sync.Mutex
	var stored []string
	var wg sync.WaitGroup
	closing := make(chan struct{})
	for i := range 50 {
		wg.Go(func() {
			for n := range 50 {
				if i == 0 && n == 3 {
					close(closing)
				}
				o := newOrder(t, a, time.Now())
				err := s.CreateOrder(t.Context(), o, acme.OrderLimits{}, time.Now())
				if err != nil {
					if !errors.Is(err, acme.ErrUnavailable) {
						t.Errorf("got %v, want ErrUnavailable", err)
					}
					return
				}
				mu.Lock()
				stored = append(stored, o.ID)
				mu.Unlock()
			}
		})
	}
	<-closing
	check(t, s.Close())
	wg.Wait()
	again := open(t, bolt.Options{Dir: dir})
	list, err := again.AccountOrders(t.Context(), a.ID, "", 10000)
	check(t, err)
	if len(list) != len(stored) {
		t.Errorf("%d orders are there, %d were reported as stored", len(list), len(stored))
	}
}

// TestExpiry looks into the file: nothing of what expired is left.
func TestExpiry(t *testing.T) {
	dir := t.TempDir()
	const day = 24 * time.Hour
	var mu sync.Mutex
	now := time.Now().UTC()
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	s := open(t, bolt.Options{Dir: dir, Now: clock})
	ctx := t.Context()
	a := account(t, s)
	kept := order(t, s, a, now)
	kept, err := s.UpdateOrder(ctx, kept, func(o *acme.Order) error { o.Status = acme.StatusReady; return o.Finalize([]byte("CSR"), now) })
	check(t, err)
	var gone []*acme.Order
	for i := range 100 {
		o, err := s.UpdateOrder(ctx, order(t, s, a, now), func(o *acme.Order) error {
			check(t, o.Respond(0, acme.HTTP01, a, now))
			if i%2 == 0 {
				return nil
			}
			return o.Validated(0, acme.HTTP01, nil, day, now)
		})
		check(t, err)
		gone = append(gone, o)
		_, err = s.ClaimCertificate(ctx, o.ID, o.ID, now.Add(day))
		check(t, err)
		check(t, s.Take(ctx, acme.LimitKey{Scope: "s", Subject: o.ID, Limit: acme.Limit{Count: 1, Period: time.Hour}}, 1, now))
	}
	mu.Lock()
	now = now.Add(9 * day)
	mu.Unlock()
	for range 60 {
		check(t, s.Ping(ctx))
	}
	for _, o := range gone {
		if _, err := s.Order(ctx, o.ID); !errors.Is(err, acme.ErrNotFound) {
			t.Fatalf("order %s: got %v, want ErrNotFound", o.ID, err)
		}
	}
	if _, err := s.Order(ctx, kept.ID); err != nil {
		t.Errorf("the processing order is gone: %v", err)
	}
	check(t, s.Close())
	db, err := bbolt.Open(filepath.Join(dir, bolt.FileName), 0o600, nil)
	check(t, err)
	defer db.Close()
	check(t, db.View(func(tx *bbolt.Tx) error {
		for bucket, want := range map[string]int{
			"accounts": 1, "orders": 1, "lists": 1, "open": 1, "due": 1, "wakes": 1, "proofs": 0, "limits": 0, "certs": 0, "expiry": 0,
		} {
			if got := tx.Bucket([]byte(bucket)).Stats().KeyN; got != want {
				t.Errorf("%d entries in %s, want %d", got, bucket, want)
			}
		}
		for err := range tx.Check() {
			t.Error(err)
		}
		return nil
	}))
}

func TestMarksOfNoncesLastForTheirLifetime(t *testing.T) {
	s := open(t, bolt.Options{Dir: t.TempDir()})
	start := time.Now()
	fresh := func(nonce string, after time.Duration) bool {
		t.Helper()
		found, err := s.Fetch(t.Context(), acme.Lookup{Nonce: nonce, NonceLifetime: time.Hour}, start.Add(after))
		check(t, err)
		return found.NonceFresh
	}
	for _, tt := range []struct {
		nonce string
		after time.Duration
		want  bool
	}{
		{"a", 0, true},
		{"b", 59 * time.Minute, true},
		{"a", 59 * time.Minute, false},
		{"c", 61 * time.Minute, true},
		{"b", 118 * time.Minute, false},
		{"c", 120 * time.Minute, false},
		{"d", 130 * time.Minute, true},
		{"d", 131 * time.Minute, false},
		{"a", 131 * time.Minute, true}, // forgotten, and long invalid by its own time
	} {
		if got := fresh(tt.nonce, tt.after); got != tt.want {
			t.Errorf("nonce %s after %s: fresh %t, want %t", tt.nonce, tt.after, got, tt.want)
		}
	}
}

// TestWritesShareCommits counts commits in the file's own transaction numbers.
func TestWritesShareCommits(t *testing.T) {
	dir := t.TempDir()
	s := open(t, bolt.Options{Dir: dir})
	a := account(t, s)
	const writes = 400
	var wg sync.WaitGroup
	for range writes {
		wg.Go(func() {
			if err := s.CreateOrder(t.Context(), newOrder(t, a, time.Now()), acme.OrderLimits{}, time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	check(t, s.Close())
	db, err := bbolt.Open(filepath.Join(dir, bolt.FileName), 0o600, nil)
	check(t, err)
	defer db.Close()
	check(t, db.View(func(tx *bbolt.Tx) error {
		if commits := tx.ID(); commits > writes/4 {
			t.Errorf("%d commits for %d writes at once, want far fewer", commits, writes)
		}
		return nil
	}))
}

func TestCallerThatGoesAwayWithdrawsItsWrite(t *testing.T) {
	s := open(t, bolt.Options{Dir: t.TempDir()})
	o := order(t, s, account(t, s), time.Now())
	ctx, cancel := context.WithCancel(t.Context())
	holding, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // holds up the writer
		_, err := s.UpdateOrder(t.Context(), o, func(*acme.Order) error { close(holding); <-release; return acme.ErrUnchanged })
		if err != nil {
			t.Error(err)
		}
	})
	<-holding
	done := make(chan error)
	wg.Go(func() {
		_, err := s.UpdateOrder(ctx, o, func(o *acme.Order) error { o.Attempts++; return nil })
		done <- err
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the caller's own error", err)
	}
	close(release)
	wg.Wait()
	if got, err := s.Order(t.Context(), o.ID); err != nil || got.Attempts != 0 {
		t.Errorf("got %+v, %v; want it unchanged", got, err)
	}
}

func BenchmarkStore(b *testing.B) { storagetest.Bench(b, open(b, bolt.Options{Dir: b.TempDir()})) }
