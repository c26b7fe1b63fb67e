package globaldns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
	"github.com/acme-bridge/acme-bridge/publisher"
)

const name = "_dcv.a.example.com"

func TestPublishCreatesAppliesAndConfirms(t *testing.T) {
	for _, quoted := range []bool{true, false} {
		r := newRig(t, nil)
		r.behave(func(b *ncloudtest.DNSBehaviour) { b.QuotedTXT = quoted })
		r.edit("_dcv.a", "TXT", "somebody else's", true)
		for range 3 {
			r.publish("_DCV.a.example.com.", "value-1", true)
		}
		if got, want := r.served("TXT"), []string{"_dcv.a somebody else's", "_dcv.a value-1"}; !slices.Equal(got, want) {
			t.Errorf("quoted %t: got %q, want %q", quoted, got, want)
		}
		if n := r.sim.Counters().DNS; n.Created != 1 || n.Applies != 1 {
			t.Errorf("got %d created, %d applies, want 1 of each", n.Created, n.Applies)
		}
		for range 2 {
			if err := r.Remove(t.Context(), name, "value-1"); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := r.served("TXT"), []string{"_dcv.a somebody else's"}; !slices.Equal(got, want) {
			t.Errorf("after Remove: got %q, want %q", got, want)
		}
		if n := r.sim.Counters().DNS; n.Deleted != 1 || n.Applies != 2 {
			t.Errorf("got %d deleted, %d applies, want 1 and 2", n.Deleted, n.Applies)
		}
	}
}

func TestTheRecordOfTheDomainItself(t *testing.T) {
	r := newRig(t, nil)
	r.publish("example.com", "v", true)
	if got, want := r.served("TXT"), []string{"@ v"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCoversFindsTheLongestZoneOfThatName(t *testing.T) {
	r := newRig(t, nil)
	for n := range 30 { // more than a page that the search finds as well
		r.addDomain(fmt.Sprintf("%d-sub.example.com", n))
	}
	r.addDomain("sub.example.com")
	for _, tt := range []struct{ name, zone string }{
		{"example.com", "example.com"}, {"*.Example.com", "example.com"}, {"x.y.example.com.", "example.com"},
		{"a.sub.example.com", "sub.example.com"}, {"sub.example.com", "sub.example.com"}, {"a.29-sub.example.com", "29-sub.example.com"},
		{"xexample.com", ""}, {"example.org", ""}, {"com", ""},
	} {
		got, err := r.Covers(t.Context(), tt.name)
		if err != nil || got != (tt.zone != "") {
			t.Errorf("%s: got %t, %v", tt.name, got, err)
		}
		if w, _ := r.zone(t.Context(), tt.name); w != nil && w.zone != tt.zone {
			t.Errorf("%s: got zone %s, want %s", tt.name, w.zone, tt.zone)
		}
	}
	if _, err := r.Publish(t.Context(), "_dcv.example.org", "v"); !errors.Is(err, publisher.ErrBlocked) || !strings.Contains(err.Error(), "no zone") {
		t.Errorf("got %v", err)
	}
	r.addDomain("example.org")
	r.clock.Advance(noZoneAge)
	if got, err := r.Covers(t.Context(), "example.org"); !got || err != nil {
		t.Errorf("a new zone: got %t, %v", got, err)
	}
}

func TestForeignEditsAreLeftAlone(t *testing.T) {
	r := newRig(t, nil)
	r.edit("www", "A", "192.0.2.1", false)
	for _, call := range []func() error{
		func() error { _, err := r.Publish(t.Context(), name, "v"); return err },
		func() error { return r.Check(t.Context(), name) },
	} {
		if err := call(); !errors.Is(err, publisher.ErrBlocked) || !strings.Contains(err.Error(), "foreign_edits") {
			t.Errorf("got %v", err)
		}
	}
	if n := r.sim.Counters().DNS; n.Created != 0 || n.Applies != 0 || n.ForeignApplied != 0 {
		t.Errorf("got %+v, want nothing done", n)
	}
	r.applyElsewhere()
	r.publish(name, "v", true)
	if n := r.sim.Counters().DNS; n.ForeignApplied != 1 || n.Applies != 1 { // by the other person
		t.Errorf("got %+v", n)
	}
	r.edit("www2", "A", "192.0.2.1", false)
	if err := r.Remove(t.Context(), name, "v"); !errors.Is(err, publisher.ErrBlocked) {
		t.Errorf("Remove: got %v", err)
	}
	r.publish(name, "v", true) // served as before
}

func TestForeignEditsAreAppliedWhereThatIsConfigured(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.ForeignEdits = ApplyForeignEdits })
	r.edit("www", "A", "192.0.2.1", false)
	r.publish(name, "v", true)
	if got := r.served("A"); len(got) != 1 || !r.logged("edits of somebody else") {
		t.Errorf("got %q, log %s", got, r.log)
	}
}

func TestForeignEditsBegunWhileOurRecordIsOnItsWayDoNotMatter(t *testing.T) {
	r := newRig(t, nil)
	r.behave(func(b *ncloudtest.DNSBehaviour) { b.ServeDelayMS = 90_000 })
	r.publish(name, "v", false)
	if !r.logged("has no TXT record there") || !r.logged("zone changed and applied") {
		t.Errorf("log: %s", r.log)
	}
	r.edit("www", "A", "192.0.2.1", false)
	r.publish(name, "v", false)
	r.clock.Advance(90 * time.Second)
	r.publish(name, "v", true)
	if n := r.sim.Counters().DNS; n.Applies != 1 || n.ForeignApplied != 0 {
		t.Errorf("got %+v", n)
	}
}

func TestACNAMEInTheWay(t *testing.T) {
	r := newRig(t, nil)
	r.edit("_dcv.a", "CNAME", "elsewhere.test", true)
	if _, err := r.Publish(t.Context(), name, "v"); !errors.Is(err, publisher.ErrBlocked) || !strings.Contains(err.Error(), "CNAME") {
		t.Errorf("got %v", err)
	}
	if n := r.sim.Counters().DNS; n.Created != 0 || n.Applies != 0 {
		t.Errorf("got %+v", n)
	}
}

func TestChangesThatComeMeanwhileShareOneApply(t *testing.T) {
	for _, tt := range []struct {
		name    string
		blocked bool // one of them cannot be made
	}{{"all valid", false}, {"one not valid", true}} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			hold, err := r.sim.HoldCalls("applyDnsRecords", ncloudtest.Before, 1)
			if err != nil {
				t.Fatal(err)
			}
			const more = 8
			var orders sync.WaitGroup
			publish := func(host string, wantBlocked bool) {
				orders.Go(func() {
					served, err := r.Publish(t.Context(), host+".example.com", "v")
					if served == wantBlocked || errors.Is(err, publisher.ErrBlocked) != wantBlocked {
						t.Errorf("%s: got %t, %v", host, served, err)
					}
				})
			}
			publish("first", false)
			<-hold.Entered()
			for n := range more {
				publish(fmt.Sprint("more", n), false)
			}
			waiting := more
			if tt.blocked {
				publish("not valid", true)
				waiting++
			}
			w, err := r.zone(t.Context(), "example.com")
			if err != nil {
				t.Fatal(err)
			}
			await(t, func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return len(w.waiting) == waiting
			})
			r.sim.Release(hold, ncloudtest.Continue)
			orders.Wait()
			if n := r.sim.Counters().DNS; n.Created != more+1 || n.Applies != 2 {
				t.Errorf("got %d created and %d applies, want %d and 2", n.Created, n.Applies, more+1)
			}
		})
	}
}

// await polls for what has no event.
func await(t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not happen")
		}
	}
}

func TestLostAnswersNeverMakeASecondRecord(t *testing.T) {
	for _, operation := range []string{"createDnsRecords", "applyDnsRecords"} {
		for _, kind := range []ncloudtest.Kind{ncloudtest.DropBefore, ncloudtest.DropAfter, ncloudtest.TimeoutAfter, ncloudtest.Throttle} {
			t.Run(operation+" "+string(kind), func(t *testing.T) {
				r := newRig(t, nil)
				r.inject(ncloudtest.Fault{Kind: kind, Operation: operation})
				if served, err := r.Publish(t.Context(), name, "v"); err == nil || served || errors.Is(err, publisher.ErrBlocked) {
					t.Fatalf("got %t, %v, want an error that may pass", served, err)
				}
				r.publish(name, "v", true)
				if got, want := r.served("TXT"), []string{"_dcv.a v"}; !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
				if got := r.sim.Counters().DNS.Created; got != 1 {
					t.Errorf("got %d created, want 1", got)
				}
			})
		}
	}
}

// leave writes the lease that a replica left which ended with edits of its own.
func (r *rig) leave(edited time.Time) {
	r.t.Helper()
	data, err := json.Marshal(lease{Owner: "dead", Until: r.clock.Now().Add(leaseTime), Edited: edited})
	if err != nil {
		r.t.Fatal(err)
	}
	r.store.data["globaldns:example.com"], r.store.ver["globaldns:example.com"] = data, 7
}

func TestEditsThatADeadReplicaLeftAreApplied(t *testing.T) {
	r := newRig(t, nil)
	r.edit("_dcv.b", "TXT", "of the dead", false)
	r.leave(r.clock.Now())
	r.publish(name, "v", false)
	if !r.logged("another replica writes") || r.sim.Counters().DNS.Created != 0 {
		t.Errorf("while the lease runs: got %+v, log %s", r.sim.Counters().DNS, r.log)
	}
	r.clock.Advance(leaseTime)
	r.publish(name, "v", true)
	if got := r.served("TXT"); len(got) != 2 || !r.logged("left unapplied") {
		t.Errorf("got %q, log %s", got, r.log)
	}
}

func TestEditsAreNotTakenForOursForever(t *testing.T) {
	r := newRig(t, nil)
	r.edit("_dcv.b", "TXT", "of whom?", false)
	r.leave(r.clock.Now())
	r.clock.Advance(ownEdits)
	if _, err := r.Publish(t.Context(), name, "v"); !errors.Is(err, publisher.ErrBlocked) {
		t.Errorf("got %v", err)
	}
	r.applyElsewhere()
	r.publish(name, "v", true)
}

func TestReplicasWriteOneAfterTheOther(t *testing.T) {
	r := newRig(t, nil)
	other := r.replica(nil)
	var orders sync.WaitGroup
	for n := range 10 {
		orders.Go(func() {
			p := []*Publisher{r.Publisher, other}[n%2]
			host := fmt.Sprintf("h%d.example.com", n/2) // each replica publishes two records there
			await(t, func() bool {
				served, err := p.Publish(t.Context(), host, fmt.Sprint("v", n))
				if err != nil {
					t.Error(err)
				}
				return served
			})
		})
	}
	orders.Wait()
	if got := r.served("TXT"); len(got) != 10 {
		t.Errorf("got %q, want 10 records", got)
	}
	if got := r.sim.Counters().DNS.Created; got != 10 {
		t.Errorf("got %d created, want 10", got)
	}
}

func TestAStoreThatIsAwayStopsAllWrites(t *testing.T) {
	r := newRig(t, nil)
	r.store.err = acme.ErrUnavailable
	if _, err := r.Publish(t.Context(), name, "v"); !errors.Is(err, acme.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if n := r.sim.Counters().DNS; n.Created != 0 || n.Applies != 0 {
		t.Errorf("got %+v", n)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	const x6 = `{"result":"FAIL","error":{"errorCode":"X00006","message":"no","devMessage":"no"}}`
	const x7 = `{"result":"FAIL","error":{"errorCode":"X00007","message":"bad","devMessage":"bad","moreInfo":{"validationInfo":["?"]}}}`
	for _, tt := range []struct {
		operation string
		status    int
		body      string
		want      string
	}{
		{"listDnsDomains", 401, `{"error":{"errorCode":"200","message":"Authentication Failed"}}`, "refuses the access key"},
		{"listDnsRecords", 403, x6, "permission"},
		{"getDnsDomain", 400, x6, "permission"},
		{"createDnsRecords", 400, x7, "does not accept the record"},
		{"createDnsRecords", 200, x7, "does not accept the record"},
		{"applyDnsRecords", 403, ``, "refuses the access key"},
	} {
		r := newRig(t, nil)
		r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Operation: tt.operation, Status: tt.status, Body: tt.body})
		_, err := r.Publish(t.Context(), name, "v")
		if !errors.Is(err, publisher.ErrBlocked) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %d: got %v", tt.operation, tt.status, err)
		}
		r.publish(name, "v", true) // the fault is over
	}
}

func TestAZoneMadeAnewIsFoundAgain(t *testing.T) {
	r := newRig(t, nil)
	r.found.Add("example.com", &foundZone{id: 1, until: r.clock.Now().Add(time.Hour)})
	if _, err := r.Publish(t.Context(), name, "v"); err == nil {
		t.Error("got no error from a zone that is gone")
	}
	r.publish(name, "v", true)
}

func TestWaitingForOnesTurnEndsWithTheCaller(t *testing.T) {
	r := newRig(t, nil)
	w, err := r.zone(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	w.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.do(ctx, key{"h", "v"}, false); !errors.Is(err, context.Canceled) || len(w.waiting) != 0 {
		t.Errorf("got %v, %d waiting", err, len(w.waiting))
	}
	w.waiting = make([]*change, maxWaiting)
	if err := w.do(t.Context(), key{"h", "v"}, false); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a full queue: got %v", err)
	}
}

func TestNewSaysEverythingThatIsWrong(t *testing.T) {
	_, err := New(Config{TTL: time.Millisecond, ForeignEdits: "rollback"})
	for _, want := range []string{"confirmer", "ttl", "foreign_edits"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}
