package admin

import (
	"fmt"
	"strings"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// An Explanation tells in words what happened to an order, what it waits for,
// and what someone should do about it.
type Explanation struct {
	Steps []Step `json:"steps"`
	// WaitsFor is empty when the order has come to its end.
	WaitsFor string   `json:"waits_for,omitempty"`
	ToDo     []string `json:"to_do,omitempty"` // each begins with who: client or operator
}

// A Step is something that happened. The times of some are not kept.
type Step struct {
	Time time.Time `json:"time,omitzero"`
	Name string    `json:"name,omitempty"` // the identifier that it concerns, if it concerns one
	Text string    `json:"text"`
}

// explain reads the story of an order out of its document.
func explain(o *acme.Order, now time.Time) Explanation {
	var e Explanation
	e.step(o.Created, "", "created by account %s in directory %s, under profile %s", o.AccountID, o.Directory, o.Profile)
	for i := range o.Authorizations {
		e.authorization(&o.Authorizations[i])
	}
	if o.CSRHash != nil {
		e.step(time.Time{}, "", "finalized: the client has sent its CSR")
	}
	if i := o.Intent; i != nil {
		e.step(i.Since, "", "backend %s was asked for the certificate, attempt %d", i.Backend, i.Attempt)
	} else if o.Attempts > 0 {
		e.step(time.Time{}, "", "the backend was asked for the certificate, %s", times(o.Attempts))
	}
	for _, h := range o.History {
		e.step(h.Time, h.Name, "%s", h.Text)
	}
	switch o.Status {
	case acme.StatusPending:
		e.pending(o)
	case acme.StatusReady:
		e.WaitsFor = "the client's finalize, until " + stamp(o.Expires)
		e.todo("client: send the CSR to the order's finalize URL")
	case acme.StatusProcessing:
		e.processing(o, now)
	case acme.StatusValid:
		e.valid(o)
	case acme.StatusInvalid:
		e.invalid(o)
	}
	return e
}

func (e *Explanation) step(at time.Time, name, format string, args ...any) {
	e.Steps = append(e.Steps, Step{Time: at, Name: name, Text: fmt.Sprintf(format, args...)})
}

func (e *Explanation) todo(format string, args ...any) {
	e.ToDo = append(e.ToDo, fmt.Sprintf(format, args...))
}

func (e *Explanation) authorization(a *acme.Authorization) {
	name := a.Ordered().Value
	for _, c := range a.Challenges {
		switch {
		case c.Status == acme.StatusValid:
			e.step(c.Validated, name, "control was proven by %s", c.Type)
		case c.Status == acme.StatusProcessing:
			e.step(time.Time{}, name, "the client has responded to %s, which is being checked", c.Type)
		case c.Error != nil:
			e.step(time.Time{}, name, "%s failed: %s: %s", c.Type, c.Error.Type, c.Error.Detail)
		}
	}
	if a.Status == acme.StatusDeactivated {
		e.step(time.Time{}, name, "the client has deactivated the authorization")
	}
}

func (e *Explanation) pending(o *acme.Order) {
	var silent, checked []string
	for i := range o.Authorizations {
		a := &o.Authorizations[i]
		if a.Status != acme.StatusPending {
			continue
		}
		var offered []string
		processing := false
		for _, c := range a.Challenges {
			offered = append(offered, string(c.Type))
			processing = processing || c.Status == acme.StatusProcessing
		}
		name := a.Ordered().Value
		if processing {
			checked = append(checked, name)
		} else {
			silent = append(silent, name)
			e.todo("client: prove control over %s by %s", name, strings.Join(offered, " or "))
		}
	}
	if len(silent) > 0 {
		e.WaitsFor = fmt.Sprintf("the client's response to a challenge for %s, until %s", strings.Join(silent, ", "), stamp(o.Expires))
		return
	}
	e.WaitsFor = "the check of " + strings.Join(checked, ", ") + ", about a minute at most"
}

func (e *Explanation) processing(o *acme.Order, now time.Time) {
	i := o.Intent
	switch {
	case i == nil && o.Attempts == 0:
		e.WaitsFor = "a worker that takes it up and asks the backend"
		e.todo("operator: if it stays so, look whether a server is running and ready (/readyz)")
	case i == nil:
		e.WaitsFor = "the next attempt to ask the backend, at " + stamp(o.Wake) + ": the last one certainly did nothing there"
		e.todo("operator: if it stays so, find out why the backend cannot be reached (/readyz and the log)")
	case o.Ticket != "":
		// The ticket is the backend's own note, not for people.
		e.step(time.Time{}, "", "the CA is at work on it")
		e.WaitsFor = "the CA, which is asked again at " + stamp(o.Wake)
		if len(o.History) > 0 {
			last := o.History[len(o.History)-1]
			e.WaitsFor += "; the last news: " + strings.TrimSpace(last.Name+" "+last.Text)
		}
		e.todo("client: go on polling, or come back later: the certificate is kept, and a new order with the same key gets it")
		e.todo("operator: if a record is asked for above and no publisher writes it, publish it; validate domains beforehand with acme-bridge domain add")
	case now.Before(i.Deadline):
		e.WaitsFor = "the backend's answer, until " + stamp(i.Deadline)
	default:
		e.step(time.Time{}, "", "the answer was lost; searched for the certificate at the CA %s", times(o.Searches))
		e.WaitsFor = "a search at the CA for what became of the request, at " + stamp(o.Wake) + "; it is not asked twice before that is known"
		e.todo("operator: see that the backend can be reached (/readyz and the log)")
	}
}

func (e *Explanation) valid(o *acme.Order) {
	c := o.Certificate
	e.step(c.Issued, "", "certificate %s was issued by backend %s, valid until %s", c.ID, c.Backend, stamp(c.NotAfter))
	if r := c.Revoked; r != nil {
		reason := "no reason given"
		if r.Reason >= 0 {
			reason = fmt.Sprintf("reason %d", r.Reason)
		}
		e.step(r.Time, "", "it was revoked, %s", reason)
		e.todo("client: order a new certificate if the names are still in use")
		return
	}
	if c.Unfetched {
		e.step(time.Time{}, "", "nobody has fetched it yet")
		e.todo("client: download it, or order the same names with the same key to get it without another purchase")
	}
}

func (e *Explanation) invalid(o *acme.Order) {
	p := o.Error
	if p == nil {
		e.step(time.Time{}, "", "ended without a certificate")
		e.todo("client: make a new order")
		return
	}
	e.step(time.Time{}, "", "ended without a certificate: %s: %s", p.Type, p.Detail)
	for _, sub := range p.Subproblems {
		if sub.Identifier != nil {
			e.step(time.Time{}, sub.Identifier.Value, "%s: %s", sub.Type, sub.Detail)
		}
	}
	asked := o.Attempts > 0
	switch p.Type {
	case acme.Unauthorized, acme.DNS, acme.Connection, acme.TLS, acme.IncorrectResponse, acme.Compound:
		if asked {
			e.todo("operator: let the record named above be served, best for good by acme-bridge domain add; then the client can order again")
			return
		}
		e.todo("client: let the challenge be answered as said above, then make a new order")
	case acme.BadCSR, acme.BadPublicKey:
		e.todo("client: make a new order with a CSR that heeds what is said above")
	case acme.RejectedIdentifier, acme.UnsupportedIdentifier, acme.InvalidProfile:
		e.todo("operator: allow the names in the profile, or validate the domain (acme-bridge domain add); then the client can order again")
	case acme.RateLimited:
		e.todo("client: wait, then make a new order")
	case acme.UserActionRequired:
		e.todo("operator: do what is said above in the CA's console; then the client can order again")
	case acme.Malformed:
		e.todo("client: make a new order, and finish it in time")
	default:
		e.todo("operator: look for order %s in the log, where the cause is", o.ID)
		e.todo("client: make a new order when the cause is gone")
	}
}

func times(n int) string {
	switch n {
	case 0:
		return "not yet"
	case 1:
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
