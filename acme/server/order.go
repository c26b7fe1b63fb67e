package server

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/gorilla/mux"

	"github.com/acme-bridge/acme-bridge/acme"
)

// rawKey is a JWK inside another object.
type rawKey = jsontext.Value

// What clients are told to wait before they look again, in seconds. Some obey
// without a cap, some ignore it; none does well with more.
const (
	retryProcessing = 3 * time.Second
	retryChallenge  = 2 * time.Second
)

// challengeHold is how long a challenge response waits for its validation to
// end, so that a quick one needs no poll.
const challengeHold = time.Second

// orderObject is an order as clients see it (RFC 8555, Section 7.1.3).
type orderObject struct {
	Status         acme.Status       `json:"status"`
	Expires        time.Time         `json:"expires"`
	Identifiers    []acme.Identifier `json:"identifiers"`
	Profile        string            `json:"profile,omitempty"`
	NotBefore      time.Time         `json:"notBefore,omitzero"`
	NotAfter       time.Time         `json:"notAfter,omitzero"`
	Error          *acme.Problem     `json:"error,omitempty"`
	Authorizations []string          `json:"authorizations"`
	Finalize       string            `json:"finalize"`
	Certificate    string            `json:"certificate,omitempty"`
}

// writeOrder writes an order with its own URL in Location, which clients poll.
func (s *Server) writeOrder(w http.ResponseWriter, status int, dir *Directory, o *acme.Order) error {
	body := orderObject{
		Status: o.Status, Expires: o.Expires, Identifiers: o.Identifiers(), Profile: o.Profile,
		NotBefore: o.NotBefore, NotAfter: o.NotAfter, Error: o.Error,
		Authorizations: make([]string, len(o.Authorizations)),
		Finalize:       s.url(dir, routeFinalize, "order", o.ID),
	}
	for i := range o.Authorizations {
		body.Authorizations[i] = s.authzURL(dir, o.ID, i)
	}
	if o.Certificate != nil {
		body.Certificate = s.url(dir, routeCertificate, "order", o.ID)
	}
	w.Header().Set("Location", s.orderURL(dir, o.ID))
	if o.Status == acme.StatusProcessing {
		w.Header().Set("Retry-After", strconv.Itoa(ceilSeconds(retryProcessing)))
	}
	return reply(w, status, body)
}

type newOrderBody struct {
	Identifiers []acme.Identifier `json:"identifiers"`
	NotBefore   time.Time         `json:"notBefore"`
	NotAfter    time.Time         `json:"notAfter"`
	Profile     string            `json:"profile"`
}

// maxListed is how many identifiers a request may list, duplicates included. The
// profile bounds those of an order; this keeps a long list from costing a
// subproblem for each of its members.
const maxListed = 1000

// parseNewOrder finds the profile that an order is for, and its identifiers in
// their normal form.
func parseNewOrder(dir *Directory, body *newOrderBody) (*acme.Profile, []acme.Identifier, error) {
	profile, err := dir.profile(body.Profile)
	if err != nil {
		return nil, nil, err
	}
	if n := len(body.Identifiers); n > maxListed {
		return nil, nil, acme.Problemf(acme.Malformed, "%d identifiers in one request, at most %d are read", n, maxListed)
	}
	ids, err := acme.ParseIdentifiers(body.Identifiers)
	if err != nil {
		return nil, nil, err
	}
	return profile, ids, profile.Check(ids)
}

// lookupNewOrder has the proofs and limits that concern the names read together
// with the account.
func (s *Server) lookupNewOrder(r *request, q *acme.Lookup) {
	var body newOrderBody
	if unmarshal(r.payload, &body) != nil {
		return
	}
	profile, ids, err := parseNewOrder(r.dir, &body)
	if err != nil {
		return // newOrder says so, once the signature is verified
	}
	for _, id := range ids {
		if profile.ReuseAuthorizations {
			q.Proofs = append(q.Proofs, acme.ProofKey{AccountID: q.AccountID, Name: id.Name()})
		}
		q.Limits = append(q.Limits, acme.FailedValidations(q.AccountID, id, r.policy.Limits.FailedValidations))
	}
}

// newOrder makes an order (RFC 8555, Section 7.4).
func (s *Server) newOrder(w http.ResponseWriter, r *request) error {
	var body newOrderBody
	if err := r.decode(&body); err != nil {
		return err
	}
	profile, ids, err := parseNewOrder(r.dir, &body)
	if err != nil {
		return err
	}
	now := s.Now()
	if err := profile.CheckValidity(body.NotBefore, body.NotAfter, now); err != nil {
		return err
	}
	if r.found.Limited != nil {
		return limited(r.found.Limited)
	}
	limits := acme.OrderLimits{
		Rate: acme.LimitKey{Scope: "new_orders_per_account", Subject: r.account.ID, Limit: r.policy.Limits.NewOrdersPerAccount},
		Open: r.policy.Limits.PendingOrdersPerAccount,
	}
	records, err := s.preflight(r, profile, ids, limits.Rate, now)
	if err != nil {
		return err
	}
	proofs := make([]*acme.Proof, len(ids))
	for i, p := range r.found.Proofs {
		// A proof to us does not help the CA where it needs a record.
		if records[i] == nil && p.Serves(r.account, profile, ids[i], now) {
			proofs[i] = p
		}
	}
	o, err := acme.NewOrder(s.ids, r.account, profile, ids, proofs, now)
	if err != nil {
		return err
	}
	o.NotBefore, o.NotAfter = body.NotBefore.UTC().Truncate(time.Second), body.NotAfter.UTC().Truncate(time.Second)
	for i, record := range records {
		if record == nil {
			continue
		}
		if err := o.OfferRelay(i, profile.Relay, record); err != nil {
			return fmt.Errorf("offer the relay challenge: %w", err)
		}
	}
	if err := s.Store.CreateOrder(r.Context(), o, limits, now); err != nil {
		return limited(err)
	}
	s.Log.InfoContext(r.Context(), "order created", "order", o.ID, "account", o.AccountID, "profile", o.Profile, "identifiers", len(ids), "status", string(o.Status))
	return s.writeOrder(w, http.StatusCreated, r.dir, o)
}

// order reads an order.
func (s *Server) order(w http.ResponseWriter, r *request) error {
	return s.writeOrder(w, http.StatusOK, r.dir, r.order)
}

// lookupFinalize asks about the CSR's key together with the order.
func (s *Server) lookupFinalize(r *request, q *acme.Lookup) {
	var body struct {
		CSR string `json:"csr"`
	}
	if unmarshal(r.payload, &body) != nil {
		return
	}
	der, err := strictBase64(body.CSR)
	if err != nil || len(der) > acme.MaxCSR {
		return
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return // finalize says so, once the signature is verified
	}
	if key, err := newAccountKey(csr.PublicKey); err == nil {
		r.csrKey, q.Directory, q.Thumbprint = key.thumbprint, r.dir.Name, key.thumbprint
	}
}

// finalize takes the CSR (RFC 8555, Section 7.4). The worker does the issuing;
// a CA that is quick is waited for, so that the client need not poll.
func (s *Server) finalize(w http.ResponseWriter, r *request) error {
	var body struct {
		CSR string `json:"csr"`
	}
	if err := r.decode(&body); err != nil {
		return err
	}
	der, err := strictBase64(body.CSR)
	if err != nil || len(der) == 0 {
		return acme.Problemf(acme.BadCSR, "csr must be the DER of a certificate request in base64url without padding")
	}
	o := r.order
	checked := o.Status == acme.StatusReady
	if checked {
		if err := s.checkCSR(r, der); err != nil {
			return err
		}
	}
	changed, stop := s.Queue.Watch(o.ID)
	defer stop()
	mine := false // one of rival requests begins the work; the others wait for it
	o, err = s.Store.UpdateOrder(r.Context(), o, func(o *acme.Order) error {
		o.Expire(s.Now())
		if o.Status == acme.StatusReady && !checked {
			// It became so after it was read: this CSR has not been looked at.
			return acme.Problemf(acme.OrderNotReady, "order was not ready when the request came")
		}
		err := o.Finalize(der, s.Now())
		mine = err == nil
		return err
	})
	if err != nil {
		return err
	}
	if o.Status == acme.StatusProcessing {
		if mine {
			s.Log.InfoContext(r.Context(), "order finalized", "order", o.ID, "account", o.AccountID, "csr", o.CSRFingerprint())
			s.Queue.Nudge(o)
		}
		o = s.hold(r.Context(), o, changed, r.policy.FinalizeHold, func(o *acme.Order) bool { return o.Status != acme.StatusProcessing })
	}
	return s.writeOrder(w, http.StatusOK, r.dir, o)
}

func (s *Server) checkCSR(r *request, der []byte) error {
	profile := r.dir.Profiles[r.order.Profile]
	if profile == nil {
		return acme.Problemf(acme.InvalidProfile, "the order's profile %q is not offered any more; make a new order", r.order.Profile)
	}
	if _, err := acme.ParseCSR(der, r.order.Identifiers(), profile); err != nil {
		return err
	}
	if r.csrKey == "" {
		return acme.Problemf(acme.BadCSR, "the CSR's key is of no supported kind")
	}
	// RFC 8555, Section 11.1: neither this account's key nor any other's.
	taken := r.csrKey == r.key.thumbprint
	if r.found.KeyNamed && !taken {
		owner, err := s.Store.AccountByKey(r.Context(), r.dir.Name, r.csrKey)
		if err := notFoundIsNil(err); err != nil {
			return err
		}
		taken = owner != nil
	}
	if taken {
		return acme.Problemf(acme.BadCSR, "the CSR's key is an account key; certificates need keys of their own")
	}
	return nil
}

// holdPoll is how often a held request looks into the store, in case another
// replica does the work.
const holdPoll = time.Second

// hold waits, at most as long as given, until done or the client is gone, and
// returns the order as last seen.
func (s *Server) hold(ctx context.Context, o *acme.Order, changed <-chan *acme.Order, most time.Duration, done func(*acme.Order) bool) *acme.Order {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	poll := time.NewTicker(holdPoll)
	defer poll.Stop()
	for !done(o) {
		select {
		case latest := <-changed:
			// The channel may still hold what was saved before the caller's own save.
			if latest.Version > o.Version {
				o = latest
			}
		case <-poll.C:
			if latest, err := s.Store.Order(ctx, o.ID); err == nil {
				o = latest
			}
		case <-ctx.Done():
			return o
		}
	}
	return o
}

// authzObject is an authorization as clients see it (RFC 8555, Section 7.1.4).
type authzObject struct {
	Identifier acme.Identifier   `json:"identifier"`
	Status     acme.Status       `json:"status"`
	Expires    time.Time         `json:"expires"`
	Challenges []challengeObject `json:"challenges"`
	Wildcard   bool              `json:"wildcard,omitempty"`
}

// challengeObject is a challenge as clients see it (RFC 8555, Section 7.1.5).
type challengeObject struct {
	Type      acme.ChallengeType `json:"type"`
	URL       string             `json:"url"`
	Status    acme.Status        `json:"status"`
	Validated time.Time          `json:"validated,omitzero"`
	Error     *acme.Problem      `json:"error,omitempty"`
	Token     string             `json:"token"`

	// Of a relay challenge: the record that the CA waits for, and until when.
	RecordType    string    `json:"recordType,omitempty"`
	RecordName    string    `json:"recordName,omitempty"`
	RecordValue   string    `json:"recordValue,omitempty"`
	RecordExpires time.Time `json:"recordExpires,omitzero"`
}

func (s *Server) challengeObject(dir *Directory, o *acme.Order, i int, c *acme.Challenge) challengeObject {
	object := challengeObject{
		Type: c.Type, URL: s.challengeURL(dir, o.ID, i, c.Type), Status: c.Status,
		Validated: c.Validated, Error: c.Error, Token: o.Authorizations[i].Token, // here too: clients stumble over its absence
	}
	if r := c.Relay; r != nil {
		object.RecordType, object.RecordName, object.RecordValue, object.RecordExpires = r.Type, r.Name, r.Value, r.Expires
	}
	return object
}

// authorization reads or deactivates an authorization (RFC 8555, Sections 7.5
// and 7.5.2).
func (s *Server) authorization(w http.ResponseWriter, r *request) error {
	o, i, err := r.authorization()
	if err != nil {
		return err
	}
	if !r.asGet() {
		var body struct {
			Status acme.Status `json:"status"`
		}
		if err := r.decode(&body); err != nil {
			return err
		}
		if body.Status != acme.StatusDeactivated {
			return acme.Problemf(acme.Malformed, "an authorization can only be read or deactivated")
		}
		if o, err = s.Store.UpdateOrder(r.Context(), o, func(o *acme.Order) error {
			o.Expire(s.Now())
			return o.DeactivateAuthorization(i)
		}); err != nil {
			return err
		}
	}
	a := &o.Authorizations[i]
	body := authzObject{
		Identifier: a.Identifier, Status: a.Status, Expires: a.Expires, Wildcard: a.Wildcard,
		Challenges: make([]challengeObject, len(a.Challenges)),
	}
	for j := range a.Challenges {
		body.Challenges[j] = s.challengeObject(r.dir, o, i, &a.Challenges[j])
		if c := &a.Challenges[j]; c.Status == acme.StatusProcessing {
			w.Header().Set("Retry-After", strconv.Itoa(ceilSeconds(s.retryAfter(c))))
		}
	}
	return reply(w, http.StatusOK, body)
}

// challenge reads a challenge, or has it validated (RFC 8555, Section 7.5.1).
func (s *Server) challenge(w http.ResponseWriter, r *request) error {
	o, i, err := r.authorization()
	if err != nil {
		return err
	}
	t := acme.ChallengeType(mux.Vars(r.Request)["type"])
	if o.Authorizations[i].Challenge(t) == nil {
		return acme.ErrNotFound
	}
	if !r.asGet() {
		if o, err = s.respond(r, o, i, t); err != nil {
			return err
		}
	}
	c := o.Authorizations[i].Challenge(t)
	if c == nil { // another of the authorization's challenges became valid
		return acme.ErrNotFound
	}
	if c.Status == acme.StatusProcessing {
		w.Header().Set("Retry-After", strconv.Itoa(ceilSeconds(s.retryAfter(c))))
	}
	addLink(w, s.authzURL(r.dir, o.ID, i), "up")
	return reply(w, http.StatusOK, s.challengeObject(r.dir, o, i, c))
}

func (s *Server) respond(r *request, o *acme.Order, i int, t acme.ChallengeType) (*acme.Order, error) {
	var body struct{} // RFC 8555, Section 7.5.1: whatever else is in it is ignored
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	changed, stop := s.Queue.Watch(o.ID)
	defer stop()
	mine := false // as in finalize
	o, err := s.Store.UpdateOrder(r.Context(), o, func(o *acme.Order) error {
		err := o.Respond(i, t, r.account, s.Now())
		mine = err == nil
		return err
	})
	if err != nil {
		return nil, err
	}
	processing := func(o *acme.Order) bool {
		c := o.Authorizations[i].Challenge(t)
		return o.Status == acme.StatusPending && c != nil && c.Status == acme.StatusProcessing
	}
	if processing(o) {
		if mine {
			s.Queue.Nudge(o)
		}
		latest := s.hold(r.Context(), o, changed, challengeHold, func(o *acme.Order) bool { return !processing(o) })
		if latest.Authorizations[i].Challenge(t) == nil {
			// Another challenge was quicker and this one is gone with it, but the
			// response was accepted; the authorization tells the rest.
			return o, nil
		}
		o = latest
	}
	return o, nil
}

// authorization finds the one that the URL names.
func (r *request) authorization() (*acme.Order, int, error) {
	v := mux.Vars(r.Request)["authz"]
	i, err := strconv.Atoi(v)
	if err != nil || i >= len(r.order.Authorizations) || strconv.Itoa(i) != v {
		return nil, 0, acme.ErrNotFound
	}
	return r.order, i, nil
}

// certificate hands out the chain, leaf first (RFC 8555, Section 7.4.2).
func (s *Server) certificate(w http.ResponseWriter, r *request) error {
	cert := r.order.Certificate
	if cert == nil {
		return acme.ErrNotFound
	}
	chain, ok := s.chains.Get(cert.ChainRef)
	if !ok {
		var err error
		if chain, err = s.Store.Chain(r.Context(), cert.ChainRef); err != nil {
			return err
		}
		s.chains.Add(cert.ChainRef, chain)
	}
	h := w.Header()
	h.Set("Content-Type", "application/pem-certificate-chain")
	h.Set("Cache-Control", "private, max-age=86400, immutable")
	w.WriteHeader(http.StatusOK)
	if cert.Unfetched {
		// Before the answer: a certificate that may have arrived is never taken
		// for one that nobody has.
		if _, err := s.Store.UpdateOrder(r.Context(), r.order, func(o *acme.Order) error { return o.Fetch() }); err != nil {
			return err
		}
	}
	leaf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Leaf})
	// The status line is out; a client that is gone cannot be told.
	_, _ = w.Write(append(leaf, chain...))
	return nil
}

func notFoundIsNil(err error) error {
	if errors.Is(err, acme.ErrNotFound) {
		return nil
	}
	return err
}

// limited turns a limit into the problem that clients know.
func limited(err error) error {
	l, ok := errors.AsType[*acme.LimitError](err)
	if !ok {
		return err
	}
	return acme.Problemf(acme.RateLimited, "the limit %s is reached, try again in %d seconds", l.Scope, ceilSeconds(l.After)).WithRetryAfter(l.After)
}
