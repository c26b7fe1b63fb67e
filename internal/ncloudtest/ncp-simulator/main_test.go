package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"testing"

	"github.com/miekg/dns"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

func TestTheCommandServesUntilItIsToldToStop(t *testing.T) {
	for _, args := range [][]string{{"--dir", t.TempDir()}, {"--dir", t.TempDir(), "--tls", "--quota", "5", "--sub-account", "--check-interval", "0"}} {
		ctx, stop := context.WithCancel(t.Context())
		in, out := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- run(ctx, args, out) }()
		var r ready
		if err := json.NewDecoder(in).Decode(&r); err != nil {
			t.Fatal(err)
		}
		cfg := ncloud.Config{BaseURL: r.BaseURL, Credentials: ncloud.Credentials{AccessKey: r.AccessKey, SecretKey: ncloudtest.DefaultSecretKey}}
		if r.TLSRootFile != "" {
			text, err := os.ReadFile(r.TLSRootFile)
			if err != nil {
				t.Fatal(err)
			}
			cfg.RootCAs = x509.NewCertPool()
			cfg.RootCAs.AppendCertsFromPEM(text)
		}
		c, err := ncloud.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Do(ctx, ncloud.Request{Operation: "getCa", Method: "GET", Path: "/api/v1/ca/" + r.CATag, Decode: ncloud.Envelope(nil)}); err != nil {
			t.Error(err)
		}
		res, err := http.Get(r.ControlURL + "/control/counters")
		if err != nil || res.StatusCode != 200 {
			t.Errorf("control: %v, %v", res, err)
		} else {
			res.Body.Close()
		}
		for _, file := range []string{r.RootFile, r.CMRootFile} {
			if root, err := os.ReadFile(file); err != nil || len(root) == 0 {
				t.Errorf("root file: %v", err)
			}
		}
		for _, x := range []struct{ url, path string }{{r.CMBaseURL, "/api/v1/certificates"}, {r.GDNSBaseURL, "/dns/v1/ncpdns/domain"}} {
			cfg.BaseURL = x.url
			c, err := ncloud.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Do(ctx, ncloud.Request{Operation: "list", Method: "GET", Path: x.path, Query: map[string][]string{"page": {"0"}, "size": {"1"}}}); err != nil {
				t.Error(err)
			}
			c.Close()
		}
		answer, err := dns.ExchangeContext(ctx, new(dns.Msg).SetQuestion("ns1-1.simulated-dns.example.", dns.TypeA), r.DNSAddress)
		if err != nil || len(answer.Answer) != 1 {
			t.Errorf("DNS: %v, %v", answer, err)
		}
		c.Close()
		http.DefaultClient.CloseIdleConnections()
		stop()
		if err := <-done; err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{{"--listen", "0.0.0.0:0"}, {"--colour"}, {"extra"}, {"--quota", "-1"}, {"--openapi", "/nowhere"}, {"--openapi-cm", "/nowhere"},
		{"--dns", "nowhere"}, {"--dns-listen", "0.0.0.0:0"}, {"--cm-listen", "0.0.0.0:0"}} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
