package redis_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

var ids = acme.IDs{Rand: rand.Reader}

func newAccount(t testing.TB) *acme.Account {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	id, err := ids.Account(now)
	check(t, err)
	thumb, err := ids.Token()
	check(t, err)
	return &acme.Account{ID: id, Directory: "default", Status: acme.StatusValid, Key: []byte(`{"kty":"EC"}`), Thumbprint: thumb, Created: now}
}

func account(t testing.TB, s acme.Store) *acme.Account {
	t.Helper()
	a, _, err := s.CreateAccount(t.Context(), newAccount(t))
	check(t, err)
	return a
}

func newOrder(t testing.TB, a *acme.Account) *acme.Order {
	t.Helper()
	o, err := acme.NewOrder(ids, a, &acme.Profile{
		Name: "internal", OrderLifetime: 24 * time.Hour,
		Challenges: []acme.ChallengeType{acme.HTTP01, acme.DNS01, acme.TLSALPN01},
	}, []acme.Identifier{{Type: acme.TypeDNS, Value: "www.corp.example.com"}}, []*acme.Proof{nil}, time.Now())
	check(t, err)
	return o
}

func order(t testing.TB, s acme.Store, a *acme.Account) *acme.Order {
	t.Helper()
	o := newOrder(t, a)
	check(t, s.CreateOrder(t.Context(), o, acme.OrderLimits{}, time.Now()))
	return o
}

// finish takes an order through all the saves of a flow.
func finish(t testing.TB, s acme.Store, a *acme.Account, o *acme.Order, leaf []byte, notAfter time.Time) *acme.Order {
	t.Helper()
	ctx, now := t.Context(), time.Now().UTC().Truncate(time.Second)
	certID, err := ids.Token()
	check(t, err)
	ref, err := s.PutChain(ctx, []byte("chain"))
	check(t, err)
	for _, step := range []func(*acme.Order) error{
		func(o *acme.Order) error { return o.Respond(0, acme.HTTP01, a, now) },
		func(o *acme.Order) error { return o.Validated(0, acme.HTTP01, nil, 30*24*time.Hour, now) },
		func(o *acme.Order) error { return o.Finalize([]byte("CSR"), now) },
		func(o *acme.Order) error {
			return o.Submit(acme.Intent{Since: now, Deadline: now.Add(time.Minute), Backend: "corp-ca"})
		},
		func(o *acme.Order) error {
			certID = "q6Rv3Fh5yS1mGv0sXy3pD2nYk5E." + certID
			if _, err := s.ClaimCertificate(ctx, certID, o.ID, notAfter.Add(24*time.Hour)); err != nil {
				return err
			}
			return o.Issued(1, &acme.Certificate{ID: certID, Leaf: leaf, ChainRef: ref, Issued: now, NotAfter: notAfter, Backend: "corp-ca"})
		},
	} {
		o, err = s.UpdateOrder(ctx, o, step)
		check(t, err)
	}
	return o
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A proxy stands between client and server, counts what the client sends, and
// can swallow answers.
type proxy struct {
	addr   string
	to     string
	sent   atomic.Int32
	armed  atomic.Bool // swallow the next answer and hang up
	mu     sync.Mutex
	closed []net.Conn
}

func startProxy(t testing.TB, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	p := &proxy{addr: l.Addr().String(), to: to}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for _, c := range p.closed {
			_ = c.Close()
		}
		p.mu.Unlock()
		wg.Wait()
	})
	return p
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	p.closed = append(p.closed, client, server)
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			if err != nil || p.armed.CompareAndSwap(true, false) {
				return
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			break
		}
		p.sent.Add(1)
		if _, err := server.Write(buf[:n]); err != nil {
			break
		}
	}
	_ = server.Close()
	<-done
}

// A logBuffer collects log lines.
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

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(io.Writer(l), nil)) }

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
