package acme

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	_ "crypto/sha1" // for the signatures that must be refused
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

func testKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// certificateRequest is a plain CSR such as clients send: names in the SAN only.
func certificateRequest(t testing.TB, key crypto.Signer, names ...string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// A csrParts is a CSR in pieces, for what crypto/x509 does not make.
type csrParts struct {
	key        crypto.Signer
	hash       crypto.Hash   // 0 for Ed25519
	algorithm  asn1.RawValue // of the signature
	publicKey  []byte        // DER SubjectPublicKeyInfo, nil for that of key
	subject    []byte        // DER Name, nil for an empty one
	attributes [][]byte      // DER Attributes
	inside     []byte        // added to the outermost SEQUENCE, after the signature
}

var (
	ecdsaSHA256 = algorithm(1, 2, 840, 10045, 4, 3, 2)
	ecdsaSHA1   = algorithm(1, 2, 840, 10045, 4, 1)
	rsaSHA256   = algorithm(1, 2, 840, 113549, 1, 1, 11)
	rsaSHA1     = algorithm(1, 2, 840, 113549, 1, 1, 5)
	rsaMD5      = algorithm(1, 2, 840, 113549, 1, 1, 4)
	ed25519Pure = algorithm(1, 3, 101, 112)
	unknownAlgo = algorithm(1, 2, 3, 4)
)

func algorithm(oid ...int) asn1.RawValue {
	id := pkix.AlgorithmIdentifier{Algorithm: oid}
	if oid[1] == 2 && oid[2] == 840 && oid[3] == 113549 {
		id.Parameters = asn1.NullRawValue
	}
	return asn1.RawValue{FullBytes: must(asn1.Marshal(id))}
}

// must is for encoding constants, which cannot fail.
func must(der []byte, err error) []byte {
	if err != nil {
		return []byte("cannot be encoded: " + err.Error())
	}
	return der
}

func (p csrParts) build(t testing.TB) []byte {
	t.Helper()
	if p.publicKey == nil {
		var err error
		if p.publicKey, err = x509.MarshalPKIXPublicKey(p.key.Public()); err != nil {
			t.Fatal(err)
		}
	}
	if p.subject == nil {
		p.subject = []byte{0x30, 0}
	}
	if p.algorithm.FullBytes == nil {
		p.hash, p.algorithm = crypto.SHA256, ecdsaSHA256
		if _, ok := p.key.(ed25519.PrivateKey); ok {
			p.hash, p.algorithm = 0, ed25519Pure
		}
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(p.subject)
		b.AddBytes(p.publicKey)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			for _, attribute := range p.attributes {
				b.AddBytes(attribute)
			}
		})
	})
	tbs, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	digest := tbs
	if p.hash != 0 {
		h := p.hash.New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	signature, err := p.key.Sign(rand.Reader, digest, p.hash)
	if err != nil {
		t.Fatal(err)
	}
	return sequence(tbs, p.algorithm.FullBytes, must(asn1.Marshal(asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)})), p.inside)
}

func tlv(tag cbasn1.Tag, contents ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(contents...)) })
	return must(b.Bytes())
}

func sequence(contents ...[]byte) []byte { return tlv(cbasn1.SEQUENCE, contents...) }

func oid(ids ...int) asn1.ObjectIdentifier { return ids }

// attribute is a PKCS #10 attribute with those values.
func attribute(id asn1.ObjectIdentifier, values ...[]byte) []byte {
	return sequence(must(asn1.Marshal(id)), tlv(cbasn1.SET, values...))
}

// requesting is the attribute that asks for extensions.
func requesting(extensions ...[]byte) []byte {
	return attribute(oidExtensionRequest, sequence(extensions...))
}

func extension(id asn1.ObjectIdentifier, value []byte) []byte {
	return sequence(must(asn1.Marshal(id)), tlv(cbasn1.OCTET_STRING, value))
}

func critical(id asn1.ObjectIdentifier, value []byte) []byte {
	return sequence(must(asn1.Marshal(id)), []byte{1, 1, 0xff}, tlv(cbasn1.OCTET_STRING, value))
}

// generalName is one name of a subject alternative name extension, in the form
// that its tag demands (RFC 5280, Section 4.2.1.6).
func generalName(tag uint8, contents ...[]byte) []byte {
	t := cbasn1.Tag(tag).ContextSpecific()
	switch tag {
	case 0, 3, 4, 5:
		t = t.Constructed()
	}
	return tlv(t, contents...)
}

func dnsName(name string) []byte { return generalName(2, []byte(name)) }

func san(generalNames ...[]byte) []byte { return extension(oidSAN, sequence(generalNames...)) }

// field is a relative distinguished name of one attribute, its value in the
// string type of that tag.
func field(id asn1.ObjectIdentifier, tag cbasn1.Tag, value string) []byte {
	return tlv(cbasn1.SET, sequence(must(asn1.Marshal(id)), tlv(tag, []byte(value))))
}

func commonName(value string) []byte { return field(oidCommonName, cbasn1.UTF8String, value) }
