package upstream

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"unicode"

	client "golang.org/x/crypto/acme"

	"github.com/acme-bridge/acme-bridge/acme"
)

// caa is registered (RFC 8555, Section 6.7) but never a finding of this server's own.
const caa acme.ProblemType = "caa"

const (
	maxDetail = 400 // runes
	typeURN   = "urn:ietf:params:acme:error:"
)

func problemType(urn string) acme.ProblemType {
	return acme.ProblemType(strings.TrimPrefix(urn, typeURN))
}

// ofOrder are the problem types that concern what the client ordered or
// brought; they are copied. All others concern the bridge's own dealings with
// the upstream server: its account, nonces, requests.
var ofOrder = []acme.ProblemType{
	acme.BadCSR, acme.BadPublicKey, caa, acme.Compound, acme.Connection, acme.DNS, acme.IncorrectResponse,
	acme.RejectedIdentifier, acme.TLS, acme.Unauthorized, acme.UnsupportedIdentifier,
}

var urlPattern = regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]*://\S+`)

// detail is an upstream text for the bridge's own clients: one line, bounded,
// without URLs, which name the bridge's orders and account there, and without
// the name of its external account binding.
func (i *Issuer) detail(s, fallback string) string {
	s = urlPattern.ReplaceAllString(strings.ToValidUTF8(s, "?"), "(URL)")
	if id := i.cfg.EABKeyID; id != "" {
		s = strings.ReplaceAll(s, id, "(key ID)")
	}
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if s == "" {
		return fallback
	}
	return clip(s, maxDetail)
}

// clip makes a text of others fit for a log or a message.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "..."
	}
	return s
}

// refused is the problem of a newOrder or finalize that the server refuses for
// what the client wants, nil if the request may be made again.
func (i *Issuer) refused(ctx context.Context, c *client.Client, req *acme.IssueRequest, err error) *acme.Problem {
	e, ok := errors.AsType[*client.Error](err)
	if !ok || e.StatusCode < 400 || e.StatusCode >= 500 || e.StatusCode == http.StatusTooManyRequests || e.StatusCode == http.StatusRequestTimeout {
		return nil
	}
	switch t := problemType(e.ProblemType); t {
	case acme.BadNonce, acme.RateLimited, acme.ServerInternal:
		return nil
	case acme.AccountDoesNotExist:
		i.lost(ctx, c, e)
		return nil
	case acme.UserActionRequired, "externalAccountRequired":
		i.cfg.Log.ErrorContext(ctx, "upstream server wants its account's holder to act: new terms of service?", "order", req.OrderID, "instance", clip(e.Instance, 300), "err", err)
		return nil
	case acme.Unauthorized:
		// It is said of names that are not validated, and of accounts.
		if _, failed := i.registered(ctx, c); failed != nil {
			i.cfg.Log.ErrorContext(ctx, "upstream account cannot be used", "order", req.OrderID, "err", failed)
			return nil
		}
	case acme.InvalidProfile:
		i.cfg.Log.ErrorContext(ctx, "upstream server refuses the profile", "order", req.OrderID, "err", err)
		return acme.Problemf(acme.ServerInternal, "the certificate authority refused the order").WithCause(err)
	}
	return i.copied(req, e, nil).WithCause(err)
}

// failed is the problem of an order that is invalid upstream: its own, with a
// subproblem for each name that is known to have failed.
func (p *poll) failed(ctx context.Context, order *client.Order) *acme.Problem {
	var subs []*acme.Problem
	list, err := p.authorizations(ctx, order)
	if err != nil {
		p.cfg.Log.WarnContext(ctx, "authorizations of the invalid order not read", "order", p.req.OrderID, "upstream", p.t.URL, "err", err)
	} else {
		p.remember(list)
		for _, a := range list {
			if a.Status != client.StatusValid && a.Status != client.StatusPending {
				subs = append(subs, p.authorizationProblem(a))
			}
		}
	}
	e := order.Error
	if e == nil && len(subs) > 0 {
		return acme.Combine("the certificate authority did not validate all names", subs)
	}
	if e == nil {
		return acme.Problemf(acme.ServerInternal, "the certificate authority gave the order up without a reason; make a new order")
	}
	return p.copied(p.req, e, subs).WithCause(e)
}

// authorizationProblem says why a name was not validated.
func (i *Issuer) authorizationProblem(a authorization) *acme.Problem {
	for _, c := range a.Challenges {
		if e, ok := c.Error.(*client.Error); ok && e != nil {
			return acme.Problemf(copiedType(e.ProblemType, acme.Unauthorized), "%s", i.detail(e.Detail, "the certificate authority did not validate the name")).For(a.id)
		}
	}
	return acme.Problemf(acme.Unauthorized, "the authorization at the certificate authority is %s", clip(a.Status, 20)).For(a.id)
}

func copiedType(urn string, otherwise acme.ProblemType) acme.ProblemType {
	if t := problemType(urn); slices.Contains(ofOrder, t) {
		return t
	}
	return otherwise
}

// copied makes a problem of an upstream one. Subproblems are one per
// identifier: those that are known already win over those of the problem.
func (i *Issuer) copied(req *acme.IssueRequest, e *client.Error, subs []*acme.Problem) *acme.Problem {
	for _, s := range e.Subproblems {
		if s.Identifier == nil {
			continue
		}
		id, ok := orderIdentifier(req, *s.Identifier, false)
		if !ok || slices.ContainsFunc(subs, func(have *acme.Problem) bool { return *have.Identifier == id }) {
			continue
		}
		subs = append(subs, acme.Problemf(copiedType(s.Type, acme.Unauthorized), "%s", i.detail(s.Detail, "refused by the certificate authority")).For(id))
	}
	const refused = "the certificate authority refused the order"
	t := copiedType(e.ProblemType, acme.ServerInternal)
	if t == acme.ServerInternal { // its text is about the bridge's own dealings
		if len(subs) > 0 {
			return acme.Combine(refused, subs)
		}
		return acme.Problemf(acme.ServerInternal, refused)
	}
	p := acme.Problemf(t, "%s", i.detail(e.Detail, refused))
	p.Subproblems = subs
	if t == acme.Unauthorized && len(subs) == 0 && len(req.Identifiers) == 1 {
		p.Subproblems = []*acme.Problem{acme.Problemf(t, "%s", p.Detail).For(req.Identifiers[0])}
	}
	return p
}
