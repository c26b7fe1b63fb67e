package server

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/gorilla/mux"

	"github.com/acme-bridge/acme-bridge/acme"
)

// keyKind says how a resource wants its requests' key named
// (RFC 8555, Section 6.2).
type keyKind int

const (
	accountKeyID keyKind = iota // "kid": the URL of an account
	embeddedKey                 // "jwk": the key itself
	anyKey                      // either
)

// A signedRoute is a resource as POST sees it.
type signedRoute struct {
	handle func(http.ResponseWriter, *request) error
	key    keyKind
	// readOnly resources take POST-as-GET only: an empty payload.
	readOnly bool
	// lookup adds to what is read from the store along with the account. It
	// sees a request whose signature is not verified yet, and may only read.
	lookup func(r *request, q *acme.Lookup)
}

// A request is a POST whose signature, nonce and account have been checked.
type request struct {
	*http.Request
	policy  *Policy
	dir     *Directory
	key     *accountKey
	account *acme.Account // nil with an embedded key
	order   *acme.Order   // the account's own, where the URL names one
	found   *acme.Found
	payload []byte
	url     string
	csrKey  string // thumbprint of the CSR's key, in a finalize
}

// asGet reports whether the request is a POST-as-GET (RFC 8555, Section 6.3).
func (r *request) asGet() bool { return len(r.payload) == 0 }

// decode reads the payload into v.
func (r *request) decode(v any) error {
	if r.asGet() {
		return acme.Problemf(acme.Malformed, "the payload is empty, but this is no resource to read")
	}
	if err := unmarshal(r.payload, v); err != nil || jsontext.Value(r.payload).Kind() != '{' {
		return malformed("the payload is not the JSON object that this resource expects", err)
	}
	return nil
}

// A protectedHeader is what we read of a JWS header; the rest is ignored.
type protectedHeader struct {
	Alg   string         `json:"alg"`
	Nonce *string        `json:"nonce"`
	URL   *string        `json:"url"`
	KID   *string        `json:"kid"`
	JWK   jsontext.Value `json:"jwk"`
	Crit  jsontext.Value `json:"crit"`
	B64   jsontext.Value `json:"b64"`
}

// An envelope is a flattened JWS, parsed but not verified.
type envelope struct {
	header  protectedHeader
	compact string
	payload []byte
}

// signed checks a POST from the outside in, and calls the handler with what it
// has proven: media type, JWS form, URL, nonce, key and signature, account
// (RFC 8555, Section 6).
func (s *Server) signed(w http.ResponseWriter, r *http.Request, policy *Policy, dir *Directory, route signedRoute) error {
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/jose+json" {
		return acme.Problemf(acme.Malformed, "the Content-Type must be application/jose+json").WithStatus(http.StatusUnsupportedMediaType)
	}
	body, err := readBody(w, r, policy.Limits.RequestBody)
	if err != nil {
		return err
	}
	env, err := parseEnvelope(body)
	if err != nil {
		return err
	}
	req := &request{Request: r, policy: policy, dir: dir, payload: env.payload, url: s.ExternalURL + r.URL.RequestURI()}
	if env.header.URL == nil || *env.header.URL != req.url {
		return acme.Problemf(acme.Unauthorized, "the protected header's url is not the URL of this request; behind a proxy, the server's external_url must be what clients use")
	}
	if env.header.Nonce == nil {
		return badNonce()
	}
	if _, err := strictBase64(*env.header.Nonce); err != nil {
		return malformed("the nonce is not base64url", err)
	}
	if err := s.checkKeyKind(req, env, route.key); err != nil {
		return err
	}
	if err := s.fetch(req, env, route); err != nil {
		return err
	}
	if err := verify(env, req.key); err != nil {
		return err
	}
	if req.account != nil && req.account.Status != acme.StatusValid {
		return acme.Problemf(acme.Unauthorized, "the account is %s", req.account.Status).WithStatus(http.StatusUnauthorized)
	}
	if route.readOnly && !req.asGet() {
		return acme.Problemf(acme.Malformed, "this resource can only be read: send an empty payload (POST-as-GET)")
	}
	if id := mux.Vars(r)["order"]; id != "" {
		o := req.found.Order
		// What is not yours does not exist.
		if o == nil || o.AccountID != req.account.ID || o.Directory != dir.Name {
			return acme.ErrNotFound
		}
		if o.Expire(s.Now()) {
			o.Version = 0 // not what is stored: a save must begin with that
		}
		req.order = o
	}
	if err := s.setNonce(w, r); err != nil {
		return err
	}
	return route.handle(w, req)
}

// fetch redeems the nonce and reads account and order, all in one round trip,
// and finds the key.
func (s *Server) fetch(req *request, env *envelope, route signedRoute) error {
	ctx := req.Context()
	mark, ok, err := s.nonces.check(ctx, *env.header.Nonce)
	if err != nil {
		return err
	}
	if !ok {
		return badNonce()
	}
	q := acme.Lookup{Nonce: mark, NonceLifetime: nonceLifetime, OrderID: mux.Vars(req.Request)["order"]}
	if env.header.KID != nil {
		kid := *env.header.KID
		q.AccountID = kid[strings.LastIndexByte(kid, '/')+1:]
		if !acme.ValidID(q.AccountID) || kid != s.accountURL(req.dir, q.AccountID) {
			return noSuchAccount()
		}
		if route.lookup != nil {
			route.lookup(req, &q)
		}
	}
	if q.OrderID != "" && !acme.ValidID(q.OrderID) {
		q.OrderID = ""
	}
	if req.found, err = s.Store.Fetch(ctx, q, s.Now()); err != nil {
		return err
	}
	if !s.nonces.confirm(ctx, req.found) {
		return badNonce()
	}
	if env.header.KID == nil {
		return nil
	}
	req.account = req.found.Account
	if req.account == nil || req.account.Directory != req.dir.Name {
		return noSuchAccount()
	}
	req.key, err = s.storedKey(req.account)
	return err
}

func (s *Server) checkKeyKind(req *request, env *envelope, kind keyKind) error {
	h := &env.header
	switch {
	case (h.KID != nil) == (h.JWK != nil):
		return acme.Problemf(acme.Malformed, "the protected header must have exactly one of kid and jwk")
	case h.JWK != nil && kind == accountKeyID:
		return acme.Problemf(acme.Malformed, "this resource wants the account named by kid, not a jwk")
	case h.KID != nil && kind == embeddedKey:
		return acme.Problemf(acme.Malformed, "this resource wants the key as jwk, not a kid")
	case h.JWK == nil:
		return nil
	}
	var err error
	req.key, err = parseKey(h.JWK)
	return err
}

// parseEnvelope reads a JWS in flattened JSON serialization and nothing else
// (RFC 8555, Section 6.2).
func parseEnvelope(body []byte) (*envelope, error) {
	var jws struct {
		Protected  *string        `json:"protected"`
		Payload    *string        `json:"payload"`
		Signature  *string        `json:"signature"`
		Header     jsontext.Value `json:"header"`
		Signatures jsontext.Value `json:"signatures"`
	}
	if err := unmarshal(body, &jws); err != nil {
		return nil, malformed("the body is not a JWS in flattened JSON serialization", err)
	}
	switch {
	case jws.Signatures != nil:
		return nil, acme.Problemf(acme.Malformed, "a JWS here has exactly one signature: use the flattened serialization")
	case jws.Header != nil:
		return nil, acme.Problemf(acme.Malformed, "a JWS here has no unprotected header")
	case jws.Protected == nil || jws.Payload == nil || jws.Signature == nil:
		return nil, acme.Problemf(acme.Malformed, "the JWS lacks protected, payload or signature")
	}
	protected, err := strictBase64(*jws.Protected)
	if err != nil {
		return nil, malformed("the JWS's protected header is not base64url without padding", err)
	}
	env := &envelope{compact: *jws.Protected + "." + *jws.Payload + "." + *jws.Signature}
	if env.payload, err = strictBase64(*jws.Payload); err != nil {
		return nil, malformed("the JWS's payload is not base64url without padding", err)
	}
	if !utf8.Valid(env.payload) {
		return nil, acme.Problemf(acme.Malformed, "the payload is not UTF-8")
	}
	if _, err := strictBase64(*jws.Signature); err != nil {
		return nil, malformed("the JWS's signature is not base64url without padding", err)
	}
	if err := unmarshal(protected, &env.header); err != nil {
		return nil, malformed("the JWS's protected header does not parse", err)
	}
	if env.header.Crit != nil || env.header.B64 != nil {
		return nil, acme.Problemf(acme.Malformed, "the header parameters crit and b64 are not supported")
	}
	if !slices.Contains(algorithms, jose.SignatureAlgorithm(env.header.Alg)) {
		return nil, badAlgorithm()
	}
	return env, nil
}

// verify checks the signature with a key that was found by other means than
// the algorithm the header names.
func verify(env *envelope, key *accountKey) error {
	if !key.fits(jose.SignatureAlgorithm(env.header.Alg)) {
		return acme.Problemf(acme.BadPublicKey, "the key is not one that signs with the header's alg")
	}
	jws, err := jose.ParseSignedCompact(env.compact, algorithms)
	if err != nil {
		return malformed("the JWS does not parse", err)
	}
	if _, err := jws.Verify(key.public); err != nil {
		return acme.Problemf(acme.Unauthorized, "the JWS's signature does not verify").WithCause(err)
	}
	return nil
}

// defaultBody is how many bytes a request may have if the policy does not say.
const defaultBody = 128 << 10

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if limit <= 0 {
		limit = defaultBody
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, acme.Problemf(acme.Malformed, "the request is larger than %d bytes", limit).WithStatus(http.StatusRequestEntityTooLarge)
	}
	if err != nil {
		return nil, malformed("the request could not be read", err)
	}
	return body, nil
}

// badNonce has the words that acme.sh looks for, as it does not read the type.
func badNonce() *acme.Problem {
	return acme.Problemf(acme.BadNonce, "JWS has an invalid anti-replay nonce; use the one in this answer")
}

func noSuchAccount() *acme.Problem {
	return acme.Problemf(acme.AccountDoesNotExist, "no account of this directory has the URL given as kid")
}

func badAlgorithm() *acme.Problem {
	p := acme.Problemf(acme.BadSignatureAlgorithm, "the signature algorithm is not supported")
	for _, a := range algorithms {
		p.Algorithms = append(p.Algorithms, string(a))
	}
	return p
}

// setNonce puts a fresh nonce into the answer (RFC 8555, Section 6.5).
func (s *Server) setNonce(w http.ResponseWriter, r *http.Request) error {
	if w.Header().Get("Replay-Nonce") != "" {
		return nil
	}
	nonce, err := s.nonces.mint(r.Context())
	if err != nil {
		return err
	}
	w.Header().Set("Replay-Nonce", nonce)
	return nil
}

// fail answers with the problem in err and logs what the client does not see.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error, attrs ...any) {
	p := acme.AsProblem(err)
	h := w.Header()
	if r.Method == http.MethodPost || h.Get("Link") != "" {
		// Without a nonce the error still reaches the client.
		_ = s.setNonce(w, r)
	}
	if h.Get("Link") == "" {
		policy := s.policy.Load()
		dir := directoryOf(policy, r)
		if dir == nil { // a path that leads nowhere
			dir = policy.Directories[DefaultDirectory]
		}
		if dir != nil {
			h.Set("Link", "<"+s.url(dir, routeDirectory)+`>;rel="index"`)
		}
	}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(ceilSeconds(p.RetryAfter)))
	}
	if p.Location != "" {
		h.Set("Location", p.Location)
	}
	level := slog.LevelInfo
	switch {
	case errors.Is(p, acme.ErrUnavailable), errors.Is(p, acme.ErrConflict):
		level = slog.LevelWarn // clients come again, and readiness tells
	case p.Status >= 500:
		level = slog.LevelError
	}
	s.Log.Log(r.Context(), level, "request refused", append([]any{
		"method", r.Method, "path", r.URL.Path, "status", p.Status, "problem", string(p.Type), "err", p.Error(), "remote", clientIP(r, s.TrustedProxies).String(),
	}, attrs...)...)
	s.metrics.problem(p.Type)
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Del("Content-Length")
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		// The status line is out; a client that is gone cannot be told.
		_ = json.NewEncoder(w).Encode(p)
	}
}
