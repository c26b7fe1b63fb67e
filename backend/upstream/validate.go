package upstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	client "golang.org/x/crypto/acme"
	"golang.org/x/sync/errgroup"

	"github.com/acme-bridge/acme-bridge/acme"
)

const (
	challengeDNS = "dns-01"
	maxAuthz     = 200 // authorizations of an order that are looked at
	parallel     = 4   // requests, and records published, at one time
	publishLimit = 10 * time.Second
	removeLimit  = 10 * time.Second
	// preGrace is how long an authorization that ought to come valid may take to
	// be shown so.
	preGrace = 10 * time.Second
	// acceptAgain is when a challenge that was accepted and is still pending is
	// accepted once more.
	acceptAgain = time.Minute
)

// A record is what was published for a challenge.
type record struct {
	Name     string `json:"n"` // the identifier; the record is at _acme-challenge. and its base
	Value    string `json:"v"`
	Served   bool   `json:"s,omitempty"`
	Accepted int64  `json:"a,omitempty"` // Unix seconds, when the server was told
	Valid    bool   `json:"d,omitempty"` // its authorization is
	Note     string `json:"x,omitempty"` // what last came of it
}

func (r *record) fqdn() string { return "_acme-challenge." + r.base() }

func (r *record) base() string {
	base, _ := acme.Identifier{Type: acme.TypeDNS, Value: r.Name}.Base()
	return base.Value
}

// An authorization is an upstream one, and the order's identifier that it is for.
type authorization struct {
	*client.Authorization
	id acme.Identifier
}

// authorizations reads those of an order. One that is for none of the order's
// identifiers is an error.
func (p *poll) authorizations(ctx context.Context, order *client.Order) ([]authorization, error) {
	if len(order.AuthzURLs) > maxAuthz {
		return nil, fmt.Errorf("the upstream order has %d authorizations", len(order.AuthzURLs))
	}
	list := make([]authorization, len(order.AuthzURLs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for n, url := range order.AuthzURLs {
		group.Go(func() error {
			a, err := p.client.GetAuthorization(ctx, url)
			if err != nil {
				return fmt.Errorf("read an upstream authorization: %w", err)
			}
			id, ok := orderIdentifier(p.req, a.Identifier, a.Wildcard)
			if !ok {
				return fmt.Errorf("an upstream authorization is for %.260q, which the order is not for", a.Identifier.Value)
			}
			list[n] = authorization{a, id}
			return nil
		})
	}
	return list, group.Wait()
}

// authorize sees to the authorizations of a pending order.
func (p *poll) authorize(ctx context.Context, order *client.Order) (*acme.Problem, error) {
	list, err := p.authorizations(ctx, order)
	if err != nil {
		return nil, err
	}
	var subs []*acme.Problem
	var open []authorization
	for _, a := range list {
		switch a.Status {
		case client.StatusValid:
			p.validated(a.id)
		case client.StatusPending:
			open = append(open, a)
		default:
			subs = append(subs, p.authorizationProblem(a))
		}
	}
	if len(subs) > 0 {
		p.remember(list)
		return acme.Combine("the certificate authority did not validate all names", subs), nil
	}
	if p.cfg.Mode == ModeDNS01 {
		return p.prove(ctx, open)
	}
	if p.cfg.Now().Sub(time.Unix(p.t.Since, 0)) < preGrace {
		return nil, nil
	}
	for _, a := range open {
		subs = append(subs, acme.Problemf(acme.Unauthorized, "%s is not validated at the certificate authority: its operator must validate the domain beforehand", a.id.Value).For(a.id))
	}
	if len(subs) == 0 {
		return nil, nil
	}
	return acme.Combine("some names are not validated at the certificate authority", subs), nil
}

// validated notes that a name is done.
func (p *poll) validated(id acme.Identifier) {
	n := slices.IndexFunc(p.t.DNS, func(r record) bool { return r.Name == id.Value && !r.Valid })
	if n >= 0 {
		p.t.DNS[n].Valid = true
		p.events = append(p.events, p.event(id.Value, "the certificate authority has validated the name"))
	}
}

// record returns the ticket's record for an open authorization's challenge, nil
// if it has none of type dns-01.
func (p *poll) record(a authorization) (*record, *client.Challenge, error) {
	n := slices.IndexFunc(a.Challenges, func(c *client.Challenge) bool { return c.Type == challengeDNS })
	if n < 0 || a.id.Type != acme.TypeDNS {
		return nil, nil, nil
	}
	value, err := p.client.DNS01ChallengeRecord(a.Challenges[n].Token)
	if err != nil {
		return nil, nil, fmt.Errorf("make the challenge record: %w", err)
	}
	k := slices.IndexFunc(p.t.DNS, func(r record) bool { return r.Name == a.id.Value && r.Value == value })
	if k < 0 {
		k = len(p.t.DNS)
		p.t.DNS = append(p.t.DNS, record{Name: a.id.Value, Value: value})
	}
	return &p.t.DNS[k], a.Challenges[n], nil
}

// remember has the records of all open and failed authorizations removed at the
// end, in case that a crash kept them out of the ticket after publishing.
func (p *poll) remember(list []authorization) {
	if p.cfg.Mode != ModeDNS01 {
		return
	}
	for _, a := range list {
		if a.Status == client.StatusValid {
			continue
		}
		if _, _, err := p.record(a); err != nil {
			p.cfg.Log.Warn("challenge record not found", "order", p.req.OrderID, "identifier", a.id.Value, "err", err)
		}
	}
}

// prove publishes the records of open authorizations, side by side so that a
// publisher can join them, and tells the server of those that are served.
func (p *poll) prove(ctx context.Context, open []authorization) (*acme.Problem, error) {
	type task struct {
		name      string
		record    int // in the ticket: the slice may move while it grows
		challenge *client.Challenge
	}
	var tasks []task
	var subs []*acme.Problem
	for _, a := range open {
		r, challenge, err := p.record(a)
		switch {
		case err != nil:
			return nil, err
		case r == nil:
			subs = append(subs, acme.Problemf(acme.Unauthorized, "the certificate authority offers no dns-01 challenge for %s", a.id.Value).For(a.id))
		default:
			at := slices.IndexFunc(p.t.DNS, func(x record) bool { return x.Name == r.Name && x.Value == r.Value })
			tasks = append(tasks, task{a.id.Value, at, challenge})
		}
	}
	if len(subs) > 0 {
		return acme.Combine("some names cannot be validated by DNS", subs), nil
	}
	var mu sync.Mutex
	note := func(r *record, text string) {
		mu.Lock()
		defer mu.Unlock()
		if r.Note != text {
			r.Note = text
			p.events = append(p.events, p.event(r.Name, "TXT record %s with the value \"%s\" %s", r.fqdn(), r.Value, text))
		}
	}
	var failed error
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, task := range tasks {
		r := &p.t.DNS[task.record]
		group.Go(func() error {
			if !r.Served {
				p.publish(ctx, r, note)
			}
			now := p.cfg.Now()
			if !r.Served || task.challenge.Status != client.StatusPending || now.Sub(time.Unix(r.Accepted, 0)) < acceptAgain {
				return nil
			}
			if _, err := p.client.Accept(ctx, task.challenge); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = errors.Join(failed, fmt.Errorf("accept the challenge for %s: %w", r.Name, err))
				return nil
			}
			r.Accepted = now.Unix()
			note(r, "is served; the certificate authority is to look at it")
			return nil
		})
	}
	// The functions report by note and failed.
	_ = group.Wait()
	return nil, failed
}

func (p *poll) publish(ctx context.Context, r *record, note func(*record, string)) {
	ctx, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	covered, err := p.cfg.Publisher.Covers(ctx, r.base())
	if err == nil && !covered {
		note(r, "cannot be published: no publisher has its zone")
		return
	}
	if err == nil {
		r.Served, err = p.cfg.Publisher.Publish(ctx, r.fqdn(), r.Value)
	}
	switch {
	case err != nil:
		r.Served = false
		p.cfg.Log.WarnContext(ctx, "challenge record not published, will try again", "order", p.req.OrderID, "identifier", r.Name, "record", r.fqdn(), "err", err)
		note(r, "could not be published yet")
	case r.Served:
		note(r, "is served by all authoritative servers")
	default:
		note(r, "is being published")
	}
}

// cleanUp removes the challenge records. It may be repeated: a crash before the
// outcome is saved brings the same poll once more.
func (p *poll) cleanUp(ctx context.Context) {
	if p.cfg.Publisher == nil || len(p.t.DNS) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeLimit)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, r := range p.t.DNS {
		group.Go(func() error {
			covered, err := p.cfg.Publisher.Covers(ctx, r.base())
			if err == nil && covered {
				err = p.cfg.Publisher.Remove(ctx, r.fqdn(), r.Value)
			}
			if err != nil {
				p.cfg.Log.WarnContext(ctx, "challenge record not removed", "order", p.req.OrderID, "identifier", r.Name, "record", r.fqdn(), "err", err)
			}
			return nil
		})
	}
	// The functions report to the log.
	_ = group.Wait()
}

// unproven is the problem of an order that has waited too long for its
// challenges; nil if that is not what it waited for.
func (p *poll) unproven() *acme.Problem {
	if p.t.Final != 0 {
		return nil
	}
	var subs []*acme.Problem
	for _, r := range p.t.DNS {
		if r.Valid {
			continue
		}
		id := acme.Identifier{Type: acme.TypeDNS, Value: r.Name}
		if slices.ContainsFunc(subs, func(s *acme.Problem) bool { return *s.Identifier == id }) {
			continue
		}
		subs = append(subs, acme.Problemf(acme.DNS, "expected TXT record %s with the value %q; it %s", r.fqdn(), r.Value, r.Note).For(id))
	}
	if len(subs) == 0 {
		return nil
	}
	problem := acme.Problemf(acme.Unauthorized, "the certificate authority's domain validation ran out of time")
	problem.Subproblems = subs
	return problem
}
