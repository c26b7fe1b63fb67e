package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
)

// A Queue works on orders that were just saved. The worker is one.
type Queue interface {
	// Nudge tells that the order has work to do now. It never blocks, and
	// nothing is lost if it is ignored: the order is in the store's queue.
	Nudge(o *acme.Order)
	// Watch returns a channel that receives the order each time this process
	// has saved it, until stop is called.
	Watch(orderID string) (changed <-chan *acme.Order, stop func())
}

// A Revoker revokes certificates by the name of the backend that issued them.
type Revoker interface {
	Revoke(ctx context.Context, backend string, leaf *x509.Certificate, reason int) error
}

// A Policy is what the operator may change while the server runs.
type Policy struct {
	Directories map[string]*Directory // by name; the one named DefaultDirectory is served at /directory
	Limits      Limits
	// FinalizeHold is how long a finalize waits for the certificate before it
	// answers "processing".
	FinalizeHold time.Duration
}

// DefaultDirectory is the name of the directory without a path of its own.
const DefaultDirectory = "default"

// A Directory is a tenant: accounts and orders of one are unknown in another.
type Directory struct {
	Name           string
	Profiles       map[string]*acme.Profile
	DefaultProfile string
	TermsOfService string // URL; if set, new accounts must agree to it
	Website        string
}

// Limits bound what clients may do; zero values set no bound.
type Limits struct {
	NewAccountsPerIP        acme.Limit
	NewOrdersPerAccount     acme.Limit
	PendingOrdersPerAccount int
	FailedValidations       acme.Limit // per account and name
	RequestBody             int64      // bytes; zero means 128 KiB, since some bound there must be
}

// Options are a Server's connections to the world.
type Options struct {
	Store   acme.Store
	Queue   Queue
	Revoker Revoker
	// Preflight, if set, returns a problem if the backend of that name is bound
	// to refuse an order for these identifiers.
	Preflight func(ctx context.Context, backend string, ids []acme.Identifier) error
	// Relay, if set, makes the records of relay challenges.
	Relay          Relay
	ExternalURL    string // scheme and host: every URL handed out begins with it
	TrustedProxies []netip.Prefix
	Now            func() time.Time
	Rand           io.Reader // cryptographic, safe for concurrent use
	Log            *slog.Logger
	Metrics        prometheus.Registerer
}

// A Server answers ACME requests. It is safe for concurrent use.
type Server struct {
	Options
	policy  atomic.Pointer[Policy]
	router  *mux.Router
	nonces  *nonces
	keys    *lru.Cache[string, *accountKey] // parsed account keys by JWK
	chains  *lru.Cache[string, []byte]      // PEM by reference
	ids     acme.IDs
	metrics *metrics
}

// New makes a server that follows policy until SetPolicy.
func New(opts Options, policy *Policy) (*Server, error) {
	keys, err := lru.New[string, *accountKey](16384)
	if err != nil {
		return nil, fmt.Errorf("make key cache: %w", err)
	}
	chains, err := lru.New[string, []byte](64)
	if err != nil {
		return nil, fmt.Errorf("make chain cache: %w", err)
	}
	if opts.Preflight == nil {
		opts.Preflight = func(context.Context, string, []acme.Identifier) error { return nil }
	}
	s := &Server{
		Options: opts,
		nonces:  &nonces{store: opts.Store, rand: opts.Rand, now: opts.Now},
		keys:    keys, chains: chains,
		ids:     acme.IDs{Rand: opts.Rand},
		metrics: newMetrics(opts.Metrics),
	}
	s.policy.Store(policy)
	s.router = s.routes()
	return s, nil
}

// SetPolicy replaces the policy for all requests that begin from now on.
func (s *Server) SetPolicy(p *Policy) { s.policy.Store(p) }

// ServeHTTP answers one request. Whatever goes wrong in a handler ends here,
// as a problem document for the client and a record for the operator.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rw := &responseWriter{ResponseWriter: w, route: "unknown"}
	defer func() {
		if v := recover(); v != nil {
			if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(v)
			}
			s.fail(rw, r, fmt.Errorf("panic: %v", v), stackAttr())
		}
		s.metrics.observe(rw.route, rw.status, time.Since(start))
	}()
	header := w.Header()
	header.Set("Access-Control-Allow-Origin", "*")
	header.Set("Access-Control-Expose-Headers", "Replay-Nonce, Location, Link, Retry-After")
	header.Set("X-Content-Type-Options", "nosniff")
	s.router.ServeHTTP(rw, r)
}

// A responseWriter remembers what the metrics and the error path need to know.
type responseWriter struct {
	http.ResponseWriter
	route  string
	status int
}

func (w *responseWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *responseWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
