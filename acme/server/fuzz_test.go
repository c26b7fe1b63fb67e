package server

import (
	"crypto"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/acme-bridge/acme-bridge/acme"
)

// FuzzEnvelope (lessons 6 and 22): whatever comes, parseEnvelope does not panic,
// refuses with a problem, and lets pass nothing but one flattened JWS.
func FuzzEnvelope(f *testing.F) {
	enc := base64.RawURLEncoding.EncodeToString
	flat := func(header, payload string) string {
		return `{"protected":"` + enc([]byte(header)) + `","payload":"` + enc([]byte(payload)) + `","signature":"AAAA"}`
	}
	for _, seed := range []string{
		``, `{}`, `null`, `[]`, `""`, `e30.e30.AAAA`,
		flat(`{"alg":"ES256","nonce":"AAAA","url":"https://a.example/new-order","kid":"https://a.example/account/1"}`, `{}`),
		flat(`{"alg":"ES256","jwk":{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"},"nonce":"AAAA","url":"https://a.example/"}`, ``),
		flat(`{"alg":"RS256","crit":["b64"],"b64":false}`, `x`), flat(`{"alg":"none"}`, `{}`), flat(`{"alg":"HS256"}`, `{}`),
		flat(`{"alg":"ES256","alg":"none"}`, `{}`), flat(`[[[[`, `{}`), flat(`{"alg":"ES256"}`, "\xff"),
		`{"protected":"e30","payload":"","signature":"AAAA","header":null}`,
		`{"payload":"","signatures":[{"protected":"e30","signature":"AAAA"},{"protected":"e30","signature":"AAAA"}]}`,
		`{"protected":"e30=","payload":"e30","signature":"A\nAA"}`, `{"protected":"e30","payload":"","payload":"","signature":""}`,
		`{"protected":"e30","encrypted_key":"AAAA","iv":"AAAA","ciphertext":"AAAA","tag":"AAAA"}`, strings.Repeat(`{"a":`, 100),
	} {
		f.Add([]byte(seed))
	}
	key, err := parseKey([]byte(goodJWK))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		env, err := parseEnvelope(body)
		if err != nil {
			wantClientsFault(t, err)
			return
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(body, &members); err != nil {
			t.Fatalf("passed, and is no JSON object: %v", err)
		}
		for _, name := range []string{"header", "signatures"} {
			if _, ok := members[name]; ok {
				t.Errorf("passed with the member %q", name)
			}
		}
		for _, name := range []string{"protected", "payload", "signature"} {
			var text string
			if err := json.Unmarshal(members[name], &text); err != nil {
				t.Errorf("passed, and %s is %s", name, members[name])
			}
			if b, err := base64.RawURLEncoding.DecodeString(text); err != nil || enc(b) != text {
				t.Errorf("passed, and %s is not strict base64url: %q", name, text)
			}
		}
		if strings.Count(env.compact, ".") != 2 {
			t.Errorf("the compact form has other than three parts: %q", env.compact)
		}
		if alg := env.header.Alg; alg == "" || alg == "none" || strings.HasPrefix(alg, "HS") {
			t.Errorf("passed with alg %q", alg)
		}
		if err := verify(env, key); err == nil {
			t.Error("verified, though nobody has the key")
		} else {
			wantClientsFault(t, err)
		}
		if env.header.JWK != nil {
			if _, err := parseKey(env.header.JWK); err != nil {
				wantClientsFault(t, err)
			}
		}
	})
}

// goodJWK is the key of RFC 7515, Appendix A.3, whose private half no test uses.
const goodJWK = `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`

// wantClientsFault fails unless err is a problem of the 4xx kind that may be shown.
func wantClientsFault(t *testing.T, err error) {
	t.Helper()
	p := acme.AsProblem(err)
	if p.Status < 400 || p.Status >= 500 || p.Detail == "" {
		t.Errorf("answered with %d %q: %v", p.Status, p.Detail, err)
	}
	if _, err := json.Marshal(p); err != nil {
		t.Errorf("the problem does not encode: %v", err)
	}
}

// FuzzPayload: a newOrder payload is refused as the client's fault, or gives
// identifiers in their one spelling.
func FuzzPayload(f *testing.F) {
	for _, seed := range []string{
		`{"identifiers":[{"type":"dns","value":"a.example"}]}`, `{"identifiers":[{"type":"dns","value":"*.A.Example"},{"type":"dns","value":"*.a.example"}]}`,
		`{"identifiers":[{"type":"dns","value":"xn--bcher-kva.example"}],"profile":"p"}`, `{"identifiers":[{"type":"ip","value":"192.0.2.1"}]}`,
		`{"identifiers":[{"type":"dns","value":"a.example"}],"notBefore":"0001-01-01T00:00:00Z","notAfter":"2030-01-01T00:00:00+09:00"}`,
		`{"identifiers":null}`, `{"identifiers":[null]}`, `{"identifiers":[[]]}`, `{}`, `null`, `[]`, `{} {}`, `{"profile":"nonesuch"}`,
		`{"identifiers":[{"type":"dns","value":"a\u0000"}]}`, `{"identifiers":[{"type":"dns","value":"` + strings.Repeat("a", 300) + `"}]}`,
	} {
		f.Add([]byte(seed))
	}
	dir := &Directory{DefaultProfile: "p", Profiles: map[string]*acme.Profile{"p": {
		Name: "p", Challenges: []acme.ChallengeType{acme.HTTP01, acme.DNS01},
		Identifiers: acme.IdentifierPolicy{Types: []acme.IdentifierType{acme.TypeDNS}, Wildcards: true, Max: 100},
	}}}
	f.Fuzz(func(t *testing.T, payload []byte) {
		r := &request{payload: payload, dir: dir}
		var body newOrderBody
		if err := r.decode(&body); err != nil {
			wantClientsFault(t, err)
			return
		}
		profile, ids, err := parseNewOrder(dir, &body)
		if err != nil {
			wantClientsFault(t, err)
			return
		}
		if profile == nil || len(ids) == 0 || len(ids) > 100 {
			t.Fatalf("profile %v, %d identifiers", profile, len(ids))
		}
		seen := make(map[acme.Identifier]bool)
		for _, id := range ids {
			again, err := acme.ParseIdentifier(id)
			if err != nil || again != id {
				t.Errorf("%v has another spelling: %v (%v)", id, again, err)
			}
			if seen[id] {
				t.Errorf("%v is there twice", id)
			}
			seen[id] = true
		}
	})
}

// FuzzParseKey: a JWK is refused as the client's fault, or gives a key that
// survives being stored.
func FuzzParseKey(f *testing.F) {
	for _, seed := range []string{
		goodJWK, `{}`, `null`, `[]`, `"x"`, `{"kty":"oct","k":"AAAA"}`, strings.Replace(goodJWK, `"kty"`, `"d":"AAAA","kty"`, 1),
		`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, `{"kty":"OKP","crv":"Ed25519","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`,
		`{"kty":"OKP","crv":"X25519","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`, `{"kty":"RSA","n":"AQ","e":"AQAB"}`,
		`{"kty":"RSA","n":"` + strings.Repeat("7", 342) + `","e":"AQAB"}`, `{"kty":"RSA","n":"` + strings.Repeat("_", 342) + `w","e":"AAAAAAAAAAAAAQAB"}`,
		`{"kty":"EC","crv":"P-521","x":"AA","y":"AA"}`, strings.Replace(goodJWK, "P-256", "P-384", 1), goodJWK + goodJWK,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := parseKey(raw)
		if err != nil {
			wantClientsFault(t, err)
			return
		}
		again, err := parseKey(k.jwk)
		if err != nil || again.thumbprint != k.thumbprint || string(again.jwk) != string(k.jwk) {
			t.Fatalf("stored as %s, that is read as %v (%v)", k.jwk, again, err)
		}
		public := jose.JSONWebKey{Key: k.public}
		if !public.Valid() || !public.IsPublic() {
			t.Errorf("%s is no valid public key", raw)
		}
		if sum, err := public.Thumbprint(crypto.SHA256); err != nil || base64.RawURLEncoding.EncodeToString(sum) != k.thumbprint {
			t.Errorf("thumbprint %s of %s", k.thumbprint, raw)
		}
		fits := 0
		for _, alg := range algorithms {
			if k.fits(alg) {
				fits++
			}
		}
		if fits == 0 {
			t.Errorf("no algorithm fits %s", raw)
		}
	})
}
