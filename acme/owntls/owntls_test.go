package owntls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

const minute = time.Minute

func TestNoCertificateYet(t *testing.T) {
	s := New(Options{Now: time.Now, Name: name})
	if cert, err := s.GetCertificate(&tls.ClientHelloInfo{ServerName: name}); cert != nil || err == nil {
		t.Errorf("GetCertificate = %v, %v; want an error", cert, err)
	}
	if s.Ready() == nil {
		t.Errorf("ready without a certificate")
	}
}

func TestFirstStartOrdersAndServes(t *testing.T) {
	bubble(t, func(s *stage) {
		r := s.start()
		s.awaitReady(r, 5*time.Second)
		if n := len(s.ordered()); n != 1 {
			t.Errorf("%d orders, want one", n)
		}
		roots := x509.NewCertPool()
		roots.AddCert(s.root)
		client, server := net.Pipe()
		done := make(chan error, 1)
		go func() {
			conn := tls.Server(server, r.config())
			done <- conn.Handshake()
		}()
		conn := tls.Client(client, &tls.Config{ServerName: name, RootCAs: roots, Time: time.Now})
		if err := conn.Handshake(); err != nil {
			t.Errorf("a client that trusts the root: %v", err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := len(conn.ConnectionState().PeerCertificates); n != 2 {
			t.Errorf("%d certificates served, want leaf and issuer", n)
		}
	})
}

func TestRestartFindsTheRecord(t *testing.T) {
	bubble(t, func(s *stage) {
		first := s.start()
		s.awaitReady(first, minute)
		first.stop()
		pass(24 * time.Hour)
		second := s.start()
		s.awaitReady(second, 2*time.Second)
		if a, b := first.serial(t), second.serial(t); a != b || len(s.ordered()) != 1 {
			t.Errorf("certificate %d before and %d after the restart, %d orders", a, b, len(s.ordered()))
		}
	})
}

func TestReplicasOrderOnce(t *testing.T) {
	bubble(t, func(s *stage) {
		var replicas []*runner
		for range 3 {
			replicas = append(replicas, s.start())
		}
		for _, r := range replicas {
			s.awaitReady(r, minute)
			if got, want := r.serial(t), replicas[0].serial(t); got != want {
				t.Errorf("replicas serve certificates %d and %d", want, got)
			}
		}
		if n := len(s.ordered()); n != 1 {
			t.Errorf("%d orders, want one", n)
		}
	})
}

func TestRenewalAtTwoThirdsOfLife(t *testing.T) {
	bubble(t, func(s *stage) {
		replicas := []*runner{s.start(), s.start()}
		for _, r := range replicas {
			s.awaitReady(r, minute)
		}
		pass(20*24*time.Hour - time.Hour)
		if n := len(s.ordered()); n != 1 {
			t.Fatalf("%d orders before two thirds of the life, want one", n)
		}
		pass(3 * time.Hour)
		orders := s.ordered()
		if len(orders) != 2 {
			t.Fatalf("%d orders after two thirds of the life, want two", len(orders))
		}
		for _, r := range replicas {
			if r.serial(t) != 3 {
				t.Errorf("a replica still serves certificate %d", r.serial(t))
			}
		}
	})
}

func TestRenewalOfShortCertificates(t *testing.T) {
	for label, tt := range map[string]struct{ lifetime, backdate time.Duration }{
		"of one hour":           {time.Hour, 0},
		"of ten minutes":        {10 * minute, 0},
		"dated back by a day":   {2 * time.Hour, 24 * time.Hour},
		"dated back by an hour": {24 * time.Hour, time.Hour},
	} {
		t.Run(label, func(t *testing.T) {
			bubble(t, func(s *stage) {
				s.profile.Lifetime, s.backdate = tt.lifetime, tt.backdate
				r := s.start()
				s.awaitReady(r, minute)
				const lives = 12
				for range lives * 60 {
					pass(tt.lifetime / 60)
					if err := r.Ready(); err != nil {
						t.Fatal(err)
					}
				}
				// Two thirds of a life each.
				if n := len(s.ordered()); n < lives || n > lives*2 {
					t.Errorf("%d orders in %d lives", n, lives)
				}
			})
		})
	}
}

func TestExpiredCertificateIsNotReady(t *testing.T) {
	bubble(t, func(s *stage) {
		s.profile.Lifetime = 24 * time.Hour
		r := s.start()
		s.awaitReady(r, minute)
		s.setRefuse(true)
		pass(s.profile.Lifetime + time.Hour)
		if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "ended") {
			t.Errorf("Ready = %v, want that the certificate ended", err)
		}
		if r.serial(t) != 2 {
			t.Errorf("serves certificate %d, want the old one for want of a better", r.serial(t))
		}
		s.setRefuse(false)
		s.awaitReady(r, 10*minute)
	})
}

// The process dies between the record and the order that it announces.
func TestCrashBetweenRecordAndOrder(t *testing.T) {
	bubble(t, func(s *stage) {
		var first *runner
		var crashed atomic.Bool
		started := make(chan struct{})
		s.store.fault = func(method string) error {
			if method == "CreateOrder" && crashed.CompareAndSwap(false, true) {
				<-started
				first.cancel()
				return context.Canceled
			}
			return nil
		}
		first = s.start()
		close(started)
		<-first.ended
		second := s.start()
		s.awaitReady(second, lostAfter+10*time.Second)
		if n := len(s.ordered()); n != 1 {
			t.Errorf("%d orders, want one", n)
		}
	})
}

// It dies when the order is made, before anyone is told.
func TestCrashAfterTheOrder(t *testing.T) {
	bubble(t, func(s *stage) {
		told := make(chan *acme.Order, 1)
		first := s.start(func(o *Options) { o.Queue = queueFunc(func(o *acme.Order) { told <- o }) })
		made := <-told
		first.stop()
		second := s.start()
		pass(5 * minute) // however long it takes
		s.Nudge(made)    // the queue brings it to a worker
		s.awaitReady(second, 10*time.Second)
		if n := len(s.ordered()); n != 1 {
			t.Errorf("%d orders, want one", n)
		}
	})
}

type queueFunc func(*acme.Order)

func (f queueFunc) Nudge(o *acme.Order) { f(o) }

func TestRefusedOrdersAreRepeatedLessAndLessOften(t *testing.T) {
	for label, n := range map[string]int{"by one replica": 1, "by three": 3} {
		t.Run(label, func(t *testing.T) {
			bubble(t, func(s *stage) {
				s.setRefuse(true)
				var replicas []*runner
				for range n {
					replicas = append(replicas, s.start())
				}
				pass(time.Hour)
				orders := s.ordered()
				// 2, 4, 8 ... 256 seconds, then five minutes each.
				if len(orders) < 10 || len(orders) > 22 {
					t.Errorf("%d orders in an hour", len(orders))
				}
				if last := orders[len(orders)-1].Sub(orders[len(orders)-2]); last < 4*minute {
					t.Errorf("at last an order followed the one before after %s", last)
				}
				s.setRefuse(false)
				for _, r := range replicas {
					s.awaitReady(r, 6*minute)
				}
				for _, r := range replicas {
					r.stop()
				}
				if !strings.Contains(s.log.String(), "not this name") {
					t.Errorf("the log does not say why:\n%s", &s.log)
				}
			})
		})
	}
}

func TestNameChanged(t *testing.T) {
	bubble(t, func(s *stage) {
		first := s.start()
		s.awaitReady(first, minute)
		first.stop()
		const other = "other.example"
		second := s.start(func(o *Options) { o.Name = other })
		s.awaitReady(second, minute)
		cert, err := second.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := cert.Leaf.VerifyHostname(other); err != nil || len(s.ordered()) != 2 {
			t.Errorf("%v, with %d orders; want a certificate of its own for the new name", err, len(s.ordered()))
		}
	})
}

func TestProfileThatComesLater(t *testing.T) {
	bubble(t, func(s *stage) {
		var profile atomic.Pointer[acme.Profile]
		r := s.start(func(o *Options) { o.Profile = profile.Load })
		pass(minute)
		if r.Ready() == nil {
			t.Fatal("ready without a profile")
		}
		profile.Store(s.profile)
		s.awaitReady(r, 3*minute)
		r.stop()
		if !strings.Contains(s.log.String(), "profile") {
			t.Errorf("the log does not say why:\n%s", &s.log)
		}
	})
}

// Each call to the store fails once in its turn.
func TestAnyCallToTheStoreMayFail(t *testing.T) {
	for k, more := int32(1), true; more; k++ {
		bubble(t, func(s *stage) {
			var calls atomic.Int32
			s.store.fault = func(method string) error {
				if calls.Add(1) == k {
					return fmt.Errorf("%s: %w", method, acme.ErrUnavailable)
				}
				return nil
			}
			r := s.start()
			s.awaitReady(r, 2*minute)
			if n := len(s.ordered()); n != 1 {
				t.Errorf("%d orders, want one", n)
			}
			more = calls.Load() >= k
		})
		if t.Failed() {
			t.Fatalf("this was with call %d failing", k)
		}
	}
}

func TestDamagedRecord(t *testing.T) {
	good := func(s *stage) record {
		r := s.start()
		s.awaitReady(r, minute)
		r.stop()
		data, _, err := s.store.Record(context.Background(), r.recordName())
		if err != nil {
			t.Fatal(err)
		}
		var rec record
		if err := json.Unmarshal(data, &rec); err != nil {
			t.Fatal(err)
		}
		return rec
	}
	for label, damage := range map[string]func(*record) []byte{
		"not JSON": func(*record) []byte { return []byte("{") },
		"no key":   func(r *record) []byte { r.Key = nil; return encode(t, r) },
		"no PEM":   func(r *record) []byte { r.Chain = []byte("x"); return encode(t, r) },
		"no certificate in the PEM": func(r *record) []byte {
			r.Chain = []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
			return encode(t, r)
		},
	} {
		t.Run(label, func(t *testing.T) {
			bubble(t, func(s *stage) {
				rec := good(s)
				if err := s.store.PutRecord(context.Background(), "own-tls:damaged.example", damage(&rec), 0); err != nil {
					t.Fatal(err)
				}
				r := s.start(func(o *Options) { o.Name = "damaged.example" })
				pass(minute)
				r.stop()
				if r.Ready() == nil || len(s.ordered()) != 1 {
					t.Errorf("Ready = %v with %d orders; want an error that an operator looks at", r.Ready(), len(s.ordered()))
				}
				if !strings.Contains(s.log.String(), `"level":"ERROR"`) {
					t.Errorf("no error was logged")
				}
			})
		})
	}
}

func encode(t *testing.T, r *record) []byte {
	t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
