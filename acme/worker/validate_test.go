package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

var account = &acme.Account{Thumbprint: "thumbprint", KeyEpoch: 3}

// responded stores a pending order whose client has responded to the http-01
// challenges of all of its names.
func (s *stage) responded(names ...string) *acme.Order {
	s.t.Helper()
	o, err := s.store.Store.UpdateOrder(context.Background(), s.pending(names...), func(o *acme.Order) error {
		for i := range o.Authorizations {
			if err := o.Respond(i, acme.HTTP01, account, s.now()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return o
}

func TestValidationSucceeds(t *testing.T) {
	bubble(t, func(s *stage) {
		w := s.start()
		o := s.responded("a.example")
		w.Nudge(o)
		got := s.awaitStatus(o, acme.StatusReady)
		a := got.Authorizations[0]
		if c := a.Challenge(acme.HTTP01); a.Status != acme.StatusValid || c.Status != acme.StatusValid || c.Validated.IsZero() {
			t.Errorf("authorization %+v", a)
		}
		v := s.checker.calls[0]
		if len(s.checker.calls) != 1 || v.OrderID != o.ID || v.AccountID != o.AccountID || v.Type != acme.HTTP01 ||
			v.Identifier.Value != "a.example" || v.Token != a.Token || v.KeyAuthorization != a.Token+".thumbprint" {
			t.Errorf("asked %d times, at last for %+v", len(s.checker.calls), v)
		}
		found, err := s.store.Fetch(context.Background(), acme.Lookup{Proofs: []acme.ProofKey{{AccountID: o.AccountID, Name: "dns:a.example"}}}, s.now())
		if err != nil {
			t.Fatal(err)
		}
		// The order outlives the profile's two hours, and no proof ends before it.
		if p := found.Proofs[0]; p == nil || p.KeyEpoch != 3 || p.Expires.Before(got.Expires) {
			t.Errorf("proof is %+v, want one of epoch 3 until at least %s", p, got.Expires)
		}
	})
}

func TestValidationFails(t *testing.T) {
	bubble(t, func(s *stage) {
		s.checker.onValidate = func(context.Context, *acme.Validation) error {
			return acme.Problemf(acme.Connection, "connection refused").WithCause(errors.New("dial tcp"))
		}
		w := s.start()
		for n := 1; n <= 3; n++ {
			// All orders are one account's, so that the limit is too.
			o := s.responded("a.example")
			o.AccountID = "1200vhnczb00jqvj6fx6y2y66fdf"
			w.Nudge(o)
			got := s.awaitStatus(o, acme.StatusInvalid)
			s.expectProblem(got, acme.Connection)
			w.settled(t)
			found, err := s.store.Fetch(context.Background(), acme.Lookup{
				Limits: []acme.LimitKey{acme.FailedValidations(o.AccountID, o.Authorizations[0].Identifier, s.policy.FailedValidations)},
			}, s.now())
			if err != nil {
				t.Fatal(err)
			}
			if limited := found.Limited != nil; limited != (n >= 2) {
				t.Errorf("after %d failures of 2 allowed, limited: %v", n, limited)
			}
		}
		if got := w.metric(t, "acme_bridge_orders_total", "invalid"); got != 3 {
			t.Errorf("%v invalid orders counted, want 3", got)
		}
	})
}

func TestHundredChallengesOfOneOrder(t *testing.T) {
	bubble(t, func(s *stage) {
		const n = 100
		var names []string
		for i := range n {
			names = append(names, fmt.Sprintf("n%d.example", i))
		}
		arrived, all := make(chan struct{}, n), make(chan struct{})
		s.checker.onValidate = func(context.Context, *acme.Validation) error {
			arrived <- struct{}{}
			<-all // no one is validated before everyone is under way
			return nil
		}
		w := s.start()
		o := s.responded(names...)
		w.Nudge(o)
		for range n {
			<-arrived
		}
		close(all)
		s.awaitStatus(o, acme.StatusReady)
		if got := s.checker.count(); got != n {
			t.Errorf("%d validations, want %d", got, n)
		}
	})
}

func TestOneFailureOfManyEndsTheOrder(t *testing.T) {
	bubble(t, func(s *stage) {
		s.checker.onValidate = func(_ context.Context, v *acme.Validation) error {
			if v.Identifier.Value == "b.example" {
				return acme.Problemf(acme.DNS, "no such name")
			}
			return nil
		}
		w := s.start()
		o := s.responded("a.example", "b.example", "c.example")
		w.Nudge(o)
		got := s.awaitStatus(o, acme.StatusInvalid)
		s.expectProblem(got, acme.DNS)
		w.settled(t)
		if again := s.read(o); again.Version != got.Version && again.Status != acme.StatusInvalid {
			t.Errorf("order became %s", again.Status)
		}
	})
}

func TestValidationBrokenOffIsMadeAgain(t *testing.T) {
	for name, trouble := range map[string]func(*stage){
		"by the validator": func(s *stage) {
			s.checker.onValidate = func(context.Context, *acme.Validation) error {
				if s.checker.count() == 1 {
					return errors.New("too many validations of this host at once")
				}
				return nil
			}
		},
		"by a panic": func(s *stage) {
			s.checker.onValidate = func(context.Context, *acme.Validation) error {
				if s.checker.count() == 1 {
					panic("the validator has a defect")
				}
				return nil
			}
		},
		"by a store that is away": func(s *stage) {
			s.store.fault = once(acme.ErrUnavailable, func(method string, _ bool, _ *acme.Order) bool { return method == "UpdateOrder" })
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(s *stage) {
				trouble(s)
				w := s.start()
				o := s.responded("a.example")
				w.Nudge(o)
				s.awaitStatus(o, acme.StatusReady)
				if got := s.checker.count(); got != 2 {
					t.Errorf("validated %d times, want 2", got)
				}
			})
		})
	}
}

func TestShutdownBreaksOffAValidationAndAnotherWorkerMakesIt(t *testing.T) {
	bubble(t, func(s *stage) {
		begun := make(chan struct{}, 2)
		s.checker.onValidate = func(ctx context.Context, _ *acme.Validation) error {
			begun <- struct{}{}
			if s.checker.count() > 1 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		w := s.start()
		o := s.responded("a.example")
		w.Nudge(o)
		<-begun
		begin := s.now()
		w.stop(t)
		if d := s.now().Sub(begin); d > time.Second {
			t.Errorf("the shutdown took %s", d)
		}
		if got := s.read(o); got.Status != acme.StatusPending || got.Wake.IsZero() {
			t.Fatalf("order is %s and wakes at %v, want it pending and in the queue", got.Status, got.Wake)
		}
		if line := s.log.find(slog.LevelWarn, ""); line != "" {
			t.Errorf("a shutdown is no trouble, but the log says %s", line)
		}
		s.start()
		s.awaitStatus(o, acme.StatusReady)
	})
}

func TestCrashAfterAValidation(t *testing.T) {
	for name, problem := range map[string]*acme.Problem{
		"that succeeded": nil,
		"that failed":    acme.Problemf(acme.Unauthorized, "wrong content"),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(s *stage) {
				s.checker.onValidate = func(context.Context, *acme.Validation) error {
					if problem != nil {
						return problem
					}
					return nil
				}
				var first *runner
				died := make(chan struct{})
				first = s.start(func(o *Options) {
					o.Boundary = func(string, string) {
						first.cancel()
						close(died)
						runtime.Goexit()
					}
				})
				o := s.responded("a.example")
				<-died
				<-first.ended
				s.start()
				want := acme.StatusReady
				if problem != nil {
					want = acme.StatusInvalid
				}
				s.awaitStatus(o, want)
			})
		})
	}
}

// However validations go, an order does not keep the worker busy after its end.
func TestPendingOrderEndsWhenItExpires(t *testing.T) {
	for name, trouble := range map[string]func(*stage){
		"while it is validated": func(s *stage) {
			s.checker.onValidate = func(context.Context, *acme.Validation) error {
				<-time.After(s.profile.OrderLifetime + time.Minute)
				return nil
			}
		},
		"with validations that are always broken off": func(s *stage) {
			s.checker.onValidate = func(context.Context, *acme.Validation) error { return errLost }
		},
		"in a directory that is not configured any more": func(s *stage) { s.policy.Directories = nil },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(s *stage) {
				s.profile.OrderLifetime = time.Hour
				trouble(s)
				s.start()
				o := s.responded("a.example")
				got := s.awaitStatus(o, acme.StatusInvalid)
				if !got.Wake.IsZero() {
					t.Errorf("it wakes at %s", got.Wake)
				}
				if late := s.now().Sub(o.Expires); late < 0 || late > 3*time.Minute {
					t.Errorf("it ended %s after it expired", late)
				}
			})
		})
	}
}
