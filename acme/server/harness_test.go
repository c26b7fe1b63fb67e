package server_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/acme/server"
	"github.com/acme-bridge/acme-bridge/acme/worker"
	"github.com/acme-bridge/acme-bridge/storage/bolt"
	"github.com/acme-bridge/acme-bridge/storage/redis"
)

// external is what every URL handed out must begin with; nothing listens there.
const external = "https://acme.example"

// patience bounds every wait of a test; none takes that long when all is well.
const patience = 20 * time.Second

// A world is one or more replicas over one store, with a CA and a network made
// up at their edge.
type world struct {
	testing.TB
	store     *hookedStore
	ca        *fakeCA
	validator *fakeValidator
	logs      *logBuffer
	rand      *switchedReader
	offset    atomic.Int64 // of our clock, in nanoseconds
	replicas  []*replica
}

type replica struct {
	*server.Server
	worker  *worker.Worker
	metrics *prometheus.Registry
}

// now is the time by the world's clock.
func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.offset.Load())) }

func (w *world) advance(d time.Duration) { w.offset.Add(int64(d)) }

// newWorld has one replica on a store in a file.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := emptyWorld(t)
	store, err := bolt.Open(bolt.Options{Dir: t.TempDir(), Now: w.now}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	w.store.Store = store
	w.addReplica()
	return w
}

// newSharedWorld has two replicas on one Redis.
func newSharedWorld(t testing.TB) (*world, *redisServer) {
	t.Helper()
	w := emptyWorld(t)
	r := startRedis(t)
	w.store.Store = r.open(t)
	w.addReplica()
	w.addReplica()
	return w, r
}

func emptyWorld(t testing.TB) *world {
	w := &world{TB: t, store: &hookedStore{}, logs: &logBuffer{}, rand: &switchedReader{Reader: rand.Reader}}
	w.ca = newFakeCA(t, w.now)
	w.validator = &fakeValidator{}
	return w
}

// addReplica starts one more server with its worker.
func (w *world) addReplica() {
	w.Helper()
	log := slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	wp := worker.New(worker.Options{Store: w.store, Now: w.now, Log: log, Metrics: prometheus.NewRegistry()}, workerPolicy(w))
	metrics := prometheus.NewRegistry()
	s, err := server.New(server.Options{
		Store: w.store, Queue: wp, Relay: wp.Relay, Revoker: w.ca, ExternalURL: external,
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		Now:            w.now, Rand: w.rand, Log: log, Metrics: metrics,
	}, newPolicy())
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- wp.Run(ctx) }()
	w.Cleanup(func() {
		cancel()
		w.ca.open()
		if err := <-done; err != nil {
			w.Error(err)
		}
	})
	w.replicas = append(w.replicas, &replica{Server: s, worker: wp, metrics: metrics})
}

// setPolicy changes the policy of all replicas.
func (w *world) setPolicy(change func(*server.Policy)) {
	for _, r := range w.replicas {
		p := newPolicy()
		change(p)
		r.SetPolicy(p)
	}
}

const (
	profileLifetime = 30 * 24 * time.Hour
	orderLifetime   = 24 * time.Hour
	holdTime        = 5 * time.Second
)

func newProfiles() map[string]*acme.Profile {
	make := func(name string, change func(*acme.Profile)) *acme.Profile {
		p := &acme.Profile{
			Name: name, Description: "the profile " + name, Backend: "fake", Lifetime: profileLifetime,
			Challenges:    []acme.ChallengeType{acme.HTTP01, acme.DNS01, acme.TLSALPN01},
			Identifiers:   acme.IdentifierPolicy{Types: []acme.IdentifierType{acme.TypeDNS}, Deny: []string{"*.denied.example"}, Wildcards: true, Max: 100},
			KeyTypes:      []acme.KeyType{acme.ECDSAP256, acme.ECDSAP384, acme.RSA2048},
			OrderLifetime: orderLifetime, AuthorizationLifetime: 7 * 24 * time.Hour,
		}
		change(p)
		return p
	}
	profiles := map[string]*acme.Profile{}
	for _, p := range []*acme.Profile{
		make("plain", func(*acme.Profile) {}),
		make("reuse", func(p *acme.Profile) { p.ReuseAuthorizations = true }),
		make("dns-only", func(p *acme.Profile) {
			p.ReuseAuthorizations, p.Challenges = true, []acme.ChallengeType{acme.DNS01}
		}),
		make("dated", func(p *acme.Profile) { p.ClientValidity = true }),
	} {
		profiles[p.Name] = p
	}
	return profiles
}

func newPolicy() *server.Policy {
	return &server.Policy{
		Directories: map[string]*server.Directory{
			server.DefaultDirectory: {Name: server.DefaultDirectory, Profiles: newProfiles(), DefaultProfile: "plain", Website: "https://www.example/"},
			"corp":                  {Name: "corp", Profiles: newProfiles(), DefaultProfile: "reuse", TermsOfService: "https://www.example/terms"},
		},
		Limits:       server.Limits{RequestBody: 128 << 10},
		FinalizeHold: holdTime,
	}
}

func workerPolicy(w *world) *worker.Policy {
	dir := &worker.Directory{Profiles: newProfiles(), Validator: w.validator}
	return &worker.Policy{
		Directories:       map[string]*worker.Directory{server.DefaultDirectory: dir, "corp": dir},
		Issuers:           map[string]acme.Issuer{"fake": fakeIssuer{w.ca}},
		FailedValidations: acme.Limit{Count: 3, Period: time.Hour},
	}
}

// A hookedStore runs hook before each call that matters here; an error of the
// hook is the call's. It stands for what a network can do to a store.
type hookedStore struct {
	acme.Store
	mu   sync.Mutex
	hook func(call string) error
}

func (s *hookedStore) setHook(hook func(call string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

func (s *hookedStore) before(call string) error {
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(call)
}

func (s *hookedStore) Fetch(ctx context.Context, q acme.Lookup, now time.Time) (*acme.Found, error) {
	if err := s.before("Fetch"); err != nil {
		return nil, err
	}
	return s.Store.Fetch(ctx, q, now)
}

func (s *hookedStore) NonceKey(ctx context.Context, proposed []byte) ([]byte, error) {
	if err := s.before("NonceKey"); err != nil {
		return nil, err
	}
	return s.Store.NonceKey(ctx, proposed)
}

func (s *hookedStore) CreateAccount(ctx context.Context, a *acme.Account) (*acme.Account, bool, error) {
	if err := s.before("CreateAccount"); err != nil {
		return nil, false, err
	}
	return s.Store.CreateAccount(ctx, a)
}

func (s *hookedStore) CreateOrder(ctx context.Context, o *acme.Order, l acme.OrderLimits, now time.Time) error {
	if err := s.before("CreateOrder"); err != nil {
		return err
	}
	return s.Store.CreateOrder(ctx, o, l, now)
}

func (s *hookedStore) UpdateOrder(ctx context.Context, last *acme.Order, change func(*acme.Order) error) (*acme.Order, error) {
	if err := s.before("UpdateOrder"); err != nil {
		return nil, err
	}
	return s.Store.UpdateOrder(ctx, last, change)
}

// A redisServer is a real one on loopback, with nothing on disk.
type redisServer struct {
	addr string
	cmd  *exec.Cmd
}

func startRedis(t testing.TB) *redisServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &redisServer{addr: l.Addr().String()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	t.Cleanup(r.stop)
	return r
}

func (r *redisServer) start(t testing.TB) {
	t.Helper()
	_, port, err := net.SplitHostPort(r.addr)
	if err != nil {
		t.Fatal(err)
	}
	r.cmd = exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--appendonly", "no")
	if err := r.cmd.Start(); err != nil {
		t.Fatalf("start redis-server (Debian package redis-server): %v", err)
	}
	eventually(t, "redis-server answers", func() bool {
		c, err := net.DialTimeout("tcp", r.addr, time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		if _, err := io.WriteString(c, "PING\r\n"); err != nil {
			return false
		}
		pong := make([]byte, 5)
		_, err = io.ReadFull(c, pong)
		return err == nil && string(pong) == "+PONG"
	})
}

func (r *redisServer) stop() {
	if r.cmd.ProcessState == nil {
		_ = r.cmd.Process.Kill() // only fails if it has ended by itself
		_ = r.cmd.Wait()         // says that it was killed
	}
}

// command runs one with redis-cli and returns what it prints.
func (r *redisServer) command(t testing.TB, args ...string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(r.addr)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("redis-cli", append([]string{"-p", port}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli %v: %v: %s", args, err, out)
	}
	return string(out)
}

func (r *redisServer) open(t testing.TB) acme.Store {
	t.Helper()
	s, err := redis.New(redis.Options{Addresses: []string{r.addr}, DialTimeout: 500 * time.Millisecond, IOTimeout: 2 * time.Second}, slog.New(slog.DiscardHandler))
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

// eventually waits for what no event announces.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %s in vain: %s", patience, what)
		}
	}
}

// A fakeValidator finds the proof unless the table says otherwise.
type fakeValidator struct {
	mu    sync.Mutex
	table map[string]*acme.Problem // by name, or by name and type: "a.example http-01"
	gate  chan struct{}            // if set, validations wait for its end
	seen  []acme.Validation
}

func (v *fakeValidator) refuse(what string, p *acme.Problem) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.table == nil {
		v.table = make(map[string]*acme.Problem)
	}
	v.table[what] = p
}

// close makes validations wait; the function returned lets them go on.
func (v *fakeValidator) close() (open func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	gate := make(chan struct{})
	v.gate = gate
	return sync.OnceFunc(func() { close(gate) })
}

func (v *fakeValidator) validations() []acme.Validation {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]acme.Validation(nil), v.seen...)
}

func (v *fakeValidator) Validate(ctx context.Context, q *acme.Validation) error {
	v.mu.Lock()
	v.seen = append(v.seen, *q)
	gate := v.gate
	problem := v.table[q.Identifier.Value+" "+string(q.Type)]
	if problem == nil {
		problem = v.table[q.Identifier.Value]
	}
	v.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if problem != nil {
		p := *problem
		return &p
	}
	return nil
}

// A logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A switchedReader can be made to fail.
type switchedReader struct {
	io.Reader
	broken atomic.Bool
}

func (r *switchedReader) Read(p []byte) (int, error) {
	if r.broken.Load() {
		return 0, fmt.Errorf("no entropy")
	}
	return r.Reader.Read(p)
}

// Revoke makes the fake CA the server's Revoker.
func (c *fakeCA) Revoke(_ context.Context, backend string, leaf *x509.Certificate, reason int) error {
	return c.revoke(backend, leaf, reason)
}
