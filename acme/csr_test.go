package acme

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidOrganization = oid(2, 5, 4, 10)
	oidEmailAddress = oid(1, 2, 840, 113549, 1, 9, 1)
	oidUPN          = oid(1, 3, 6, 1, 4, 1, 311, 20, 2, 3)
)

// expectCSR parses a CSR for an order of those names and compares the outcome:
// want is part of the problem's detail, or "" if the CSR is good.
func expectCSR(t *testing.T, der []byte, profile *Profile, want string, names ...string) {
	t.Helper()
	csr, err := ParseCSR(der, dns(names...), profile)
	if want == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		} else if !bytes.Equal(csr.Raw, der) {
			t.Errorf("the CSR returned is not the one sent")
		}
		return
	}
	if err == nil {
		t.Fatalf("accepted, want a problem about %q", want)
	}
	problem, ok := err.(*Problem)
	if !ok || problem.Type != BadCSR || problem.Status != 400 {
		t.Fatalf("got %v, want a 400 %s", err, BadCSR)
	}
	if !strings.Contains(problem.Detail, want) {
		t.Errorf("detail is %q, want %q in it", problem.Detail, want)
	}
	if csr != nil {
		t.Errorf("a CSR was returned with the problem")
	}
}

func TestParseCSRNames(t *testing.T) {
	key := testKey(t)
	nameType := func(tag int) string {
		return fmt.Sprintf("only DNS names are allowed, found a general name of tag %d", tag)
	}
	utf8Text := func(s string) []byte { return tlv(cbasn1.UTF8String, []byte(s)) }
	for _, tt := range []struct {
		name       string
		subject    []byte
		extensions [][]byte
		order      []string
		want       string
	}{
		{"names in the SAN only", nil, [][]byte{san(dnsName("a.example"), dnsName("b.example"))}, []string{"a.example", "b.example"}, ""},
		{"names in another order", nil, [][]byte{san(dnsName("b.example"), dnsName("a.example"))}, []string{"a.example", "b.example"}, ""},
		{"the name in the CN only", sequence(commonName("a.example")), nil, []string{"a.example"}, ""},
		{"a name in the CN and another in the SAN", sequence(commonName("a.example")), [][]byte{san(dnsName("b.example"))}, []string{"a.example", "b.example"}, ""},
		{"a name in CN and SAN", sequence(commonName("a.example")), [][]byte{san(dnsName("a.example"))}, []string{"a.example"}, ""},
		{"a wildcard and its base", nil, [][]byte{san(dnsName("*.a.example"), dnsName("a.example"))}, []string{"a.example", "*.a.example"}, ""},
		{"upper case", sequence(commonName("A.Example")), [][]byte{san(dnsName("a.EXAMPLE"))}, []string{"a.example"}, ""},
		{"a name twice in the SAN", nil, [][]byte{san(dnsName("a.example"), dnsName("a.example"))}, []string{"a.example"}, ""},
		{"a critical SAN", nil, [][]byte{critical(oidSAN, sequence(dnsName("a.example")))}, []string{"a.example"}, ""},

		{"no names at all", nil, nil, []string{"a.example"}, "lacks a.example"},
		{"an empty SAN", nil, [][]byte{san()}, []string{"a.example"}, "lacks a.example"},
		{"a name too few", nil, [][]byte{san(dnsName("a.example"))}, []string{"a.example", "b.example"}, "lacks b.example"},
		{"a name too many", nil, [][]byte{san(dnsName("a.example"), dnsName("b.example"))}, []string{"a.example"}, "has also b.example"},
		{"another name", nil, [][]byte{san(dnsName("b.example"))}, []string{"a.example"}, "lacks a.example; it has also b.example"},
		{"a CN outside of the order", sequence(commonName("b.example")), [][]byte{san(dnsName("a.example"))}, []string{"a.example"}, "has also b.example"},
		{"a CN that is no name", sequence(commonName("My Server")), [][]byte{san(dnsName("a.example"))}, []string{"a.example"}, "has also my server"},
		{"the base for a wildcard", nil, [][]byte{san(dnsName("a.example"))}, []string{"*.a.example"}, "lacks *.a.example"},
		{"a wildcard for the base", nil, [][]byte{san(dnsName("*.a.example"))}, []string{"a.example"}, "lacks a.example"},
		{"a name below a wildcard", nil, [][]byte{san(dnsName("*.a.example"), dnsName("www.a.example"))}, []string{"*.a.example"}, "has also www.a.example"},
		{"a trailing dot", nil, [][]byte{san(dnsName("a.example."))}, []string{"a.example"}, "has also a.example."},
		{"a NUL", nil, [][]byte{san(dnsName("a.example\x00.b.example"))}, []string{"a.example"}, "lacks a.example"},
		{"a NUL in the CN", sequence(commonName("a.example\x00.b.example")), [][]byte{san(dnsName("a.example"))}, []string{"a.example"}, "has also"},
		{"an empty name", nil, [][]byte{san(dnsName("a.example"), dnsName(""))}, []string{"a.example"}, "has also"},
		{"a name that is not ASCII", nil, [][]byte{san(dnsName("b\xfccher.example"))}, []string{"a.example"}, "does not parse"},
		{"two CNs", sequence(commonName("a.example"), commonName("b.example")), nil, []string{"a.example", "b.example"}, "more than one common name"},
		{"two CNs in one RDN", sequence(tlv(cbasn1.SET, sequence(must(asn1.Marshal(oidCommonName)), utf8Text("a.example")),
			sequence(must(asn1.Marshal(oidCommonName)), utf8Text("b.example")))), nil, []string{"a.example", "b.example"}, "more than one common name"},
		{"a CN that is a number", sequence(field(oidCommonName, cbasn1.INTEGER, "\x01")), [][]byte{san(dnsName("a.example"))}, []string{"a.example"}, "no text"},

		// security-lessons.md, lesson 10: what a CA might copy.
		{"an otherName (UPN)", nil, [][]byte{san(dnsName("a.example"), generalName(0, must(asn1.Marshal(oidUPN)),
			tlv(cbasn1.Tag(0).ContextSpecific().Constructed(), utf8Text("admin@a.example"))))}, []string{"a.example"}, nameType(0)},
		{"an rfc822Name", nil, [][]byte{san(dnsName("a.example"), generalName(1, []byte("root@a.example")))}, []string{"a.example"}, nameType(1)},
		{"an rfc822Name that is the ordered name", nil, [][]byte{san(generalName(1, []byte("a.example")))}, []string{"a.example"}, nameType(1)},
		{"an x400Address", nil, [][]byte{san(dnsName("a.example"), generalName(3, sequence()))}, []string{"a.example"}, nameType(3)},
		{"a directoryName", nil, [][]byte{san(dnsName("a.example"), generalName(4, sequence(commonName("a.example"))))}, []string{"a.example"}, nameType(4)},
		{"an ediPartyName", nil, [][]byte{san(dnsName("a.example"), generalName(5, utf8Text("a")))}, []string{"a.example"}, nameType(5)},
		{"a URI", nil, [][]byte{san(dnsName("a.example"), generalName(6, []byte("https://a.example/")))}, []string{"a.example"}, nameType(6)},
		{"an IPv4 address", nil, [][]byte{san(dnsName("a.example"), generalName(7, []byte{192, 0, 2, 1}))}, []string{"a.example"}, nameType(7)},
		{"a registeredID", nil, [][]byte{san(dnsName("a.example"), generalName(8, []byte{42, 3}))}, []string{"a.example"}, nameType(8)},
		{"a constructed dNSName", nil, [][]byte{san(dnsName("a.example"), tlv(cbasn1.Tag(2).ContextSpecific().Constructed(), []byte("b.example")))}, []string{"a.example"}, "only DNS names"},
		{"a name of no such type", nil, [][]byte{san(dnsName("a.example"), tlv(cbasn1.Tag(9).ContextSpecific(), []byte("b")))}, []string{"a.example"}, nameType(9)},
		{"a name of a universal type", nil, [][]byte{san(dnsName("a.example"), utf8Text("b"))}, []string{"a.example"}, "only DNS names"},
		{"bytes after the SAN", nil, [][]byte{extension(oidSAN, slices.Concat(sequence(dnsName("a.example")), []byte{5, 0}))}, []string{"a.example"}, "parse"},
		{"a SAN that is no sequence", nil, [][]byte{extension(oidSAN, dnsName("a.example"))}, []string{"a.example"}, "parse"},
		{"two SANs in one request", nil, [][]byte{san(dnsName("a.example")), san(dnsName("b.example"))}, []string{"a.example", "b.example"}, "does not parse"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parts := csrParts{key: key, subject: tt.subject}
			if tt.extensions != nil {
				parts.attributes = [][]byte{requesting(tt.extensions...)}
			}
			expectCSR(t, parts.build(t), testProfile(), tt.want, tt.order...)
		})
	}
}

func TestParseCSRSubject(t *testing.T) {
	key := testKey(t)
	ignoring := testProfile()
	ignoring.SubjectIgnored = true
	for _, tt := range []struct {
		name          string
		fields        [][]byte
		want, ignored string // with SubjectIgnored false and true
	}{
		{"a common name alone", [][]byte{commonName("a.example")}, "", ""},
		{"an organization", [][]byte{commonName("a.example"), field(oidOrganization, cbasn1.UTF8String, "Evil Corp")}, "field 2.5.4.10", ""},
		{"an e-mail address", [][]byte{field(oidEmailAddress, cbasn1.IA5String, "root@a.example")}, "field 1.2.840.113549.1.9.1", ""},
		{"a foreign common name after an organization", [][]byte{field(oidOrganization, cbasn1.UTF8String, "Corp"), commonName("b.example")}, "field 2.5.4.10", "has also b.example"},
		{"two common names", [][]byte{commonName("a.example"), commonName("a.example")}, "more than one", "more than one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			der := csrParts{key: key, subject: sequence(tt.fields...), attributes: [][]byte{requesting(san(dnsName("a.example")))}}.build(t)
			expectCSR(t, der, testProfile(), tt.want, "a.example")
			expectCSR(t, der, ignoring, tt.ignored, "a.example")
		})
	}
}

func TestParseCSRExtensions(t *testing.T) {
	key := testKey(t)
	usage := func(bits ...int) []byte {
		var b asn1.BitString
		b.Bytes = make([]byte, 2)
		for _, bit := range bits {
			b.Bytes[bit/8] |= 0x80 >> (bit % 8)
			b.BitLength = max(b.BitLength, bit+1)
		}
		b.Bytes = b.Bytes[:(b.BitLength+7)/8]
		return extension(oidKeyUsage, must(asn1.Marshal(b)))
	}
	extended := func(ids ...asn1.ObjectIdentifier) []byte {
		return extension(oidExtKeyUsage, must(asn1.Marshal(ids)))
	}
	isFalse, isTrue := []byte{1, 1, 0}, []byte{1, 1, 0xff}
	for _, tt := range []struct {
		name      string
		extension []byte
		want      string
	}{
		{"digitalSignature and keyEncipherment", usage(0, 2), ""},
		{"keyAgreement", usage(0, 4), ""},
		{"nonRepudiation", usage(0, 1), "keyUsage"},
		{"dataEncipherment", usage(3), "keyUsage"},
		{"keyCertSign", usage(5), "keyUsage"},
		{"cRLSign", usage(0, 6), "keyUsage"},
		{"decipherOnly", usage(8), "keyUsage"},
		{"a keyUsage that is no bit string", extension(oidKeyUsage, []byte{5, 0}), "malformed keyUsage"},
		{"bytes after the keyUsage", extension(oidKeyUsage, []byte{3, 2, 7, 0x80, 5, 0}), "malformed keyUsage"},

		{"serverAuth", extended(oidServerAuth), ""},
		{"serverAuth and clientAuth", extended(oidServerAuth, oidClientAuth), ""},
		{"codeSigning", extended(oidServerAuth, oid(1, 3, 6, 1, 5, 5, 7, 3, 3)), "1.3.6.1.5.5.7.3.3"},
		{"anyExtendedKeyUsage", extended(oid(2, 5, 29, 37, 0)), "2.5.29.37.0"},
		{"smart card logon", extended(oid(1, 3, 6, 1, 4, 1, 311, 20, 2, 2)), "extended key usage"},
		{"an extKeyUsage that is no sequence", extension(oidExtKeyUsage, []byte{5, 0}), "malformed extKeyUsage"},

		{"CA:false", extension(oidBasicConstraints, sequence()), ""},
		{"CA:false spelled out", extension(oidBasicConstraints, sequence(isFalse)), ""},
		{"CA:true", extension(oidBasicConstraints, sequence(isTrue)), "CA certificate"},
		{"critical CA:true", critical(oidBasicConstraints, sequence(isTrue)), "CA certificate"},
		{"a path length", extension(oidBasicConstraints, sequence(isFalse, []byte{2, 1, 0})), "CA certificate"},
		{"malformed basicConstraints", extension(oidBasicConstraints, isTrue), "CA certificate"},

		{"subjectKeyIdentifier", extension(oidSubjectKeyID, tlv(cbasn1.OCTET_STRING, make([]byte, 20))), ""},
		{"must-staple", extension(oidTLSFeature, sequence([]byte{2, 1, 5})), "must-staple"},
		{"authorityInfoAccess", extension(oid(1, 3, 6, 1, 5, 5, 7, 1, 1), sequence()), "1.3.6.1.5.5.7.1.1"},
		{"nameConstraints", critical(oid(2, 5, 29, 30), sequence()), "2.5.29.30"},
		{"certificatePolicies", extension(oid(2, 5, 29, 32), sequence()), "2.5.29.32"},
		{"CRL distribution points", extension(oid(2, 5, 29, 31), sequence()), "2.5.29.31"},
		{"issuerAltName", extension(oid(2, 5, 29, 18), sequence(dnsName("b.example"))), "2.5.29.18"},
		{"an unknown extension", extension(oid(1, 2, 3, 4), []byte{5, 0}), "extension 1.2.3.4"},
		{"an unknown critical extension", critical(oid(1, 2, 3, 4), []byte{5, 0}), "extension 1.2.3.4"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			der := csrParts{key: key, attributes: [][]byte{requesting(tt.extension, san(dnsName("a.example")))}}.build(t)
			expectCSR(t, der, testProfile(), tt.want, "a.example")
		})
	}
}

func TestParseCSRAttributes(t *testing.T) {
	key := testKey(t)
	names := requesting(san(dnsName("a.example")))
	text := tlv(cbasn1.UTF8String, []byte("text"))
	codeSigning := sequence(extension(oidExtKeyUsage, must(asn1.Marshal([]asn1.ObjectIdentifier{oid(1, 3, 6, 1, 5, 5, 7, 3, 3)}))))
	for _, tt := range []struct {
		name       string
		attributes [][]byte
		want       string
	}{
		{"a challengePassword", [][]byte{attribute(oidChallengePassword, text), names}, ""},
		{"an unstructuredName", [][]byte{names, attribute(oidUnstructuredName, text)}, ""},
		{"an unknown attribute", [][]byte{names, attribute(oid(1, 2, 3, 4), text)}, "1.2.3.4"},
		{"a second request in an attribute of its own", [][]byte{names, attribute(oidExtensionRequest, codeSigning)}, "more than once"},
		{"a second request for the same extension", [][]byte{names, names}, "does not parse"},
		{"a second value in the attribute", [][]byte{attribute(oidExtensionRequest, sequence(san(dnsName("a.example"))), codeSigning)}, "more than once"},
		{"an attribute without a value", [][]byte{names, attribute(oidExtensionRequest)}, "extensions"},
		{"a value that is no sequence", [][]byte{attribute(oidExtensionRequest, text)}, "parse"},
		{"an attribute with a third member", [][]byte{names, sequence(must(asn1.Marshal(oidChallengePassword)), tlv(cbasn1.SET, text), text)}, "do not parse"},
		{"an attribute without a set", [][]byte{names, sequence(must(asn1.Marshal(oidChallengePassword)), text)}, "do not parse"},
		{"an attribute that is no sequence", [][]byte{names, text}, "do not parse"},
		// Microsoft's own kind of extension request, which some CAs read too.
		{"extensions under another attribute", [][]byte{names, attribute(oid(1, 3, 6, 1, 4, 1, 311, 2, 1, 14), codeSigning)}, "1.3.6.1.4.1.311.2.1.14"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			expectCSR(t, csrParts{key: key, attributes: tt.attributes}.build(t), testProfile(), tt.want, "a.example")
		})
	}
}

func generate[K any](t *testing.T) func(K, error) K {
	return func(key K, err error) K {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
}

func TestParseCSRKeysAndSignatures(t *testing.T) {
	names := [][]byte{requesting(san(dnsName("a.example")))}
	p256 := testKey(t)
	p224 := generate[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	p384 := generate[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	p521 := generate[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	rsa1024 := generate[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 1024))
	rsa2048 := generate[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// A key whose CSR is signed by another: only the first is looked at before the signature.
	rsaKey := func(n *big.Int, e int) []byte {
		bits := must(asn1.Marshal(struct {
			N *big.Int
			E int
		}{n, e}))
		return sequence(must(asn1.Marshal(struct {
			ID   asn1.ObjectIdentifier
			Null asn1.RawValue
		}{oid(1, 2, 840, 113549, 1, 1, 1), asn1.NullRawValue})), must(asn1.Marshal(asn1.BitString{Bytes: bits, BitLength: 8 * len(bits)})))
	}
	even := new(big.Int).SetBit(rsa2048.N, 0, 0)
	bySeven := new(big.Int).Sub(rsa2048.N, new(big.Int).Mod(rsa2048.N, big.NewInt(7)))
	if bySeven.Bit(0) == 0 {
		bySeven.Add(bySeven, big.NewInt(7))
	}
	huge := new(big.Int).SetBit(rsa2048.N, 9000, 1)
	offCurve := generate[[]byte](t)(x509.MarshalPKIXPublicKey(p256.Public()))
	offCurve[len(offCurve)-1] ^= 1

	only := func(types ...KeyType) *Profile {
		p := testProfile()
		p.KeyTypes = types
		return p
	}
	for _, tt := range []struct {
		name    string
		profile *Profile
		parts   csrParts
		want    string
	}{
		{"ECDSA P-256", testProfile(), csrParts{key: p256}, ""},
		{"ECDSA P-384", testProfile(), csrParts{key: p384}, ""},
		{"ECDSA P-521", testProfile(), csrParts{key: p521}, ""},
		{"Ed25519", testProfile(), csrParts{key: edwards}, ""},
		{"RSA 2048", testProfile(), csrParts{key: rsa2048, hash: crypto.SHA256, algorithm: rsaSHA256}, ""},
		{"the profile's only type", only(ECDSAP384), csrParts{key: p384}, ""},

		{"a type the profile does not have", only(ECDSAP256, RSA2048), csrParts{key: p384}, `keys of type ecdsa-p384 are not allowed under profile "internal"`},
		{"Ed25519 under a profile without", only(ECDSAP256), csrParts{key: edwards}, "ed25519"},
		{"RSA under a profile without", only(ECDSAP256), csrParts{key: rsa2048, hash: crypto.SHA256, algorithm: rsaSHA256}, "rsa-2048"},
		{"a profile without types", only(), csrParts{key: p256}, "not allowed"},
		{"ECDSA P-224", testProfile(), csrParts{key: p224}, "curve P-224"},
		{"a point off the curve", testProfile(), csrParts{key: p256, publicKey: offCurve}, "does not parse"},
		{"RSA 1024", testProfile(), csrParts{key: rsa1024, hash: crypto.SHA256, algorithm: rsaSHA256}, "at least 2048 bits, this one has 1024"},
		{"an even RSA modulus", testProfile(), csrParts{key: p256, publicKey: rsaKey(even, 65537)}, "modulus is even"},
		{"an RSA modulus divisible by 7", testProfile(), csrParts{key: p256, publicKey: rsaKey(bySeven, 65537)}, "small factor"},
		{"RSA beyond 8192 bits", testProfile(), csrParts{key: p256, publicKey: rsaKey(huge, 65537)}, "at most 8192 bits"},
		{"RSA exponent 1", testProfile(), csrParts{key: p256, publicKey: rsaKey(rsa2048.N, 1)}, "exponent"},
		{"RSA exponent 2", testProfile(), csrParts{key: p256, publicKey: rsaKey(rsa2048.N, 2)}, "exponent"},
		{"RSA exponent 65536", testProfile(), csrParts{key: p256, publicKey: rsaKey(rsa2048.N, 65536)}, "exponent"},
		{"RSA exponent 0", testProfile(), csrParts{key: p256, publicKey: rsaKey(rsa2048.N, 0)}, "parse"},
		{"a negative RSA modulus", testProfile(), csrParts{key: p256, publicKey: rsaKey(new(big.Int).Neg(rsa2048.N), 65537)}, "parse"},

		{"an ECDSA signature over SHA-1", testProfile(), csrParts{key: p256, hash: crypto.SHA1, algorithm: ecdsaSHA1}, "weak algorithm (ECDSA-SHA1)"},
		{"an RSA signature over SHA-1", testProfile(), csrParts{key: rsa2048, hash: crypto.SHA1, algorithm: rsaSHA1}, "weak algorithm (SHA1-RSA)"},
		{"an RSA signature over MD5", testProfile(), csrParts{key: rsa2048, hash: crypto.SHA256, algorithm: rsaMD5}, "weak algorithm (MD5-RSA)"},
		{"an unknown signature algorithm", testProfile(), csrParts{key: p256, hash: crypto.SHA256, algorithm: unknownAlgo}, "unsupported or weak"},
		{"a signature of another kind of key", testProfile(), csrParts{key: p256, hash: crypto.SHA256, algorithm: rsaSHA256}, "signature does not verify"},
		{"a signature by another key", testProfile(), csrParts{key: p256, publicKey: generate[[]byte](t)(x509.MarshalPKIXPublicKey(testKey(t).Public()))}, "signature does not verify"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.parts.attributes = names
			expectCSR(t, tt.parts.build(t), tt.profile, tt.want, "a.example")
		})
	}

	good := csrParts{key: p256, attributes: names}.build(t)
	pss, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		DNSNames: []string{"a.example"}, SignatureAlgorithm: x509.SHA256WithRSAPSS,
	}, rsa2048)
	if err != nil {
		t.Fatal(err)
	}
	broken := slices.Clone(good)
	broken[len(broken)-1] ^= 1
	tampered := bytes.Replace(good, []byte("a.example"), []byte("b.example"), 1)
	for _, tt := range []struct {
		name string
		der  []byte
		want string
	}{
		{"an RSA-PSS signature", pss, ""},
		{"nothing", nil, "does not parse"},
		{"one byte", []byte{0x30}, "does not parse"},
		{"all but the last byte", good[:len(good)-1], "does not parse"},
		{"a byte after the end", append(slices.Clone(good), 0), "does not parse"},
		{"a second CSR after the end", append(slices.Clone(good), good...), "does not parse"},
		{"PEM instead of DER", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: good}), "must be DER"},
		{"a broken signature", broken, "signature does not verify"},
		{"a name changed after the signature", tampered, "signature does not verify"},
		{"more than the limit", make([]byte, MaxCSR+1), "larger than 65536 bytes"},
		{"garbage of the limit's size", make([]byte, MaxCSR), "does not parse"},
	} {
		t.Run(tt.name, func(t *testing.T) { expectCSR(t, tt.der, testProfile(), tt.want, "a.example") })
	}
}

func TestTypeOf(t *testing.T) {
	odd := func(bits uint) *big.Int { // of that size, without small factors
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		for n.Add(n, big.NewInt(1)); ; n.Add(n, big.NewInt(2)) {
			if CheckRSA(&rsa.PublicKey{N: n, E: 3}) == nil {
				return n
			}
		}
	}
	for _, tt := range []struct {
		name string
		key  crypto.PublicKey
		want KeyType
	}{
		{"P-256", &ecdsa.PublicKey{Curve: elliptic.P256()}, ECDSAP256},
		{"P-384", &ecdsa.PublicKey{Curve: elliptic.P384()}, ECDSAP384},
		{"P-521", &ecdsa.PublicKey{Curve: elliptic.P521()}, ECDSAP521},
		{"P-224", &ecdsa.PublicKey{Curve: elliptic.P224()}, ""},
		{"Ed25519", ed25519.PublicKey(make([]byte, 32)), Ed25519},
		{"RSA 2048, exponent 3", &rsa.PublicKey{N: odd(2048), E: 3}, RSA2048},
		{"RSA 3072", &rsa.PublicKey{N: odd(3072), E: 65537}, RSA3072},
		{"RSA 4096", &rsa.PublicKey{N: odd(4096), E: 65537}, RSA4096},
		{"RSA 2056", &rsa.PublicKey{N: odd(2056), E: 65537}, ""},
		{"RSA 8192", &rsa.PublicKey{N: odd(8192), E: 65537}, ""},
		{"an RSA private key", &rsa.PrivateKey{}, ""},
		{"nothing", nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := TypeOf(tt.key)
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("TypeOf = %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestCheckRSALimits(t *testing.T) {
	if err := CheckRSA(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2046), E: 3}); err == nil || !strings.Contains(err.Error(), "2047") {
		t.Errorf("2047 bits: %v", err)
	}
	if err := CheckRSA(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 8192), E: 3}); err == nil || !strings.Contains(err.Error(), "8193") {
		t.Errorf("8193 bits: %v", err)
	}
}

// The detail goes into JSON, and a hundred foreign names must not fill it.
func TestParseCSRProblemIsShort(t *testing.T) {
	var names [][]byte
	for i := range 100 {
		names = append(names, dnsName(fmt.Sprintf("%d.%s.example", i, strings.Repeat("x", 300))))
	}
	der := csrParts{key: testKey(t), attributes: [][]byte{requesting(san(names...))}}.build(t)
	_, err := ParseCSR(der, dns("a.example"), testProfile())
	problem := AsProblem(err)
	if !strings.Contains(problem.Detail, "and 90 more") || len(problem.Detail) > 4000 {
		t.Errorf("detail of %d bytes: %s", len(problem.Detail), problem.Detail)
	}
	if !utf8.ValidString(problem.Detail) {
		t.Errorf("detail is not UTF-8: %q", problem.Detail)
	}
}

// checkParsed states what holds for a CSR that passed: whatever a CA may read
// in it are the order's names.
func checkParsed(t *testing.T, csr *x509.CertificateRequest, ids []Identifier, err error) {
	t.Helper()
	if err != nil {
		if problem, ok := err.(*Problem); !ok || problem.Type != BadCSR || problem.Detail == "" {
			t.Fatalf("got %v, want a %s problem", err, BadCSR)
		}
		return
	}
	if len(csr.EmailAddresses)+len(csr.IPAddresses)+len(csr.URIs) > 0 {
		t.Fatalf("passed with other kinds of names: %+v", csr)
	}
	got := map[string]bool{}
	for _, name := range append(slices.Clone(csr.DNSNames), csr.Subject.CommonName) {
		if name != "" {
			got[strings.ToLower(name)] = true
		}
	}
	want := map[string]bool{}
	for _, id := range ids {
		want[id.Value] = true
		if !got[id.Value] {
			t.Fatalf("passed without %q: SAN %q, CN %q", id.Value, csr.DNSNames, csr.Subject.CommonName)
		}
	}
	for name := range got {
		if !want[name] {
			t.Fatalf("passed with %q beside the order's %v", name, ids)
		}
	}
}

func FuzzParseCSR(f *testing.F) {
	key := testKey(f)
	f.Add(certificateRequest(f, key, "a.example", "*.b.example"), "a.example,*.b.example")
	f.Add(certificateRequest(f, key, "a.example"), "b.example")
	f.Add(csrParts{key: key, subject: sequence(commonName("a.example"))}.build(f), "a.example")
	f.Add(csrParts{key: key, attributes: [][]byte{
		attribute(oidChallengePassword, tlv(cbasn1.UTF8String, []byte("secret"))),
		requesting(extension(oidExtKeyUsage, sequence()), san(dnsName("a.example"), generalName(7, []byte{192, 0, 2, 1}))),
	}}.build(f), "a.example")
	f.Add([]byte{0x30, 0x80, 0, 0}, "")
	f.Fuzz(func(t *testing.T, der []byte, names string) {
		ids := dns(strings.Split(names, ",")...)
		csr, err := ParseCSR(der, ids, testProfile())
		checkParsed(t, csr, ids, err)
	})
}

// FuzzParseSignedCSR gets behind the signature, which a fuzzer cannot forge.
func FuzzParseSignedCSR(f *testing.F) {
	empty := []byte{0x30, 0}
	for _, extensions := range [][][]byte{
		{san(dnsName("a.example"), dnsName("*.b.example"))},
		{san(dnsName("a.example"), dnsName("*.b.example")), extension(oidExtKeyUsage, sequence(must(asn1.Marshal(oidServerAuth)))), extension(oidKeyUsage, []byte{3, 2, 5, 0xa0})},
		{san(dnsName("a.example"), generalName(1, []byte("root@a.example")))},
		{extension(oidBasicConstraints, sequence([]byte{1, 1, 0xff})), extension(oidExtKeyUsage, sequence())},
	} {
		f.Add(empty, requesting(extensions...))
		f.Add(sequence(commonName("a.example")), requesting(extensions...))
	}
	f.Add(empty, attribute(oidExtensionRequest, sequence(), sequence()))
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	ids := dns("a.example", "*.b.example")
	f.Fuzz(func(t *testing.T, subject, attributes []byte) {
		if len(subject)+len(attributes) > MaxCSR {
			return
		}
		csr, err := ParseCSR(csrParts{key: key, subject: subject, attributes: [][]byte{attributes}}.build(t), ids, testProfile())
		checkParsed(t, csr, ids, err)
	})
}
