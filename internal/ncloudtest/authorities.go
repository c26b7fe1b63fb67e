package ncloudtest

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxCAs is how many CAs a customer may have.
const maxCAs = 10

var aliasForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{2,14}$`)

func (s *Simulator) createCa(c *call) (any, *refusal) {
	var body struct {
		Alias   string `json:"alias"`
		Memo    string `json:"memo"`
		KeyType string `json:"keyType"`
		Period  string `json:"period"`
		X509    *name  `json:"x509Parameters"`
	}
	if no := c.decode(&body); no != nil {
		return nil, no
	}
	kind := c.r.URL.Query().Get("caType")
	days, ok := periodDays(body.Period)
	switch {
	case kind != "PRIVATE_ROOT" && kind != "PRIVATE_SUB":
		return nil, &refusal{"INVALID_INPUT_CA_TYPE", "Invalid ca type."}
	case !aliasForm.MatchString(body.Alias):
		return nil, &refusal{"EXCEED_CA_ALIAS", "ca alias exceeded the allowed length."}
	case slices.ContainsFunc(s.caOrder, func(tag string) bool { return s.cas[tag].alias == body.Alias }):
		return nil, &refusal{"ALREADY_EXIST_ALIAS", "This alias already exists."}
	case len(s.cas) >= maxCAs:
		return nil, &refusal{"EXCEED_CA_COUNT", "The maximum number of CAs has been exceeded."}
	case !ok:
		return nil, &refusal{"INVALID_INPUT_PERIOD", "Invalid period value."}
	case body.X509 == nil:
		return nil, &refusal{"EMPTY_X509_PARAMETERS", "x509Parameters are missing."}
	}
	if no := body.X509.check(); no != nil {
		return nil, no
	}
	if days == 0 {
		days = 3650
	}
	var parent *authority
	if tag := c.r.URL.Query().Get("issuerTag"); tag != "" && kind == "PRIVATE_SUB" {
		parent = s.cas[tag]
		switch {
		case parent == nil:
			return nil, &refusal{"NOT_EXIST_CA", "The CA doesn't exist."}
		case parent.status != statusActive:
			return nil, &refusal{"INVALID_ISSUER_CA", "Invalid issuer ca status."}
		}
	}
	ca, err := s.newAuthority(body.Alias, kind, body.KeyType, *body.X509, parent, days)
	if err != nil {
		return nil, &refusal{"INVALID_INPUT_KEYTYPE", "Invalid key type."}
	}
	ca.memo = body.Memo
	return s.describeCA(ca), nil
}

func (s *Simulator) activateSubCa(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	var body struct {
		CertPem    string `json:"certPem"`
		CAChainPem string `json:"caChainPem"`
	}
	if no := c.decode(&body); no != nil {
		return nil, no
	}
	invalid := &refusal{"INVALID_INPUT_CA_CHAIN", "Certificate validation failed: The CA chain is invalid."}
	certs, chain := readCerts(body.CertPem), readCerts(body.CAChainPem)
	switch {
	case ca.status != statusPending:
		return nil, &refusal{"INVALID_CA_STATUS", "Invalid ca status."}
	case body.CAChainPem == "":
		return nil, &refusal{"EMPTY_CA_CHAIN", "chain is missing."}
	case len(certs) != 1 || len(chain) == 0:
		return nil, invalid
	}
	pub, err := x509.MarshalPKIXPublicKey(ca.key.Public())
	if err != nil || !bytes.Equal(certs[0].RawSubjectPublicKeyInfo, pub) {
		return nil, &refusal{"INVALID_INPUT_CERT", "Invalid certificate value."}
	}
	pool := x509.NewCertPool()
	for _, x := range chain {
		pool.AddCert(x)
	}
	paths, err := certs[0].Verify(x509.VerifyOptions{Roots: pool, CurrentTime: s.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, invalid
	}
	ca.cert, ca.chain, ca.status, ca.statusSet = certs[0], paths[0][1:], statusActive, s.now()
	return s.describeCA(ca), nil
}

// readCerts reads certificates one after another; nil if one of them is none.
func readCerts(text string) []*x509.Certificate {
	var list []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return list
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil
		}
		list = append(list, c)
	}
}

func (s *Simulator) getCa(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	ca.hiddenCounts = stillHidden(ca.hiddenCounts, s.now())
	return s.describeCA(ca), nil
}

func (s *Simulator) describeCA(ca *authority) map[string]any {
	d := map[string]any{"caInfo": s.caInfo(ca), "caCertInfo": nil}
	if ca.cert == nil {
		return d
	}
	kind, _ := keyKind(ca.cert.PublicKey)
	part := func(list []string) any {
		if len(list) == 0 {
			return nil
		}
		return list[0]
	}
	sub := ca.cert.Subject
	d["caCertInfo"] = map[string]any{"caCertId": s.num(ca.id), "commonName": sub.CommonName, "issuerName": ca.cert.Issuer.CommonName,
		"notBeforeDate": s.millis(ca.cert.NotBefore), "notAfterDate": s.millis(ca.cert.NotAfter), "publicKeyAlgorithm": kind,
		"signatureAlgorithm": ca.cert.SignatureAlgorithm.String(), "serialNo": s.serial(ca.cert.SerialNumber),
		"country": part(sub.Country), "stateProvince": part(sub.Province), "locality": part(sub.Locality),
		"organization": part(sub.Organization), "organizationUnit": part(sub.OrganizationalUnit),
		"certPem": certPEM(ca.cert), "chainPem": s.chainText(ca)}
	return d
}

func (s *Simulator) caInfo(ca *authority) map[string]any {
	ocsp := []string{}
	if ca.ocsp != "" {
		ocsp = append(ocsp, ca.ocsp)
	}
	return map[string]any{"caId": s.num(ca.id), "caTag": ca.tag, "alias": ca.alias, "memo": ca.memo,
		"nrn": "nrn:PUB:PrivateCA:KR:1:CA/" + ca.tag, "caType": ca.kind, "status": ca.status,
		"signingCount": s.num(ca.signingCount - int64(len(ca.hiddenCounts))),
		"rgstDate":     s.millis(ca.registered), "statusUpdateDate": s.millis(ca.statusSet), "destroyDate": s.millis(ca.destroy),
		"urlInfo": map[string]any{"ocsp": ocsp, "crl": []string{ca.ext("crl")}, "ca": []string{ca.ext("ca")}}}
}

func (s *Simulator) getCaList(c *call) (any, *refusal) {
	from, to, current, total, no := s.page(c, len(s.caOrder))
	if no != nil {
		return nil, no
	}
	list := []any{}
	for _, tag := range s.caOrder[from:to] {
		list = append(list, s.describeCA(s.cas[tag]))
	}
	return map[string]any{"totalCnt": s.num(int64(len(s.caOrder))), "caInfoList": list,
		"totalPageNo": s.num(int64(total)), "currentPageNo": s.num(int64(current))}, nil
}

func (s *Simulator) updateCa(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	var body struct {
		Status string  `json:"status"`
		Memo   *string `json:"memo"`
	}
	if no := c.decode(&body); no != nil {
		return nil, no
	}
	switch body.Status {
	case "":
		if body.Memo == nil {
			return nil, &refusal{"EMPTY_STATUS", "status is missing."}
		}
	case statusActive, statusDeactivated, statusDestroying:
		if ca.status == statusPending {
			return nil, &refusal{"INVALID_CA_STATUS", "Invalid ca status."}
		}
		ca.status, ca.statusSet, ca.destroy = body.Status, s.now(), time.Time{}
		if body.Status == statusDestroying {
			ca.destroy = s.now().Add(72 * time.Hour)
		}
	default:
		return nil, &refusal{"INVALID_INPUT_STATUS", "Invalid status value."}
	}
	if body.Memo != nil {
		ca.memo = *body.Memo
	}
	if s.behaviour.UpdateCADirect {
		return s.caInfo(ca), nil
	}
	return map[string]any{"caInfo": s.caInfo(ca)}, nil
}

func (s *Simulator) deleteCa(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	if ca.status != statusDestroying {
		return nil, &refusal{"INVALID_CA_STATUS", "Invalid ca status."}
	}
	delete(s.cas, ca.tag)
	s.caOrder = slices.DeleteFunc(s.caOrder, func(tag string) bool { return tag == ca.tag })
	return nil, nil
}

func (s *Simulator) getSubCsr(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	if ca.status != statusPending {
		return nil, &refusal{"INVALID_CA_STATUS", "Invalid ca status."}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: ca.subject}, ca.key)
	if err != nil {
		return nil, &refusal{"FAIL_CORE", "The CSR could not be made."}
	}
	return map[string]any{"csrPem": pemText("CERTIFICATE REQUEST", der)}, nil
}

func (s *Simulator) signSubCsr(c *call) (any, *refusal) {
	ca, no := s.issuing(c)
	if no != nil {
		return nil, no
	}
	var body struct {
		Period string `json:"period"`
		CSRPem string `json:"csrPem"`
	}
	if no := c.decode(&body); no != nil {
		return nil, no
	}
	csr, no := readCSR(body.CSRPem)
	if no != nil {
		return nil, no
	}
	days, no := s.lifetime(ca, body.Period)
	if no != nil || days == 0 {
		return nil, &refusal{"INVALID_INPUT_PERIOD", "Invalid period value."}
	}
	cert, err := s.signCA(csr.Subject, csr.PublicKey, ca.key, ca.cert, days)
	if err != nil {
		return nil, &refusal{"FAIL_CORE", "The certificate could not be made."}
	}
	ca.signingCount++
	return s.signed(ca, cert), nil
}

func (s *Simulator) getCaChain(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	if ca.cert == nil {
		return nil, &refusal{"INVALID_CA_STATUS", "Invalid ca status."}
	}
	return s.chainText(ca), nil
}

func (s *Simulator) trimCa(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	before := len(ca.issued)
	ca.issued = slices.DeleteFunc(ca.issued, func(x *issuedCert) bool { return s.now().After(x.cert.NotAfter) })
	if s.behaviour.CountFalls {
		ca.signingCount -= int64(before - len(ca.issued))
	}
	return nil, nil
}

func (s *Simulator) getCaCrl(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	switch {
	case no != nil:
		return nil, no
	case s.behaviour.OnlyActiveRevokes && ca.status != statusActive:
		return nil, &refusal{"INVALID_CA_STATUS", "Invalid ca status."}
	case ca.cert == nil:
		return nil, &refusal{"INVALID_CA_STATUS", "Invalid ca status."}
	case ca.crlDays == 0 && s.behaviour.CRLWithoutConfig == "error":
		return nil, &refusal{"NOT_EXIST_CRL_CONFIG", "The crl configuration doesn't exist."}
	}
	if ca.crl == nil {
		if err := ca.makeCRL(s.now()); err != nil {
			return nil, &refusal{"FAIL_CORE", "The CRL could not be made."}
		}
	}
	return pemText("X509 CRL", ca.crl), nil
}

func (s *Simulator) getCrlConfig(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	if ca.crlDays == 0 {
		return nil, &refusal{"NOT_EXIST_CRL_CONFIG", "The crl configuration doesn't exist."}
	}
	return map[string]any{"expiry": strconv.Itoa(ca.crlDays)}, nil
}

func (s *Simulator) updateCrlConfig(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	var body struct {
		Expiry string `json:"expiry"`
	}
	if no := c.decode(&body); no != nil {
		return nil, no
	}
	days, err := strconv.Atoi(body.Expiry)
	switch {
	case body.Expiry == "":
		return nil, &refusal{"EMPTY_EXPIRY", "expiry is missing."}
	case err != nil || days < 3 || ca.cert != nil && s.now().AddDate(0, 0, min(days, 40000)).After(ca.cert.NotAfter):
		return nil, &refusal{"INVALID_INPUT_EXPIRY", "Invalid input."}
	}
	ca.crlDays = days
	return map[string]any{"expiry": body.Expiry}, nil
}

func (s *Simulator) rotateCrl(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	if ca.cert == nil || ca.makeCRL(s.now()) != nil {
		return nil, &refusal{"INVALID_CA_STATUS", "Invalid ca status."}
	}
	return nil, nil
}

func (s *Simulator) createOcsp(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	var body struct {
		Servers string `json:"ocsp_servers"`
	}
	if no := c.decode(&body); no != nil {
		return nil, no
	}
	if !strings.HasPrefix(body.Servers, "https://") {
		return nil, &refusal{"EMPTY_OCSP_SERVERS", "ocsp_servers are missing."}
	}
	ca.ocsp = body.Servers
	return nil, nil
}

func (s *Simulator) deleteOcsp(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	ca.ocsp = ""
	return nil, nil
}

func (s *Simulator) addCaUser(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	var body struct {
		IDNo string `json:"idNo"`
	}
	if no := c.decode(&body); no != nil {
		return nil, no
	}
	if len(body.IDNo) != 36 {
		return nil, &refusal{"INVALID_USER", "Invalid id no."}
	}
	if !slices.ContainsFunc(ca.users, func(u user) bool { return u.IDNo == body.IDNo }) {
		ca.users = append(ca.users, user{LoginID: "user" + strconv.Itoa(len(ca.users)+1), MbrNo: s.num(int64(2600000 + len(ca.users))), IDNo: body.IDNo})
	}
	return nil, nil
}

func (s *Simulator) deleteCaUser(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	before := len(ca.users)
	ca.users = slices.DeleteFunc(ca.users, func(u user) bool { return u.IDNo == c.r.PathValue("idNo") })
	if len(ca.users) == before {
		return nil, &refusal{"INVALID_USER", "Invalid user."}
	}
	return nil, nil
}

func (s *Simulator) getCaUserList(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	return append([]user{}, ca.users...), nil
}
