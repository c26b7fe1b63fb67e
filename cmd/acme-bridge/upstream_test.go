package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/acme-bridge/acme-bridge/config"
	"github.com/acme-bridge/acme-bridge/storage/bolt"
)

// acmeDirectory serves the directory of an ACME server, and nothing else of it.
func acmeDirectory(t *testing.T, meta string) string {
	t.Helper()
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/directory" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"newNonce":"%[1]s/nonce","newAccount":"%[1]s/account","newOrder":"%[1]s/order","revokeCert":"%[1]s/revoke","meta":{%[2]s}}`, srv.URL, meta)
	}))
	t.Cleanup(srv.Close)
	return srv.URL + "/directory"
}

func upstreamConfig(t *testing.T, directory, more string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("test.yaml", []byte(`server: {external_url: 'https://a.example', tls: {mode: off}}
profiles: {p: {identifiers: {allow: ["*.example.com"]}}}
publishers: {dns: {type: rfc2136, server: '127.0.0.1:1'}}
backends: {up: {type: acme, directory: '`+directory+`', `+more+`}}
`))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestAnotherACMEServerIsABackend(t *testing.T) {
	cfg := upstreamConfig(t, acmeDirectory(t, `"termsOfService":"https://ca.example/terms"`), "mode: dns01, publisher: dns, agree_terms: true")
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
	b := p.backends["up"]
	if err := b.usable(t.Context()); err != nil {
		t.Errorf("not ready: %v", err)
	}
	if b.preflight == nil || b.publisher != p.publishers["dns"] || b.domains != nil {
		t.Errorf("backend %+v", b)
	}
	if !p.profiles["p"].SubjectIgnored || p.profiles["p"].Lifetime != 0 {
		t.Errorf("profile %+v", p.profiles["p"])
	}
	facts, err := b.check(t.Context(), nil)
	if got := strings.Join(facts, ", "); err != nil || !strings.Contains(got, "warning: the account is not registered yet") || !strings.Contains(got, "terms of service https://ca.example/terms") {
		t.Errorf("facts %q, %v", got, err)
	}
	again, err := a.build(t.Context(), cfg, p)
	if err != nil || again.backends["up"] != b {
		t.Errorf("a reload without a change made another backend (%v)", err)
	}
}

func TestConfigCheckTellsWhatAnotherACMEServerWants(t *testing.T) {
	terms, binding := `"termsOfService":"https://ca.example/terms"`, `"externalAccountRequired":true`
	for _, tt := range []struct{ name, directory, more, want string }{
		{"nothing", acmeDirectory(t, ""), "", "ok    backends.up: directory http://"},
		{"nothing of the account without a store", acmeDirectory(t, ""), "", "account not tried: it is in the store"},
		{"agreement", acmeDirectory(t, terms), "", "FAIL  backends.up: agree_terms: the server wants agreement to https://ca.example/terms"},
		{"an account binding", acmeDirectory(t, binding), "", "FAIL  backends.up: eab_key_id, eab_key: the server wants an external account binding"},
		{"another profile", acmeDirectory(t, ""), "profile: gold", `FAIL  backends.up: profile: the server does not offer "gold"`},
		{"another URL", acmeDirectory(t, "") + "s", "", "FAIL  backends.up: directory: cannot be read"},
		{"a name server that is away", acmeDirectory(t, ""), "mode: dns01, publisher: dns", "FAIL  publishers.dns: example.com:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			err := checkOnline(t.Context(), upstreamConfig(t, tt.directory, tt.more), &out)
			if !strings.Contains(out.String(), tt.want) || (err != nil) != strings.HasPrefix(tt.want, "FAIL") {
				t.Errorf("got %v and\n%s\nwant %s", err, &out, tt.want)
			}
			if strings.Contains(out.String(), "not registered yet") {
				t.Errorf("the account is judged without a store:\n%s", &out)
			}
		})
	}
}
