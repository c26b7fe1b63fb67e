package integration

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/go-jose/go-jose/v4"
)

// nonceSource asks for a nonce, which needs no store.
type nonceSource struct {
	client *http.Client
	url    string
}

func (n nonceSource) Nonce() (string, error) {
	res, err := n.client.Head(n.url)
	if err != nil {
		return "", err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("newNonce: %s", res.Status)
	}
	return res.Header.Get("Replay-Nonce"), nil
}

// A problem is an error as clients see it.
type problem struct {
	Type   string `json:"type"`
	Detail string `json:"detail"`
	Status int    `json:"status"`
}

// post sends one signed request, and repeats nothing. Without a payload, it is a
// POST-as-GET.
func (w *world) post(ctx context.Context, client *http.Client, url string, key any, kid string, payload any) (*http.Response, []byte, error) {
	body := []byte{} // go-jose leaves a nil payload out
	if payload != nil {
		var err error
		if body, err = json.Marshal(payload); err != nil {
			return nil, nil, err
		}
	}
	opts := &jose.SignerOptions{NonceSource: nonceSource{client, w.server.url("/new-nonce")}, EmbedJWK: kid == ""}
	opts = opts.WithHeader("url", url)
	if kid != "" {
		opts = opts.WithHeader("kid", kid)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, opts)
	if err != nil {
		return nil, nil, err
	}
	jws, err := signer.Sign(body)
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte(jws.FullSerialize())))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/jose+json")
	res, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return res, answer, err
}

func base64URL(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }
