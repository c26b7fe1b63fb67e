package server

import (
	"context"
	"errors"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// A Relay has the backend of that name make records for names that it could not
// certify otherwise: see [acme.Relayer].
type Relay func(ctx context.Context, backend, accountID string, ids []acme.Identifier, until time.Time) ([]*acme.RelayRecord, error)

const (
	// relayLimit bounds what newOrder waits for records.
	relayLimit = 15 * time.Second
	// People publish relayed records, so that clients need not poll often.
	retryRelay     = 5 * time.Second
	retryRelayMost = time.Minute
)

// preflight asks whether the order is bound to fail. Names that the CA could
// not certify may be saved by a relay challenge, if the profile offers it: for
// these the answer has a record, for others nil.
func (s *Server) preflight(r *request, profile *acme.Profile, ids []acme.Identifier, rate acme.LimitKey, now time.Time) ([]*acme.RelayRecord, error) {
	records := make([]*acme.RelayRecord, len(ids))
	refused := s.Preflight(r.Context(), profile.Backend, ids)
	problem, ok := errors.AsType[*acme.Problem](refused)
	if ok && problem.Type == acme.RejectedIdentifier && profile.Relay != "" && s.Relay != nil {
		// A record costs calls to the CA: not for orders that are too many.
		if err := s.Store.Take(r.Context(), rate, 0, now); err != nil {
			return nil, limited(err)
		}
		refused = s.relay(r, profile, ids, problem, now.Add(profile.OrderLifetime), records)
	}
	if refused != nil {
		return nil, refused
	}
	var subs []*acme.Problem
	for i, id := range ids {
		if records[i] == nil && len(profile.ChallengesFor(id)) == 0 {
			subs = append(subs, acme.Problemf(acme.RejectedIdentifier, "profile %q offers no challenge that can prove this wildcard", profile.Name).For(id))
		}
	}
	if problem := acme.Combine("some identifiers were refused", subs); problem != nil {
		return nil, problem
	}
	return records, nil
}

// relay asks for records of the names that were refused, and returns what
// remains of the refusal. That they cannot be had is no failure of its own.
func (s *Server) relay(r *request, profile *acme.Profile, ids []acme.Identifier, refused *acme.Problem, until time.Time, records []*acme.RelayRecord) error {
	var names []acme.Identifier
	var places []int
	for i, id := range ids {
		for _, sub := range refused.Subproblems {
			if sub.Identifier != nil && *sub.Identifier == id {
				names, places = append(names, id), append(places, i)
				break
			}
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), relayLimit)
	defer cancel()
	got, err := s.Relay(ctx, profile.Backend, r.account.ID, names, until)
	if err != nil {
		s.Log.WarnContext(r.Context(), "relay challenge cannot be offered", "account", r.account.ID, "backend", profile.Backend, "err", err)
		return refused
	}
	offered := make(map[acme.Identifier]bool)
	for n, record := range got {
		if record != nil {
			records[places[n]], offered[names[n]] = record, true
		}
	}
	var left []*acme.Problem
	for _, sub := range refused.Subproblems {
		if sub.Identifier == nil || !offered[*sub.Identifier] {
			left = append(left, sub)
		}
	}
	if len(left) == len(refused.Subproblems) {
		return refused
	}
	if problem := acme.Combine(refused.Detail, left); problem != nil {
		return problem.WithStatus(refused.Status)
	}
	return nil
}

// retryAfter is how long a client is told to wait for a challenge that is
// processing.
func (s *Server) retryAfter(c *acme.Challenge) time.Duration {
	if c.Relay == nil {
		return retryChallenge
	}
	return min(max(c.Next.Sub(s.Now()), retryRelay), retryRelayMost)
}
