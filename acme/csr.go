package acme

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxCSR is the size in bytes of the largest CSR that is read.
const MaxCSR = 64 << 10

// A KeyType is a kind of public key that a profile may allow in certificates.
type KeyType string

// The key types that a configuration can name.
const (
	ECDSAP256 KeyType = "ecdsa-p256"
	ECDSAP384 KeyType = "ecdsa-p384"
	ECDSAP521 KeyType = "ecdsa-p521"
	RSA2048   KeyType = "rsa-2048"
	RSA3072   KeyType = "rsa-3072"
	RSA4096   KeyType = "rsa-4096"
	Ed25519   KeyType = "ed25519"
)

// KeyTypes are all key types, weakest RSA last.
var KeyTypes = []KeyType{ECDSAP256, ECDSAP384, ECDSAP521, Ed25519, RSA4096, RSA3072, RSA2048}

// TypeOf tells which key type a public key is of; an error says why it is none.
func TypeOf(pub crypto.PublicKey) (KeyType, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return ECDSAP256, nil
		case elliptic.P384():
			return ECDSAP384, nil
		case elliptic.P521():
			return ECDSAP521, nil
		}
		return "", fmt.Errorf("the curve %s is not supported", k.Params().Name)
	case *rsa.PublicKey:
		if err := CheckRSA(k); err != nil {
			return "", err
		}
		switch bits := k.N.BitLen(); bits {
		case 2048:
			return RSA2048, nil
		case 3072:
			return RSA3072, nil
		case 4096:
			return RSA4096, nil
		default:
			return "", fmt.Errorf("RSA keys of %d bits are not supported", bits)
		}
	case ed25519.PublicKey:
		return Ed25519, nil
	}
	return "", fmt.Errorf("keys of this kind are not supported")
}

// CheckRSA refuses RSA keys that are too small, too costly, or malformed.
func CheckRSA(k *rsa.PublicKey) error {
	switch bits := k.N.BitLen(); {
	case bits < 2048:
		return fmt.Errorf("RSA keys must have at least 2048 bits, this one has %d", bits)
	case bits > 8192:
		return fmt.Errorf("RSA keys may have at most 8192 bits, this one has %d", bits)
	case k.N.Bit(0) == 0:
		return fmt.Errorf("the RSA modulus is even")
	case k.E < 3 || k.E%2 == 0:
		return fmt.Errorf("the RSA exponent must be odd and at least 3")
	}
	for _, p := range smallPrimes {
		if modSmall(k, p) == 0 {
			return fmt.Errorf("the RSA modulus has a small factor")
		}
	}
	return nil
}

var (
	oidSAN              = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidSubjectKeyID     = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidTLSFeature       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

	oidServerAuth = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	oidClientAuth = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}

	oidExtensionRequest  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidUnstructuredName  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 2}

	oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}
)

// ParseCSR reads a DER certificate request and refuses, with a badCSR problem,
// all that must not reach a CA (RFC 8555, Sections 7.4 and 11.1): names other
// than the order's, weak keys and signatures, and requested extensions that are
// not plainly harmless. That the key is no account's key the caller checks.
func ParseCSR(der []byte, ids []Identifier, profile *Profile) (*x509.CertificateRequest, error) {
	if len(der) > MaxCSR {
		return nil, Problemf(BadCSR, "the CSR is larger than %d bytes", MaxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, Problemf(BadCSR, "the CSR does not parse: it must be DER in base64url").WithCause(err)
	}
	keyType, err := TypeOf(csr.PublicKey)
	if err != nil {
		return nil, Problemf(BadCSR, "the CSR's key: %v", err)
	}
	if !slices.Contains(profile.KeyTypes, keyType) {
		return nil, Problemf(BadCSR, "keys of type %s are not allowed under profile %q", keyType, profile.Name)
	}
	switch csr.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1, x509.UnknownSignatureAlgorithm:
		return nil, Problemf(BadCSR, "the CSR is signed with an unsupported or weak algorithm (%v)", csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, Problemf(BadCSR, "the CSR's signature does not verify")
	}
	if err := checkAttributes(csr); err != nil {
		return nil, err
	}
	if err := checkExtensions(csr.Extensions); err != nil {
		return nil, err
	}
	if err := checkCSRNames(csr, ids, profile); err != nil {
		return nil, err
	}
	return csr, nil
}

// checkAttributes reads the attributes as they stand, since crypto/x509 passes
// over what it does not know and over a second value, and a CA may not.
func checkAttributes(csr *x509.CertificateRequest) error {
	malformed := Problemf(BadCSR, "the CSR's attributes do not parse")
	in := cryptobyte.String(csr.Raw)
	var request, tbs, attributes cryptobyte.String
	var present bool
	// encoding/asn1 passes over members after the last one that it expects.
	if !in.ReadASN1(&request, cbasn1.SEQUENCE) || !in.Empty() || !request.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!request.SkipASN1(cbasn1.SEQUENCE) || !request.SkipASN1(cbasn1.BIT_STRING) || !request.Empty() ||
		!tbs.SkipASN1(cbasn1.INTEGER) || !tbs.SkipASN1(cbasn1.SEQUENCE) || !tbs.SkipASN1(cbasn1.SEQUENCE) ||
		!tbs.ReadOptionalASN1(&attributes, &present, cbasn1.Tag(0).ContextSpecific().Constructed()) || !tbs.Empty() {
		return malformed
	}
	requests := 0
	for !attributes.Empty() {
		var attribute, values cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !attributes.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) ||
			!attribute.ReadASN1(&values, cbasn1.SET) || !attribute.Empty() {
			return malformed
		}
		switch {
		case oid.Equal(oidChallengePassword), oid.Equal(oidUnstructuredName):
			// Free text that no CA puts into a certificate.
		case oid.Equal(oidExtensionRequest):
			requests++
			var extensions, extension cryptobyte.String
			if !values.ReadASN1(&extensions, cbasn1.SEQUENCE) || !values.Empty() || requests > 1 {
				return Problemf(BadCSR, "the CSR requests extensions more than once")
			}
			for !extensions.Empty() {
				if !extensions.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.SkipASN1(cbasn1.OBJECT_IDENTIFIER) ||
					!extension.SkipOptionalASN1(cbasn1.BOOLEAN) || !extension.SkipASN1(cbasn1.OCTET_STRING) || !extension.Empty() {
					return malformed
				}
			}
		default:
			return Problemf(BadCSR, "the CSR has an attribute that is not allowed: %v", oid)
		}
	}
	return nil
}

// checkExtensions passes what clients send by habit and cannot do harm, and
// refuses the rest, so that nothing is dropped silently and nothing smuggled in.
func checkExtensions(exts []pkix.Extension) error {
	refuse := func(what string) error { return Problemf(BadCSR, "the CSR requests %s", what) }
	for _, ext := range exts {
		switch {
		case ext.Id.Equal(oidSAN), ext.Id.Equal(oidSubjectKeyID):
		case ext.Id.Equal(oidKeyUsage):
			var bits asn1.BitString
			if rest, err := asn1.Unmarshal(ext.Value, &bits); err != nil || len(rest) > 0 {
				return refuse("a malformed keyUsage")
			}
			for i := range bits.BitLength {
				// digitalSignature 0, keyEncipherment 2, keyAgreement 4
				if bits.At(i) == 1 && i != 0 && i != 2 && i != 4 {
					return refuse("a keyUsage that no server certificate has")
				}
			}
		case ext.Id.Equal(oidExtKeyUsage):
			var usages []asn1.ObjectIdentifier
			if rest, err := asn1.Unmarshal(ext.Value, &usages); err != nil || len(rest) > 0 || len(usages) == 0 {
				return refuse("a malformed extKeyUsage")
			}
			for _, u := range usages {
				if !u.Equal(oidServerAuth) && !u.Equal(oidClientAuth) {
					return refuse(fmt.Sprintf("the extended key usage %v; only serverAuth and clientAuth are issued", u))
				}
			}
		case ext.Id.Equal(oidBasicConstraints):
			var bc struct {
				CA      bool `asn1:"optional"`
				PathLen int  `asn1:"optional,default:-1"`
			}
			if rest, err := asn1.Unmarshal(ext.Value, &bc); err != nil || len(rest) > 0 || bc.CA || bc.PathLen != -1 {
				return refuse("a CA certificate")
			}
		case ext.Id.Equal(oidTLSFeature):
			return refuse("OCSP must-staple, which is not supported; leave it out")
		default:
			return refuse(fmt.Sprintf("the extension %v, which is not allowed", ext.Id))
		}
	}
	return nil
}

func checkCSRNames(csr *x509.CertificateRequest, ids []Identifier, profile *Profile) error {
	var cn string
	cns := 0
	for _, atv := range csr.Subject.Names {
		if !atv.Type.Equal(oidCommonName) {
			if profile.SubjectIgnored {
				continue
			}
			return Problemf(BadCSR, "the CSR's subject has the field %v; only a common name is allowed", atv.Type)
		}
		value, ok := atv.Value.(string)
		if cns++; !ok || cns > 1 {
			return Problemf(BadCSR, "the CSR has more than one common name, or one that is no text")
		}
		cn = lower(value)
	}
	names, err := sanDNSNames(csr.Extensions)
	if err != nil {
		return Problemf(BadCSR, "the CSR's subject alternative names: %v", err)
	}
	have := make(map[string]bool, len(names)+1)
	for _, n := range names {
		have[lower(n)] = true
	}
	if cn != "" {
		have[cn] = true
	}
	var missing []string
	for _, id := range ids {
		if !have[id.Value] {
			missing = append(missing, id.Value)
		}
		delete(have, id.Value)
	}
	if len(missing) > 0 || len(have) > 0 {
		extra := make([]string, 0, len(have))
		for n := range have {
			extra = append(extra, truncate(n, 253))
		}
		slices.Sort(extra)
		return Problemf(BadCSR, "the CSR must name exactly the order's identifiers: %s", difference(missing, extra))
	}
	return nil
}

func difference(missing, extra []string) string {
	list := func(what string, names []string) string {
		if len(names) == 0 {
			return ""
		}
		const most = 10
		more := ""
		if len(names) > most {
			more = fmt.Sprintf(" and %d more", len(names)-most)
			names = names[:most]
		}
		return what + " " + strings.Join(names, ", ") + more
	}
	parts := slices.DeleteFunc([]string{list("it lacks", missing), list("it has also", extra)}, func(s string) bool { return s == "" })
	return strings.Join(parts, "; ")
}

// sanDNSNames returns the dNSNames of a subject alternative name extension, and
// an error for any other kind of name: crypto/x509 passes over some of them.
func sanDNSNames(exts []pkix.Extension) ([]string, error) {
	var names []string
	for _, ext := range exts {
		if !ext.Id.Equal(oidSAN) {
			continue
		}
		in := cryptobyte.String(ext.Value)
		var list cryptobyte.String
		if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() {
			return nil, fmt.Errorf("do not parse")
		}
		for !list.Empty() {
			var name cryptobyte.String
			var tag cbasn1.Tag
			if !list.ReadAnyASN1(&name, &tag) {
				return nil, fmt.Errorf("do not parse")
			}
			if tag != cbasn1.Tag(2).ContextSpecific() {
				return nil, fmt.Errorf("only DNS names are allowed, found a general name of tag %d", tag&0x1f)
			}
			names = append(names, string(name))
		}
	}
	return names, nil
}
