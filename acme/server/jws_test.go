package server_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/acme-bridge/acme-bridge/acme"
)

// TestSection6_2_OnlyFlattenedJWS also stands for lesson 22: what is not exactly
// one flattened JWS never reaches a parser that knows more.
func TestSection6_2_OnlyFlattenedJWS(t *testing.T) {
	c := newWorld(t).newAccountClient()
	text := func(change func(protected, payload, signature string) string) edit {
		return func(m *message) {
			var e struct{ Protected, Payload, Signature string }
			if err := json.Unmarshal(m.envelope(t), &e); err != nil {
				t.Fatal(err)
			}
			m.body = []byte(change(e.Protected, e.Payload, e.Signature))
		}
	}
	flat := `"protected":%q,"payload":%q,"signature":%q`
	for name, e := range map[string]edit{
		"an empty body":            func(m *message) { m.body = []byte{} },
		"null":                     func(m *message) { m.body = []byte("null") },
		"an array":                 func(m *message) { m.body = []byte("[]") },
		"a string":                 func(m *message) { m.body = []byte(`"x"`) },
		"an empty object":          func(m *message) { m.body = []byte("{}") },
		"compact serialization":    text(func(h, p, s string) string { return h + "." + p + "." + s }),
		"compact in a JSON string": text(func(h, p, s string) string { return `"` + h + "." + p + "." + s + `"` }),
		"general serialization": text(func(h, p, s string) string {
			return fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, p, h, s)
		}),
		"flattened with signatures":   withMember("signatures", []any{}),
		"null signatures":             text(func(h, p, s string) string { return fmt.Sprintf(`{`+flat+`,"signatures":null}`, h, p, s) }),
		"an unprotected header":       withMember("header", map[string]any{"kid": "x"}),
		"an empty unprotected header": withMember("header", map[string]any{}),
		"a null unprotected header":   text(func(h, p, s string) string { return fmt.Sprintf(`{`+flat+`,"header":null}`, h, p, s) }),
		"no protected":                withMember("protected", nil),
		"no payload":                  withMember("payload", nil),
		"no signature":                withMember("signature", nil),
		"a null payload": text(func(h, _, s string) string {
			return fmt.Sprintf(`{"protected":%q,"payload":null,"signature":%q}`, h, s)
		}),
		"a payload that is no string": withMember("payload", map[string]any{}),
		"a second value after it":     text(func(h, p, s string) string { return fmt.Sprintf(`{`+flat+`}{}`, h, p, s) }),
		"garbage after it":            text(func(h, p, s string) string { return fmt.Sprintf(`{`+flat+`}x`, h, p, s) }),
		"a duplicate member":          text(func(h, p, s string) string { return fmt.Sprintf(`{`+flat+`,"payload":%q}`, h, p, s, p) }),
		"a duplicate unknown member":  text(func(h, p, s string) string { return fmt.Sprintf(`{`+flat+`,"x":1,"x":1}`, h, p, s) }),
		"members in other case": text(func(h, p, s string) string {
			return fmt.Sprintf(`{"Protected":%q,"PAYLOAD":%q,"Signature":%q}`, h, p, s)
		}),
		"a JWE": func(m *message) {
			m.body = []byte(`{"protected":"e30","encrypted_key":"","iv":"","ciphertext":"","tag":""}`)
		},
		"a body that is not UTF-8":            text(func(h, p, s string) string { return fmt.Sprintf(`{`+flat+`,"x":"`+"\xff"+`"}`, h, p, s) }),
		"a payload that is not UTF-8":         func(m *message) { m.payload = "\xff" },
		"a protected header that is an array": func(m *message) { m.protected = "[]" },
		"a protected header that is no JSON":  func(m *message) { m.protected = "x" },
		"two values in the protected header":  func(m *message) { m.protected = string(mustJSON(t, m.header)) + "{}" },
		"a url that is no string":             withHeader("url", 7),
		"a nonce that is no string":           withHeader("nonce", 7),
		"a kid that is no string":             withHeader("kid", 7),
		"an alg that is no string":            withHeader("alg", []string{"ES256"}),
	} {
		t.Run(name, func(t *testing.T) {
			a := c.post(c.kid, "", e)
			a.TB = t
			a.wantProblem(http.StatusBadRequest, acme.Malformed)
			if a.header.Get("Replay-Nonce") == "" || a.header.Get("Link") != indexLink {
				t.Errorf("headers: %v", a.header)
			}
		})
	}
}

func TestSection6_2_UnknownMembersAndParametersAreIgnored(t *testing.T) {
	c := newWorld(t).newAccountClient()
	c.post(c.kid, "", withMember("comment", map[string]any{"a": 1}), withHeader("typ", "JOSE"), withHeader("x-unknown", []int{1})).want(http.StatusOK)
}

func TestSection6_2_CritAndB64AreRefused(t *testing.T) {
	c := newWorld(t).newAccountClient()
	for name, edits := range map[string][]edit{
		"crit and b64":    {withHeader("crit", []string{"b64"}), withHeader("b64", false)},
		"b64 false":       {withHeader("b64", false)},
		"b64 true":        {withHeader("b64", true)},
		"empty crit":      {withHeader("crit", []string{})},
		"unknown crit":    {withHeader("crit", []string{"exp"}), withHeader("exp", 1)},
		"crit of nothing": {withHeader("crit", []string{"absent"})},
		"crit, no array":  {withHeader("crit", "b64")},
		"crit of url":     {withHeader("crit", []string{"url"})},
		"null crit": {func(m *message) {
			m.protected = strings.TrimSuffix(string(mustJSON(t, m.header)), "}") + `,"crit":null}`
		}},
		"b64 false in raw": {withHeader("b64", false), withMember("payload", "{}")},
	} {
		a := c.post(c.kid, "", edits...)
		a.what += " with " + name
		a.wantProblem(http.StatusBadRequest, acme.Malformed)
	}
}

func TestSection6_1_Base64IsStrict(t *testing.T) {
	c := newWorld(t).newAccountClient()
	loose := func(s string) string { // the same octets with other bits at the end
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		i := strings.IndexByte(alphabet, s[len(s)-1])
		return s[:len(s)-1] + string(alphabet[i+1])
	}
	// A payload of 2 octets more than a multiple of 3 leaves 2 bits unused.
	payload := `{"x":1}` + strings.Repeat(" ", 4)
	for name, change := range map[string]func(string) string{
		"padding":        func(s string) string { return s + "=" },
		"a line feed":    func(s string) string { return s[:4] + "\n" + s[4:] },
		"CR LF at end":   func(s string) string { return s + "\r\n" },
		"a space":        func(s string) string { return " " + s },
		"loose bits":     loose,
		"plus and slash": func(s string) string { return s[:4] + "+/" + s[6:] },
		"a NUL":          func(s string) string { return s + "\x00" },
	} {
		for _, member := range []string{"protected", "payload", "signature"} {
			a := c.post(c.kid, payload, func(m *message) {
				if len(mustJSON(t, m.header))%3 == 0 {
					m.header["pad"] = "x" // so that some bits are left over
				}
				var e map[string]string
				if err := json.Unmarshal(m.envelope(t), &e); err != nil {
					t.Fatal(err)
				}
				if name == "loose bits" {
					if b, err := base64.RawURLEncoding.DecodeString(change(e[member])); err != nil || b64(b) != e[member] {
						t.Fatalf("the test does not test loose bits of %s", member)
					}
				}
				e[member] = change(e[member])
				m.body = mustJSON(t, e)
			})
			a.what = name + " in " + member
			a.wantProblem(http.StatusBadRequest, acme.Malformed)
		}
	}
	o := c.readyOrder("a.example")
	csr := c.csr("a.example")
	for _, change := range []string{"=", "==", `\n`, `\r\n`, " ", "+"} {
		c.post(o.Finalize, strings.TrimSuffix(csr, `"}`)+change+`"}`).wantProblem(http.StatusBadRequest, acme.BadCSR)
	}
	c.post(o.Finalize, csr).want(http.StatusOK)
	c.post(c.kid, "", withHeader("nonce", c.takeNonce()+"=")).wantProblem(http.StatusBadRequest, acme.Malformed)
	c.post(c.kid, "", withHeader("nonce", "a b")).wantProblem(http.StatusBadRequest, acme.Malformed)
}

func TestDuplicateAndCaseVariedHeaderParameters(t *testing.T) {
	c := newWorld(t).newAccountClient()
	for name, e := range map[string]edit{
		"url twice": func(m *message) {
			m.protected = strings.Replace(string(mustJSON(t, m.header)), "{", `{"url":"https://evil.example/",`, 1)
		},
		"alg twice": func(m *message) {
			m.protected = strings.Replace(string(mustJSON(t, m.header)), "{", `{"alg":"none",`, 1)
		},
		"nonce twice": func(m *message) {
			m.protected = strings.Replace(string(mustJSON(t, m.header)), "{", `{"nonce":"AAAA",`, 1)
		},
	} {
		a := c.post(c.kid, "", e)
		a.what = name
		a.wantProblem(http.StatusBadRequest, acme.Malformed)
	}
	// Other case is another name: what is missing then, is missing.
	c.post(c.kid, "", withHeader("url", nil), withHeader("URL", c.kid)).wantProblem(http.StatusForbidden, acme.Unauthorized)
	c.post(c.kid, "", withHeader("nonce", nil), withHeader("Nonce", c.takeNonce())).wantProblem(http.StatusBadRequest, acme.BadNonce)
	c.post(c.kid, "", withHeader("kid", nil), withHeader("KID", c.kid)).wantProblem(http.StatusBadRequest, acme.Malformed)
	// In payloads as well.
	c.post("/new-order", `{"Identifiers":[{"type":"dns","value":"a.example"}]}`).wantProblem(http.StatusBadRequest, acme.Malformed)
	c.post("/new-order", `{"identifiers":[{"type":"dns","value":"a.example"}],"identifiers":[{"type":"dns","value":"b.example"}]}`).wantProblem(http.StatusBadRequest, acme.Malformed)
}

// TestSection6_2_JWKXorKIDAsTheResourceWants is half of lesson 9's matrix.
func TestLesson9_JWKXorKIDAsEachResourceWants(t *testing.T) {
	c := newWorld(t).newAccountClient()
	o := c.newOrder("a.example")
	jwk := func(m *message) { m.header["jwk"], m.header["kid"] = jwkOf(c.key.Public()), nil }
	for _, target := range append(posts(o, c), "/directory", "/new-nonce") {
		payload := ""
		if strings.HasPrefix(target, "/new-order") {
			payload = orderFor("a.example")
		}
		a := c.post(target, payload, func(m *message) { m.header["jwk"], m.header["kid"] = jwkOf(c.key.Public()), c.kid })
		a.what += " with both"
		a.wantProblem(http.StatusBadRequest, acme.Malformed)
		a = c.post(target, payload, func(m *message) { m.header["jwk"], m.header["kid"] = nil, nil })
		a.what += " with neither"
		a.wantProblem(http.StatusBadRequest, acme.Malformed)
		switch target {
		case "/new-account":
			c.post(target, "{}", func(m *message) { m.header["kid"] = c.kid }).wantProblem(http.StatusBadRequest, acme.Malformed)
		case "/revoke-cert": // takes either
		default:
			a = c.post(target, payload, jwk)
			a.what += " with jwk"
			a.wantProblem(http.StatusBadRequest, acme.Malformed)
		}
	}
}

// TestLesson20_KIDIsTheAccountURLByteForByte: no second spelling of a name.
func TestLesson20_KIDIsTheAccountURLByteForByte(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	corp := w.newClient()
	corp.dir = "/corp"
	corp.register()
	id := c.kid[strings.LastIndexByte(c.kid, '/')+1:]
	for _, kid := range []string{
		"", "/", id, "/account/" + id, "account/" + id, c.kid + "/", c.kid + "?", c.kid + "#", c.kid + " ", " " + c.kid, c.kid + "\x00", c.kid + "\n",
		c.kid + "/orders", strings.Replace(c.kid, "https:", "http:", 1), strings.Replace(c.kid, "https:", "HTTPS:", 1),
		strings.Replace(c.kid, "acme.example", "ACME.example", 1), strings.Replace(c.kid, "acme.example", "acme.example.", 1),
		strings.Replace(c.kid, "acme.example", "acme.example:443", 1), strings.Replace(c.kid, "acme.example", "evil.example", 1),
		strings.Replace(c.kid, "acme.example", "user@acme.example", 1), "https://evil.example/?" + c.kid, c.kid + "," + c.kid,
		strings.Replace(c.kid, "/account/", "//account/", 1), strings.Replace(c.kid, "/account/", "/account//", 1),
		strings.Replace(c.kid, "/account/", "/./account/", 1), strings.Replace(c.kid, "/account/", "/x/../account/", 1),
		strings.Replace(c.kid, "/account/", "/Account/", 1), strings.Replace(c.kid, "/account/", "/corp/account/", 1),
		strings.Replace(c.kid, "/account/", "/default/account/", 1), strings.Replace(c.kid, id, strings.ToUpper(id), 1),
		strings.Replace(c.kid, id, fmt.Sprintf("%%%02x", id[0])+id[1:], 1), external + "/order/" + id, external + "/account/" + strings.Repeat("0", len(id)),
		corp.kid, thumbprint(t, c.key.Public()),
	} {
		a := c.post("/new-order", orderFor("a.example"), withHeader("kid", kid))
		a.what = fmt.Sprintf("kid %q", kid)
		a.wantProblem(http.StatusBadRequest, acme.AccountDoesNotExist)
	}
	c.newOrder("a.example")
}

func TestSection6_2_UnsupportedAlgorithmsListTheSupportedOnes(t *testing.T) {
	c := newWorld(t).newAccountClient()
	for _, alg := range []any{"none", "None", "", "HS256", "HS512", "ES256K", "RSA1_5", "PS512", "es256", nil} {
		p := c.post(c.kid, "", withHeader("alg", alg)).wantProblem(http.StatusBadRequest, acme.BadSignatureAlgorithm)
		if !slices.Contains(p.Algorithms, "ES256") || !slices.Contains(p.Algorithms, "RS256") || !slices.Contains(p.Algorithms, "EdDSA") {
			t.Errorf("alg %v: algorithms %v", alg, p.Algorithms)
		}
		for _, a := range p.Algorithms {
			if a == "none" || strings.HasPrefix(a, "HS") {
				t.Errorf("algorithm %s is offered", a)
			}
		}
	}
}

func TestEveryOfferedKindOfKeyWorks(t *testing.T) {
	w := newWorld(t)
	ec := func(curve elliptic.Curve) *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := newRSAKey(t, 2048)
	for _, c := range []*client{
		{world: w, key: ec(elliptic.P256())}, {world: w, key: ec(elliptic.P384())}, {world: w, key: ec(elliptic.P521())},
		{world: w, key: ed}, {world: w, key: rsaKey},
	} {
		c.register()
		c.newOrder("a.example")
		// The key, not the header, decides how a signature is verified.
		for _, alg := range []string{"ES256", "ES384", "ES512", "EdDSA", "RS256"} {
			if alg == algOf(c.key) {
				continue
			}
			a := c.post(c.kid, "", withHeader("alg", alg))
			a.what = fmt.Sprintf("%s with a key for %s", alg, algOf(c.key))
			a.wantProblem(http.StatusBadRequest, acme.BadPublicKey)
		}
	}
}

func newRSAKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSection6_2_BadKeysAnswerBadPublicKey(t *testing.T) {
	w := newWorld(t)
	ec := jwkOf(newECKey(t).Public())
	n := newRSAKey(t, 2048).N
	with := func(jwk map[string]any, name string, value any) map[string]any {
		jwk = maps.Clone(jwk)
		jwk[name] = value
		return jwk
	}
	f4 := []byte{1, 0, 1}
	short := ec["x"].(string)
	x, err := base64.RawURLEncoding.DecodeString(short)
	if err != nil {
		t.Fatal(err)
	}
	okp := func(x []byte) map[string]any { return map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(x)} }
	cases := map[string]map[string]any{
		"RSA of 1024 bits":          rsaJWK(newRSAKey(t, 1024).N, f4),
		"RSA of 512 bits":           rsaJWK(new(big.Int).SetBit(big.NewInt(1), 511, 1), f4),
		"RSA of 16384 bits":         rsaJWK(new(big.Int).SetBit(big.NewInt(1), 16383, 1), f4),
		"RSA with exponent 1":       rsaJWK(n, []byte{1}),
		"RSA with exponent 0":       rsaJWK(n, []byte{0}),
		"RSA with an even exponent": rsaJWK(n, []byte{1, 0, 0}),
		"RSA with exponent 2":       rsaJWK(n, []byte{2}),
		"RSA with 33-bit exponent":  rsaJWK(n, []byte{1, 0, 0, 0, 1}),
		"RSA with 72-bit exponent":  rsaJWK(n, []byte{1, 0, 0, 0, 0, 0, 1, 0, 1}),
		"RSA with an even modulus":  rsaJWK(new(big.Int).Lsh(big.NewInt(1), 2047), f4),
		"RSA with a small factor":   rsaJWK(new(big.Int).Mul(new(big.Int).Rsh(n, 4), big.NewInt(251)), f4),
		"RSA with padded modulus":   with(rsaJWK(n, f4), "n", b64(n.Bytes())+"=="),
		"RSA without exponent":      {"kty": "RSA", "n": b64(n.Bytes())},
		"a point off the curve":     with(ec, "y", ec["x"]),
		"the point at infinity":     with(with(ec, "x", b64(make([]byte, 32))), "y", b64(make([]byte, 32))),
		"an x that is too short":    with(ec, "x", b64(x[1:])),
		"an x with a zero before":   with(ec, "x", b64(append([]byte{0}, x...))),
		"an x with padding":         with(ec, "x", short+"="),
		"an x with a line break":    with(ec, "x", short[:8]+"\n"+short[8:]),
		"no y":                      with(ec, "y", ""),
		"another curve's name":      with(ec, "crv", "P-384"),
		"an unsupported curve":      with(ec, "crv", "secp256k1"),
		"an unknown kty":            with(ec, "kty", "XYZ"),
		"no kty":                    with(ec, "kty", ""),
		"a symmetric key":           {"kty": "oct", "k": b64([]byte("0123456789abcdef0123456789abcdef"))},
		"an EC private key":         with(ec, "d", short),
		"an RSA private exponent":   with(rsaJWK(n, f4), "d", b64(f4)),
		"an RSA factor":             with(rsaJWK(n, f4), "p", b64(f4)),
		"an RSA CRT exponent":       with(rsaJWK(n, f4), "dp", b64(f4)),
		"an RSA CRT coefficient":    with(rsaJWK(n, f4), "qi", b64(f4)),
		"other RSA primes":          with(rsaJWK(n, f4), "oth", []any{}),
		"Ed25519 of 31 octets":      okp(make([]byte, 31)),
		"Ed25519 of 33 octets":      okp(make([]byte, 33)),
		"X25519":                    {"kty": "OKP", "crv": "X25519", "x": b64(x)},
		"Ed448":                     {"kty": "OKP", "crv": "Ed448", "x": b64(make([]byte, 57))},
	}
	for name, jwk := range cases {
		t.Run(name, func(t *testing.T) {
			c := w.newClient()
			a := c.post("/new-account", "{}", withHeader("jwk", jwk), func(m *message) {
				if jwk["kty"] == "RSA" {
					m.header["alg"] = "RS256"
				} else if jwk["kty"] == "OKP" {
					m.header["alg"] = "EdDSA"
				}
			})
			a.TB = t
			a.wantProblem(http.StatusBadRequest, acme.BadPublicKey)
			if strings.Contains(string(a.body), "go-jose") {
				t.Errorf("the problem names the library: %s", a.body)
			}
		})
	}
	for _, jwk := range []any{"x", 7, []any{}} {
		w.newClient().post("/new-account", "{}", withHeader("jwk", jwk)).wantProblem(http.StatusBadRequest, acme.Malformed)
	}
}

// TestTinyOrderEd25519KeysAreRefused: anyone can sign for such a key. For each
// the test finds a signature that verifies without any secret.
func TestTinyOrderEd25519KeysAreRefused(t *testing.T) {
	c := newWorld(t).newClient()
	forged := make([]byte, ed25519.SignatureSize)
	forged[0] = 1 // R is the identity, S is zero
	for _, point := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000080",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	} {
		pub, err := hex.DecodeString(point)
		if err != nil {
			t.Fatal(err)
		}
		forgeable := false
		for i := range 1000 {
			forgeable = forgeable || ed25519.Verify(pub, fmt.Appendf(nil, "message %d", i), forged)
		}
		if !forgeable {
			t.Errorf("%s is not of tiny order, the test is wrong", point)
		}
		for range 20 { // one in eight signatures would verify
			a := c.post("/new-account", "{}", func(m *message) {
				m.header["alg"], m.header["jwk"] = "EdDSA", map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(pub)}
				m.key = fixedSignature{signature: forged}
			})
			a.what = "key " + point
			if a.wantProblem(http.StatusBadRequest, acme.BadPublicKey); t.Failed() {
				break
			}
		}
	}
}

func TestBadSignaturesAreRefused(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	other := newECKey(t)
	signed := func(key *ecdsa.PrivateKey, change func(r, s *big.Int) []byte) edit {
		return func(m *message) {
			sig := signJWS(t, key, string(mustJSON(t, m.header)), m.payload)
			m.key = fixedSignature{signature: change(new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))}
		}
	}
	fixed := func(r, s *big.Int) []byte {
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	own := c.key.(*ecdsa.PrivateKey)
	for name, e := range map[string]edit{
		"another key's": signed(other, fixed),
		"DER": signed(own, func(r, s *big.Int) []byte {
			der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
			if err != nil {
				t.Fatal(err)
			}
			return der
		}),
		"too short":        signed(own, func(r, s *big.Int) []byte { return fixed(r, s)[:63] }),
		"too long":         signed(own, func(r, s *big.Int) []byte { return append(fixed(r, s), 0) }),
		"empty":            signed(own, func(*big.Int, *big.Int) []byte { return []byte{} }),
		"zero":             signed(own, func(*big.Int, *big.Int) []byte { return make([]byte, 64) }),
		"zero r":           signed(own, func(_, s *big.Int) []byte { return fixed(new(big.Int), s) }),
		"for another text": func(m *message) { m.key = fixedSignature{signature: signJWS(t, own, "{}", m.payload)} },
	} {
		a := c.post("/new-order", orderFor("a.example"), e)
		a.what = "signature: " + name
		a.wantProblem(http.StatusForbidden, acme.Unauthorized)
	}
	// High S is valid (RFC 7518 knows no canonical form).
	c.post("/new-order", orderFor("a.example"), signed(own, func(r, s *big.Int) []byte {
		if s.Cmp(new(big.Int).Rsh(elliptic.P256().Params().N, 1)) < 0 {
			s = new(big.Int).Sub(elliptic.P256().Params().N, s)
		}
		return fixed(r, s)
	})).want(http.StatusCreated)
}

func TestThumbprintDoesNotDependOnHowTheJWKIsWritten(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	kid := c.kid
	c.kid = ""
	for name, value := range map[string]any{"kid": "x", "use": "sig", "alg": "ES256", "key_ops": []string{"verify"}, "x-more": 1} {
		jwk := jwkOf(c.key.Public())
		jwk[name] = value
		a := c.post("/new-account", "{}", withHeader("jwk", jwk)).want(http.StatusOK)
		if got := a.header.Get("Location"); got != kid {
			t.Errorf("jwk with %s: account %s, want %s", name, got, kid)
		}
	}
	// Leading zero octets of an RSA key do not make another key.
	r := &client{world: w, key: newRSAKey(t, 2048)}
	r.register()
	pub := r.key.Public().(*rsa.PublicKey)
	again := r.kid
	r.kid = ""
	a := r.post("/new-account", "{}", withHeader("jwk", map[string]any{
		"kty": "RSA", "n": b64(append([]byte{0}, pub.N.Bytes()...)), "e": b64([]byte{0, 1, 0, 1}),
	})).want(http.StatusOK)
	if got := a.header.Get("Location"); got != again {
		t.Errorf("RSA key with leading zeros: account %s, want %s", got, again)
	}
}

// TestLesson14_AJWSWorksAtItsOwnURLOnly: not on another resource, host or tenant.
func TestLesson14_AJWSWorksAtItsOwnURLOnly(t *testing.T) {
	c := newWorld(t).newAccountClient()
	o := c.newOrder("a.example")
	for _, url := range []any{
		nil, "", "/new-order", external + "/new-order/", external + "/new-order?", external + "/new-order#", external + "//new-order", external + "/New-Order",
		"http://acme.example/new-order", "https://ACME.example/new-order", "https://acme.example:443/new-order", "https://acme.example./new-order",
		"https://evil.example/new-order", external + "/corp/new-order", external + "/%6eew-order", o.URL, external + "/new-account", external,
		"https://user@acme.example/new-order", external + "/new-order ",
	} {
		a := c.post("/new-order", orderFor("a.example"), withHeader("url", url))
		a.what = fmt.Sprintf("url %v", url)
		a.wantProblem(http.StatusForbidden, acme.Unauthorized)
	}
	// A query is part of the URL.
	c.post(c.kid+"/orders?cursor=", "", withHeader("url", c.kid+"/orders")).wantProblem(http.StatusForbidden, acme.Unauthorized)
	c.read(c.kid + "/orders?cursor=").want(http.StatusOK)
	// Behind a proxy the request comes under another host: only external_url counts.
	c.post("/new-order", orderFor("a.example"), func(m *message) { m.extra = http.Header{"Host": {"10.0.0.7:8080"}} }).want(http.StatusCreated)
}

// TestSection6_3_EmptyPayloadIsNotAnEmptyObject: POST-as-GET against {}.
func TestSection6_3_EmptyPayloadIsNotAnEmptyObject(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	o := c.newOrder("a.example")
	z := c.readAuthz(o.Authorizations[0])
	for _, target := range []string{o.URL, c.kid + "/orders", o.Authorizations[0]} {
		c.read(target).want(http.StatusOK)
		for _, payload := range []string{"{}", "null", "x", " ", "[]"} {
			a := c.post(target, payload)
			a.what += " with payload " + payload
			a.wantProblem(http.StatusBadRequest, acme.Malformed)
		}
	}
	for _, target := range []string{"/new-order", "/key-change", "/revoke-cert", o.Finalize} {
		a := c.post(target, "")
		a.wantProblem(http.StatusBadRequest, acme.Malformed)
	}
	for _, payload := range []string{"null", "[]", `"x"`, "{} {}", "{", `{"a":1,"a":2}`} {
		for _, target := range []string{"/new-order", c.kid, o.Finalize, z.Challenges[0].URL, "/revoke-cert", "/key-change"} {
			a := c.post(target, payload)
			a.what += " with payload " + payload
			a.wantProblem(http.StatusBadRequest, acme.Malformed)
		}
	}
	w.newClient().post("/new-account", "").wantProblem(http.StatusBadRequest, acme.Malformed)
	if got := c.readAuthz(o.Authorizations[0]).Status; got != "pending" || len(w.validator.validations()) > 0 {
		t.Errorf("authorization is %s after requests that were refused", got)
	}
}
