package acme

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"slices"
	"time"
)

// A Status is the state of an account, order, authorization or challenge
// (RFC 8555, Section 7.1.6).
type Status string

// The states of RFC 8555.
const (
	StatusPending     Status = "pending"
	StatusReady       Status = "ready"
	StatusProcessing  Status = "processing"
	StatusValid       Status = "valid"
	StatusInvalid     Status = "invalid"
	StatusDeactivated Status = "deactivated"
	StatusExpired     Status = "expired"
)

// A ChallengeType is a method of proving control over an identifier.
type ChallengeType string

// The challenge types of RFC 8555 and RFC 8737.
const (
	HTTP01    ChallengeType = "http-01"
	DNS01     ChallengeType = "dns-01"
	TLSALPN01 ChallengeType = "tls-alpn-01"
)

// Handoff is how long after a save the queue waits before it shows the order to
// anyone: the replica that saved it begins with it at once, and only if that
// one died or is busy another should.
const Handoff = 5 * time.Second

// An Order is one document: it holds its authorizations and their challenges,
// what is needed to have a certificate issued at most once, and the result
// (RFC 8555, Section 7.1.3).
type Order struct {
	ID             string          `json:"id"`
	Directory      string          `json:"dir"`
	AccountID      string          `json:"acct"`
	Profile        string          `json:"profile"`
	Status         Status          `json:"status"`
	Authorizations []Authorization `json:"authz"` // one for each identifier, in the order's order
	NotBefore      time.Time       `json:"nbf,omitzero"`
	NotAfter       time.Time       `json:"naf,omitzero"`
	Created        time.Time       `json:"created"`
	Expires        time.Time       `json:"expires"`
	Error          *Problem        `json:"error,omitempty"`

	// CSR is kept while the order is processing, its SHA-256 for ever, so that
	// a repeated finalize is recognised.
	CSR     []byte `json:"csr,omitempty"`
	CSRHash []byte `json:"csrHash,omitempty"`
	// Intent is set while the CA may have been asked and the answer is not
	// saved yet. It is what keeps a certificate from being issued twice.
	Intent *Intent `json:"intent,omitempty"`
	// Attempts counts submits, Searches the Finds of the present intent.
	Attempts int `json:"attempts,omitempty"`
	Searches int `json:"searches,omitempty"`

	// Ticket is what the CA is asked with while it works on the intent.
	Ticket string `json:"ticket,omitempty"`
	// History is what happened at a CA that takes its time, the latest last.
	History []Event `json:"history,omitempty"`

	Certificate *Certificate `json:"cert,omitempty"`

	// Wake is when the worker must look at the order again; zero for never.
	Wake time.Time `json:"wake,omitzero"`

	Version int64 `json:"-"` // kept by the store: 0 for an order not yet stored

	// Grants and Withdrawals are proofs that the store writes and removes in
	// the save that makes them so; a loaded order has none.
	Grants      []*Proof   `json:"-"`
	Withdrawals []ProofKey `json:"-"`
}

// An Intent to ask a CA for a certificate, saved before the CA is asked.
type Intent struct {
	Attempt         int       `json:"n"`        // names the intent within its order
	Since           time.Time `json:"since"`    // when it was saved
	Deadline        time.Time `json:"deadline"` // after this no Submit of it is running
	Backend         string    `json:"backend"`
	LifetimeSeconds int64     `json:"lifetime"` // asked for, whatever the profile says later
	Mark            string    `json:"mark,omitempty"`
}

// A Certificate is what was issued for an order.
type Certificate struct {
	ID       string    `json:"id"`   // see CertificateID
	Leaf     []byte    `json:"leaf"` // DER
	ChainRef string    `json:"chain"`
	Issued   time.Time `json:"issued"`
	NotAfter time.Time `json:"naf"`
	Backend  string    `json:"backend"` // the backend that issued it, for revocation
	// Unfetched: the client had to wait for it, and may have gone away before it
	// came. Cleared by the first download.
	Unfetched bool        `json:"unfetched,omitempty"`
	Revoked   *Revocation `json:"revoked,omitempty"`
}

// A Revocation says when and why a certificate was revoked.
type Revocation struct {
	Time   time.Time `json:"time"`
	Reason int       `json:"reason"` // CRLReason, -1 if none was given
}

// An Authorization is an account's right to an identifier within one order
// (RFC 8555, Section 7.1.4).
type Authorization struct {
	Identifier Identifier  `json:"id"` // without "*."
	Wildcard   bool        `json:"wildcard,omitempty"`
	Status     Status      `json:"status"`
	Expires    time.Time   `json:"expires"`
	Token      string      `json:"token,omitempty"` // shared by its challenges
	Challenges []Challenge `json:"chall"`
}

// A Challenge is one way to make its authorization valid (RFC 8555, Section 8).
type Challenge struct {
	Type      ChallengeType `json:"type"`
	Status    Status        `json:"status"`
	Validated time.Time     `json:"validated,omitzero"`
	Error     *Problem      `json:"error,omitempty"`
	// Thumbprint and KeyEpoch of the account's key when the response arrived;
	// the thumbprint is the second half of the key authorization.
	Thumbprint string `json:"thumb,omitempty"`
	KeyEpoch   int    `json:"epoch,omitempty"`

	// Relay is the record that the CA waits for, in a relay challenge only.
	// Looks counts how often the CA was asked about it, Next is when to ask again.
	Relay *RelayRecord `json:"relay,omitempty"`
	Looks int          `json:"looks,omitempty"`
	Next  time.Time    `json:"next,omitzero"`
}

// Ordered is the identifier as the order has it: with "*." for a wildcard.
func (a *Authorization) Ordered() Identifier {
	if a.Wildcard {
		return Identifier{Type: a.Identifier.Type, Value: "*." + a.Identifier.Value}
	}
	return a.Identifier
}

// Challenge returns the challenge of that type, or nil.
func (a *Authorization) Challenge(t ChallengeType) *Challenge {
	for i := range a.Challenges {
		if a.Challenges[i].Type == t {
			return &a.Challenges[i]
		}
	}
	return nil
}

// KeyAuthorization is the value that proves the account's consent
// (RFC 8555, Section 8.1), fixed when the client responded.
func (a *Authorization) KeyAuthorization(c *Challenge) string { return a.Token + "." + c.Thumbprint }

// NewOrder makes the order for identifiers that have passed the profile's
// policy. The proofs, one for each identifier or nil, make authorizations valid
// at once; with all of them the order is ready (RFC 8555, Section 7.4).
func NewOrder(ids IDs, account *Account, profile *Profile, identifiers []Identifier, proofs []*Proof, now time.Time) (*Order, error) {
	id, err := ids.Order(account.ID, now)
	if err != nil {
		return nil, err
	}
	o := &Order{
		ID: id, Directory: account.Directory, AccountID: account.ID, Profile: profile.Name,
		Status: StatusPending, Created: now.UTC().Truncate(time.Second),
	}
	o.Expires = o.Created.Add(profile.OrderLifetime)
	for i, ident := range identifiers {
		a := Authorization{Identifier: ident, Status: StatusPending}
		a.Identifier, a.Wildcard = ident.Base()
		if p := proofs[i]; p != nil {
			a.Status, a.Expires = StatusValid, p.Expires
			a.Challenges = []Challenge{{Type: p.Method, Status: StatusValid, Validated: p.Validated}}
			if p.Expires.Before(o.Expires) {
				o.Expires = p.Expires
			}
		} else {
			for _, t := range profile.ChallengesFor(ident) {
				a.Challenges = append(a.Challenges, Challenge{Type: t, Status: StatusPending})
			}
		}
		if a.Token, err = ids.Token(); err != nil {
			return nil, err
		}
		o.Authorizations = append(o.Authorizations, a)
	}
	for i := range o.Authorizations {
		if a := &o.Authorizations[i]; a.Status == StatusPending {
			a.Expires = o.Expires
		}
	}
	o.becomeReady()
	return o, nil
}

// Identifiers are the order's names, in the order in which it was made.
func (o *Order) Identifiers() []Identifier {
	ids := make([]Identifier, len(o.Authorizations))
	for i := range o.Authorizations {
		ids[i] = o.Authorizations[i].Ordered()
	}
	return ids
}

// Open reports whether the order can still become valid.
func (o *Order) Open() bool {
	return o.Status == StatusPending || o.Status == StatusReady || o.Status == StatusProcessing
}

// KeepUntil is when a store may forget the order: a week after it ended, or
// after its certificate did. A processing order is kept without end, since it
// may stand for a certificate.
func (o *Order) KeepUntil() time.Time {
	const after = 7 * 24 * time.Hour
	switch {
	case o.Status == StatusProcessing:
		return time.Time{}
	case o.Certificate != nil:
		return o.Certificate.NotAfter.Add(after)
	}
	return o.Expires.Add(after)
}

// Clone returns a copy that shares no memory with o that either may change.
func (o *Order) Clone() *Order {
	c := *o
	c.Authorizations = slices.Clone(o.Authorizations)
	for i := range c.Authorizations {
		challenges := slices.Clone(c.Authorizations[i].Challenges)
		for j := range challenges {
			if r := challenges[j].Relay; r != nil {
				record := *r
				challenges[j].Relay = &record
			}
		}
		c.Authorizations[i].Challenges = challenges
	}
	if o.Intent != nil {
		intent := *o.Intent
		c.Intent = &intent
	}
	if o.Certificate != nil {
		cert := *o.Certificate
		c.Certificate = &cert
	}
	c.History = slices.Clone(o.History)
	c.Grants, c.Withdrawals = slices.Clone(o.Grants), slices.Clone(o.Withdrawals)
	return &c
}

// Expire makes an order that ran out of time invalid, and its authorizations
// expired or invalid (RFC 8555, Section 7.1.6). It reports whether anything
// changed. An order that is processing does not expire: a certificate may exist.
func (o *Order) Expire(now time.Time) bool {
	if o.Status != StatusPending && o.Status != StatusReady || now.Before(o.Expires) {
		return false
	}
	for i := range o.Authorizations {
		switch a := &o.Authorizations[i]; a.Status {
		case StatusValid:
			if !now.Before(a.Expires) {
				a.Status = StatusExpired
			}
		case StatusPending:
			a.Status = StatusInvalid
		}
	}
	o.fail(Problemf(Malformed, "order expired at %s", o.Expires.Format(time.RFC3339)))
	return true
}

// Respond records that the client wants a challenge to be checked: pending to
// processing. On a challenge that left pending already it changes nothing and
// returns ErrUnchanged (RFC 8555, Section 7.5.1).
func (o *Order) Respond(authz int, t ChallengeType, account *Account, now time.Time) error {
	a, c := o.challenge(authz, t)
	if c == nil {
		return ErrNotFound
	}
	if o.Status != StatusPending || a.Status != StatusPending || c.Status != StatusPending || !now.Before(o.Expires) {
		return ErrUnchanged
	}
	c.Status, c.Thumbprint, c.KeyEpoch = StatusProcessing, account.Thumbprint, account.KeyEpoch
	o.wakeBy(now.Add(Handoff))
	return nil
}

// Validated ends a challenge that is processing: problem is nil if control was
// proven. The first valid challenge makes the authorization valid, and the last
// authorization the order ready; a failure makes authorization and order invalid.
// The lifetime is that of the authorization as evidence outside of the order.
// A challenge that is not processing any more is left as it is (ErrUnchanged).
func (o *Order) Validated(authz int, t ChallengeType, problem *Problem, lifetime time.Duration, now time.Time) error {
	a, c := o.challenge(authz, t)
	if c == nil {
		return ErrNotFound
	}
	if o.Status != StatusPending || a.Status != StatusPending || c.Status != StatusProcessing || !now.Before(o.Expires) {
		return ErrUnchanged
	}
	now = now.UTC().Truncate(time.Second)
	if problem != nil {
		c.Status, c.Error, a.Status = StatusInvalid, problem, StatusInvalid
		sub := *problem
		o.fail(Combine("validation failed", []*Problem{sub.For(a.Ordered())}))
		return nil
	}
	c.Status, c.Validated = StatusValid, now
	a.Status, a.Expires = StatusValid, now.Add(lifetime)
	if a.Expires.Before(o.Expires) { // none may run out before the order does
		o.Expires = a.Expires
	}
	keyEpoch := c.KeyEpoch
	a.Challenges = []Challenge{*c} // RFC 8555, Section 7.1.4: valid keeps the one that was validated
	o.Grants = append(o.Grants, &Proof{
		ProofKey: ProofKey{AccountID: o.AccountID, Name: a.Ordered().Name()},
		Method:   t, KeyEpoch: keyEpoch, Validated: now, Expires: a.Expires,
	})
	if c.Relay != nil {
		o.note([]Event{{Time: now, Name: a.Ordered().Value, Text: "the CA has seen the record that the client published"}})
	}
	o.wakeForChallenges(now)
	o.becomeReady()
	return nil
}

// DeactivateAuthorization gives up an authorization at the client's wish; it
// counts no more, and an order that needed it is invalid
// (RFC 8555, Section 7.5.2).
func (o *Order) DeactivateAuthorization(authz int) error {
	if authz < 0 || authz >= len(o.Authorizations) {
		return ErrNotFound
	}
	a := &o.Authorizations[authz]
	if a.Status != StatusPending && a.Status != StatusValid {
		return Problemf(Malformed, "authorization is %s", a.Status)
	}
	a.Status = StatusDeactivated
	o.Withdrawals = append(o.Withdrawals, ProofKey{AccountID: o.AccountID, Name: a.Ordered().Name()})
	if o.Status == StatusPending || o.Status == StatusReady {
		o.fail(Problemf(Unauthorized, "the authorization for %s was deactivated", a.Ordered().Value))
	}
	return nil
}

// Finalize records the CSR, which has passed [ParseCSR], and moves a ready order
// to processing, so that exactly one finalize wins (RFC 8555, Section 7.4). The
// same CSR again finds the order as it is (ErrUnchanged), because clients
// repeat a finalize whose answer they lost.
func (o *Order) Finalize(csr []byte, now time.Time) error {
	hash := sha256.Sum256(csr)
	if o.CSRHash != nil && slices.Equal(o.CSRHash, hash[:]) {
		return ErrUnchanged
	}
	if o.Status != StatusReady {
		return Problemf(OrderNotReady, "order is %s, not ready", o.Status)
	}
	if !now.Before(o.Expires) {
		return Problemf(OrderNotReady, "order expired at %s", o.Expires.Format(time.RFC3339))
	}
	o.Status, o.CSR, o.CSRHash = StatusProcessing, slices.Clone(csr), hash[:]
	o.Wake = now.Add(Handoff)
	return nil
}

// Submit records the intent to ask the CA, which must be saved before the CA is
// asked. Until its deadline only the caller that saved it acts on the order. The
// attempt is counted here. ErrUnchanged means that there is nothing to submit,
// or someone does it already.
func (o *Order) Submit(intent Intent) error {
	if o.Status != StatusProcessing || o.Intent != nil {
		return ErrUnchanged
	}
	o.Attempts++
	o.Searches = 0
	intent.Attempt = o.Attempts
	o.Intent = &intent
	o.Wake = intent.Deadline
	return nil
}

// NotIssued clears the intent of that attempt: the CA has certainly issued
// nothing for it, and the next submit may follow at retry.
func (o *Order) NotIssued(attempt int, retry time.Time) error {
	if !o.intends(attempt) {
		return ErrUnchanged
	}
	o.Intent, o.Ticket, o.Searches = nil, "", 0
	o.Wake = retry
	return nil
}

// Postpone only moves the worker's next look at that attempt's intent.
func (o *Order) Postpone(attempt int, until time.Time) error {
	if !o.intends(attempt) {
		return ErrUnchanged
	}
	o.Wake = until
	return nil
}

// Accepted records that the CA works on that attempt, and when to ask it again
// with the ticket. It is for the answers of Submit, Find and Poll.
func (o *Order) Accepted(attempt int, ticket string, events []Event, next time.Time) error {
	if !o.intends(attempt) {
		return ErrUnchanged
	}
	o.Ticket, o.Wake = ticket, next
	o.note(events)
	return nil
}

// Fetch records that the client has had the certificate.
func (o *Order) Fetch() error {
	if o.Certificate == nil || !o.Certificate.Unfetched {
		return ErrUnchanged
	}
	o.Certificate.Unfetched = false
	return nil
}

// Unresolved records that a search for that attempt's certificate could not
// tell, and when to search again.
func (o *Order) Unresolved(attempt int, next time.Time) error {
	if !o.intends(attempt) {
		return ErrUnchanged
	}
	o.Searches++
	o.Wake = next
	return nil
}

// Issued ends the order with the certificate of that attempt, which has passed
// [CheckIssued] and belongs to this order. The events are the CA's last news.
func (o *Order) Issued(attempt int, cert *Certificate, events ...Event) error {
	if !o.intends(attempt) {
		return ErrUnchanged
	}
	o.note(events)
	cert.Unfetched = o.Ticket != ""
	o.Status, o.Certificate = StatusValid, cert
	o.CSR, o.Intent, o.Ticket, o.Error, o.Searches = nil, nil, "", nil, 0
	o.Wake = time.Time{}
	for i := range o.Authorizations { // spent: what is only needed to validate
		a := &o.Authorizations[i]
		for j := range a.Challenges {
			a.Challenges[j].Thumbprint = ""
		}
	}
	return nil
}

// Refused ends a processing order without a certificate, for a reason that the
// client gets to see. With an attempt other than 0 only that attempt's intent
// is ended.
func (o *Order) Refused(attempt int, problem *Problem) error {
	if o.Status != StatusProcessing || attempt != 0 && !o.intends(attempt) {
		return ErrUnchanged
	}
	o.fail(problem)
	return nil
}

// Revoke records a revocation (RFC 8555, Section 7.6).
func (o *Order) Revoke(reason int, now time.Time) error {
	if o.Certificate == nil {
		return ErrNotFound
	}
	if o.Certificate.Revoked != nil {
		return Problemf(AlreadyRevoked, "certificate was revoked at %s", o.Certificate.Revoked.Time.Format(time.RFC3339))
	}
	o.Certificate.Revoked = &Revocation{Time: now.UTC().Truncate(time.Second), Reason: reason}
	return nil
}

// Request is what the CA is asked for: of a processing order with an intent.
func (o *Order) Request() (*IssueRequest, error) {
	if o.Intent == nil {
		return nil, ErrNotFound
	}
	csr, err := x509.ParseCertificateRequest(o.CSR)
	if err != nil {
		return nil, err
	}
	return &IssueRequest{
		OrderID: o.ID, AccountID: o.AccountID, CSR: csr, Identifiers: o.Identifiers(),
		NotBefore: o.NotBefore, NotAfter: o.NotAfter, Lifetime: time.Duration(o.Intent.LifetimeSeconds) * time.Second,
		Submitted: o.Intent.Since, Mark: o.Intent.Mark,
	}, nil
}

// ProcessingChallenges lists what waits for a validation.
func (o *Order) ProcessingChallenges() []ChallengeRef {
	if o.Status != StatusPending {
		return nil
	}
	var refs []ChallengeRef
	for i := range o.Authorizations {
		a := &o.Authorizations[i]
		if a.Status != StatusPending {
			continue
		}
		for _, c := range a.Challenges {
			if c.Status == StatusProcessing {
				refs = append(refs, ChallengeRef{Authorization: i, Type: c.Type})
			}
		}
	}
	return refs
}

// A ChallengeRef names a challenge within its order.
type ChallengeRef struct {
	Authorization int
	Type          ChallengeType
}

// CSRFingerprint names a CSR in logs.
func (o *Order) CSRFingerprint() string { return base64.RawURLEncoding.EncodeToString(o.CSRHash) }

func (o *Order) challenge(authz int, t ChallengeType) (*Authorization, *Challenge) {
	if authz < 0 || authz >= len(o.Authorizations) {
		return nil, nil
	}
	a := &o.Authorizations[authz]
	return a, a.Challenge(t)
}

// maxHistory bounds what is kept of an order's history; the first events tell
// what was asked, the last what came of it.
const maxHistory = 60

func (o *Order) note(events []Event) {
	o.History = append(o.History, events...)
	if n := len(o.History); n > maxHistory {
		o.History = slices.Delete(o.History, maxHistory/2, n-maxHistory/2)
	}
}

func (o *Order) intends(attempt int) bool {
	return o.Status == StatusProcessing && o.Intent != nil && o.Intent.Attempt == attempt
}

func (o *Order) becomeReady() {
	for i := range o.Authorizations {
		if o.Authorizations[i].Status != StatusValid {
			return
		}
	}
	o.Status, o.Wake = StatusReady, time.Time{}
}

func (o *Order) wakeBy(t time.Time) {
	if o.Wake.IsZero() || t.Before(o.Wake) {
		o.Wake = t
	}
}

// fail is every arrow that leads to invalid.
func (o *Order) fail(p *Problem) {
	o.Status, o.Error = StatusInvalid, p
	o.CSR, o.Intent, o.Ticket = nil, nil, ""
	o.Wake = time.Time{}
	for i := range o.Authorizations {
		a := &o.Authorizations[i]
		if a.Status == StatusPending {
			a.Status = StatusInvalid // it has no use but this order, and clients poll it
		}
		for j := range a.Challenges {
			if a.Challenges[j].Status == StatusProcessing {
				a.Challenges[j].Status = StatusPending // no validation will follow
			}
		}
	}
}
