package upstream

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
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/acme/server"
	"github.com/acme-bridge/acme-bridge/acme/worker"
	"github.com/acme-bridge/acme-bridge/backend/local"
	"github.com/acme-bridge/acme-bridge/storage/bolt"
)

// patience bounds every wait of a test; none takes that long when all is well.
const patience = 30 * time.Second

const day = 24 * time.Hour

// A zone is a publisher, and the DNS that the upstream server's validator asks.
type zone struct {
	mu       sync.Mutex
	served   map[string]bool // fqdn and value
	slow     int             // how many calls of Publish report false
	refuse   error           // of Publish and Covers
	foreign  string          // a name that is not covered
	publish  int
	removed  int
	failNext *acme.Problem // of validations, as long as it is set
}

func (z *zone) Covers(_ context.Context, name string) (bool, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return name != z.foreign, nil
}

func (z *zone) Publish(_ context.Context, fqdn, value string) (bool, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.publish++
	if z.refuse != nil {
		return false, z.refuse
	}
	if z.slow > 0 {
		z.slow--
		return false, nil
	}
	z.served[fqdn+" "+value] = true
	return true, nil
}

func (z *zone) Remove(_ context.Context, fqdn, value string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.removed++
	delete(z.served, fqdn+" "+value)
	return nil
}

// Validate is the upstream server's validator.
func (z *zone) Validate(_ context.Context, v *acme.Validation) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.failNext != nil {
		return z.failNext
	}
	sum := sha256.Sum256([]byte(v.KeyAuthorization))
	if v.Type != acme.DNS01 || !z.served["_acme-challenge."+v.Identifier.Value+" "+base64.RawURLEncoding.EncodeToString(sum[:])] {
		return acme.Problemf(acme.DNS, "no TXT record; see https://upstream.example/help")
	}
	return nil
}

func (z *zone) left(t *testing.T) {
	t.Helper()
	z.mu.Lock()
	defer z.mu.Unlock()
	if len(z.served) != 0 {
		t.Errorf("records are left behind: %v", z.served)
	}
}

// An authority is the CA behind the upstream server. It counts, and holds
// signatures back while it is shut.
type authority struct {
	acme.Issuer
	issued atomic.Int64
	refuse atomic.Pointer[acme.Problem]
	gate   chan struct{} // nil: open
}

func (a *authority) Submit(ctx context.Context, req *acme.IssueRequest) (*acme.Issuance, error) {
	if p := a.refuse.Load(); p != nil {
		return nil, p
	}
	if a.gate != nil {
		select {
		case <-a.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	a.issued.Add(1)
	return a.Issuer.Submit(ctx, req)
}

// A rig is an upstream server, which is this project's own, with what a client
// of it needs. Faults are put between the two.
type rig struct {
	t     *testing.T
	zone  *zone
	ca    *authority
	store acme.Store // the bridge's; the server has another
	url   string
	tls   []byte // root of the server's certificate, PEM
	roots []byte // of the certificates
	now   atomic.Int64
	logs  *logBuffer

	mu    sync.Mutex
	fault func(w http.ResponseWriter, r *http.Request, next http.Handler) // nil: none
	calls map[string]int                                                  // by the path without the ID
}

type rigOptions struct {
	terms string
	gate  chan struct{}
}

func openStore(t *testing.T) acme.Store {
	t.Helper()
	s, err := bolt.Open(bolt.Options{Dir: t.TempDir()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newRig(t *testing.T, o rigOptions) *rig {
	t.Helper()
	dir := t.TempDir()
	ca, err := local.New(t.Context(), local.Config{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, zone: &zone{served: map[string]bool{}}, ca: &authority{Issuer: ca, gate: o.gate}, store: openStore(t), logs: &logBuffer{}, calls: map[string]int{}}
	r.roots = ca.RootPEM()
	store := openStore(t)
	profile := &acme.Profile{
		Name: "web", Backend: "ca", Lifetime: 30 * day, ClientValidity: true, Challenges: []acme.ChallengeType{acme.DNS01, acme.HTTP01},
		Identifiers: acme.IdentifierPolicy{Types: []acme.IdentifierType{acme.TypeDNS}, Deny: []string{"*.denied.example"}, Wildcards: true, Max: 100},
		KeyTypes:    []acme.KeyType{acme.ECDSAP256}, OrderLifetime: day, AuthorizationLifetime: day, ReuseAuthorizations: true,
	}
	profiles := map[string]*acme.Profile{"web": profile}
	log := slog.New(slog.DiscardHandler)
	w := worker.New(worker.Options{Store: store, Now: time.Now, Log: log, Metrics: prometheus.NewRegistry(), Poll: 20 * time.Millisecond}, &worker.Policy{
		Directories: map[string]*worker.Directory{server.DefaultDirectory: {Profiles: profiles, Validator: r.zone}},
		Issuers:     map[string]acme.Issuer{"ca": r.ca},
	})
	var s *server.Server
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		fault := r.fault
		r.calls[kind(q)]++
		r.mu.Unlock()
		if fault != nil {
			fault(w, q, s)
			return
		}
		s.ServeHTTP(w, q)
	}))
	t.Cleanup(front.Close)
	r.url = front.URL
	r.tls = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
	s, err = server.New(server.Options{
		Store: store, Queue: w, Revoker: revoker{ca}, ExternalURL: front.URL, Now: time.Now, Rand: rand.Reader, Log: log, Metrics: prometheus.NewRegistry(),
	}, &server.Policy{Directories: map[string]*server.Directory{
		server.DefaultDirectory: {Name: server.DefaultDirectory, Profiles: profiles, DefaultProfile: "web", TermsOfService: o.terms},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

type revoker struct{ acme.Issuer }

func (r revoker) Revoke(ctx context.Context, _ string, leaf *x509.Certificate, reason int) error {
	return r.Issuer.Revoke(ctx, leaf, reason)
}

// kind is what a request is about.
func kind(r *http.Request) string {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if last := parts[len(parts)-1]; last == "finalize" {
		return last
	}
	return parts[0]
}

func (r *rig) setFault(f func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

func (r *rig) called(kind string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls[kind]
}

func (r *rig) clock() time.Time { return time.Now().Add(time.Duration(r.now.Load())) }

func (r *rig) config(mode string) Config {
	return Config{
		Backend: "up", Directory: r.url + "/directory", Mode: mode, Publisher: r.zone, Records: r.store,
		DirectoryRootsPEM: r.tls, RootsPEM: r.roots, Now: r.clock, Timeout: 5 * time.Second,
		Log: slog.New(slog.NewTextHandler(r.logs, nil)), Metrics: prometheus.NewRegistry(),
	}
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (r *rig) issuer(mode string, change ...func(*Config)) *Issuer {
	r.t.Helper()
	cfg := r.config(mode)
	for _, f := range change {
		f(&cfg)
	}
	i, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return i
}

func newRequest(t *testing.T, order string, names ...string) *acme.IssueRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	req := &acme.IssueRequest{OrderID: order, AccountID: "acct", CSR: csr, Lifetime: 30 * day, Submitted: time.Now()}
	for _, n := range names {
		req.Identifiers = append(req.Identifiers, acme.Identifier{Type: acme.TypeDNS, Value: n})
	}
	return req
}

func (r *rig) submit(i *Issuer, req *acme.IssueRequest) *acme.Issuance {
	r.t.Helper()
	got, err := i.Submit(r.t.Context(), req)
	if err != nil {
		r.t.Fatalf("Submit: %v", err)
	}
	if got.Ticket == "" || got.Leaf != nil {
		r.t.Fatalf("Submit = %+v, want a ticket", got)
	}
	return got
}

// An outcome is how an order ended, with all events.
type outcome struct {
	*acme.Issuance
	problem *acme.Problem
	events  []string
	polls   int
}

// follow polls as the worker does, but sooner, until the order has ended. Each
// poll is by the next of the issuers.
func (r *rig) follow(req *acme.IssueRequest, got *acme.Issuance, issuers ...*Issuer) *outcome {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	o := &outcome{}
	note := func(got *acme.Issuance) {
		for _, e := range got.Events {
			o.events = append(o.events, strings.TrimSpace(e.Name+" "+e.Text))
		}
	}
	note(got)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("order does not end: %s\n%s", strings.Join(o.events, "\n"), r.logs)
		}
		next, err := issuers[o.polls%len(issuers)].Poll(ctx, req, got.Ticket)
		o.polls++
		if next != nil {
			note(next)
		}
		if p, ok := errors.AsType[*acme.Problem](err); ok {
			o.problem = p
			return o
		}
		if err != nil {
			r.t.Fatalf("Poll: %v", err)
		}
		if next.Leaf != nil {
			o.Issuance = next
			return o
		}
		got = next
	}
}

// obtain orders, follows, and checks the certificate.
func (r *rig) obtain(i *Issuer, req *acme.IssueRequest) *outcome {
	r.t.Helper()
	o := r.follow(req, r.submit(i, req), i)
	r.good(i, req, o)
	return o
}

func (r *rig) good(i *Issuer, req *acme.IssueRequest, o *outcome) {
	r.t.Helper()
	if o.problem != nil {
		r.t.Fatalf("order ended with %s %+v", o.problem, o.problem.Subproblems)
	}
	roots, err := i.Roots(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if err := acme.CheckIssued(req, o.Issuance, roots, time.Now()); err != nil {
		r.t.Errorf("certificate: %v", err)
	}
}

func (r *rig) issued(want int64) {
	r.t.Helper()
	if got := r.ca.issued.Load(); got != want {
		r.t.Errorf("%d certificates were issued, want %d", got, want)
	}
}

// payload is the decoded payload of a JWS.
func payload(t *testing.T, body []byte) map[string]any {
	t.Helper()
	var jws struct{ Payload string }
	if err := json.Unmarshal(body, &jws); err != nil {
		t.Errorf("no JWS: %v", err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(jws.Payload)
	if err != nil {
		t.Error(err)
	}
	m := map[string]any{}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Error(err)
		}
	}
	return m
}

// peek reads a request's body and puts it back.
func peek(t *testing.T, r *http.Request) []byte {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body
}

// drop lets the server act and loses its answer.
func drop(r *http.Request, next http.Handler) {
	next.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// reply answers in place of the server, with a good nonce.
func reply(w http.ResponseWriter, r *http.Request, next http.Handler, status int, header http.Header, body any) {
	nonce := httptest.NewRecorder()
	head := r.Clone(r.Context())
	head.Method, head.URL.Path, head.Body = http.MethodHead, "/new-nonce", http.NoBody
	next.ServeHTTP(nonce, head)
	w.Header().Set("Replay-Nonce", nonce.Header().Get("Replay-Nonce"))
	for k, v := range header {
		w.Header()[k] = v
	}
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		fmt.Fprintln(w, err)
	}
}

func problemBody(kind, detail string, subs ...map[string]any) map[string]any {
	return map[string]any{"type": typeURN + kind, "detail": detail, "subproblems": subs}
}
