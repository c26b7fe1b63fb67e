package ncloud

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func newClient(t *testing.T, url string, set func(*Config)) *Client {
	t.Helper()
	cfg := Config{
		Backend: "corp-ca", BaseURL: url, Credentials: exampleKeys, Timeout: 10 * time.Second,
		Wait: func(context.Context, time.Duration) error { return nil },
	}
	if set != nil {
		set(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

func failure(t *testing.T, err error) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got %v, want an *Error", err)
	}
	return e
}

func post() Request {
	return Request{Operation: "signEndCsr", Method: "POST", Path: "/sign", Body: map[string]string{"csrPem": "x"}, Decode: Envelope(nil)}
}

func get() Request {
	return Request{Operation: "getCa", Method: "GET", Path: "/ca", Decode: Envelope(nil)}
}

func TestAnswersSayWhetherTheCallWasApplied(t *testing.T) {
	gateway := func(code, message string) string {
		return `{"error":{"errorCode":` + code + `,"message":"` + message + `","details":"More."}}`
	}
	for _, tt := range []struct {
		name    string
		status  int
		body    string
		applied Applied
		outcome Outcome
		code    string
		message string
	}{
		{"gateway bad request", 400, gateway(`"100"`, "Bad Request Exception"), No, OutcomeRefused, "100", "Bad Request Exception: More."},
		{"gateway authentication", 401, gateway(`"200"`, "Authentication Failed"), No, OutcomeUnauthorized, "200", "Authentication Failed: More."},
		{"gateway code as a number", 401, gateway(`401`, "No"), No, OutcomeUnauthorized, "401", "No: More."},
		{"gateway not found", 404, gateway(`"300"`, "Not Found Exception"), No, OutcomeRefused, "300", "Not Found Exception: More."},
		{"gateway too large", 413, gateway(`"430"`, "Request Entity Too Large"), No, OutcomeRefused, "430", "Request Entity Too Large: More."},
		{"gateway throttled", 429, gateway(`"410"`, "Throttle Limited"), No, OutcomeThrottled, "410", "Throttle Limited: More."},
		{"gateway endpoint error", 503, gateway(`"500"`, "Endpoint Error"), Unknown, OutcomeUnavailable, "500", "Endpoint Error: More."},
		{"gateway endpoint timeout", 504, gateway(`"510"`, "Endpoint Timeout"), Unknown, OutcomeUnavailable, "510", "Endpoint Timeout: More."},
		{"gateway unexpected", 500, gateway(`"900"`, "Unexpected Error"), Unknown, OutcomeUnavailable, "900", "Unexpected Error: More."},
		{"gateway error with status 200", 200, gateway(`"200"`, "Authentication Failed"), No, OutcomeUnauthorized, "200", "Authentication Failed: More."},
		{"gateway throttle with status 200", 200, gateway(`"420"`, "Rate Limited"), No, OutcomeThrottled, "420", "Rate Limited: More."},
		{"gateway timeout with status 200", 200, gateway(`"510"`, "Endpoint Timeout"), Unknown, OutcomeUnavailable, "510", "Endpoint Timeout: More."},
		{"service refusal", 400, `{"code":"INVALID_REQUEST","msg":"Invalid csr.","data":null}`, No, OutcomeRefused, "INVALID_REQUEST", "Invalid csr."},
		{"service refusal with a dash as code", 400, `{"code":"-","msg":"Invalid csr."}`, No, OutcomeRefused, "-", "Invalid csr."},
		{"service core failed, status 400", 400, `{"code":"FAIL_CORE","msg":"oops"}`, Unknown, OutcomeRefused, "FAIL_CORE", "oops"},
		{"service forbidden", 403, `{"code":"FORBIDDEN","msg":"no"}`, No, OutcomeUnauthorized, "FORBIDDEN", "no"},
		{"service unprocessable", 422, `{"code":"UNPROCESSABLE_ENTITY","msg":"no"}`, No, OutcomeRefused, "UNPROCESSABLE_ENTITY", "no"},
		{"service error", 500, `{"code":"INTERNAL_SERVER_ERROR","msg":"temporarily not available"}`, Unknown, OutcomeUnavailable, "INTERNAL_SERVER_ERROR", "temporarily not available"},
		{"service refusal with status 200", 200, `{"code":"EXCEED_SIGNING_COUNT","msg":"full","data":null}`, No, OutcomeRefused, "EXCEED_SIGNING_COUNT", "full"},
		{"service failure with status 200", 200, `{"code":"FAIL_CORE","msg":"oops"}`, Unknown, OutcomeUnavailable, "FAIL_CORE", "oops"},
		{"unknown code with status 200", 200, `{"code":"NEW_THING","msg":"?"}`, Unknown, OutcomeUnavailable, "NEW_THING", "?"},
		{"older service", 400, `{"responseError":{"returnCode":1100,"returnMessage":"bad"}}`, No, OutcomeRefused, "1100", "bad"},
		{"certificate manager", 400, `{"returnCode":"2101","returnMessage":"bad"}`, No, OutcomeRefused, "2101", "bad"},
		{"global dns", 400, `{"result":"FAIL","error":{"errorCode":"X00007","message":"bad"}}`, No, OutcomeRefused, "X00007", "bad"},
		{"refusal without JSON", 404, `<html>nginx</html>`, No, OutcomeRefused, "", ""},
		{"a refusal that proves nothing", 408, ``, Unknown, OutcomeRefused, "", ""},
		{"bad gateway", 502, `<html>`, Unknown, OutcomeUnavailable, "", ""},
		{"redirect", 302, ``, Unknown, OutcomeBroken, "", ""},
		{"success without JSON", 200, `<html>`, Unknown, OutcomeBroken, "", ""},
		{"success with half an answer", 200, `{"code":"SUCC`, Unknown, OutcomeBroken, "", ""},
		{"success with nothing", 200, ``, Unknown, OutcomeBroken, "", ""},
		{"success without code", 200, `{"data":{}}`, Unknown, OutcomeBroken, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("x-ncp-trace-id", "trace-1")
				w.WriteHeader(tt.status)
				io.WriteString(w, tt.body)
			})
			e := failure(t, newClient(t, url, nil).Do(t.Context(), post()))
			if e.Applied != tt.applied || e.Outcome != tt.outcome || e.Code != tt.code || e.Message != tt.message || e.Status != tt.status {
				t.Errorf("got %+v", e)
			}
			if e.TraceID != "trace-1" || !strings.Contains(e.Error(), "trace-1") || !strings.Contains(e.Error(), "signEndCsr") {
				t.Errorf("trace or operation missing: %s", e)
			}
		})
	}
}

func TestOnlyReadsAreRepeated(t *testing.T) {
	for _, tt := range []struct {
		name   string
		r      Request
		status int
		want   int64
	}{
		{"a read after 503", get(), 503, 4},
		{"a read after 429", get(), 429, 4},
		{"a read that is refused", get(), 400, 1},
		{"a read without permission", get(), 401, 1},
		{"a write after 503", post(), 503, 1},
		{"a write after 429", post(), 429, 1},
		{"a write without body after 503", Request{Operation: "revokeEndCert", Method: "POST", Path: "/x"}, 503, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var calls atomic.Int64
			url := serve(t, func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				w.WriteHeader(tt.status)
			})
			if err := newClient(t, url, nil).Do(t.Context(), tt.r); err == nil {
				t.Fatal("got no error")
			}
			if got := calls.Load(); got != tt.want {
				t.Errorf("got %d calls, want %d", got, tt.want)
			}
		})
	}
}

func TestEachAttemptIsSignedAfreshAfterWhatRetryAfterAsks(t *testing.T) {
	var now atomic.Int64
	now.Store(exampleMillis)
	var stamps []string
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		stamps = append(stamps, r.Header.Get("x-ncp-apigw-timestamp"))
		want := exampleKeys.signature(r.Method, r.RequestURI, stamps[len(stamps)-1])
		if r.Header.Get("x-ncp-apigw-signature-v2") != want {
			t.Error("signature does not fit the timestamp")
		}
		if len(stamps) == 1 {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(429)
			return
		}
		io.WriteString(w, `{"code":"SUCCESS","msg":"Success","data":null}`)
	})
	c := newClient(t, url, func(cfg *Config) {
		cfg.Now = func() time.Time { return time.UnixMilli(now.Load()) }
		cfg.Wait = func(_ context.Context, d time.Duration) error {
			now.Add(d.Milliseconds())
			return nil
		}
	})
	if err := c.Do(t.Context(), get()); err != nil {
		t.Fatal(err)
	}
	if want := strconv.Itoa(exampleMillis + 7000); len(stamps) != 2 || stamps[1] != want {
		t.Errorf("got timestamps %v, want the second to be %s", stamps, want)
	}
}

func TestA429WithRetryAfterHoldsBackLaterCalls(t *testing.T) {
	var now, calls atomic.Int64
	now.Store(exampleMillis)
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(429)
			return
		}
		io.WriteString(w, `{"code":"SUCCESS","msg":"Success"}`)
	})
	c := newClient(t, url, func(cfg *Config) { cfg.Now = func() time.Time { return time.UnixMilli(now.Load()) } })
	if e := failure(t, c.Do(t.Context(), post())); e.Applied != No || e.Retry != 30*time.Second {
		t.Errorf("got %+v", e)
	}
	now.Add(10_000)
	if e := failure(t, c.Do(t.Context(), post())); e.Applied != No || e.Outcome != OutcomeThrottled || e.Retry != 20*time.Second {
		t.Errorf("within the pause: got %+v", e)
	}
	if got := calls.Load(); got != 1 {
		t.Errorf("within the pause: got %d calls, want 1", got)
	}
	now.Add(20_000)
	if err := c.Do(t.Context(), post()); err != nil {
		t.Errorf("after the pause: %v", err)
	}
}

func TestAnUnreachableGatewayWasNotSentTo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	e := failure(t, newClient(t, "http://"+addr, nil).Do(t.Context(), post()))
	if e.Applied != No || e.Outcome != OutcomeUnreachable {
		t.Errorf("got %+v", e)
	}
}

func TestATLSFailureWasNotSentTo(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	srv.StartTLS()
	defer srv.Close()
	e := failure(t, newClient(t, srv.URL, nil).Do(t.Context(), post())) // its root is not trusted
	if e.Applied != No {
		t.Errorf("got %+v", e)
	}
}

func TestAConnectionClosedInPlaceOfAnAnswerLeavesTheOutcomeUnknown(t *testing.T) {
	for _, overTLS := range []bool{false, true} {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			conn.Close()
		})
		srv := httptest.NewUnstartedServer(h)
		set := func(*Config) {}
		if overTLS {
			srv.StartTLS()
			set = func(cfg *Config) { cfg.RootCAs = srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs }
		} else {
			srv.Start()
		}
		e := failure(t, newClient(t, srv.URL, set).Do(t.Context(), post()))
		srv.Close()
		if e.Applied != Unknown || e.Outcome != OutcomeBroken {
			t.Errorf("tls %t: got %+v", overTLS, e)
		}
	}
}

func TestABodyThatBreaksOffLeavesTheOutcomeUnknown(t *testing.T) {
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, `{"code":"SUCCESS"`)
	})
	if e := failure(t, newClient(t, url, nil).Do(t.Context(), post())); e.Applied != Unknown || e.Outcome != OutcomeBroken {
		t.Errorf("got %+v", e)
	}
}

func TestAnEndlessBodyIsCutOff(t *testing.T) {
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write(bytes.Repeat([]byte(" "), 1<<10)); err != nil {
				return
			}
		}
	})
	c := newClient(t, url, func(cfg *Config) { cfg.MaxAnswer = 4 << 10 })
	if e := failure(t, c.Do(t.Context(), post())); e.Applied != Unknown || !strings.Contains(e.Error(), "longer than 4096") {
		t.Errorf("got %v", e)
	}
}

// pipeDial connects clients to h through memory, so that a synctest bubble's
// clock governs both sides.
func pipeDial(t *testing.T, h http.HandlerFunc) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			in := bufio.NewReader(server)
			for {
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					return
				}
				w := httptest.NewRecorder()
				h(w, r)
				answer := w.Result()
				answer.ContentLength = int64(w.Body.Len())
				if answer.Write(server) != nil {
					return
				}
			}
		}()
		return client, nil
	}
}

func TestATimeoutLeavesTheOutcomeUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, "http://localhost", func(cfg *Config) {
			cfg.Dial = pipeDial(t, func(http.ResponseWriter, *http.Request) { time.Sleep(time.Minute) })
		})
		begun := time.Now()
		e := failure(t, c.Do(t.Context(), post()))
		if e.Applied != Unknown || e.Outcome != OutcomeTimeout || !errors.Is(e, context.DeadlineExceeded) {
			t.Errorf("got %+v", e)
		}
		if got, want := time.Since(begun), 10*time.Second; got != want {
			t.Errorf("gave up after %s, want %s", got, want)
		}
		time.Sleep(time.Hour) // the peer's goroutine ends
	})
}

func TestWaitingForASlotIsBoundedAndSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		c := newClient(t, "http://localhost", func(cfg *Config) {
			cfg.MaxInFlight = 1
			cfg.Dial = pipeDial(t, func(http.ResponseWriter, *http.Request) {
				calls.Add(1)
				time.Sleep(time.Minute)
			})
		})
		var first sync.WaitGroup
		first.Go(func() { _ = c.Do(t.Context(), post()) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if e := failure(t, c.Do(ctx, post())); e.Applied != No || e.Outcome != OutcomeTimeout {
			t.Errorf("got %+v", e)
		}
		first.Wait()
		if got := calls.Load(); got != 1 {
			t.Errorf("got %d calls, want 1", got)
		}
		time.Sleep(time.Hour)
	})
}

func TestTheBreakerOpensOnFailuresAndClosesAfterASuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var status, calls atomic.Int64
		reg := prometheus.NewRegistry()
		c := newClient(t, "http://localhost", func(cfg *Config) {
			cfg.Metrics, cfg.Timeout = reg, time.Hour
			cfg.Dial = pipeDial(t, func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				w.WriteHeader(int(status.Load()))
				io.WriteString(w, `{"code":"SUCCESS","msg":"Success"}`)
			})
		})
		status.Store(400)
		for range 20 {
			_ = c.Do(t.Context(), post())
		}
		if got := calls.Load(); got != 20 || !c.Healthy() {
			t.Fatalf("refusals opened the breaker after %d calls", got)
		}
		status.Store(503)
		for range 5 {
			_ = c.Do(t.Context(), post())
		}
		e := failure(t, c.Do(t.Context(), post()))
		if e.Outcome != OutcomeOpen || e.Applied != No || e.Retry <= 0 || e.Retry > 15*time.Second {
			t.Errorf("got %+v", e)
		}
		if got := calls.Load(); got != 25 {
			t.Errorf("got %d calls, want 25", got)
		}
		if got := testutil.ToFloat64(c.metrics.breaker.WithLabelValues("corp-ca")); got != 2 {
			t.Errorf("breaker metric: got %v, want 2", got)
		}
		time.Sleep(e.Retry + time.Millisecond)
		status.Store(200)
		if err := c.Do(t.Context(), post()); err != nil || !c.Healthy() {
			t.Errorf("after the pause: %v", err)
		}
		if got := testutil.ToFloat64(c.metrics.calls.WithLabelValues("corp-ca", "signEndCsr", "breaker_open")); got != 1 {
			t.Errorf("calls held back: got %v, want 1", got)
		}
		c.Close()
		synctest.Wait()
	})
}

func TestReadsPauseLongerEachTimeWithJitter(t *testing.T) {
	var pauses []time.Duration
	url := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
	c := newClient(t, url, func(cfg *Config) {
		cfg.Wait = func(_ context.Context, d time.Duration) error {
			pauses = append(pauses, d)
			return nil
		}
	})
	_ = c.Do(t.Context(), get())
	if len(pauses) != 3 {
		t.Fatalf("got pauses %v, want 3", pauses)
	}
	for i, d := range pauses {
		middle := time.Second << i
		if d < middle/2 || d > middle*3/2 {
			t.Errorf("pause %d: got %s, want about %s", i+1, d, middle)
		}
	}
}

func TestConnectionsAreReused(t *testing.T) {
	var dials atomic.Int64
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"code":"SUCCESS","msg":"Success"}`)
	})
	c := newClient(t, url, func(cfg *Config) {
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
	})
	for range 5 {
		if err := c.Do(t.Context(), post()); err != nil {
			t.Fatal(err)
		}
	}
	if got := dials.Load(); got != 1 {
		t.Errorf("got %d connections, want 1", got)
	}
}

func TestAClockThatIsOffIsNoticed(t *testing.T) {
	var log bytes.Buffer
	gatewayNow := time.UnixMilli(exampleMillis).UTC()
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", gatewayNow.Format(http.TimeFormat))
		w.WriteHeader(401)
		io.WriteString(w, `{"error":{"errorCode":"200","message":"Authentication Failed"}}`)
	})
	c := newClient(t, url, func(cfg *Config) {
		cfg.Now = func() time.Time { return gatewayNow.Add(-7 * time.Minute) }
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	for range 3 {
		e := failure(t, c.Do(t.Context(), post()))
		if !strings.Contains(e.Hint, "behind") || e.Applied != No {
			t.Errorf("got hint %q", e.Hint)
		}
	}
	if skew, ok := c.ClockSkew(); !ok || (skew+7*time.Minute).Abs() > time.Second {
		t.Errorf("got skew %s", skew)
	}
	if got := strings.Count(log.String(), "local clock differs"); got != 1 {
		t.Errorf("warned %d times, want once", got)
	}
}

func TestAServerThatRepeatsOurKeysDoesNotGetThemIntoTheLog(t *testing.T) {
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(401)
		fmt.Fprintf(w, `{"error":{"errorCode":"200","message":"%s\n%s %s"}}`, exampleKeys.AccessKey, exampleKeys.SecretKey, strings.Repeat("x", 10_000))
	})
	e := failure(t, newClient(t, url, nil).Do(t.Context(), post()))
	if s := e.Error(); strings.Contains(s, "EXAMPLE") || strings.Contains(s, "Example") || strings.Contains(s, "\n") || len(s) > 1000 {
		t.Errorf("got %s", s)
	}
}

func TestBaseURLs(t *testing.T) {
	for _, tt := range []struct {
		url string
		ok  bool
	}{
		{"https://pca.apigw.ntruss.com", true},
		{"https://privateca.apigw.gov-ntruss.com/api/v1/", true},
		{"http://127.0.0.1:8080", true},
		{"http://[::1]:8080", true},
		{"http://localhost:8080", true},
		{"http://pca.apigw.ntruss.com", false},
		{"http://127.0.0.1.evil.example", false},
		{"https://user:pw@pca.apigw.ntruss.com", false},
		{"https://pca.apigw.ntruss.com/?a=b", false},
		{"pca.apigw.ntruss.com", false},
		{"ftp://pca.apigw.ntruss.com", false},
		{"", false},
	} {
		_, err := New(Config{BaseURL: tt.url, Credentials: exampleKeys})
		if (err == nil) != tt.ok {
			t.Errorf("%s: got %v", tt.url, err)
		}
	}
	if _, err := New(Config{BaseURL: "https://a.example", Credentials: Credentials{AccessKey: "x"}}); err == nil {
		t.Error("a client without secret key was made")
	}
}

func TestClientsShareOneRegistry(t *testing.T) {
	reg := prometheus.NewRegistry()
	for _, backend := range []string{"a", "b", "a"} {
		if _, err := New(Config{Backend: backend, BaseURL: "https://a.example", Credentials: exampleKeys, Metrics: reg}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestASealedConnectionWritesNothingMore(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	c := &trackedConn{Conn: client}
	if !c.seal(0) {
		t.Error("a fresh connection counts as written to")
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want net.ErrClosed", err)
	}
}

func TestRetryAfterForms(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		in   string
		want time.Duration
	}{
		{"", 0}, {"5", 5 * time.Second}, {"-5", 0}, {"soon", 0}, {"99999999999999999", time.Hour},
		{"Fri, 02 Jan 2026 03:04:35 GMT", 30 * time.Second}, {"Fri, 02 Jan 2026 03:04:00 GMT", 0},
	} {
		if got := retryAfter(http.Header{"Retry-After": {tt.in}}, now); got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.in, got, tt.want)
		}
	}
}
