package ncloudtest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
)

func (s *Simulator) authority(c *call) (*authority, *refusal) {
	if ca := s.cas[c.tag]; ca != nil {
		return ca, nil
	}
	return nil, &refusal{"NOT_EXIST_CA", "The CA doesn't exist."}
}

// issuing finds the call's CA and checks that it may issue one more certificate.
func (s *Simulator) issuing(c *call) (*authority, *refusal) {
	ca, no := s.authority(c)
	switch {
	case no != nil:
		return nil, no
	case ca.status != statusActive:
		return nil, &refusal{"INVALID_CA_STATUS", "Invalid ca status."}
	case ca.signingCount >= s.behaviour.Quota:
		return nil, &refusal{"EXCEED_SIGNING_COUNT", "The maximum number of issuances has been exceeded. Contact support."}
	}
	return ca, nil
}

// lifetime checks a period against the CA's own end; 0 days mean MAX.
func (s *Simulator) lifetime(ca *authority, period string) (int, *refusal) {
	days, ok := periodDays(period)
	if !ok {
		return 0, &refusal{"INVALID_INPUT_PERIOD", "Invalid period value."}
	}
	if days > 0 && s.now().AddDate(0, 0, days).After(ca.cert.NotAfter) {
		return 0, &refusal{"EXCEED_EXPIRY_DATE", "The CA validity period can't be exceeded."}
	}
	return days, nil
}

// readCSR parses and checks a CSR in PEM.
func readCSR(text string) (*x509.CertificateRequest, *refusal) {
	if text == "" {
		return nil, &refusal{"EMPTY_CSR", "csr is missing."}
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil || !strings.HasSuffix(block.Type, "CERTIFICATE REQUEST") {
		return nil, &refusal{"INVALID_CSR", "Invalid csr."}
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, &refusal{"INVALID_CSR", "Invalid csr."}
	}
	return csr, nil
}

// keyKind gives the words of keyType and keyBits for a public key.
func keyKind(pub any) (kind string, bits int) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return "RSA", k.N.BitLen()
	case *ecdsa.PublicKey:
		return "ECDSA", k.Curve.Params().BitSize
	case ed25519.PublicKey:
		return "ED25519", 256
	}
	return "", 0
}

func (s *Simulator) signEndCsr(c *call) (any, *refusal) {
	ca, no := s.issuing(c)
	if no != nil {
		return nil, no
	}
	var body struct {
		CSRPem  string `json:"csrPem"`
		Period  string `json:"period"`
		KeyType string `json:"keyType"`
		KeyBits string `json:"keyBits"`
	}
	if no := c.decode(&body); no != nil {
		return nil, no
	}
	csr, no := readCSR(body.CSRPem)
	if no != nil {
		return nil, no
	}
	if no := s.checkKey(csr, body.KeyType, body.KeyBits); no != nil {
		return nil, no
	}
	if cn := csr.Subject.CommonName; cn == "" && s.behaviour.RequireCommonName {
		return nil, &refusal{"EMPTY_COMMON_NAME", "common name is missing."}
	} else if len(cn) > 64 {
		return nil, &refusal{"EXCEED_COMMON_NAME", "common name exceeded the allowed length."}
	}
	if body.Period == "" {
		body.Period = c.r.URL.Query().Get("period")
	}
	if body.Period == "" {
		switch s.behaviour.PeriodMissing {
		case "default":
			body.Period = strconv.Itoa(s.behaviour.DefaultPeriodDays)
		case "max":
			body.Period = "MAX"
		}
	}
	days, no := s.lifetime(ca, body.Period)
	if no != nil {
		return nil, no
	}
	l := leafTemplate{subject: csr.Subject, dnsNames: csr.DNSNames, ips: csr.IPAddresses, emails: csr.EmailAddresses, uris: csr.URIs, key: csr.PublicKey, days: days}
	if s.behaviour.DropIPNames {
		l.ips = nil
	}
	issued, err := ca.issue(s, l, c.fault)
	if err != nil {
		return nil, &refusal{"FAIL_CORE", "The certificate could not be made: " + err.Error()}
	}
	if n := len(ca.issued); c.faulty(StaleCertificate) && n > 1 {
		issued = ca.issued[n-2]
	}
	return s.signed(ca, issued.cert), nil
}

func (s *Simulator) checkKey(csr *x509.CertificateRequest, keyType, keyBits string) *refusal {
	kind, bits := keyKind(csr.PublicKey)
	if kind == "" || slices.Contains(s.behaviour.RefuseKeys, kind+"-"+strconv.Itoa(bits)) {
		return &refusal{"INVALID_INPUT_KEYBITS", "Unsupported keyBits."}
	}
	sent := keyType != "" || keyBits != ""
	switch s.behaviour.KeyFields {
	case "ignored":
		return nil
	case "refused":
		if sent {
			return &refusal{"INVALID_REQUEST", "Invalid input."}
		}
		return nil
	case "required":
		if keyType == "" {
			return &refusal{"INVALID_INPUT_KEYTYPE", "Invalid keyType."}
		}
		if keyBits == "" {
			return &refusal{"EMPTY_KEY_BITS", "key bits are missing."}
		}
	}
	if keyType != "" && !strings.EqualFold(keyType, kind) {
		return &refusal{"INVALID_INPUT_KEYTYPE", "CSR's keyType and the request body's keyType don't match."}
	}
	if keyBits != "" && keyBits != strconv.Itoa(bits) {
		return &refusal{"INVALID_INPUT_KEYBITS", "CSR's keyBits and the request body's keyBits don't match."}
	}
	return nil
}

// signed is the answer of Sign End Csr and Sign Sub Csr.
func (s *Simulator) signed(ca *authority, cert *x509.Certificate) any {
	chain := []string{}
	for _, c := range s.issuers(ca, true) {
		chain = append(chain, certPEM(c))
	}
	var ocsp any
	if ca.ocsp != "" {
		ocsp = ca.ocsp
	}
	return map[string]any{"certificate": certPEM(cert), "caChain": chain, "issuer": certPEM(ca.cert),
		"serialNo": s.serial(cert.SerialNumber), "ocspResponder": ocsp}
}

func (s *Simulator) issueEndCert(c *call) (any, *refusal) {
	ca, no := s.issuing(c)
	if no != nil {
		return nil, no
	}
	var body struct {
		KeyType string `json:"keyType"`
		Period  string `json:"period"`
		X509    *name  `json:"x509Parameters"`
	}
	if no := c.decode(&body); no != nil {
		return nil, no
	}
	if body.X509 == nil {
		return nil, &refusal{"EMPTY_X509_PARAMETERS", "x509Parameters are missing."}
	}
	if no := body.X509.check(); no != nil {
		return nil, no
	}
	if body.KeyType == "" {
		body.KeyType = "RSA2048"
	}
	if body.Period == "" {
		body.Period = strconv.Itoa(s.behaviour.DefaultPeriodDays)
	}
	days, no := s.lifetime(ca, body.Period)
	if no != nil {
		return nil, no
	}
	key, err := generateKey(body.KeyType)
	if err != nil {
		return nil, &refusal{"INVALID_INPUT_KEYTYPE", "Invalid key type."}
	}
	l := leafTemplate{subject: body.X509.pkix(), key: key.Public(), days: days}
	for alt := range strings.SplitSeq(body.X509.AltName, ",") {
		if alt = strings.TrimSpace(alt); strings.Contains(alt, "@") {
			l.emails = append(l.emails, alt)
		} else if alt != "" {
			l.dnsNames = append(l.dnsNames, alt)
		}
	}
	if body.X509.UseCommonNameAsDN {
		l.dnsNames = append(l.dnsNames, body.X509.CommonName)
	}
	if body.X509.IP != "" {
		for text := range strings.SplitSeq(body.X509.IP, ",") {
			ip := net.ParseIP(strings.TrimSpace(text))
			if ip == nil {
				return nil, &refusal{"INVALID_INPUT_IP", "Invalid ip."}
			}
			l.ips = append(l.ips, ip)
		}
	}
	issued, err := ca.issue(s, l, c.fault)
	if err != nil {
		return nil, &refusal{"FAIL_CORE", "The certificate could not be made: " + err.Error()}
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, &refusal{"FAIL_CORE", "The key could not be written: " + err.Error()}
	}
	return map[string]any{"privateKey": pemText("PRIVATE KEY", der), "certificate": certPEM(issued.cert), "caChain": s.chainText(ca),
		"issuer": certPEM(ca.cert), "serialNo": s.serial(issued.cert.SerialNumber), "ocspResponder": nil}, nil
}

// chainText is a chain as one string.
func (s *Simulator) chainText(ca *authority) string {
	var list []string
	for _, c := range s.issuers(ca, s.behaviour.ChainWithSelf) {
		list = append(list, certPEM(c))
	}
	return strings.Join(list, "\n")
}

// certificate finds the certificate that the path names.
func (s *Simulator) certificate(c *call) (*authority, *issuedCert, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, nil, no
	}
	serial, ok := parseSerial(c.r.PathValue("serialNo"))
	if !ok {
		return nil, nil, &refusal{"INVALID_INPUT_SERIAL_NO", "Invalid serial no value."}
	}
	cert := ca.find(serial)
	if s.behaviour.SerialExact && c.r.PathValue("serialNo") != s.serial(serial) {
		cert = nil
	}
	if cert == nil && ca.cert != nil && ca.cert.SerialNumber.Cmp(serial) == 0 {
		cert = &issuedCert{cert: ca.cert}
	}
	if cert == nil {
		return nil, nil, &refusal{"NOT_EXIST_CERT", "The certificate doesn't exist."}
	}
	return ca, cert, nil
}

func (s *Simulator) getEndCert(c *call) (any, *refusal) {
	ca, cert, no := s.certificate(c)
	if no != nil {
		return nil, no
	}
	kind, _ := keyKind(cert.cert.PublicKey)
	return map[string]any{"serialNo": s.serial(cert.cert.SerialNumber), "commonName": cert.cert.Subject.CommonName,
		"notBeforeDate": s.millis(cert.cert.NotBefore), "notAfterDate": s.millis(cert.cert.NotAfter),
		"publicKeyAlgorithm": kind, "signatureAlgorithm": cert.cert.SignatureAlgorithm.String(),
		"certPem": certPEM(cert.cert), "caChain": s.chainText(ca), "ocspResponder": nil}, nil
}

func (s *Simulator) getEndCertList(c *call) (any, *refusal) {
	ca, no := s.authority(c)
	if no != nil {
		return nil, no
	}
	ca.hiddenIDs = stillHidden(ca.hiddenIDs, s.now())
	var serials []*big.Int
	for _, cert := range ca.issued {
		if !s.behaviour.ListRevoked && !cert.revoked.IsZero() || !s.behaviour.ListExpired && s.now().After(cert.cert.NotAfter) {
			continue
		}
		if slices.ContainsFunc(ca.hiddenIDs, func(h hidden) bool { return h.serial.Cmp(cert.cert.SerialNumber) == 0 }) {
			continue
		}
		serials = append(serials, cert.cert.SerialNumber)
	}
	if s.behaviour.ListCA && ca.cert != nil {
		serials = append([]*big.Int{ca.cert.SerialNumber}, serials...)
	}
	switch s.behaviour.ListOrder {
	case "serial":
		slices.SortFunc(serials, (*big.Int).Cmp)
	case "newest":
		slices.Reverse(serials)
	}
	from, to, current, total, no := s.page(c, len(serials))
	if no != nil {
		return nil, no
	}
	texts := []string{}
	for _, n := range serials[from:to] {
		texts = append(texts, s.serial(n))
	}
	return map[string]any{"totalCnt": s.num(int64(len(serials))), "listCerts": texts,
		"totalPageNo": s.num(int64(total)), "currentPageNo": s.num(int64(current))}, nil
}

func (s *Simulator) revokeEndCert(c *call) (any, *refusal) {
	ca, cert, no := s.certificate(c)
	switch {
	case no != nil:
		return nil, no
	case s.behaviour.OnlyActiveRevokes && ca.status != statusActive:
		return nil, &refusal{"INVALID_CA_STATUS", "Invalid ca status."}
	case cert.cert == ca.cert:
		return nil, &refusal{"INVALID_CERT", "The CA certificate can't be revoked."}
	case s.now().After(cert.cert.NotAfter):
		return nil, &refusal{"INVALID_CERT", "Expired cert."}
	case !cert.revoked.IsZero() && s.behaviour.RevokeTwice == "error":
		return nil, &refusal{"INVALID_STATUS", "Invalid status."}
	case !cert.revoked.IsZero():
		return nil, nil
	}
	cert.revoked = s.now()
	if s.behaviour.CRLShows == "at-once" {
		if err := ca.makeCRL(s.now()); err != nil {
			return nil, &refusal{"FAIL_CORE", "The CRL could not be made."}
		}
	}
	return nil, nil
}
