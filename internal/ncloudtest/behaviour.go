package ncloudtest

import (
	"fmt"
	"slices"
)

// Behaviour holds the answers to what NCP does not document. The zero value of
// a field is not always allowed: begin with [DefaultBehaviour].
type Behaviour struct {
	// PeriodMissing says what Sign End Csr does without period: "error",
	// "default" (DefaultPeriodDays) or "max".
	PeriodMissing     string `json:"period_missing"`
	DefaultPeriodDays int    `json:"default_period_days"`
	// RequireCommonName refuses a CSR without one.
	RequireCommonName bool `json:"require_common_name"`
	// KeyFields says what becomes of keyType and keyBits: "optional" (compared
	// with the CSR if sent), "required", "refused" or "ignored".
	KeyFields string `json:"key_fields"`
	// RefuseKeys lists kinds of CSR keys that are refused, such as "ECDSA-384".
	RefuseKeys []string `json:"refuse_keys"`
	// DropIPNames leaves IP addresses of a CSR out of the certificate.
	DropIPNames bool `json:"drop_ip_names"`

	// ChainWithRoot and ChainWithSelf say whether caChain and Get CA Chain hold
	// the root, and Get CA Chain the CA's own certificate; ChainOrder is
	// "leaf-first" or "root-first".
	ChainWithRoot bool   `json:"chain_with_root"`
	ChainWithSelf bool   `json:"chain_with_self"`
	ChainOrder    string `json:"chain_order"`

	// PageSize of lists; ListOrder is "serial", "issued" or "newest".
	PageSize  int    `json:"page_size"`
	ListOrder string `json:"list_order"`
	// PageIgnored answers page 1 whatever pageNo says; PagePastEnd is "empty" or "error".
	PageIgnored bool   `json:"page_ignored"`
	PagePastEnd string `json:"page_past_end"`
	ListRevoked bool   `json:"list_revoked"`
	ListExpired bool   `json:"list_expired"`
	ListCA      bool   `json:"list_ca"` // the CA's own certificate is in the list

	// RevokeTwice is "ok" or "error"; CRLShows "at-once" or "on-rotate";
	// CRLWithoutConfig "ok" or "error".
	RevokeTwice      string `json:"revoke_twice"`
	CRLShows         string `json:"crl_shows"`
	CRLWithoutConfig string `json:"crl_without_config"`

	// ErrorStatus is "documented" (400, one 500), "by-code" (401, 403, 422 where
	// the code suggests it) or "ok" (200 for all); ErrorCode is "named" or "dash".
	ErrorStatus string `json:"error_status"`
	ErrorCode   string `json:"error_code"`
	// ErrorLanguage is "en" or "ko".
	ErrorLanguage string `json:"error_language"`
	// GatewayCodeNumber writes the gateway's errorCode as a number.
	GatewayCodeNumber bool `json:"gateway_code_number"`

	// SerialStripped leaves leading zero octets out of serial numbers,
	// SerialUpper writes them in capitals.
	SerialStripped bool `json:"serial_stripped"`
	SerialUpper    bool `json:"serial_upper"`
	// SerialExact finds a certificate only by its number as the service writes it.
	SerialExact bool `json:"serial_exact"`
	// NumbersAsStrings and DatesAsStrings quote them.
	NumbersAsStrings bool `json:"numbers_as_strings"`
	DatesAsStrings   bool `json:"dates_as_strings"`
	// UpdateCADirect answers Update CA without the level caInfo.
	UpdateCADirect bool `json:"update_ca_direct"`

	// Quota of certificates for each CA; CountFalls lowers the count when Trim
	// deletes certificates.
	Quota      int64 `json:"quota"`
	CountFalls bool  `json:"count_falls"`
	// OnlyActiveRevokes refuses Revoke and Get CA CRL of a CA that is not ACTIVE.
	OnlyActiveRevokes bool `json:"only_active_revokes"`

	CM  CMBehaviour  `json:"certificate_manager"`
	DNS DNSBehaviour `json:"global_dns"`
}

// DefaultBehaviour is the likeliest reading of what is known.
func DefaultBehaviour() Behaviour {
	return Behaviour{
		PeriodMissing: "error", DefaultPeriodDays: 365, KeyFields: "optional",
		ChainWithRoot: true, ChainWithSelf: true, ChainOrder: "leaf-first",
		PageSize: 10, ListOrder: "serial", PagePastEnd: "empty", ListRevoked: true, ListExpired: true,
		RevokeTwice: "ok", CRLShows: "at-once", CRLWithoutConfig: "ok",
		ErrorStatus: "documented", ErrorCode: "named", ErrorLanguage: "en", Quota: 30000,
		CM: defaultCMBehaviour(), DNS: DNSBehaviour{QuotedTXT: true, DeletedRows: "flagged", ErrorStatus: 400},
	}
}

func (b Behaviour) validate() error {
	if err := b.CM.validate(); err != nil {
		return fmt.Errorf("certificate_manager: %w", err)
	}
	if err := b.DNS.validate(); err != nil {
		return fmt.Errorf("global_dns: %w", err)
	}
	if err := oneOf([]choice{
		{"period_missing", b.PeriodMissing, []string{"error", "default", "max"}},
		{"key_fields", b.KeyFields, []string{"optional", "required", "refused", "ignored"}},
		{"chain_order", b.ChainOrder, []string{"leaf-first", "root-first"}},
		{"list_order", b.ListOrder, []string{"serial", "issued", "newest"}},
		{"page_past_end", b.PagePastEnd, []string{"empty", "error"}},
		{"revoke_twice", b.RevokeTwice, []string{"ok", "error"}},
		{"crl_shows", b.CRLShows, []string{"at-once", "on-rotate"}},
		{"crl_without_config", b.CRLWithoutConfig, []string{"ok", "error"}},
		{"error_status", b.ErrorStatus, []string{"documented", "by-code", "ok"}},
		{"error_code", b.ErrorCode, []string{"named", "dash"}},
		{"error_language", b.ErrorLanguage, []string{"en", "ko"}},
	}); err != nil {
		return err
	}
	if b.PageSize < 1 || b.DefaultPeriodDays < 1 || b.Quota < 0 {
		return fmt.Errorf("page_size and default_period_days must be positive, quota not negative")
	}
	return nil
}

// A choice is a setting with few allowed values.
type choice struct {
	key, value string
	allowed    []string
}

func oneOf(list []choice) error {
	for _, c := range list {
		if !slices.Contains(c.allowed, c.value) {
			return fmt.Errorf("%s: %q is none of %v", c.key, c.value, c.allowed)
		}
	}
	return nil
}

// clone shares nothing that a JSON decoder could write into.
func (b Behaviour) clone() Behaviour {
	b.RefuseKeys, b.CM.Organizations = slices.Clone(b.RefuseKeys), slices.Clone(b.CM.Organizations)
	return b
}
