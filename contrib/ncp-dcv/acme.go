package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A client is as much of RFC 8555 as a relay challenge needs. It is written out
// here because the usual libraries drop the members of a challenge that they do
// not know, and the record is among these.
type client struct {
	http *http.Client
	key  crypto.Signer
	wait func(ctx context.Context, d time.Duration) error

	directory struct{ NewNonce, NewAccount, NewOrder string }
	account   string
	nonce     string
}

// A problem is a problem document (RFC 9457).
type problem struct {
	Type, Detail string
	Subproblems  []problem
	Identifier   *identifier
}

func (p *problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s)", p.Detail, p.Type)
	for _, s := range p.Subproblems {
		if s.Identifier != nil {
			fmt.Fprintf(&b, "\n  %s: %s", s.Identifier.Value, s.Detail)
		}
	}
	return b.String()
}

type identifier struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

type order struct{ Authorizations []string }

type authorization struct {
	Identifier identifier
	Wildcard   bool
	Status     string
	Challenges []challenge
}

type challenge struct {
	Type, URL, Status                                  string
	RecordType, RecordName, RecordValue, RecordExpires string
	Error                                              *problem
}

func (a *authorization) name() string {
	if a.Wildcard {
		return "*." + a.Identifier.Value
	}
	return a.Identifier.Value
}

func (a *authorization) find(challengeType string) (challenge, bool) {
	for _, c := range a.Challenges {
		if c.Type == challengeType {
			return c, true
		}
	}
	return challenge{}, false
}

// begin reads the directory and finds the account of the key.
func (c *client) begin(ctx context.Context, server string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server, nil)
	if err != nil {
		return err
	}
	if _, err := c.do(req, &c.directory); err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	if c.directory.NewNonce == "" || c.directory.NewAccount == "" || c.directory.NewOrder == "" {
		return fmt.Errorf("%s is no directory of an ACME server", server)
	}
	header, err := c.post(ctx, c.directory.NewAccount, map[string]bool{"onlyReturnExisting": true}, nil)
	if err != nil {
		return fmt.Errorf("find the account: %w", err)
	}
	if c.account = header.Get("Location"); c.account == "" {
		return errors.New("find the account: the server does not name it")
	}
	return nil
}

func (c *client) newOrder(ctx context.Context, domains []string, profile string) (*order, error) {
	body := struct {
		Identifiers []identifier `json:"identifiers"`
		Profile     string       `json:"profile,omitempty"`
	}{Profile: profile}
	for _, d := range domains {
		body.Identifiers = append(body.Identifiers, identifier{"dns", d})
	}
	var o order
	if _, err := c.post(ctx, c.directory.NewOrder, body, &o); err != nil {
		return nil, fmt.Errorf("new order: %w", err)
	}
	return &o, nil
}

func (c *client) authorization(ctx context.Context, url string) (*authorization, error) {
	var a authorization
	if _, err := c.post(ctx, url, nil, &a); err != nil {
		return nil, fmt.Errorf("read authorization: %w", err)
	}
	return &a, nil
}

func (c *client) respond(ctx context.Context, url string) error {
	_, err := c.post(ctx, url, struct{}{}, nil)
	return err
}

// await waits until an authorization is valid.
func (c *client) await(ctx context.Context, url string) error {
	for {
		var a authorization
		header, err := c.post(ctx, url, nil, &a)
		switch p, refused := errors.AsType[*problem](err); {
		case refused && !strings.HasSuffix(p.Type, ":serverInternal") && !strings.HasSuffix(p.Type, ":rateLimited"):
			return err
		case err != nil: // the server may be away for a moment; ctx ends the wait
		case a.Status == "valid":
			return nil
		case a.Status != "pending":
			for _, ch := range a.Challenges {
				if ch.Error != nil {
					return ch.Error
				}
			}
			return fmt.Errorf("authorization is %s", a.Status)
		}
		seconds, err := strconv.Atoi(header.Get("Retry-After"))
		if err != nil {
			seconds = 5
		}
		if err := c.wait(ctx, time.Duration(min(max(seconds, 1), 300))*time.Second); err != nil {
			return fmt.Errorf("the CA has not seen the record in time: %w", err)
		}
	}
}

// post signs a request and reads the answer into out, unless it is nil. A nil
// body is POST-as-GET (RFC 8555, Section 6.3). A nonce that the server refuses
// is replaced a few times (Section 6.5).
func (c *client) post(ctx context.Context, url string, body, out any) (http.Header, error) {
	var payload []byte
	if body != nil {
		var err error
		if payload, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	for try := 0; ; try++ {
		if c.nonce == "" {
			req, err := http.NewRequestWithContext(ctx, http.MethodHead, c.directory.NewNonce, nil)
			if err != nil {
				return nil, err
			}
			if _, err := c.do(req, nil); err != nil {
				return nil, fmt.Errorf("get a nonce: %w", err)
			}
		}
		message, err := c.sign(url, payload)
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(message))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/jose+json")
		c.nonce = ""
		header, err := c.do(req, out)
		if p, ok := errors.AsType[*problem](err); ok && strings.HasSuffix(p.Type, ":badNonce") && try < 5 {
			continue
		}
		return header, err
	}
}

// maxAnswer bounds an answer.
const maxAnswer = 1 << 20

func (c *client) do(req *http.Request, out any) (http.Header, error) {
	req.Header.Set("User-Agent", "ncp-dcv (acme-bridge)")
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if nonce := res.Header.Get("Replay-Nonce"); nonce != "" {
		c.nonce = nonce
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= 300 {
		p := &problem{}
		if json.Unmarshal(body, p) == nil && p.Type != "" {
			return nil, p
		}
		return nil, fmt.Errorf("the server answers %s", res.Status)
	}
	if out != nil {
		if err := json.Unmarshal(body, out); err != nil {
			return nil, fmt.Errorf("the server's answer cannot be read: %w", err)
		}
	}
	return res.Header, nil
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// sign makes a JWS in flattened JSON (RFC 8555, Section 6.2).
func (c *client) sign(url string, payload []byte) ([]byte, error) {
	alg, hash, jwk, err := describe(c.key.Public())
	if err != nil {
		return nil, err
	}
	header := map[string]any{"alg": alg, "nonce": c.nonce, "url": url}
	if c.account != "" {
		header["kid"] = c.account
	} else {
		header["jwk"] = jwk
	}
	protected, err := json.Marshal(header)
	if err != nil {
		return nil, err
	}
	message := []byte(encode(protected) + "." + encode(payload))
	signature, err := signature(c.key, hash, message)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]string{"protected": encode(protected), "payload": encode(payload), "signature": encode(signature)})
}

// describe gives the algorithm for a key (RFC 7518, Section 3.1; RFC 8037), its
// hash, and the key as a JWK.
func describe(public crypto.PublicKey) (alg string, hash crypto.Hash, jwk map[string]string, err error) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return "RS256", crypto.SHA256, map[string]string{"kty": "RSA", "n": encode(k.N.Bytes()), "e": encode(big.NewInt(int64(k.E)).Bytes())}, nil
	case ed25519.PublicKey:
		return "EdDSA", 0, map[string]string{"kty": "OKP", "crv": "Ed25519", "x": encode(k)}, nil
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			return "", 0, nil, err
		}
		name := k.Curve.Params().Name
		n := len(point) / 2
		jwk := map[string]string{"kty": "EC", "crv": name, "x": encode(point[1 : 1+n]), "y": encode(point[1+n:])}
		switch name {
		case "P-256":
			return "ES256", crypto.SHA256, jwk, nil
		case "P-384":
			return "ES384", crypto.SHA384, jwk, nil
		case "P-521":
			return "ES512", crypto.SHA512, jwk, nil
		}
	}
	return "", 0, nil, fmt.Errorf("account keys of type %T are not supported", public)
}

func signature(key crypto.Signer, hash crypto.Hash, message []byte) ([]byte, error) {
	digest := message
	switch hash {
	case crypto.SHA256:
		sum := sha256.Sum256(message)
		digest = sum[:]
	case crypto.SHA384:
		sum := sha512.Sum384(message)
		digest = sum[:]
	case crypto.SHA512:
		sum := sha512.Sum512(message)
		digest = sum[:]
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return key.Sign(rand.Reader, digest, hash)
	}
	r, s, err := ecdsa.Sign(rand.Reader, ec, digest)
	if err != nil {
		return nil, err
	}
	n := (ec.Curve.Params().BitSize + 7) / 8
	return append(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))...), nil
}
