package validation

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/acme-bridge/acme-bridge/acme"
)

func digestText() string {
	d := sha256.Sum256([]byte(keyAuth))
	return base64.RawURLEncoding.EncodeToString(d[:])
}

func TestAWrongAnswerIsTriedAgainAndTheLastProblemTold(t *testing.T) {
	var tries atomic.Int64
	port := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(500 + int(tries.Add(1)))
	})
	pauses := &recorder{}
	v := newTestValidator(t, Config{HTTPPort: port, Pauses: []time.Duration{time.Second, 4 * time.Second}, Wait: pauses.wait})
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "localhost")), acme.Unauthorized, "status 503")
	if got, want := fmt.Sprint(pauses.pauses), "[1s 4s]"; got != want {
		t.Errorf("pauses %s, want %s", got, want)
	}
	tries.Store(0)
	flaky := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		if tries.Add(1) < 3 {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		io.WriteString(w, keyAuth)
	})
	v = newTestValidator(t, Config{HTTPPort: flaky, Pauses: []time.Duration{1, 2}, Wait: pauses.wait})
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "localhost")), "", "")
}

func TestShutdownIsNoProblem(t *testing.T) {
	reached := make(chan struct{}, 3)
	port := serveRaw(t, func(c net.Conn) {
		reached <- struct{}{}
		io.Copy(io.Discard, c)
	})
	v := newTestValidator(t, Config{HTTPPort: port, TLSPort: port, Timeout: time.Minute})
	for _, challenge := range []acme.ChallengeType{acme.HTTP01, acme.TLSALPN01} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- v.Validate(ctx, validationFor(challenge, "localhost")) }()
		<-reached
		cancel()
		err := <-ended
		if _, ok := errors.AsType[*acme.Problem](err); ok || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want the context's end and no problem", challenge, err)
		}
	}
	// In a pause, and with a deadline.
	ctx, cancel := context.WithCancel(t.Context())
	pauses := &recorder{during: func(int) { cancel() }}
	v = newTestValidator(t, Config{Pauses: []time.Duration{1}, Wait: pauses.wait})
	err := v.Validate(ctx, validationFor(acme.HTTP01, "gone.example"))
	if _, ok := errors.AsType[*acme.Problem](err); ok || !errors.Is(err, context.Canceled) {
		t.Errorf("in a pause: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	v = newTestValidator(t, Config{Pauses: []time.Duration{time.Hour}})
	err = v.Validate(ctx, validationFor(acme.HTTP01, "gone.example"))
	if _, ok := errors.AsType[*acme.Problem](err); ok || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deadline in a pause: %v", err)
	}
}

func TestLesson24_TriesAreBoundedPerNameAndInTotal(t *testing.T) {
	const perName, total, callers = 2, 5, 8
	arrived, goOn := make(chan string), make(chan struct{})
	var mu sync.Mutex
	busy := map[string]int{}
	port := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		busy[r.Host]++
		busy["total"]++
		if busy[r.Host] > perName || busy["total"] > total {
			t.Errorf("%d tries for %s, %d in total", busy[r.Host], r.Host, busy["total"])
		}
		mu.Unlock()
		arrived <- r.Host
		<-goOn
		mu.Lock()
		busy[r.Host]--
		busy["total"]--
		mu.Unlock()
		io.WriteString(w, keyAuth)
	})
	v := newTestValidator(t, Config{HTTPPort: port, MaxInFlight: total, MaxPerName: perName, Timeout: time.Minute})
	var wg sync.WaitGroup
	for _, name := range []string{"a.localhost", "b.localhost", "c.localhost"} {
		for range callers {
			wg.Go(func() { wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, name)), "", "") })
		}
	}
	counts := map[string]int{}
	for range total {
		counts[<-arrived]++
	}
	if len(counts) != 3 {
		t.Errorf("under way: %v, want all names", counts)
	}
	// Whoever waits can be called off.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.Validate(ctx, validationFor(acme.HTTP01, "a.localhost")); !errors.Is(err, context.Canceled) {
		t.Errorf("called off while waiting: %v", err)
	}
	go func() {
		for range 3*callers - total {
			<-arrived
		}
	}()
	close(goOn)
	wg.Wait()
	if len(v.slots.names) != 0 || !v.slots.total.TryAcquire(total) {
		t.Error("slots are still taken")
	}
}

func TestLesson25_WhatIsNotOursIsRefusedBeforeConnecting(t *testing.T) {
	v := newTestValidator(t, Config{Localhost: true, Resolver: fakeResolver{}, Dial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("connected")
		return nil, errors.New("no")
	}})
	for name, tt := range map[string]struct {
		change func(*acme.Validation)
		want   acme.ProblemType
	}{
		"token as a path":          {func(c *acme.Validation) { c.Token = "../../etc"; c.KeyAuthorization = "../../etc.x" }, acme.ServerInternal},
		"empty token":              {func(c *acme.Validation) { c.Token = ""; c.KeyAuthorization = ".x" }, acme.ServerInternal},
		"another's authorization":  {func(c *acme.Validation) { c.KeyAuthorization = "other.thumbprint" }, acme.ServerInternal},
		"no thumbprint":            {func(c *acme.Validation) { c.KeyAuthorization = c.Token + "." }, acme.ServerInternal},
		"white space":              {func(c *acme.Validation) { c.KeyAuthorization += "\n" }, acme.ServerInternal},
		"an unknown challenge":     {func(c *acme.Validation) { c.Type = "email-01" }, acme.Malformed},
		"an IP address":            {func(c *acme.Validation) { c.Identifier = acme.Identifier{Type: "ip", Value: "127.0.0.1"} }, acme.UnsupportedIdentifier},
		"a wildcard, not its base": {func(c *acme.Validation) { c.Identifier.Value = "*.localhost" }, acme.UnsupportedIdentifier},
	} {
		c := validationFor(acme.HTTP01, "localhost")
		tt.change(c)
		err := v.Validate(t.Context(), c)
		wantProblem(t, err, tt.want, "")
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

func TestRFC6761_LocalhostNeedsNoDNSWhereTheZoneSaysSo(t *testing.T) {
	port := serveHTTP(t, write(keyAuth))
	s := newDNSServer(t)
	v := newTestValidator(t, Config{HTTPPort: port, Resolvers: []string{s.addr}, Localhost: true})
	for _, name := range []string{"localhost", "demo.localhost", "a.b.localhost"} {
		wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, name)), "", "")
	}
	if q := s.questions(); len(q) > 0 {
		t.Errorf("asked %q", q)
	}
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "notlocalhost")), acme.DNS, "no such name")
	v = newTestValidator(t, Config{HTTPPort: port, Resolvers: []string{s.addr}})
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "demo.localhost")), acme.DNS, "no such name")
	v = newTestValidator(t, Config{HTTPPort: port, Localhost: true, AllowNetworks: []netip.Prefix{}})
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.HTTP01, "demo.localhost")), acme.Connection, "private, special or denied")
}

func TestMetricsCountResultsAndAreSharedByZones(t *testing.T) {
	reg := prometheus.NewRegistry()
	port := serveHTTP(t, write(keyAuth))
	one := newTestValidator(t, Config{HTTPPort: port, Metrics: reg})
	two := newTestValidator(t, Config{HTTPPort: port, Metrics: reg})
	one.Validate(t.Context(), validationFor(acme.HTTP01, "localhost"))
	two.Validate(t.Context(), validationFor(acme.HTTP01, "localhost"))
	two.Validate(t.Context(), validationFor(acme.DNS01, "localhost"))
	two.Validate(t.Context(), validationFor("chosen-by-no-one", "localhost"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	two.Validate(ctx, validationFor(acme.TLSALPN01, "localhost"))
	const want = `
# HELP acme_bridge_validations_total Validations by challenge type and result: valid, the type of the problem, or aborted.
# TYPE acme_bridge_validations_total counter
acme_bridge_validations_total{result="aborted",type="tls-alpn-01"} 1
acme_bridge_validations_total{result="dns",type="dns-01"} 1
acme_bridge_validations_total{result="malformed",type="other"} 1
acme_bridge_validations_total{result="valid",type="http-01"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "acme_bridge_validations_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(reg, "acme_bridge_validation_duration_seconds"); err != nil || n != 4 {
		t.Errorf("%d histograms (%v), want 4", n, err)
	}
}

func TestConfigErrorsAreReportedTogether(t *testing.T) {
	_, err := New(Config{
		Resolvers: []string{"192.0.2.1", ":53"}, HTTPPort: 70000, TLSPort: -1, Timeout: -1,
		AllowNetworks: []netip.Prefix{{}}, DenyNetworks: []netip.Prefix{{}}, MaxInFlight: -1,
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`"192.0.2.1" is not host:port`, `":53" is not`, "http_port", "tls_port", "timeout", "allow_networks", "deny_networks", "positive"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: no word of %s", err, want)
		}
	}
}
