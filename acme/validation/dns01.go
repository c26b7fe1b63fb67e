package validation

import (
	"context"
	"crypto/sha256"
	"encoding/base64"

	"github.com/acme-bridge/acme-bridge/acme"
)

// dns01 looks for the digest of the key authorization among the TXT records
// (RFC 8555, Section 8.4). There may be others, of orders under way at the
// same time.
func (v *Validator) dns01(ctx context.Context, c *acme.Validation) error {
	name := "_acme-challenge." + c.Identifier.Value
	where := "the TXT records of " + name
	values, err := v.cfg.Resolver.TXT(ctx, name)
	if err != nil {
		return dnsProblem(err, where)
	}
	digest := sha256.Sum256([]byte(c.KeyAuthorization))
	want := base64.RawURLEncoding.EncodeToString(digest[:])
	for _, value := range values {
		if equal(value, want) {
			return nil
		}
	}
	if len(values) == 0 {
		return acme.Problemf(acme.Unauthorized, "%s: there are none", where)
	}
	return acme.Problemf(acme.Unauthorized, "%s: none of the %d is the digest of the key authorization", where, len(values))
}
