package globaldns

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
	"github.com/acme-bridge/acme-bridge/publisher"
)

// clock is the time of simulator, client and publishers; waiting moves it.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *clock) Wait(ctx context.Context, d time.Duration) error {
	c.Advance(d)
	return ctx.Err()
}

// records is a store that compares and swaps.
type records struct {
	mu   sync.Mutex
	data map[string][]byte
	ver  map[string]int64
	err  error
}

func (s *records) Record(_ context.Context, name string) ([]byte, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.data[name]), s.ver[name], s.err
}

func (s *records) PutRecord(_ context.Context, name string, data []byte, version int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.ver[name] != version {
		return acme.ErrConflict
	}
	s.data[name], s.ver[name] = bytes.Clone(data), version+1
	return nil
}

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

// A rig is a simulator whose domain is example.com, and one publisher; more of
// them are replicas.
type rig struct {
	t     *testing.T
	sim   *ncloudtest.Simulator
	url   string
	clock *clock
	store *records
	log   *syncBuffer
	reg   *prometheus.Registry
	*Publisher
}

func newRig(t *testing.T, set func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, clock: &clock{now: time.Now().Truncate(time.Second)}, log: new(syncBuffer), reg: prometheus.NewRegistry(),
		store: &records{data: map[string][]byte{}, ver: map[string]int64{}}}
	var err error
	if r.sim, err = ncloudtest.New(ncloudtest.Options{Now: r.clock.Now, DNSListen: "127.0.0.1:0"}); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r.sim)
	t.Cleanup(func() {
		r.sim.Close()
		srv.Close()
		if n := r.sim.Counters().DNS.Rollbacks; n != 0 {
			t.Errorf("got %d rollbacks, want none ever", n)
		}
	})
	r.url = srv.URL
	r.addDomain("example.com")
	r.Publisher = r.replica(set)
	return r
}

func (r *rig) replica(set func(*Config)) *Publisher {
	r.t.Helper()
	client, err := ncloud.New(ncloud.Config{Backend: "ncp-dns", BaseURL: r.url, Now: r.clock.Now, Wait: r.clock.Wait, BreakerFailures: 1000,
		Credentials: ncloud.Credentials{AccessKey: ncloudtest.DefaultAccessKey, SecretKey: ncloudtest.DefaultSecretKey}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(client.Close)
	address := r.sim.DNSAddress()
	confirmer, err := publisher.NewConfirmer(publisher.ConfirmerConfig{Resolvers: []string{address}, Now: r.clock.Now, Log: slog.New(slog.NewTextHandler(r.log, nil)),
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}})
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := Config{Name: "ncp-dns", Client: client, Records: r.store, Confirmer: confirmer, Now: r.clock.Now,
		Log: slog.New(slog.NewTextHandler(r.log, nil)), Metrics: r.reg}
	if set != nil {
		set(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *rig) addDomain(name string) {
	r.t.Helper()
	if _, err := r.sim.AddDNSDomain(name); err != nil {
		r.t.Fatal(err)
	}
}

// edit is somebody else's, in example.com.
func (r *rig) edit(host, kind, content string, apply bool) {
	r.t.Helper()
	if err := r.sim.EditElsewhere(ncloudtest.ForeignEdit{Domain: "example.com", Host: host, Type: kind, Content: content}, apply); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) applyElsewhere() {
	r.t.Helper()
	r.edit("applied-by-hand", "A", "192.0.2.9", true)
}

func (r *rig) inject(f ncloudtest.Fault) {
	r.t.Helper()
	if err := r.sim.Inject(f); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) behave(change func(*ncloudtest.DNSBehaviour)) {
	r.t.Helper()
	if err := r.sim.Change(func(b *ncloudtest.Behaviour) { change(&b.DNS) }); err != nil {
		r.t.Fatal(err)
	}
}

// served lists what the name servers of example.com serve of a type.
func (r *rig) served(kind string) []string {
	var list []string
	for _, x := range r.sim.DNSRecords("example.com") {
		if x.Served && x.Type == kind {
			list = append(list, x.Host+" "+x.Content)
		}
	}
	slices.Sort(list)
	return list
}

// publish wants the result to be served, or not yet.
func (r *rig) publish(fqdn, value string, want bool) {
	r.t.Helper()
	if got, err := r.Publish(r.t.Context(), fqdn, value); err != nil || got != want {
		r.t.Fatalf("Publish %s %s: got %t, %v, want %t", fqdn, value, got, err, want)
	}
}

func (r *rig) logged(text string) bool { return strings.Contains(r.log.String(), text) }
