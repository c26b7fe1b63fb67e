package ncloudtest

import (
	"cmp"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// publicKind marks the CA behind Certificate Manager.
const publicKind = "PUBLIC"

// memberNo is the account's number.
const memberNo = "2600001"

// Codes of Certificate Manager (API guide, common errors).
const (
	codeNotPEM       = "1002"
	codeInUse        = "1004"
	codeNoCert       = "1006"
	codeBadName      = "2000"
	codePartMissing  = "2100"
	codeParamMissing = "2101"
	codeNothingFound = "2200"
	codeNotValid     = "26034"
	codeKeyMismatch  = "26040"
)

// Status codes of a certificate.
const (
	certOngoing   = "0"
	certNormal    = "1"
	certNoKey     = "2" // normal; the key is with the requester
	certRevoked   = "-5"
	certRevoking  = "-7"
	certValidLate = "-4"
)

var statusNames = map[string]string{"0": "ONGOING", "1": "NORMAL", "2": "NORMAL_UNREGISTERED_PRIVATE_KEY", "3": "NORMAL_GLOBAL_EDGE_DEDICATED",
	"-1": "FAILED", "-2": "EXPIRE", "-3": "VALIDATION_FAILED", "-4": "VALIDATION_EXPIRE", "-5": "REVOKE", "-6": "DELETED", "-7": "REQUEST_REVOKE",
	"-11": "FAILED (LINT)", "-12": "FAILED (CT)", "-20": "FAILED (ETC)"}

// certManager is the state of Certificate Manager. The simulator's mu guards it.
type certManager struct {
	root, sub *authority
	nextNo    int64
	certs     []*cmCert
	domains   []*cmDomain
	outcomes  []*outcome
	persist   map[string]string // value of the persistent record by domain
	issued    []CMCertificate   // in the order of issuing; kept when deleted
	count     CMCounters
}

// A cmCert is a certificate of any kind, from its request on.
type cmCert struct {
	no            int64
	orderID, name string // orderID "": not Advanced
	kind, method  string // certificateType; D or PD
	organization  int64
	commonName    string
	dnsNames      []string
	csr           *x509.CertificateRequest
	status        string
	requested     time.Time
	validated     time.Time // zero: not yet
	updated       time.Time
	revokeAt      time.Time
	revoked       time.Time
	dcv           []*dcv
	outcome       string // forced; "": as it comes
	fault         *Fault // for the certificate to come
	hidden        hidden // from lists; reads and until
	cert          *x509.Certificate
	chain         []*x509.Certificate // external certificates only
}

// A dcv is the validation of one domain of a request.
type dcv struct {
	sn, txtID           int64
	domain, name, value string
	fqdn                string
	status              string
	covered             bool // by a validated domain
}

const (
	dcvWaiting  = "VALID_STATUS_REG"
	dcvSuccess  = "VALID_STATUS_SUCCESS"
	dcvTimedOut = "VALID_STATUS_TIMEOUT"
)

// CMCounters tell what Certificate Manager has done. Paid are accepted Advanced
// requests; keys are named as by [KeyID].
type CMCounters struct {
	Paid           int64            `json:"paid"`
	PaidByName     map[string]int64 `json:"paid_by_name"`
	PaidByKey      map[string]int64 `json:"paid_by_key"`
	MostForOneName int64            `json:"most_for_one_name"`
	MostForOneKey  int64            `json:"most_for_one_key"`
	Reissued       int64            `json:"reissued"` // accepted
	ReissuedByKey  map[string]int64 `json:"reissued_by_key"`
	Issued         int64            `json:"issued"`
	IssuedByKey    map[string]int64 `json:"issued_by_key"`
	Failed         int64            `json:"failed"`
	Revoked        int64            `json:"revoked"` // certificates
	Deleted        int64            `json:"deleted"`
	Registered     int64            `json:"registered"` // domains
	Checks         int64            `json:"checks"`     // questions asked of the resolver
}

func (m *certManager) counters() CMCounters {
	c := m.count
	c.PaidByName, c.PaidByKey = maps.Clone(c.PaidByName), maps.Clone(c.PaidByKey)
	c.ReissuedByKey, c.IssuedByKey = maps.Clone(c.ReissuedByKey), maps.Clone(c.IssuedByKey)
	for _, n := range c.PaidByName {
		c.MostForOneName = max(c.MostForOneName, n)
	}
	for _, n := range c.PaidByKey {
		c.MostForOneKey = max(c.MostForOneKey, n)
	}
	return c
}

func (s *Simulator) newCertManager() (*certManager, error) {
	root, err := s.makeAuthority("public root", "PRIVATE_ROOT", "EC256", name{CommonName: "Simulated Public Root", Organization: "Public CA"}, nil, 7300)
	if err != nil {
		return nil, err
	}
	sub, err := s.makeAuthority("public sub", publicKind, "EC256", name{CommonName: "Simulated Public DV CA", Organization: "Public CA"}, root, 3650)
	if err != nil {
		return nil, err
	}
	return &certManager{root: root, sub: sub, nextNo: 10000, persist: map[string]string{},
		count: CMCounters{PaidByName: map[string]int64{}, PaidByKey: map[string]int64{}, ReissuedByKey: map[string]int64{}, IssuedByKey: map[string]int64{}}}, nil
}

func certManagerRoutes() []route {
	const v1, v2 = "/api/v1/certificate", "/api/v2/certificate"
	list := []struct {
		method, path, operation string
		handle                  func(*Simulator, *call) (map[string]any, *cmError)
	}{
		{"GET", v1 + "s", "getCertificateList", (*Simulator).getCertificateList},
		{"POST", v1 + "/withExternal", "createExternalCertificate", (*Simulator).createExternalCertificate},
		{"DELETE", v1 + "/{certificateNo}", "deleteCertificateV1", (*Simulator).deleteCertificate},
		{"POST", v2 + "/requestPaidCertificateIssuance", "advancedCertificateRequest", (*Simulator).advancedCertificateRequest},
		{"POST", v2 + "/{certificateNo:[0-9]+}/reissue", "reissueCertificate", (*Simulator).reissueCertificate},
		{"POST", v2 + "/withExternal", "registerExternalCertificate", (*Simulator).registerExternalCertificate},
		{"GET", v2 + "/certificateTypes", "listCertificateTypes", (*Simulator).listCertificateTypes},
		{"GET", v2 + "/certificates", "listCertificates", (*Simulator).listCertificates},
		{"GET", v2 + "/getCertificates", "listCloudCertificates", (*Simulator).listCloudCertificates},
		{"GET", v2 + "/getPaidCertificates", "listAdvancedCertificates", (*Simulator).listAdvancedCertificates},
		{"GET", v2 + "/getVerificationInfo/{certificateNo}", "listDcvStatuses", (*Simulator).listDcvStatuses},
		{"GET", v2 + "/recentChanges", "listRecentCertChanges", (*Simulator).listRecentCertChanges},
		{"GET", v2 + "/exportCertificate/{certificateNo}/chain", "getCertificateChain", (*Simulator).getCertificateChain},
		{"POST", v2 + "/exportCertificate/{certificateNo}", "downloadCertificate", (*Simulator).downloadCertificate},
		{"DELETE", v2 + "/deleteCertificate/{certificateNo}", "deleteCertificate", (*Simulator).deleteCertificate},
		{"POST", v2 + "/revoke", "revokeCertificate", (*Simulator).revokeCertificate},
		{"GET", "/api/v2/domain/domains", "listDomainValidations", (*Simulator).listDomainValidations},
		{"POST", "/api/v2/domain/domains", "registerDomain", (*Simulator).registerDomain},
		{"DELETE", "/api/v2/domain/domains/{dmnId}", "deleteDomain", (*Simulator).deleteDomain},
	}
	var routes []route
	for _, x := range list {
		routes = append(routes, route{x.method, x.path, x.operation, CertificateManager, func(s *Simulator, c *call) reply {
			if s.behaviour.CM.SubAccount && strings.HasPrefix(x.path, "/api/v2/") {
				return reply{status: http.StatusForbidden, origin: "ENDPOINT"}
			}
			s.advance()
			return s.cmReply(x.handle(s, c))
		}})
	}
	return routes
}

// A cmError is an error of Certificate Manager.
type cmError struct {
	code, message string
	status        int // 0: 200
}

// cmReply is the envelope of Certificate Manager, or a zip file.
func (s *Simulator) cmReply(fields map[string]any, no *cmError) reply {
	if file, ok := fields[zipField].([]byte); ok {
		return reply{status: http.StatusOK, kind: "application/zip", body: file}
	}
	envelope := map[string]any{"returnCode": "0", "returnMessage": "Success", "totalRows": s.cmNum(0)}
	maps.Copy(envelope, fields)
	if no == nil {
		return jsonReply(http.StatusOK, envelope)
	}
	return jsonReply(cmp.Or(no.status, http.StatusOK), map[string]any{"returnCode": no.code, "returnMessage": no.message, "totalRows": s.cmNum(0)})
}

func (s *Simulator) missing(what string) *cmError {
	return &cmError{codeParamMissing, "Required parameter is missing: " + what, s.behaviour.CM.MissingStatus}
}

func (s *Simulator) readCM(c *call, v any) *cmError {
	if err := json.Unmarshal(c.body, v); err != nil {
		return s.missing("request body")
	}
	return nil
}

func (s *Simulator) cmNum(n int64) any {
	if s.behaviour.CM.NumbersAsStrings {
		return strconv.FormatInt(n, 10)
	}
	return n
}

// korea is the zone of the service's dates; it knows no summer time.
func korea() *time.Location { return time.FixedZone("KST", 9*60*60) }

func (s *Simulator) cmDate(t time.Time) any {
	switch f := s.behaviour.CM.DateFormat; {
	case t.IsZero():
		return nil
	case f == "millis":
		return strconv.FormatInt(t.UnixMilli(), 10)
	default:
		return t.In(korea()).Format(f)
	}
}

func (m *certManager) number() int64 {
	m.nextNo++
	return m.nextNo
}

func (m *certManager) find(no int64) *cmCert {
	for _, x := range m.certs {
		if x.no == no {
			return x
		}
	}
	return nil
}

// named finds a certificate that holds the name, other than those of an order.
func (m *certManager) named(name, exceptOrder string) *cmCert {
	for _, x := range m.certs {
		if x.name == name && (exceptOrder == "" || x.orderID != exceptOrder) {
			return x
		}
	}
	return nil
}

// theCert finds the certificate that the path names.
func (s *Simulator) theCert(c *call) (*cmCert, *cmError) {
	no, err := strconv.ParseInt(c.r.PathValue("certificateNo"), 10, 64)
	if x := s.cm.find(no); x != nil && err == nil {
		return x, nil
	}
	return nil, &cmError{code: codeNoCert, message: "No certificate exists."}
}

var cmNameForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{2,19}$`)

func checkName(name string) *cmError {
	if !cmNameForm.MatchString(name) {
		return &cmError{codeBadName, "certificateName must be 3 to 20 letters, digits or hyphens and begin with a letter.", http.StatusBadRequest}
	}
	return nil
}

func token() (string, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b), nil
}

// baseDomain is where a name is validated: in small letters, without "*.".
func baseDomain(name string) string {
	return strings.TrimPrefix(strings.TrimSuffix(strings.ToLower(name), "."), "*.")
}

// below reports whether the name is the domain or lies under it.
func below(name, domain string) bool {
	name = baseDomain(name)
	return name == domain || strings.HasSuffix(name, "."+domain)
}

// names are commonName and dnsName without doubles.
func (x *cmCert) names() []string {
	var list []string
	for _, n := range append([]string{x.commonName}, x.dnsNames...) {
		if n = strings.ToLower(n); n != "" && !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}

// A CMCertificate is one that the simulated public CA has issued.
type CMCertificate struct {
	No         int64     `json:"certificate_no"`
	OrderID    string    `json:"order_id"`
	Name       string    `json:"name"`
	Names      []string  `json:"names"`
	Method     string    `json:"method"`
	Key        string    `json:"key"` // see KeyID
	Serial     string    `json:"serial"`
	NotAfter   time.Time `json:"not_after"`
	Revoked    bool      `json:"revoked"`
	RevokeType string    `json:"revoke_type,omitempty"`
	PEM        string    `json:"pem"`
}

// CMCertificates are all certificates of the public CA in the order of
// issuing, those deleted in Certificate Manager included.
func (s *Simulator) CMCertificates() []CMCertificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	return append([]CMCertificate{}, slices.Clone(s.cm.issued)...)
}

// CMRootPEM is the public CA's root certificate.
func (s *Simulator) CMRootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cm.root.cert.Raw})
}
