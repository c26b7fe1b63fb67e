package acme

import (
	"context"
	"fmt"
	"time"
)

// A RelayRecord is the record that a CA wants to see in DNS before it certifies
// a domain. A client that is told its random value and brings it into DNS has
// proven to the CA and to us that it controls the domain. It is never changed
// once it is made.
type RelayRecord struct {
	Backend string    `json:"backend"` // that knows it
	Ref     string    `json:"ref"`     // what the backend knows it by
	Type    string    `json:"type"`    // TXT
	Name    string    `json:"name"`    // without a dot at its end
	Value   string    `json:"value"`
	Expires time.Time `json:"expires"` // nobody looks for it after this
}

// A Relayer is an Issuer that can have a domain validated by a record that the
// client publishes, ahead of any certificate.
type Relayer interface {
	Issuer
	// Relay has records made for names that the CA could not certify otherwise,
	// to be told to this account only, and waits for them until the time given.
	// The answer has one element for each name: nil where the record's
	// appearance would prove nothing about the account, because the domain is
	// validated already, or somebody else knows the value or may publish it.
	Relay(ctx context.Context, accountID string, ids []Identifier, until time.Time) ([]*RelayRecord, error)
	// RelayStatus tells what the CA thinks of a record that Relay made for the
	// account: whether it was seen, and until when the domain is validated (zero
	// if the CA does not say). A [*Problem] means that it never will be; any
	// other error that it cannot be told now.
	RelayStatus(ctx context.Context, accountID string, r *RelayRecord) (seen bool, expires time.Time, err error)
}

// MaxRelayProof bounds how long a relayed validation counts as authorization.
const MaxRelayProof = 30 * 24 * time.Hour

// OfferRelay makes the relay challenge the only one of a pending authorization
// of a new order. Other challenges would prove control to us and leave the CA
// without a way to validate the domain, so the order would fail after finalize.
func (o *Order) OfferRelay(authz int, t ChallengeType, r *RelayRecord) error {
	if authz < 0 || authz >= len(o.Authorizations) {
		return ErrNotFound
	}
	a := &o.Authorizations[authz]
	if o.Version != 0 || o.Status != StatusPending || a.Status != StatusPending {
		return ErrUnchanged
	}
	a.Challenges = []Challenge{{Type: t, Status: StatusPending, Relay: r}}
	o.note([]Event{{Time: o.Created, Name: a.Ordered().Value, Text: fmt.Sprintf("the CA waits for the client to publish the %s record %s with the value %q", r.Type, r.Name, r.Value)}})
	return nil
}

// RelayWaits records that the CA was asked about a relayed record for the n-th
// time and has not seen it, and when to ask again: not after the order's end.
func (o *Order) RelayWaits(authz int, t ChallengeType, n int, next, now time.Time) error {
	_, c := o.challenge(authz, t)
	if c == nil {
		return ErrNotFound
	}
	if o.Status != StatusPending || c.Status != StatusProcessing || c.Relay == nil || c.Looks != n-1 {
		return ErrUnchanged // ended, or another replica has asked
	}
	if next.After(o.Expires) {
		next = o.Expires
	}
	c.Looks, c.Next = n, next.UTC().Truncate(time.Second) // no store rounds the wake time to before it
	o.wakeForChallenges(now)
	return nil
}

// wakeForChallenges sets when the worker must look again: soon if anything is
// being validated over the network, else when the first record is due.
func (o *Order) wakeForChallenges(now time.Time) {
	o.Wake = time.Time{}
	for _, ref := range o.ProcessingChallenges() {
		_, c := o.challenge(ref.Authorization, ref.Type)
		if c.Relay == nil || c.Next.IsZero() {
			o.wakeBy(now.Add(Handoff))
		} else {
			o.wakeBy(c.Next)
		}
	}
}
