package certmanager

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
	"unicode"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// An object is a JSON object by its members' names in lower case: spelling and
// names of members have changed between versions of the API (orderID, orderId).
type object map[string]json.RawMessage

// UnmarshalJSON reads an object; null is none.
func (o *object) UnmarshalJSON(b []byte) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*o = make(object, len(m))
	for k, v := range m {
		(*o)[strings.ToLower(k)] = v
	}
	return nil
}

// text is the first member of these names that has a plain, non-empty value.
func (o object) text(names ...string) string {
	for _, n := range names {
		var t ncloud.Text
		if v, ok := o[strings.ToLower(n)]; ok && t.UnmarshalJSON(v) == nil && t != "" {
			return string(t)
		}
	}
	return ""
}

// number is the first member of these names that is a whole number, else 0.
func (o object) number(names ...string) int64 {
	for _, n := range names {
		var t ncloud.Number
		if v, ok := o[strings.ToLower(n)]; ok && t.UnmarshalJSON(v) == nil && t != 0 {
			return int64(t)
		}
	}
	return 0
}

// child is the member of that name, nil if it is no object.
func (o object) child(name string) object {
	var c object
	if v, ok := o[strings.ToLower(name)]; ok && json.Unmarshal(v, &c) == nil {
		return c
	}
	return nil
}

// list is the first member of these names that is an array, its objects only.
// found tells whether there is such a member; null counts as an empty one.
func (o object) list(names ...string) (rows []object, found bool) {
	for _, n := range names {
		v, ok := o[strings.ToLower(n)]
		if !ok {
			continue
		}
		var raw []json.RawMessage
		if json.Unmarshal(v, &raw) != nil {
			continue
		}
		for _, r := range raw {
			var c object
			if json.Unmarshal(r, &c) == nil && c != nil {
				rows = append(rows, c)
			}
		}
		return rows, true
	}
	return nil, false
}

// maxRow bounds what of an answer goes into a log line.
const maxRow = 2000

// String is the whole object for a log line.
func (o object) String() string {
	b, err := json.Marshal(map[string]json.RawMessage(o))
	if err != nil {
		return "(an object that cannot be written)"
	}
	return clip(string(b), maxRow)
}

// clip makes foreign text fit for a log line or a problem: printable, bounded.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "..."
	}
	return s
}

// Codes of the service that have a meaning here (API guide, common errors).
const (
	codeNothingFound = "2200"
	codeNoCert       = "1006"
	codeMissing      = "2100"
)

// envelope reads an answer: success is returnCode "0" and nothing else, since
// errors come with HTTP 200 too.
func envelope(body []byte) (object, error) {
	var o object
	if err := json.Unmarshal(body, &o); err != nil {
		return nil, err
	}
	code := o.text("returnCode")
	switch code {
	case "0":
		return o, nil
	case "":
		return nil, errors.New("answer has no returnCode")
	}
	// A code is the service's word for a refusal; only what reads like a failure
	// of its own leaves open whether it acted.
	applied := ncloud.No
	switch code {
	case "500", "510", "900":
		applied = ncloud.Unknown
	}
	return nil, &ncloud.Refusal{Code: code, Message: o.text("returnMessage"), Applied: applied}
}

// A row is a certificate in a list, or in the answer to a request.
type row struct {
	No                    int64
	Name, OrderID, Status string
	StatusName, Serial    string
	raw                   object
}

func decodeRow(o object) row {
	return row{
		No: o.number("certificateNo", "certificateId"), Name: o.text("certificateName"), OrderID: o.text("orderId"),
		Status: o.text("statusCode"), StatusName: o.text("statusName"), Serial: serialText(o.text("serialNumber")), raw: o,
	}
}

// decodeRequested reads the answer to a request or reissue, of which no sample
// was seen: the members may stand at the top, in "certificate", or in a list of
// one. What is missing is found by name later.
func decodeRequested(o object) row {
	candidates := []object{o.child("certificate"), o, o.child("data"), o.child("result")}
	for _, name := range []string{"certificates", "sslCertificateList", "orders"} {
		if rows, _ := o.list(name); len(rows) == 1 {
			candidates = append(candidates, rows[0])
		}
	}
	var r row
	for _, c := range candidates {
		x := decodeRow(c)
		if r.No == 0 {
			r.No = x.No
		}
		if r.OrderID == "" {
			r.OrderID = x.OrderID
		}
	}
	return r
}

// decodeOrders reads ListAdvancedCertificates: certificates within orders.
func decodeOrders(o object) ([]row, error) {
	orders, ok := o.list("orders")
	if !ok {
		return decodeRows(o)
	}
	var rows []row
	for _, order := range orders {
		id := order.text("orderId")
		certs, _ := order.list("certificates", "certificateList", "sslCertificateList")
		for _, c := range certs {
			r := decodeRow(c)
			if r.OrderID == "" {
				r.OrderID = id
			}
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// decodeRows reads the flat lists.
func decodeRows(o object) ([]row, error) {
	list, ok := o.list("sslCertificateList", "certificates", "certificateList")
	if !ok {
		return nil, errors.New("the answer holds no list")
	}
	rows := make([]row, len(list))
	for n, c := range list {
		rows[n] = decodeRow(c)
	}
	return rows, nil
}

// States of a domain's validation within a request (ListDcvStatuses).
const (
	dcvWaiting  = "VALID_STATUS_REG"
	dcvDone     = "VALID_STATUS_SUCCESS"
	dcvTimedOut = "VALID_STATUS_TIMEOUT"
)

// Names that the record's name and value go by; only txtName is documented.
var (
	nameFields  = []string{"txtName", "recordName", "txtHost", "dnsRecordName", "host"}
	valueFields = []string{"txtValue", "txtVal", "txtContent", "recordValue", "value"}
)

// A dcvRow is a line of ListDcvStatuses.
type dcvRow struct {
	State, Name, Value string
	sn                 int64
	raw                object
}

// decodeDCV gives the newest validation of the answer, nil if it shows none.
func decodeDCV(o object) *dcvRow {
	rows, _ := o.list("dnsVerificationList", "txtVerificationList", "cnameVerificationList")
	var best *dcvRow
	for _, r := range rows {
		d := &dcvRow{State: strings.ToUpper(r.text("validStatusCode", "statusCode")), Name: r.text(nameFields...), Value: r.text(valueFields...),
			sn: r.number("validSn"), raw: r}
		if best == nil || d.sn > best.sn {
			best = d
		}
	}
	return best
}

// decodeChanges reads ListRecentCertChanges: status by certificate.
func decodeChanges(o object) map[int64]string {
	rows, _ := o.list("orders", "certificates")
	m := make(map[int64]string, len(rows))
	for _, r := range rows {
		if no := r.number("certificateId", "certificateNo"); no != 0 {
			m[no] = r.text("status", "statusName")
		}
	}
	return m
}

// A Domain is one that Certificate Manager validates ahead of requests.
type Domain struct {
	ID          int64     `json:"id"`
	Name        string    `json:"name"`
	Method      string    `json:"method"` // PTXT or TXT
	State       string    `json:"state"`  // PENDING, VALID or INVALID
	RecordName  string    `json:"record_name,omitempty"`
	RecordValue string    `json:"record_value,omitempty"`
	Expires     time.Time `json:"expires,omitzero"` // of the validation; zero if the service did not say
	// OrganizationNo binds the domain to an organization, for OV; 0: none.
	OrganizationNo int64 `json:"organization_no,omitempty"`
	// IssueType is CONSOLE, or ACME for NCP's own ACME server; "" if not shown.
	IssueType string `json:"issue_type,omitempty"`

	raw object
}

// States of a domain.
const (
	DomainPending = "PENDING"
	DomainValid   = "VALID"
	DomainInvalid = "INVALID"
)

// expiryFields are guesses: the guide's row is cut before them.
var expiryFields = []string{"expireDate", "expiryDate", "expirationDate", "expiredDate", "validExpireDate", "validEndDate", "validToDate", "endDate", "expires", "expireDateTime"}

func decodeDomain(o object) Domain {
	name := strings.ToLower(strings.TrimSuffix(o.text("domainAddress", "dmnAddr", "domainName"), "."))
	d := Domain{ID: o.number("dmnId", "domainId"), Name: name, Method: o.text("dcvType"),
		State: strings.ToUpper(o.text("validState", "validStatus", "state")), RecordName: fqdn(o.text(nameFields...), name), RecordValue: o.text(valueFields...),
		Expires: parseDate(o.text(expiryFields...)), OrganizationNo: o.number("orgNo", "organizationNo"), IssueType: strings.ToUpper(o.text("issueType")), raw: o}
	return d
}

func decodeDomains(o object) ([]Domain, error) {
	rows, ok := o.list("domainVldList", "domainList", "domains")
	if !ok {
		return nil, errors.New("the answer holds no list of domains")
	}
	list := make([]Domain, len(rows))
	for n, r := range rows {
		list[n] = decodeDomain(r)
	}
	return list, nil
}

// korea is the zone that dates without one are read in; a wrong guess is off by
// nine hours, which the uses of these dates bear.
var korea = time.FixedZone("KST", 9*60*60)

// parseDate reads the date forms that NCP's services use; zero if none fits.
func parseDate(s string) time.Time {
	if s == "" {
		return time.Time{}
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05", time.DateTime, "2006-01-02 15:04", time.DateOnly,
		"2006.01.02", "2006/01/02", "2006/01/02 15:04:05", "20060102150405", "20060102"} {
		if t, err := time.ParseInLocation(layout, s, korea); err == nil && t.Year() > 2000 && t.Year() < 2200 {
			return t.UTC()
		}
	}
	var ms ncloud.Millis
	if ms.UnmarshalJSON([]byte(`"`+s+`"`)) == nil && ms > 1e12 && ms < 1e13 {
		return ms.Time()
	}
	return time.Time{}
}

// serialText brings a serial number in hex, with colons or spaces or without,
// to one form: lower case without leading zeros.
func serialText(s string) string {
	s = strings.ToLower(strings.NewReplacer(":", "", " ", "", "0x", "").Replace(s))
	return strings.TrimLeft(s, "0")
}

// sameSerial compares a serial number with one as the service writes it:
// hexadecimal or decimal is not documented.
func sameSerial(n *big.Int, text string) bool {
	return text != "" && (n.Text(16) == text || n.Text(10) == text)
}

// maxChain bounds the certificates read from one answer; chains are short.
const maxChain = 20

// parseCerts reads the certificates of texts, each of which may hold several.
func parseCerts(texts ...string) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, text := range texts {
		// The service ends lines with CR LF.
		rest := bytes.TrimSpace([]byte(strings.ReplaceAll(text, "\r", "")))
		for len(rest) > 0 {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				return nil, errors.New("a certificate is not in PEM")
			}
			if block.Type != "CERTIFICATE" {
				return nil, fmt.Errorf("PEM of type %.30q stands where a certificate should", block.Type)
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("a certificate does not parse: %w", err)
			}
			if certs = append(certs, cert); len(certs) > maxChain {
				return nil, fmt.Errorf("more than %d certificates in one answer", maxChain)
			}
			rest = bytes.TrimSpace(rest)
		}
	}
	return certs, nil
}
