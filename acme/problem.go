package acme

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// A ProblemType is the last part of an ACME error URN (RFC 8555, Section 6.7).
type ProblemType string

// The registered error types that this server uses.
const (
	AccountDoesNotExist   ProblemType = "accountDoesNotExist"
	AlreadyRevoked        ProblemType = "alreadyRevoked"
	BadCSR                ProblemType = "badCSR"
	BadNonce              ProblemType = "badNonce"
	BadPublicKey          ProblemType = "badPublicKey"
	BadRevocationReason   ProblemType = "badRevocationReason"
	BadSignatureAlgorithm ProblemType = "badSignatureAlgorithm"
	Compound              ProblemType = "compound"
	Connection            ProblemType = "connection"
	DNS                   ProblemType = "dns"
	IncorrectResponse     ProblemType = "incorrectResponse"
	InvalidContact        ProblemType = "invalidContact"
	InvalidProfile        ProblemType = "invalidProfile"
	Malformed             ProblemType = "malformed"
	OrderNotReady         ProblemType = "orderNotReady"
	RateLimited           ProblemType = "rateLimited"
	RejectedIdentifier    ProblemType = "rejectedIdentifier"
	ServerInternal        ProblemType = "serverInternal"
	TLS                   ProblemType = "tls"
	Unauthorized          ProblemType = "unauthorized"
	UnsupportedContact    ProblemType = "unsupportedContact"
	UnsupportedIdentifier ProblemType = "unsupportedIdentifier"
	UserActionRequired    ProblemType = "userActionRequired"
)

const problemURN = "urn:ietf:params:acme:error:"

// MarshalText writes the type as its full URN.
func (t ProblemType) MarshalText() ([]byte, error) {
	return []byte(problemURN + string(t)), nil
}

// UnmarshalText reads the full URN.
func (t *ProblemType) UnmarshalText(text []byte) error {
	s := string(text)
	if len(s) <= len(problemURN) || s[:len(problemURN)] != problemURN {
		return fmt.Errorf("problem type %q is not an ACME error", s)
	}
	*t = ProblemType(s[len(problemURN):])
	return nil
}

// defaultStatus is the HTTP status that goes with a type unless the place where
// it occurs says otherwise.
func (t ProblemType) defaultStatus() int {
	switch t {
	case OrderNotReady, Unauthorized, UserActionRequired:
		return http.StatusForbidden
	case RateLimited:
		return http.StatusTooManyRequests
	case ServerInternal:
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

// A Problem is a problem document (RFC 9457; RFC 8555, Section 6.7): the only
// kind of error that a client ever sees. Detail and Subproblems must hold
// neither secrets nor bytes fetched from elsewhere.
type Problem struct {
	Type        ProblemType   `json:"type"`
	Detail      string        `json:"detail,omitempty"`
	Status      int           `json:"status,omitempty"`
	Identifier  *Identifier   `json:"identifier,omitempty"` // in subproblems only
	Subproblems []*Problem    `json:"subproblems,omitempty"`
	Algorithms  []string      `json:"algorithms,omitempty"` // with BadSignatureAlgorithm
	Instance    string        `json:"instance,omitempty"`   // with UserActionRequired
	RetryAfter  time.Duration `json:"-"`                    // for the Retry-After header
	Location    string        `json:"-"`                    // for the Location header
	Cause       error         `json:"-"`                    // for the log, never for the client
}

// Problemf makes a problem of the type's usual HTTP status.
func Problemf(t ProblemType, format string, args ...any) *Problem {
	return &Problem{Type: t, Status: t.defaultStatus(), Detail: fmt.Sprintf(format, args...)}
}

// WithStatus sets the HTTP status and returns p.
func (p *Problem) WithStatus(status int) *Problem { p.Status = status; return p }

// WithCause sets what the log shall say beyond the detail, and returns p.
func (p *Problem) WithCause(err error) *Problem { p.Cause = err; return p }

// WithRetryAfter sets the Retry-After header and returns p.
func (p *Problem) WithRetryAfter(d time.Duration) *Problem { p.RetryAfter = d; return p }

// For names the identifier that a subproblem is about, and returns p.
func (p *Problem) For(id Identifier) *Problem { p.Identifier = &id; return p }

func (p *Problem) Error() string {
	if p.Cause != nil {
		return fmt.Sprintf("%s: %s: %v", p.Type, p.Detail, p.Cause)
	}
	return fmt.Sprintf("%s: %s", p.Type, p.Detail)
}

func (p *Problem) Unwrap() error { return p.Cause }

// Combine makes one problem of several that concern different identifiers: the
// single one itself, else their common type (or compound) with subproblems
// (RFC 8555, Section 6.7.1), with the HTTP status that all of them have, or the
// type's own.
func Combine(detail string, subs []*Problem) *Problem {
	if len(subs) == 0 {
		return nil
	}
	t, status := subs[0].Type, subs[0].Status
	for _, s := range subs[1:] {
		if s.Type != t {
			t = Compound
		}
		if s.Status != status {
			status = 0
		}
	}
	if status == 0 {
		status = t.defaultStatus()
	}
	if len(subs) == 1 {
		detail = subs[0].Detail
	}
	return &Problem{Type: t, Status: status, Detail: detail, Subproblems: subs}
}

// Errors that stores return, and that handlers and the worker act on.
var (
	// ErrNotFound: there is no such object, or not for this account.
	ErrNotFound = errors.New("not found")
	// ErrConflict: too many writers were faster; nothing was changed.
	ErrConflict = errors.New("changed by another writer")
	// ErrUnavailable: the store cannot be reached or cannot write now; what
	// became of a write is known at the next read.
	ErrUnavailable = errors.New("storage unavailable")
	// ErrUnchanged, returned by a change function, ends an update without a
	// save and without an error.
	ErrUnchanged = errors.New("unchanged")
)

// AsProblem finds the problem in err; any other error becomes a serverInternal
// that tells the client nothing of its cause. Trouble with the store is a 503
// with Retry-After, since every client may try again.
func AsProblem(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	switch {
	case errors.Is(err, ErrNotFound):
		return Problemf(Malformed, "no such resource").WithStatus(http.StatusNotFound)
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrConflict):
		return Problemf(ServerInternal, "temporarily unavailable, please try again").
			WithStatus(http.StatusServiceUnavailable).WithRetryAfter(5 * time.Second).WithCause(err)
	}
	return Problemf(ServerInternal, "internal error").WithCause(err)
}
