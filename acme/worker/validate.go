package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// validate has one challenge checked and saves the outcome. If this process
// dies meanwhile, the order is still in the queue and the challenge is checked
// again, which does no harm.
func (w *Worker) validate(ctx context.Context, o *acme.Order, ref acme.ChallengeRef) {
	a := &o.Authorizations[ref.Authorization]
	c := a.Challenge(ref.Type)
	log := w.Log.With("order", o.ID, "account", o.AccountID, "identifier", a.Ordered().Value, "challenge", string(ref.Type))
	if !w.Now().Before(o.Expires) {
		// A client that is gone does not ask, and then nobody else ends it.
		ctx, cancel := context.WithTimeout(ctx, saveWithin)
		defer cancel()
		w.expire(ctx, o, log)
		return
	}
	dir := w.policy.Load().Directories[o.Directory]
	if dir == nil {
		log.WarnContext(ctx, "order of a directory that is not configured", "directory", o.Directory)
		return
	}
	if c.Relay != nil {
		w.relay(ctx, o, ref, log)
		return
	}
	err := dir.Validator.Validate(ctx, &acme.Validation{
		OrderID: o.ID, AccountID: o.AccountID, Type: ref.Type, Identifier: a.Identifier,
		Token: a.Token, KeyAuthorization: a.KeyAuthorization(c),
	})
	problem, failed := isProblem(err)
	if err != nil && !failed {
		if ctx.Err() == nil {
			log.WarnContext(ctx, "validation broken off, will be made again", "err", err)
		}
		return
	}
	lifetime := time.Duration(0) // of a profile that is gone: the proof ends with the order
	if p := dir.Profiles[o.Profile]; p != nil {
		lifetime = p.AuthorizationLifetime
	}
	w.validated(ctx, o, ref, problem, func(now time.Time) time.Duration { return max(lifetime, o.Expires.Sub(now)) }, log)
}

// validated saves the outcome of a challenge: problem is nil if control was
// proven, for as long as lifetime says.
func (w *Worker) validated(ctx context.Context, o *acme.Order, ref acme.ChallengeRef, problem *acme.Problem, lifetime func(now time.Time) time.Duration, log *slog.Logger) {
	// The outcome is known: it is saved even if the process is told to stop.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveWithin)
	defer cancel()
	w.Boundary("validated", o.ID)
	now := w.Now()
	if problem != nil {
		key := acme.FailedValidations(o.AccountID, o.Authorizations[ref.Authorization].Identifier, w.policy.Load().FailedValidations)
		if err := w.Store.Take(ctx, key, 1, now); err != nil && !isLimit(err) {
			log.WarnContext(ctx, "failed validation not counted", "err", err)
		}
	}
	if !now.Before(o.Expires) {
		w.expire(ctx, o, log)
		return
	}
	saved, changed, err := w.update(ctx, o, func(o *acme.Order) error {
		return o.Validated(ref.Authorization, ref.Type, problem, lifetime(now), now)
	})
	switch {
	case err != nil:
		log.WarnContext(ctx, "outcome of a validation not saved, it will be made again", "err", err)
	case changed && problem != nil:
		w.metrics.orderEnded(o.Profile, "invalid")
		log.InfoContext(ctx, "validation failed", "problem", string(problem.Type), "detail", problem.Detail, "err", errors.Unwrap(problem))
	case changed:
		log.InfoContext(ctx, "validation succeeded", "status", string(saved.Status))
	}
}

// expire ends an order whose time is over.
func (w *Worker) expire(ctx context.Context, o *acme.Order, log *slog.Logger) {
	now := w.Now()
	_, changed, err := w.update(ctx, o, func(o *acme.Order) error {
		if !o.Expire(now) {
			return acme.ErrUnchanged
		}
		return nil
	})
	switch {
	case err != nil:
		log.WarnContext(ctx, "expiry not saved, will be repeated", "err", err)
	case changed:
		w.metrics.orderEnded(o.Profile, "invalid")
		log.InfoContext(ctx, "order expired before a validation ended")
	}
}

func isLimit(err error) bool {
	_, ok := errors.AsType[*acme.LimitError](err)
	return ok
}

func challengeKey(orderID string, ref acme.ChallengeRef) string {
	return fmt.Sprintf("validate %s %d %s", orderID, ref.Authorization, ref.Type)
}
