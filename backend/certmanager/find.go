package certmanager

import (
	"context"
	"fmt"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// When a request is taken for never made: after so many looks into the lists,
// over so long a time, the first of them when the service must be done.
const (
	minLooks = 3
	lookSpan = 30 * time.Second
	// lookMargin lies between the deadline of a Submit and the first look.
	lookMargin = 2 * time.Second
)

// looks are what Find has seen of an order: forgotten by a restart, after which
// it begins anew.
type looks struct {
	submitted time.Time // the attempt
	first     time.Time
	count     int
}

// Find looks for a request by its name in the lists. That there is none is
// concluded only after three looks over 30 s, the last of them through the whole
// list of Advanced certificates in case the search by name cannot be trusted.
func (i *Issuer) Find(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	if d := i.pace.held(); d > 0 {
		return nil, fmt.Errorf("the service asked to wait for %s", d)
	}
	l, _, err := load[lineage](ctx, i, i.lineageName(req))
	if err != nil {
		return nil, err
	}
	re := l.reissueFor(req.OrderID)
	wanted := []*ticket{i.newTicket(req, row{}, nil)}
	if re != nil && re.Name != wanted[0].Name {
		wanted = append(wanted, i.newTicket(req, row{}, re))
	} else if re != nil {
		wanted[0] = i.newTicket(req, row{}, re)
	}
	found := func(t *ticket, r *row) (*acme.Issuance, error) {
		i.looks.Remove(req.OrderID)
		t.No, t.Order = r.No, r.OrderID
		return i.pending(t, firstPoll, i.event("", "found as %s%s", t.Name, numbered(t))), nil
	}
	for _, t := range wanted {
		r, err := i.lookup(ctx, t)
		if err != nil {
			return nil, i.alarmed(ctx, req, err)
		}
		if r != nil {
			return found(t, r)
		}
	}
	now := i.cfg.Now()
	seen, _ := i.looks.Get(req.OrderID)
	if !seen.submitted.Equal(req.Submitted) {
		seen = looks{submitted: req.Submitted}
	}
	if settled := req.Submitted.Add(i.Timeout() + lookMargin); now.Before(settled) {
		return nil, fmt.Errorf("not found yet, and the service may still be at it until %s", settled.Format(time.RFC3339))
	}
	if seen.count == 0 {
		seen.first = now
	}
	seen.count++
	i.looks.Add(req.OrderID, seen)
	if seen.count < minLooks || now.Sub(seen.first) < lookSpan {
		return nil, fmt.Errorf("not found in look %d, will look again", seen.count)
	}
	rows, err := i.api.listAdvanced(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, t := range wanted {
		if r := match(rows, t); r != nil {
			i.cfg.Log.WarnContext(ctx, "the list by name lacks a certificate that the whole list has", "order", req.OrderID, "certificate", r.No)
			return found(t, r)
		}
	}
	i.looks.Remove(req.OrderID)
	return nil, acme.ErrNotIssued
}

// lookup finds a request's row; nil: no list shows it.
func (i *Issuer) lookup(ctx context.Context, t *ticket) (*row, error) {
	rows, err := i.api.listAdvanced(ctx, t.Name)
	if err != nil {
		return nil, err
	}
	if r := match(rows, t); r != nil {
		return r, nil
	}
	if rows, err = i.api.listAll(ctx, t.Name); err != nil {
		return nil, err
	}
	return match(rows, t), nil
}

// match picks a request's row: by number if that is known, else the newest of
// its name. A reissue of the same name is not the certificate that it replaces,
// unless that one has changed since.
func match(rows []row, t *ticket) *row {
	var best *row
	for n := range rows {
		r := &rows[n]
		switch {
		case r.No == 0:
			continue
		case t.No != 0:
			if r.No != t.No {
				continue
			}
		case r.Name != t.Name:
			continue
		case t.Same && r.No == t.Of && issuedStatus(r.Status) && (r.Serial == "" || r.Serial == t.Serial):
			continue
		}
		if best == nil || r.No > best.No {
			best = r
		}
	}
	return best
}

// issuedStatus are the status codes of a certificate that is there: 2 is the
// usual one, since the key stays with the requester.
func issuedStatus(code string) bool { return code == "1" || code == "2" || code == "3" }
