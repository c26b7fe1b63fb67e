package integration

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// A responder answers http-01 on an address of its own, to which names point.
type responder struct {
	address string

	mu   sync.Mutex
	auth map[string]string // key authorizations by path
}

func (w *world) newResponder() *responder {
	w.t.Helper()
	r := &responder{address: freeAddress(), auth: map[string]string{}}
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", r.address, httpPort))
	if err != nil {
		w.t.Fatal(err)
	}
	server := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	w.t.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			w.t.Errorf("http-01 responder: %v", err)
		}
	})
	return r
}

func (r *responder) put(path, auth string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth[path] = auth
}

func (r *responder) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	auth, ok := r.auth[q.URL.Path]
	r.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_, _ = w.Write([]byte(auth)) // the server may have gone
}

// A client is an ACME client that does not give up: while its context lasts, it
// goes on over lost connections and servers that are away, as a client that
// keeps its state would after each failure.
type client struct {
	w         *world
	acme      *acme.Client
	responder *responder
}

// newClient makes a client with an account of its own, at the directory of one
// tenant.
func (w *world) newClient(directory string) *client {
	w.t.Helper()
	c := &client{w: w, responder: w.newResponder()}
	c.acme = w.newACME(directory, newKey(w.t))
	return c
}

func (w *world) newACME(directory string, key crypto.Signer) *acme.Client {
	return &acme.Client{Key: key, DirectoryURL: directory, HTTPClient: w.httpClient(),
		RetryBackoff: func(n int, _ *http.Request, res *http.Response) time.Duration {
			if n > 100 {
				return -1
			}
			return 200 * time.Millisecond
		}}
}

// again repeats a request until it is answered with success or with a definite
// refusal.
func again(ctx context.Context, request func() error) error {
	for {
		err := request()
		problem, answered := errors.AsType[*acme.Error](err)
		if err == nil || answered && problem.StatusCode < 500 && problem.StatusCode != http.StatusTooManyRequests {
			return err
		}
		if pause(ctx, 200*time.Millisecond) != nil {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// pause is a client's wait between two polls.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *client) register(ctx context.Context) error {
	return again(ctx, func() error {
		_, err := c.acme.Register(ctx, &acme.Account{}, acme.AcceptTOS)
		if errors.Is(err, acme.ErrAccountAlreadyExists) {
			return nil
		}
		return err
	})
}

// A result is what became of an order.
type result struct {
	order *acme.Order // as last read
	key   crypto.Signer
	names []string
	chain []*x509.Certificate // nil unless the order is valid
}

// obtain goes through a whole flow. The error tells of what went wrong on the
// way; an order that ended invalid is a result.
func (c *client) obtain(ctx context.Context, names ...string) (*result, error) {
	order, err := c.prove(ctx, names...)
	if err != nil {
		return nil, err
	}
	return c.finish(ctx, order, newKey(c.w.t), names...)
}

// prove makes an order ready.
func (c *client) prove(ctx context.Context, names ...string) (*acme.Order, error) {
	c.w.dns.point(c.responder.address, names...)
	var order *acme.Order
	if err := again(ctx, func() (err error) {
		order, err = c.acme.AuthorizeOrder(ctx, acme.DomainIDs(names...))
		return err
	}); err != nil {
		return nil, fmt.Errorf("newOrder: %w", err)
	}
	for _, url := range order.AuthzURLs {
		if err := c.authorize(ctx, url); err != nil {
			return nil, fmt.Errorf("authorization: %w", err)
		}
	}
	return order, nil
}

// authorize responds to the http-01 challenge, and waits for the outcome.
func (c *client) authorize(ctx context.Context, url string) error {
	responded := false
	for {
		var authz *acme.Authorization
		if err := again(ctx, func() (err error) {
			authz, err = c.acme.GetAuthorization(ctx, url)
			return err
		}); err != nil {
			return err
		}
		switch authz.Status {
		case acme.StatusValid:
			return nil
		case acme.StatusPending:
		default:
			return fmt.Errorf("%s is %s", authz.Identifier.Value, authz.Status)
		}
		if !responded {
			if err := c.respond(ctx, authz); err != nil {
				return err
			}
			responded = true
			continue
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("%s is still pending: %w", authz.Identifier.Value, err)
		}
	}
}

func (c *client) respond(ctx context.Context, authz *acme.Authorization) error {
	for _, challenge := range authz.Challenges {
		if challenge.Type != "http-01" {
			continue
		}
		auth, err := c.acme.HTTP01ChallengeResponse(challenge.Token)
		if err != nil {
			return err
		}
		c.responder.put(c.acme.HTTP01ChallengePath(challenge.Token), auth)
		return again(ctx, func() error {
			_, err := c.acme.Accept(ctx, challenge)
			return err
		})
	}
	return errors.New("no http-01 challenge is offered")
}

// finish finalizes an order and downloads the certificate.
func (c *client) finish(ctx context.Context, order *acme.Order, key crypto.Signer, names ...string) (*result, error) {
	r := &result{key: key, names: names}
	csr := newCSR(c.w.t, key, names...)
	for {
		var now *acme.Order
		if err := again(ctx, func() (err error) {
			now, err = c.acme.GetOrder(ctx, order.URI)
			return err
		}); err != nil {
			return nil, fmt.Errorf("read order: %w", err)
		}
		r.order = now
		switch now.Status {
		case acme.StatusReady:
			// CreateOrderCert also polls and downloads; whatever interrupts it, the
			// order tells how it stands. A refusal is the end only if the order
			// is still ready.
			chain, _, err := c.acme.CreateOrderCert(ctx, now.FinalizeURL, csr, true)
			if err == nil {
				r.chain = parseDER(c.w.t, chain)
				continue
			}
			if problem, ok := errors.AsType[*acme.Error](err); ok && problem.StatusCode < 500 && problem.StatusCode != http.StatusTooManyRequests &&
				!strings.HasSuffix(problem.ProblemType, ":orderNotReady") {
				return nil, fmt.Errorf("finalize: %w", err)
			}
		case acme.StatusValid:
			if err := again(ctx, func() error {
				chain, err := c.acme.FetchCert(ctx, now.CertURL, true)
				if err == nil {
					r.chain = parseDER(c.w.t, chain)
				}
				return err
			}); err != nil {
				return nil, fmt.Errorf("download: %w", err)
			}
			return r, nil
		case acme.StatusInvalid:
			r.chain = nil
			return r, nil
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return nil, fmt.Errorf("the order is still %s: %w", now.Status, err)
		}
	}
}

// flows starts n flows of one client side by side. The function returned waits
// for them and expects one certificate for each.
func (w *world) flows(ctx context.Context, c *client, n int) (wait func()) {
	type outcome struct {
		result *result
		err    error
	}
	done := make(chan outcome, n)
	for i := range n {
		go func() {
			got := outcome{err: errors.New("the flow has ended early")} // by t.Fatal
			defer func() { done <- got }()
			got.result, got.err = c.obtain(ctx, fmt.Sprintf("flow%d.%s", i, zone), fmt.Sprintf("www.flow%d.%s", i, zone))
		}()
	}
	return func() {
		w.t.Helper()
		serials := map[string]bool{}
		for range n {
			got := <-done
			if got.err != nil {
				w.t.Error(got.err)
				continue
			}
			w.checkResult(got.result, acme.StatusValid)
			w.checkIssued(got.result, 1)
			if got.result.chain == nil {
				continue
			}
			serial := got.result.chain[0].SerialNumber.String()
			if serials[serial] {
				w.t.Errorf("two orders have certificate %s", serial)
			}
			serials[serial] = true
		}
	}
}

// checkResult checks that an order ended well: valid with the right certificate,
// or invalid with a reason and without any.
func (w *world) checkResult(r *result, status string) {
	w.t.Helper()
	if err := w.resultError(r, status); err != nil {
		w.t.Error(err)
	}
}

func (w *world) resultError(r *result, status string) error {
	if r.order.Status != status {
		return fmt.Errorf("the order for %v is %s (%v), want %s", r.names, r.order.Status, r.order.Error, status)
	}
	if status == acme.StatusInvalid {
		if r.order.Error == nil || r.order.Error.Detail == "" || r.order.Error.ProblemType == "" {
			return fmt.Errorf("the order for %v is invalid without a reason: %v", r.names, r.order.Error)
		}
		if r.order.CertURL != "" || r.chain != nil {
			return fmt.Errorf("the order for %v is invalid and has a certificate", r.names)
		}
		return nil
	}
	return w.chainError(r.chain, r.key.Public(), r.names...)
}

// deadline bounds a test's flows.
func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
