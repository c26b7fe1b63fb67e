package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// upstream is a file with another ACME server, whose backend is still open for
// more keys.
const upstream = `server: {external_url: 'https://a.example', tls: {mode: off}}
profiles: {p: {}}
publishers: {dns: {type: rfc2136, server: '127.0.0.1:53'}}
backends: {up: {type: acme, directory: 'https://acme.example/dir', `

func TestAnotherACMEServerNeedsNothingButItsDirectory(t *testing.T) {
	c := parse(t, upstream+"}}\n")
	b, p := c.Backends["up"], c.Profiles["p"]
	if b.Mode != ModePre || b.Publisher != "" || b.OrderTimeout.Std() != 30*time.Minute || b.Timeout.Std() != 30*time.Second || b.AgreeTerms || b.EABKey.IsSet() {
		t.Errorf("defaults %+v", b)
	}
	if p.ClientValidity || p.ACME("p").Lifetime != 0 || slices.Contains(p.KeyTypes, acme.Ed25519) {
		t.Errorf("profile %+v", p)
	}
	if got, want := c.DrainTime(), 35*time.Second; got != want {
		t.Errorf("drain time %s, want the deadline of a call and something, %s", got, want)
	}
}

func TestAnotherACMEServerWithEverything(t *testing.T) {
	c := parse(t, upstream+"mode: dns01, publisher: dns, eab_key_id: k, eab_key: MDEyMzQ1Njc4OTAxMjM0NQ==, contact: ['mailto:a@b.example'], agree_terms: true, profile: tls, order_timeout: 1h, timeout: 5s}}\n")
	b := c.Backends["up"]
	if b.Publisher != "dns" || b.EABKeyID != "k" || !b.EABKey.IsSet() || !b.AgreeTerms || b.Profile != "tls" || len(b.Contact) != 1 {
		t.Errorf("got %+v", b)
	}
	parse(t, strings.Replace(upstream, "https://acme.example/dir", "http://127.0.0.1:14000/dir", 1)+"}}\n")
	// It may be a private server, which certifies what it likes.
	parse(t, strings.Replace(upstream, "{p: {}}", "{p: {key_types: [ed25519]}}", 1)+"}}\n")
}

func TestWhatAnotherACMEServerCannotDoIsRefusedWithTheReason(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	directory := func(value string) string {
		return strings.Replace(upstream, "https://acme.example/dir", value, 1) + "}}\n"
	}
	profile := func(text string) string { return strings.Replace(upstream, "{p: {}}", "{p: {"+text+"}}", 1) + "}}\n" }
	for _, tt := range []struct{ name, text, want string }{
		{"no directory", "backends: {up: {type: acme}}\n", "backends.up.directory: is required"},
		{"plain HTTP", directory("http://acme.example/dir"), "must begin with https://; http:// is only for loopback addresses"},
		{"a user in the directory", directory("https://u@acme.example/dir"), "backends.up.directory:"},
		{"an unknown mode", upstream + "mode: http01}}\n", `backends.up.mode: "http01" must be one of pre, dns01`},
		{"challenges that nobody answers", upstream + "mode: dns01}}\n", "backends.up.publisher: is required in mode dns01"},
		{"a publisher without work", upstream + "publisher: dns}}\n", "backends.up.publisher: is only for mode dns01"},
		{"a dangling publisher", upstream + "mode: dns01, publisher: ncp}}\n", `backends.up.publisher: there is no publisher "ncp"`},
		{"an account binding without key", upstream + "eab_key_id: k}}\n", "backends.up.eab_key: is required with eab_key_id"},
		{"a key without name", upstream + "eab_key: MDEyMzQ1Njc4OTAxMjM0NQ}}\n", "backends.up.eab_key_id: is required with eab_key"},
		{"a key in another alphabet", upstream + "eab_key_id: k, eab_key: 'MDEy+zQ1Njc4OTAxMjM0NQ'}}\n", "backends.up.eab_key: is not Base64url"},
		{"half a key", upstream + "eab_key_id: k, eab_key: MDEyMzQ1}}\n", "backends.up.eab_key: is shorter than 128 bits"},
		{"an address for a URL", upstream + "contact: [a@b.example]}}\n", `backends.up.contact[0]: "a@b.example" must be a mailto: URL`},
		{"a long timeout", upstream + "timeout: 2m}}\n", "backends.up.timeout: 2m must be 1s to 1m"},
		{"a short life of orders", upstream + "order_timeout: 1s}}\n", "backends.up.order_timeout: 1s must be 1m to 7d"},
		{"roots that are none", upstream + "roots_file: " + empty + "}}\n", "backends.up.roots_file: has no PEM certificate"},
		{"roots of the server that are missing", upstream + "directory_roots_file: /nonexistent}}\n", "backends.up.directory_roots_file: cannot be read"},
		{"a key of NAVER Cloud", upstream + "access_key: a}}\n", "backends.up.access_key: is only for backends of type privateca and certmanager"},
		{"a directory of Certificate Manager", publicDV + "directory: 'https://a.example'}}\n", "backends.dv.directory: is only for backends of type acme"},
		{"a lifetime", profile("lifetime: 90d"), "profiles.p.lifetime: cannot be set for another ACME server"},
		{"a client's validity", profile("client_validity: true"), "profiles.p.client_validity: cannot be true for another ACME server"},
		{"an own certificate ordered unasked", strings.Replace(upstream, ", tls: {mode: off}", "", 1) + "}}\n", "server.tls.profile: is required: the only profile, p, orders from another ACME server"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := wrong(t, tt.text)
			if !slices.ContainsFunc(got, func(line string) bool { return strings.Contains(line, tt.want) }) {
				t.Errorf("got\n%s\nwant %s", strings.Join(got, "\n"), tt.want)
			}
		})
	}
}

func TestNoErrorHasTheAccountBindingsKey(t *testing.T) {
	for _, text := range []string{"eab_key_id: k, eab_key: 'not+base64'}}\n", "eab_key: c2hvcnQ}}\n"} {
		for _, line := range wrong(t, upstream+text) {
			if strings.Contains(line, "not+base64") || strings.Contains(line, "c2hvcnQ") {
				t.Errorf("the key is in %q", line)
			}
		}
	}
}

func TestCommandsNeedOnlyOneBackendOfAFile(t *testing.T) {
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	b, err := LoadCertManager(write("backends:\n  dv: {type: certmanager, access_key: a, secret_key: b, publisher: gone, roots_file: /nonexistent}\n  ca: {type: privateca, access_key: 'env:CONFIG_TEST_UNSET'}\n"), "dv")
	if err != nil || b.BaseURL != defaultCertManagerURL || b.AccessKey.Reveal() != "a" {
		t.Errorf("got %+v and %v", b, err)
	}
	for _, tt := range []struct{ text, want string }{
		{"backends: {dv: {type: certmanager, access_key: a, secret_key: 'env:CONFIG_TEST_UNSET'}}\n", "backends.dv.secret_key: the environment variable"},
		{"backends: {other: {type: certmanager, access_key: a, secret_key: b}}\n", `there is no backend "dv"; backends has other`},
		{"backends: {dv: {type: local}}\n", "backends.dv: is of type local: name a backend of type certmanager"},
		{"backends: {dv: {}}\n", "backends.dv.type: is required"},
		{"backends: {dv: {type: certmanager, access_key: a, secret_key: b, base_url: 'https://certificatemanager.apigw.gov-ntruss.com'}}\n", "government zone"},
		{"backends: {", "this is not YAML"},
	} {
		if _, err := LoadCertManager(write(tt.text), "dv"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %s", tt.text, err, tt.want)
		}
	}
}
