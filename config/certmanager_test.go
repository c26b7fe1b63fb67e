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

// publicDV is a file with a public CA, whose backend is still open for more keys.
const publicDV = `server: {external_url: 'https://a.example', tls: {mode: off}}
profiles: {p: {}}
publishers: {dns: {type: globaldns, access_key: a, secret_key: b}}
backends: {dv: {type: certmanager, access_key: a, secret_key: b, `

func TestCertificateManagerNeedsNothingButItsCredentials(t *testing.T) {
	c := parse(t, publicDV+"}}\n")
	b, p := c.Backends["dv"], c.Profiles["p"]
	if got, want := b.BaseURL, "https://certificatemanager.apigw.ntruss.com"; got != want {
		t.Errorf("base_url %q, want %q", got, want)
	}
	if b.CertificateType != AdvancedDV || b.ValidationMethod != MethodKept || b.DCVTimeout.Std() != 30*time.Minute || b.Renewal != "reissue_then_new" || b.KeyCompromise != "refuse" || b.Publisher != "" {
		t.Errorf("defaults %+v", b)
	}
	if p.ClientValidity || p.ACME("p").Lifetime != 0 {
		t.Errorf("the profile leaves the validity to clients (%t), or asks for %s", p.ClientValidity, p.Lifetime)
	}
	if slices.Contains(p.KeyTypes, acme.Ed25519) || !slices.Contains(p.KeyTypes, acme.ECDSAP384) {
		t.Errorf("key types %v", p.KeyTypes)
	}
	if got, want := c.DrainTime(), 35*time.Second; got != want {
		t.Errorf("drain time %s, want the deadline of a call and something, %s", got, want)
	}
	if got, want := c.Publishers["dns"].BaseURL, "https://globaldns.apigw.ntruss.com"; got != want || c.Publishers["dns"].TTL != 60 {
		t.Errorf("publisher %+v, want %q and 60", c.Publishers["dns"], want)
	}
}

func TestTheRelayChallengeIsOfferedByProfilesThatListIt(t *testing.T) {
	relay := func(challenges, name string) string {
		return strings.Replace(publicDV, "profiles: {p: {}}", "profiles: {p: {"+challenges+"}}", 1) + name + "}}\n"
	}
	for _, tt := range []struct {
		name, text string
		relay      acme.ChallengeType
		others     []acme.ChallengeType
	}{
		{"not listed", relay("", ""), "", []acme.ChallengeType{acme.HTTP01, acme.DNS01, acme.TLSALPN01}},
		{"listed", relay("challenges: [http-01, ncp-dcv-01]", ""), "ncp-dcv-01", []acme.ChallengeType{acme.HTTP01}},
		{"under another name", relay("challenges: [corp-dcv-1, dns-01]", "relay_challenge: corp-dcv-1"), "corp-dcv-1", []acme.ChallengeType{acme.DNS01}},
	} {
		p := parse(t, tt.text).ACMEProfiles()["p"]
		if p.Relay != tt.relay || !slices.Equal(p.Challenges, tt.others) {
			t.Errorf("%s: got %q beside %v, want %q beside %v", tt.name, p.Relay, p.Challenges, tt.relay, tt.others)
		}
	}
}

func TestOrganizationsArePossible(t *testing.T) {
	c := parse(t, publicDV+"certificate_type: NCP_PAID_OV_01, organization_no: 50000000001, validation_method: D, publisher: dns}}\n")
	if got := c.Backends["dv"].OrganizationNo; got != 50000000001 {
		t.Errorf("organization %d", got)
	}
}

func TestWhatCertificateManagerCannotDoIsRefusedWithTheReason(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	profile := func(text string) string {
		return strings.Replace(publicDV, "profiles: {p: {}}", "profiles: {p: {"+text+"}}", 1) + "}}\n"
	}
	for _, tt := range []struct{ name, text, want string }{
		{"a relay alone", profile("challenges: [ncp-dcv-01]"), "profiles.p.challenges: has ncp-dcv-01 only"},
		{"a relay of another name", profile("challenges: [http-01, ncp-dcv-02]"), `profiles.p.challenges[1]: "ncp-dcv-02" must be one of http-01, dns-01, tls-alpn-01, ncp-dcv-01`},
		{"a relay that is a standard type", publicDV + "relay_challenge: dns-01}}\n", `backends.dv.relay_challenge: "dns-01" must be a private name`},
		{"a relay that is a draft's", publicDV + "relay_challenge: dns-persist-01}}\n", "must be a private name"},
		{"a relay without prefix", publicDV + "relay_challenge: relay}}\n", "must be a private name"},
		{"a relay that is no path", publicDV + "relay_challenge: 'ncp-dcv/1'}}\n", "must be a private name"},
		{"Cloud Basic", publicDV + "certificate_type: CLOUD_BASIC}}\n", `backends.dv.certificate_type: "CLOUD_BASIC": Cloud Basic takes no CSR`},
		{"Global Edge", publicDV + "certificate_type: 'Global Edge'}}\n", "Global Edge takes no CSR"},
		{"a private certificate", publicDV + "certificate_type: NCP_PRIVATE_SSL}}\n", "use a backend of type privateca"},
		{"an external certificate", publicDV + "certificate_type: EXTERNAL}}\n", "only stored in Certificate Manager"},
		{"an unknown type", publicDV + "certificate_type: NCP_PAID_EV_01}}\n", "must be NCP_PAID_DV_01 or NCP_PAID_OV_01"},
		{"the government zone", publicDV + "base_url: 'https://certificatemanager.apigw.gov-ntruss.com'}}\n", "backends.dv.base_url: is that of the government zone, which has only API 1.0"},
		{"the financial zone", publicDV + "base_url: 'https://certificatemanager.apigw.fin-ntruss.com'}}\n", "is that of the financial zone, which has only API 1.0"},
		{"an organization without number", publicDV + "certificate_type: NCP_PAID_OV_01}}\n", "backends.dv.organization_no: is required for NCP_PAID_OV_01"},
		{"a number without organization", publicDV + "organization_no: 5}}\n", "backends.dv.organization_no: is only for NCP_PAID_OV_01"},
		{"validation by e-mail", publicDV + "validation_method: E}}\n", "has ended in 2026"},
		{"another validation", publicDV + "validation_method: HTTP}}\n", `backends.dv.validation_method: "HTTP" must be one of PD, D`},
		{"a dangling publisher", publicDV + "publisher: ncp}}\n", `backends.dv.publisher: there is no publisher "ncp"; publishers has dns`},
		{"a short time for validation", publicDV + "dcv_timeout: 1s}}\n", "backends.dv.dcv_timeout: 1s must be 1m to 7d"},
		{"an unknown way to renew", publicDV + "renewal: extend}}\n", "backends.dv.renewal:"},
		{"an unknown answer to a compromise", publicDV + "key_compromise: ignore}}\n", "backends.dv.key_compromise:"},
		{"roots that are missing", publicDV + "roots_file: /nonexistent}}\n", "backends.dv.roots_file: cannot be read"},
		{"roots that are none", publicDV + "roots_file: " + empty + "}}\n", "backends.dv.roots_file: has no PEM certificate"},
		{"a resolver of a backend without port", publicDV + "resolvers: [ns1]}}\n", "backends.dv.resolvers[0]:"},
		{"no credentials", "backends: {dv: {type: certmanager}}\n", "backends.dv.secret_key: is required"},
		{"a tag", publicDV + "ca_tag: x-y}}\n", "backends.dv.ca_tag: is only for backends of type privateca"},
		{"a publisher of Private CA", "publishers: {dns: {type: rfc2136}}\nbackends: {ca: {type: privateca, publisher: dns}}\n", "backends.ca.publisher: is only for backends of type certmanager"},

		{"a client's validity", profile("client_validity: true"), "profiles.p.client_validity: cannot be true for Certificate Manager"},
		{"a lifetime", profile("lifetime: 90d"), "profiles.p.lifetime: cannot be set for Certificate Manager"},
		{"an Edwards curve", profile("key_types: [rsa-2048, ed25519]"), "profiles.p.key_types[1]: ed25519 is not certified by public CAs"},
		{"P-521", profile("key_types: [ecdsa-p521]"), "profiles.p.key_types[0]: ecdsa-p521 is not certified"},
		{"names of this machine", profile("identifiers: {allow: ['*.LocalHost']}"), "profiles.p.identifiers.allow[0]:"},
		{"an own certificate bought unasked", strings.Replace(publicDV, ", tls: {mode: off}", "", 1) + "}}\n", "server.tls.profile: is required: the only profile, p, buys from Certificate Manager"},

		{"a publisher of no type", "publishers: {dns: {}}\n", "publishers.dns.type: is required: globaldns or rfc2136"},
		{"a publisher of an unknown type", "publishers: {dns: {type: route53}}\n", `publishers.dns.type: "route53" must be one of globaldns, rfc2136`},
		{"Global DNS without credentials", "publishers: {dns: {type: globaldns}}\n", "publishers.dns.access_key: is required"},
		{"other people's edits", "publishers: {dns: {type: globaldns, foreign_edits: discard}}\n", "publishers.dns.foreign_edits:"},
		{"a server of Global DNS", "publishers: {dns: {type: globaldns, server: 'a:53'}}\n", "publishers.dns.server: is only for publishers of type rfc2136"},
		{"updates to nowhere", "publishers: {dns: {type: rfc2136}}\n", "publishers.dns.server: is required"},
		{"updates to no port", "publishers: {dns: {type: rfc2136, server: ns1}}\n", "publishers.dns.server:"},
		{"updates unsigned over a network", "publishers: {dns: {type: rfc2136, server: '10.0.0.1:53'}}\n", "publishers.dns.tsig_name: is required unless the server is on loopback"},
		{"a name without key", "publishers: {dns: {type: rfc2136, server: '10.0.0.1:53', tsig_name: k}}\n", "publishers.dns.tsig_secret: is required"},
		{"a key without name", "publishers: {dns: {type: rfc2136, server: '10.0.0.1:53', tsig_secret: YWJj}}\n", "publishers.dns.tsig_name: is required with tsig_secret"},
		{"a weak algorithm", "publishers: {dns: {type: rfc2136, server: '127.0.0.1:53', tsig_algorithm: hmac-md5}}\n", "publishers.dns.tsig_algorithm:"},
		{"a resolver without port", "publishers: {dns: {type: rfc2136, server: '127.0.0.1:53', resolvers: [ns1]}}\n", "publishers.dns.resolvers[0]:"},
		{"a name server without port", "publishers: {dns: {type: rfc2136, server: '127.0.0.1:53', name_servers: [ns1]}}\n", "publishers.dns.name_servers[0]:"},
		{"a record that lasts for ever", "publishers: {dns: {type: rfc2136, server: '127.0.0.1:53', ttl: 100000}}\n", "publishers.dns.ttl: 100000 must be 1 to 86400"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := wrong(t, tt.text)
			if !slices.ContainsFunc(got, func(line string) bool { return strings.Contains(line, tt.want) }) {
				t.Errorf("got\n%s\nwant %s", strings.Join(got, "\n"), tt.want)
			}
		})
	}
}
