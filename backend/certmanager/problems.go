package certmanager

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// statusNames are the service's (certificate status codes of API 2.0).
var statusNames = map[string]string{
	"-1": "FAILED", "-2": "EXPIRE", "-3": "VALIDATION_FAILED", "-4": "VALIDATION_EXPIRE", "-5": "REVOKE", "-6": "DELETED",
	"-7": "REQUEST_REVOKE", "-11": "FAILED (LINT)", "-12": "FAILED (CT)", "-20": "FAILED",
}

func statusText(r *row) string {
	if name := statusNames[r.Status]; name != "" {
		return name
	}
	return clip(r.StatusName, 60)
}

// failed is the problem of a request that has ended without a certificate, nil
// if the status is not known.
func (i *Issuer) failed(_ context.Context, req *acme.IssueRequest, t *ticket, r *row) *acme.Problem {
	cause := fmt.Errorf("certificate %d has status %s, %s", t.No, r.Status, statusText(r))
	switch r.Status {
	case "-3":
		return i.notValidated(req, t, "the certificate authority could not validate the domains").WithCause(cause)
	case "-4":
		return i.notValidated(req, t, "the domain validation of the certificate authority ran out of time").WithCause(cause)
	case "-11":
		return acme.Problemf(acme.BadCSR, "the certificate authority's linter refused the certificate that the CSR asks for").WithCause(cause)
	case "-12":
		return acme.Problemf(acme.ServerInternal, "the certificate authority could not log the certificate to Certificate Transparency; make a new order").WithCause(cause)
	case "-1", "-20":
		return acme.Problemf(acme.ServerInternal, "the certificate authority failed to issue; make a new order").WithCause(cause)
	case "-2", "-5", "-6", "-7":
		return acme.Problemf(acme.ServerInternal, "the request was deleted or revoked at the certificate authority").WithCause(cause)
	}
	return nil
}

// notValidated is the problem of a request whose names were not all validated,
// with a subproblem for each that was not: the record that was expected.
func (i *Issuer) notValidated(req *acme.IssueRequest, t *ticket, detail string) *acme.Problem {
	state := map[string]*dcv{}
	all := true
	for n := range t.DCV {
		d := &t.DCV[n]
		state[d.Domain] = d
		all = all && (d.State == dcvDone || d.State == "")
	}
	p := acme.Problemf(acme.Unauthorized, "%s", detail)
	for _, id := range req.Identifiers {
		base, _ := id.Base()
		d := state[base.Value]
		if d == nil || !all && (d.State == dcvDone || d.State == "") {
			continue
		}
		text := "the certificate authority did not validate the domain"
		if d.Record != "" && d.Value != "" {
			text = fmt.Sprintf("expected TXT record %s with the value %q", clip(d.Record, 300), clip(d.Value, 300))
		}
		p.Subproblems = append(p.Subproblems, acme.Problemf(acme.DNS, "%s", text).For(id))
	}
	return p
}

// unknownToGateway reports a call that the gateway itself refuses, as it does
// all calls if base_url is wrong.
func unknownToGateway(err error) bool {
	e, ok := errors.AsType[*ncloud.Error](err)
	return ok && e.Gateway && e.Outcome == ncloud.OutcomeRefused
}

// alarmed logs an error that only the operator can mend, and returns it.
func (i *Issuer) alarmed(ctx context.Context, req *acme.IssueRequest, err error) error {
	if e, ok := errors.AsType[*ncloud.Error](err); ok && e.Outcome == ncloud.OutcomeUnauthorized {
		i.cfg.Log.ErrorContext(ctx, "Certificate Manager refuses our credentials: "+explain(err), "order", req.OrderID, "err", err)
	}
	return err
}

// taken reports the service's words for a certificateName in use. Its code is
// not documented.
func taken(e *ncloud.Error) bool {
	text := strings.ToLower(e.Message)
	for _, w := range []string{"in use", "duplicat", "already", "중복", "이미", "사용 중"} {
		if !e.Gateway && strings.Contains(text, w) {
			return true
		}
	}
	return false
}

// refused is the problem of a request that the service refuses. Its texts are
// translated and its codes few, so what is read off them is only what is clear.
func refused(e *ncloud.Error) *acme.Problem {
	text := strings.ToLower(e.Message)
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(text, w) {
				return true
			}
		}
		return false
	}
	switch {
	case e.Gateway:
		return acme.Problemf(acme.ServerInternal, "the certificate authority refused the request")
	case has("organization", "조직", "기관"):
		return acme.Problemf(acme.RejectedIdentifier, "the certificate authority has not validated the organization for these names; its operator must see to it").WithStatus(403)
	case has("quota", "subscription", "exceed", "limit", "한도", "초과"):
		return acme.Problemf(acme.RejectedIdentifier, "the account's quota or subscription at the certificate authority is used up; its operator must extend it").WithStatus(403)
	case has("key is not supported", "key size", "weak key", "key algorithm", "keyalgorithm"):
		return acme.Problemf(acme.BadCSR, "the certificate authority does not take this kind of key: use RSA 2048 or ECDSA P-256")
	case has("csr", "certificate signing request"), e.Code == "1002":
		return acme.Problemf(acme.BadCSR, "the certificate authority refused the CSR")
	}
	return acme.Problemf(acme.ServerInternal, "the certificate authority refused the request")
}
