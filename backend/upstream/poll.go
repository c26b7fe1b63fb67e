package upstream

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	client "golang.org/x/crypto/acme"

	"github.com/acme-bridge/acme-bridge/acme"
)

const (
	firstPoll = time.Second
	// pollWithin is added to the timeout of one exchange: a poll makes several.
	pollWithin = 15 * time.Second
	// issueWithin bounds the wait for an order that is finalized.
	issueWithin = 24 * time.Hour
	// steps of one poll: looked, finalized, looked again.
	steps = 3
	// maxTaken is how often an upstream order may turn out to be another's.
	maxTaken = 5
)

// A ticket is all that Poll needs to know; it is kept with the order.
type ticket struct {
	URL   string   `json:"url"`             // of the upstream order
	Since int64    `json:"since"`           // Unix seconds, when it was made
	State string   `json:"state,omitempty"` // last seen status of it
	Final int64    `json:"final,omitempty"` // Unix seconds, when it was first finalized or seen to be
	Taken int      `json:"taken,omitempty"` // orders before it that were another's
	DNS   []record `json:"dns,omitempty"`   // published for challenges
}

func parseTicket(s string) (*ticket, error) {
	t := new(ticket)
	if err := json.Unmarshal([]byte(s), t); err != nil {
		return nil, fmt.Errorf("read ticket: %w", err)
	}
	if t.URL == "" {
		return nil, errors.New("read ticket: it names no order")
	}
	return t, nil
}

// pending is an issuance that is to be polled after d.
func (i *Issuer) pending(t *ticket, d time.Duration, events ...acme.Event) *acme.Issuance {
	b, err := json.Marshal(t)
	if err != nil { // a struct of strings and numbers does not fail
		return nil
	}
	return &acme.Issuance{Ticket: string(b), RetryAfter: d, Events: events}
}

func (i *Issuer) event(name, format string, args ...any) acme.Event {
	return acme.Event{Time: i.cfg.Now().UTC().Truncate(time.Second), Name: name, Text: fmt.Sprintf(format, args...)}
}

// A poll is one look at an upstream order, and what follows from it.
type poll struct {
	*Issuer
	client *client.Client
	heard  *hearing
	req    *acme.IssueRequest
	t      *ticket
	events []acme.Event
}

// Poll does what the state of the upstream order asks for:
//
//	pending      see to its authorizations
//	ready        finalize it with the client's CSR
//	processing   wait
//	valid        download the certificate
//	invalid      copy its problems
//
// An order is finalized only where it says that it is ready, and an upstream
// server accepts one finalize of an order, so that it does no harm if the answer
// to one is lost, or if two replicas poll side by side.
func (i *Issuer) Poll(ctx context.Context, req *acme.IssueRequest, text string) (*acme.Issuance, error) {
	t, err := parseTicket(text)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, i.cfg.Timeout+pollWithin)
	defer cancel()
	ctx, heard := listen(ctx)
	p := &poll{Issuer: i, heard: heard, req: req, t: t}
	if p.client, err = i.open(ctx); err != nil {
		return p.later(ctx, err)
	}
	var refusal *acme.Problem // of a finalize
	for range steps {
		order, err := p.client.GetOrder(ctx, t.URL)
		if err != nil {
			p.mayBeLost(ctx, err)
			return p.later(ctx, fmt.Errorf("read the upstream order: %w", err))
		}
		p.saw(order.Status)
		switch order.Status {
		case client.StatusPending:
			problem, err := p.authorize(ctx, order)
			switch {
			case problem != nil:
				return p.end(ctx, problem)
			case err != nil:
				return p.later(ctx, err)
			}
			return p.wait(ctx)
		case client.StatusReady:
			if refusal != nil {
				return p.end(ctx, refusal)
			}
			if refusal, err = p.finalize(ctx, order); err != nil {
				return p.later(ctx, err)
			}
		case client.StatusProcessing:
			return p.wait(ctx)
		case client.StatusValid:
			return p.download(ctx, order)
		case client.StatusInvalid:
			return p.end(ctx, p.failed(ctx, order))
		default:
			return p.later(ctx, fmt.Errorf("read the upstream order: its status is %.30q", order.Status))
		}
	}
	return p.wait(ctx)
}

// saw takes over the order's state, and notes it if it is news.
func (p *poll) saw(status string) {
	if status != p.t.State {
		p.t.State = clip(status, 30)
		p.events = append(p.events, p.event("", "upstream order is %s", p.t.State))
	}
	if p.t.Final == 0 && (status == client.StatusProcessing || status == client.StatusValid) {
		p.t.Final = p.cfg.Now().Unix()
	}
}

// interval is how soon to look again if the server does not say: soon for a new
// order, whose client waits, and later slowly.
func (p *poll) interval() time.Duration {
	switch age := p.cfg.Now().Sub(time.Unix(max(p.t.Since, p.t.Final), 0)); {
	case age < 20*time.Second:
		return time.Second
	case age < 2*time.Minute:
		return 5 * time.Second
	case age < 15*time.Minute:
		return 15 * time.Second
	}
	return time.Minute
}

// wait has the order polled again, or gives it up if it has had its time.
func (p *poll) wait(ctx context.Context) (*acme.Issuance, error) {
	if p.late() {
		return p.giveUp(ctx)
	}
	d := p.heard.wait()
	if d == 0 {
		d = p.interval()
	}
	return p.pending(p.t, d, p.events...), nil
}

// later is wait after an error that says nothing of the order.
func (p *poll) later(ctx context.Context, err error) (*acme.Issuance, error) {
	if p.late() {
		return p.giveUp(ctx)
	}
	d := max(p.heard.wait(), p.interval(), 5*time.Second)
	p.cfg.Log.WarnContext(ctx, "upstream server not asked, will ask again", "order", p.req.OrderID, "upstream", p.t.URL, "err", err)
	return p.pending(p.t, d, p.events...), nil
}

func (p *poll) late() bool {
	now := p.cfg.Now()
	if p.t.Final != 0 {
		return now.Sub(time.Unix(p.t.Final, 0)) > issueWithin
	}
	return now.Sub(time.Unix(p.t.Since, 0)) > p.cfg.OrderTimeout
}

// giveUp ends an order that has had its time.
func (p *poll) giveUp(ctx context.Context) (*acme.Issuance, error) {
	p.metrics.ended(p.cfg.Backend, "timeout")
	problem := p.unproven()
	if problem == nil {
		p.cfg.Log.ErrorContext(ctx, "upstream order given up: if it was finalized a certificate may come of it", "order", p.req.OrderID, "upstream", p.t.URL)
		problem = acme.Problemf(acme.ServerInternal, "the certificate authority did not issue in time; make a new order")
	}
	return p.finish(ctx, problem)
}

// end ends an order that the upstream server has refused.
func (p *poll) end(ctx context.Context, problem *acme.Problem) (*acme.Issuance, error) {
	p.metrics.ended(p.cfg.Backend, "refused")
	return p.finish(ctx, problem)
}

func (p *poll) finish(ctx context.Context, problem *acme.Problem) (*acme.Issuance, error) {
	p.cleanUp(ctx)
	return &acme.Issuance{Events: p.events}, problem
}

// mayBeLost looks whether an error says that the account is gone.
func (p *poll) mayBeLost(ctx context.Context, err error) {
	if e, ok := errors.AsType[*client.Error](err); ok {
		p.lost(ctx, p.client, e)
	}
}

// finalize brings the CSR. The order is read again in any case, since a refusal
// may be the answer to the second of two finalizes: only if it is still ready
// was the CSR refused. An error means that the server is to be left alone.
func (p *poll) finalize(ctx context.Context, order *client.Order) (refusal *acme.Problem, err error) {
	if p.t.Final == 0 {
		p.t.Final = p.cfg.Now().Unix()
	}
	order.URI = p.t.URL
	finalizing, heard := listen(ctx)
	heard.finalize = order.FinalizeURL
	// The library goes on to wait for the certificate; the hearing ends that.
	_, _, err = p.client.CreateCertFromOrder(finalizing, order, p.req.CSR.Raw, true)
	if d := heard.wait(); d > 0 {
		p.heard.mu.Lock()
		p.heard.retry = d
		p.heard.mu.Unlock()
	}
	e, ok := errors.AsType[*client.Error](err)
	switch {
	case err == nil, errors.Is(err, errAnswered):
		return nil, nil
	case !ok:
		return nil, fmt.Errorf("finalize the upstream order: %w", err)
	case problemType(e.ProblemType) == acme.OrderNotReady:
		return nil, nil
	}
	if refusal = p.refused(ctx, p.client, p.req, err); refusal == nil {
		return nil, fmt.Errorf("finalize the upstream order: %w", err)
	}
	return refusal, nil
}

// download fetches the certificate of a valid order.
func (p *poll) download(ctx context.Context, order *client.Order) (*acme.Issuance, error) {
	if order.CertURL == "" {
		return p.later(ctx, errors.New("the upstream order is valid and names no certificate"))
	}
	ders, err := p.client.FetchCert(ctx, order.CertURL, true)
	if err != nil {
		p.mayBeLost(ctx, err)
		return p.later(ctx, fmt.Errorf("download the certificate: %w", err))
	}
	chain := make([]*x509.Certificate, len(ders))
	for n, der := range ders {
		if chain[n], err = x509.ParseCertificate(der); err != nil {
			return p.later(ctx, fmt.Errorf("download the certificate: certificate %d of the chain: %w", n+1, err))
		}
	}
	if !bytes.Equal(chain[0].RawSubjectPublicKeyInfo, p.req.CSR.RawSubjectPublicKeyInfo) {
		return p.taken(ctx)
	}
	p.cleanUp(ctx)
	p.metrics.ended(p.cfg.Backend, "issued")
	return &acme.Issuance{Leaf: chain[0], Chain: chain[1:], Events: p.events}, nil
}

// taken makes another order where the present one is another's: a server may
// answer newOrder with an open order of the same account and names (RFC 8555,
// Section 7.4, does not forbid it, and Let's Encrypt does), and this bridge has
// one account for all its clients. An order brings one certificate, and that has
// another key than our CSR, so nothing was issued for us yet.
func (p *poll) taken(ctx context.Context) (*acme.Issuance, error) {
	p.metrics.ended(p.cfg.Backend, "taken")
	p.cfg.Log.WarnContext(ctx, "upstream order was finalized for another order", "order", p.req.OrderID, "upstream", p.t.URL)
	if p.t.Taken >= maxTaken {
		return p.finish(ctx, acme.Problemf(acme.ServerInternal, "other orders for the same names were faster; make a new order"))
	}
	order, err := p.newOrder(ctx, p.req)
	if problem, ok := errors.AsType[*acme.Problem](err); ok {
		return p.end(ctx, problem)
	}
	if err != nil {
		return p.later(ctx, err)
	}
	p.cleanUp(ctx)
	p.t = &ticket{URL: order.URI, Since: p.cfg.Now().Unix(), Taken: p.t.Taken + 1}
	p.events = append(p.events, p.event("", "upstream order was another's; a new one is made"))
	return p.wait(ctx)
}
