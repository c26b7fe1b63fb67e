package certmanager

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// An api makes the calls of Certificate Manager, each by the name that its
// documentation gives it. What it returns is parsed but not judged.
type api struct {
	client *ncloud.Client
	pace   *pace
}

// call makes one call and returns the envelope.
func (a *api) call(ctx context.Context, operation, method, path string, query url.Values, body any) (object, error) {
	var o object
	err := a.client.Do(ctx, ncloud.Request{Operation: operation, Method: method, Path: path, Query: query, Body: body,
		Decode: func(answer []byte) error {
			var err error
			o, err = envelope(answer)
			return err
		}})
	a.pace.observe(err)
	return o, err
}

func (a *api) get(ctx context.Context, operation, path string, query url.Values) (object, error) {
	return a.call(ctx, operation, http.MethodGet, path, query, nil)
}

// code is the service's code in an error, "" if it has none or the gateway's.
func code(err error) string {
	if e, ok := errors.AsType[*ncloud.Error](err); ok && !e.Gateway {
		return e.Code
	}
	return ""
}

// nothingFound reports the service's words for an empty list.
func nothingFound(err error) bool {
	c := code(err)
	return c == codeNothingFound || c == codeNoCert
}

// A request is what Advanced request and Reissue have in common.
type request struct {
	CSR              string   `json:"csr"`
	CertificateType  string   `json:"certificateType,omitempty"` // not with Reissue
	CertificateName  string   `json:"certificateName"`
	CommonName       string   `json:"commonName"`
	DNSName          []string `json:"dnsName,omitempty"`
	ValidationMethod string   `json:"validationMethod"`
	OrganizationNo   int64    `json:"organizationNo,omitempty"`
}

func csrPEM(csr *x509.CertificateRequest) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}))
}

// advancedRequest is AdvancedCertificateRequest: it costs money.
func (a *api) advancedRequest(ctx context.Context, r request) (row, error) {
	o, err := a.call(ctx, "advancedCertificateRequest", http.MethodPost, "/api/v2/certificate/requestPaidCertificateIssuance", nil, r)
	return decodeRequested(o), err
}

// reissue is ReissueCertificate.
func (a *api) reissue(ctx context.Context, no int64, r request) (row, error) {
	r.CertificateType, r.OrganizationNo = "", 0
	o, err := a.call(ctx, "reissueCertificate", http.MethodPost, "/api/v2/certificate/"+number(no)+"/reissue", nil, r)
	return decodeRequested(o), err
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

// Pages of lists.
const (
	pageSize = 100
	maxPages = 100
)

// listAdvanced is ListAdvancedCertificates: those of a name, or with "" all.
func (a *api) listAdvanced(ctx context.Context, name string) ([]row, error) {
	return a.list(ctx, "listAdvancedCertificates", "/api/v2/certificate/getPaidCertificates", name, decodeOrders)
}

// listAll is ListCertificates.
func (a *api) listAll(ctx context.Context, name string) ([]row, error) {
	return a.list(ctx, "listCertificates", "/api/v2/certificate/certificates", name, decodeRows)
}

func (a *api) list(ctx context.Context, operation, path, name string, decode func(object) ([]row, error)) ([]row, error) {
	var all []row
	seen := map[int64]bool{}
	for page := 1; page <= maxPages; page++ {
		query := url.Values{"page": {strconv.Itoa(page)}, "pageSize": {strconv.Itoa(pageSize)}}
		if name != "" {
			query.Set("certificateName", name)
		}
		o, err := a.get(ctx, operation, path, query)
		if nothingFound(err) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		rows, err := decode(o)
		if err != nil {
			return nil, err
		}
		fresh := false
		for _, r := range rows {
			if r.No == 0 || !seen[r.No] {
				all, fresh = append(all, r), true
			}
			seen[r.No] = true
		}
		if !fresh || lastPage(len(rows), len(all), cmp.Or(o.number("totalCount"), o.number("totalRows")), name == "") {
			return all, nil
		}
	}
	return nil, fmt.Errorf("%s: the list does not end after %d pages", operation, maxPages)
}

// lastPage tells whether a page that is not full ends its list. Totals are 0 in
// answers that have rows, and a service may cap pageSize: without a total, only
// a list of one name is believed to be short; what else ends a list is a page
// that holds nothing new.
func lastPage(rows, all int, total int64, whole bool) bool {
	if rows >= pageSize {
		return false
	}
	if total == 0 {
		return !whole
	}
	return int64(all) >= total
}

// dcv is ListDcvStatuses of one domain; nil: none is shown.
func (a *api) dcv(ctx context.Context, no int64, domain string) (*dcvRow, error) {
	o, err := a.get(ctx, "listDcvStatuses", "/api/v2/certificate/getVerificationInfo/"+number(no), url.Values{"domainAddress": {domain}})
	if nothingFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeDCV(o), nil
}

// changes is ListRecentCertChanges of the last seconds. Minutes and seconds
// together would find nothing without an error.
func (a *api) changes(ctx context.Context, seconds int64) (map[int64]string, error) {
	o, err := a.get(ctx, "listRecentCertChanges", "/api/v2/certificate/recentChanges", url.Values{"seconds": {number(seconds)}})
	if nothingFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeChanges(o), nil
}

// chain is GetCertificateChain: the certificate first, then what else there is.
func (a *api) chain(ctx context.Context, no int64) ([]*x509.Certificate, error) {
	o, err := a.get(ctx, "getCertificateChain", "/api/v2/certificate/exportCertificate/"+number(no)+"/chain", nil)
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(o.text("certificate", "certificateBody", "publicKeyCertificate"))
	if err != nil {
		return nil, err
	}
	if len(certs) == 0 {
		return nil, errors.New("the answer holds no certificate")
	}
	// What does not parse here must not lose the leaf: the chain is checked by
	// the caller, and the download may have it.
	for _, text := range []string{o.text("subCaCertificate", "certificateChain"), o.text("rootCaCertificate")} {
		if more, err := parseCerts(text); err == nil {
			certs = append(certs, more...)
		}
	}
	return certs, nil
}

// Bounds of a download.
const (
	maxZipFiles = 20
	maxZipFile  = 1 << 20
)

// download is DownloadCertificate: a zip of PEM files, whose names are unknown.
func (a *api) download(ctx context.Context, no int64) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	err := a.client.Do(ctx, ncloud.Request{Operation: "downloadCertificate", Method: http.MethodPost,
		Path: "/api/v2/certificate/exportCertificate/" + number(no), Body: map[string]any{"certificateNo": no, "type": "PEM"},
		Decode: func(answer []byte) error {
			var err error
			if certs, err = unzip(answer); err != nil {
				if _, errEnvelope := envelope(answer); errEnvelope != nil {
					if _, refused := errors.AsType[*ncloud.Refusal](errEnvelope); refused {
						return errEnvelope
					}
				}
			}
			return err
		}})
	a.pace.observe(err)
	return certs, err
}

func unzip(archive []byte) ([]*x509.Certificate, error) {
	z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		return nil, err
	}
	if len(z.File) > maxZipFiles {
		return nil, fmt.Errorf("more than %d files in the archive", maxZipFiles)
	}
	var certs []*x509.Certificate
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(io.LimitReader(r, maxZipFile))
		r.Close()
		if err != nil {
			return nil, err
		}
		if more, err := parseCerts(string(text)); err == nil {
			certs = append(certs, more...)
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("the archive holds no certificate")
	}
	return certs, nil
}

// remove is DeleteCertificate; number and name must match.
func (a *api) remove(ctx context.Context, no int64, name string) error {
	_, err := a.call(ctx, "deleteCertificate", http.MethodDelete, "/api/v2/certificate/deleteCertificate/"+number(no), url.Values{"certificateName": {name}}, nil)
	return err
}

// revoke is RevokeCertificate of one certificate: number 0 would revoke all of
// the order.
func (a *api) revoke(ctx context.Context, orderID string, no int64, revokeType string) error {
	if no == 0 || orderID == "" {
		return errors.New("revoke: the certificate's number or order is not known")
	}
	_, err := a.call(ctx, "revokeCertificate", http.MethodPost, "/api/v2/certificate/revoke", nil, struct {
		OrderID       string `json:"orderId"`
		CertificateNo int64  `json:"certificateNo"`
		RevokeType    string `json:"revokeType"`
	}{orderID, no, revokeType})
	return err
}

// types is ListCertificateTypes: whole rows, since their members are unknown.
func (a *api) types(ctx context.Context) ([]object, error) {
	o, err := a.get(ctx, "listCertificateTypes", "/api/v2/certificate/certificateTypes", nil)
	if nothingFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rows, _ := o.list("certificatetype", "certificateTypes", "certificateTypeList")
	return rows, nil
}

// registerDomain is RegisterDomain. Its answer was never seen: the list tells.
func (a *api) registerDomain(ctx context.Context, name, method string, organization int64) error {
	_, err := a.call(ctx, "registerDomain", http.MethodPost, "/api/v2/domain/domains", nil, struct {
		DmnAddr   string `json:"dmnAddr"`
		DcvType   string `json:"dcvType"`
		IssueType string `json:"issueType"`
		OrgNo     int64  `json:"orgNo,omitempty"`
	}{name, method, "CONSOLE", organization})
	return err
}

// listDomains is ListDomainValidations: of one address, or with "" all.
func (a *api) listDomains(ctx context.Context, address string) ([]Domain, error) {
	var all []Domain
	seen := map[int64]bool{}
	for page := 1; page <= maxPages; page++ {
		query := url.Values{"page": {strconv.Itoa(page)}, "pageSize": {strconv.Itoa(pageSize)}}
		if address != "" {
			query.Set("domainAddress", address)
		}
		o, err := a.get(ctx, "listDomainValidations", "/api/v2/domain/domains", query)
		if nothingFound(err) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		rows, err := decodeDomains(o)
		if err != nil {
			return nil, err
		}
		fresh := false
		for _, d := range rows {
			if d.ID == 0 || !seen[d.ID] {
				all, fresh = append(all, d), true
			}
			seen[d.ID] = true
		}
		if !fresh || lastPage(len(rows), len(all), cmp.Or(o.number("totalRows"), o.number("totalCount")), address == "") {
			return all, nil
		}
	}
	return nil, fmt.Errorf("listDomainValidations: the list does not end after %d pages", maxPages)
}

// deleteDomain is DeleteDomain.
func (a *api) deleteDomain(ctx context.Context, id int64) error {
	_, err := a.call(ctx, "deleteDomain", http.MethodDelete, "/api/v2/domain/domains/"+number(id), nil, nil)
	return err
}
