package acme

import (
	"slices"
	"strings"
	"time"
)

// A Profile is what an operator offers to clients under one name: a backend, a
// lifetime, and rules for names and keys (draft-ietf-acme-profiles).
type Profile struct {
	Name        string
	Description string
	Backend     string
	// Lifetime of certificates for which the client asks for none itself; 0
	// where the CA decides.
	Lifetime time.Duration
	// ClientValidity lets clients ask for notBefore and notAfter within Lifetime.
	ClientValidity bool
	Challenges     []ChallengeType
	// Relay is the type of the relay challenge (see [Relayer]), which names are
	// offered that the CA could not certify otherwise; "" for none.
	Relay       ChallengeType
	Identifiers IdentifierPolicy
	KeyTypes    []KeyType
	// SubjectIgnored says that the backend takes no subject fields from the
	// CSR, so that extra ones do no harm; otherwise they are refused.
	SubjectIgnored bool
	// OrderLifetime is how long an order waits for its validations and finalize.
	OrderLifetime time.Duration
	// AuthorizationLifetime is how long a proof counts as evidence for
	// revocation, and with ReuseAuthorizations for later orders too.
	AuthorizationLifetime time.Duration
	ReuseAuthorizations   bool
}

// ChallengesFor returns the challenge types offered for an identifier: a
// wildcard can be proven by DNS only (RFC 8555, Section 7.4.1; RFC 8737,
// Section 3).
func (p *Profile) ChallengesFor(id Identifier) []ChallengeType {
	if _, wildcard := id.Base(); !wildcard {
		return p.Challenges
	}
	if slices.Contains(p.Challenges, DNS01) {
		return []ChallengeType{DNS01}
	}
	return nil
}

// CheckValidity refuses a notBefore or notAfter that the certificate would not
// get (RFC 8555, Section 7.4). Zero times were not asked for.
func (p *Profile) CheckValidity(notBefore, notAfter, now time.Time) error {
	if notBefore.IsZero() && notAfter.IsZero() {
		return nil
	}
	if !p.ClientValidity {
		return Problemf(Malformed, "profile %q sets the validity itself; leave notBefore and notAfter out", p.Name)
	}
	begin, end := notBefore, notAfter
	if begin.IsZero() {
		begin = now
	}
	if end.IsZero() {
		end = begin.Add(p.Lifetime)
	}
	switch {
	case begin.Before(now.Add(-time.Hour)):
		return Problemf(Malformed, "notBefore is in the past")
	case !end.After(begin) || !end.After(now):
		return Problemf(Malformed, "notAfter is in the past or not after notBefore")
	case end.After(now.Add(p.Lifetime + time.Minute)):
		return Problemf(Malformed, "the certificate would end later than profile %q allows (%s from now)", p.Name, p.Lifetime)
	}
	return nil
}

// Holds reports whether a proof counts as a valid authorization of the account:
// it has not expired, and was made under the key that the account has now.
func (p *Proof) Holds(a *Account, now time.Time) bool {
	return p != nil && p.AccountID == a.ID && p.KeyEpoch == a.KeyEpoch && now.Before(p.Expires)
}

// Serves reports whether a proof makes the authorization of a new order valid:
// the profile allows it, for this identifier and method, and there is time left.
func (p *Proof) Serves(a *Account, profile *Profile, id Identifier, now time.Time) bool {
	return profile.ReuseAuthorizations && p.Holds(a, now.Add(time.Hour)) && p.Name == id.Name() &&
		(slices.Contains(profile.ChallengesFor(id), p.Method) || p.Method != "" && p.Method == profile.Relay)
}

// An IdentifierPolicy says which names may be ordered.
type IdentifierPolicy struct {
	Types []IdentifierType
	// Allow and Deny hold exact names and patterns: "*.corp.example" covers all
	// names below corp.example, at any depth, and "*" covers all. Deny wins. An
	// empty Allow allows all.
	Allow, Deny []string
	Wildcards   bool
	Max         int // identifiers in an order
}

// Check refuses identifiers that the policy does not allow, all in one problem
// with a subproblem for each (RFC 8555, Sections 6.7.1 and 7.4).
func (p *Profile) Check(ids []Identifier) error {
	if limit := p.Identifiers.Max; limit > 0 && len(ids) > limit {
		return Problemf(RejectedIdentifier, "%d identifiers in one order, at most %d are allowed", len(ids), limit)
	}
	var subs []*Problem
	for _, id := range ids {
		if problem := p.check(id); problem != nil {
			subs = append(subs, problem.For(id))
		}
	}
	if problem := Combine("some identifiers were refused", subs); problem != nil {
		return problem
	}
	return nil
}

func (p *Profile) check(id Identifier) *Problem {
	pol := &p.Identifiers
	if !slices.Contains(pol.Types, id.Type) {
		return Problemf(UnsupportedIdentifier, "identifiers of type %q are not issued under profile %q", id.Type, p.Name)
	}
	_, wildcard := id.Base()
	if wildcard && !pol.Wildcards {
		return Problemf(RejectedIdentifier, "wildcards are not allowed under profile %q", p.Name)
	}
	if len(p.ChallengesFor(id)) == 0 && p.Relay == "" {
		return Problemf(RejectedIdentifier, "profile %q offers no challenge that can prove a wildcard", p.Name)
	}
	allowed := len(pol.Allow) == 0
	for _, pattern := range pol.Allow {
		allowed = allowed || covers(pattern, id.Value)
	}
	for _, pattern := range pol.Deny {
		// A wildcard stands for every name it would match, denied ones too.
		if covers(pattern, id.Value) || wildcard && matches(id.Value, pattern) {
			allowed = false
		}
	}
	if !allowed {
		return Problemf(RejectedIdentifier, "the name is not allowed under profile %q", p.Name)
	}
	return nil
}

func covers(pattern, name string) bool {
	if pattern == "*" || pattern == name {
		return true
	}
	suffix, ok := strings.CutPrefix(pattern, "*")
	return ok && strings.HasSuffix(name, suffix)
}

// matches reports whether a wildcard stands for the name: for one label only
// (RFC 9525, Section 6.3).
func matches(wildcard, name string) bool {
	label, ok := strings.CutSuffix(name, wildcard[1:])
	return ok && label != "" && !strings.Contains(label, ".")
}
