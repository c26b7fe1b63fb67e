package ncloudtest

import (
	"fmt"
	"strings"
	"time"
)

// CMBehaviour holds the answers to what NCP does not document of Certificate
// Manager. Codes are returnCodes; times are in milliseconds.
type CMBehaviour struct {
	// SubAccount answers every call of API 2.0 with an empty 403, as to a sub
	// account's key.
	SubAccount bool `json:"sub_account"`
	// MissingStatus is the HTTP status beside returnCode 2101: 200 or 400.
	MissingStatus int `json:"missing_status"`
	// DuplicateName says what a request under a taken certificateName meets:
	// "refuse" (DuplicateCode, HTTP 200) or "accept".
	DuplicateName string `json:"duplicate_name"`
	DuplicateCode string `json:"duplicate_code"`
	// CSRNames is "equal" (the CSR's names must be commonName and dnsName) or
	// "ignored" (commonName and dnsName decide); CSRCode refuses.
	CSRNames string `json:"csr_names"`
	CSRCode  string `json:"csr_code"`
	// Organizations are the validated ones, for OV.
	Organizations []int64 `json:"organizations"`

	// AnswerShape of request and reissue: "nested" (in "certificate"), "top",
	// "both" or "bare" (returnCode only). AnswerNumber and AnswerOrderID say
	// whether certificateNo and orderId are in it.
	AnswerShape   string `json:"answer_shape"`
	AnswerNumber  bool   `json:"answer_number"`
	AnswerOrderID bool   `json:"answer_order_id"`
	// ReissueNumber is "new" (one more certificate in the order) or "kept".
	ReissueNumber string `json:"reissue_number"`
	// ReissueName is "any" (the new one's, if free) or "same".
	ReissueName string `json:"reissue_name"`
	// ReissueCode refuses every reissue; "": none.
	ReissueCode string `json:"reissue_code"`

	// EmptyList says what a filtered list that finds nothing answers: "code" (2200) or "list".
	EmptyList string `json:"empty_list"`
	// NameFilter is "exact" or "contains".
	NameFilter string `json:"name_filter"`
	// DateFormat is a layout of package time, in Korean time, or "millis".
	DateFormat string `json:"date_format"`
	// NumbersAsStrings quotes numbers, against the OpenAPI file.
	NumbersAsStrings bool `json:"numbers_as_strings"`
	// ChainLineEnd is "crlf" or "lf".
	ChainLineEnd string `json:"chain_line_end"`

	// RecordD and ValueD are name and value of the one-time record, RecordPD and
	// ValuePD of the persistent one. {domain} is the name without "*.", {token}
	// random, {member} the account. A name that does not end with the domain is
	// relative to it.
	RecordD  string `json:"record_d"`
	ValueD   string `json:"value_d"`
	RecordPD string `json:"record_pd"`
	ValuePD  string `json:"value_pd"`
	// NameField and ValueField name them in rows; "": left out. ExpiryField names
	// the end of a domain's validation.
	NameField   string `json:"name_field"`
	ValueField  string `json:"value_field"`
	ExpiryField string `json:"expiry_field"`
	// CoveredRow says what ListDcvStatuses shows of a name that a validated
	// domain covers: "row" (SUCCESS) or "empty".
	CoveredRow string `json:"covered_row"`
	// CoversD lets a validated domain cover requests with method D too.
	CoversD bool `json:"covers_d"`
	// RegisterAnswer is "row" or "bare" (returnCode only); RegisterTwice is
	// "refuse" (DuplicateCode) or "existing".
	RegisterAnswer string `json:"register_answer"`
	RegisterTwice  string `json:"register_twice"`
	// RemovedRecord says what becomes of a valid PTXT domain whose record is
	// gone: "invalid" or "ignored". InvalidRecovers makes an invalid one valid
	// when the record is there.
	RemovedRecord   string `json:"removed_record"`
	InvalidRecovers bool   `json:"invalid_recovers"`

	RecordDelayMS       int64 `json:"record_delay_ms"`       // until ListDcvStatuses shows a record
	IssueDelayMS        int64 `json:"issue_delay_ms"`        // from validated to issued or failed
	ValidationTimeoutMS int64 `json:"validation_timeout_ms"` // of a request
	RevokeDelayMS       int64 `json:"revoke_delay_ms"`       // from -7 to -5
	DomainTimeoutMS     int64 `json:"domain_timeout_ms"`     // from PENDING to INVALID
	DomainValidMS       int64 `json:"domain_valid_ms"`       // from VALID to its expiry
	// TimeoutCode is what becomes of a request after ValidationTimeoutMS: "-4" or "-3".
	TimeoutCode string `json:"timeout_code"`
	// IssuedCode is "2" or "1".
	IssuedCode string `json:"issued_code"`
	// ValidityDays of certificates.
	ValidityDays int `json:"validity_days"`
	// CheckOnCall looks for records at every call too.
	CheckOnCall bool `json:"check_on_call"`
	// DeleteOngoing is "ok" or "refuse" (1004).
	DeleteOngoing string `json:"delete_ongoing"`
}

func defaultCMBehaviour() CMBehaviour {
	const day = int64(24 * time.Hour / time.Millisecond)
	return CMBehaviour{
		MissingStatus: 200, DuplicateName: "refuse", DuplicateCode: "1000", CSRNames: "equal", CSRCode: "1002", Organizations: []int64{1001},
		AnswerShape: "nested", AnswerNumber: true, AnswerOrderID: true, ReissueNumber: "new", ReissueName: "any",
		EmptyList: "code", NameFilter: "exact", DateFormat: time.DateTime, ChainLineEnd: "crlf",
		RecordD: "_ncp-dcv.{domain}", ValueD: "ncp-dcv={token}",
		RecordPD: "_validation-persist.{domain}", ValuePD: "public-ca.example; accounturi=https://public-ca.example/acct/{member}; policy=wildcard",
		NameField: "txtName", ValueField: "txtValue", ExpiryField: "expireDate", CoveredRow: "row",
		RegisterAnswer: "row", RegisterTwice: "refuse", RemovedRecord: "invalid", InvalidRecovers: true,
		ValidationTimeoutMS: 3 * day, DomainTimeoutMS: 7 * day, DomainValidMS: 198 * day,
		TimeoutCode: "-4", IssuedCode: "2", ValidityDays: 198, DeleteOngoing: "ok",
	}
}

// documented reports whether answers can fit the OpenAPI file.
func (b CMBehaviour) documented() bool { return !b.NumbersAsStrings }

func (b CMBehaviour) validate() error {
	if err := oneOf([]choice{
		{"duplicate_name", b.DuplicateName, []string{"refuse", "accept"}},
		{"csr_names", b.CSRNames, []string{"equal", "ignored"}},
		{"answer_shape", b.AnswerShape, []string{"nested", "top", "both", "bare"}},
		{"reissue_number", b.ReissueNumber, []string{"new", "kept"}},
		{"reissue_name", b.ReissueName, []string{"any", "same"}},
		{"empty_list", b.EmptyList, []string{"code", "list"}},
		{"name_filter", b.NameFilter, []string{"exact", "contains"}},
		{"chain_line_end", b.ChainLineEnd, []string{"crlf", "lf"}},
		{"covered_row", b.CoveredRow, []string{"row", "empty"}},
		{"register_answer", b.RegisterAnswer, []string{"row", "bare"}},
		{"register_twice", b.RegisterTwice, []string{"refuse", "existing"}},
		{"removed_record", b.RemovedRecord, []string{"invalid", "ignored"}},
		{"timeout_code", b.TimeoutCode, []string{"-4", "-3"}},
		{"issued_code", b.IssuedCode, []string{"2", "1"}},
		{"delete_ongoing", b.DeleteOngoing, []string{"ok", "refuse"}},
	}); err != nil {
		return err
	}
	for _, t := range []struct{ key, value string }{{"record_d", b.RecordD}, {"value_d", b.ValueD}, {"record_pd", b.RecordPD}, {"value_pd", b.ValuePD},
		{"date_format", b.DateFormat}, {"duplicate_code", b.DuplicateCode}, {"csr_code", b.CSRCode}} {
		if t.value == "" || t.value == "0" {
			return fmt.Errorf("%s: %q will not do", t.key, t.value)
		}
	}
	if b.MissingStatus != 200 && b.MissingStatus != 400 {
		return fmt.Errorf("missing_status: %d is neither 200 nor 400", b.MissingStatus)
	}
	if min(b.RecordDelayMS, b.IssueDelayMS, b.ValidationTimeoutMS, b.RevokeDelayMS, b.DomainTimeoutMS, b.DomainValidMS) < 0 || b.ValidityDays < 1 {
		return fmt.Errorf("times must not be negative, validity_days must be positive")
	}
	return nil
}

func millis(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

// record fills in a template of a record's name or value.
func record(template, domain, token string) string {
	return strings.NewReplacer("{domain}", domain, "{token}", token, "{member}", memberNo).Replace(template)
}
