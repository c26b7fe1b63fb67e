package worker

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/acme-bridge/acme-bridge/acme"
)

const (
	// saveWithin bounds the saving of an outcome that is known already.
	saveWithin = 30 * time.Second
	// deadlineMargin lies between the deadline of a Submit and the first Find,
	// so that they never race.
	deadlineMargin = 2 * time.Second
	// maxSearches is how many Finds may fail to tell before the order is given
	// up: about an hour and a half with their growing intervals.
	maxSearches = 20
)

// issue advances a processing order by one step (the table "issuing at most
// once" in docs/architecture.md):
//
//	no intent            submit: nothing was sent
//	ticket               poll: the CA is at work
//	intent, before its deadline    nothing: someone waits for the answer
//	intent, after its deadline     find: the answer was lost
func (w *Worker) issue(ctx context.Context, o *acme.Order) {
	now := w.Now()
	switch {
	case o.Intent == nil:
		w.submit(ctx, o)
	case o.Ticket != "":
		w.poll(ctx, o)
	case now.Before(o.Intent.Deadline):
		// A claim came early, by a nudge or another clock; the deadline is in
		// the queue already, unless this claim has moved it.
		w.postpone(ctx, o, o.Intent.Deadline)
	default:
		w.find(ctx, o)
	}
}

func (w *Worker) logger(o *acme.Order) *slog.Logger {
	return w.Log.With("order", o.ID, "account", o.AccountID, "profile", o.Profile)
}

// submit saves the intent and, if this worker was the one that saved it, asks
// the CA.
func (w *Worker) submit(ctx context.Context, o *acme.Order) {
	log := w.logger(o)
	policy := w.policy.Load()
	profile := policy.profile(o)
	if profile == nil {
		w.refuse(ctx, o, 0, acme.Problemf(acme.InvalidProfile, "the order's profile is not offered any more; make a new order"))
		return
	}
	issuer := policy.Issuers[profile.Backend]
	if issuer == nil {
		log.ErrorContext(ctx, "order for a backend that is not configured", "backend", profile.Backend)
		w.refuse(ctx, o, 0, acme.Problemf(acme.ServerInternal, "the order cannot be fulfilled"))
		return
	}
	log = log.With("backend", profile.Backend)

	// From here on the step goes to its end even if the process is told to stop.
	ctx = context.WithoutCancel(ctx)
	timeout := issuer.Timeout()
	markCtx, cancel := context.WithTimeout(ctx, timeout)
	mark := issuer.Mark(markCtx)
	cancel()
	now := w.Now()
	ctx, cancel = context.WithTimeout(ctx, timeout+saveWithin)
	defer cancel()
	w.Boundary("before-intent", o.ID)
	o, mine, err := w.update(ctx, o, func(o *acme.Order) error {
		return o.Submit(acme.Intent{
			Since: now.UTC(), Deadline: now.Add(timeout + deadlineMargin).UTC(),
			Backend: profile.Backend, LifetimeSeconds: int64(profile.Lifetime / time.Second), Mark: mark,
		})
	})
	if err != nil {
		log.WarnContext(ctx, "intent not saved, will retry", "err", err)
		return
	}
	if !mine {
		return // another worker was faster, or there is nothing to do any more
	}
	w.Boundary("intent-saved", o.ID)
	req, err := o.Request()
	if err != nil {
		log.ErrorContext(ctx, "stored CSR does not parse", "err", err)
		w.refuse(ctx, o, o.Intent.Attempt, acme.Problemf(acme.ServerInternal, "internal error"))
		return
	}
	// What the save took is not the CA's to use: after the deadline others search.
	left := min(timeout, o.Intent.Deadline.Add(-deadlineMargin).Sub(w.Now()))
	if left <= 0 {
		w.settle(ctx, o, issuer, req, nil, &acme.NotSentError{Err: errors.New("the intent was saved too late")})
		return
	}
	log.DebugContext(ctx, "certificate requested", "attempt", o.Intent.Attempt)
	submitCtx, cancelSubmit := context.WithTimeout(ctx, left)
	defer cancelSubmit()
	start := time.Now()
	got, err := issuer.Submit(submitCtx, req)
	w.metrics.submitted(profile.Backend, err, time.Since(start))
	w.Boundary("submitted", o.ID)
	// A backend that does not heed its deadline leaves no time of ctx.
	settleCtx, cancelSettle := context.WithTimeout(context.WithoutCancel(ctx), saveWithin)
	defer cancelSettle()
	w.settle(settleCtx, o, issuer, req, got, err)
}

// settle saves what came of a Submit.
func (w *Worker) settle(ctx context.Context, o *acme.Order, issuer acme.Issuer, req *acme.IssueRequest, got *acme.Issuance, err error) {
	log := w.logger(o).With("backend", o.Intent.Backend, "attempt", o.Intent.Attempt)
	attempt := o.Intent.Attempt
	if err == nil && pending(got) {
		w.wait(ctx, o, got)
		return
	}
	if err == nil {
		if err := w.accept(ctx, o, issuer, req, got); err != nil {
			log.WarnContext(ctx, "certificate not accepted yet, will search for it", "deadline", o.Intent.Deadline, "err", err)
		}
		return
	}
	if problem, ok := isProblem(err); ok {
		log.WarnContext(ctx, "request refused", "problem", string(problem.Type), "err", err)
		w.refuse(ctx, o, attempt, problem)
		return
	}
	notSent, ok := errors.AsType[*acme.NotSentError](err)
	if !ok {
		// The intent stays, and its deadline is in the queue: then Find.
		log.WarnContext(ctx, "answer lost, will search for the certificate", "deadline", o.Intent.Deadline, "err", err)
		return
	}
	now := w.Now()
	retry := now.Add(max(notSent.After, jittered(attempt-1, time.Second, 5*time.Minute)))
	if !retry.Before(o.Expires) {
		log.ErrorContext(ctx, "certificate authority not reached until the order expired", "retry", retry, "err", err)
		w.refuse(ctx, o, attempt, acme.Problemf(acme.ServerInternal, "the certificate authority could not be reached before the order expired"))
		return
	}
	log.WarnContext(ctx, "request not sent, will retry", "retry", retry, "err", err)
	if _, _, err := w.update(ctx, o, func(o *acme.Order) error { return o.NotIssued(attempt, retry) }); err != nil {
		// The intent stays: Find will prove that nothing was issued.
		log.WarnContext(ctx, "outcome not saved", "err", err)
	}
}

// find looks for the certificate of an intent whose answer was lost.
func (w *Worker) find(ctx context.Context, o *acme.Order) {
	attempt := o.Intent.Attempt
	log := w.logger(o).With("backend", o.Intent.Backend, "attempt", attempt, "search", o.Searches+1)
	issuer := w.policy.Load().Issuers[o.Intent.Backend]
	if issuer == nil {
		log.ErrorContext(ctx, "order waits for a backend that is not configured; restore it in the configuration")
		w.postpone(ctx, o, w.Now().Add(5*time.Minute))
		return
	}
	req, err := o.Request()
	if err != nil {
		log.ErrorContext(ctx, "stored CSR does not parse", "err", err)
		w.refuse(ctx, o, attempt, acme.Problemf(acme.ServerInternal, "internal error"))
		return
	}
	// Shorter than the lease, so that replicas do not search side by side.
	findCtx, cancel := context.WithTimeout(ctx, w.Lease*3/4)
	defer cancel()
	got, err := issuer.Find(findCtx, req)
	stopping := ctx.Err() != nil
	if stopping && err != nil && !errors.Is(err, acme.ErrNotIssued) {
		return // broken off: it tells nothing of the CA, and will be made again
	}
	ctx, cancelSave := context.WithTimeout(context.WithoutCancel(ctx), saveWithin)
	defer cancelSave()
	w.metrics.searched(o.Intent.Backend, err)
	if err == nil && pending(got) {
		log.InfoContext(ctx, "lost request found")
		w.wait(ctx, o, got)
		return
	}
	if err == nil {
		log.InfoContext(ctx, "lost certificate found")
		err = w.accept(ctx, o, issuer, req, got)
	}
	away, unreached := errors.AsType[*acme.NotSentError](err)
	switch {
	case err == nil:
	case unreached && w.Now().Before(o.Expires):
		// However long the CA is away, that is no search: it is made when the CA
		// is back, and soon then.
		next := w.Now().Add(max(away.After, jittered(1, 5*time.Second, time.Minute)))
		log.WarnContext(ctx, "certificate authority cannot be searched now, will try again", "next", next, "err", err)
		w.postpone(ctx, o, next)
	case errors.Is(err, acme.ErrNotIssued):
		if !w.Now().Before(o.Expires) {
			log.ErrorContext(ctx, "certificate authority did not issue until the order expired")
			w.refuse(ctx, o, attempt, acme.Problemf(acme.ServerInternal, "the certificate authority did not answer before the order expired"))
			return
		}
		log.InfoContext(ctx, "no certificate was issued, will request again")
		again, changed, err := w.update(ctx, o, func(o *acme.Order) error { return o.NotIssued(attempt, w.Now().Add(acme.Handoff)) })
		if err != nil {
			log.WarnContext(ctx, "outcome not saved, will search again", "err", err)
		} else if changed && !stopping {
			w.submit(ctx, again)
		}
	case o.Searches+1 >= maxSearches:
		log.ErrorContext(ctx, "given up: it is unknown whether the certificate authority issued; look for the CSR's key there and revoke what you find",
			"csr", o.CSRFingerprint(), "err", err)
		w.refuse(ctx, o, attempt, acme.Problemf(acme.ServerInternal, "the certificate authority's answer was lost; make a new order"))
	default:
		next := w.Now().Add(jittered(o.Searches, 2*time.Second, 10*time.Minute))
		log.WarnContext(ctx, "search was inconclusive, will search again", "next", next, "err", err)
		if _, _, err := w.update(ctx, o, func(o *acme.Order) error { return o.Unresolved(attempt, next) }); err != nil {
			log.WarnContext(ctx, "next search not scheduled, the lease will bring it", "err", err)
		}
	}
}

// pending reports that the CA has the request and is at work on it.
func pending(got *acme.Issuance) bool { return got != nil && got.Leaf == nil && got.Ticket != "" }

// How soon and how late a CA that is at work is asked again, whatever it says.
const (
	pollSoonest = time.Second
	pollLatest  = 10 * time.Minute
)

// wait saves the ticket and when to poll with it.
func (w *Worker) wait(ctx context.Context, o *acme.Order, got *acme.Issuance) {
	attempt := o.Intent.Attempt
	log := w.logger(o).With("backend", o.Intent.Backend, "attempt", attempt)
	if o.Ticket == "" {
		log.InfoContext(ctx, "certificate authority is at work", "ticket", got.Ticket)
	}
	for _, e := range got.Events {
		log.InfoContext(ctx, "news of the certificate authority", "identifier", e.Name, "event", e.Text)
	}
	next := w.Now().Add(min(max(got.RetryAfter, pollSoonest), pollLatest))
	if _, _, err := w.update(ctx, o, func(o *acme.Order) error { return o.Accepted(attempt, got.Ticket, got.Events, next) }); err != nil {
		// Without the ticket Find will bring it again; with one the lease will.
		log.WarnContext(ctx, "state of the request not saved", "err", err)
	}
}

// poll asks a CA that is at work. Whoever else does so at the same time does no
// harm.
func (w *Worker) poll(ctx context.Context, o *acme.Order) {
	attempt := o.Intent.Attempt
	log := w.logger(o).With("backend", o.Intent.Backend, "attempt", attempt, "ticket", o.Ticket)
	poller, ok := w.policy.Load().Issuers[o.Intent.Backend].(acme.Poller)
	if !ok {
		log.ErrorContext(ctx, "order waits for a backend that is not configured; restore it in the configuration")
		w.postpone(ctx, o, w.Now().Add(5*time.Minute))
		return
	}
	req, err := o.Request()
	if err != nil {
		log.ErrorContext(ctx, "stored CSR does not parse", "err", err)
		w.refuse(ctx, o, attempt, acme.Problemf(acme.ServerInternal, "internal error"))
		return
	}
	pollCtx, cancel := context.WithTimeout(ctx, w.Lease*3/4)
	defer cancel()
	got, err := poller.Poll(pollCtx, req, o.Ticket)
	if ctx.Err() != nil {
		return // told to stop; the queue brings the order again
	}
	ctx, cancelSave := context.WithTimeout(context.WithoutCancel(ctx), saveWithin)
	defer cancelSave()
	problem, refused := isProblem(err)
	switch {
	case refused:
		log.WarnContext(ctx, "certificate authority gave up", "problem", string(problem.Type), "err", err)
		if got != nil && len(got.Events) > 0 {
			w.wait(ctx, o, &acme.Issuance{Ticket: o.Ticket, Events: got.Events})
		}
		w.refuse(ctx, o, attempt, problem)
	case err != nil:
		log.WarnContext(ctx, "certificate authority not asked, will ask again", "err", err)
		w.postpone(ctx, o, w.Now().Add(jittered(1, 5*time.Second, time.Minute)))
	case pending(got):
		w.wait(ctx, o, got)
	default:
		if err := w.accept(ctx, o, poller, req, got); err != nil {
			log.WarnContext(ctx, "certificate not accepted yet, will ask again", "err", err)
			w.postpone(ctx, o, w.Now().Add(jittered(1, 5*time.Second, time.Minute)))
		}
	}
}

// accept checks a certificate and, if it is right, makes it the order's, else
// puts it into quarantine. An error means that neither could be done yet.
func (w *Worker) accept(ctx context.Context, o *acme.Order, issuer acme.Issuer, req *acme.IssueRequest, got *acme.Issuance) error {
	if got == nil || got.Leaf == nil {
		return errors.New("the backend returned neither certificate nor error")
	}
	attempt, now := o.Intent.Attempt, w.Now()
	roots, err := issuer.Roots(ctx)
	if err != nil {
		return fmt.Errorf("read the certificate authority's roots: %w", err)
	}
	if err := acme.CheckIssued(req, got, roots, now); err != nil {
		w.quarantine(ctx, o, got, err)
		return nil
	}
	cert := &acme.Certificate{
		ID: acme.CertificateID(got.Leaf), Leaf: got.Leaf.Raw, Issued: now.UTC().Truncate(time.Second),
		NotAfter: got.Leaf.NotAfter.UTC(), Backend: o.Intent.Backend,
	}
	// The certificate exists and is ours; a store that is away for a moment must
	// not cost a search. Each of these saves may be repeated.
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		return struct{}{}, w.keep(ctx, o, attempt, cert, got)
	}, backoff.WithBackOff(backoff.NewExponentialBackOff()), backoff.WithMaxElapsedTime(saveWithin))
	switch {
	case errors.Is(err, errNotNew), errors.Is(err, errEnded):
		w.quarantine(ctx, o, got, err)
	case err != nil:
		return fmt.Errorf("save certificate %s: %w", cert.ID, err)
	}
	return nil
}

var (
	errNotNew = errors.New("the certificate belongs to another order already")
	errEnded  = errors.New("the order ended, or asked again, before the certificate came")
)

// keep saves a certificate that has been checked: first whose it is, so that no
// second order gets it, then the chain, last the order that refers to both.
func (w *Worker) keep(ctx context.Context, o *acme.Order, attempt int, cert *acme.Certificate, got *acme.Issuance) error {
	retry := func(err error) error {
		if errors.Is(err, acme.ErrUnavailable) || errors.Is(err, acme.ErrConflict) {
			return err
		}
		return backoff.Permanent(err)
	}
	owner, err := w.Store.ClaimCertificate(ctx, cert.ID, o.ID, cert.NotAfter.Add(keepAfterEnd))
	if err != nil {
		return retry(err)
	}
	if owner != o.ID {
		if err := w.mayShare(ctx, o, owner, cert, got); err != nil {
			return retry(err)
		}
	}
	w.Boundary("certificate-claimed", o.ID)
	if cert.ChainRef, err = w.Store.PutChain(ctx, chainPEM(got)); err != nil {
		return retry(err)
	}
	saved, changed, err := w.update(ctx, o, func(o *acme.Order) error { return o.Issued(attempt, cert, got.Events...) })
	if err != nil {
		return retry(err)
	}
	w.Boundary("order-valid", o.ID)
	if !changed {
		if saved.Certificate == nil || saved.Certificate.ID != cert.ID {
			return backoff.Permanent(errEnded)
		}
		return nil // another worker found it
	}
	w.metrics.orderEnded(o.Profile, "valid")
	w.logger(saved).InfoContext(ctx, "certificate issued", "backend", cert.Backend, "certificate", cert.ID, "attempt", attempt,
		"serial", got.Leaf.SerialNumber.Text(16), "notAfter", cert.NotAfter)
	return nil
}

// mayShare returns nil if a certificate that is another order's may be this
// one's too: the backend says that it brings an earlier one again, and that was
// for the same account and never fetched. Names and key have been checked.
func (w *Worker) mayShare(ctx context.Context, o *acme.Order, owner string, cert *acme.Certificate, got *acme.Issuance) error {
	if !got.Again {
		return errNotNew
	}
	earlier, err := w.Store.Order(ctx, owner)
	if err != nil && !errors.Is(err, acme.ErrNotFound) {
		return err
	}
	if earlier == nil || earlier.AccountID != o.AccountID || earlier.Certificate == nil ||
		earlier.Certificate.ID != cert.ID || !earlier.Certificate.Unfetched {
		return errNotNew
	}
	return nil
}

// keepAfterEnd is how much longer than the certificate its number is known.
const keepAfterEnd = 7 * 24 * time.Hour

// chainPEM is what follows the leaf in a download: the issuers without the root
// (RFC 8555, Section 9.1).
func chainPEM(got *acme.Issuance) []byte {
	var out bytes.Buffer
	for _, c := range got.Chain {
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			continue
		}
		// A bytes.Buffer takes whatever is written.
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return out.Bytes()
}

// quarantine keeps a certificate that is not what was asked for, or that came
// too late, away from everyone but the operator, and ends the order.
func (w *Worker) quarantine(ctx context.Context, o *acme.Order, got *acme.Issuance, why error) {
	log := w.logger(o).With("backend", o.Intent.Backend, "attempt", o.Intent.Attempt)
	q := &acme.Quarantine{OrderID: o.ID, Backend: o.Intent.Backend, Reason: why.Error(), Time: w.Now().UTC()}
	if got.Leaf != nil {
		q.Leaf = got.Leaf.Raw
		log = log.With("serial", got.Leaf.SerialNumber.Text(16))
	}
	log.ErrorContext(ctx, "certificate quarantined: no order gets it", "err", why)
	w.metrics.quarantined.WithLabelValues(o.Intent.Backend).Inc()
	if err := w.Store.PutQuarantine(ctx, q); err != nil {
		log.ErrorContext(ctx, "quarantined certificate not kept", "err", err)
	}
	w.refuse(ctx, o, o.Intent.Attempt, acme.Problemf(acme.ServerInternal, "the certificate authority returned a certificate that is not what was asked for"))
}

// refuse ends an order for good: in that attempt, or with attempt 0 before any,
// so that no CA is being asked. If that cannot be saved, the queue brings the
// order again.
func (w *Worker) refuse(ctx context.Context, o *acme.Order, attempt int, problem *acme.Problem) {
	_, changed, err := w.update(ctx, o, func(o *acme.Order) error {
		if attempt == 0 && o.Intent != nil {
			return acme.ErrUnchanged // another worker, with another policy, was faster
		}
		return o.Refused(attempt, problem)
	})
	if err != nil {
		w.logger(o).WarnContext(ctx, "refusal not saved, will be repeated", "err", err)
		return
	}
	if changed {
		w.metrics.orderEnded(o.Profile, "invalid")
		w.logger(o).WarnContext(ctx, "order refused", "problem", string(problem.Type), "detail", problem.Detail)
	}
}

// postpone moves an order in the queue.
func (w *Worker) postpone(ctx context.Context, o *acme.Order, until time.Time) {
	attempt := o.Intent.Attempt
	if _, _, err := w.update(ctx, o, func(o *acme.Order) error { return o.Postpone(attempt, until) }); err != nil {
		w.logger(o).WarnContext(ctx, "order not put off, the lease will bring it", "err", err)
	}
}

func (p *Policy) profile(o *acme.Order) *acme.Profile {
	if dir := p.Directories[o.Directory]; dir != nil {
		return dir.Profiles[o.Profile]
	}
	return nil
}
