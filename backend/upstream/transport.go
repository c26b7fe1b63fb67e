package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	client "golang.org/x/crypto/acme"
)

const (
	// maxAnswer bounds an answer: the longest is a certificate chain.
	maxAnswer = 1 << 20
	// maxNonceRetries is how often a request may be refused for its nonce. Such
	// a request was not acted upon (RFC 8555, Section 6.5).
	maxNonceRetries = 12
	nonceRetry      = 20 * time.Millisecond
	maxRetryAfter   = 24 * time.Hour
	maxConnections  = 16
)

// A hearing is what one step hears besides what the ACME library tells: how
// long the server wants to be left alone. It is also where a finalize ends: the
// library would follow the order with requests of its own.
type hearing struct {
	mu       sync.Mutex
	retry    time.Duration // of the last answer that had one
	finalize string        // URL: when it was answered, nothing else is sent
	answered bool
}

type hearingKey struct{}

// errAnswered ends the library's work after the answer to a finalize.
var errAnswered = errors.New("the order is finalized")

// listen returns a context whose requests are heard.
func listen(ctx context.Context) (context.Context, *hearing) {
	h := &hearing{}
	return context.WithValue(ctx, hearingKey{}, h), h
}

func (h *hearing) wait() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.retry
}

func (h *hearing) before() error {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.answered {
		return errAnswered
	}
	return nil
}

func (h *hearing) after(res *http.Response, now time.Time) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := retryAfter(res.Header.Get("Retry-After"), now); d > 0 {
		h.retry = d
	}
	h.answered = h.finalize != "" && res.Request.URL.String() == h.finalize && res.StatusCode == http.StatusOK
}

func retryAfter(v string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(v); err == nil {
		return min(time.Duration(max(n, 0)), maxRetryAfter/time.Second) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(t.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// A transport sends requests of the ACME library: to https only, if the
// directory is, and with bounded answers.
type transport struct {
	next    http.RoundTripper
	https   bool
	now     func() time.Time
	metrics *metrics
	backend string
}

func newHTTPClient(cfg *Config, m *metrics, tlsConfig *tls.Config) *http.Client {
	return &http.Client{
		Timeout: cfg.Timeout,
		// A signed request is for the URL that it names, so a redirection of it
		// is always an error.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &transport{
			next: &http.Transport{
				Proxy:       nil, // the environment is not asked: a proxy for other programs is none of ours
				DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSClientConfig: tlsConfig, TLSHandshakeTimeout: 5 * time.Second,
				ForceAttemptHTTP2: true, MaxConnsPerHost: maxConnections, MaxIdleConnsPerHost: maxConnections, IdleConnTimeout: 30 * time.Second,
				MaxResponseHeaderBytes: 64 << 10,
			},
			https: strings.HasPrefix(cfg.Directory, "https:"), now: cfg.Now, metrics: m, backend: cfg.Backend,
		},
	}
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	h, _ := r.Context().Value(hearingKey{}).(*hearing)
	if err := h.before(); err != nil {
		return nil, err
	}
	if t.https && r.URL.Scheme != "https" {
		return nil, errors.New("the server's directory is https, but it names a URL that is not")
	}
	res, err := t.next.RoundTrip(r)
	if err != nil {
		t.metrics.requested(t.backend, "unreachable")
		return nil, err
	}
	t.metrics.requested(t.backend, fmt.Sprintf("%dxx", res.StatusCode/100))
	h.after(res, t.now())
	res.Body = &boundedBody{ReadCloser: res.Body, left: maxAnswer}
	return res, nil
}

// A boundedBody fails where a longer answer would go on.
type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

const userAgent = "acme-bridge"

// newClient makes a client of the ACME library.
func (i *Issuer) newClient(k *accountKey) *client.Client {
	return &client.Client{
		Key: k.signer, KID: client.KeyID(k.URL), DirectoryURL: i.cfg.Directory, HTTPClient: i.http, UserAgent: userAgent, RetryBackoff: i.backoff,
	}
}

// backoff has the library repeat what was refused for its nonce, and nothing
// else: the worker knows what may be repeated. The library asks after 429, 5xx
// and refused nonces, which come with other codes.
func (i *Issuer) backoff(n int, r *http.Request, res *http.Response) time.Duration {
	if res.StatusCode < 400 || res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests || n > maxNonceRetries {
		return 0
	}
	if err := i.cfg.Wait(r.Context(), nonceRetry); err != nil {
		return 0
	}
	return time.Nanosecond
}
