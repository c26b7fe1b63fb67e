package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// A client is one ACME account with connections of its own. It sends no more
// than a flow needs, so that what is measured is the server.
type client struct {
	http       *http.Client
	key        *ecdsa.PrivateKey
	kid        string
	thumbprint string
	dir        struct{ NewNonce, NewAccount, NewOrder string }

	mu     sync.Mutex
	nonces []string
}

var b64 = base64.RawURLEncoding

func newClient(ctx context.Context, h *http.Client, directory string) (*client, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	c := &client{http: h, key: key}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, directory, nil)
	if err != nil {
		return nil, err
	}
	resp, err := h.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&c.dir); err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	sum := sha256.Sum256(c.jwk())
	c.thumbprint = b64.EncodeToString(sum[:])
	resp2, err := c.post(ctx, c.dir.NewAccount, map[string]any{"termsOfServiceAgreed": true}, nil)
	if err != nil {
		return nil, fmt.Errorf("newAccount: %w", err)
	}
	c.kid = resp2.Get("Location")
	return c, nil
}

func (c *client) jwk() []byte {
	x, y := make([]byte, 32), make([]byte, 32)
	c.key.X.FillBytes(x)
	c.key.Y.FillBytes(y)
	return fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, b64.EncodeToString(x), b64.EncodeToString(y))
}

func (c *client) nonce(ctx context.Context) (string, error) {
	c.mu.Lock()
	if n := len(c.nonces); n > 0 {
		nonce := c.nonces[n-1]
		c.nonces = c.nonces[:n-1]
		c.mu.Unlock()
		return nonce, nil
	}
	c.mu.Unlock()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, c.dir.NewNonce, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	return resp.Header.Get("Replay-Nonce"), nil
}

// post signs and sends a payload (nil: POST-as-GET), and decodes the answer.
func (c *client) post(ctx context.Context, url string, payload, answer any) (http.Header, error) {
	nonce, err := c.nonce(ctx)
	if err != nil {
		return nil, err
	}
	header := map[string]any{"alg": "ES256", "nonce": nonce, "url": url}
	if c.kid == "" {
		header["jwk"] = json.RawMessage(c.jwk())
	} else {
		header["kid"] = c.kid
	}
	protected, err := json.Marshal(header)
	if err != nil {
		return nil, err
	}
	body := ""
	if payload != nil {
		p, err := json.Marshal(payload)
		if err != nil {
			return nil, err
		}
		body = b64.EncodeToString(p)
	}
	head := b64.EncodeToString(protected)
	sum := sha256.Sum256([]byte(head + "." + body))
	r, s, err := ecdsa.Sign(rand.Reader, c.key, sum[:])
	if err != nil {
		return nil, err
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	jws, err := json.Marshal(map[string]string{"protected": head, "payload": body, "signature": b64.EncodeToString(sig)})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(jws))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/jose+json")
	req.Header.Set("User-Agent", "acme-bridge-load")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if n := resp.Header.Get("Replay-Nonce"); n != "" {
		c.mu.Lock()
		c.nonces = append(c.nonces, n)
		c.mu.Unlock()
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s: %s: %s", url, resp.Status, data)
	}
	switch answer := answer.(type) {
	case nil:
	case *[]byte:
		*answer = data
	default:
		err = json.Unmarshal(data, answer)
	}
	return resp.Header, err
}

type order struct {
	Status         string
	Authorizations []string
	Finalize       string
	Certificate    string
}

type authz struct {
	Status     string
	Challenges []struct{ Type, URL, Token string }
}

// newOrder makes an order for one name.
func (c *client) newOrder(ctx context.Context, name string) (url string, o order, err error) {
	h, err := c.post(ctx, c.dir.NewOrder, map[string]any{"identifiers": []map[string]string{{"type": "dns", "value": name}}}, &o)
	if err != nil {
		return "", o, fmt.Errorf("newOrder: %w", err)
	}
	return h.Get("Location"), o, nil
}

// flow gets one certificate in 7 POSTs: newOrder, authorization, challenge,
// authorization again, finalize, order, certificate. A status that is not final
// is polled for, which counts as more POSTs.
func (c *client) flow(ctx context.Context, name string, tokens *responder, csr []byte) error {
	url, o, err := c.newOrder(ctx, name)
	if err != nil {
		return err
	}
	var a authz
	if _, err := c.post(ctx, o.Authorizations[0], nil, &a); err != nil {
		return fmt.Errorf("authorization: %w", err)
	}
	for _, ch := range a.Challenges {
		if ch.Type == "http-01" {
			tokens.put(ch.Token, ch.Token+"."+c.thumbprint)
			defer tokens.drop(ch.Token)
			if _, err := c.post(ctx, ch.URL, struct{}{}, nil); err != nil {
				return fmt.Errorf("challenge: %w", err)
			}
		}
	}
	poll := func(url string, into any, done func() bool) error {
		for {
			if _, err := c.post(ctx, url, nil, into); err != nil {
				return err
			}
			if done() {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	if err := poll(o.Authorizations[0], &a, func() bool { return a.Status != "pending" }); err != nil {
		return fmt.Errorf("poll authorization: %w", err)
	}
	if a.Status != "valid" {
		return fmt.Errorf("authorization is %s", a.Status)
	}
	if _, err := c.post(ctx, o.Finalize, map[string]string{"csr": b64.EncodeToString(csr)}, &o); err != nil {
		return fmt.Errorf("finalize: %w", err)
	}
	if err := poll(url, &o, func() bool { return o.Status != "processing" }); err != nil {
		return fmt.Errorf("poll order: %w", err)
	}
	if o.Status != "valid" {
		return fmt.Errorf("order is %s", o.Status)
	}
	var chain []byte
	if _, err := c.post(ctx, o.Certificate, nil, &chain); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	block, _ := pem.Decode(chain)
	if block == nil {
		return fmt.Errorf("certificate is no PEM")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != name {
		return fmt.Errorf("certificate is for %v, not %s", leaf.DNSNames, name)
	}
	return nil
}

// A responder answers http-01 for all names.
type responder struct {
	mu     sync.RWMutex
	tokens map[string]string
}

func (r *responder) put(token, value string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens[token] = value
}

func (r *responder) drop(token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tokens, token)
}

func (r *responder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	const prefix = "/.well-known/acme-challenge/"
	r.mu.RLock()
	value := r.tokens[req.URL.Path[min(len(prefix), len(req.URL.Path)):]]
	r.mu.RUnlock()
	if value == "" {
		http.NotFound(w, req)
		return
	}
	_, _ = io.WriteString(w, value)
}
