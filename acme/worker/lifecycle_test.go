package worker

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

func TestReloadTookAwayWhatAnOrderNeeds(t *testing.T) {
	for name, tt := range map[string]struct {
		profile, backend bool
		want             acme.ProblemType
	}{
		"the profile": {profile: true, want: acme.InvalidProfile},
		"the backend": {backend: true, want: acme.ServerInternal},
	} {
		t.Run(name+" before the submit", func(t *testing.T) {
			bubble(t, func(s *stage) {
				w := s.start()
				w.SetPolicy(s.without(tt.profile, tt.backend))
				o := s.finalized("a.example")
				w.Nudge(o)
				s.expectProblem(s.awaitStatus(o, acme.StatusInvalid), tt.want)
				s.ca.expect(t, 0, 0, 0)
			})
		})
		t.Run(name+" while another replica asks the CA", func(t *testing.T) {
			bubble(t, func(s *stage) {
				// The replica that has reloaded read the order before the other
				// one saved its intent.
				o := s.finalized("a.example")
				reloaded := s.start()
				reloaded.SetPolicy(s.without(tt.profile, tt.backend))
				answer := make(chan struct{})
				s.ca.onSubmit = func(_ context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
					<-answer
					return s.ca.issue(req), nil
				}
				s.start().Nudge(o)
				s.ca.await(t, 1, 0)
				reloaded.Nudge(o)
				reloaded.settled(t)
				if got := s.read(o); got.Status != acme.StatusProcessing {
					t.Errorf("order is %s (%v) while its CA is asked", got.Status, got.Error)
				}
				close(answer)
				s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
			})
		})
	}
	t.Run("the profile when there is an intent", func(t *testing.T) {
		bubble(t, func(s *stage) {
			s.ca.onSubmit = s.ca.applyAndLose
			w := s.start()
			o := s.finalized("a.example")
			s.awaitIntent(o)
			w.SetPolicy(s.without(true, false))
			s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
		})
	})
	t.Run("the profile when the answer was lost before it was applied", func(t *testing.T) {
		bubble(t, func(s *stage) {
			s.ca.onSubmit = lose
			w := s.start()
			o := s.finalized("a.example")
			s.awaitIntent(o)
			w.SetPolicy(s.without(true, false))
			s.expectProblem(s.awaitStatus(o, acme.StatusInvalid), acme.InvalidProfile)
			s.ca.expect(t, 1, 1, 0)
		})
	})
	t.Run("the backend when there is an intent, until it is restored", func(t *testing.T) {
		bubble(t, func(s *stage) {
			s.ca.onSubmit = s.ca.applyAndLose
			w := s.start()
			o := s.finalized("a.example")
			deadline := s.awaitIntent(o).Intent.Deadline
			w.SetPolicy(s.without(false, true))
			got := s.await(o, "put off", func(o *acme.Order) bool { return o.Wake.Sub(deadline) > 4*time.Minute })
			if got.Status != acme.StatusProcessing || got.Intent == nil {
				t.Errorf("order is %s with intent %v, want it to wait", got.Status, got.Intent)
			}
			if s.log.find(slog.LevelError, "order waits for a backend that is not configured") == "" {
				t.Errorf("no error was logged:\n%s", s.log)
			}
			w.SetPolicy(s.policy)
			s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
		})
	})
}

func TestShutdownWaitsForTheCAsAnswerAndSavesIt(t *testing.T) {
	bubble(t, func(s *stage) {
		answer := make(chan struct{})
		s.ca.onSubmit = func(ctx context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
			select {
			case <-answer:
			case <-ctx.Done():
				t.Errorf("the shutdown broke off a Submit")
			}
			return s.ca.issue(req), nil
		}
		w := s.start()
		o, later := s.finalized("a.example"), s.finalized("b.example")
		w.Nudge(o)
		s.ca.await(t, 1, 0)
		w.cancel()
		select {
		case <-w.ended:
			t.Fatal("Run returned while a CA was being asked")
		case <-time.After(10 * time.Second): // the other order is due meanwhile, and nudged
			w.Nudge(later)
		}
		close(answer)
		<-w.ended
		s.expectCertificate(s.read(o))
		if got := s.read(later); got.Version != later.Version {
			t.Errorf("an order was begun during the shutdown: %+v", got)
		}
		s.ca.expect(t, 1, 0, 1)
	})
}

func TestShutdownBreaksOffASearchWithoutCountingIt(t *testing.T) {
	bubble(t, func(s *stage) {
		s.ca.onSubmit = s.ca.applyAndLose
		s.ca.onFind = func(ctx context.Context, n int, req *acme.IssueRequest) (*acme.Issuance, error) {
			if n == maxSearches { // one more failure and the order would be given up
				<-ctx.Done()
				return nil, ctx.Err()
			}
			if n > maxSearches {
				return s.ca.honestFind(ctx, req)
			}
			return nil, errLost
		}
		w := s.start()
		o := s.finalized("a.example")
		s.ca.await(t, 1, maxSearches)
		begin := s.now()
		w.stop(t)
		if d := s.now().Sub(begin); d > time.Second {
			t.Errorf("the shutdown took %s", d)
		}
		if got := s.read(o); got.Status != acme.StatusProcessing || got.Searches != maxSearches-1 {
			t.Fatalf("order is %s (%v) after %d searches, want processing after %d", got.Status, got.Error, got.Searches, maxSearches-1)
		}
		s.start()
		s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
	})
}

// What a search proves during a shutdown is saved, but nothing new is begun.
func TestShutdownDuringASearchAsksTheCANoMore(t *testing.T) {
	bubble(t, func(s *stage) {
		s.ca.onSubmit = s.ca.first(1, lose)
		s.ca.onFind = func(ctx context.Context, _ int, _ *acme.IssueRequest) (*acme.Issuance, error) {
			<-ctx.Done()
			return nil, acme.ErrNotIssued
		}
		w := s.start()
		o := s.finalized("a.example")
		s.ca.await(t, 1, 1)
		w.stop(t)
		if got := s.read(o); got.Intent != nil {
			t.Errorf("the intent is still there")
		}
		s.ca.expect(t, 1, 1, 0)
		s.start()
		s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
	})
}

// boundaries are the places at which another state is left behind, in the order
// in which an order passes them.
var boundaries = []string{"before-intent", "intent-saved", "submitted", "certificate-claimed", "order-valid"}

// A worker dies at each boundary, and with it all that it was doing; another
// goes on.
func TestCrashAtEveryBoundary(t *testing.T) {
	for _, boundary := range boundaries {
		for answer, submit := range map[string]func(*stage) submission{
			"issued":           func(*stage) submission { return nil },
			"applied and lost": func(s *stage) submission { return s.ca.first(1, s.ca.applyAndLose) },
			"lost":             func(s *stage) submission { return s.ca.first(1, lose) },
			"not sent": func(s *stage) submission {
				return s.ca.first(1, func(context.Context, int, *acme.IssueRequest) (*acme.Issuance, error) {
					return nil, &acme.NotSentError{Err: errLost}
				})
			},
		} {
			t.Run(fmt.Sprintf("%s, CA's answer %s", boundary, answer), func(t *testing.T) {
				bubble(t, func(s *stage) {
					s.ca.onSubmit = submit(s)
					var first *runner
					died := make(chan struct{})
					var once atomic.Bool
					first = s.start(func(o *Options) {
						o.Boundary = func(name, _ string) {
							if name == boundary && once.CompareAndSwap(false, true) {
								first.cancel()
								close(died)
								runtime.Goexit()
							}
						}
					})
					o := s.finalized("a.example", "b.example")
					select {
					case <-died:
					case <-time.After(patience):
						t.Fatalf("no order passes %s", boundary)
					}
					<-first.ended
					submits, _, _ := s.ca.counts()
					s.start()
					s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
					if again, _, _ := s.ca.counts(); boundary == "certificate-claimed" && again != submits {
						t.Errorf("the CA was asked again for a certificate that was there")
					}
				})
			})
		}
	}
}

// The same with a panic, which only that job dies of.
func TestPanicAtEveryBoundary(t *testing.T) {
	for _, boundary := range boundaries {
		t.Run(boundary, func(t *testing.T) {
			bubble(t, func(s *stage) {
				var once atomic.Bool
				w := s.start(func(o *Options) {
					o.Boundary = func(name, _ string) {
						if name == boundary && once.CompareAndSwap(false, true) {
							panic("a defect at " + name)
						}
					}
				})
				o := s.finalized("a.example")
				w.Nudge(o)
				s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
				synctest.Wait() // the order is seen to be valid before the job ends
				if !once.Load() || s.log.find(slog.LevelError, "panic in a job") == "" {
					t.Errorf("panicked: %v; the log says\n%s", once.Load(), s.log)
				}
			})
		})
	}
}

// Reading a claimed order must not take the room that its work needs.
func TestClaimsAtTheLimitOfJobs(t *testing.T) {
	bubble(t, func(s *stage) {
		s.start(func(o *Options) { o.MaxJobs = 1 })
		var orders []*acme.Order
		for range 5 {
			orders = append(orders, s.finalized("a.example"))
		}
		begin := s.now()
		for _, o := range orders {
			s.awaitStatus(o, acme.StatusValid)
		}
		if d := s.now().Sub(begin); d > acme.Handoff+10*time.Second {
			t.Errorf("5 orders took %s with one job at a time", d)
		}
		s.ca.expect(t, 5, 0, 5)
	})
}

func TestManyOrdersAtOnce(t *testing.T) {
	bubble(t, func(s *stage) {
		s.start(func(o *Options) { o.MaxJobs = 16 })
		var orders []*acme.Order
		for range 100 {
			orders = append(orders, s.finalized("a.example"))
		}
		for _, o := range orders {
			s.awaitStatus(o, acme.StatusValid)
		}
		s.ca.expect(t, 100, 0, 100)
	})
}

func TestQueueThatCannotBeReadIsTriedAgain(t *testing.T) {
	bubble(t, func(s *stage) {
		o := s.finalized("a.example")
		s.awayUntil().Store(s.now().Add(time.Minute).UnixNano())
		s.start()
		s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
		if s.log.find(slog.LevelWarn, "queue cannot be read") == "" {
			t.Errorf("no warning was logged")
		}
	})
}

func TestWatchHasTheLatestVersionOnly(t *testing.T) {
	bubble(t, func(s *stage) {
		w := s.start()
		o := s.finalized("a.example")
		read, stopReading := w.Watch(o.ID)
		unread, stopUnread := w.Watch(o.ID) // no one blocks on a watcher who does not read
		w.Nudge(o)
		for got := range read {
			if got.Status == acme.StatusValid {
				break
			}
		}
		if got := <-unread; got.Status != acme.StatusValid {
			t.Errorf("the watcher who came late sees %s, want the latest version", got.Status)
		}
		stopReading()
		stopUnread()
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.watchers) != 0 {
			t.Errorf("%d watched orders are left", len(w.watchers))
		}
	})
}
