package main

import (
	"errors"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/backend/certmanager"
	"github.com/acme-bridge/acme-bridge/config"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
	"github.com/acme-bridge/acme-bridge/storage/bolt"
)

// The record of a relay challenge proves control for the account that was told
// it. An operator who publishes it must not prove that by mistake.
func TestAnOperatorDoesNotProveControlForAClient(t *testing.T) {
	sim, err := ncloudtest.New(ncloudtest.Options{DNSListen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	sim.AddZone("example.com")
	t.Cleanup(sim.Close)
	srv := httptest.NewServer(sim)
	t.Cleanup(srv.Close)
	cfg, err := config.Parse("test.yaml", []byte(`server: {external_url: 'https://a.example', tls: {mode: off}}
profiles: {p: {challenges: [http-01, ncp-dcv-01]}}
backends: {dv: {type: certmanager, base_url: '`+srv.URL+`', access_key: `+ncloudtest.DefaultAccessKey+`, secret_key: `+ncloudtest.DefaultSecretKey+`, resolvers: ['`+sim.DNSAddress()+`']}}
`))
	if err != nil {
		t.Fatal(err)
	}
	store, err := bolt.Open(bolt.Options{Dir: filepath.Join(t.TempDir(), "state")}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	a := &app{log: slog.New(slog.DiscardHandler), store: store}
	defer a.close()
	p, err := a.build(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	ca, ok := p.backends["dv"].Issuer.(*certmanager.Issuer)
	if !ok {
		t.Fatalf("backend is a %T", p.backends["dv"].Issuer)
	}
	domains := p.backends["dv"].domains
	const name = "shop.example.com"
	records, err := ca.Relay(t.Context(), "account-1", []acme.Identifier{{Type: acme.TypeDNS, Value: name}}, time.Now().Add(time.Hour))
	if err != nil || len(records) != 1 || records[0] == nil {
		t.Fatalf("relay: %v, %v", records, err)
	}
	list, err := domains.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Record != nil || !strings.Contains(strings.Join(list[0].Notes, ";"), "relay challenge") {
		t.Errorf("list: %+v, %v", list, err)
	}
	d, err := domains.Check(t.Context(), name)
	if err != nil || d.Record != nil {
		t.Errorf("check: %+v, %v", d, err)
	}
	if _, _, err := ca.RelayStatus(t.Context(), "account-1", records[0]); errors.As(err, new(*acme.Problem)) {
		t.Errorf("a look has ended the client's challenge: %v", err)
	}
	if d, err = domains.Add(t.Context(), name); err != nil || d.Record == nil {
		t.Fatalf("add: %+v, %v", d, err)
	}
	if err := sim.Publish(d.Record.Name, "TXT", d.Record.Value); err != nil {
		t.Fatal(err)
	}
	valid := certmanager.DomainValid
	if err := sim.ChangeDomain(ncloudtest.DomainChange{Domain: name, State: &valid}); err != nil {
		t.Fatal(err)
	}
	if list, err = domains.List(t.Context()); err != nil || len(list) != 1 || list[0].State != certmanager.DomainValid {
		t.Fatalf("list: %+v, %v", list, err)
	}
	if seen, _, err := ca.RelayStatus(t.Context(), "account-1", records[0]); seen || !errors.As(err, new(*acme.Problem)) {
		t.Errorf("the operator's record speaks for the client: %t, %v", seen, err)
	}
}
