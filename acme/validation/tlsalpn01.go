package validation

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/acme-bridge/acme-bridge/acme"
)

// alpnProtocol is the one protocol of RFC 8737, Section 6.2.
const alpnProtocol = "acme-tls/1"

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	// oidACMEIdentifier is id-pe-acmeIdentifier (RFC 8737, Section 6.1); those of
	// the drafts before it are not accepted.
	oidACMEIdentifier = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}

	// curves leave out the post-quantum hybrid that Go offers first: nothing
	// secret is sent, and it costs both sides more than all the rest.
	curves = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}
)

// tlsALPN01 looks at the certificate that is presented for acme-tls/1 (RFC 8737,
// Section 3). No application data is sent.
func (v *Validator) tlsALPN01(ctx context.Context, c *acme.Validation) error {
	where := fmt.Sprintf("%s, port %d", c.Identifier.Value, v.tlsPort)
	raw, err := v.connect(ctx, c.Identifier.Value, v.tlsPort, where)
	if err != nil {
		return err
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{
		ServerName: c.Identifier.Value,
		NextProtos: []string{alpnProtocol},
		MinVersion: tls.VersionTLS12,
		// The certificate is self-signed; what counts is in it. That the server
		// holds its key the handshake proves all the same.
		InsecureSkipVerify: true,
		CurvePreferences:   curves,
	})
	if err := conn.Handshake(); err != nil {
		return handshakeProblem(err, where)
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != alpnProtocol {
		return acme.Problemf(acme.Unauthorized, "%s did not select the ALPN protocol %s", where, alpnProtocol)
	}
	if len(state.PeerCertificates) == 0 {
		return acme.Problemf(acme.Unauthorized, "%s presented no certificate", where)
	}
	if err := checkChallengeCertificate(state.PeerCertificates[0], c.Identifier.Value, c.KeyAuthorization); err != nil {
		return acme.Problemf(acme.Unauthorized, "the certificate of %s: %v", where, err)
	}
	return nil
}

// handshakeProblem repeats an alert, whose texts are fixed, and nothing else of
// what the server sent.
func handshakeProblem(err error, where string) *acme.Problem {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return acme.Problemf(acme.TLS, "TLS handshake with %s: the server sent the alert %q", where, op.Err)
	}
	if reasonOf(err) != "" {
		return connectionProblem(err, "TLS handshake with", where)
	}
	return acme.Problemf(acme.TLS, "TLS handshake with %s failed", where).WithCause(brief(err))
}

// brief bounds an error text for the log: those about certificates quote them.
func brief(err error) error {
	const limit = 200
	text := err.Error()
	if len(text) <= limit {
		return err
	}
	return errors.New(text[:limit])
}

// checkChallengeCertificate says in words of our own what is wrong with the
// certificate for name.
func checkChallengeCertificate(cert *x509.Certificate, name, keyAuthorization string) error {
	san, err := onlyExtension(cert, oidSubjectAltName)
	if err != nil {
		return fmt.Errorf("subjectAltName %w", err)
	}
	got, err := parseSingleDNSName(san.Value)
	if err != nil {
		return err
	}
	if !strings.EqualFold(got, name) {
		return errors.New("its one name is not the identifier")
	}
	ext, err := onlyExtension(cert, oidACMEIdentifier)
	if err != nil {
		return fmt.Errorf("acmeIdentifier %w", err)
	}
	if !ext.Critical {
		return errors.New("acmeIdentifier is not critical")
	}
	digest, err := parseACMEIdentifier(ext.Value)
	if err != nil {
		return err
	}
	if want := sha256.Sum256([]byte(keyAuthorization)); subtle.ConstantTimeCompare(digest, want[:]) != 1 {
		return errors.New("acmeIdentifier is not the digest of the key authorization")
	}
	return nil
}

func onlyExtension(cert *x509.Certificate, oid asn1.ObjectIdentifier) (*pkix.Extension, error) {
	var found *pkix.Extension
	for i := range cert.Extensions {
		if !cert.Extensions[i].Id.Equal(oid) {
			continue
		}
		if found != nil {
			return nil, errors.New("is there twice")
		}
		found = &cert.Extensions[i]
	}
	if found == nil {
		return nil, errors.New("is missing")
	}
	return found, nil
}

// parseSingleDNSName reads a SubjectAltName that consists of one dNSName and
// nothing else, of any kind (RFC 5280, Section 4.2.1.6).
func parseSingleDNSName(der []byte) (string, error) {
	input := cryptobyte.String(der)
	var names, name cryptobyte.String
	if !input.ReadASN1(&names, cryptobyte_asn1.SEQUENCE) || !input.Empty() {
		return "", errors.New("subjectAltName is malformed")
	}
	if !names.ReadASN1(&name, cryptobyte_asn1.Tag(2).ContextSpecific()) || !names.Empty() {
		return "", errors.New("subjectAltName is not exactly one dNSName")
	}
	for _, c := range name {
		// An IA5String; and EqualFold knows letters beyond ASCII that fold into it.
		if c >= 0x80 {
			return "", errors.New("subjectAltName is malformed")
		}
	}
	return string(name), nil
}

// parseACMEIdentifier reads Authorization ::= OCTET STRING (SIZE (32)) in DER
// with nothing after it (RFC 8737, Section 3).
func parseACMEIdentifier(der []byte) ([]byte, error) {
	input := cryptobyte.String(der)
	var digest cryptobyte.String
	if !input.ReadASN1(&digest, cryptobyte_asn1.OCTET_STRING) || !input.Empty() || len(digest) != sha256.Size {
		return nil, errors.New("acmeIdentifier is not an OCTET STRING of 32 octets")
	}
	return digest, nil
}
