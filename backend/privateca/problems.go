package privateca

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// notSent turns an error of a call that was surely not applied, and that may
// succeed later, into what the worker repeats; other errors stay as they are.
func notSent(err error) error {
	e, ok := errors.AsType[*ncloud.Error](err)
	if !ok || e.Applied != ncloud.No || e.Outcome == ncloud.OutcomeRefused || e.Outcome == ncloud.OutcomeUnauthorized {
		return err
	}
	return &acme.NotSentError{After: e.Retry, Err: err}
}

// submitError says what a failed Sign End Csr means for the order.
func (i *Issuer) submitError(ctx context.Context, err error, req *acme.IssueRequest, days int) error {
	e, ok := errors.AsType[*ncloud.Error](err)
	switch {
	case !ok || e.Applied != ncloud.No:
		return fmt.Errorf("%w: %w", acme.ErrOutcomeUnknown, err)
	case e.Outcome == ncloud.OutcomeUnauthorized:
		i.cfg.Log.ErrorContext(ctx, "the service refuses our credentials", "order", req.OrderID, "err", err)
		return acme.Problemf(acme.ServerInternal, "the certificate authority refused this server").WithCause(err)
	case e.Outcome != ncloud.OutcomeRefused:
		return notSent(err)
	}
	if p := refusedByCode(e, req); p != nil {
		return p.WithCause(err)
	}
	// The text is translated and the code may be missing, so look at what the
	// CA's state explains.
	aside, cancel := context.WithTimeout(ctx, asideTime)
	defer cancel()
	if state, errState := i.state(aside, 0); errState == nil {
		p := refusedByState(state, i.cfg.Now(), days, req)
		if p == nil && state.SigningCount >= i.cfg.Quota {
			p = quotaExhausted()
		}
		if p != nil {
			return p.WithCause(err)
		}
	}
	i.cfg.Log.ErrorContext(ctx, "the CA refused a request for a reason unknown to us", "order", req.OrderID, "err", err)
	return acme.Problemf(acme.ServerInternal, "the certificate authority refused the request").WithCause(err)
}

func quotaExhausted() *acme.Problem {
	return acme.Problemf(acme.RateLimited, "the certificate authority has issued as many certificates as it may; its operator must raise the limit or use another CA")
}

func caNotActive() *acme.Problem {
	return acme.Problemf(acme.ServerInternal, "the certificate authority is not active; its operator must activate it")
}

func beyondCA(req *acme.IssueRequest) *acme.Problem {
	if !req.NotAfter.IsZero() {
		return acme.Problemf(acme.Malformed, "notAfter: the certificate would outlive the certificate authority")
	}
	return acme.Problemf(acme.ServerInternal, "the certificate would outlive the certificate authority; its operator must renew the CA or shorten the profile's lifetime")
}

// refusedByState is why the CA would refuse, as far as its state tells.
func refusedByState(s *caState, now time.Time, days int, req *acme.IssueRequest) *acme.Problem {
	switch {
	case s.Status != statusActive:
		return caNotActive().WithCause(fmt.Errorf("status of the CA is %.20q", s.Status))
	case !s.NotAfter.IsZero() && now.Add(time.Duration(days)*24*time.Hour).After(s.NotAfter):
		return beyondCA(req).WithCause(fmt.Errorf("the CA ends at %s", s.NotAfter.Format(time.RFC3339)))
	}
	return nil
}

// refusedByCode reads the code of a refusal (those of NCP's 2022 client), and
// the English text where the code is of no use. Nil: no idea.
func refusedByCode(e *ncloud.Error, req *acme.IssueRequest) *acme.Problem {
	code, text := strings.ToUpper(e.Code), strings.ToLower(e.Message)
	has := func(codes []string, texts ...string) bool {
		for _, c := range codes {
			if strings.HasPrefix(code, c) {
				return true
			}
		}
		for _, t := range texts {
			if strings.Contains(text, t) {
				return true
			}
		}
		return false
	}
	switch {
	case has([]string{"EXCEED_SIGNING_COUNT"}, "maximum number of issuances"):
		return quotaExhausted()
	case has([]string{"INVALID_CA_STATUS", "INVALID_ISSUER_CA"}, "invalid ca status", "invalid issuer ca status"):
		return caNotActive()
	case has([]string{"EXCEED_EXPIRY_DATE"}, "ca validity period can't be exceeded"):
		return beyondCA(req)
	case has([]string{"NOT_EXIST_CA"}, "the ca doesn't exist", "invalid ca."):
		return acme.Problemf(acme.ServerInternal, "the certificate authority does not exist; its operator must correct the configuration")
	case has([]string{"EMPTY_COMMON_NAME"}, "common name is missing"):
		return acme.Problemf(acme.BadCSR, "this certificate authority wants a common name in the CSR: set it to one of the names")
	case has([]string{"EXCEED_COMMON_NAME"}, "common name exceeded"):
		return acme.Problemf(acme.BadCSR, "the CSR's common name is longer than the certificate authority allows (64): leave it out or set it to a shorter one of the names")
	case has([]string{"EMPTY_KEY"}, "key bits are missing", "invalid keytype"):
		return acme.Problemf(acme.ServerInternal, "the certificate authority wants requests of another form; its operator must set send_key_type")
	case has([]string{"INVALID_INPUT_KEYTYPE", "INVALID_INPUT_KEY_TYPE", "INVALID_INPUT_KEYBITS", "INVALID_INPUT_KEY_BITS"},
		"unsupported keybits", "invalid key type", "keybits don't match", "keytype don't match"):
		return acme.Problemf(acme.BadCSR, "the certificate authority does not take this kind of key: use RSA 2048 or ECDSA P-256")
	case has(nil, "invalid csr", "csr is missing") || strings.Contains(code, "CSR"):
		return acme.Problemf(acme.BadCSR, "the certificate authority refused the CSR")
	}
	return nil
}
