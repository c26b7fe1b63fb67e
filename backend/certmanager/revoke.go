package certmanager

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// reasonKeyCompromise has no word at the service.
const reasonKeyCompromise = 1

// revokeTypes are the service's words for CRLReason codes (RFC 5280, Section
// 5.3.1); -1 is none given.
var revokeTypes = map[int]string{-1: "unspecified", 0: "unspecified", 3: "affiliationChanged", 4: "superseded", 5: "cessationOfOperation"}

// Revoke revokes a certificate by the number that was remembered when it was
// issued, or else by its serial number in the list.
func (i *Issuer) Revoke(ctx context.Context, leaf *x509.Certificate, reason int) error {
	revokeType, ok := revokeTypes[reason]
	if !ok && reason == reasonKeyCompromise && i.cfg.KeyCompromise == CompromiseUnspecified {
		revokeType, ok = "unspecified", true
		i.metrics.compromised.WithLabelValues(i.cfg.Backend).Inc()
		i.cfg.Log.ErrorContext(ctx, "a certificate is revoked for keyCompromise, which Certificate Manager does not know: tell NCP so that it revokes with that reason",
			"certificate", acme.CertificateID(leaf))
	}
	if !ok {
		return acme.Problemf(acme.BadRevocationReason,
			"the certificate authority knows the reasons 0 (unspecified), 3 (affiliationChanged), 4 (superseded) and 5 (cessationOfOperation)")
	}
	c, err := i.known(ctx, leaf)
	if err != nil {
		return notSent(err)
	}
	if err := i.same(ctx, leaf, c); err != nil {
		return notSent(err)
	}
	err = i.api.revoke(ctx, c.OrderID, c.No, revokeType)
	e, ok := errors.AsType[*ncloud.Error](err)
	if !ok || e.Applied == ncloud.No && e.Outcome != ncloud.OutcomeRefused {
		return notSent(err)
	}
	// Refused, perhaps since it is revoked already, or the answer is lost.
	rows, errList := i.api.listAdvanced(ctx, c.Name)
	for _, r := range rows {
		if r.No == c.No && (r.Status == "-5" || r.Status == "-7") {
			return nil
		}
	}
	if e.Applied != ncloud.No || errList != nil {
		return fmt.Errorf("revoke: the outcome is not known: %w", errors.Join(err, errList))
	}
	if i.cfg.Now().After(leaf.NotAfter) {
		return acme.Problemf(acme.Malformed, "the certificate has expired").WithCause(err)
	}
	return acme.Problemf(acme.ServerInternal, "the certificate authority refused to revoke").WithCause(err)
}

// same sees to it that the number still stands for this certificate: a reissue
// may have kept the number, and the revocation would hit its certificate.
func (i *Issuer) same(ctx context.Context, leaf *x509.Certificate, c *issued) error {
	replaced := acme.Problemf(acme.Malformed, "the certificate was replaced by a reissue, and the certificate authority does not offer to revoke it any more")
	certs, err := i.api.chain(ctx, c.No)
	if err == nil {
		if !certs[0].Equal(leaf) {
			return replaced
		}
		return nil
	}
	if e, ok := errors.AsType[*ncloud.Error](err); ok && e.Outcome != ncloud.OutcomeRefused {
		return err
	}
	// No chain of a certificate that is revoked, perhaps: the row tells.
	rows, errList := i.api.listAdvanced(ctx, c.Name)
	if errList != nil {
		return errList
	}
	for _, r := range rows {
		if r.No == c.No && sameSerial(leaf.SerialNumber, r.Serial) {
			return nil
		}
	}
	return replaced.WithCause(err)
}

// known is what the service calls a certificate.
func (i *Issuer) known(ctx context.Context, leaf *x509.Certificate) (*issued, error) {
	c, _, err := load[issued](ctx, i, i.certName(acme.CertificateID(leaf)))
	if err != nil {
		return nil, err
	}
	if c.No != 0 && c.OrderID != "" {
		return c, nil
	}
	rows, err := i.api.listAdvanced(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		if r.No != 0 && r.OrderID != "" && sameSerial(leaf.SerialNumber, r.Serial) {
			return &issued{No: r.No, OrderID: r.OrderID, Name: r.Name}, nil
		}
	}
	return nil, acme.Problemf(acme.Malformed, "the certificate authority does not know the certificate")
}

// notSent turns an error of a call that was surely not applied, and that may
// succeed later, into what the caller repeats; other errors stay as they are.
func notSent(err error) error {
	e, ok := errors.AsType[*ncloud.Error](err)
	if !ok || e.Applied != ncloud.No || e.Outcome == ncloud.OutcomeRefused || e.Outcome == ncloud.OutcomeUnauthorized {
		return err
	}
	return &acme.NotSentError{After: e.Retry, Err: err}
}
