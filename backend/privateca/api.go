package privateca

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// An api makes the calls of Private CA that a bridge needs, each by the name
// that its documentation gives it. What it returns is parsed but not judged.
type api struct {
	client *ncloud.Client
	caTag  string
}

// Statuses of a CA (Get CA).
const statusActive = "ACTIVE"

// caState is what Get CA says that matters here.
type caState struct {
	Status       string
	SigningCount int64
	NotAfter     time.Time           // of the CA's own certificate; zero while it has none
	Own          *x509.Certificate   // the CA's certificate; nil while it has none
	Certs        []*x509.Certificate // Own and what chainPem holds
	Read         time.Time           // before the call was made
}

func (a *api) path(rest string) string { return "/api/v1/ca/" + a.caTag + rest }

// get makes a read; an answer that decode refuses counts as broken.
func get[T any](ctx context.Context, a *api, operation, rest string, query url.Values, decode func([]byte) (T, error)) (T, error) {
	var v T
	err := a.client.Do(ctx, ncloud.Request{Operation: operation, Method: http.MethodGet, Path: a.path(rest), Query: query,
		Decode: func(answer []byte) error {
			var err error
			v, err = decode(answer)
			return err
		}})
	return v, err
}

// getCA is Get CA.
func (a *api) getCA(ctx context.Context, now time.Time) (*caState, error) {
	s, err := get(ctx, a, "getCa", "", nil, decodeCA)
	if err != nil {
		return nil, err
	}
	s.Read = now
	return s, nil
}

func decodeCA(answer []byte) (*caState, error) {
	var data struct {
		Info *struct {
			Status       ncloud.Text    `json:"status"`
			SigningCount *ncloud.Number `json:"signingCount"`
		} `json:"caInfo"`
		Cert struct {
			NotAfter ncloud.Millis `json:"notAfterDate"`
			CertPem  ncloud.Text   `json:"certPem"`
			ChainPem ncloud.Text   `json:"chainPem"`
		} `json:"caCertInfo"`
	}
	if err := ncloud.Envelope(&data)(answer); err != nil {
		return nil, err
	}
	if data.Info == nil || data.Info.Status == "" || data.Info.SigningCount == nil || *data.Info.SigningCount < 0 {
		return nil, errors.New("the answer lacks status or signingCount")
	}
	s := &caState{Status: string(data.Info.Status), SigningCount: int64(*data.Info.SigningCount), NotAfter: data.Cert.NotAfter.Time()}
	own, err := parseCerts(string(data.Cert.CertPem))
	if err != nil {
		return nil, err
	}
	chain, err := parseCerts(string(data.Cert.ChainPem))
	if err != nil {
		return nil, err
	}
	if len(own) > 0 {
		s.Own = own[0]
		s.NotAfter = own[0].NotAfter // the certificate knows better than a member beside it
	}
	s.Certs = append(own, chain...)
	return s, nil
}

// getCAChain is Get CA Chain: certificates in no order that one may rely on.
func (a *api) getCAChain(ctx context.Context) ([]*x509.Certificate, error) {
	return get(ctx, a, "getCaChain", "/chain", nil, func(answer []byte) ([]*x509.Certificate, error) {
		var data ncloud.Texts
		if err := ncloud.Envelope(&data)(answer); err != nil {
			return nil, err
		}
		return parseCerts(data...)
	})
}

// signed is the answer of Sign End Csr.
type signed struct {
	leaf   *x509.Certificate
	others []*x509.Certificate // issuer and caChain
}

// signEndCSR is Sign End Csr. Whatever is wrong with an answer that reports
// success is an [ncloud.Error] whose outcome is unknown, for something was issued.
func (a *api) signEndCSR(ctx context.Context, csr *x509.CertificateRequest, days int, keyType, keyBits string) (*signed, error) {
	body := struct {
		CSRPem  string `json:"csrPem"`
		Period  string `json:"period"`
		KeyType string `json:"keyType,omitempty"`
		KeyBits string `json:"keyBits,omitempty"`
	}{
		// Trimmed, as NCP's own client does.
		CSRPem: strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}))),
		Period: strconv.Itoa(days), KeyType: keyType, KeyBits: keyBits,
	}
	var s signed
	err := a.client.Do(ctx, ncloud.Request{Operation: "signEndCsr", Method: http.MethodPost, Path: a.path("/cert/sign"), Body: body,
		Decode: func(answer []byte) error {
			var err error
			s, err = decodeSigned(answer)
			return err
		}})
	if err != nil {
		return nil, err
	}
	return &s, nil
}

func decodeSigned(answer []byte) (signed, error) {
	var data struct {
		Certificate ncloud.Text  `json:"certificate"`
		CAChain     ncloud.Texts `json:"caChain"`
		Issuer      ncloud.Text  `json:"issuer"`
	}
	if err := ncloud.Envelope(&data)(answer); err != nil {
		return signed{}, err
	}
	leaf, err := parseCerts(string(data.Certificate))
	if err != nil {
		return signed{}, err
	}
	if len(leaf) == 0 {
		return signed{}, errors.New("the answer holds no certificate")
	}
	// Certificates after the first are issuers, wherever they stand. One that
	// does not parse there must not lose the leaf: the chain can be had elsewhere.
	s := signed{leaf: leaf[0], others: leaf[1:]}
	for _, text := range append([]string{string(data.Issuer)}, data.CAChain...) {
		if certs, err := parseCerts(text); err == nil {
			s.others = append(s.others, certs...)
		}
	}
	return s, nil
}

// getEndCert is Get End Cert, by the serial number as the service wrote it.
func (a *api) getEndCert(ctx context.Context, serialNo string) (*x509.Certificate, error) {
	return get(ctx, a, "getEndCert", "/cert/"+serialNo, nil, func(answer []byte) (*x509.Certificate, error) {
		var data struct {
			CertPem ncloud.Text `json:"certPem"`
		}
		if err := ncloud.Envelope(&data)(answer); err != nil {
			return nil, err
		}
		certs, err := parseCerts(string(data.CertPem))
		if err != nil {
			return nil, err
		}
		if len(certs) == 0 {
			return nil, errors.New("the answer holds no certificate")
		}
		return certs[0], nil
	})
}

// page is one page of Get End Cert List.
type page struct {
	total, pages, current int64
	serials               []string
}

// getEndCertList is Get End Cert List. The parameter pageNo is left out for the
// first page, since the documentation does not know it.
func (a *api) getEndCertList(ctx context.Context, pageNo int64) (*page, error) {
	var query url.Values
	if pageNo > 1 {
		query = url.Values{"pageNo": {strconv.FormatInt(pageNo, 10)}}
	}
	return get(ctx, a, "getEndCertList", "/cert", query, decodePage)
}

func decodePage(answer []byte) (*page, error) {
	var data struct {
		TotalCnt      *ncloud.Number `json:"totalCnt"`
		ListCerts     ncloud.Texts   `json:"listCerts"`
		TotalPageNo   ncloud.Number  `json:"totalPageNo"`
		CurrentPageNo ncloud.Number  `json:"currentPageNo"`
	}
	if err := ncloud.Envelope(&data)(answer); err != nil {
		return nil, err
	}
	if data.TotalCnt == nil || *data.TotalCnt < 0 {
		return nil, errors.New("the answer lacks totalCnt")
	}
	return &page{total: int64(*data.TotalCnt), pages: int64(data.TotalPageNo), current: int64(data.CurrentPageNo), serials: data.ListCerts}, nil
}

// revokeEndCert is Revoke End Cert. It takes no reason.
func (a *api) revokeEndCert(ctx context.Context, serialNo string) error {
	return a.client.Do(ctx, ncloud.Request{Operation: "revokeEndCert", Method: http.MethodPost, Path: a.path("/cert/" + serialNo + "/revoke"), Decode: ncloud.Envelope(nil)})
}

// getCACRL is Get CA CRL.
func (a *api) getCACRL(ctx context.Context) (*x509.RevocationList, error) {
	return get(ctx, a, "getCaCrl", "/crl", nil, func(answer []byte) (*x509.RevocationList, error) {
		var data ncloud.Text
		if err := ncloud.Envelope(&data)(answer); err != nil {
			return nil, err
		}
		block, _ := pem.Decode([]byte(data))
		if block == nil || block.Type != "X509 CRL" {
			return nil, errors.New("the answer holds no CRL")
		}
		return x509.ParseRevocationList(block.Bytes)
	})
}

// maxChain bounds the certificates read from one answer; chains are short.
const maxChain = 20

// parseCerts reads the certificates of texts, each of which may hold several.
// Nothing at all is no certificates; something that is no PEM is an error.
func parseCerts(texts ...string) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, text := range texts {
		rest := []byte(strings.TrimSpace(text))
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
			rest = []byte(strings.TrimSpace(string(rest)))
		}
	}
	return certs, nil
}

// formatSerial writes a serial number in hex pairs joined by colons, with at
// least width octets.
func formatSerial(n *big.Int, width int) string {
	b := n.Bytes()
	if len(b) < width {
		b = n.FillBytes(make([]byte, width))
	}
	pairs := make([]string, len(b))
	for i := range b {
		pairs[i] = hex.EncodeToString(b[i : i+1])
	}
	return strings.Join(pairs, ":")
}

// parseSerial reads hex pairs joined by colons; case and leading zeros do not
// matter, so serial numbers are compared as integers.
func parseSerial(text string) (*big.Int, error) {
	n := new(big.Int)
	if len(text) > 3*20+2 { // 20 octets (RFC 5280, Section 4.1.2.2), one more for a sign
		return nil, errors.New("a serial number is too long")
	}
	for pair := range strings.SplitSeq(text, ":") {
		b, err := hex.DecodeString(pair)
		if err != nil || len(b) != 1 {
			return nil, errors.New("a serial number is not hex pairs joined by colons")
		}
		n.Lsh(n, 8).Or(n, big.NewInt(int64(b[0])))
	}
	if n.Sign() == 0 {
		return nil, errors.New("a serial number is zero")
	}
	return n, nil
}
