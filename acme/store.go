package acme

import (
	"context"
	"time"
)

// A Limit allows Count events in each Period, evenly or in a burst of at most
// Count (the generic cell rate algorithm, GCRA). The zero Limit allows all.
type Limit struct {
	Count  int
	Period time.Duration
}

// A LimitKey names one counter of a limit: Scope is the limit's name, Subject
// what is counted (an account, an address, an account and a name).
type LimitKey struct {
	Scope   string
	Subject string
	Limit   Limit
}

// FailedValidations is the limit on failed validations of one account and name.
func FailedValidations(accountID string, id Identifier, l Limit) LimitKey {
	base, _ := id.Base()
	return LimitKey{Scope: "failed_validations_per_account_and_name", Subject: accountID + "|" + base.Name(), Limit: l}
}

// A LimitError says that a limit is reached and when it makes sense to ask again.
type LimitError struct {
	Scope string
	After time.Duration
}

func (e *LimitError) Error() string { return "limit " + e.Scope + " reached" }

// A ProofKey names a [Proof].
type ProofKey struct {
	AccountID string
	Name      string // the order's identifier, with its "*." if it has one, after its type: "dns:*.example.com"
}

// A Proof is a valid authorization outside of its order: it is evidence for
// revocation (RFC 8555, Section 7.6) and, where a profile allows it, makes a
// later authorization valid at once.
type Proof struct {
	ProofKey
	Method    ChallengeType `json:"method"`
	KeyEpoch  int           `json:"epoch"`
	Validated time.Time     `json:"validated"`
	Expires   time.Time     `json:"expires"`
}

// A Lookup is all that one request needs to know from the store before it is
// served. Empty fields are not looked up.
type Lookup struct {
	// Nonce is redeemed: from now on and for at least NonceLifetime it counts
	// as used, whatever becomes of the request.
	Nonce         string
	NonceLifetime time.Duration
	AccountID     string
	OrderID       string
	Proofs        []ProofKey
	// Limits are asked, as by Take with cost 0, without being counted.
	Limits []LimitKey
	// Directory and Thumbprint name a key of which [Found.KeyNamed] shall tell.
	Directory  string
	Thumbprint string
}

// Found answers a [Lookup]; what does not exist is nil.
type Found struct {
	// NonceFresh: this call redeemed the nonce, and no other did.
	NonceFresh bool
	// NonceKey is the key in force (see [Store.NonceKey]), nil if the store has
	// lost it together with its marks of used nonces.
	NonceKey []byte
	Account  *Account
	Order    *Order
	Proofs   []*Proof // as many as were asked for
	// KeyNamed: an account has the key that was asked about, or had it, or is
	// about to; AccountByKey tells.
	KeyNamed bool
	// Limited is the error for the first limit that is reached, else nil.
	Limited *LimitError
}

// OrderLimits bound what an account may have; a zero value sets no bound.
type OrderLimits struct {
	Rate LimitKey // counted once for each order created
	Open int      // orders that are pending, ready or processing, and not expired
}

// A Quarantine keeps a certificate that a CA returned and that failed
// [CheckIssued], for the operator to look at.
type Quarantine struct {
	OrderID string    `json:"order"`
	Backend string    `json:"backend"`
	Reason  string    `json:"reason"`
	Time    time.Time `json:"time"`
	Leaf    []byte    `json:"leaf"` // DER
}

// A Store keeps accounts and orders. It knows no rules: it keeps, compares and
// swaps, indexes and enqueues.
//
// Every method returns an error wrapping [ErrUnavailable] when the store cannot
// be reached. Update calls are atomic: change runs on a private copy, may run
// again if another writer was faster (a bounded number of times, then
// [ErrConflict]), and must not do I/O; an error it returns ends the update and
// is returned, but for [ErrUnchanged].
//
// Objects are returned with their Version set and are the caller's own.
// Time passes by the caller's clock wherever a method takes now.
type Store interface {
	// NonceKey returns the secret that all replicas sign nonces with, storing
	// proposed first if there is none. It shares one fate with the marks of
	// used nonces: a store that forgets one forgets the other.
	NonceKey(ctx context.Context, proposed []byte) ([]byte, error)
	// Fetch answers a lookup in one round trip.
	Fetch(ctx context.Context, q Lookup, now time.Time) (*Found, error)

	// CreateAccount stores a new account unless its directory has one with that
	// key already; then it returns that one and false. Of rivals, one creates.
	CreateAccount(ctx context.Context, a *Account) (*Account, bool, error)
	// AccountByKey finds the account that has the key now, or ErrNotFound.
	AccountByKey(ctx context.Context, directory, thumbprint string) (*Account, error)
	UpdateAccount(ctx context.Context, id string, change func(*Account) error) (*Account, error)
	// ChangeAccountKey is an update whose change replaces the key. If the
	// account's directory has an account with the key thumbprint (this one
	// included), it returns that one, false, and changes nothing.
	ChangeAccountKey(ctx context.Context, id, thumbprint string, change func(*Account) error) (*Account, bool, error)

	// CreateOrder stores a new order within the limits and sets its Version, or
	// returns *LimitError; the scope of OrderLimits.Open is
	// "pending_orders_per_account".
	CreateOrder(ctx context.Context, o *Order, limits OrderLimits, now time.Time) error
	Order(ctx context.Context, id string) (*Order, error)
	// UpdateOrder changes an order as last was read; if that is out of date, or
	// has only an ID, or if change refuses it, it is read again. With the order it saves its wake time
	// in the queue, its place in its account's indexes, how long it is kept
	// ([Order.KeepUntil]), and its [Order.Grants] and [Order.Withdrawals].
	UpdateOrder(ctx context.Context, last *Order, change func(*Order) error) (*Order, error)
	// AccountOrders lists order IDs of an account that are not invalid, oldest
	// first, beginning after the ID given; it costs no more for orders not
	// returned.
	AccountOrders(ctx context.Context, accountID, after string, limit int) ([]string, error)
	// ClaimDue returns at most limit orders whose wake time has come, and puts
	// them off until now + lease so that others leave them alone meanwhile.
	ClaimDue(ctx context.Context, now time.Time, lease time.Duration, limit int) ([]string, error)

	// PutChain keeps the issuers' part of a chain (PEM) once, and returns the
	// name that Chain finds it by.
	PutChain(ctx context.Context, pem []byte) (string, error)
	Chain(ctx context.Context, ref string) ([]byte, error)
	// ClaimCertificate records that the certificate belongs to the order, unless
	// it belongs to another already. It returns the owner.
	ClaimCertificate(ctx context.Context, certID, orderID string, keepUntil time.Time) (string, error)
	KnownCertificates
	PutQuarantine(ctx context.Context, q *Quarantine) error

	// Take counts cost events against a limit, or returns *LimitError and
	// counts nothing. With cost 0 it asks whether one more would be refused.
	Take(ctx context.Context, key LimitKey, cost int, now time.Time) error

	// Record returns a named record and its version; 0 and nil if there is none.
	// PutRecord replaces a record of that version (0: none yet) by the next, or
	// returns ErrConflict.
	Records

	// Ping returns nil if the store can be read and written now.
	Ping(ctx context.Context) error
}
