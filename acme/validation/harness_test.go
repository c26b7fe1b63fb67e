package validation

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acme-bridge/acme-bridge/acme"
)

const (
	token   = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"
	keyAuth = token + ".9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
)

func validationFor(t acme.ChallengeType, name string) *acme.Validation {
	return &acme.Validation{
		OrderID: "order-1", AccountID: "account-1", Type: t, Token: token, KeyAuthorization: keyAuth,
		Identifier: acme.Identifier{Type: acme.TypeDNS, Value: name},
	}
}

// A dnsServer is a real server on loopback, over UDP and TCP.
type dnsServer struct {
	addr string

	mu      sync.Mutex
	records map[string][]dns.RR // by "name TYPE"; a CNAME is found for any type
	rcodes  map[string]int
	asked   []string // "udp name TYPE"
	answer  func(w dns.ResponseWriter, q *dns.Msg) bool
}

func newDNSServer(t testing.TB, records ...string) *dnsServer {
	t.Helper()
	s := &dnsServer{records: map[string][]dns.RR{}, rcodes: map[string]int{}}
	s.add(t, records...)
	udp, tcp := listenBoth(t)
	s.addr = tcp.Addr().String()
	for _, server := range []*dns.Server{{PacketConn: udp, Handler: s}, {Listener: tcp, Handler: s}} {
		started, ended := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			if err := server.ActivateAndServe(); err != nil {
				t.Error(err)
			}
		}()
		<-started
		t.Cleanup(func() {
			server.Shutdown()
			<-ended
		})
	}
	return s
}

// listenBoth finds a port that is free for both protocols.
func listenBoth(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 50 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return udp, tcp
		}
		tcp.Close()
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil, nil
}

func (s *dnsServer) add(t testing.TB, records ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		key := rr.Header().Name + " " + dns.TypeToString[rr.Header().Rrtype]
		s.records[key] = append(s.records[key], rr)
	}
}

func (s *dnsServer) remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, key)
}

func (s *dnsServer) fail(key string, rcode int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rcodes[key] = rcode
}

// answerWith puts f before the usual answer, which is given if f returns false.
func (s *dnsServer) answerWith(f func(w dns.ResponseWriter, q *dns.Msg) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

func (s *dnsServer) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked...)
}

func (s *dnsServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	question := q.Question[0]
	key := question.Name + " " + dns.TypeToString[question.Qtype]
	s.mu.Lock()
	s.asked = append(s.asked, w.LocalAddr().Network()+" "+key)
	m := new(dns.Msg).SetReply(q)
	m.Rcode = s.rcodes[key]
	if cname, ok := s.records[question.Name+" CNAME"]; ok {
		m.Answer = cname
	}
	m.Answer = append(m.Answer[:len(m.Answer):len(m.Answer)], s.records[key]...)
	known := len(m.Answer) > 0
	for k := range s.records {
		known = known || strings.HasPrefix(k, question.Name+" ")
	}
	if !known && m.Rcode == 0 {
		m.Rcode = dns.RcodeNameError
	}
	answer := s.answer
	s.mu.Unlock()
	if answer != nil && answer(w, q) {
		return
	}
	if w.LocalAddr().Network() == "udp" {
		m.Truncate(udpSize)
	}
	w.WriteMsg(m)
}

// A recorder keeps the pauses and lets nobody wait.
type recorder struct {
	mu     sync.Mutex
	pauses []time.Duration
	during func(n int) // called in the n-th pause
}

func (r *recorder) wait(ctx context.Context, d time.Duration) error {
	r.mu.Lock()
	r.pauses = append(r.pauses, d)
	n := len(r.pauses)
	r.mu.Unlock()
	if r.during != nil {
		r.during(n)
	}
	return ctx.Err()
}

func loopback() []netip.Prefix { return prefixes("127.0.0.0/8", "::1/128") }

// newTestValidator fills in what a test leaves open: loopback is allowed, one
// try, a short timeout.
func newTestValidator(t testing.TB, cfg Config) *Validator {
	t.Helper()
	if cfg.AllowNetworks == nil {
		cfg.AllowNetworks = loopback()
	}
	if cfg.Pauses == nil {
		cfg.Pauses = []time.Duration{}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Resolvers == nil && cfg.Resolver == nil {
		cfg.Localhost = true
		cfg.Resolver = fakeResolver{}
	}
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A fakeResolver knows addresses and TXT records by name.
type fakeResolver map[string]any

func (f fakeResolver) Addresses(_ context.Context, name string) ([]netip.Addr, error) {
	switch a := f[name].(type) {
	case func() []netip.Addr:
		return a(), nil
	case string:
		var addrs []netip.Addr
		for s := range strings.SplitSeq(a, " ") {
			addrs = append(addrs, netip.MustParseAddr(s))
		}
		return addrs, nil
	}
	return nil, &LookupError{Reason: "there is no such name", Err: errNoName}
}

func (f fakeResolver) TXT(_ context.Context, name string) ([]string, error) {
	if values, ok := f[name].([]string); ok {
		return values, nil
	}
	return nil, &LookupError{Reason: "there is no such name", Err: errNoName}
}

// wantProblem checks an outcome; want "" is a proof. It returns the detail.
func wantProblem(t *testing.T, err error, want acme.ProblemType, detail string) {
	t.Helper()
	p, ok := errors.AsType[*acme.Problem](err)
	switch {
	case want == "" && err == nil:
	case want == "":
		t.Errorf("got %v, want proof", err)
	case !ok:
		t.Errorf("got %v, want problem %s", err, want)
	case p.Type != want || !strings.Contains(p.Detail, detail):
		t.Errorf("got %v, want %s with %q", p, want, detail)
	}
}

func portOfAddr(t testing.TB, a net.Addr) int {
	t.Helper()
	_, port, err := net.SplitHostPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// serveRaw accepts connections until the test ends and gives each to handle,
// which is waited for.
func serveRaw(t testing.TB, handle func(net.Conn)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return portOfAddr(t, l.Addr())
}

// A syncBuffer collects a log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func debugLog() (*slog.Logger, *syncBuffer) {
	b := new(syncBuffer)
	return slog.New(slog.NewJSONHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug})), b
}
