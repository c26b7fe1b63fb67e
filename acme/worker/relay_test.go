package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

const relayType acme.ChallengeType = "ncp-dcv-01"

// A relayCA is the fake CA with domains that it validates; answer says what of
// the n-th question comes.
type relayCA struct {
	*fakeCA
	answer func(ctx context.Context, n int) (bool, time.Time, error)

	mu    sync.Mutex
	asked []time.Time
	about []string // account and reference of each question
}

func (r *relayCA) Relay(_ context.Context, _ string, ids []acme.Identifier, until time.Time) ([]*acme.RelayRecord, error) {
	records := make([]*acme.RelayRecord, len(ids))
	for i, id := range ids {
		records[i] = &acme.RelayRecord{Backend: "ca", Ref: id.Value, Type: "TXT", Name: "_v." + id.Value, Value: "value", Expires: until}
	}
	return records, nil
}

func (r *relayCA) RelayStatus(ctx context.Context, accountID string, record *acme.RelayRecord) (bool, time.Time, error) {
	r.mu.Lock()
	r.asked, r.about = append(r.asked, r.now()), append(r.about, accountID+" "+record.Ref)
	n := len(r.asked)
	r.mu.Unlock()
	return r.answer(ctx, n)
}

func (r *relayCA) questions() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// relayed makes the CA one that relays, and stores an order of one name whose
// client has responded to its relay challenge.
func (s *stage) relayed(answer func(ctx context.Context, n int) (bool, time.Time, error)) (*relayCA, *acme.Order) {
	s.t.Helper()
	ca := &relayCA{fakeCA: s.ca, answer: answer}
	s.policy.Issuers = map[string]acme.Issuer{"ca": ca}
	ids := []acme.Identifier{{Type: acme.TypeDNS, Value: "a.example"}}
	identities := acme.IDs{Rand: rand.Reader}
	id, err := identities.Account(s.now())
	if err != nil {
		s.t.Fatal(err)
	}
	o, err := acme.NewOrder(identities, &acme.Account{ID: id}, s.profile, ids, make([]*acme.Proof, 1), s.now())
	if err != nil {
		s.t.Fatal(err)
	}
	records, err := ca.Relay(context.Background(), id, ids, o.Expires)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(o.OfferRelay(0, relayType, records[0]), o.Respond(0, relayType, account, s.now())); err != nil {
		s.t.Fatal(err)
	}
	if err := s.store.CreateOrder(context.Background(), o, acme.OrderLimits{}, s.now()); err != nil {
		s.t.Fatal(err)
	}
	return ca, o
}

func notSeen(context.Context, int) (bool, time.Time, error) { return false, time.Time{}, nil }

func TestARelayedRecordIsAskedForAtGrowingIntervals(t *testing.T) {
	bubble(t, func(s *stage) {
		day := 24 * time.Hour
		ca, o := s.relayed(func(_ context.Context, n int) (bool, time.Time, error) { return n == 30, s.now().Add(400 * day), nil })
		w := s.start()
		w.Nudge(o)
		got := s.awaitStatus(o, acme.StatusReady)
		asked := ca.questions()
		if len(asked) != 30 || ca.about[0] != o.AccountID+" a.example" {
			t.Fatalf("asked %d times, first about %q", len(asked), ca.about[0])
		}
		for i := 1; i < len(asked); i++ {
			least, most := time.Second, 2*relayMost // the queue is looked at each second
			if i > 6 {
				least = relayMost/2 - time.Second
			}
			if d := asked[i].Sub(asked[i-1]); d < least || d > most {
				t.Errorf("question %d came %s after the one before, want %s to %s", i+1, d, least, most)
			}
		}
		a := got.Authorizations[0]
		if c := a.Challenge(relayType); a.Status != acme.StatusValid || c.Status != acme.StatusValid || a.Expires.Sub(c.Validated) != acme.MaxRelayProof {
			t.Errorf("authorization %+v, want one of 30 days", a)
		}
		found, err := s.store.Fetch(context.Background(), acme.Lookup{Proofs: []acme.ProofKey{{AccountID: o.AccountID, Name: "dns:a.example"}}}, s.now())
		if err != nil || found.Proofs[0] == nil || found.Proofs[0].Method != relayType || found.Proofs[0].KeyEpoch != account.KeyEpoch {
			t.Errorf("proof is %+v, %v", found, err)
		}
		if n := s.checker.count(); n != 0 {
			t.Errorf("%d validations over the network", n)
		}
	})
}

func TestARelayedProofEndsWithTheDomain(t *testing.T) {
	bubble(t, func(s *stage) {
		ends := s.now().Add(48 * time.Hour).UTC().Truncate(time.Second)
		_, o := s.relayed(func(context.Context, int) (bool, time.Time, error) { return true, ends, nil })
		w := s.start()
		w.Nudge(o)
		if got := s.awaitStatus(o, acme.StatusReady).Authorizations[0].Expires; got.Sub(ends).Abs() > time.Second {
			t.Errorf("expires %s, want %s", got, ends)
		}
	})
}

func TestARelayedValidationThatFails(t *testing.T) {
	bubble(t, func(s *stage) {
		_, o := s.relayed(func(context.Context, int) (bool, time.Time, error) {
			return false, time.Time{}, acme.Problemf(acme.IncorrectResponse, "the record was not seen")
		})
		w := s.start()
		w.Nudge(o)
		got := s.awaitStatus(o, acme.StatusInvalid)
		s.expectProblem(got, acme.IncorrectResponse)
		if c := got.Authorizations[0].Challenge(relayType); c.Status != acme.StatusInvalid || c.Error == nil || c.Error.Type != acme.IncorrectResponse {
			t.Errorf("challenge is %+v", c)
		}
	})
}

// An outage of the CA, or a backend that was taken out of the configuration,
// costs the client nothing but time.
func TestARelayedValidationOutlastsAnOutage(t *testing.T) {
	bubble(t, func(s *stage) {
		ca, o := s.relayed(func(_ context.Context, n int) (bool, time.Time, error) {
			if n < 100 {
				return false, time.Time{}, errors.New("connection refused")
			}
			return true, time.Time{}, nil
		})
		w := s.start()
		w.SetPolicy(s.without(false, true))
		w.Nudge(o)
		s.await(o, "put off", func(o *acme.Order) bool { return o.Authorizations[0].Challenges[0].Looks == 3 })
		if n := len(ca.questions()); n != 0 {
			t.Fatalf("asked %d times without a backend", n)
		}
		w.SetPolicy(s.policy)
		began := s.now()
		s.awaitStatus(o, acme.StatusReady)
		if took := s.now().Sub(began); took < 40*time.Minute {
			t.Errorf("asked 100 times in %s", took)
		}
		if s.log.find(slog.LevelWarn, "relayed validation cannot be asked about, will ask again") == "" {
			t.Error("nothing in the log")
		}
	})
}

func TestARelayedRecordIsWaitedForUntilTheOrderEnds(t *testing.T) {
	bubble(t, func(s *stage) {
		_, o := s.relayed(notSeen)
		w := s.start()
		w.Nudge(o)
		s.awaitStatus(o, acme.StatusInvalid)
		if late := s.now().Sub(o.Expires); late < 0 || late > time.Minute {
			t.Errorf("ended %s after its end", late)
		}
	})
}

// What a stopped worker was told is not lost, and another asks again when the
// order is due.
func TestARelayedValidationSurvivesARestart(t *testing.T) {
	bubble(t, func(s *stage) {
		asking := make(chan struct{})
		ca, o := s.relayed(func(ctx context.Context, n int) (bool, time.Time, error) {
			if n == 3 {
				close(asking)
				<-ctx.Done()
				return false, time.Time{}, ctx.Err()
			}
			return n == 5, time.Time{}, nil
		})
		first := s.start()
		first.Nudge(o)
		<-asking
		first.stop(t)
		if got := s.read(o).Authorizations[0].Challenges[0].Looks; got != 2 {
			t.Errorf("%d questions are counted, want 2", got)
		}
		s.start()
		s.awaitStatus(o, acme.StatusReady)
		if n := len(ca.questions()); n != 5 {
			t.Errorf("asked %d times, want 5", n)
		}
	})
}

func TestRelayOfABackendThatHasNone(t *testing.T) {
	bubble(t, func(s *stage) {
		w := s.idle()
		ids := []acme.Identifier{{Type: acme.TypeDNS, Value: "a.example"}}
		for _, backend := range []string{"ca", "nobody"} {
			if got, err := w.Relay(context.Background(), backend, "account", ids, s.now()); err != nil || len(got) != 1 || got[0] != nil {
				t.Errorf("%s: got %v, %v", backend, got, err)
			}
		}
		s.policy.Issuers = map[string]acme.Issuer{"ca": &relayCA{fakeCA: s.ca}}
		if got, err := s.idle().Relay(context.Background(), "ca", "account", ids, s.now()); err != nil || got[0] == nil || got[0].Name != "_v.a.example" {
			t.Errorf("got %v, %v", got, err)
		}
	})
}
