package certmanager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// Submit asks for the order's certificate in one of these ways, and makes at
// most one request:
//
//  1. A certificate of the same account, names and key that is done and that
//     nobody has fetched is handed out again; a request of theirs that an order
//     has given up is taken over.
//  2. If the account has a live certificate for the same names: Reissue.
//  3. Else the Advanced request, which is paid for.
//
// A refused reissue becomes a new request, if the configuration allows the
// cost, in the order's next attempt.
func (i *Issuer) Submit(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	body, problem := i.body(req)
	if problem != nil {
		return nil, problem
	}
	if d := i.pace.held(); d > 0 {
		return nil, &acme.NotSentError{After: d, Err: errors.New("the service asked to wait")}
	}
	aside, cancel := context.WithTimeout(ctx, i.Timeout()/2)
	defer cancel()
	l, _, err := load[lineage](aside, i, i.lineageName(req))
	if err != nil {
		return nil, &acme.NotSentError{Err: err}
	}
	if got := i.again(aside, req, l); got != nil {
		i.metrics.requested(i.cfg.Backend, "again", nil)
		return got, nil
	}
	re, err := i.renewal(aside, req, l)
	if err != nil {
		// Without knowing, the order would pay for what a reissue gives.
		return nil, &acme.NotSentError{Err: err}
	}
	if re == nil {
		return i.request(ctx, req, body)
	}
	body.CertificateName = re.Name
	// Written before the request: Find must know which certificate it was that
	// was to be replaced.
	err = change(aside, i, i.lineageName(req), func(l *lineage) bool {
		l.Reissues = slices.DeleteFunc(l.Reissues, func(x reissue) bool { return x.For == req.OrderID })
		l.Reissues = bounded(append(l.Reissues, *re), maxReissues)
		return true
	})
	if err != nil {
		return nil, &acme.NotSentError{Err: err}
	}
	return i.reissue(ctx, req, body, re)
}

// body is the request of an order, less what only an operator can know wrong.
func (i *Issuer) body(req *acme.IssueRequest) (request, *acme.Problem) {
	if !req.NotAfter.IsZero() || !req.NotBefore.IsZero() {
		return request{}, acme.Problemf(acme.Malformed, "notBefore and notAfter: this certificate authority decides on the lifetime itself")
	}
	if i.cfg.CertificateType == TypeOV && !slices.Equal(req.CSR.Subject.Country, []string{"KR"}) {
		return request{}, acme.Problemf(acme.BadCSR, "certificates with an organization are issued for Korean ones only: set the CSR's country to KR")
	}
	names := make([]string, len(req.Identifiers))
	for n, id := range req.Identifiers {
		names[n] = id.Value
	}
	// The CSR's common name if it is one of the names, else the first that fits:
	// a common name has at most 64 characters (RFC 5280, Appendix A.1).
	common := strings.ToLower(req.CSR.Subject.CommonName)
	if !slices.Contains(names, common) {
		common = names[0]
		for _, n := range names {
			if len(n) <= 64 {
				common = n
				break
			}
		}
	}
	return request{CSR: csrPEM(req.CSR), CertificateType: i.cfg.CertificateType, CertificateName: requestName(req.OrderID), CommonName: common,
		DNSName:          slices.DeleteFunc(names, func(n string) bool { return n == common }),
		ValidationMethod: i.cfg.ValidationMethod, OrganizationNo: i.cfg.OrganizationNo}, nil
}

// again is an issuance that costs no request, nil if there is none.
func (i *Issuer) again(ctx context.Context, req *acme.IssueRequest, l *lineage) *acme.Issuance {
	key := keyName(req.CSR.RawSubjectPublicKeyInfo)
	if c := l.Live; c != nil && c.Key == key && c.For != req.OrderID && (c.Again == "" || c.Again == req.OrderID) && i.cfg.Unfetched != nil {
		unfetched, err := i.cfg.Unfetched(ctx, c.For, c.CertID)
		if err == nil && unfetched {
			certs, errChain := i.certificates(ctx, c.No)
			if errChain == nil {
				leaf, chain := arrange(certs, req.CSR)
				got := &acme.Issuance{Leaf: leaf, Chain: chain, Again: true}
				// What the caller's check would refuse is not offered: it would
				// end the order, and a new request serves it.
				errChain = acme.CheckIssued(req, got, i.roots, i.cfg.Now())
				if errChain == nil && acme.CertificateID(leaf) != c.CertID {
					errChain = errors.New("its number has another certificate by now")
				}
				if errChain == nil {
					errChain = i.handOut(ctx, req, c.CertID)
				}
				if errChain == nil {
					i.cfg.Log.InfoContext(ctx, "an earlier certificate for the same key was never fetched and is handed out", "order", req.OrderID, "certificate", c.CertID)
					return got
				}
			}
			err = errChain
		}
		if err != nil {
			i.cfg.Log.WarnContext(ctx, "an earlier certificate for the same key cannot be handed out", "order", req.OrderID, "err", err)
		}
	}
	for _, a := range l.Abandoned {
		if a.Key != key || !i.cfg.Now().Before(a.Until) {
			continue
		}
		rows, err := i.api.listAdvanced(ctx, a.Ticket.Name)
		if err != nil {
			continue
		}
		r := match(rows, &a.Ticket)
		if r == nil || r.Status != "0" && !issuedStatus(r.Status) {
			continue
		}
		if issuedStatus(r.Status) {
			certs, err := i.certificates(ctx, r.No)
			if err != nil {
				continue
			}
			leaf, chain := arrange(certs, req.CSR)
			if acme.CheckIssued(req, &acme.Issuance{Leaf: leaf, Chain: chain}, i.roots, i.cfg.Now()) != nil {
				continue // too old by now, for instance
			}
		}
		t := a.Ticket
		t.Since, t.Next, t.Looks, t.No, t.Order = i.cfg.Now().Unix(), 0, 0, r.No, r.OrderID
		for n := range t.DCV {
			t.DCV[n] = dcv{Domain: t.DCV[n].Domain}
		}
		return i.pending(&t, firstPoll, i.event("", "request %s of an earlier order for the same names and key is taken over (certificate %d)", t.Name, t.No))
	}
	return nil
}

// handOut records to which order a certificate goes again: to one only, since
// that one will fetch it.
func (i *Issuer) handOut(ctx context.Context, req *acme.IssueRequest, certID string) error {
	err := errors.New("another order was faster")
	if errChange := change(ctx, i, i.lineageName(req), func(l *lineage) bool {
		if l.Live == nil || l.Live.CertID != certID || l.Live.Again != "" && l.Live.Again != req.OrderID {
			return false
		}
		l.Live.Again, err = req.OrderID, nil
		return true
	}); errChange != nil {
		return errChange
	}
	return err
}

// renewal is the reissue to ask for, nil if it has to be a new request. An
// error means that it cannot be known now.
func (i *Issuer) renewal(ctx context.Context, req *acme.IssueRequest, l *lineage) (*reissue, error) {
	if i.cfg.Renewal == RenewNew {
		return nil, nil
	}
	var candidates []*ticket
	if c := l.Live; c != nil && i.cfg.Now().Before(c.End) {
		candidates = append(candidates, &ticket{Name: c.Name, No: c.No, Serial: c.Serial})
	}
	// What an order gave up and the service finished is paid for as well.
	for n := len(l.Abandoned) - 1; n >= 0; n-- {
		if a := &l.Abandoned[n]; i.cfg.Now().Before(a.Until) {
			candidates = append(candidates, &a.Ticket)
		}
	}
	for _, c := range candidates {
		rows, err := i.api.listAdvanced(ctx, c.Name)
		if err != nil {
			return nil, fmt.Errorf("look at certificate %d: %w", c.No, err)
		}
		r := match(rows, c)
		if r == nil || !issuedStatus(r.Status) || l.Refused == r.No && i.cfg.Renewal == RenewReissueThenNew {
			continue // expired, revoked, deleted or not done: nothing to reissue
		}
		re := &reissue{For: req.OrderID, Of: r.No, Serial: r.Serial, Name: requestName(req.OrderID)}
		if i.cfg.ReissueSameName {
			re.Name = c.Name
		}
		return re, nil
	}
	return nil, nil
}

func (i *Issuer) request(ctx context.Context, req *acme.IssueRequest, body request) (*acme.Issuance, error) {
	r, err := i.api.advancedRequest(ctx, body)
	i.metrics.requested(i.cfg.Backend, "new", err)
	if err != nil {
		return i.submitFailed(ctx, err, req, nil)
	}
	t := i.newTicket(req, r, nil)
	return i.pending(t, firstPoll, i.event("", "requested as %s%s", t.Name, numbered(t))), nil
}

func (i *Issuer) reissue(ctx context.Context, req *acme.IssueRequest, body request, re *reissue) (*acme.Issuance, error) {
	r, err := i.api.reissue(ctx, re.Of, body)
	i.metrics.requested(i.cfg.Backend, "reissue", err)
	if err != nil {
		return i.submitFailed(ctx, err, req, re)
	}
	t := i.newTicket(req, r, re)
	return i.pending(t, firstPoll, i.event("", "reissue of certificate %d requested as %s%s", re.Of, t.Name, numbered(t))), nil
}

func numbered(t *ticket) string {
	if t.No == 0 {
		return ""
	}
	return fmt.Sprintf(", certificate %d", t.No)
}

// submitFailed says what a failed request means for the order.
func (i *Issuer) submitFailed(ctx context.Context, err error, req *acme.IssueRequest, re *reissue) (*acme.Issuance, error) {
	e, ok := errors.AsType[*ncloud.Error](err)
	switch {
	case !ok || e.Applied != ncloud.No:
		return nil, fmt.Errorf("%w: %w", acme.ErrOutcomeUnknown, err)
	case e.Outcome == ncloud.OutcomeUnauthorized:
		return nil, acme.Problemf(acme.ServerInternal, "the certificate authority refused this server").WithCause(i.alarmed(ctx, req, err))
	case e.Outcome != ncloud.OutcomeRefused:
		return nil, &acme.NotSentError{After: e.Retry, Err: err}
	}
	// The name may be taken by an earlier attempt of this order whose answer was
	// lost and that Find, too early, did not see.
	t := i.newTicket(req, row{}, re)
	found, errFind := i.lookup(ctx, t)
	switch {
	case errFind != nil && !(e.Gateway && unknownToGateway(errFind)):
		return nil, fmt.Errorf("%w: refused, and whether an earlier attempt was accepted could not be read: %w", acme.ErrOutcomeUnknown, errors.Join(err, errFind))
	case found != nil:
		t.No, t.Order = found.No, found.OrderID
		return i.pending(t, firstPoll, i.event("", "requested earlier as %s%s", t.Name, numbered(t))), nil
	}
	if taken(e) {
		// It is ours, and no list shows it yet: Find goes on looking.
		return nil, fmt.Errorf("%w: the name is taken: %w", acme.ErrOutcomeUnknown, err)
	}
	problem := refused(e).WithCause(err)
	if re == nil || i.cfg.Renewal != RenewReissueThenNew || problem.Type != acme.ServerInternal {
		if problem.Type == acme.ServerInternal {
			i.cfg.Log.ErrorContext(ctx, "Certificate Manager refused a request for a reason unknown to us", "order", req.OrderID, "err", err)
		}
		return nil, problem
	}
	i.cfg.Log.WarnContext(ctx, "reissue refused, a new certificate will be requested", "order", req.OrderID, "certificate", re.Of, "err", err)
	errChange := change(ctx, i, i.lineageName(req), func(l *lineage) bool {
		l.Refused = re.Of
		l.Reissues = slices.DeleteFunc(l.Reissues, func(x reissue) bool { return x.For == req.OrderID })
		return true
	})
	return nil, &acme.NotSentError{After: time.Second, Err: errors.Join(fmt.Errorf("reissue refused: %w", err), errChange)}
}
