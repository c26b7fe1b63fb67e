package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// accountKeyFile finds the key of the client's account at the server.
func accountKeyFile(server, certbot, lego, file string) (string, error) {
	given := 0
	for _, s := range []string{certbot, lego, file} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return "", errors.New("one of --certbot, --lego and --account-key is needed")
	}
	if file != "" {
		return file, nil
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("%q is no URL of a directory", server)
	}
	// certbot: accounts/HOST:PORT/PATH/ID/private_key.json
	pattern := filepath.Join(certbot, "accounts", plain(u.Host), plain(filepath.FromSlash(u.Path)), "*", "private_key.json")
	if lego != "" { // accounts/HOST_PORT/EMAIL/keys/EMAIL.key
		pattern = filepath.Join(lego, "accounts", plain(strings.ReplaceAll(u.Host, ":", "_")), "*", "keys", "*.key")
	}
	found, err := filepath.Glob(pattern)
	switch {
	case err != nil:
		return "", err
	case len(found) == 0:
		return "", fmt.Errorf("no account for this server: %s does not exist; register one first", pattern)
	case len(found) > 1:
		return "", fmt.Errorf("several accounts for this server: %s; name one with --account-key", strings.Join(found, ", "))
	}
	return found[0], nil
}

// plain takes the meaning from characters of a pattern.
func plain(s string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// maxKey bounds what is read of a key's file.
const maxKey = 64 << 10

// readKey reads a private key in PEM (lego, openssl) or as a JWK (certbot).
func readKey(file string) (crypto.Signer, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if len(data) > maxKey {
		return nil, errors.New("is too large")
	}
	if block, _ := pem.Decode(data); block != nil {
		return parsePEM(block)
	}
	return parseJWK(data)
}

func parsePEM(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return signer, nil
}

// octets are base64url without padding (RFC 7515, Section 2).
type octets []byte

func (o *octets) UnmarshalText(text []byte) error {
	b, err := base64.RawURLEncoding.DecodeString(string(text))
	*o = b
	return err
}

func (o octets) int() *big.Int { return new(big.Int).SetBytes(o) }

var curves = map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}

// parseJWK reads a private key of RFC 7517 (RFC 7518, Section 6; RFC 8037).
func parseJWK(data []byte) (crypto.Signer, error) {
	var k struct {
		Kty, Crv         string
		N, E, D, P, Q, X octets
	}
	if err := json.Unmarshal(data, &k); err != nil {
		return nil, errors.New("is neither PEM nor a JWK")
	}
	switch k.Kty {
	case "RSA":
		if len(k.E) == 0 || len(k.E) > 4 {
			return nil, errors.New("RSA exponent is out of range")
		}
		key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: k.N.int(), E: int(k.E.int().Int64())}, D: k.D.int(), Primes: []*big.Int{k.P.int(), k.Q.int()}}
		if err := key.Validate(); err != nil {
			return nil, err
		}
		key.Precompute()
		return key, nil
	case "EC":
		curve := curves[k.Crv]
		if curve == nil {
			return nil, fmt.Errorf("curve %q is not supported", k.Crv)
		}
		return ecdsa.ParseRawPrivateKey(curve, k.D)
	case "OKP":
		if k.Crv != "Ed25519" || len(k.D) != ed25519.SeedSize {
			return nil, fmt.Errorf("curve %q is not supported", k.Crv)
		}
		return ed25519.NewKeyFromSeed(k.D), nil
	}
	return nil, fmt.Errorf("key type %q is not supported", k.Kty)
}
