package validation

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

func serveHTTP(t testing.TB, h http.HandlerFunc) int {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return portOfAddr(t, s.Listener.Addr())
}

func write(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, s) }
}

func TestSection8_3_TheRequestIsAPlainGetForTheName(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	seen := make(chan *http.Request, 1)
	port := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		io.WriteString(w, keyAuth)
	})
	v := newTestValidator(t, Config{HTTPPort: port, UserAgent: "acme-bridge/test"})
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "demo.localhost")), "", "")
	r := <-seen
	if got, want := r.Method+" "+r.RequestURI+" "+r.Proto, "GET /.well-known/acme-challenge/"+token+" HTTP/1.1"; got != want {
		t.Errorf("request %q, want %q", got, want)
	}
	if got, want := r.Host, "demo.localhost"; got != want {
		t.Errorf("Host %q, want %q", got, want)
	}
	if got, want := fmt.Sprint(r.Header, r.Close), "map[Accept:[*/*] Accept-Encoding:[identity] Connection:[close] User-Agent:[acme-bridge/test]] true"; got != want {
		t.Errorf("header %s, want %s", got, want)
	}
}

func TestLesson03_TheBodyIsTheKeyAuthorizationAndNothingElse(t *testing.T) {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	io.WriteString(z, keyAuth)
	z.Close()
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   acme.ProblemType
		detail string
	}{
		{"exact", write(keyAuth), "", ""},
		{"trailing white space of all kinds", write(keyAuth + " \t\r\n\v\f\u0085\u00a0\u2003\n"), "", ""},
		{"any 2xx", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusAccepted)
			io.WriteString(w, keyAuth)
		}, "", ""},
		{"chunked", func(w http.ResponseWriter, _ *http.Request) {
			for _, c := range keyAuth {
				io.WriteString(w, string(c))
				w.(http.Flusher).Flush()
			}
		}, "", ""},
		{"after interim answers", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			io.WriteString(w, keyAuth)
		}, "", ""},
		{"leading white space", write(" " + keyAuth), acme.Unauthorized, "is not the key authorization"},
		{"empty", write(""), acme.Unauthorized, "is not the key authorization"},
		{"the token alone", write(token), acme.Unauthorized, "is not the key authorization"},
		{"another thumbprint", write(token + ".xxxx"), acme.Unauthorized, "is not the key authorization"},
		{"more after it", write(keyAuth + "\n" + "x"), acme.Unauthorized, "is not the key authorization"},
		{"too long with a length", write(keyAuth + strings.Repeat(" ", maxKeyAuthorization)), acme.Unauthorized, "too long"},
		{"compressed", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(zipped.Bytes())
		}, acme.Unauthorized, "is not the key authorization"},
		{"404 with the right body", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, keyAuth)
		}, acme.Unauthorized, "status 404"},
		{"503", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, acme.Unauthorized, "status 503"},
		{"304", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }, acme.Unauthorized, "status 304"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := newTestValidator(t, Config{HTTPPort: serveHTTP(t, tt.answer)})
			wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "localhost")), tt.want, tt.detail)
		})
	}
}

func TestLesson24_SlowAndEndlessAnswersAreCutOff(t *testing.T) {
	forever := func(conn net.Conn, chunk string) {
		for {
			if _, err := io.WriteString(conn, chunk); err != nil {
				return
			}
		}
	}
	head := "HTTP/1.1 200 OK\r\n"
	for _, tt := range []struct {
		name   string
		answer func(net.Conn)
		want   acme.ProblemType
		detail string
	}{
		{"no answer at all", func(c net.Conn) { io.Copy(io.Discard, c) }, acme.Connection, "timed out"},
		{"half a header", func(c net.Conn) { io.WriteString(c, head+"X: "); io.Copy(io.Discard, c) }, acme.Connection, "timed out"},
		{"half a body", func(c net.Conn) {
			io.WriteString(c, head+"Content-Length: 87\r\n\r\n"+token)
			io.Copy(io.Discard, c)
		}, acme.Connection, "timed out"},
		{"the right body that does not end", func(c net.Conn) {
			io.WriteString(c, head+"\r\n"+keyAuth)
			io.Copy(io.Discard, c)
		}, acme.Connection, "timed out"},
		{"an octet now and then", func(c net.Conn) {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for range tick.C {
				if _, err := io.WriteString(c, "H"); err != nil {
					return
				}
			}
		}, acme.Connection, "timed out"},
		{"endless body", func(c net.Conn) {
			io.WriteString(c, head+"\r\n"+keyAuth)
			forever(c, "\n")
		}, acme.Unauthorized, "too long"},
		{"endless chunks", func(c net.Conn) {
			io.WriteString(c, head+"Transfer-Encoding: chunked\r\n\r\n")
			forever(c, "1\r\nx\r\n")
		}, acme.Unauthorized, "too long"},
		{"endless header", func(c net.Conn) { io.WriteString(c, head); forever(c, "A: b\r\n") }, acme.Unauthorized, "too long"},
		{"endless header line", func(c net.Conn) { io.WriteString(c, head); forever(c, "AAAAAAAAAAAAAAAA") }, acme.Unauthorized, "too long"},
		{"endless interim answers", func(c net.Conn) { forever(c, "HTTP/1.1 103 Early Hints\r\n\r\n") }, acme.Connection, "malformed"},
		{"protocol switched", func(c net.Conn) { forever(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n") }, acme.Unauthorized, "status 101"},
		{"closed at once", func(net.Conn) {}, acme.Connection, ""},
		{"not HTTP", func(c net.Conn) { io.WriteString(c, "220 mail.example ESMTP\r\n"); io.Copy(io.Discard, c) }, acme.Connection, "malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := newTestValidator(t, Config{HTTPPort: serveRaw(t, tt.answer), Timeout: 300 * time.Millisecond})
			began := time.Now()
			wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "localhost")), tt.want, tt.detail)
			if d := time.Since(began); d > 4*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestRedirectsAreFollowedWithinBounds(t *testing.T) {
	secure := httptest.NewTLSServer(write(keyAuth)) // its certificate is for nobody here
	t.Cleanup(secure.Close)
	mux := http.NewServeMux()
	port := serveHTTP(t, mux.ServeHTTP)
	base := fmt.Sprintf("http://other.localhost:%d", port)
	var cookies atomic.Int64
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		cookies.Add(int64(len(r.Cookies())))
		io.WriteString(w, keyAuth)
	})
	mux.HandleFunc("/hop/{n}", func(w http.ResponseWriter, r *http.Request) {
		var n int
		fmt.Sscan(r.PathValue("n"), &n)
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
		if n == 0 {
			http.Redirect(w, r, "/ok", http.StatusFound)
			return
		}
		http.Redirect(w, r, fmt.Sprintf("%s/hop/%d", base, n-1), http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/secret/", func(w http.ResponseWriter, r *http.Request) { t.Error("a refused redirect was followed") })
	var target string
	mux.HandleFunc(challengePath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Location"] = []string{target}
		w.WriteHeader(http.StatusMovedPermanently)
	})
	resolver := fakeResolver{
		"start.example": "127.0.0.1", "meta.example": "169.254.169.254", "private.example": "10.1.2.3",
		"mapped.example": "::ffff:127.0.0.1", "nat.example": "64:ff9b::7f00:1", "both.example": "0.0.0.0 ::",
	}
	v := newTestValidator(t, Config{HTTPPort: port, TLSPort: portOfAddr(t, secure.Listener.Addr()), Resolver: resolver, Localhost: true})

	for _, tt := range []struct {
		target string
		want   acme.ProblemType
		detail string
	}{
		{"/ok", "", ""},
		{base + "/ok", "", ""},
		{strings.ToUpper(base) + "/ok?q=1#frag", "", ""},
		{base + "/hop/8", "", ""}, // ten redirects
		{base + "/hop/9", acme.Unauthorized, "more than 10 redirects"},
		{fmt.Sprintf("https://secure.localhost:%d/", v.tlsPort), "", ""},
		{"", acme.Unauthorized, "without a proper Location"},
		{"http://%zz/", acme.Unauthorized, "without a proper Location"},
		{"/secret/" + strings.Repeat("x", maxLocation), acme.Unauthorized, "without a proper Location"},

		{"ftp://other.localhost/secret/", acme.Unauthorized, "only http and https"},
		{"file:///etc/passwd", acme.Unauthorized, "only http and https"},
		{"gopher://other.localhost:6379/_SET", acme.Unauthorized, "only http and https"},
		{fmt.Sprintf("http://user:pass@other.localhost:%d/secret/", port), acme.Unauthorized, "user information"},
		{"http://other.localhost:6379/secret/", acme.Unauthorized, "port"},
		{"http://other.localhost:22/", acme.Unauthorized, "port"},
		{"http://other.localhost:0/", acme.Unauthorized, "port"},
		{"http://other.localhost:99999/", acme.Unauthorized, "port"},
		{"http:secret", acme.Unauthorized, "host is not a DNS name"},
		{base + "/secret/?a b", acme.Unauthorized, "malformed"},

		// lesson 2: internal hosts in every disguise
		{fmt.Sprintf("http://127.0.0.1:%d/secret/", port), acme.Unauthorized, "host is not a DNS name"},
		{fmt.Sprintf("http://0x7f000001:%d/secret/", port), acme.Unauthorized, "host is not a DNS name"},
		{fmt.Sprintf("http://2130706433:%d/secret/", port), acme.Unauthorized, "host is not a DNS name"},
		{fmt.Sprintf("http://0177.0.0.1:%d/secret/", port), acme.Unauthorized, "host is not a DNS name"},
		{fmt.Sprintf("http://127.1:%d/secret/", port), acme.Unauthorized, "host is not a DNS name"},
		{fmt.Sprintf("http://localhost.:%d/secret/", port), acme.Unauthorized, "host is not a DNS name"},
		{fmt.Sprintf("http://[::1]:%d/secret/", port), acme.Unauthorized, "host is not a DNS name"},
		{fmt.Sprintf("http://[::ffff:127.0.0.1]:%d/secret/", port), acme.Unauthorized, "host is not a DNS name"},
		{"http://*.localhost/secret/", acme.Unauthorized, "host is not a DNS name"},
		{"http://meta.example/latest/meta-data/", acme.Connection, "does not connect to the addresses"},
		{"http://private.example/", acme.Connection, "does not connect to the addresses"},
		{fmt.Sprintf("http://mapped.example:%d/secret/", port), acme.Connection, "does not connect to the addresses"},
		{fmt.Sprintf("http://nat.example:%d/secret/", port), acme.Connection, "does not connect to the addresses"},
		{fmt.Sprintf("http://both.example:%d/secret/", port), acme.Connection, "does not connect to the addresses"},
		{"http://gone.example/", acme.DNS, "no such name"},
	} {
		target = tt.target
		err := v.Validate(t.Context(), validationFor(acme.HTTP01, "start.example"))
		wantProblem(t, err, tt.want, tt.detail)
		if t.Failed() {
			t.Fatalf("redirect to %q", tt.target)
		}
		if p, ok := errors.AsType[*acme.Problem](err); ok {
			for _, s := range []string{"secret", "gone", "private.", "meta.", "etc", "127", "pass"} {
				if strings.Contains(p.Detail, s) {
					t.Errorf("redirect to %q: the problem repeats %q: %s", tt.target, s, p.Detail)
				}
			}
		}
	}
	if cookies.Load() > 0 {
		t.Error("a cookie was sent back")
	}
}

func TestRedirectOverBrokenTLSIsATLSProblem(t *testing.T) {
	plain := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", fmt.Sprintf("https://localhost:%s/", r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()[len("127.0.0.1:"):]))
		w.WriteHeader(http.StatusFound)
	})
	v := newTestValidator(t, Config{HTTPPort: plain})
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "localhost")), acme.TLS, "the target of redirect 1")
}

func TestLesson02_ProblemsAndLogsHoldNothingFetchedAndNoSecrets(t *testing.T) {
	const canary = "CANARY"
	log, text := debugLog()
	for name, answer := range map[string]string{
		"body":           "HTTP/1.1 200 OK\r\n\r\n" + canary + keyAuth,
		"status line":    "HTTP/1.1 500 " + canary + "\r\n\r\n",
		"status code":    "HTTP/1.1 " + canary + "\r\n\r\n",
		"protocol":       canary + "/1.1 200 OK\r\n\r\n",
		"header":         "HTTP/1.1 200 OK\r\n" + canary + "\r\n\r\n",
		"header value":   "HTTP/1.1 404 Not Found\r\nX: " + canary + "\r\n\r\n",
		"length":         "HTTP/1.1 200 OK\r\nContent-Length: " + canary + "\r\n\r\n",
		"encoding":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + canary + "\r\n\r\n",
		"chunk":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + canary + "\r\n",
		"garbage":        canary + "\r\n\r\n",
		"location":       "HTTP/1.1 302 Found\r\nLocation: http://" + canary + ".example/" + canary + "\r\n\r\n",
		"broken locator": "HTTP/1.1 302 Found\r\nLocation: http://%" + canary + "\r\n\r\n",
		"scheme":         "HTTP/1.1 302 Found\r\nLocation: " + canary + "://x/\r\n\r\n",
		"port":           "HTTP/1.1 302 Found\r\nLocation: http://x.localhost:" + canary + "/\r\n\r\n",
	} {
		port := serveRaw(t, func(c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, answer)
		})
		v := newTestValidator(t, Config{HTTPPort: port, Log: log, Pauses: []time.Duration{0}})
		err := v.Validate(t.Context(), validationFor(acme.HTTP01, "localhost"))
		p, ok := errors.AsType[*acme.Problem](err)
		if !ok {
			t.Errorf("%s: %v, want a problem", name, err)
			continue
		}
		for _, s := range []string{canary, strings.ToLower(canary), token, keyAuth} {
			if strings.Contains(p.Error(), s) {
				t.Errorf("%s: the problem holds %q: %v", name, s, p)
			}
		}
	}
	if out := text.String(); strings.Contains(out, canary) || strings.Contains(out, token) || !strings.Contains(out, `"order":"order-1"`) || !strings.Contains(out, `"account":"account-1"`) {
		t.Errorf("log: %s", out)
	}
}

func TestIPv6IsPreferredAndIPv4FallenBackTo(t *testing.T) {
	four, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := portOfAddr(t, four.Addr())
	six, err := net.Listen("tcp6", fmt.Sprintf("[::1]:%d", port))
	if err != nil {
		t.Fatalf("this test needs IPv6 on loopback: %v", err)
	}
	var hits sync.Map
	server := func(l net.Listener, name string) *http.Server {
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			hits.Store(name, true)
			io.WriteString(w, keyAuth)
		})}
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
		return s
	}
	server(four, "four")
	sixServer := server(six, "six")
	v := newTestValidator(t, Config{HTTPPort: port, Resolver: fakeResolver{"a.example": "127.0.0.1 ::1"}})

	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "a.example")), "", "")
	if _, ok := hits.Load("four"); ok {
		t.Error("IPv4 was asked although IPv6 answers")
	}
	sixServer.Close()
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "a.example")), "", "")
	if _, ok := hits.Load("four"); !ok {
		t.Error("no fallback to IPv4")
	}
}

func TestASilentIPv6AddressLeavesTimeForIPv4(t *testing.T) {
	port := serveHTTP(t, write(keyAuth))
	v := newTestValidator(t, Config{
		HTTPPort: port, Resolver: fakeResolver{"a.example": "2606:4700::1 127.0.0.1"}, Timeout: 30 * time.Second,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasPrefix(address, "[2606") {
				if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 15*time.Second {
					t.Errorf("the first address has until %v", deadline)
				}
				return nil, context.DeadlineExceeded
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	})
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "a.example")), "", "")
}

// The answer of DNS changes between the look and the connection, and between
// two tries.
func TestLesson01_RebindingGainsNothing(t *testing.T) {
	port := serveHTTP(t, write("internal"))
	lookups := 0
	resolver := fakeResolver{"evil.example": func() []netip.Addr {
		lookups++
		if lookups == 1 {
			return []netip.Addr{netip.MustParseAddr("8.8.8.8")}
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
	}}
	var dialed []string
	pauses := &recorder{}
	v := newTestValidator(t, Config{
		HTTPPort: port, Resolver: resolver, AllowNetworks: []netip.Prefix{}, Wait: pauses.wait, Pauses: []time.Duration{1, 2, 3},
		Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			dialed = append(dialed, address)
			return nil, errors.New("nothing there")
		},
	})
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "evil.example")), acme.Connection, "private, special or denied")
	if got, want := fmt.Sprint(dialed, lookups), fmt.Sprintf("[8.8.8.8:%d] 2", port); got != want {
		t.Errorf("dialed and looked up %s, want %s", got, want)
	}
}

func TestLesson01_OwnListenersAreNotReachedByName(t *testing.T) {
	port := serveHTTP(t, func(http.ResponseWriter, *http.Request) { t.Error("connected to a denied endpoint") })
	for _, denied := range []string{"127.0.0.1", "0.0.0.0", "::"} {
		v := newTestValidator(t, Config{HTTPPort: port, Resolver: fakeResolver{"a.example": "127.0.0.1"},
			DenyEndpoints: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(denied), uint16(port))}})
		wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "a.example")), acme.Connection, "does not connect")
	}
}

func TestConnectionErrorsSayWhich(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := portOfAddr(t, l.Addr())
	l.Close()
	v := newTestValidator(t, Config{HTTPPort: port, Resolver: fakeResolver{"a.example": "127.0.0.1"}})
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "a.example")), acme.Connection, fmt.Sprintf("connecting to a.example, port %d: connection refused", port))
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "b.example")), acme.DNS, "no such name")
}

func TestValidationsLeaveNoConnectionsAndNoGoroutines(t *testing.T) {
	var open sync.WaitGroup
	s := httptest.NewUnstartedServer(write(keyAuth))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Done()
		}
	}
	s.Start()
	defer s.Close()
	v := newTestValidator(t, Config{HTTPPort: portOfAddr(t, s.Listener.Addr())})
	before := runtime.NumGoroutine()
	for range 20 {
		wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "localhost")), "", "")
	}
	open.Wait() // the server sees each connection closed
	deadline := time.Now().Add(5 * time.Second)
	for tick := time.NewTicker(time.Millisecond); runtime.NumGoroutine() > before; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
	if len(v.slots.names) != 0 {
		t.Errorf("%d names still have slots", len(v.slots.names))
	}
}

func BenchmarkHTTP01(b *testing.B) {
	reply := []byte("HTTP/1.1 200 OK\r\nContent-Length: 87\r\n\r\n" + keyAuth)
	port := serveRaw(b, func(c net.Conn) {
		var buf [1024]byte
		c.Read(buf[:])
		c.Write(reply)
	})
	v := newTestValidator(b, Config{HTTPPort: port, Resolver: fakeResolver{"a.example": "127.0.0.1"}})
	b.ReportAllocs()
	for b.Loop() {
		if err := v.Validate(b.Context(), validationFor(acme.HTTP01, "a.example")); err != nil {
			b.Fatal(err)
		}
	}
}
