package privateca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

func TestSubmitUnderEachPositionOfTheSwitches(t *testing.T) {
	type behaviour = ncloudtest.Behaviour
	for name, set := range map[string]func(*behaviour){
		"as expected":                         func(*behaviour) {},
		"period has a default":                func(b *behaviour) { b.PeriodMissing = "default" },
		"period defaults to the longest":      func(b *behaviour) { b.PeriodMissing = "max" },
		"key fields ignored":                  func(b *behaviour) { b.KeyFields = "ignored" },
		"key fields refused":                  func(b *behaviour) { b.KeyFields = "refused" },
		"chain without root":                  func(b *behaviour) { b.ChainWithRoot = false },
		"chain without the CA":                func(b *behaviour) { b.ChainWithSelf = false },
		"chain with neither":                  func(b *behaviour) { b.ChainWithRoot, b.ChainWithSelf = false, false },
		"chain root first":                    func(b *behaviour) { b.ChainOrder = "root-first" },
		"numbers as strings":                  func(b *behaviour) { b.NumbersAsStrings = true },
		"dates as strings":                    func(b *behaviour) { b.DatesAsStrings = true },
		"serial numbers without leading zero": func(b *behaviour) { b.SerialStripped = true },
		"serial numbers in capitals":          func(b *behaviour) { b.SerialUpper = true },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.change(set)
			for _, kind := range []string{"ecdsa-p256", "ecdsa-p384", "rsa-2048", "ed25519"} {
				req := r.request("o-"+kind, newKey(t, kind), "a.example", "*.b.example")
				got := r.issue(req)
				if len(got.Chain) != 1 || got.Chain[0].Subject.CommonName != "Simulated Issuing CA" {
					t.Errorf("%s: chain: got %d certificates", kind, len(got.Chain))
				}
				if want := r.clock.Now().Add(req.Lifetime); !got.Leaf.NotAfter.Equal(want.Truncate(time.Second)) {
					t.Errorf("%s: ends at %s, want %s", kind, got.Leaf.NotAfter, want)
				}
			}
		})
	}
}

func TestKeyTypeIsSentOnlyIfSet(t *testing.T) {
	for _, tt := range []struct {
		send  bool
		field string
		want  string
	}{
		{false, "required", "problem serverInternal"}, {true, "required", "issued"},
		{false, "refused", "issued"}, {true, "optional", "issued"}, {true, "ignored", "issued"},
	} {
		r := newRig(t, func(c *Config) { c.SendKeyType = tt.send })
		r.change(func(b *ncloudtest.Behaviour) { b.KeyFields = tt.field })
		for _, kind := range []string{"ecdsa-p256", "rsa-2048"} {
			_, err := r.Submit(t.Context(), r.request("o", newKey(t, kind), "a.example"))
			if got := verdict(err); got != tt.want {
				t.Errorf("sent %t, %s, %s: got %s (%v), want %s", tt.send, tt.field, kind, got, err, tt.want)
			}
		}
	}
}

func TestARootCAIssuesWithoutChain(t *testing.T) {
	r := newRig(t, nil)
	r.Issuer.api.caTag = r.sim.RootTag()
	if got := r.issue(r.request("o", newKey(t, ""), "a.example")); len(got.Chain) != 0 {
		t.Errorf("got a chain of %d certificates, want none", len(got.Chain))
	}
}

func TestWholeDays(t *testing.T) {
	const day = 24 * time.Hour
	r := newRig(t, nil)
	for _, tt := range []struct {
		name      string
		lifetime  time.Duration
		notBefore time.Duration
		notAfter  time.Duration // from now; 0: not asked for
		want      string
	}{
		{"a day", day, 0, 0, "issued"},
		{"less than a day", 12 * time.Hour, 0, 0, "problem serverInternal"},
		{"a day and a half", 36 * time.Hour, 0, 0, "problem serverInternal"},
		{"more than ten years", 3651 * day, 0, 0, "problem serverInternal"},
		{"longer than the CA", 1826 * day, 0, 0, "problem serverInternal"},
		{"an end in whole days", 30 * day, 0, 7*day - time.Minute, "issued"},
		{"an end between days", 30 * day, 0, 7*day + 12*time.Hour, "problem malformed"},
		{"an end within a day", 30 * day, 0, time.Hour, "problem malformed"},
		{"an end after the CA's", 30 * day, 0, 2000 * day, "problem malformed"},
		{"a begin in the future", 30 * day, day, 0, "problem malformed"},
		{"a begin now", 30 * day, time.Second, 0, "issued"},
	} {
		req := r.request("o-"+tt.name, newKey(t, ""), "a.example")
		req.Lifetime = tt.lifetime
		if tt.notBefore != 0 {
			req.NotBefore = r.clock.Now().Add(tt.notBefore)
		}
		if tt.notAfter != 0 {
			req.NotAfter = r.clock.Now().Add(tt.notAfter)
		}
		got, err := r.Submit(t.Context(), req)
		if v := verdict(err); v != tt.want {
			t.Errorf("%s: got %s (%v), want %s", tt.name, v, err, tt.want)
		}
		if err == nil {
			if err := r.check(req, got); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
	}
}

func TestRefusalsBecomeProblemsInEveryFormOfError(t *testing.T) {
	tag := func(string) *string { s := "DEACTIVATED"; return &s }
	for _, tt := range []struct {
		name string
		do   func(*rig) error // submits
		want string
		text string // of the detail
		// stateTells: even if code and text say nothing, Get CA does.
		stateTells bool
	}{
		{"a CSR without common name where one is wanted", func(r *rig) error {
			r.change(func(b *ncloudtest.Behaviour) { b.RequireCommonName = true })
			_, err := r.Submit(r.t.Context(), r.request("o", newKey(r.t, ""), "a.example"))
			return err
		}, "problem badCSR", "common name", false},
		{"a common name that is too long", func(r *rig) error {
			cn := strings.Repeat("x", 60) + ".example"
			_, err := r.Submit(r.t.Context(), r.requestCN("o", cn, newKey(r.t, ""), cn))
			return err
		}, "problem badCSR", "64", false},
		{"a kind of key that is refused", func(r *rig) error {
			r.change(func(b *ncloudtest.Behaviour) { b.RefuseKeys = []string{"ECDSA-384"} })
			_, err := r.Submit(r.t.Context(), r.request("o", newKey(r.t, "ecdsa-p384"), "a.example"))
			return err
		}, "problem badCSR", "key", false},
		{"a quota that is exhausted", func(r *rig) error {
			n := int64(30000)
			if err := r.sim.ChangeCA(ncloudtest.CAChange{SigningCount: &n}); err != nil {
				return err
			}
			_, err := r.Submit(r.t.Context(), r.request("o", newKey(r.t, ""), "a.example"))
			return err
		}, "problem rateLimited", "as many certificates", true},
		{"a CA that was deactivated after we looked", func(r *rig) error {
			req := r.request("o", newKey(r.t, ""), "a.example")
			if err := r.sim.ChangeCA(ncloudtest.CAChange{Status: tag("")}); err != nil {
				return err
			}
			_, err := r.Submit(r.t.Context(), req)
			return err
		}, "problem serverInternal", "not active", true},
		{"an unknown CA", func(r *rig) error {
			r.Issuer.api.caTag = "00000000-00000000"
			_, err := r.Submit(r.t.Context(), r.request("o", newKey(r.t, ""), "a.example"))
			return err
		}, "problem serverInternal", "does not exist", false},
	} {
		for _, status := range []string{"documented", "by-code", "ok"} {
			for _, code := range []string{"named", "dash"} {
				for _, language := range []string{"en", "ko"} {
					t.Run(fmt.Sprintf("%s, status %s, code %s, %s", tt.name, status, code, language), func(t *testing.T) {
						r := newRig(t, nil)
						r.change(func(b *ncloudtest.Behaviour) { b.ErrorStatus, b.ErrorCode, b.ErrorLanguage = status, code, language })
						err := tt.do(r)
						p, _ := errors.AsType[*acme.Problem](err)
						switch {
						case status == "ok" && code == "dash":
							// HTTP 200 and no code: nobody can tell that this is a refusal.
							if got := verdict(err); got != "unknown" {
								t.Errorf("got %s (%v), want unknown", got, err)
							}
						case code == "dash" && language == "ko" && !tt.stateTells:
							if verdict(err) != "problem serverInternal" {
								t.Errorf("got %v, want serverInternal", err)
							}
						case verdict(err) != tt.want || !strings.Contains(p.Detail, tt.text):
							t.Errorf("got %v, want %s with %q", err, tt.want, tt.text)
						}
						if p != nil && (strings.Contains(p.Detail, "HTTP") || strings.Contains(p.Detail, "trace")) {
							t.Errorf("the client is told too much: %s", p.Detail)
						}
						if got := r.sim.Counters().Issued; got != 0 {
							t.Errorf("issued %d", got)
						}
					})
				}
			}
		}
	}
}

func TestAFullOrSleepingCAIsNotAskedInVain(t *testing.T) {
	r := newRig(t, nil)
	status := "DEACTIVATED"
	if err := r.sim.ChangeCA(ncloudtest.CAChange{Status: &status}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err := r.Submit(t.Context(), r.request("o", newKey(t, ""), "a.example"))
		if verdict(err) != "problem serverInternal" {
			t.Errorf("got %v", err)
		}
	}
	if got := r.sim.Counters().Calls["signEndCsr"]; got != 0 {
		t.Errorf("asked %d times", got)
	}
	status = "ACTIVE"
	if err := r.sim.ChangeCA(ncloudtest.CAChange{Status: &status}); err != nil {
		t.Fatal(err)
	}
	r.issue(r.request("o", newKey(t, ""), "a.example")) // noticed at once
}

func TestCertificatesThatAreNotWhatWasAskedForReachTheCheckAndFailIt(t *testing.T) {
	for _, kind := range []ncloudtest.Kind{ncloudtest.WrongKey, ncloudtest.DropNames, ncloudtest.AddName, ncloudtest.ShortLifetime} {
		r := newRig(t, nil)
		r.inject(ncloudtest.Fault{Kind: kind})
		req := r.request("o", newKey(t, ""), "a.example", "b.example")
		got, err := r.Submit(t.Context(), req)
		if kind == ncloudtest.WrongKey {
			// It could be an earlier certificate, so Find looks for a better one first.
			if verdict(err) != "unknown" {
				t.Errorf("%s: got %v, want an unknown outcome", kind, err)
			}
			r.clock.Advance(time.Minute)
			got, err = r.Find(t.Context(), req)
		}
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if r.check(req, got) == nil {
			t.Errorf("%s: passed the check", kind)
		}
		if n := r.sim.Counters().Issued; n != 1 {
			t.Errorf("%s: %d certificates for one order", kind, n)
		}
	}
}

func TestCredentialsThatAreRefusedEndTheOrder(t *testing.T) {
	r := newRig(t, nil)
	r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 401, Body: `{"error":{"errorCode":"210","message":"Permission Denied"}}`})
	_, err := r.Submit(t.Context(), r.request("o", newKey(t, ""), "a.example"))
	if verdict(err) != "problem serverInternal" || !strings.Contains(r.log.String(), "refuses our credentials") {
		t.Errorf("got %v", err)
	}
}

func TestThrottlingIsRetriedByTheWorkerAfterRetryAfter(t *testing.T) {
	r := newRig(t, nil)
	r.inject(ncloudtest.Fault{Kind: ncloudtest.Throttle, RetryAfter: "17"})
	_, err := r.Submit(t.Context(), r.request("o", newKey(t, ""), "a.example"))
	e, _ := errors.AsType[*acme.NotSentError](err)
	if e == nil || e.After != 17*time.Second {
		t.Errorf("got %v", err)
	}
	if got := r.sim.Counters().Calls["signEndCsr"]; got != 1 {
		t.Errorf("sent %d times, want once", got)
	}
}

func TestMarkIsALowerBoundOfTheCount(t *testing.T) {
	r := newRig(t, nil)
	mark := func() int64 {
		n, err := strconv.ParseInt(r.Mark(t.Context()), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if got := mark(); got != 0 {
		t.Errorf("at the start: got %d, want 0", got)
	}
	for n := range int64(5) {
		r.issue(r.request(fmt.Sprint("o", n), newKey(t, ""), "a.example"))
		if got := mark(); got != n+1 {
			t.Errorf("after %d of our own: got %d", n+1, got)
		}
	}
	calls := r.sim.Counters().Calls["getCa"]
	if calls > 2 {
		t.Errorf("marks cost %d calls", calls)
	}
	if err := r.sim.IssueElsewhere("other.example"); err != nil {
		t.Fatal(err)
	}
	if got := mark(); got != 5 {
		t.Errorf("before the next reading: got %d, want the lower bound 5", got)
	}
	r.clock.Advance(time.Minute)
	if got := mark(); got != 6 {
		t.Errorf("after the next reading: got %d, want 6", got)
	}
	r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 503, Operation: "getCa", Count: -1})
	r.clock.Advance(time.Minute)
	if got := mark(); got != 6 {
		t.Errorf("with the service away: got %d, want what was known", got)
	}
	shared := newRig(t, func(c *Config) { c.Exclusive = false })
	if got := shared.Mark(t.Context()); got != "" || shared.sim.Counters().Calls["getCa"] != 0 {
		t.Errorf("of a shared CA: got %q", got)
	}
}

func TestRevoke(t *testing.T) {
	for _, twice := range []string{"ok", "error"} {
		for _, shows := range []string{"at-once", "on-rotate"} {
			for _, form := range []int{0, 1, 2, 3} {
				r := newRig(t, nil)
				r.change(func(b *ncloudtest.Behaviour) {
					b.RevokeTwice, b.CRLShows = twice, shows
					b.SerialExact, b.SerialStripped, b.SerialUpper = true, form&1 != 0, form&2 != 0
				})
				leaf := r.issue(r.request("o", newKey(t, ""), "a.example")).Leaf
				if _, err := r.CRL(t.Context()); err != nil { // from now on there is one to rotate
					t.Fatal(err)
				}
				if err := r.Revoke(t.Context(), leaf, 1); err != nil {
					t.Errorf("%v", err)
				}
				if got := r.sim.Certificates()[0]; !got.Revoked {
					t.Error("not revoked")
				}
				err := r.Revoke(t.Context(), leaf, 1)
				if hidden := twice == "error" && shows == "on-rotate"; (err != nil) != hidden {
					t.Errorf("twice %s, CRL %s: got %v", twice, shows, err)
				}
			}
		}
	}
}

func TestRevokeKeepsOffStrangers(t *testing.T) {
	r, other := newRig(t, nil), newRig(t, nil)
	leaf := other.issue(other.request("o", newKey(t, ""), "a.example")).Leaf
	if err := r.Revoke(t.Context(), leaf, -1); verdict(err) != "problem malformed" {
		t.Errorf("another CA's certificate: got %v", err)
	}
	if got := r.sim.Counters().Calls["revokeEndCert"]; got != 0 {
		t.Errorf("the service was asked %d times", got)
	}
	leaf = r.issue(r.request("o", newKey(t, ""), "a.example")).Leaf
	r.clock.Advance(31 * 24 * time.Hour)
	if err := r.Revoke(t.Context(), leaf, -1); verdict(err) != "problem malformed" || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: got %v", err)
	}
}

func TestRevokeWithALostAnswerLooksAtTheCRL(t *testing.T) {
	r := newRig(t, nil)
	leaf := r.issue(r.request("o", newKey(t, ""), "a.example")).Leaf
	r.inject(ncloudtest.Fault{Kind: ncloudtest.Throttle, Operation: "revokeEndCert"})
	if err := r.Revoke(t.Context(), leaf, -1); verdict(err) != "not sent" {
		t.Errorf("throttled: got %v", err)
	}
	r.inject(ncloudtest.Fault{Kind: ncloudtest.DropBefore, Operation: "revokeEndCert"})
	if err := r.Revoke(t.Context(), leaf, -1); err == nil {
		t.Error("lost before it was applied: got no error")
	}
	r.inject(ncloudtest.Fault{Kind: ncloudtest.DropAfter, Operation: "revokeEndCert"})
	if err := r.Revoke(t.Context(), leaf, -1); err != nil {
		t.Errorf("lost after it was applied: %v", err)
	}
}

func TestCheckReportsEverythingThatPreventsIssuing(t *testing.T) {
	const day = 24 * time.Hour
	join := func(list []string) string { return strings.Join(list, "; ") }
	r := newRig(t, nil)
	rep := r.Check(t.Context(), 30*day)
	if !rep.OK() || len(rep.Warnings) > 0 || rep.Status != "ACTIVE" || rep.QuotaLeft != 30000 || len(rep.Chain) != 2 || !rep.Chain[1].Root {
		t.Errorf("a good CA: got %+v", rep)
	}
	n, status := int64(29000), "DEACTIVATED"
	if err := r.sim.ChangeCA(ncloudtest.CAChange{SigningCount: &n, Status: &status}); err != nil {
		t.Fatal(err)
	}
	rep = r.Check(t.Context(), 36*time.Hour, 3000*day)
	for _, want := range []string{"not ACTIVE", "whole days", "outlive"} {
		if !strings.Contains(join(rep.Errors), want) {
			t.Errorf("errors lack %q: %s", want, join(rep.Errors))
		}
	}
	if !strings.Contains(join(rep.Warnings), "1000 of 30000") {
		t.Errorf("warnings: %s", join(rep.Warnings))
	}
	if err := r.Ready(t.Context()); err == nil {
		t.Error("ready although not active")
	}
	n, status = 30000, "ACTIVE"
	if err := r.sim.ChangeCA(ncloudtest.CAChange{SigningCount: &n, Status: &status}); err != nil {
		t.Fatal(err)
	}
	if rep := r.Check(t.Context()); !strings.Contains(join(rep.Errors), "set quota") {
		t.Errorf("a full CA: got %s", join(rep.Errors))
	}
	r.clock.Advance(time.Minute)
	if err := r.Ready(t.Context()); err != nil {
		t.Errorf("a full CA by the configured quota: %v", err)
	}
	for status, want := range map[int]string{401: "access_key", 404: "base_url"} {
		r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: status, Operation: "getCa", Body: `{"error":{"errorCode":"200","message":"x"}}`})
		if rep := r.Check(t.Context()); rep.OK() || !strings.Contains(join(rep.Errors), want) {
			t.Errorf("HTTP %d: got %s", status, join(rep.Errors))
		}
	}
	r.Issuer.api.caTag = "00000000-00000000"
	if rep := r.Check(t.Context()); !strings.Contains(join(rep.Errors), "ca_tag") {
		t.Errorf("unknown CA: got %s", join(rep.Errors))
	}
	hidden := newRig(t, nil)
	hidden.change(func(b *ncloudtest.Behaviour) { b.ChainWithRoot, b.ChainWithSelf = false, true })
	if rep := hidden.Check(t.Context()); !rep.OK() || !strings.Contains(join(rep.Warnings), "root") {
		t.Errorf("root not shown: got %+v", rep)
	}
}

func TestReadyAsksSeldom(t *testing.T) {
	r := newRig(t, nil)
	for range 10 {
		if err := r.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.sim.Counters().Calls["getCa"]; got != 1 {
		t.Errorf("asked %d times, want once", got)
	}
	r.clock.Advance(time.Minute)
	r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 503, Operation: "getCa", Count: -1})
	if r.Ready(t.Context()) == nil {
		t.Error("ready although the service is away")
	}
}

func TestQuotaIsAMetric(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Quota = 100 })
	r.issue(r.request("o", newKey(t, ""), "a.example"))
	r.clock.Advance(time.Minute)
	r.Mark(t.Context())
	if got := testutil.ToFloat64(r.metrics.used.WithLabelValues("corp-ca")); got != 1 {
		t.Errorf("used: got %v, want 1", got)
	}
	if got := testutil.ToFloat64(r.metrics.left.WithLabelValues("corp-ca")); got != 99 {
		t.Errorf("left: got %v, want 99", got)
	}
}

func TestTheChainKnownServesWhileTheServiceIsAway(t *testing.T) {
	r := newRig(t, nil)
	if _, err := r.Roots(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.clock.Advance(2 * chainAge)
	r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 503, Operation: "getCaChain", Count: -1})
	if _, err := r.Roots(t.Context()); err != nil {
		t.Error(err)
	}
	fresh := newRig(t, nil)
	fresh.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 503, Operation: "getCaChain", Count: -1})
	if _, err := fresh.Roots(t.Context()); err == nil {
		t.Error("got roots from nowhere")
	}
}

func TestTheCRLMustBeTheCAs(t *testing.T) {
	r := newRig(t, nil)
	if crl, err := r.CRL(t.Context()); err != nil || len(crl.RevokedCertificateEntries) != 0 {
		t.Errorf("got %v, %v", crl, err)
	}
	other := newRig(t, nil)
	r.chain, r.chainUntil = must(other.issuers(t.Context())), r.clock.Now().Add(time.Hour)
	if _, err := r.CRL(t.Context()); err == nil {
		t.Error("a CRL of another CA was taken")
	}
}

func must(certs []*x509.Certificate, err error) []*x509.Certificate {
	if err != nil {
		return nil
	}
	return certs
}

func TestNewWantsAClientAndATag(t *testing.T) {
	r := newRig(t, nil)
	for _, cfg := range []Config{{}, {Client: r.cfg.Client}, {Client: r.cfg.Client, CATag: "../ca"}, {CATag: "a-b"}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg.CATag)
		}
	}
}

func TestNothingSecretIsLogged(t *testing.T) {
	r := newRig(t, nil)
	for _, k := range []ncloudtest.Kind{ncloudtest.Throttle, ncloudtest.DropBefore, ncloudtest.TimeoutAfter, ncloudtest.MalformedBody} {
		r.inject(ncloudtest.Fault{Kind: k})
		_, err := r.Submit(context.Background(), r.request("o", newKey(t, ""), "a.example"))
		for _, secret := range []string{ncloudtest.DefaultAccessKey, ncloudtest.DefaultSecretKey} {
			if strings.Contains(fmt.Sprint(err), secret) || bytes.Contains(r.log.Bytes(), []byte(secret)) {
				t.Errorf("%s: a key is shown", k)
			}
		}
	}
}
