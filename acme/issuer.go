package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// An IssueRequest is what a certificate authority is asked for. Its CSR has
// passed [ParseCSR] and its names are Identifiers exactly.
type IssueRequest struct {
	OrderID     string
	AccountID   string
	CSR         *x509.CertificateRequest
	Identifiers []Identifier
	// NotBefore and NotAfter were asked for by the client and promised to it;
	// zero when it left them open, and then Lifetime counts from the signing. A
	// zero Lifetime leaves it to the CA.
	NotBefore, NotAfter time.Time
	Lifetime            time.Duration
	// Submitted is when the intent was saved; Mark is what the Issuer's Mark
	// returned before that. Both come back unchanged in Find.
	Submitted time.Time
	Mark      string
}

// An Issuance is a certificate as the CA returned it, not yet checked, or the
// CA's word that it is at work.
type Issuance struct {
	Leaf *x509.Certificate // nil: not yet, see Ticket
	// Chain holds the issuers of Leaf, each certifying the one before; the root
	// may be last or left out.
	Chain []*x509.Certificate
	// Again says that the certificate was issued for an earlier order of the
	// same account, names and key, which nobody fetched: it may be this order's
	// as well.
	Again bool

	// Ticket is what [Poller.Poll] asks with while there is no Leaf, and
	// RetryAfter when that makes sense.
	Ticket     string
	RetryAfter time.Duration
	// Events are for the order's history, oldest first.
	Events []Event
}

// An Event is something that happened to an order at its CA, in words for the
// client's owner and the operator: no secrets.
type Event struct {
	Time time.Time `json:"time"`
	// Name is the identifier that it concerns, if it concerns one.
	Name string `json:"name,omitempty"`
	Text string `json:"text"`
}

// Outcomes of Submit and Find that are not a certificate. A [*Problem] means
// refused for good: nothing was issued and repeating is useless. Any error that
// is none of these is treated like ErrOutcomeUnknown.
var (
	// ErrOutcomeUnknown: the CA may have issued, or will yet.
	ErrOutcomeUnknown = errors.New("the certificate authority may have issued")
	// ErrNotIssued (Find only): it is proven that the CA did not issue.
	ErrNotIssued = errors.New("the certificate authority did not issue")
)

// A NotSentError means that the CA certainly did nothing, and that the same
// request may be sent again after a while.
type NotSentError struct {
	After time.Duration // what the CA asked for; 0: the caller's own backoff
	Err   error
}

func (e *NotSentError) Error() string { return fmt.Sprintf("not sent: %v", e.Err) }
func (e *NotSentError) Unwrap() error { return e.Err }

// An Issuer is a certificate authority that may lose an answer, and that does
// not deduplicate requests. The worker calls Submit at most once for each
// intent it has saved.
type Issuer interface {
	// Mark is called before an intent is saved and returns what Find will need
	// to know of the CA's state before the attempt. It must be cheap, and it
	// may be "" if it cannot be had.
	Mark(ctx context.Context) string
	// Submit asks for a certificate once; it never repeats by itself.
	Submit(ctx context.Context, req *IssueRequest) (*Issuance, error)
	// Find looks for what became of a Submit whose answer was lost. It is
	// called only after Submit's deadline has passed. A NotSentError says that
	// the CA could not be asked.
	Find(ctx context.Context, req *IssueRequest) (*Issuance, error)
	// Revoke revokes a certificate that this CA issued. Revoking twice is no
	// error. The reason is a CRLReason code, or -1 for none given; a [*Problem]
	// says that the CA knows no such reason.
	Revoke(ctx context.Context, leaf *x509.Certificate, reason int) error
	// Timeout is the deadline for one Submit; Find is called no earlier.
	Timeout() time.Duration
	// Roots are the certificates that a returned chain must lead to.
	Roots(ctx context.Context) (*x509.CertPool, error)
}

// A Poller is an Issuer whose Submit and Find may return a ticket instead of a
// certificate. The answer to Poll is the certificate, the ticket again (perhaps
// another one), a [*Problem] if the CA gave up for good, or any other error,
// after which Poll is called again later.
type Poller interface {
	Issuer
	Poll(ctx context.Context, req *IssueRequest, ticket string) (*Issuance, error)
}

// A Preflighter is an Issuer that can say beforehand that an order for these
// identifiers is bound to fail: with a [*Problem] that has a subproblem for each
// of them. Any other error means that it cannot tell now.
type Preflighter interface {
	Preflight(ctx context.Context, ids []Identifier) error
}

// Records keep what a backend must remember beyond an order: see [Store.Record]
// and [Store.PutRecord].
type Records interface {
	Record(ctx context.Context, name string) ([]byte, int64, error)
	PutRecord(ctx context.Context, name string, data []byte, version int64) error
}

// A KnownCertificates tells which certificates have been issued through this
// server, so that Find can leave them out: the answer has one element for each
// ID (see [CertificateID]), the owning order's ID or "".
type KnownCertificates interface {
	CertificateOwners(ctx context.Context, certIDs []string) ([]string, error)
}

// A Validation is one attempt to have a client prove control over an
// identifier (RFC 8555, Section 8).
type Validation struct {
	OrderID          string
	AccountID        string
	Type             ChallengeType
	Identifier       Identifier // without "*."
	Token            string
	KeyAuthorization string
}

// A Validator performs challenges. Validate returns nil if the proof was found,
// a [*Problem] for the client if it was not after all tries, and any other
// error if the attempt was broken off and has to be made again. It takes as
// long as its own configuration says, and ends early when ctx does.
type Validator interface {
	Validate(ctx context.Context, v *Validation) error
}
