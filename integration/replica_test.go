package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// A balancer hands TCP connections to backends in turn, past those that refuse.
type balancer struct {
	listener net.Listener
	backends []string

	mu   sync.Mutex
	next int
}

func startBalancer(t *testing.T, port int, backends ...string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{listener: l, backends: backends}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("balancer: %v", err)
				}
				return
			}
			running.Go(func() { b.serve(ctx, conn) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		running.Wait()
	})
}

func (b *balancer) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	for range b.backends {
		b.mu.Lock()
		address := b.backends[b.next%len(b.backends)]
		b.next++
		b.mu.Unlock()
		backend, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
		if err != nil {
			continue
		}
		stop := context.AfterFunc(ctx, func() { conn.Close(); backend.Close() })
		defer stop()
		var both sync.WaitGroup
		for _, pair := range [][2]net.Conn{{conn, backend}, {backend, conn}} {
			both.Go(func() {
				_, _ = io.Copy(pair[0], pair[1]) // ends when either side does
				pair[0].Close()
				pair[1].Close()
			})
		}
		both.Wait()
		return
	}
}

// newReplicas starts two replicas on one Redis and one CA behind a balancer. Both
// have the failpoint, and the first to reach it dies.
func newReplicas(t *testing.T, failpoint string) (*world, []*server) {
	t.Helper()
	return newReplicasWith(t, failpoint, func(tree) {})
}

func newReplicasWith(t *testing.T, failpoint string, change func(config tree)) (*world, []*server) {
	t.Helper()
	port := freePort(t)
	w := newWorld(t, plan{store: redisType, backend: privateCA, noServer: true, change: func(c tree) {
		c["server"].(tree)["external_url"] = "https://localhost:" + strconv.Itoa(port)
		change(c)
	}})
	replicas := []*server{w.server, w.newServer("replica", w.server.config)}
	for _, s := range replicas {
		if failpoint != "" {
			s.failpoint = failpoint + "@" + w.armFile()
		}
		s.start()
	}
	for _, s := range replicas {
		s.awaitReady()
	}
	startBalancer(t, port, replicas[0].address(), replicas[1].address())
	return w, replicas
}

func TestOneOfTwoReplicasDiesAndTheOtherFinishes(t *testing.T) {
	t.Parallel()
	for _, boundary := range boundaries {
		t.Run(boundary, func(t *testing.T) {
			t.Parallel()
			w, replicas := newReplicas(t, boundary)
			c, ctx := w.newClient(w.server.directory()), deadline(t, 90*time.Second)
			c.acme.HTTPClient = w.spreadingClient()
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			w.arm()
			flows := w.flows(ctx, c, 4)
			flows()
			if !w.fired() {
				t.Fatal("no replica has reached the failpoint")
			}
			dead := 0
			for _, s := range replicas {
				if s.proc.running() != nil {
					dead++
				}
			}
			if dead != 1 {
				t.Errorf("%d replicas have died, want 1", dead)
			}
		})
	}
}

func TestTwoReplicasShareTheWork(t *testing.T) {
	t.Parallel()
	w, replicas := newReplicas(t, "")
	c, ctx := w.newClient(w.server.directory()), deadline(t, 90*time.Second)
	c.acme.HTTPClient = w.spreadingClient()
	if err := c.register(ctx); err != nil {
		t.Fatal(err)
	}
	w.flows(ctx, c, 12)()
	for _, s := range replicas {
		if !strings.Contains(string(readFile(t, s.proc.stderr)), "order finalized") {
			t.Errorf("%s has had no order to finalize", s.name)
		}
	}
}

// Clients repeat finalize while they wait, and a balancer takes it to another
// replica: that must neither issue again nor search for what is still under way.
func TestFinalizeIsRepeatedAtBothReplicasWhileTheCAIsAtIt(t *testing.T) {
	t.Parallel()
	w, replicas := newReplicasWith(t, "", func(c tree) {
		c["server"].(tree)["finalize_hold"] = "0s"
		c["backends"].(tree)["ca"].(tree)["timeout"] = "20s"
	})
	c, ctx := w.newClient(w.server.directory()), deadline(t, 90*time.Second)
	c.acme.HTTPClient = w.spreadingClient()
	if err := c.register(ctx); err != nil {
		t.Fatal(err)
	}
	order, err := c.prove(ctx, "again."+zone)
	if err != nil {
		t.Fatal(err)
	}
	w.sim.hold("signEndCsr")
	key := newKey(t)
	csr := newCSR(t, key, "again."+zone)
	const times = 20
	answers := make(chan error, times)
	for range times {
		go func() {
			err := errors.New("ended early") // by t.Fatal
			defer func() { answers <- err }()
			var got string
			if got, err = w.finalizeOnce(ctx, c, order, csr); err == nil && got != acme.StatusProcessing {
				err = fmt.Errorf("finalize is answered %s, want processing", got)
			}
		}()
	}
	for range times {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	w.sim.awaitHeld()
	if got, err := w.finalizeOnce(ctx, c, order, newCSR(t, newKey(t), "again."+zone)); err == nil || !strings.Contains(err.Error(), ":orderNotReady") {
		t.Errorf("finalize with another CSR is answered %s, %v; want orderNotReady", got, err)
	}
	w.sim.release()
	r, err := c.finish(ctx, order, key, "again."+zone)
	if err != nil {
		t.Fatal(err)
	}
	w.checkResult(r, acme.StatusValid)
	w.checkIssued(r, 1)
	if got := w.sim.counters().Calls["signEndCsr"]; got != 1 {
		t.Errorf("the CA was asked %d times, want once", got)
	}
	for _, s := range replicas {
		if log := string(readFile(t, s.proc.stderr)); strings.Contains(log, "search") {
			t.Errorf("%s has searched for a certificate that was still to come", s.name)
		}
	}
}
