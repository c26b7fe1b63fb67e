package ncloudtest

import (
	"archive/zip"
	"bytes"
	"crypto/x509"
	"errors"
	"net/http"
	"slices"
	"strings"
)

// zipField is where a handler leaves a file instead of JSON.
const zipField = "\x00zip"

// issuers are the certificates above x, nearest first.
func (s *Simulator) publicIssuers(x *cmCert) []*x509.Certificate {
	if x.chain != nil {
		return x.chain
	}
	return []*x509.Certificate{s.cm.sub.cert, s.cm.root.cert}
}

// pemLines writes a certificate with the line ends that the behaviour wants.
func (s *Simulator) pemLines(c *x509.Certificate) string {
	text := certPEM(c) + "\n"
	if s.behaviour.CM.ChainLineEnd == "crlf" {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	return text
}

func (s *Simulator) getCertificateChain(c *call) (map[string]any, *cmError) {
	x, no := s.theCert(c)
	if no != nil {
		return nil, no
	}
	if x.cert == nil {
		return nil, &cmError{code: codeNotValid, message: "The certificate is not valid."}
	}
	chain := s.publicIssuers(x)
	answer := map[string]any{"subjectCommonName": x.commonName, "certificate": s.pemLines(x.cert),
		"subCaCertificate": s.pemLines(chain[0]), "rootCaCertificate": ""}
	if len(chain) > 1 {
		answer["rootCaCertificate"] = s.pemLines(chain[len(chain)-1])
	}
	return answer, nil
}

func (s *Simulator) downloadCertificate(c *call) (map[string]any, *cmError) {
	x, no := s.theCert(c)
	if no != nil {
		return nil, no
	}
	if len(bytes.TrimSpace(c.body)) == 0 {
		return nil, &cmError{codePartMissing, "The request body is missing.", http.StatusBadRequest}
	}
	if x.cert == nil {
		return nil, &cmError{code: codeNotValid, message: "The certificate is not valid."}
	}
	var file bytes.Buffer
	z := zip.NewWriter(&file)
	var chain strings.Builder
	for _, ca := range s.publicIssuers(x) {
		chain.WriteString(s.pemLines(ca))
	}
	var errs []error
	for _, f := range [][2]string{{"certificate.pem", s.pemLines(x.cert)}, {"chain.pem", chain.String()}} {
		w, err := z.Create(x.name + "/" + f[0])
		if err == nil {
			_, err = w.Write([]byte(f[1]))
		}
		errs = append(errs, err)
	}
	if err := errors.Join(append(errs, z.Close())...); err != nil {
		return nil, &cmError{codeNotValid, err.Error(), http.StatusInternalServerError}
	}
	return map[string]any{zipField: file.Bytes()}, nil
}

func (s *Simulator) deleteCertificate(c *call) (map[string]any, *cmError) {
	x, no := s.theCert(c)
	if no != nil {
		return nil, no
	}
	switch name := c.r.URL.Query().Get("certificateName"); {
	case name == "":
		return nil, s.missing("certificateName")
	case name != x.name:
		return nil, &cmError{code: codeInUse, message: "The name and number do not match."}
	case x.status == certOngoing && s.behaviour.CM.DeleteOngoing == "refuse":
		return nil, &cmError{code: codeInUse, message: "The certificate is being issued."}
	}
	s.cm.certs = slices.DeleteFunc(s.cm.certs, func(y *cmCert) bool { return x == y })
	s.cm.count.Deleted++
	return nil, nil
}

func (s *Simulator) revokeCertificate(c *call) (map[string]any, *cmError) {
	var in struct {
		OrderID string `json:"orderId"`
		No      *int64 `json:"certificateNo"`
		Type    string `json:"revokeType"`
	}
	if no := s.readCM(c, &in); no != nil {
		return nil, no
	}
	switch {
	case in.OrderID == "":
		return nil, s.missing("orderId")
	case in.No == nil:
		return nil, s.missing("certificateNo")
	case !slices.Contains([]string{"affiliationChanged", "superseded", "cessationOfOperation", "unspecified"}, in.Type):
		return nil, s.missing("revokeType")
	}
	var list []*cmCert
	for _, x := range s.cm.certs {
		if x.orderID == in.OrderID && (*in.No == 0 || x.no == *in.No) {
			list = append(list, x)
		}
	}
	if len(list) == 0 {
		return nil, &cmError{code: codeNoCert, message: "No certificate exists."}
	}
	list = slices.DeleteFunc(list, func(x *cmCert) bool {
		return x.cert == nil || x.status == certRevoked || x.status == certRevoking || s.now().After(x.cert.NotAfter)
	})
	if len(list) == 0 {
		return nil, &cmError{code: codeNotValid, message: "The certificate is not valid."}
	}
	now := s.now()
	for _, x := range list {
		x.status, x.updated, x.revoked = certRevoking, now, now
		x.revokeAt = now.Add(millis(s.behaviour.CM.RevokeDelayMS))
		s.cm.count.Revoked++
		serial := serialText(x.cert)
		for i := range s.cm.issued {
			if s.cm.issued[i].Serial == serial {
				s.cm.issued[i].Revoked, s.cm.issued[i].RevokeType = true, in.Type
			}
		}
	}
	return map[string]any{"totalRows": s.cmNum(int64(len(list)))}, nil
}
