package worker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// How often a CA is asked about a relayed record, and how long it may take to
// answer. People publish records: there is no hurry.
const (
	relayFirst = 4 * time.Second
	relayMost  = time.Minute
	relayLimit = 20 * time.Second
)

var errNoRelay = errors.New("the backend is not configured, or it relays no validation")

// Relay has the backend of that name make records for an account's names. The
// answer has one element for each name, all nil if the backend knows no relay.
func (w *Worker) Relay(ctx context.Context, backend, accountID string, ids []acme.Identifier, until time.Time) ([]*acme.RelayRecord, error) {
	relayer, ok := w.policy.Load().Issuers[backend].(acme.Relayer)
	if !ok {
		return make([]*acme.RelayRecord, len(ids)), nil
	}
	records, err := relayer.Relay(ctx, accountID, ids, until)
	if err == nil && len(records) != len(ids) {
		err = errors.New("the backend's answer has not one element for each name")
	}
	return records, err
}

// relay asks the CA once whether it has seen the record of a challenge, and
// saves the outcome or when to ask again. What cannot be told now is asked
// again just as late, so that an outage brings no storm.
func (w *Worker) relay(ctx context.Context, o *acme.Order, ref acme.ChallengeRef, log *slog.Logger) {
	c := o.Authorizations[ref.Authorization].Challenge(ref.Type)
	if w.Now().Before(c.Next) {
		return // the order woke up for something else
	}
	seen, expires, err := false, time.Time{}, errNoRelay
	if relayer, ok := w.policy.Load().Issuers[c.Relay.Backend].(acme.Relayer); ok {
		askCtx, cancel := context.WithTimeout(ctx, relayLimit)
		seen, expires, err = relayer.RelayStatus(askCtx, o.AccountID, c.Relay)
		cancel()
	}
	problem, failed := isProblem(err)
	if ctx.Err() != nil && !failed && !seen {
		return // told to stop: whoever takes the order next asks
	}
	if err != nil && !failed {
		log.WarnContext(ctx, "relayed validation cannot be asked about, will ask again", "backend", c.Relay.Backend, "err", err)
		seen = false
	}
	if !failed && !seen {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveWithin)
		defer cancel()
		now := w.Now()
		_, _, err := w.update(ctx, o, func(o *acme.Order) error {
			return o.RelayWaits(ref.Authorization, ref.Type, c.Looks+1, now.Add(jittered(c.Looks, relayFirst, relayMost)), now)
		})
		if err != nil {
			log.WarnContext(ctx, "relayed validation not put off, it will be asked about again", "err", err)
		}
		return
	}
	w.validated(ctx, o, ref, problem, func(now time.Time) time.Duration {
		if expires.IsZero() {
			return acme.MaxRelayProof
		}
		return min(acme.MaxRelayProof, expires.Sub(now))
	}, log)
}
