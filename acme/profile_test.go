package acme

import (
	"strings"
	"testing"
	"time"
)

func TestSection7_4_CheckValidity(t *testing.T) {
	none := time.Time{}
	in := func(d time.Duration) time.Time { return start.Add(d) }
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name                string
		notBefore, notAfter time.Time
		want                string // part of the detail; "" if it is allowed
	}{
		{"nothing asked for", none, none, ""},
		{"Go's zero time, as step sends it", time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), ""},
		{"an earlier end", none, in(day), ""},
		{"the latest end", none, in(monthLong), ""},
		{"a later begin and an end in time", in(day), in(2 * day), ""},
		{"a begin a little in the past", in(-time.Minute), in(day), ""},
		{"now", in(0), none, ""},
		{"an end too late", none, in(monthLong + time.Hour), "later than profile"},
		{"a short lifetime too far ahead", in(12 * monthLong), in(12*monthLong + day), "later than profile"},
		{"an end in the past", none, in(-time.Minute), "notAfter"},
		{"an end now", none, in(0), "notAfter"},
		{"reversed", in(2 * day), in(day), "notAfter"},
		{"of no length", in(day), in(day), "notAfter"},
		{"a begin long ago", in(-day), in(day), "notBefore"},
		{"all in the past", in(-2 * day), in(-day), "past"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := testProfile()
			p.ClientValidity = true
			err := p.CheckValidity(tt.notBefore, tt.notAfter, start)
			if tt.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
			} else if err == nil || AsProblem(err).Type != Malformed || !strings.Contains(AsProblem(err).Detail, tt.want) {
				t.Errorf("got %v, want %s about %q", err, Malformed, tt.want)
			}
			p.ClientValidity = false
			asked := !tt.notBefore.IsZero() || !tt.notAfter.IsZero()
			if err := p.CheckValidity(tt.notBefore, tt.notAfter, start); (err != nil) != asked {
				t.Errorf("under a profile that sets it: %v", err)
			}
		})
	}
}

// security-lessons.md, lessons 11 and 29: what a proof is good for.
func TestProofs(t *testing.T) {
	for _, tt := range []struct {
		name          string
		alter         func(p *Proof, a *Account, profile *Profile)
		holds, serves bool
	}{
		{"a fresh one", func(*Proof, *Account, *Profile) {}, true, true},
		{"of another account", func(p *Proof, _ *Account, _ *Profile) { p.AccountID = "other" }, false, false},
		{"of a key that was changed", func(_ *Proof, a *Account, _ *Profile) { a.KeyEpoch++ }, false, false},
		{"of a deactivated account", func(_ *Proof, a *Account, _ *Profile) {
			if err := a.Deactivate(); err != nil {
				t.Error(err)
			}
		}, false, false},
		{"that ends now", func(p *Proof, _ *Account, _ *Profile) { p.Expires = start }, false, false},
		{"that ends in a moment", func(p *Proof, _ *Account, _ *Profile) { p.Expires = start.Add(time.Minute) }, true, false},
		{"under a profile without reuse", func(_ *Proof, _ *Account, profile *Profile) { profile.ReuseAuthorizations = false }, true, false},
		{"of a name above", func(p *Proof, _ *Account, _ *Profile) { p.Name = "dns:example" }, true, false},
		{"of the wildcard, for the name", func(p *Proof, _ *Account, _ *Profile) { p.Name = "dns:*.a.example" }, true, false},
		{"of another type", func(p *Proof, _ *Account, _ *Profile) { p.Name = "ip:a.example" }, true, false},
		{"by a method that the profile does not offer", func(_ *Proof, _ *Account, profile *Profile) { profile.Challenges = []ChallengeType{DNS01} }, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, profile := testAccount(), testProfile()
			profile.ReuseAuthorizations = true
			p := &Proof{ProofKey: ProofKey{a.ID, "dns:a.example"}, Method: HTTP01, KeyEpoch: a.KeyEpoch, Validated: start, Expires: start.Add(proofLifetime)}
			tt.alter(p, a, profile)
			if got := p.Holds(a, start); got != tt.holds {
				t.Errorf("holds: %t, want %t", got, tt.holds)
			}
			if got := p.Serves(a, profile, dns("a.example")[0], start); got != tt.serves {
				t.Errorf("serves: %t, want %t", got, tt.serves)
			}
			if p.Serves(a, profile, dns("*.a.example")[0], start) && p.Name != "dns:*.a.example" {
				t.Error("serves a wildcard, and proves a name")
			}
		})
	}
	var none *Proof
	if none.Holds(testAccount(), start) || none.Serves(testAccount(), testProfile(), dns("a.example")[0], start) {
		t.Error("no proof holds")
	}
	// A wildcard proven over HTTP serves nobody, whoever wrote it down.
	a, profile := testAccount(), testProfile()
	profile.ReuseAuthorizations = true
	p := &Proof{ProofKey: ProofKey{a.ID, "dns:*.a.example"}, Method: HTTP01, KeyEpoch: a.KeyEpoch, Expires: start.Add(proofLifetime)}
	if p.Serves(a, profile, dns("*.a.example")[0], start) {
		t.Error("a wildcard is served by an http-01 proof")
	}
}
