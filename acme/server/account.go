package server

import (
	"net/http"
	"net/url"

	"github.com/gorilla/mux"

	"github.com/acme-bridge/acme-bridge/acme"
)

// accountObject is an account as clients see it (RFC 8555, Section 7.1.2).
type accountObject struct {
	Status               acme.Status `json:"status"`
	Contact              []string    `json:"contact,omitempty"`
	TermsOfServiceAgreed bool        `json:"termsOfServiceAgreed,omitempty"`
	Orders               string      `json:"orders"`
}

func (s *Server) writeAccount(w http.ResponseWriter, status int, dir *Directory, a *acme.Account) error {
	w.Header().Set("Location", s.accountURL(dir, a.ID))
	return reply(w, status, accountObject{
		Status: a.Status, Contact: a.Contact, TermsOfServiceAgreed: a.TermsAgreed != "",
		Orders: s.url(dir, routeOrders, "account", a.ID),
	})
}

// newAccount makes an account, or finds the one that the key has already
// (RFC 8555, Sections 7.3 and 7.3.1).
func (s *Server) newAccount(w http.ResponseWriter, r *request) error {
	var body struct {
		Contact              []string `json:"contact"`
		TermsOfServiceAgreed bool     `json:"termsOfServiceAgreed"`
		OnlyReturnExisting   bool     `json:"onlyReturnExisting"`
	}
	if err := r.decode(&body); err != nil {
		return err
	}
	known, err := s.Store.AccountByKey(r.Context(), r.dir.Name, r.key.thumbprint)
	switch err := notFoundIsNil(err); {
	case err != nil:
		return err
	case known != nil:
		return s.existingAccount(w, r, known)
	case body.OnlyReturnExisting:
		return acme.Problemf(acme.AccountDoesNotExist, "no account has this key")
	}
	if r.dir.TermsOfService != "" && !body.TermsOfServiceAgreed {
		addLink(w, r.dir.TermsOfService, "terms-of-service")
		p := acme.Problemf(acme.UserActionRequired, "the terms of service must be agreed to: %s", r.dir.TermsOfService)
		p.Instance = r.dir.TermsOfService
		return p
	}
	now := s.Now()
	id, err := s.ids.Account(now)
	if err != nil {
		return err
	}
	a := &acme.Account{
		ID: id, Directory: r.dir.Name, Status: acme.StatusValid, Created: now.UTC(),
		Key: r.key.jwk, Thumbprint: r.key.thumbprint,
	}
	if body.TermsOfServiceAgreed {
		a.TermsAgreed = r.dir.TermsOfService
	}
	if err := a.SetContact(body.Contact); err != nil {
		return err
	}
	ip := limitSubject(clientIP(r.Request, s.TrustedProxies))
	limit := acme.LimitKey{Scope: "new_accounts_per_ip", Subject: ip, Limit: r.policy.Limits.NewAccountsPerIP}
	if err := s.Store.Take(r.Context(), limit, 1, now); err != nil {
		return limited(err)
	}
	stored, created, err := s.Store.CreateAccount(r.Context(), a)
	if err != nil {
		return err
	}
	if !created {
		return s.existingAccount(w, r, stored)
	}
	s.Log.InfoContext(r.Context(), "account created", "account", stored.ID, "directory", r.dir.Name, "remote", ip)
	return s.writeAccount(w, http.StatusCreated, r.dir, stored)
}

// existingAccount answers newAccount for a known key: 200 and the account as it
// is, whatever else the request says.
func (s *Server) existingAccount(w http.ResponseWriter, r *request, a *acme.Account) error {
	if a.Status != acme.StatusValid {
		return acme.Problemf(acme.Unauthorized, "the account with this key is %s", a.Status).WithStatus(http.StatusUnauthorized)
	}
	return s.writeAccount(w, http.StatusOK, r.dir, a)
}

// account reads, updates or deactivates an account (RFC 8555, Sections 7.3.2
// and 7.3.6).
func (s *Server) account(w http.ResponseWriter, r *request) error {
	if err := ownAccount(r); err != nil {
		return err
	}
	if r.asGet() {
		return s.writeAccount(w, http.StatusOK, r.dir, r.account)
	}
	var body struct {
		Contact *[]string   `json:"contact"`
		Status  acme.Status `json:"status"`
	}
	if err := r.decode(&body); err != nil {
		return err
	}
	deactivate := body.Status == acme.StatusDeactivated
	if !deactivate && body.Contact == nil {
		return s.writeAccount(w, http.StatusOK, r.dir, r.account)
	}
	a, err := s.Store.UpdateAccount(r.Context(), r.account.ID, func(a *acme.Account) error {
		if a.Thumbprint != r.key.thumbprint {
			return acme.Problemf(acme.Unauthorized, "the account's key was changed meanwhile")
		}
		if deactivate {
			return a.Deactivate()
		}
		return a.SetContact(*body.Contact)
	})
	if err != nil {
		return err
	}
	if deactivate {
		s.Log.InfoContext(r.Context(), "account deactivated", "account", a.ID)
	}
	return s.writeAccount(w, http.StatusOK, r.dir, a)
}

// ordersPage is how many orders one answer lists.
const ordersPage = 100

// orders lists the account's orders, page by page (RFC 8555, Section 7.1.2.1).
// The cursor is the last order of the page before, so that pages stay what they
// are while orders are added.
func (s *Server) orders(w http.ResponseWriter, r *request) error {
	if err := ownAccount(r); err != nil {
		return err
	}
	after := r.URL.Query().Get("cursor")
	if after != "" && !acme.ValidID(after) {
		return acme.Problemf(acme.Malformed, "the cursor is none of ours")
	}
	ids, err := s.Store.AccountOrders(r.Context(), r.account.ID, after, ordersPage+1)
	if err != nil {
		return err
	}
	if len(ids) > ordersPage {
		ids = ids[:ordersPage]
		next := s.url(r.dir, routeOrders, "account", r.account.ID) + "?" + url.Values{"cursor": {ids[ordersPage-1]}}.Encode()
		addLink(w, next, "next")
	}
	body := struct {
		Orders []string `json:"orders"`
	}{Orders: make([]string, len(ids))}
	for i, id := range ids {
		body.Orders[i] = s.orderURL(r.dir, id)
	}
	return reply(w, http.StatusOK, body)
}

// keyChange replaces an account's key (RFC 8555, Section 7.3.5). The outer JWS
// is checked already; the inner one proves possession of the new key.
func (s *Server) keyChange(w http.ResponseWriter, r *request) error {
	if r.asGet() {
		return acme.Problemf(acme.Malformed, "the payload must be a JWS signed by the new key")
	}
	inner, err := parseEnvelope(r.payload)
	if err != nil {
		return err
	}
	h := &inner.header
	switch {
	case h.JWK == nil || h.KID != nil:
		return acme.Problemf(acme.Malformed, "the inner JWS must have the new key as jwk, and no kid")
	case h.Nonce != nil:
		return acme.Problemf(acme.Malformed, "the inner JWS must have no nonce")
	case h.URL == nil || *h.URL != r.url:
		return acme.Problemf(acme.Malformed, "the inner JWS must have the same url as the outer one")
	}
	newKey, err := parseKey(h.JWK)
	if err != nil {
		return err
	}
	if err := verify(inner, newKey); err != nil {
		return err
	}
	var body struct {
		Account string `json:"account"`
		OldKey  rawKey `json:"oldKey"`
	}
	if err := unmarshal(inner.payload, &body); err != nil {
		return malformed("the inner payload is not a key-change object", err)
	}
	oldKey, err := parseKey(body.OldKey)
	if err != nil {
		return malformed("oldKey is not a key", err)
	}
	if body.Account != s.accountURL(r.dir, r.account.ID) || oldKey.thumbprint != r.key.thumbprint {
		return acme.Problemf(acme.Malformed, "account and oldKey must be those of the outer JWS")
	}
	a, changed, err := s.Store.ChangeAccountKey(r.Context(), r.account.ID, newKey.thumbprint, func(a *acme.Account) error {
		if a.Thumbprint != oldKey.thumbprint {
			return acme.Problemf(acme.Unauthorized, "the account's key was changed meanwhile")
		}
		return a.ChangeKey(newKey.jwk, newKey.thumbprint)
	})
	if err != nil {
		return err
	}
	if !changed {
		p := acme.Problemf(acme.Malformed, "an account has the new key already").WithStatus(http.StatusConflict)
		p.Location = s.accountURL(r.dir, a.ID)
		return p
	}
	s.Log.InfoContext(r.Context(), "account key changed", "account", a.ID)
	return s.writeAccount(w, http.StatusOK, r.dir, a)
}

// ownAccount refuses all account URLs but the signer's own, alike.
func ownAccount(r *request) error {
	if mux.Vars(r.Request)["account"] != r.account.ID {
		return acme.Problemf(acme.Unauthorized, "this is not the account that signed the request")
	}
	return nil
}
