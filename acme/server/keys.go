package server

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/acme-bridge/acme-bridge/acme"
)

// algorithms are the signature algorithms that are accepted (RFC 8555, Section
// 6.2): none of them symmetric, so that a public key never serves as a MAC key.
var algorithms = []jose.SignatureAlgorithm{
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA, jose.RS256, jose.RS384, jose.RS512, jose.PS256,
}

// An accountKey is a public key that clients sign with.
type accountKey struct {
	public     crypto.PublicKey
	jwk        []byte // required members only
	thumbprint string // RFC 7638, SHA-256, base64url
}

// publicMembers are the members of a JWK that make a public key (RFC 7638,
// Section 3.2; RFC 8037, Section 2).
type publicMembers struct {
	Kty string `json:"kty"`
	Crv string `json:"crv,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
}

// parseKey reads a JWK that a client sent, and refuses what is no strong public
// key with badPublicKey.
func parseKey(raw []byte) (*accountKey, error) {
	bad := func(err error) error { return acme.Problemf(acme.BadPublicKey, "jwk: %v", err) }
	var members struct {
		publicMembers
		D   jsontext.Value `json:"d"`
		P   jsontext.Value `json:"p"`
		Q   jsontext.Value `json:"q"`
		DP  jsontext.Value `json:"dp"`
		DQ  jsontext.Value `json:"dq"`
		QI  jsontext.Value `json:"qi"`
		Oth jsontext.Value `json:"oth"`
		K   jsontext.Value `json:"k"`
	}
	if err := unmarshal(raw, &members); err != nil {
		return nil, acme.Problemf(acme.Malformed, "jwk is not a JSON object of a key").WithCause(err)
	}
	switch {
	case members.Kty == "oct" || members.K != nil:
		return nil, bad(errors.New("a symmetric key"))
	case members.D != nil, members.P != nil, members.Q != nil, members.DP != nil, members.DQ != nil, members.QI != nil, members.Oth != nil:
		return nil, bad(errors.New("it holds a private key; consider that key compromised"))
	}
	for _, value := range []string{members.X, members.Y, members.N, members.E} {
		if _, err := strictBase64(value); err != nil {
			return nil, bad(errors.New("its values must be base64url without padding"))
		}
	}
	// The library reads base64 less strictly, and members that do not matter.
	public, err := json.Marshal(members.publicMembers)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(public); err != nil {
		return nil, acme.Problemf(acme.BadPublicKey, "jwk: it is not a well-formed key of a supported kind").WithCause(err)
	}
	switch public := key.Key.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey: // go-jose has checked the point
	case *rsa.PublicKey:
		if err := acme.CheckRSA(public); err != nil {
			return nil, bad(err)
		}
		if public.E > math.MaxInt32 {
			return nil, bad(errors.New("the RSA exponent is too large"))
		}
	default:
		return nil, bad(errors.New("keys of this kind are not supported"))
	}
	return newAccountKey(key.Key)
}

// newAccountKey gives a public key its JWK, without members that do not matter
// such as "kid" and "use", and its thumbprint.
func newAccountKey(public crypto.PublicKey) (*accountKey, error) {
	key := jose.JSONWebKey{Key: public}
	jwk, err := key.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	sum, err := key.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("hash key: %w", err)
	}
	return &accountKey{public: public, jwk: jwk, thumbprint: base64.RawURLEncoding.EncodeToString(sum)}, nil
}

// fits reports whether a key is of the kind that alg signs with: the key, not
// the header, says how a signature is verified.
func (k *accountKey) fits(alg jose.SignatureAlgorithm) bool {
	switch k := k.public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return alg == jose.ES256
		case elliptic.P384():
			return alg == jose.ES384
		case elliptic.P521():
			return alg == jose.ES512
		}
	case *rsa.PublicKey:
		return slices.Contains([]jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256}, alg)
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	}
	return false
}

// storedKey returns the parsed key of an account. The cache is by the key
// itself, so that it can never be out of date.
func (s *Server) storedKey(a *acme.Account) (*accountKey, error) {
	if k, ok := s.keys.Get(string(a.Key)); ok {
		return k, nil
	}
	k, err := parseKey(a.Key)
	if err != nil {
		return nil, fmt.Errorf("parse stored key of account %s: %w", a.ID, err)
	}
	s.keys.Add(string(a.Key), k)
	return k, nil
}
