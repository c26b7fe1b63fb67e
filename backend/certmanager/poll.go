package certmanager

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// How often a request is looked at, and for how long.
const (
	fastSoonest = 2 * time.Second // validated: it is about to be issued
	fastLatest  = 5 * time.Second
	fastFor     = 30 // looks; then it takes its time
	slowSoonest = 10 * time.Second
	slowLatest  = time.Minute
	pollLimit   = 25 * time.Second
	// goneAfter is how long lists may lack an accepted request.
	goneAfter = 30 * time.Minute
	// issueWithin bounds a request that is validated, or whose validation is
	// never shown.
	issueWithin = 24 * time.Hour
	// abandonedFor is how long a request that was given up is remembered: as
	// long as its certificate may be reissued.
	abandonedFor = 200 * 24 * time.Hour
	// staleFor is how long the chain may still be the replaced certificate's.
	staleFor = 30 * time.Minute
)

// Poll looks at a request: at its row and at the validation of each name, when
// the feed of changes hints at news or the request's own growing interval is
// over. Records that are asked for are published meanwhile.
func (i *Issuer) Poll(ctx context.Context, req *acme.IssueRequest, text string) (*acme.Issuance, error) {
	t, err := parseTicket(text)
	if err != nil {
		return nil, err
	}
	if d := i.pace.held(); d > 0 {
		return i.pending(t, d), nil
	}
	ctx, cancel := context.WithTimeout(ctx, pollLimit)
	defer cancel()
	now := i.cfg.Now()
	if due := time.Unix(t.Next, 0); now.Before(due) {
		hint := ""
		if t.No != 0 {
			hint = i.hint(ctx, t.No)
		}
		if hint == "" || strings.EqualFold(hint, "Ongoing") {
			return i.pending(t, min(due.Sub(now), i.pace.stretch(feedInterval))), nil
		}
	}
	r, err := i.lookup(ctx, t)
	if err != nil {
		if d := i.pace.held(); d > 0 { // 429: not worth an alarm, and everybody waits
			return i.pending(t, d), nil
		}
		return nil, i.alarmed(ctx, req, err)
	}
	if r == nil {
		return i.gone(ctx, req, t)
	}
	t.Gone = 0
	t.No = r.No
	if r.OrderID != "" {
		t.Order = r.OrderID
	} else {
		r.OrderID = t.Order
	}
	switch {
	case r.Status == "0":
		return i.ongoing(ctx, req, t)
	case issuedStatus(r.Status):
		return i.issued(ctx, req, t, r)
	}
	events := []acme.Event{i.event("", "%s (%s)", statusText(r), r.Status)}
	problem := i.failed(ctx, req, t, r)
	if problem == nil {
		i.cfg.Log.ErrorContext(ctx, "certificate of an unknown status, will ask again", "order", req.OrderID, "certificate", t.No, "row", r.raw.String())
		return i.later(t, slowLatest), nil
	}
	i.metrics.ended(i.cfg.Backend, r.Status)
	i.cfg.Log.WarnContext(ctx, "request failed at Certificate Manager", "order", req.OrderID, "certificate", t.No, "row", r.raw.String())
	i.cleanUp(ctx, req, t)
	return &acme.Issuance{Ticket: t.String(), Events: events}, problem
}

// later puts the next look off.
func (i *Issuer) later(t *ticket, d time.Duration, events ...acme.Event) *acme.Issuance {
	d = i.pace.stretch(d)
	t.Looks++
	t.Next = i.cfg.Now().Add(d).Unix()
	return i.pending(t, min(d, i.pace.stretch(feedInterval)), events...)
}

// interval is the time to the next look at a request that goes its way.
func interval(t *ticket) time.Duration {
	if t.Done && t.Looks < fastFor {
		return min(fastSoonest+time.Duration(t.Looks)*time.Second/2, fastLatest)
	}
	n := t.Looks
	if t.Done {
		n -= fastFor
	}
	d := slowSoonest
	for range min(n, 8) {
		d = min(d*3/2, slowLatest)
	}
	return d
}

// gone is a request that no list shows. It was accepted, so it is looked for
// much longer than one whose answer was lost.
func (i *Issuer) gone(ctx context.Context, req *acme.IssueRequest, t *ticket) (*acme.Issuance, error) {
	now := i.cfg.Now().Unix()
	if t.Gone == 0 {
		t.Gone = now
	}
	if now-t.Gone < int64(goneAfter/time.Second) {
		return i.later(t, interval(t)), nil
	}
	i.cfg.Log.ErrorContext(ctx, "no list shows a request that was accepted: look for it in the console", "order", req.OrderID, "name", t.Name, "certificate", t.No)
	return nil, acme.Problemf(acme.ServerInternal, "the certificate authority lost the request; make a new order")
}

// ongoing looks at the names' validation.
func (i *Issuer) ongoing(ctx context.Context, req *acme.IssueRequest, t *ticket) (*acme.Issuance, error) {
	events, err := i.validation(ctx, req, t)
	now := i.cfg.Now()
	if err != nil {
		i.cfg.Log.WarnContext(ctx, "validation not looked at, will look again", "order", req.OrderID, "certificate", t.No, "err", err)
		// What could not be looked at is no ground to give up, but not for ever.
		if now.Before(time.Unix(t.Since, 0).Add(2 * max(issueWithin, i.cfg.DCVTimeout))) {
			return i.later(t, interval(t), events...), nil
		}
	}
	done, looked := true, true
	last := t.Since
	for _, d := range t.DCV {
		if d.State == dcvTimedOut {
			i.metrics.ended(i.cfg.Backend, "dcv_timeout")
			i.cleanUp(ctx, req, t)
			return &acme.Issuance{Ticket: t.String(), Events: events}, i.notValidated(req, t, "the domain validation of the certificate authority timed out")
		}
		done = done && (d.State == dcvDone || d.State == "")
		looked = looked && d.Looked
		last = max(last, d.Served)
	}
	if !done && now.After(time.Unix(last, 0).Add(i.cfg.DCVTimeout)) {
		i.metrics.ended(i.cfg.Backend, "bridge_timeout")
		i.abandon(ctx, req, t)
		events = append(events, i.event("", "given up: not validated within %s", i.cfg.DCVTimeout))
		i.cleanUp(ctx, req, t)
		return &acme.Issuance{Ticket: t.String(), Events: events}, i.notValidated(req, t, "the certificate authority could not validate the domains in time")
	}
	if done && now.After(time.Unix(last, 0).Add(max(issueWithin, i.cfg.DCVTimeout))) {
		i.metrics.ended(i.cfg.Backend, "bridge_timeout")
		i.abandon(ctx, req, t)
		return &acme.Issuance{Ticket: t.String(), Events: events}, acme.Problemf(acme.ServerInternal, "the certificate authority did not issue in time")
	}
	if done != t.Done {
		t.Looks = 0 // another phase, another pace
	}
	t.Done = done
	if !looked {
		return i.later(t, fastSoonest, events...), nil // at the rest of many names
	}
	return i.later(t, interval(t), events...), nil
}

// issued fetches the certificate.
func (i *Issuer) issued(ctx context.Context, req *acme.IssueRequest, t *ticket, r *row) (*acme.Issuance, error) {
	if events := i.lastEvents(ctx, req, t); len(events) > 0 {
		// The history is saved with a ticket only: one more poll brings the certificate.
		return i.pending(t, time.Second, events...), nil
	}
	certs, err := i.certificates(ctx, t.No)
	if err != nil {
		if d := i.pace.held(); d > 0 {
			return i.pending(t, d), nil
		}
		return nil, fmt.Errorf("read the chain of certificate %d: %w", t.No, err)
	}
	leaf, chain := arrange(certs, req.CSR)
	if t.Serial != "" && leaf.SerialNumber.Text(16) == t.Serial {
		// Not the new one yet, whatever the status says.
		if i.cfg.Now().Sub(time.Unix(t.Since, 0)) < staleFor {
			return i.later(t, fastLatest), nil
		}
		i.cfg.Log.ErrorContext(ctx, "a reissue did not bring a new certificate", "order", req.OrderID, "certificate", t.No)
		return nil, acme.Problemf(acme.ServerInternal, "the certificate authority did not issue in time")
	}
	if err := i.remember(ctx, req, leaf, *r, t.Name); err != nil {
		return nil, err
	}
	i.looks.Remove(req.OrderID)
	i.cleanUp(ctx, req, t)
	i.metrics.ended(i.cfg.Backend, "issued")
	return &acme.Issuance{Leaf: leaf, Chain: chain}, nil
}

// lastEvents are the states of validations that ended since the last look.
func (i *Issuer) lastEvents(ctx context.Context, req *acme.IssueRequest, t *ticket) []acme.Event {
	waiting := false
	for n := range t.DCV {
		waiting = waiting || t.DCV[n].State == dcvWaiting
	}
	if !waiting {
		return nil
	}
	events, err := i.look(ctx, t)
	if err != nil {
		i.cfg.Log.DebugContext(ctx, "last state of validations not read", "order", req.OrderID, "err", err)
	}
	for n := range t.DCV { // issued, so they are done, shown or not
		if d := &t.DCV[n]; d.State == dcvWaiting {
			d.State = dcvDone
			events = append(events, i.event(d.Domain, "validated, as the certificate was issued"))
		}
	}
	return events
}

// certificates is GetCertificateChain, and DownloadCertificate if that will not do.
func (i *Issuer) certificates(ctx context.Context, no int64) ([]*x509.Certificate, error) {
	certs, err := i.api.chain(ctx, no)
	if err == nil && len(certs) > 1 || i.pace.held() > 0 {
		return certs, err
	}
	more, errDownload := i.api.download(ctx, no)
	switch {
	case errDownload == nil:
		return append(certs, more...), nil
	case err == nil:
		i.cfg.Log.WarnContext(ctx, "a chain of one certificate, and the download fails", "certificate", no, "err", errDownload)
		return certs, nil
	}
	return nil, errors.Join(err, errDownload)
}

// arrange picks the leaf and puts its issuers into order, nearest first, the
// root left out (RFC 8555, Section 9.1). Certs has one certificate at least.
func arrange(certs []*x509.Certificate, csr *x509.CertificateRequest) (leaf *x509.Certificate, chain []*x509.Certificate) {
	leaf = certs[0]
	for _, c := range certs {
		if bytes.Equal(c.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo) {
			leaf = c
			break
		}
	}
	for cur := leaf; len(chain) < maxChain; {
		next := issuerOf(cur, certs)
		if next == nil || bytes.Equal(next.RawIssuer, next.RawSubject) {
			break
		}
		chain = append(chain, next)
		cur = next
	}
	return leaf, chain
}

func issuerOf(c *x509.Certificate, certs []*x509.Certificate) *x509.Certificate {
	for _, x := range certs {
		if bytes.Equal(x.RawSubject, c.RawIssuer) && !bytes.Equal(x.Raw, c.Raw) && c.CheckSignatureFrom(x) == nil {
			return x
		}
	}
	return nil
}

// abandon keeps a request that goes on without its order, so that the next
// order with the same key gets its certificate.
func (i *Issuer) abandon(ctx context.Context, req *acme.IssueRequest, t *ticket) {
	a := abandoned{Key: keyName(req.CSR.RawSubjectPublicKeyInfo), Ticket: *t, Until: i.cfg.Now().Add(abandonedFor).UTC()}
	err := change(ctx, i, i.lineageName(req), func(l *lineage) bool {
		for _, x := range l.Abandoned {
			if x.Ticket.No == t.No {
				return false
			}
		}
		l.Abandoned = bounded(append(l.Abandoned, a), maxAbandoned)
		return true
	})
	if err != nil {
		i.cfg.Log.WarnContext(ctx, "a request that goes on without its order is not remembered", "order", req.OrderID, "certificate", t.No, "err", err)
	}
}
