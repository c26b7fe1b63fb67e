package worker

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/storage/redis"
	"github.com/acme-bridge/acme-bridge/storage/storagetest"
)

// A clock runs with the real one, and can be set forward.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time           { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) forward(by time.Duration) { c.ahead.Add(int64(by)) }

// overRedis sets a stage on a Redis server of the test's own, in real time.
func overRedis(t *testing.T, settings ...string) (*stage, *clock, *storagetest.Server) {
	t.Helper()
	server, clock := storagetest.StartRedis(t, settings...), &clock{}
	return newStage(t, openRedis(t, server), clock.now), clock, server
}

func openRedis(t *testing.T, server *storagetest.Server) *redis.Store {
	t.Helper()
	store, err := redis.New(redis.Options{Addresses: []string{server.Addr}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

// replica sets a worker on connections of its own that looks at the queue all
// the time.
func (s *stage) replica(server *storagetest.Server, set ...func(*Options)) *runner {
	s.t.Helper()
	own := &testStore{Store: openRedis(s.t, server), bell: s.store.bell}
	return s.start(append([]func(*Options){func(o *Options) { o.Store, o.Poll = own, 5*time.Millisecond }}, set...)...)
}

// Security lesson 16: however many look at an order, one asks the CA.
func TestLesson16_FiftyNudgesAndClaimsOverThreeReplicas(t *testing.T) {
	s, clock, server := overRedis(t)
	replicas := []*runner{s.replica(server), s.replica(server), s.replica(server)}
	answer := make(chan struct{})
	s.ca.onSubmit = func(_ context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
		<-answer // so that all who look see the order processing
		return s.ca.issue(req), nil
	}
	o := s.finalized("a.example")
	clock.forward(acme.Handoff + time.Second) // due, too
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() { replicas[i%3].Nudge(o) })
	}
	all.Wait()
	s.ca.await(t, 1, 0)
	for _, r := range replicas {
		r.Nudge(s.read(o))
	}
	close(answer)
	s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
	for _, r := range replicas {
		r.stop(t)
	}
	s.ca.expect(t, 1, 0, 1)
}

func TestManyOrdersOverThreeReplicas(t *testing.T) {
	s, clock, server := overRedis(t)
	replicas := []*runner{s.replica(server), s.replica(server), s.replica(server)}
	const n = 50
	var orders []*acme.Order
	for i := range n {
		o := s.finalized(fmt.Sprintf("n%d.example", i))
		orders = append(orders, o)
		for _, r := range replicas {
			r.Nudge(o)
		}
	}
	clock.forward(acme.Handoff + time.Second)
	seen := make(map[string]bool)
	for _, o := range orders {
		got := s.awaitStatus(o, acme.StatusValid)
		if seen[got.Certificate.ID] {
			t.Errorf("two orders have certificate %s", got.Certificate.ID)
		}
		seen[got.Certificate.ID] = true
	}
	s.ca.expect(t, n, 0, n)
}

// Security lesson 17: a replica dies at each boundary, and the others go on as
// soon as its deadline has passed.
func TestLesson17_ReplicaDiesAtEveryBoundary(t *testing.T) {
	s, clock, server := overRedis(t)
	for _, boundary := range boundaries {
		t.Run(boundary, func(t *testing.T) {
			s.t = t
			s.ca = newCA(t, clock.now)
			s.ca.owner = s.store
			s.policy.Issuers = map[string]acme.Issuer{"ca": s.ca}
			var doomed *runner
			died := make(chan struct{})
			doomed = s.replica(server, func(o *Options) {
				o.Boundary = func(name, _ string) {
					if name == boundary {
						doomed.cancel()
						close(died)
						runtime.Goexit()
					}
				}
			})
			o := s.finalized("a.example")
			doomed.Nudge(o)
			<-died
			<-doomed.ended
			s.replica(server)
			s.replica(server)
			clock.forward(s.ca.timeout + deadlineMargin + acme.Handoff)
			s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
		})
	}
}

// All replicas validate all challenges of one order at once, and all their
// saves compete for its version.
func TestHundredChallengesOverThreeReplicas(t *testing.T) {
	s, clock, server := overRedis(t)
	replicas := []*runner{s.replica(server), s.replica(server), s.replica(server)}
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("n%d.example", i))
	}
	o := s.responded(names...)
	for _, r := range replicas {
		r.Nudge(o)
	}
	// What is not saved because others were faster too often comes again with
	// the queue.
	for _, r := range replicas {
		r.settled(t)
	}
	for s.read(o).Status == acme.StatusPending {
		clock.forward(time.Minute)
		for _, r := range replicas {
			r.settled(t)
		}
	}
	s.awaitStatus(o, acme.StatusReady)
}

// Redis dies while the CA signs, and comes back with what it had promised.
func TestRedisRestartsBetweenAnswerAndSave(t *testing.T) {
	s, _, server := overRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	w := s.replica(server)
	killed := make(chan struct{})
	s.ca.onSubmit = func(_ context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
		defer close(killed)
		server.Kill()
		return s.ca.issue(req), nil
	}
	o := s.finalized("a.example")
	w.Nudge(o)
	<-killed
	server.Start(t)
	s.expectCertificate(s.awaitStatus(o, acme.StatusValid))
	s.ca.expect(t, 1, 0, 1)
}
