package privateca

import (
	"context"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

func TestACommonNameServesACAThatWantsOne(t *testing.T) {
	for _, wanted := range []bool{false, true} {
		r := newRig(t, nil)
		r.change(func(b *ncloudtest.Behaviour) { b.RequireCommonName = wanted })
		r.issue(r.requestCN("o", "a.example", newKey(t, ""), "a.example"))
	}
}

func TestGatewayErrorsWithNumbersForCodes(t *testing.T) {
	for _, number := range []bool{false, true} {
		r := newRig(t, nil)
		r.change(func(b *ncloudtest.Behaviour) { b.GatewayCodeNumber = number })
		r.inject(ncloudtest.Fault{Kind: ncloudtest.Throttle})
		req := r.request("o", newKey(t, ""), "a.example")
		if _, err := r.Submit(t.Context(), req); verdict(err) != "not sent" {
			t.Errorf("number %t: got %v", number, err)
		}
		r.lose(req, ncloudtest.Fault{Kind: ncloudtest.TimeoutAfter})
	}
}

func TestRevokeWhileTheCRLOrTheCAIsAway(t *testing.T) {
	for _, crl := range []string{"ok", "error"} {
		for _, onlyActive := range []bool{false, true} {
			r := newRig(t, nil)
			r.change(func(b *ncloudtest.Behaviour) { b.CRLWithoutConfig, b.OnlyActiveRevokes = crl, onlyActive })
			first := r.issue(r.request("first", newKey(t, ""), "a.example")).Leaf
			second := r.issue(r.request("second", newKey(t, ""), "a.example")).Leaf
			if err := r.Revoke(t.Context(), first, -1); err != nil {
				t.Errorf("CRL %s: %v", crl, err)
			}
			status := "DEACTIVATED"
			if err := r.sim.ChangeCA(ncloudtest.CAChange{Status: &status}); err != nil {
				t.Fatal(err)
			}
			err := r.Revoke(t.Context(), second, -1)
			if onlyActive && verdict(err) != "problem serverInternal" || !onlyActive && err != nil {
				t.Errorf("CRL %s, only active %t: got %v", crl, onlyActive, err)
			}
		}
	}
}

func TestAnAnswerThatComesTooLateIsSearchedFor(t *testing.T) {
	for _, f := range []ncloudtest.Fault{
		{Kind: ncloudtest.Latency, DelayMS: 300},
		{Kind: ncloudtest.SlowBody, DelayMS: 300},
		{Kind: ncloudtest.DropAfter, DelayMS: 300},
		{Kind: ncloudtest.TimeoutAfter, DelayMS: 300},
	} {
		r := newRig(t, nil)
		req := r.request("o", newKey(t, ""), "a.example")
		h, err := r.sim.HoldCalls("signEndCsr", ncloudtest.After, 1)
		if err != nil {
			t.Fatal(err)
		}
		f.Operation = "signEndCsr"
		r.inject(f)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-h.Entered() // applied
			cancel()      // as the deadline would
		}()
		if _, err := r.Submit(ctx, req); verdict(err) != "unknown" {
			t.Fatalf("%s: got %v", f.Kind, err)
		}
		r.sim.Release(h, ncloudtest.Continue)
		r.clock.Advance(time.Minute)
		if _, got := r.find(req); got != "issued" {
			t.Errorf("%s: got %s", f.Kind, got)
		}
		r.inject(ncloudtest.Fault{Kind: f.Kind, DelayMS: 1}) // in time this time
		req = r.request("o2", newKey(t, ""), "a.example")
		_, err = r.Submit(t.Context(), req)
		if want := map[ncloudtest.Kind]string{ncloudtest.Latency: "issued", ncloudtest.SlowBody: "issued"}[f.Kind]; want != "" && verdict(err) != want {
			t.Errorf("%s: got %v", f.Kind, err)
		}
		if got := r.sim.Counters().MostForOneKey; got != 1 {
			t.Errorf("%s: %d certificates for one key", f.Kind, got)
		}
	}
}

func TestNamesTheServiceDropsFailTheCheck(t *testing.T) {
	r := newRig(t, nil)
	r.inject(ncloudtest.Fault{Kind: ncloudtest.DropNames})
	req := r.request("o", newKey(t, ""), "a.example")
	got, err := r.Submit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if r.check(req, got) == nil {
		t.Error("a certificate without names passed")
	}
}
