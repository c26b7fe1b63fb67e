package integration

import (
	"math/rand/v2"
	"testing"
	"time"
)

// boundaries are the places where a crash leaves another state behind, in the
// order in which an order passes them.
var boundaries = []string{"validated", "before-intent", "intent-saved", "submitted", "certificate-claimed", "order-valid"}

func TestACrashAtAnyBoundaryLosesNoOrderAndIssuesOnce(t *testing.T) {
	t.Parallel()
	for _, setup := range []struct {
		store, backend string
		shared         bool // the CA issues for others too
	}{
		{store: bolt, backend: local},
		{store: bolt, backend: privateCA},
		{store: redisType, backend: privateCA},
		{store: redisType, backend: privateCA, shared: true},
	} {
		name := setup.store + " " + setup.backend
		if setup.shared {
			name += " shared"
		}
		for _, boundary := range boundaries {
			t.Run(name+" "+boundary, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, plan{store: setup.store, backend: setup.backend, failpoint: boundary, change: func(c tree) {
					if setup.shared {
						c["backends"].(tree)["ca"].(tree)["exclusive"] = false
					}
				}})
				if setup.shared {
					w.sim.control("POST", "issue", tree{"names": []string{"someone-else." + zone}}, nil)
				}
				w.survivesACrash()
			})
		}
	}
}

// survivesACrash runs a flow through a server that dies once on the way, and
// is started again.
func (w *world) survivesACrash() {
	w.t.Helper()
	c := w.newClient(w.server.directory())
	ctx := deadline(w.t, 90*time.Second)
	if err := c.register(ctx); err != nil {
		w.t.Fatal(err)
	}
	w.arm()
	flows := w.flows(ctx, c, 1)
	if err := w.server.proc.exited(30 * time.Second); err != nil {
		w.t.Fatalf("the failpoint was not reached: %v", err)
	}
	if !w.fired() {
		w.t.Fatalf("the server ended before its failpoint: %s", w.server.proc.cmd.ProcessState)
	}
	w.server.restart()
	flows()

	// The same names again: another order, another certificate.
	w.flows(ctx, c, 1)()
}

// checkIssued checks how many certificates the CA has made for an order's key.
// The local CA keeps no count.
func (w *world) checkIssued(r *result, want int64) {
	w.t.Helper()
	if w.sim == nil {
		return
	}
	if got := w.sim.issuedFor(r.key); got != want {
		w.t.Errorf("the CA issued %d certificates for the order of %v, want %d", got, r.names, want)
	}
}

// Killed at no particular place, again and again, with several orders under way.
func TestAServerThatIsKilledAgainAndAgainIssuesOnce(t *testing.T) {
	t.Parallel()
	for _, store := range []string{bolt, redisType} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, plan{store: store, backend: privateCA})
			c, ctx := w.newClient(w.server.directory()), deadline(t, 120*time.Second)
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			w.sim.inject(fault{Kind: "latency", Operation: "signEndCsr", Count: -1, DelayMS: 300})
			flows := w.flows(ctx, c, 10)
			for range 6 {
				// Not to wait for anything, but to strike somewhere else each time.
				if err := pause(ctx, rand.N(300*time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				w.server.proc.kill()
				w.server.restart()
			}
			flows()
			if got := w.sim.counters(); got.MostForOneKey != 1 || got.Issued != 10 {
				t.Errorf("the CA issued %d certificates, %d at most for a key; want 10 and 1", got.Issued, got.MostForOneKey)
			}
		})
	}
}
