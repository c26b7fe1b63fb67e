package admin

import (
	"errors"
	"net/http"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// An Order is what operators are shown of one: all but the CSR and the tokens.
type Order struct {
	ID             string            `json:"id"`
	Status         acme.Status       `json:"status"`
	Directory      string            `json:"directory"`
	Account        string            `json:"account"`
	Profile        string            `json:"profile"`
	Names          []string          `json:"names"`
	Created        time.Time         `json:"created"`
	Expires        time.Time         `json:"expires"`
	Authorizations []Authorization   `json:"authorizations"`
	Request        *Request          `json:"request,omitempty"` // while the CA may be at work
	History        []acme.Event      `json:"history,omitempty"` // of the CA, the latest last
	Error          *acme.Problem     `json:"error,omitempty"`
	Certificate    *OrderCertificate `json:"certificate,omitempty"`
	// NextLook is when the worker looks at the order again.
	NextLook    time.Time   `json:"next_look,omitzero"`
	Explanation Explanation `json:"explanation"`
}

// An Authorization is one name of an order.
type Authorization struct {
	Name       string      `json:"name"`
	Status     acme.Status `json:"status"`
	Expires    time.Time   `json:"expires"`
	Challenges []Challenge `json:"challenges"`
}

// A Challenge is one way to prove a name.
type Challenge struct {
	Type      acme.ChallengeType `json:"type"`
	Status    acme.Status        `json:"status"`
	Validated time.Time          `json:"validated,omitzero"`
	Error     *acme.Problem      `json:"error,omitempty"`
}

// A Request is a CA's being asked for a certificate.
type Request struct {
	Backend  string    `json:"backend"`
	Attempt  int       `json:"attempt"`
	Since    time.Time `json:"since"`
	Deadline time.Time `json:"deadline"`
	// Ticket is the backend's own note of the request, once the CA has taken it.
	Ticket string `json:"ticket,omitempty"`
	// Searches counts the looks for what became of a lost answer.
	Searches int `json:"searches,omitempty"`
}

// An OrderCertificate is what an order brought.
type OrderCertificate struct {
	ID       string           `json:"id"` // RFC 9773, Section 4.1
	Backend  string           `json:"backend"`
	Issued   time.Time        `json:"issued"`
	NotAfter time.Time        `json:"not_after"`
	Fetched  bool             `json:"fetched"`
	Revoked  *acme.Revocation `json:"revoked,omitempty"`
}

// order answers GET /api/v1/orders/{id}.
func (h *handler) order(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if h.Orders == nil || !acme.ValidID(id) {
		h.fail(w, http.StatusNotFound, "there is no such order: its ID is the last part of its URL")
		return
	}
	o, err := h.Orders(r.Context(), id)
	switch {
	case errors.Is(err, acme.ErrNotFound):
		h.fail(w, http.StatusNotFound, "there is no such order, or it is so old that it was forgotten")
	case err != nil:
		h.fail(w, http.StatusServiceUnavailable, clip(err.Error()))
	default:
		h.write(w, http.StatusOK, orderView(o, h.Now()))
	}
}

func orderView(o *acme.Order, now time.Time) *Order {
	v := &Order{
		ID: o.ID, Status: o.Status, Directory: o.Directory, Account: o.AccountID, Profile: o.Profile,
		Created: o.Created, Expires: o.Expires, History: o.History, Error: o.Error, NextLook: o.Wake,
		Explanation: explain(o, now),
	}
	for i := range o.Authorizations {
		a := &o.Authorizations[i]
		v.Names = append(v.Names, a.Ordered().Value)
		view := Authorization{Name: a.Ordered().Value, Status: a.Status, Expires: a.Expires}
		for _, c := range a.Challenges {
			view.Challenges = append(view.Challenges, Challenge{Type: c.Type, Status: c.Status, Validated: c.Validated, Error: c.Error})
		}
		v.Authorizations = append(v.Authorizations, view)
	}
	if i := o.Intent; i != nil {
		v.Request = &Request{Backend: i.Backend, Attempt: i.Attempt, Since: i.Since, Deadline: i.Deadline, Ticket: o.Ticket, Searches: o.Searches}
	}
	if c := o.Certificate; c != nil {
		v.Certificate = &OrderCertificate{ID: c.ID, Backend: c.Backend, Issued: c.Issued, NotAfter: c.NotAfter, Fetched: !c.Unfetched, Revoked: c.Revoked}
	}
	return v
}
