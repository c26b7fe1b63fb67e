package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const token = "0123456789abcdef0123456789abcdef"

func fine(context.Context) error { return nil }

func options() Options {
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "acme_bridge_test_total", Help: "For this test."})
	registry.MustRegister(counter)
	return Options{
		Token:    token,
		Loopback: true,
		Gatherer: registry,
		Needed:   []Part{{Name: "store", Check: fine}},
		Backends: []Part{{Name: "backend a", Check: fine}, {Name: "backend b", Check: fine}},
		Reload:   func(context.Context) ([]string, error) { return nil, nil },
		Now:      time.Now,
		Log:      slog.New(slog.DiscardHandler),
	}
}

func get(h http.Handler, method, url, auth string) *httptest.ResponseRecorder {
	return send(h, method, url, auth, "")
}

func send(h http.Handler, method, url, auth, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, url, strings.NewReader(body))
	if auth != "" {
		r.Header.Set("Authorization", auth)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestWhoMayReadWhat(t *testing.T) {
	const here, away, rebound = "http://127.0.0.1:14001", "http://10.0.0.1:14001", "http://attacker.example:14001"
	for _, tt := range []struct {
		name              string
		noToken, loopback bool
		method, url, auth string
		want              int
	}{
		{"health needs nothing", true, false, "GET", away + "/healthz", "", 200},
		{"health by HEAD", true, false, "HEAD", away + "/healthz", "", 200},
		{"readiness needs nothing", true, false, "GET", away + "/readyz", "", 200},
		{"metrics are open on loopback", true, true, "GET", here + "/metrics", "", 200},
		{"metrics are open on localhost", true, true, "GET", "http://localhost:14001/metrics", "", 200},
		{"metrics are open on IPv6 loopback", true, true, "GET", "http://[::1]/metrics", "", 200},
		{"metrics are closed to a rebound name", false, true, "GET", rebound + "/metrics", "", 401},
		{"metrics by name with the token", false, true, "GET", rebound + "/metrics", "Bearer " + token, 200},
		{"metrics are closed elsewhere", false, false, "GET", away + "/metrics", "", 401},
		{"metrics elsewhere with the token", false, false, "GET", away + "/metrics", "Bearer " + token, 200},
		{"metrics elsewhere when there is no token", true, false, "GET", away + "/metrics", "Bearer " + token, 403},
		{"reload without a token", false, true, "POST", here + "/api/reload", "", 401},
		{"reload with another token", false, true, "POST", here + "/api/reload", "Bearer " + token + "0", 401},
		{"reload with an empty token", false, true, "POST", here + "/api/reload", "Bearer ", 401},
		{"reload with basic authentication", false, true, "POST", here + "/api/reload", "Basic " + token, 401},
		{"reload when there is no token", true, true, "POST", here + "/api/reload", "Bearer ", 403},
		{"reload with the token", false, true, "POST", here + "/api/reload", "Bearer " + token, 200},
		{"reload by GET", false, true, "GET", here + "/api/reload", "Bearer " + token, 405},
		{"what does not exist", false, true, "GET", here + "/", "Bearer " + token, 404},
		{"what a later version has", false, true, "GET", here + "/api/v1/orders", "Bearer " + token, 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options()
			o.Loopback = tt.loopback
			if tt.noToken {
				o.Token = ""
			}
			w := get(New(o), tt.method, tt.url, tt.auth)
			if w.Code != tt.want {
				t.Errorf("got %d %s, want %d", w.Code, w.Body, tt.want)
			}
			if got := w.Header().Get("X-Content-Type-Options"); got != "nosniff" {
				t.Errorf("X-Content-Type-Options: got %q", got)
			}
			if got := w.Header().Get("WWW-Authenticate"); (got != "") != (tt.want == 401) {
				t.Errorf("WWW-Authenticate with %d: got %q", w.Code, got)
			}
		})
	}
}

func TestMetricsAreThoseOfTheRegistry(t *testing.T) {
	w := get(New(options()), "GET", "http://127.0.0.1/metrics", "")
	if !strings.Contains(w.Body.String(), "acme_bridge_test_total 0") {
		t.Errorf("got %s", w.Body)
	}
}

func TestARefusedTokenIsLoggedWithoutBeingShown(t *testing.T) {
	var log strings.Builder
	o := options()
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	w := get(New(o), "POST", "http://127.0.0.1/api/reload", "Bearer a-wrong-token")
	for _, secret := range []string{token, "a-wrong-token"} {
		if strings.Contains(log.String()+w.Body.String(), secret) {
			t.Errorf("%q is shown: %s %s", secret, log.String(), w.Body)
		}
	}
	if !strings.Contains(log.String(), "admin token refused") {
		t.Errorf("got log %q", log.String())
	}
}

func TestReloadTellsWhatHappened(t *testing.T) {
	for _, tt := range []struct {
		name    string
		restart []string
		err     error
		status  int
		want    []string
	}{
		{"all is in force", nil, nil, 200, []string{`"reloaded": true`}},
		{"some keys need a restart", []string{"server.listen"}, nil, 200, []string{`"reloaded": true`, `"restart_needed"`, "server.listen"}},
		{"one error", nil, errors.New("no such file"), 422, []string{`"reloaded": false`, `"no such file"`}},
		{"several errors", nil, fmt.Errorf("reload: %w", errors.Join(errors.New("a.yaml:1: one"), errors.New("a.yaml:2: two"))), 422, []string{`"a.yaml:1: one"`, `"a.yaml:2: two"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options()
			o.Reload = func(ctx context.Context) ([]string, error) {
				if _, ok := ctx.Deadline(); !ok {
					t.Error("the reload has no deadline")
				}
				return tt.restart, tt.err
			}
			w := get(New(o), "POST", "http://127.0.0.1/api/reload", "Bearer "+token)
			if w.Code != tt.status {
				t.Errorf("got %d, want %d", w.Code, tt.status)
			}
			for _, want := range tt.want {
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("got %s, want %s in it", w.Body, want)
				}
			}
		})
	}
}

type readiness struct {
	Ready  bool
	Reason string
	Parts  []struct {
		Name   string
		OK     bool
		Reason string
	}
}

func ready(t *testing.T, h http.Handler) (int, readiness) {
	t.Helper()
	w := get(h, "GET", "http://127.0.0.1/readyz", "")
	var r readiness
	if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	return w.Code, r
}

func TestReadyNeedsTheStoreAndOneBackend(t *testing.T) {
	broken := func(context.Context) error { return errors.New("connection refused") }
	panics := func(context.Context) error { return []error{}[len(os.Args)] }
	for _, tt := range []struct {
		name        string
		store, a, b func(context.Context) error
		want        int
		reason      string
	}{
		{"all is well", fine, fine, fine, 200, ""},
		{"one backend is enough", fine, broken, fine, 200, ""},
		{"no backend is not", fine, broken, broken, 503, "no backend can be used"},
		{"the store is needed", broken, fine, fine, 503, "the store cannot be used"},
		{"a check that panics is a bad answer", panics, fine, fine, 503, "the store cannot be used"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options()
			o.Needed[0].Check, o.Backends[0].Check, o.Backends[1].Check = tt.store, tt.a, tt.b
			code, r := ready(t, New(o))
			if code != tt.want || r.Ready != (tt.want == 200) || r.Reason != tt.reason {
				t.Errorf("got %d %+v, want %d %q", code, r, tt.want, tt.reason)
			}
			names := []string{"store", "backend a", "backend b"}
			for i, p := range r.Parts {
				if p.Name != names[i] || p.OK != (p.Reason == "") {
					t.Errorf("got %+v as part %d", p, i)
				}
			}
		})
	}
	o := options()
	o.Backends = nil
	if code, _ := ready(t, New(o)); code != 503 {
		t.Errorf("without backends: got %d, want 503", code)
	}
}

func TestAProbeStormCostsOneCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var checks atomic.Int32
		release := make(chan struct{})
		o := options()
		o.Needed[0].Check = func(context.Context) error {
			checks.Add(1)
			<-release
			return nil
		}
		h := New(o)
		var wait sync.WaitGroup
		for range 100 {
			wait.Go(func() {
				if code, r := ready(t, h); code != 200 {
					t.Errorf("got %d %+v", code, r)
				}
			})
		}
		synctest.Wait()
		close(release)
		wait.Wait()
		for range 100 {
			ready(t, h)
		}
		if got := checks.Load(); got != 1 {
			t.Errorf("got %d checks, want 1", got)
		}
		time.Sleep(defaultFresh) // the bubble's clock: no time passes
		ready(t, h)
		if got := checks.Load(); got != 2 {
			t.Errorf("later: got %d checks, want 2", got)
		}
	})
}

func TestABadAnswerIsBelievedForAShorterTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		o := options()
		o.Needed[0].Fresh = time.Minute
		o.Needed[0].Check = func(context.Context) error {
			if down {
				return errors.New("connection refused")
			}
			return nil
		}
		h := New(o)
		for _, want := range []int{503, 503, 200, 200} {
			if code, r := ready(t, h); code != want {
				t.Errorf("got %d %+v, want %d", code, r, want)
			}
			down = false
			time.Sleep(badFresh / 2)
		}
	})
}

func TestAPartThatDoesNotAnswerIsNotWaitedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var checks atomic.Int32
		release := make(chan struct{})
		o := options()
		o.Backends[0].Check = func(context.Context) error { // deaf to its context
			checks.Add(1)
			<-release
			return nil
		}
		o.Backends[1].Check = func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("ask the CA: %w", ctx.Err())
		}
		h, start := New(o), time.Now()
		for range 3 {
			code, r := ready(t, h)
			if code != 503 || r.Parts[1].Reason != "no answer within 3s" || r.Parts[2].Reason != "ask the CA: context deadline exceeded" {
				t.Errorf("got %d %+v", code, r)
			}
		}
		if got := time.Since(start); got > 3*waitTimeout {
			t.Errorf("3 probes took %s", got)
		}
		if got := checks.Load(); got != 1 {
			t.Errorf("got %d checks at a time, want 1", got)
		}
		close(release)
		synctest.Wait()
		if code, _ := ready(t, h); code != 200 {
			t.Errorf("after the late answer: got %d, want 200", code)
		}
	})
}

func TestACallerWhoLeavesSpoilsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		o := options()
		o.Needed[0].Check = func(ctx context.Context) error {
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		h := New(o)
		ctx, leave := context.WithCancel(t.Context())
		var wait sync.WaitGroup
		wait.Go(func() {
			r := httptest.NewRequestWithContext(ctx, "GET", "http://127.0.0.1/readyz", nil)
			h.ServeHTTP(httptest.NewRecorder(), r)
		})
		synctest.Wait()
		leave()
		wait.Wait()
		close(release)
		if code, r := ready(t, h); code != 200 {
			t.Errorf("got %d %+v, want 200", code, r)
		}
	})
}

func TestLongReasonsAreCut(t *testing.T) {
	o := options()
	o.Needed[0].Check = func(context.Context) error { return errors.New(strings.Repeat("x", 10000)) }
	if _, r := ready(t, New(o)); len(r.Parts[0].Reason) > maxReason+3 {
		t.Errorf("got %d bytes", len(r.Parts[0].Reason))
	}
}

func TestTheServerWorksOverARealListener(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if !IsLoopback(listener.Addr()) {
		t.Errorf("%s is loopback", listener.Addr())
	}
	srv := NewServer(New(options()), slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- srv.Serve(listener) }()
	resp, err := http.Get("http://" + listener.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), `"ok"`) {
		t.Errorf("got %d %s %v", resp.StatusCode, body, err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	for addr, want := range map[string]bool{"0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "[::1]:1": true, "127.9.9.9:1": true} {
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil || IsLoopback(tcp) != want {
			t.Errorf("%s: got %t, want %t (%v)", addr, !want, want, err)
		}
	}
}

// broken is a collector whose metric is an error.
type broken struct{}

func (broken) Describe(chan<- *prometheus.Desc) {}

func (broken) Collect(c chan<- prometheus.Metric) {
	desc := prometheus.NewDesc("acme_bridge_broken", "For this test.", nil, nil)
	c <- prometheus.NewInvalidMetric(desc, errors.New("twice the same"))
}

func TestMetricsThatCannotBeGatheredAreLogged(t *testing.T) {
	var log strings.Builder
	o := options()
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	registry := prometheus.NewRegistry()
	registry.MustRegister(broken{})
	o.Gatherer = registry
	get(New(o), "GET", "http://127.0.0.1/metrics", "")
	if !slices.ContainsFunc(strings.Split(log.String(), "\n"), func(line string) bool {
		return strings.Contains(line, "metrics not gathered") && strings.Contains(line, "twice the same")
	}) {
		t.Errorf("got log %q", log.String())
	}
}
