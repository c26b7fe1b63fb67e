package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func write(t *testing.T, file string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestKeysOfClientsAreRead(t *testing.T) {
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	ecKey := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk := func(members map[string]string) []byte { return must[[]byte](t)(json.Marshal(members)) }
	block := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	for name, tt := range map[string]struct {
		data []byte
		want crypto.Signer
	}{
		"certbot's RSA": {jwk(map[string]string{"kty": "RSA", "n": encode(rsaKey.N.Bytes()), "e": encode(big.NewInt(int64(rsaKey.E)).Bytes()),
			"d": encode(rsaKey.D.Bytes()), "p": encode(rsaKey.Primes[0].Bytes()), "q": encode(rsaKey.Primes[1].Bytes())}), rsaKey},
		"an EC JWK":     {jwk(map[string]string{"kty": "EC", "crv": "P-384", "d": encode(must[[]byte](t)(ecKey.Bytes()))}), ecKey},
		"an OKP JWK":    {jwk(map[string]string{"kty": "OKP", "crv": "Ed25519", "d": encode(edKey.Seed())}), edKey},
		"lego's EC":     {block("EC PRIVATE KEY", must[[]byte](t)(x509.MarshalECPrivateKey(ecKey))), ecKey},
		"lego's RSA":    {block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), rsaKey},
		"PKCS #8":       {block("PRIVATE KEY", must[[]byte](t)(x509.MarshalPKCS8PrivateKey(edKey))), edKey},
		"nothing":       {nil, nil},
		"a certificate": {block("CERTIFICATE", []byte("x")), nil},
		"another JWK":   {[]byte(`{"kty":"oct","k":"AAAA"}`), nil},
		"half an RSA":   {[]byte(`{"kty":"RSA","n":"AQAB","e":"AQAB"}`), nil},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := readKey(write(t, filepath.Join(t.TempDir(), "key"), tt.data))
			if tt.want == nil {
				if err == nil {
					t.Errorf("read as %T", key)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(tt.want.Public()) {
				t.Errorf("got another key, a %T", key)
			}
			c := &client{key: key, nonce: "n"}
			if _, err := c.sign("https://acme.example/x", nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAccountsAreFoundWhereClientsKeepThem(t *testing.T) {
	const server = "https://acme.example:8443/corp/directory"
	dir := t.TempDir()
	certbot := write(t, filepath.Join(dir, "certbot/accounts/acme.example:8443/corp/directory/0123/private_key.json"), nil)
	lego := write(t, filepath.Join(dir, "lego/accounts/acme.example_8443/me@example.com/keys/me@example.com.key"), nil)
	write(t, filepath.Join(dir, "lego/accounts/other.example/me@example.com/keys/me@example.com.key"), nil)
	for _, name := range []string{"a", "b"} {
		write(t, filepath.Join(dir, "two/accounts/acme.example:8443/corp/directory", name, "private_key.json"), nil)
	}
	for name, tt := range map[string]struct{ certbot, lego, file, want string }{
		"certbot's":       {filepath.Join(dir, "certbot"), "", "", certbot},
		"lego's":          {"", filepath.Join(dir, "lego"), "", lego},
		"a file":          {"", "", "key.pem", "key.pem"},
		"none":            {filepath.Join(dir, "empty"), "", "", "register one first"},
		"several":         {filepath.Join(dir, "two"), "", "", "several accounts"},
		"nothing is said": {"", "", "", "one of --certbot"},
		"two are said":    {"x", "y", "", "one of --certbot"},
	} {
		got, err := accountKeyFile(server, tt.certbot, tt.lego, tt.file)
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != tt.want || err != nil && !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}

// An acmeServer answers what a test says, and refuses the first nonces.
type acmeServer struct {
	*httptest.Server
	mu       sync.Mutex
	badNonce int
	polls    int
	nonces   int
	final    string // status of the authorization after some polls
	offered  string // type of the challenge
	headers  []map[string]any
}

func (s *acmeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nonces++
	w.Header().Set("Replay-Nonce", fmt.Sprint("nonce", s.nonces))
	if r.URL.Path == "/directory" {
		fmt.Fprintf(w, `{"newNonce":"%[1]s/nonce","newAccount":"%[1]s/account","newOrder":"%[1]s/order"}`, s.URL)
		return
	}
	if r.URL.Path == "/nonce" {
		return
	}
	var message struct{ Protected, Payload octets }
	var header map[string]any
	if json.NewDecoder(r.Body).Decode(&message) != nil || json.Unmarshal(message.Protected, &header) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.headers = append(s.headers, header)
	if s.badNonce > 0 {
		s.badNonce--
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"type":"urn:ietf:params:acme:error:badNonce"}`)
		return
	}
	switch r.URL.Path {
	case "/account":
		w.Header().Set("Location", s.URL+"/account/1")
		fmt.Fprint(w, `{}`)
	case "/order":
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"authorizations":["%s/authz"]}`, s.URL)
	case "/authz":
		status := "pending"
		if s.polls++; s.polls == 3 {
			w.WriteHeader(http.StatusServiceUnavailable) // a server may be away for a moment
			return
		}
		if s.polls > 4 {
			status = s.final
		}
		fmt.Fprintf(w, `{"identifier":{"type":"dns","value":"a.example"},"wildcard":true,"status":%q,"challenges":[{"type":%q,"url":"%s/challenge","status":"pending",
			"recordType":"TXT","recordName":"_v.a.example","recordValue":"a value; $(touch oops)","recordExpires":"2026-01-01T00:00:00Z",
			"error":{"type":"urn:ietf:params:acme:error:dns","detail":"no such record"}}]}`, status, s.offered, s.URL)
	case "/challenge":
		fmt.Fprint(w, `{}`)
	}
}

func newServer(t *testing.T, final, offered string) *acmeServer {
	s := &acmeServer{final: final, offered: offered, badNonce: 2}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func TestValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		final, offered string
		want           string
		calls          string // of the program
		err            string
	}{
		"validated":   {"valid", "ncp-dcv-01", "*.a.example: validated", "present _v.a.example. a value; $(touch oops)\ncleanup _v.a.example. a value; $(touch oops)\n", ""},
		"refused":     {"invalid", "ncp-dcv-01", "", "present _v.a.example. a value; $(touch oops)\n", "no such record"},
		"not offered": {"valid", "http-01", "nothing to do", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, tt.final, tt.offered)
			dir := t.TempDir()
			calls := filepath.Join(dir, "calls")
			program := write(t, filepath.Join(dir, "program"), []byte("#!/bin/sh\necho \"$1 $2 $3\" >>"+calls+"\n"))
			if err := os.Chmod(program, 0o700); err != nil {
				t.Fatal(err)
			}
			key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
			var out bytes.Buffer
			c := &client{http: s.Client(), key: key, wait: func(context.Context, time.Duration) error { return nil }}
			err := validate(t.Context(), c, options{server: s.URL + "/directory", challenge: "ncp-dcv-01", publish: program, domains: []string{"*.a.example"}}, &out)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got %v, want %q", err, tt.err)
			}
			if !strings.Contains(out.String(), tt.want) {
				t.Errorf("said %q, want %q", &out, tt.want)
			}
			if got, _ := os.ReadFile(calls); string(got) != tt.calls {
				t.Errorf("the program was run as %q, want %q", got, tt.calls)
			}
			seen := map[any]bool{}
			for i, h := range s.headers {
				if h["kid"] == nil && h["jwk"] == nil || h["kid"] != nil && h["jwk"] != nil || h["alg"] != "ES256" || seen[h["nonce"]] {
					t.Errorf("request %d has the header %v", i, h)
				}
				seen[h["nonce"]] = true
			}
		})
	}
}

func TestWithoutAProgramTheRecordIsPrinted(t *testing.T) {
	s := newServer(t, "valid", "ncp-dcv-01")
	dir := t.TempDir()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	file := write(t, filepath.Join(dir, "key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must[[]byte](t)(x509.MarshalECPrivateKey(key))}))
	var out bytes.Buffer
	c := &client{http: s.Client(), key: must[crypto.Signer](t)(readKey(file)), wait: func(context.Context, time.Duration) error { return nil }}
	if err := validate(t.Context(), c, options{server: s.URL + "/directory", challenge: "ncp-dcv-01", domains: []string{"*.a.example"}}, &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), `_v.a.example. TXT "a value; $(touch oops)"`) {
		t.Errorf("said %q", &out)
	}
	if err := run(t.Context(), []string{"--server", s.URL + "/directory"}, &out); err == nil || !strings.Contains(err.Error(), "a domain are needed") {
		t.Errorf("without a domain: %v", err)
	}
}
