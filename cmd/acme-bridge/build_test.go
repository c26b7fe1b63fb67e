package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/backend/certmanager"
	"github.com/acme-bridge/acme-bridge/config"
)

func testApp(backends map[string]*backend) *app {
	a := &app{log: slog.New(slog.DiscardHandler), reloaded: make(chan struct{}, 1)}
	a.parts.Store(&parts{backends: backends})
	return a
}

func TestNewOrderHeedsWhatABackendKnowsBeforehand(t *testing.T) {
	refusal := acme.Problemf(acme.RejectedIdentifier, "not validated")
	says := func(err error) *backend {
		return &backend{preflight: func(ctx context.Context, _ []acme.Identifier) error {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("the preflight has no deadline")
			}
			return err
		}}
	}
	a := testApp(map[string]*backend{"fine": says(nil), "refuses": says(refusal), "silent": says(errors.New("connection refused")), "never": {}})
	for name, want := range map[string]error{
		"fine": nil, "refuses": refusal, "never": nil, "unknown": nil,
		"silent": nil, // it cannot tell, and the order's own end will
	} {
		if got := a.preflight(t.Context(), name, nil); !errors.Is(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestJobsFollowReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer // read when all jobs wait
		var mu sync.Mutex
		running := map[string]int{}
		count := func(name string, n int) {
			mu.Lock()
			defer mu.Unlock()
			running[name] += n
		}
		job := func(name string) *backend {
			return &backend{run: func(ctx context.Context) error {
				count(name, 1)
				<-ctx.Done()
				count(name, -1)
				return ctx.Err()
			}}
		}
		kept, gone, broken := job("kept"), job("gone"), &backend{run: func(context.Context) error { return errors.New("broken") }}
		a := testApp(map[string]*backend{"kept": kept, "gone": gone, "broken": broken, "without": {}})
		a.log = slog.New(slog.NewTextHandler(&log, nil))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- a.watch(ctx) }()
		expect := func(when string, want map[string]int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !reflect.DeepEqual(running, want) {
				t.Errorf("%s: running %v, want %v", when, running, want)
			}
		}
		expect("at first", map[string]int{"kept": 1, "gone": 1})
		if n := strings.Count(log.String(), "watch of domains has ended"); n != 1 {
			t.Errorf("a job that ended was logged %d times:\n%s", n, &log)
		}
		// "gone" was changed: another backend has its name.
		a.parts.Store(&parts{backends: map[string]*backend{"kept": kept, "gone": job("changed")}})
		a.reloaded <- struct{}{}
		expect("after the reload", map[string]int{"kept": 1, "gone": 0, "changed": 1})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		expect("at the end", map[string]int{"kept": 0, "gone": 0, "changed": 0})
	})
}

func TestPublishersAreTriedOnTheDomainsOfTheirProfiles(t *testing.T) {
	profile := func(backend string, allow ...string) *config.Profile {
		return &config.Profile{Backend: backend, Identifiers: config.Identifiers{Allow: allow}}
	}
	cfg := &config.Config{
		Backends: map[string]*config.Backend{"dv": {Publisher: "dns"}, "other": {Publisher: "bind"}, "lab": {}},
		Profiles: map[string]*config.Profile{
			"a": profile("dv", "*.a.example", "www.b.example", "*"), "b": profile("dv", "a.example"),
			"c": profile("other", "c.example"), "d": profile("lab", "d.example"), "e": profile("nobody"),
		},
	}
	if got, want := zonesOf(cfg, "dns"), []string{"a.example", "www.b.example"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	tried := &dnsPublisher{check: func(_ context.Context, name string) error {
		if name == "bad.example" {
			return errors.New("no such zone")
		}
		return nil
	}}
	if facts, err := checkPublisher(t.Context(), tried, []string{"a.example", "bad.example"}); len(facts) != 1 || err == nil || err.Error() != "bad.example: no such zone" {
		t.Errorf("got %v and %v", facts, err)
	}
	if facts, err := checkPublisher(t.Context(), tried, nil); err != nil || len(facts) != 1 || !strings.Contains(facts[0], "not tried") {
		t.Errorf("without domains: got %v and %v", facts, err)
	}
}

func TestAReportIsPutIntoWords(t *testing.T) {
	facts, err := certManagerFacts(&certmanager.Report{CertificateType: "NCP_PAID_DV_01", ValidationMethod: "PD",
		Domains:  []certmanager.DomainStatus{{Domain: certmanager.Domain{Name: "a.example", State: "VALID"}}},
		Warnings: []string{"the clock"}, Errors: []string{"one", "two"}})
	if err == nil || err.Error() != "one; two" {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{"type NCP_PAID_DV_01", "domain a.example is VALID", "warning: the clock"} {
		if !strings.Contains(strings.Join(facts, "\n"), want) {
			t.Errorf("%q is not in %v", want, facts)
		}
	}
}

func TestABackendWhosePublisherFailedSaysSo(t *testing.T) {
	a := &app{log: slog.New(slog.DiscardHandler)}
	cfg := &config.Backend{Type: config.BackendCertManager, Publisher: "dns"}
	if _, err := a.newBackend(t.Context(), "dv", cfg, nil); err == nil || err.Error() != "its publisher dns cannot be used" {
		t.Errorf("got %v", err)
	}
}
