package ncloudtest

import (
	"cmp"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// States of a pre-validated domain.
const (
	domainPending = "PENDING"
	domainValid   = "VALID"
	domainInvalid = "INVALID"
)

// A cmDomain is a domain validated ahead of requests.
type cmDomain struct {
	id                      int64
	address, kind, issueFor string // kind: PTXT or TXT; issueFor: CONSOLE or ACME
	organization            int64  // 0: none
	name, value, fqdn       string
	state                   string
	registered              time.Time
	expires                 time.Time // zero: never been valid
}

// seen takes note of whether the record is there, and reports a change.
func (d *cmDomain) seen(there bool, now time.Time, b CMBehaviour) bool {
	was := d.state
	switch {
	case there && (d.state == domainPending || d.state == domainInvalid && b.InvalidRecovers):
		d.state, d.expires = domainValid, now.Add(millis(b.DomainValidMS))
	case !there && d.state == domainValid && d.kind == "PTXT" && b.RemovedRecord == "invalid":
		d.state = domainInvalid
	}
	return d.state != was
}

// age ends what has lasted too long.
func (d *cmDomain) age(now time.Time, b CMBehaviour) {
	if d.state == domainValid && !now.Before(d.expires) ||
		d.state == domainPending && b.DomainTimeoutMS > 0 && !now.Before(d.registered.Add(millis(b.DomainTimeoutMS))) {
		d.state = domainInvalid
	}
}

// covers reports whether a validated domain stands for the name.
func (m *certManager) covers(name string, organization int64, now time.Time) bool {
	return slices.ContainsFunc(m.domains, func(d *cmDomain) bool {
		return d.state == domainValid && now.Before(d.expires) && d.issueFor == "CONSOLE" && below(name, d.address) &&
			(organization == 0 || d.organization == 0 || d.organization == organization)
	})
}

func (m *certManager) domain(address string) *cmDomain {
	for _, d := range m.domains {
		if d.address == address {
			return d
		}
	}
	return nil
}

func (s *Simulator) registerDomain(c *call) (map[string]any, *cmError) {
	var in struct {
		Address string `json:"dmnAddr"`
		Kind    string `json:"dcvType"`
		For     string `json:"issueType"`
		Org     int64  `json:"orgNo"`
	}
	if no := s.readCM(c, &in); no != nil {
		return nil, no
	}
	b := s.behaviour.CM
	switch {
	case in.Address == "":
		return nil, s.missing("dmnAddr")
	case in.Kind != "PTXT" && in.Kind != "TXT":
		return nil, s.missing("dcvType")
	case in.For != "CONSOLE" && in.For != "ACME":
		return nil, s.missing("issueType")
	case in.Org != 0 && !slices.Contains(b.Organizations, in.Org):
		return nil, s.missing("orgNo")
	}
	if d := s.cm.domain(baseDomain(in.Address)); d != nil {
		if b.RegisterTwice == "refuse" {
			return nil, &cmError{code: b.DuplicateCode, message: "The domain is registered already."}
		}
		return s.registerAnswer(d), nil
	}
	d := &cmDomain{id: s.cm.number(), address: baseDomain(in.Address), kind: in.Kind, issueFor: in.For, organization: in.Org,
		state: domainPending, registered: s.now()}
	var err error
	if d.name, d.value, d.fqdn, err = s.newRecord(d.kind == "PTXT", d.address); err != nil {
		return nil, &cmError{code: codeNothingFound, message: err.Error(), status: 500}
	}
	s.cm.domains = append(s.cm.domains, d)
	s.cm.count.Registered++
	return s.registerAnswer(d), nil
}

func (s *Simulator) registerAnswer(d *cmDomain) map[string]any {
	if s.behaviour.CM.RegisterAnswer == "bare" {
		return nil
	}
	return map[string]any{"totalRows": s.cmNum(1), "domainVldList": []any{s.domainRow(d)}}
}

func (s *Simulator) domainRow(d *cmDomain) map[string]any {
	b := s.behaviour.CM
	row := map[string]any{"dmnId": s.cmNum(d.id), "memberNo": memberNo, "domainAddress": d.address, "dcvType": d.kind, "issueType": d.issueFor,
		"validState": d.state, "registerDate": s.cmDate(d.registered)}
	if d.organization != 0 {
		row["orgNo"] = s.cmNum(d.organization)
	}
	for field, v := range map[string]any{b.NameField: d.name, b.ValueField: d.value, b.ExpiryField: s.cmDate(d.expires)} {
		if field != "" {
			row[field] = v
		}
	}
	return row
}

func (s *Simulator) listDomainValidations(c *call) (map[string]any, *cmError) {
	q := c.r.URL.Query()
	var list []any
	for _, d := range s.cm.domains {
		if want := q.Get("domainAddress"); want != "" && !s.matches(d.address, want) ||
			q.Get("dcvType") != "" && q.Get("dcvType") != d.kind || q.Get("validState") != "" && q.Get("validState") != d.state ||
			q.Get("orgNo") != "" && q.Get("orgNo") != strconv.FormatInt(d.organization, 10) {
			continue
		}
		list = append(list, s.domainRow(d))
	}
	filtered := q.Has("domainAddress") || q.Has("dcvType") || q.Has("validState") || q.Has("orgNo")
	page, no := s.cmPage(c, list, filtered, true)
	if no != nil {
		return nil, no
	}
	return map[string]any{"totalRows": s.cmNum(int64(len(list))), "domainVldList": page}, nil
}

func (s *Simulator) deleteDomain(c *call) (map[string]any, *cmError) {
	id, err := strconv.ParseInt(c.r.PathValue("dmnId"), 10, 64)
	i := slices.IndexFunc(s.cm.domains, func(d *cmDomain) bool { return d.id == id })
	if err != nil || i < 0 {
		return nil, &cmError{code: codeNothingFound, message: "No domain found."}
	}
	s.cm.domains = slices.Delete(s.cm.domains, i, i+1)
	return nil, nil
}

// A CMDomain is a domain as the simulator sees it.
type CMDomain struct {
	ID      int64     `json:"id"`
	Domain  string    `json:"domain"`
	Type    string    `json:"type"` // PTXT or TXT
	State   string    `json:"state"`
	Record  string    `json:"record"` // absolute, with a dot at its end
	Value   string    `json:"value"`
	Expires time.Time `json:"expires"` // zero: never been valid
}

// CMDomains are all registered domains.
func (s *Simulator) CMDomains() []CMDomain {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	list := []CMDomain{}
	for _, d := range s.cm.domains {
		list = append(list, CMDomain{d.id, d.address, d.kind, d.state, d.fqdn, d.value, d.expires})
	}
	return list
}

// A DomainChange sets parts of a domain's state directly; nil leaves them
// alone. The next check may change the state again.
type DomainChange struct {
	Domain  string     `json:"domain"`
	Create  bool       `json:"create"` // register it (PTXT, CONSOLE) if it is not
	State   *string    `json:"state"`
	Expires *time.Time `json:"expires"`
}

// ChangeDomain sets parts of a domain's state.
func (s *Simulator) ChangeDomain(change DomainChange) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, address := s.now(), baseDomain(change.Domain)
	d := s.cm.domain(address)
	if d == nil && change.Create && address != "" {
		d = &cmDomain{id: s.cm.number(), address: address, kind: "PTXT", issueFor: "CONSOLE", state: domainPending, registered: now}
		var err error
		if d.name, d.value, d.fqdn, err = s.newRecord(true, address); err != nil {
			return err
		}
		s.cm.domains = append(s.cm.domains, d)
	}
	if d == nil {
		return fmt.Errorf("domain: %q is not registered", change.Domain)
	}
	if change.State != nil {
		if !slices.Contains([]string{domainPending, domainValid, domainInvalid}, *change.State) {
			return fmt.Errorf("state: %q is no state of a domain", *change.State)
		}
		if d.state = *change.State; d.state == domainValid && !now.Before(d.expires) {
			d.expires = now.Add(millis(s.behaviour.CM.DomainValidMS))
		}
	}
	if change.Expires != nil {
		d.expires = *change.Expires
	}
	return nil
}

// A CMSeed is a certificate that somebody else got in the console.
type CMSeed struct {
	Name  string   `json:"name"`
	Type  string   `json:"type"`  // NCP_PAID_DV_01 (if ""), NCP_PAID_OV_01, or NCP_FREE_DV_01 (Cloud Basic)
	Names []string `json:"names"` // the first is commonName
	// Status is a statusCode; "": issued. Only 0 and failures have no certificate.
	Status string `json:"status"`
}

// AddCertificate adds a certificate to the account. It counts as issued, not
// as paid, and its key is nobody's. It returns its number.
func (s *Simulator) AddCertificate(seed CMSeed) (int64, error) {
	if checkName(seed.Name) != nil || len(seed.Names) == 0 {
		return 0, fmt.Errorf("name: %q is no certificateName, or there are no names", seed.Name)
	}
	if _, ok := statusNames[seed.Status]; !ok && seed.Status != "" {
		return 0, fmt.Errorf("status: %q is no statusCode", seed.Status)
	}
	der, err := anyCSR(seed.Names)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, now := s.behaviour.CM, s.now()
	x := &cmCert{no: s.cm.number(), name: seed.Name, kind: cmp.Or(seed.Type, "NCP_PAID_DV_01"), method: "PD", commonName: seed.Names[0], dnsNames: seed.Names[1:],
		csr: der, status: cmp.Or(seed.Status, b.IssuedCode), requested: now, validated: now, updated: now}
	if strings.HasPrefix(x.kind, "NCP_PAID") {
		x.orderID = fmt.Sprintf("CM%08d", x.no)
	}
	switch x.status {
	case "1", "2", "3", "-2", "-5", "-7":
		if err := s.issuePublic(x, b); err != nil {
			return 0, err
		}
		if x.status == certRevoked || x.status == certRevoking {
			x.revoked, s.cm.issued[len(s.cm.issued)-1].Revoked = now, true
		}
	case certOngoing: // for ever: nobody publishes its record
		x.dcv = []*dcv{{sn: s.cm.number(), txtID: s.cm.number(), domain: baseDomain(x.commonName), name: "_elsewhere", value: "elsewhere", fqdn: "_elsewhere.invalid.", status: dcvWaiting}}
	}
	s.cm.certs = append(s.cm.certs, x)
	return x.no, nil
}

func anyCSR(names []string) (*x509.CertificateRequest, error) {
	key, err := generateKey("EC256")
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificateRequest(der)
}
