package worker

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// The tests of this file are the rows of the table "issuing at most once".

func TestCrashBeforeIntentSubmits(t *testing.T) {
	bubble(t, func(s *stage) {
		o := s.finalized("a.example", "*.b.example") // whoever finalized it died: no nudge
		s.start()
		s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
		s.ca.expect(t, 1, 0, 1)
	})
}

func TestNudgeIssuesAtOnce(t *testing.T) {
	bubble(t, func(s *stage) {
		w := s.start()
		o := s.finalized("a.example")
		changed, stop := w.Watch(o.ID)
		defer stop()
		begin := s.now()
		w.Nudge(o)
		got := <-changed
		for got.Status == acme.StatusProcessing {
			got = <-changed
		}
		s.expectCertificate(got)
		if d := s.now().Sub(begin); d >= acme.Handoff {
			t.Errorf("a nudged order took %s", d)
		}
		if got := w.metric(t, "acme_bridge_orders_total", "web", "valid"); got != 1 {
			t.Errorf("%v valid orders counted, want 1", got)
		}
		if got := w.metric(t, "acme_bridge_submits_total", "ca", "issued"); got != 1 {
			t.Errorf("%v submits counted as issued, want 1", got)
		}
	})
}

func TestNotSentForCertainIsRepeatedWithBackoff(t *testing.T) {
	bubble(t, func(s *stage) {
		const failures = 6
		s.ca.onSubmit = s.ca.first(failures, func(context.Context, int, *acme.IssueRequest) (*acme.Issuance, error) {
			return nil, &acme.NotSentError{Err: errors.New("connection refused")}
		})
		w := s.start()
		s.expectCertificate(s.awaitStatus(s.finalized("a.example"), acme.StatusValid))
		s.ca.expect(t, failures+1, 0, 1)
		for i := 1; i <= failures; i++ {
			base := time.Second << (i - 1)
			gap := s.ca.submits[i].Sub(s.ca.submits[i-1])
			if gap < base/2 || gap > base+w.Poll+time.Second {
				t.Errorf("gap %d is %s, want half to all of %s, and a look at the queue", i, gap, base)
			}
		}
		if got := w.metric(t, "acme_bridge_submits_total", "not_sent"); got != failures {
			t.Errorf("%v submits counted as not sent, want %d", got, failures)
		}
	})
}

func TestNotSentObeysWhatTheCAAskedFor(t *testing.T) {
	bubble(t, func(s *stage) {
		const after = 20 * time.Minute
		s.ca.onSubmit = s.ca.first(1, func(context.Context, int, *acme.IssueRequest) (*acme.Issuance, error) {
			return nil, &acme.NotSentError{After: after, Err: errors.New("429")}
		})
		s.start()
		s.expectCertificate(s.awaitStatus(s.finalized("a.example"), acme.StatusValid))
		if gap := s.ca.submits[1].Sub(s.ca.submits[0]); gap < after || gap > after+2*time.Second {
			t.Errorf("asked again after %s, want %s", gap, after)
		}
	})
}

func TestNotSentEndsWhenTheOrderExpires(t *testing.T) {
	for name, after := range map[string]time.Duration{
		"with a backoff of our own": 0,
		"asked to wait for an hour": time.Hour,
		"asked to wait for a year":  365 * 24 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(s *stage) {
				s.profile.OrderLifetime = 4 * time.Hour
				s.ca.onSubmit = func(context.Context, int, *acme.IssueRequest) (*acme.Issuance, error) {
					return nil, &acme.NotSentError{After: after, Err: errors.New("connection refused")}
				}
				s.start()
				o := s.finalized("a.example")
				got := s.awaitStatus(o, acme.StatusInvalid)
				s.expectProblem(got, acme.ServerInternal)
				if late := s.now().Sub(o.Expires); late > 2*time.Second {
					t.Errorf("order ended %s after it expired", late)
				}
				if s.log.find(slog.LevelError, "certificate authority not reached") == "" {
					t.Errorf("no error was logged:\n%s", s.log)
				}
			})
		})
	}
}

func TestRefusedForCertain(t *testing.T) {
	bubble(t, func(s *stage) {
		s.ca.onSubmit = func(context.Context, int, *acme.IssueRequest) (*acme.Issuance, error) {
			return nil, acme.Problemf(acme.BadCSR, "the key type is not allowed")
		}
		w := s.start()
		got := s.awaitStatus(s.finalized("a.example"), acme.StatusInvalid)
		s.expectProblem(got, acme.BadCSR)
		s.ca.expect(t, 1, 0, 0)
		if got := w.metric(t, "acme_bridge_submits_total", "refused"); got != 1 {
			t.Errorf("%v submits counted as refused, want 1", got)
		}
	})
}

// Timeout, 5xx, a broken answer: the deadline is waited out, then Find tells.
func TestLostAnswerIsSearchedFor(t *testing.T) {
	type outcome struct{ submits, finds int }
	for name, tt := range map[string]struct {
		submit func(*fakeCA) submission
		want   outcome
	}{
		"lost before it was applied": {func(*fakeCA) submission { return lose }, outcome{2, 1}},
		"applied and lost":           {func(ca *fakeCA) submission { return ca.applyAndLose }, outcome{1, 1}},
		"timeout before it was applied": {func(*fakeCA) submission {
			return func(ctx context.Context, _ int, _ *acme.IssueRequest) (*acme.Issuance, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}, outcome{2, 1}},
		"applied and timeout": {func(ca *fakeCA) submission {
			return func(ctx context.Context, n int, req *acme.IssueRequest) (*acme.Issuance, error) {
				ca.issue(req)
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}, outcome{1, 1}},
		"neither certificate nor error": {func(*fakeCA) submission {
			return func(context.Context, int, *acme.IssueRequest) (*acme.Issuance, error) { return nil, nil }
		}, outcome{2, 1}},
		"a panic in the backend": {func(*fakeCA) submission {
			return func(context.Context, int, *acme.IssueRequest) (*acme.Issuance, error) {
				panic("the backend has a defect")
			}
		}, outcome{2, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(s *stage) {
				s.ca.onSubmit = s.ca.first(1, tt.submit(s.ca))
				w := s.start()
				o := s.finalized("a.example")
				intent := s.awaitIntent(o).Intent
				s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
				s.ca.expect(t, tt.want.submits, tt.want.finds, 1)
				if s.ca.finds[0].Before(intent.Deadline) {
					t.Errorf("searched at %s, before the deadline %s", s.ca.finds[0], intent.Deadline)
				}
				if late := s.ca.finds[0].Sub(intent.Deadline); late > 2*time.Second {
					t.Errorf("searched %s after the deadline", late)
				}
				s.start() // nothing is left to do for anyone
				if got := w.metric(t, "acme_bridge_searches_total"); got != 1 {
					t.Errorf("%v searches counted, want 1", got)
				}
			})
		})
	}
}

func TestClaimWithinTheDeadlineOnlyReschedules(t *testing.T) {
	bubble(t, func(s *stage) {
		answer := make(chan struct{})
		s.ca.onSubmit = func(_ context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
			<-answer
			return s.ca.issue(req), nil
		}
		first, second := s.start(), s.start()
		o := s.finalized("a.example")
		first.Nudge(o)
		s.ca.await(t, 1, 0)
		saves := s.store.count()
		second.Nudge(s.read(o))
		got := s.await(o, "saved again", func(*acme.Order) bool { return s.store.count() > saves })
		if !got.Wake.Equal(got.Intent.Deadline) || got.Attempts != 1 {
			t.Errorf("wake %s, attempts %d; want the deadline %s and 1", got.Wake, got.Attempts, got.Intent.Deadline)
		}
		close(answer)
		s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
		s.ca.expect(t, 1, 0, 1)
	})
}

func TestFindCannotTellThenFinds(t *testing.T) {
	bubble(t, func(s *stage) {
		s.ca.onSubmit = s.ca.first(1, s.ca.applyAndLose)
		s.ca.onFind = func(ctx context.Context, n int, req *acme.IssueRequest) (*acme.Issuance, error) {
			if n < 8 {
				return nil, errLost
			}
			return s.ca.honestFind(ctx, req)
		}
		s.start()
		s.expectCertificate(s.awaitStatus(s.finalized("a.example"), acme.StatusValid))
		s.ca.expect(t, 1, 8, 1)
		for i := 1; i < len(s.ca.finds); i++ {
			base := 2 * time.Second << (i - 1)
			if gap := s.ca.finds[i].Sub(s.ca.finds[i-1]); gap < base/2 || gap > base+2*time.Second {
				t.Errorf("search %d followed after %s, want half to all of %s", i+1, gap, base)
			}
		}
	})
}

func TestCAThatCannotBeReachedIsSearchedWhenItIsBack(t *testing.T) {
	bubble(t, func(s *stage) {
		const outage = 6 * time.Hour // longer than all counted searches take
		back := s.now().Add(outage)
		s.ca.onSubmit = s.ca.first(1, s.ca.applyAndLose)
		s.ca.onFind = func(ctx context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
			if s.now().Before(back) {
				return nil, &acme.NotSentError{Err: errLost}
			}
			return s.ca.honestFind(ctx, req)
		}
		s.start()
		o := s.finalized("a.example")
		s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
		if late := s.now().Sub(back); late > 2*time.Minute {
			t.Errorf("found %s after the CA was back, want soon", late)
		}
	})
}

func TestFindThatNeverTellsGivesUp(t *testing.T) {
	bubble(t, func(s *stage) {
		s.ca.onSubmit = lose
		s.ca.onFind = func(context.Context, int, *acme.IssueRequest) (*acme.Issuance, error) {
			return nil, acme.ErrOutcomeUnknown
		}
		w := s.start()
		o := s.finalized("a.example")
		got := s.awaitStatus(o, acme.StatusInvalid)
		s.expectProblem(got, acme.ServerInternal)
		s.ca.expect(t, 1, maxSearches, 0)
		line := s.log.find(slog.LevelError, "given up")
		if !strings.Contains(line, o.ID) || !strings.Contains(line, o.CSRFingerprint()) {
			t.Errorf("the operator is told %q, want the order %s and its CSR %s", line, o.ID, o.CSRFingerprint())
		}
		if d := s.now().Sub(o.Created); d < 30*time.Minute || d > 3*time.Hour {
			t.Errorf("given up after %s", d)
		}
		if got := w.metric(t, "acme_bridge_orders_total", "invalid"); got != 1 {
			t.Errorf("%v invalid orders counted, want 1", got)
		}
	})
}

func TestProvenAbsentAgainAndAgainEndsWhenTheOrderExpires(t *testing.T) {
	bubble(t, func(s *stage) {
		s.ca.onSubmit = lose
		s.profile.OrderLifetime = 20 * time.Minute
		s.start()
		o := s.finalized("a.example")
		s.expectProblem(s.awaitStatus(o, acme.StatusInvalid), acme.ServerInternal)
		if late := s.now().Sub(o.Expires); late > s.ca.timeout+time.Minute {
			t.Errorf("order ended %s after it expired", late)
		}
		s.ca.expect(t, len(s.ca.submits), len(s.ca.submits), 0)
	})
}

// A store slow to save the intent leaves less time to the CA: no Submit may run
// when others begin to search.
func TestSubmitEndsBeforeTheDeadlineOfASlowlySavedIntent(t *testing.T) {
	for name, slow := range map[string]time.Duration{
		"half of the time is left": 15 * time.Second,
		"no time is left":          40 * time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(s *stage) {
				late := once(errLost, func(_ string, done bool, o *acme.Order) bool { return done && o != nil && o.Intent != nil })
				s.store.fault = func(method string, done bool, o *acme.Order) error {
					if late(method, done, o) != nil {
						<-time.After(slow)
					}
					return nil
				}
				s.ca.onSubmit = s.ca.first(1, func(ctx context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
					<-ctx.Done()
					s.ca.issue(req)
					return nil, ctx.Err()
				})
				s.start()
				s.start() // searches once the deadline has passed; the CA fails the test if it meets a Submit
				o := s.finalized("a.example")
				s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
			})
		})
	}
}

func TestStoreAwayBetweenAnswerAndSave(t *testing.T) {
	for name, tt := range map[string]struct {
		away  time.Duration
		finds int
	}{
		"for some seconds":  {8 * time.Second, 0},
		"for eight minutes": {8 * time.Minute, 1},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(s *stage) {
				back := s.awayUntil()
				s.ca.onSubmit = func(_ context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
					back.Store(s.now().Add(tt.away).UnixNano())
					return s.ca.issue(req), nil
				}
				s.start()
				o := s.finalized("a.example")
				s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
				s.ca.expect(t, 1, tt.finds, 1)
				if took := s.now().Sub(s.ca.submits[0]); took > tt.away+2*time.Minute {
					t.Errorf("saved %s after the CA's answer, the store was away for %s", took, tt.away)
				}
			})
		})
	}
}

// A backend that does not heed its deadline: the certificate is found
// meanwhile, and its late answer changes nothing.
func TestAnswerAfterTheDeadline(t *testing.T) {
	bubble(t, func(s *stage) {
		s.ca.heedless = true
		answer, answered := make(chan struct{}), make(chan struct{})
		s.ca.onSubmit = func(_ context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
			defer close(answered)
			got := s.ca.issue(req)
			<-answer
			return got, nil
		}
		w := s.start()
		s.start()
		o := s.finalized("a.example")
		w.Nudge(o)
		got := s.awaitStatus(o, acme.StatusValid)
		s.expectCertificate(got)
		close(answer)
		<-answered
		w.stop(t)
		if again := s.read(o); again.Version != got.Version {
			t.Errorf("the late answer changed the order: %+v", again)
		}
		if n := len(s.store.quarantined()); n != 0 {
			t.Errorf("%d certificates quarantined, want none", n)
		}
		s.ca.expect(t, 1, 1, 1)
	})
}

// The order was given up before the certificate came: an operator must know.
func TestCertificateForAnOrderThatEndedIsKeptAndLogged(t *testing.T) {
	bubble(t, func(s *stage) {
		s.ca.onSubmit = func(ctx context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
			if _, err := s.store.Store.UpdateOrder(ctx, &acme.Order{ID: req.OrderID}, func(o *acme.Order) error {
				return o.Refused(o.Intent.Attempt, acme.Problemf(acme.ServerInternal, "given up"))
			}); err != nil {
				t.Error(err)
			}
			return s.ca.issue(req), nil
		}
		w := s.start()
		o := s.finalized("a.example")
		w.Nudge(o)
		s.ca.await(t, 1, 0)
		w.stop(t)
		s.expectProblem(s.read(o), acme.ServerInternal)
		s.expectQuarantine(w, "ended")
	})
}

func (s *stage) expectQuarantine(w *runner, reason string) {
	s.t.Helper()
	kept := s.store.quarantined()
	if len(kept) != 1 {
		s.t.Fatalf("%d certificates quarantined, want one\n%s", len(kept), s.log)
	}
	if q := kept[0]; !strings.Contains(q.Reason, reason) || q.Backend != "ca" || len(q.Leaf) == 0 {
		s.t.Errorf("quarantined for %q, want %q; backend %q, %d octets", q.Reason, reason, q.Backend, len(q.Leaf))
	}
	if got := w.metric(s.t, "acme_bridge_quarantined_total", "ca"); got != 1 {
		s.t.Errorf("%v quarantined certificates counted, want 1", got)
	}
	if s.log.find(slog.LevelError, "certificate quarantined") == "" {
		s.t.Errorf("no error was logged:\n%s", s.log)
	}
}

func TestQuarantine(t *testing.T) {
	stranger := newKey(t)
	alter := func(f func(*x509.Certificate)) func(*stage) submission {
		return func(s *stage) submission {
			return func(_ context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
				return s.ca.issue(req, f), nil
			}
		}
	}
	for name, tt := range map[string]struct {
		submit func(*stage) submission
		reason string
	}{
		"the wrong key":      {alter(func(c *x509.Certificate) { c.PublicKey = &stranger.PublicKey }), "key"},
		"a name too many":    {alter(func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "c.example") }), "c.example"},
		"a name missing":     {alter(func(c *x509.Certificate) { c.DNSNames = c.DNSNames[:1] }), "b.example"},
		"a longer lifetime":  {alter(func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(month) }), "it ends at"},
		"a shorter lifetime": {alter(func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(-month / 2) }), "it ends at"},
		"another CA's": {func(s *stage) submission {
			other := newCA(t, s.now)
			return func(_ context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
				return other.issue(req), nil
			}
		}, "chain"},
		"a certificate made for another order": {func(s *stage) submission {
			return func(_ context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
				other := s.finalized("other.example")
				other.Intent = &acme.Intent{Since: s.now(), LifetimeSeconds: int64(month / time.Second)}
				stale, err := other.Request()
				if err != nil {
					return nil, err
				}
				return s.ca.issue(stale), nil
			}
		}, "key"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(s *stage) {
				s.ca.onSubmit = tt.submit(s)
				w := s.start()
				o := s.finalized("a.example", "b.example")
				w.Nudge(o)
				got := s.awaitStatus(o, acme.StatusInvalid)
				w.stop(t)
				s.expectProblem(got, acme.ServerInternal)
				s.expectQuarantine(w, tt.reason)
				if submits, finds, _ := s.ca.counts(); submits != 1 || finds != 0 {
					t.Errorf("%d submits, %d finds; want 1 and 0", submits, finds)
				}
			})
		})
	}
}

// Two orders with the same key and names, and the CA answers both with one
// certificate: the second must not get it.
func TestCertificateOfAnotherOrderIsQuarantined(t *testing.T) {
	bubble(t, func(s *stage) {
		var once *acme.Issuance
		s.ca.onSubmit = func(_ context.Context, n int, req *acme.IssueRequest) (*acme.Issuance, error) {
			if n == 1 {
				once = s.ca.issue(req)
			}
			return once, nil
		}
		w := s.start()
		key := newKey(t)
		first, second := s.newOrder([]string{"a.example"}, true, key), s.newOrder([]string{"a.example"}, true, key)
		w.Nudge(first)
		s.expectCertificate(s.awaitStatus(first, acme.StatusValid))
		w.Nudge(second)
		got := s.awaitStatus(second, acme.StatusInvalid)
		w.stop(t)
		s.expectProblem(got, acme.ServerInternal)
		s.expectQuarantine(w, "another order")
		s.expectCertificate(s.read(first))
	})
}

// While the CA's roots cannot be had a certificate is not believed, and it is
// not made again either.
func TestRootsThatCannotBeHad(t *testing.T) {
	bubble(t, func(s *stage) {
		var asked atomic.Int32
		s.ca.onRoots = func() (*x509.CertPool, error) {
			if asked.Add(1) < 4 {
				return nil, errLost
			}
			pool := x509.NewCertPool()
			pool.AddCert(s.ca.root)
			return pool, nil
		}
		s.start()
		s.expectCertificate(s.awaitStatus(s.finalized("a.example"), acme.StatusValid))
		s.ca.expect(t, 1, 3, 1)
	})
}

func TestRootsThatCanNeverBeHadGiveUp(t *testing.T) {
	bubble(t, func(s *stage) {
		s.ca.onRoots = func() (*x509.CertPool, error) { return nil, errLost }
		s.start()
		s.expectProblem(s.awaitStatus(s.finalized("a.example"), acme.StatusInvalid), acme.ServerInternal)
		s.ca.expect(t, 1, maxSearches, 1)
		if s.log.find(slog.LevelError, "given up") == "" {
			t.Errorf("no error was logged")
		}
	})
}

func TestStoredCSRThatDoesNotParse(t *testing.T) {
	for name, intent := range map[string]bool{"before the submit": false, "before the search": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(s *stage) {
				o, err := s.store.Store.UpdateOrder(context.Background(), s.finalized("a.example"), func(o *acme.Order) error {
					o.CSR = []byte("damaged")
					if !intent {
						return nil
					}
					return o.Submit(acme.Intent{Since: s.now(), Deadline: s.now(), Backend: "ca"})
				})
				if err != nil {
					t.Fatal(err)
				}
				s.start()
				s.expectProblem(s.awaitStatus(o, acme.StatusInvalid), acme.ServerInternal)
				s.ca.expect(t, 0, 0, 0)
			})
		})
	}
}
