package ncloudtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// A cmRequest is the body of the Advanced request and of Reissue.
type cmRequest struct {
	CSR              string   `json:"csr"`
	CertificateType  string   `json:"certificateType"`
	CertificateName  string   `json:"certificateName"`
	CommonName       string   `json:"commonName"`
	DNSName          []string `json:"dnsName"`
	ValidationMethod string   `json:"validationMethod"`
	OrganizationNo   int64    `json:"organizationNo"`
}

// check reads the CSR and compares it with the rest; except is the order whose
// names may be used again.
func (s *Simulator) checkRequest(in *cmRequest, except string) (*x509.CertificateRequest, *cmError) {
	b := s.behaviour.CM
	for _, f := range []struct{ key, value string }{{"csr", in.CSR}, {"certificateName", in.CertificateName},
		{"commonName", in.CommonName}, {"validationMethod", in.ValidationMethod}} {
		if f.value == "" {
			return nil, s.missing(f.key)
		}
	}
	if no := checkName(in.CertificateName); no != nil {
		return nil, no
	}
	if in.ValidationMethod != "D" && in.ValidationMethod != "PD" {
		return nil, &cmError{code: codeParamMissing, message: "validationMethod is invalid.", status: b.MissingStatus}
	}
	block, _ := pem.Decode([]byte(in.CSR))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, &cmError{code: codeNotPEM, message: "The CSR is not in PEM."}
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, &cmError{code: b.CSRCode, message: "The CSR is not valid."}
	}
	if !goodKey(csr.PublicKey) {
		return nil, &cmError{code: b.CSRCode, message: "The CSR's key is not supported."}
	}
	if b.CSRNames == "equal" {
		want, got := (&cmCert{commonName: in.CommonName, dnsNames: in.DNSName}).names(), (&cmCert{commonName: csr.Subject.CommonName, dnsNames: csr.DNSNames}).names()
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return nil, &cmError{code: b.CSRCode, message: "The CSR's names differ from commonName and dnsName."}
		}
	}
	if b.DuplicateName == "refuse" && s.cm.named(in.CertificateName, except) != nil {
		return nil, &cmError{code: b.DuplicateCode, message: "The certificateName is in use."}
	}
	return csr, nil
}

// goodKey allows what public CAs do.
func goodKey(pub any) bool {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048 && k.N.BitLen() <= 4096
	case *ecdsa.PublicKey:
		return k.Curve.Params().BitSize == 256 || k.Curve.Params().BitSize == 384
	}
	return false
}

func (s *Simulator) advancedCertificateRequest(c *call) (map[string]any, *cmError) {
	var in cmRequest
	if no := s.readCM(c, &in); no != nil {
		return nil, no
	}
	switch in.CertificateType {
	case "":
		return nil, s.missing("certificateType")
	case "NCP_PAID_DV_01":
		in.OrganizationNo = 0
	case "NCP_PAID_OV_01":
		if !slices.Contains(s.behaviour.CM.Organizations, in.OrganizationNo) {
			return nil, s.missing("organizationNo")
		}
	default:
		return nil, &cmError{code: codeParamMissing, message: "certificateType is invalid.", status: s.behaviour.CM.MissingStatus}
	}
	csr, no := s.checkRequest(&in, "")
	if no != nil {
		return nil, no
	}
	if in.OrganizationNo != 0 && !slices.Equal(csr.Subject.Country, []string{"KR"}) {
		return nil, &cmError{code: s.behaviour.CM.CSRCode, message: "The CSR's country must be KR."}
	}
	x := &cmCert{no: s.cm.number(), kind: in.CertificateType, organization: in.OrganizationNo, name: in.CertificateName}
	x.orderID = fmt.Sprintf("CM%08d", x.no)
	if err := s.begin(x, &in, csr, c.fault); err != nil {
		return nil, &cmError{code: codeNothingFound, message: err.Error(), status: http.StatusInternalServerError}
	}
	s.cm.certs = append(s.cm.certs, x)
	s.cm.count.Paid++
	s.cm.count.PaidByName[x.name]++
	s.cm.count.PaidByKey[KeyID(csr.RawSubjectPublicKeyInfo)]++
	return s.requestAnswer(x), nil
}

func (s *Simulator) reissueCertificate(c *call) (map[string]any, *cmError) {
	old, no := s.theCert(c)
	if no != nil {
		return nil, no
	}
	var in cmRequest
	if no := s.readCM(c, &in); no != nil {
		return nil, no
	}
	b := s.behaviour.CM
	switch {
	case b.ReissueCode != "":
		return nil, &cmError{code: b.ReissueCode, message: "The certificate cannot be reissued."}
	case old.orderID == "" || old.cert == nil || old.status != certNormal && old.status != certNoKey:
		return nil, &cmError{code: codeNotValid, message: "The certificate is not valid."}
	case b.ReissueName == "same" && in.CertificateName != old.name:
		return nil, &cmError{code: codeInUse, message: "The name and number do not match."}
	}
	csr, no := s.checkRequest(&in, old.orderID)
	if no != nil {
		return nil, no
	}
	x := old
	if b.ReissueNumber == "new" {
		x = &cmCert{no: s.cm.number(), orderID: old.orderID, kind: old.kind, organization: old.organization}
	}
	x.name = in.CertificateName
	if err := s.begin(x, &in, csr, c.fault); err != nil {
		return nil, &cmError{code: codeNothingFound, message: err.Error(), status: http.StatusInternalServerError}
	}
	if x != old {
		s.cm.certs = append(s.cm.certs, x)
	}
	s.cm.count.Reissued++
	s.cm.count.ReissuedByKey[KeyID(csr.RawSubjectPublicKeyInfo)]++
	return s.requestAnswer(x), nil
}

// begin starts a certificate's validation.
func (s *Simulator) begin(x *cmCert, in *cmRequest, csr *x509.CertificateRequest, f *Fault) error {
	b, now := s.behaviour.CM, s.now()
	x.method, x.csr, x.commonName, x.dnsNames, x.fault = in.ValidationMethod, csr, in.CommonName, in.DNSName, f
	x.status, x.requested, x.updated, x.validated, x.dcv, x.cert = certOngoing, now, now, time.Time{}, nil, nil
	x.outcome = s.cm.takeOutcome(x.name)
	if f != nil && f.Kind == LateList {
		x.hidden = hidden{reads: f.Reads, until: now.Add(f.delay())}
	}
	for _, n := range x.names() {
		domain := baseDomain(n)
		if slices.ContainsFunc(x.dcv, func(d *dcv) bool { return d.domain == domain }) {
			continue // a wildcard and its base name share a validation
		}
		d := &dcv{sn: s.cm.number(), txtID: s.cm.number(), domain: domain, status: dcvWaiting}
		var err error
		if d.name, d.value, d.fqdn, err = s.newRecord(x.method == "PD", domain); err != nil {
			return err
		}
		if (x.method == "PD" || b.CoversD) && s.cm.covers(domain, x.organization, now) {
			d.status, d.covered = dcvSuccess, true
		}
		x.dcv = append(x.dcv, d)
	}
	return nil
}

// newRecord makes the record that the domain's owner shall publish; the
// persistent one stays the same for a domain.
func (s *Simulator) newRecord(persistent bool, domain string) (name, value, fqdn string, err error) {
	b := s.behaviour.CM
	random, err := token()
	if err != nil {
		return "", "", "", err
	}
	if !persistent {
		name, value = record(b.RecordD, domain, random), record(b.ValueD, domain, random)
		return name, value, absolute(name, domain), nil
	}
	if s.cm.persist[domain] == "" {
		s.cm.persist[domain] = random
	}
	random = s.cm.persist[domain]
	name, value = record(b.RecordPD, domain, random), record(b.ValuePD, domain, random)
	return name, value, absolute(name, domain), nil
}

// absolute is the record's whole name with a dot at its end.
func absolute(name, domain string) string {
	name = strings.TrimSuffix(name, ".")
	if !below(name, domain) {
		name += "." + domain
	}
	return name + "."
}

func (s *Simulator) requestAnswer(x *cmCert) map[string]any {
	b := s.behaviour.CM
	one := map[string]any{"certificateName": x.name, "statusCode": x.status, "statusName": statusNames[x.status], "commonName": x.commonName}
	if b.AnswerNumber {
		one["certificateNo"] = s.cmNum(x.no)
	}
	if b.AnswerOrderID {
		one["orderId"] = x.orderID
	}
	answer := map[string]any{}
	if b.AnswerShape == "top" || b.AnswerShape == "both" {
		for k, v := range one {
			answer[k] = v
		}
		answer["dnsName"], answer["validationMethod"] = strings.Join(x.dnsNames, ","), x.method
	}
	if b.AnswerShape == "nested" || b.AnswerShape == "both" {
		one["dnsName"] = append([]string{}, x.dnsNames...)
		answer["certificate"] = one
	}
	return answer
}

func (s *Simulator) createExternalCertificate(c *call) (map[string]any, *cmError) {
	return s.external(c, false)
}

func (s *Simulator) registerExternalCertificate(c *call) (map[string]any, *cmError) {
	return s.external(c, true)
}

// external takes a certificate issued elsewhere (RegisterExternalCertificate,
// and createExternalCertificate of 1.0, which cannot replace one).
func (s *Simulator) external(c *call, v2 bool) (map[string]any, *cmError) {
	var in struct {
		CertificateName      string `json:"certificateName"`
		CertificateNo        int64  `json:"certificateNo"`
		PrivateKey           string `json:"privateKey"`
		CertificateBody      string `json:"certificateBody"`
		PublicKeyCertificate string `json:"publicKeyCertificate"`
		CertificateChain     string `json:"certificateChain"`
	}
	if no := s.readCM(c, &in); no != nil {
		return nil, no
	}
	text := in.PublicKeyCertificate
	if v2 {
		text = in.CertificateBody
	}
	if in.CertificateName == "" || in.PrivateKey == "" || text == "" || in.CertificateChain == "" {
		return nil, &cmError{codePartMissing, "The name, key, certificate or chain is missing.", http.StatusBadRequest}
	}
	if no := checkName(in.CertificateName); no != nil {
		return nil, no
	}
	leaf, chain := readCerts(text), readCerts(in.CertificateChain)
	keyBlock, _ := pem.Decode([]byte(in.PrivateKey))
	if len(leaf) != 1 || len(chain) == 0 || keyBlock == nil {
		return nil, &cmError{code: codeNotPEM, message: "The key, certificate or chain is not in PEM."}
	}
	if _, err := tls.X509KeyPair([]byte(text), []byte(in.PrivateKey)); err != nil {
		return nil, &cmError{code: codeKeyMismatch, message: "The key and the certificate do not match."}
	}
	if leaf[0].CheckSignatureFrom(chain[0]) != nil || s.now().After(leaf[0].NotAfter) {
		return nil, &cmError{code: codeNotValid, message: "The certificate is not valid."}
	}
	var x *cmCert
	if v2 && in.CertificateNo != 0 {
		if x = s.cm.find(in.CertificateNo); x == nil || x.kind != "EXTERNAL" || x.name != in.CertificateName {
			return nil, &cmError{code: codeInUse, message: "The name and number do not match."}
		}
	}
	for _, y := range s.cm.certs {
		if y != x && (y.name == in.CertificateName || y.kind == "EXTERNAL" && bytes.Equal(y.cert.Raw, leaf[0].Raw)) {
			return nil, &cmError{code: s.behaviour.CM.DuplicateCode, message: "The name or the certificate is registered already."}
		}
	}
	if x == nil {
		x = &cmCert{no: s.cm.number(), name: in.CertificateName, kind: "EXTERNAL"}
		s.cm.certs = append(s.cm.certs, x)
	}
	x.cert, x.chain, x.status, x.updated, x.requested = leaf[0], chain, certNormal, s.now(), s.now()
	x.commonName, x.dnsNames = leaf[0].Subject.CommonName, leaf[0].DNSNames
	return map[string]any{"totalRows": s.cmNum(1), "sslCertificateList": []any{s.rowV1(x)}}, nil
}
