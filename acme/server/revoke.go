package server

import (
	"bytes"
	"crypto/x509"
	"errors"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/acme-bridge/acme-bridge/acme"
)

// reasonNone stands for a request without a reason.
const reasonNone = -1

// revokeCert revokes a certificate for the account that ordered it, for one that
// holds valid authorizations for all its names, or for the holder of its key
// (RFC 8555, Section 7.6).
func (s *Server) revokeCert(w http.ResponseWriter, r *request) error {
	var body struct {
		Certificate string         `json:"certificate"`
		Reason      jsontext.Value `json:"reason"`
	}
	if err := r.decode(&body); err != nil {
		return err
	}
	der, err := strictBase64(body.Certificate)
	if err != nil {
		return malformed("certificate must be DER in base64url without padding", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return malformed("certificate does not parse", err)
	}
	o, err := s.certificateOrder(r, cert)
	if err != nil {
		return err
	}
	if err := s.mayRevoke(r, cert, o); err != nil {
		return err
	}
	reason, err := parseReason(body.Reason)
	if err != nil {
		return err
	}
	if err := o.Clone().Revoke(reason, s.Now()); err != nil {
		return err
	}
	// The CA first, the record second: a crash between them is mended by the
	// client's next try, since revoking twice is no error for a backend.
	if err := s.Revoker.Revoke(r.Context(), o.Certificate.Backend, cert, reason); err != nil {
		if _, ok := errors.AsType[*acme.Problem](err); ok {
			return err
		}
		return acme.Problemf(acme.ServerInternal, "the certificate authority did not confirm the revocation, please try again").
			WithStatus(http.StatusServiceUnavailable).WithRetryAfter(retryProcessing).WithCause(err)
	}
	if _, err := s.Store.UpdateOrder(r.Context(), o, func(o *acme.Order) error {
		return o.Revoke(reason, s.Now())
	}); err != nil {
		return err
	}
	s.Log.InfoContext(r.Context(), "certificate revoked", "order", o.ID, "account", o.AccountID, "backend", o.Certificate.Backend,
		"certificate", o.Certificate.ID, "reason", reason)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	return nil
}

// certificateOrder finds the order that a certificate was issued for, comparing
// the whole certificate and not just its number.
func (s *Server) certificateOrder(r *request, cert *x509.Certificate) (*acme.Order, error) {
	unknown := acme.Problemf(acme.Malformed, "this server did not issue the certificate").WithStatus(http.StatusNotFound)
	owners, err := s.Store.CertificateOwners(r.Context(), []string{acme.CertificateID(cert)})
	if err != nil {
		return nil, err
	}
	if len(owners) == 0 || owners[0] == "" {
		return nil, unknown
	}
	o, err := s.Store.Order(r.Context(), owners[0])
	if err := notFoundIsNil(err); err != nil {
		return nil, err
	}
	if o == nil || o.Directory != r.dir.Name || o.Certificate == nil || !bytes.Equal(o.Certificate.Leaf, cert.Raw) {
		return nil, unknown
	}
	return o, nil
}

func (s *Server) mayRevoke(r *request, cert *x509.Certificate, o *acme.Order) error {
	denied := acme.Problemf(acme.Unauthorized, "neither the certificate's key nor an account that may revoke it signed the request")
	if r.account == nil {
		key, err := newAccountKey(cert.PublicKey)
		if err != nil || key.thumbprint != r.key.thumbprint {
			return denied.WithCause(err)
		}
		return nil
	}
	if r.account.ID == o.AccountID {
		return nil
	}
	var q acme.Lookup
	for _, id := range o.Identifiers() {
		q.Proofs = append(q.Proofs, acme.ProofKey{AccountID: r.account.ID, Name: id.Name()})
	}
	now := s.Now()
	found, err := s.Store.Fetch(r.Context(), q, now)
	if err != nil {
		return err
	}
	for _, p := range found.Proofs {
		if !p.Holds(r.account, now) {
			return denied
		}
	}
	return nil
}

// parseReason reads a CRLReason that a subscriber may give (RFC 5280, Section
// 5.3.1; RFC 8555, Section 7.6).
func parseReason(raw jsontext.Value) (int, error) {
	if raw == nil || raw.Kind() == 'n' {
		return reasonNone, nil
	}
	switch reason := string(raw); reason {
	case "0", "1", "2", "3", "4", "5", "6", "9", "10":
		return strconv.Atoi(reason)
	}
	return 0, acme.Problemf(acme.BadRevocationReason, "the reason must be one of 0, 1, 2, 3, 4, 5, 6, 9, 10, or be left out")
}
