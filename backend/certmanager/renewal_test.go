package certmanager

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

func TestReissue(t *testing.T) {
	for name, tt := range map[string]struct {
		renewal  string
		sameName bool
		set      func(*ncloudtest.CMBehaviour)
		paid     int64
		reissued int64
		problem  acme.ProblemType
	}{
		"a new number":                          {"", false, func(*ncloudtest.CMBehaviour) {}, 1, 2, ""},
		"the number is kept":                    {"", false, func(b *ncloudtest.CMBehaviour) { b.ReissueNumber = "kept" }, 1, 2, ""},
		"the number is kept, not in the answer": {"", false, func(b *ncloudtest.CMBehaviour) { b.ReissueNumber, b.AnswerShape = "kept", "bare" }, 1, 2, ""},
		"not in the answer":                     {"", false, func(b *ncloudtest.CMBehaviour) { b.AnswerShape = "bare" }, 1, 2, ""},
		"under the same name":                   {"", true, func(b *ncloudtest.CMBehaviour) { b.ReissueName = "same" }, 1, 2, ""},
		"the same name and number":              {"", true, func(b *ncloudtest.CMBehaviour) { b.ReissueName, b.ReissueNumber = "same", "kept" }, 1, 2, ""},
		"the same name, a bare answer":          {"", true, func(b *ncloudtest.CMBehaviour) { b.ReissueName, b.AnswerShape = "same", "bare" }, 1, 2, ""},
		"it takes time":                         {"", false, func(b *ncloudtest.CMBehaviour) { b.IssueDelayMS = 100_000 }, 1, 2, ""},
		"it takes time and the number is kept": {"", false, func(b *ncloudtest.CMBehaviour) {
			b.IssueDelayMS, b.ReissueNumber = 100_000, "kept"
		}, 1, 2, ""},
		"refused, then new":       {RenewReissueThenNew, false, func(b *ncloudtest.CMBehaviour) { b.ReissueCode = "26034" }, 3, 0, ""},
		"the wrong name":          {RenewReissueThenNew, false, func(b *ncloudtest.CMBehaviour) { b.ReissueName = "same" }, 3, 0, ""},
		"refused, and not new":    {RenewReissue, false, func(b *ncloudtest.CMBehaviour) { b.ReissueCode = "26034" }, 1, 0, acme.ServerInternal},
		"not wanted":              {RenewNew, false, func(*ncloudtest.CMBehaviour) {}, 3, 0, ""},
		"numbers come as strings": {"", false, func(b *ncloudtest.CMBehaviour) { b.NumbersAsStrings = true }, 1, 2, ""},
	} {
		for _, keys := range []string{"new keys", "the same key"} {
			t.Run(name+", "+keys, func(t *testing.T) {
				r := newRig(t, func(_ *rig, cfg *Config) { cfg.Renewal, cfg.ReissueSameName = tt.renewal, tt.sameName })
				r.domain("example.com", DomainValid)
				r.change(tt.set)
				k := newKey(t)
				serials := map[string]bool{}
				for n, order := range []string{"o1", "o2", "o3"} {
					if keys == "new keys" {
						k = newKey(t)
					}
					e := r.run(r.request(order, k, "shop.example.com", "www.shop.example.com"))
					if n > 0 && tt.problem != "" {
						if e.problem == nil || e.problem.Type != tt.problem {
							t.Errorf("order %s: got %+v, want %s", order, e, tt.problem)
						}
						continue
					}
					if e.got == nil {
						t.Fatalf("order %s: %v %v\n%s\n%s", order, e.problem, e.err, e.events(), r.log)
					}
					serials[e.got.Leaf.SerialNumber.String()] = true
					if e.got.Again {
						t.Errorf("order %s got an earlier certificate", order)
					}
					r.pass(24 * time.Hour)
				}
				if got := r.counters(); got.Paid != tt.paid || got.Reissued != tt.reissued {
					t.Errorf("got %d paid, %d reissued, want %d, %d", got.Paid, got.Reissued, tt.paid, tt.reissued)
				}
				if tt.problem == "" && len(serials) != 3 {
					t.Errorf("got %d certificates, want 3", len(serials))
				}
			})
		}
	}
}

func TestReissueIsForOneAccountAndSetOfNames(t *testing.T) {
	r := newRig(t, nil)
	r.domain("example.com", DomainValid)
	r.issue(r.request("o1", newKey(t), "a.example.com", "b.example.com"))
	r.issue(r.request("o2", newKey(t), "b.example.com", "a.example.com")) // the same set
	if got := r.counters(); got.Paid != 1 || got.Reissued != 1 {
		t.Fatalf("got %+v", got)
	}
	r.issue(r.request("o3", newKey(t), "a.example.com"))
	other := r.request("o4", newKey(t), "a.example.com", "b.example.com")
	other.AccountID = "00other"
	r.issue(other)
	if got := r.counters(); got.Paid != 3 || got.Reissued != 1 {
		t.Errorf("got %d paid, %d reissued, want 3, 1", got.Paid, got.Reissued)
	}
}

func TestReissueOnlyOfLiveCertificates(t *testing.T) {
	for name, kill := range map[string]func(*rig, *acme.Issuance){
		"revoked": func(r *rig, got *acme.Issuance) {
			if err := r.Revoke(r.t.Context(), got.Leaf, 4); err != nil {
				r.t.Fatal(err)
			}
		},
		"expired": func(r *rig, _ *acme.Issuance) {
			r.clock.Advance(199 * 24 * time.Hour)
			r.domain("example.com", DomainValid)
		},
		"deleted": func(r *rig, _ *acme.Issuance) {
			l := r.sim.CMCertificates()
			if err := r.Delete(r.t.Context(), l[0].No, l[0].Name); err != nil {
				r.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.domain("example.com", DomainValid)
			e := r.issue(r.request("o1", newKey(t), "a.example.com"))
			kill(r, e.got)
			r.issue(r.request("o2", newKey(t), "a.example.com"))
			if got := r.counters(); got.Paid != 2 || got.Reissued != 0 {
				t.Errorf("got %d paid, %d reissued, want 2, 0", got.Paid, got.Reissued)
			}
		})
	}
}

func TestLostReissues(t *testing.T) {
	for name, f := range map[string]ncloudtest.Fault{
		"applied, connection closed": {Kind: ncloudtest.DropAfter},
		"applied, 504":               {Kind: ncloudtest.TimeoutAfter},
		"applied late":               {Kind: ncloudtest.ApplyLate, DelayMS: 15_000},
		"not applied":                {Kind: ncloudtest.DropBefore},
		"listed late":                {Kind: ncloudtest.LateList, DelayMS: 120_000},
	} {
		for _, number := range []string{"new", "kept"} {
			for _, same := range []bool{false, true} {
				t.Run(name+", number "+number, func(t *testing.T) {
					r := newRig(t, func(_ *rig, cfg *Config) { cfg.ReissueSameName = same })
					r.domain("example.com", DomainValid)
					r.change(func(b *ncloudtest.CMBehaviour) { b.ReissueNumber = number })
					r.issue(r.request("o1", newKey(t), "a.example.com"))
					f.Operation = "reissueCertificate"
					r.inject(f)
					e := r.issue(r.request("o2", newKey(t), "a.example.com"))
					if got := r.counters(); got.Paid != 1 || got.Reissued != 1 {
						t.Errorf("got %d paid, %d reissued, want 1, 1\n%s", got.Paid, got.Reissued, e.events())
					}
				})
			}
		}
	}
}

func TestUnfetchedIsHandedOutAgain(t *testing.T) {
	for _, tt := range []struct {
		name      string
		unfetched bool
		sameKey   bool
		after     time.Duration
		again     bool
	}{
		{"never fetched, same key", true, true, 10 * time.Minute, true},
		{"fetched, same key", false, true, 10 * time.Minute, false},
		{"never fetched, another key", true, false, 10 * time.Minute, false},
		{"never fetched, same key, a day old", true, true, 23 * time.Hour, true},
		// What the worker's check would refuse is not offered.
		{"never fetched, same key, too old", true, true, 48 * time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.domain("example.com", DomainValid)
			key := newKey(t)
			first := r.issue(r.request("o1", key, "a.example.com"))
			if tt.unfetched {
				r.unfetched[acme.CertificateID(first.got.Leaf)] = "o1"
			}
			if !tt.sameKey {
				key = newKey(t)
			}
			r.clock.Advance(tt.after)
			e := r.issue(r.request("o2", key, "a.example.com"))
			if e.got.Again != tt.again || first.got.Leaf.Equal(e.got.Leaf) != tt.again {
				t.Errorf("again: got %v, want %v", e.got.Again, tt.again)
			}
			c := r.counters()
			if got, want := c.Paid+c.Reissued == 1, tt.again; got != want {
				t.Errorf("%d paid, %d reissued", c.Paid, c.Reissued)
			}
		})
	}
}

func TestRecordsAway(t *testing.T) {
	r := newRig(t, nil)
	r.domain("example.com", DomainValid)
	req := r.request("o1", newKey(t), "a.example.com")
	req.Submitted = r.clock.Now()
	r.records.fail(acme.ErrUnavailable)
	if _, err := r.Submit(t.Context(), req); err == nil {
		t.Error("submitted without the records")
	} else if _, ok := errors.AsType[*acme.NotSentError](err); !ok {
		t.Errorf("got %v, want not sent", err)
	}
	r.records.fail(nil)
	got, err := r.Submit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	r.pass(got.RetryAfter)
	r.records.fail(acme.ErrUnavailable)
	if got, err := r.Poll(t.Context(), req, got.Ticket); err == nil {
		t.Errorf("handed out %+v, which a revocation would not find", got)
	}
	r.records.fail(nil)
	if got, err := r.Poll(t.Context(), req, got.Ticket); err != nil || got.Leaf == nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestRevoke(t *testing.T) {
	for reason, want := range map[int]string{-1: "unspecified", 0: "unspecified", 3: "affiliationChanged", 4: "superseded", 5: "cessationOfOperation"} {
		r := newRig(t, nil)
		r.domain("example.com", DomainValid)
		e := r.issue(r.request("o1", newKey(t), "a.example.com"))
		r.issue(r.request("o2", newKey(t), "a.example.com")) // in the same order
		for range 2 {                                        // twice is no error
			if err := r.Revoke(t.Context(), e.got.Leaf, reason); err != nil {
				t.Fatalf("reason %d: %v", reason, err)
			}
		}
		for _, c := range r.sim.CMCertificates() {
			first := sameSerial(e.got.Leaf.SerialNumber, serialText(c.Serial))
			if c.Revoked != first || first && c.RevokeType != want {
				t.Errorf("reason %d: %+v, want %s", reason, c, want)
			}
		}
	}
	for _, reason := range []int{1, 2, 6, 8, 9, 10} {
		r := newRig(t, nil)
		r.domain("example.com", DomainValid)
		e := r.issue(r.request("o1", newKey(t), "a.example.com"))
		p, ok := errors.AsType[*acme.Problem](r.Revoke(t.Context(), e.got.Leaf, reason))
		if !ok || p.Type != acme.BadRevocationReason || !strings.Contains(p.Detail, "cessationOfOperation") || r.counters().Revoked != 0 {
			t.Errorf("reason %d: got %v", reason, p)
		}
	}
	t.Run("keyCompromise as unspecified", func(t *testing.T) {
		r := newRig(t, func(_ *rig, cfg *Config) { cfg.KeyCompromise = CompromiseUnspecified })
		r.domain("example.com", DomainValid)
		e := r.issue(r.request("o1", newKey(t), "a.example.com"))
		if err := r.Revoke(t.Context(), e.got.Leaf, 1); err != nil {
			t.Fatal(err)
		}
		if l := r.sim.CMCertificates(); l[0].RevokeType != "unspecified" || !strings.Contains(r.log.String(), "level=ERROR") {
			t.Errorf("got %+v\n%s", l, r.log)
		}
	})
	t.Run("a certificate without a record is found by its serial number", func(t *testing.T) {
		r := newRig(t, func(_ *rig, cfg *Config) { cfg.Records = nil })
		r.domain("example.com", DomainValid)
		e := r.issue(r.request("o1", newKey(t), "a.example.com"))
		if err := r.Revoke(t.Context(), e.got.Leaf, 0); err != nil || r.counters().Revoked != 1 {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the answer is lost", func(t *testing.T) {
		r := newRig(t, nil)
		r.domain("example.com", DomainValid)
		e := r.issue(r.request("o1", newKey(t), "a.example.com"))
		r.inject(ncloudtest.Fault{Kind: ncloudtest.DropAfter, Operation: "revokeCertificate"})
		if err := r.Revoke(t.Context(), e.got.Leaf, 0); err != nil {
			t.Error(err)
		}
		e = r.issue(r.request("o2", newKey(t), "b.example.com"))
		r.inject(ncloudtest.Fault{Kind: ncloudtest.DropBefore, Operation: "revokeCertificate"})
		if err := r.Revoke(t.Context(), e.got.Leaf, 0); err == nil {
			t.Error("no error, and nothing was revoked")
		}
	})
}
