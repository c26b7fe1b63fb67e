package certmanager

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// An External certificate is put into Certificate Manager with its key, so that
// load balancers can use it. Only the client side of ACME has that key.
type External struct {
	Name        string // certificateName: 3 to 20 characters, a letter first
	No          int64  // API 2.0: replace that certificate and keep its number; 0: a new one
	Certificate string // PEM
	Chain       string // PEM
	PrivateKey  string // PEM, not encrypted
}

// RegisterExternal is RegisterExternalCertificate of API 2.0, which wants the
// main account's key. It returns the certificate's number, 0 if the service
// does not say.
func (i *Issuer) RegisterExternal(ctx context.Context, x External) (int64, error) {
	return RegisterExternal(ctx, i.cfg.Client, x)
}

// RegisterExternal is [Issuer.RegisterExternal] with a client alone.
func RegisterExternal(ctx context.Context, client *ncloud.Client, x External) (int64, error) {
	a := apiOf(client)
	body := map[string]any{"certificateName": x.Name, "privateKey": x.PrivateKey, "certificateBody": x.Certificate, "certificateChain": x.Chain}
	if x.No != 0 {
		body["certificateNo"] = x.No
	}
	register := func() (object, error) {
		return a.call(ctx, "registerExternalCertificate", http.MethodPost, "/api/v2/certificate/withExternal", nil, body)
	}
	o, err := register()
	if code(err) == codeMissing { // documents before 2026-09-17 name the member otherwise
		body["publicKeyCertificate"] = x.Certificate
		o, err = register()
	}
	if err != nil {
		return 0, fmt.Errorf("register external certificate: %w", err)
	}
	return externalNo(o), nil
}

// CreateExternal is createExternalCertificate of API 1.0, which any key may
// call. It cannot replace a certificate.
func CreateExternal(ctx context.Context, client *ncloud.Client, x External) (int64, error) {
	if x.No != 0 {
		return 0, errors.New("API 1.0 cannot replace a certificate: name, key and certificate must be new")
	}
	o, err := apiOf(client).call(ctx, "createExternalCertificate", http.MethodPost, "/api/v1/certificate/withExternal", nil, map[string]any{
		"certificateName": x.Name, "privateKey": x.PrivateKey, "publicKeyCertificate": x.Certificate, "certificateChain": x.Chain})
	if err != nil {
		return 0, fmt.Errorf("create external certificate: %w", err)
	}
	return externalNo(o), nil
}

// A CertificateRow is a certificate in the list of API 1.0.
type CertificateRow struct {
	No   int64  `json:"no"`
	Name string `json:"name"`
	Type string `json:"type"`
}

// ListV1 is getCertificateList of API 1.0, of one name or with "" of all.
func ListV1(ctx context.Context, client *ncloud.Client, name string) ([]CertificateRow, error) {
	var query url.Values
	if name != "" {
		query = url.Values{"certificateName": {name}}
	}
	o, err := apiOf(client).get(ctx, "getCertificateList", "/api/v1/certificates", query)
	if nothingFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rows, err := decodeRows(o)
	if err != nil {
		return nil, err
	}
	list := make([]CertificateRow, len(rows))
	for n, r := range rows {
		list[n] = CertificateRow{No: r.No, Name: r.Name, Type: r.raw.text("certificateType")}
	}
	return list, nil
}

// DeleteV1 is deleteCertificate of API 1.0; number and name must match.
func DeleteV1(ctx context.Context, client *ncloud.Client, no int64, name string) error {
	_, err := apiOf(client).call(ctx, "deleteCertificateV1", http.MethodDelete, "/api/v1/certificate/"+number(no), url.Values{"certificateName": {name}}, nil)
	return err
}

// Delete is DeleteCertificate of API 2.0: for the operator, who removes failed
// requests and old certificates; nothing else calls it.
func (i *Issuer) Delete(ctx context.Context, no int64, name string) error {
	return i.api.remove(ctx, no, name)
}

func apiOf(client *ncloud.Client) *api { return &api{client: client, pace: nil} }

func externalNo(o object) int64 {
	rows, _ := o.list("sslCertificateList")
	if len(rows) == 1 {
		if r := decodeRow(rows[0]); r.No != 0 {
			return r.No
		}
	}
	return decodeRequested(o).No
}
