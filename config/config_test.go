package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/acme-bridge/acme-bridge/acme"
)

// minimal is the shortest useful file.
const minimal = `
server: {external_url: "https://ACME.Corp.Example:443/"}
backends: {lab: {type: local}}
profiles: {internal: {}}
`

func parse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wrong parses what must be refused, and returns the error's lines.
func wrong(t *testing.T, text string) []string {
	t.Helper()
	_, err := Parse("test.yaml", []byte(text))
	var errs Errors
	if !errors.As(err, &errs) {
		t.Fatalf("got %v, want Errors", err)
	}
	return strings.Split(err.Error(), "\n")
}

func TestLeavingKeysOutGivesDefaultsThatAreRight(t *testing.T) {
	c := parse(t, minimal)
	if got, want := c.Server.ExternalURL, "https://acme.corp.example"; got != want {
		t.Errorf("external_url %q, want %q", got, want)
	}
	if got, want := c.Server.Listen, ":443"; got != want {
		t.Errorf("listen %q, want %q", got, want)
	}
	if got, want := c.Server.TLS.Profile, "internal"; got != want {
		t.Errorf("tls profile %q, want the only one, %q", got, want)
	}
	p := c.Profiles["internal"]
	if p.Backend != "lab" || p.Lifetime != 90*day || !p.ClientValidity || p.Description != "internal" {
		t.Errorf("profile %+v", p)
	}
	d := c.Directories["default"]
	if d == nil || d.DefaultProfile != "internal" || d.Validation != "default" || !slices.Equal(d.Profiles, []string{"internal"}) {
		t.Errorf("directory %+v", d)
	}
	if v := c.Validation["default"]; v == nil || v.HTTPPort != 80 || v.TLSPort != 443 {
		t.Errorf("validation %+v", v)
	}
	if c.Storage.Redis != nil {
		t.Error("redis is configured without being named")
	}
	if got, want := c.Limits.NewOrdersPerAccount.Limit(), (acme.Limit{Count: 300, Period: 3 * time.Hour}); got != want {
		t.Errorf("limit %v, want %v", got, want)
	}
	if got, want := c.DrainTime(), 20*time.Second; got != want {
		t.Errorf("drain time %s, want %s", got, want)
	}
}

func TestEverythingWrongIsReportedAtOnceByLine(t *testing.T) {
	got := wrong(t, `server:
  listen: 443
  external_url: http://acme.corp.example
  finalize_hold: 15
  tls: {mode: off, profile: nobody}
sever: {}
backends:
  lab: {type: local, timeout: 5s}
  lab: {type: local}
profiles:
  internal:
    lifetime: 30x
    backend: lap
    challenges: [http-01, smtp-01]
directories:
  api: {}
`)
	want := []string{
		`test.yaml:2: server.listen: must be text, not a number: put it in quotes`,
		`test.yaml:3: server.external_url: must begin with https://`,
		`test.yaml:4: server.finalize_hold: "15" must be a duration with a unit`,
		`test.yaml:5: server.tls.profile: there is no profile "nobody"; profiles has internal`,
		`test.yaml:6: sever: unknown key; did you mean server?`,
		`test.yaml:8: backends.lab.timeout: is only for backends of type privateca`,
		`test.yaml:9: backends.lab: given twice, first in line 8`,
		`test.yaml:12: profiles.internal.lifetime: "30x" must be a duration`,
		`test.yaml:13: profiles.internal.backend: there is no backend "lap"; backends has lab`,
		`test.yaml:14: profiles.internal.challenges[1]: "smtp-01" must be one of http-01, dns-01, tls-alpn-01`,
		`test.yaml:16: directories.api: is a reserved name`,
	}
	if len(got) != len(want) {
		t.Fatalf("got %d errors, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("got  %s\nwant %s", got[i], want[i])
		}
	}
}

func TestWrongFilesAreRefusedWithKeyAndLine(t *testing.T) {
	const privateCA = "server: {external_url: 'https://a.example'}\nprofiles: {p: {lifetime: 30d}}\nbackends: {ca: {type: privateca, access_key: a, secret_key: b, ca_tag: x-y, "
	for _, tt := range []struct{ name, text, want string }{
		{"an empty file", "# nothing\n", "test.yaml:1: backends: at least one is needed"},
		{"a list", "- a\n", "test.yaml:1: must be keys with values, not a list"},
		{"no YAML", "server: {\n", "test.yaml:"},
		{"two documents", minimal + "---\na: b\n", "test.yaml:1: the file has more than one YAML document"},
		{"an alias", minimal + "log: &l {level: info}\nlimits: *l\n", "test.yaml:6: limits: YAML aliases are not supported"},
		{"a merge key", minimal + "log: {<<: {level: info}}\n", "test.yaml:5: log.<<: YAML merge keys are not supported"},
		{"an alias as an entry", "backends:\n  a: &a {type: local}\n  b: *a\n", "test.yaml:3: backends.b: YAML aliases"},
		{"a key that is a list", "[a]: b\n", "test.yaml:1: a key must be a plain word"},
		{"redis without anything", minimal + "storage:\n  redis:\n", "test.yaml:6: storage.redis: is empty"},
		{"several redis addresses in mode single", minimal + "storage: {redis: {addresses: ['a:1', 'b:1']}}\n", "test.yaml:5: storage.redis.addresses: mode single has one address"},
		{"a sentinel without master", minimal + "storage: {redis: {addresses: ['a:1'], mode: sentinel}}\n", "test.yaml:5: storage.redis.master_name: is required"},
		{"a database of a cluster", minimal + "storage: {redis: {addresses: ['a:1'], mode: cluster, db: 1}}\n", "storage.redis.db: a cluster has only database 0"},
		{"a user without password", minimal + "storage: {redis: {addresses: ['a:1'], username: u}}\n", "storage.redis.password: is required with username"},
		{"a prefix that would choose the slot", minimal + "storage: {redis: {addresses: ['a:1'], key_prefix: '{a}'}}\n", "storage.redis.key_prefix:"},
		{"TLS keys while TLS is off", minimal + "storage: {redis: {addresses: ['a:1'], tls: {server_name: a}}}\n", "storage.redis.tls.enabled: is false, but"},
		{"a client certificate without key", minimal + "storage: {redis: {addresses: ['a:1'], tls: {enabled: true, cert_file: /nonexistent}}}\n", "storage.redis.tls.cert_file: cert_file and key_file go together"},
		{"a CA file that is missing", minimal + "storage: {redis: {addresses: ['a:1'], tls: {enabled: true, ca_file: /nonexistent}}}\n", "storage.redis.tls.ca_file: cannot be read"},
		{"an address without port", minimal + "storage: {redis: {addresses: [redis]}}\n", `storage.redis.addresses[0]: "redis" must be host:port`},
		{"a resolver with port 0", minimal + "validation: {default: {resolvers: ['127.0.0.1:0']}}\n", "validation.default.resolvers[0]:"},
		{"a network with host bits", minimal + "validation: {default: {allow_networks: [10.1.0.0/8]}}\n", "10.0.0.0/8 is the network"},
		{"a mapped network", minimal + "validation: {default: {deny_networks: ['::ffff:10.0.0.0/104']}}\n", "IPv4 network that it maps"},
		{"localhost out of reach", minimal + "validation: {default: {localhost: true}}\n", "validation.default.localhost: is of no use"},
		{"files without files", "server: {external_url: 'https://a.example', tls: {mode: files}}\nbackends: {l: {type: local}}\nprofiles: {p: {}}\n", "test.yaml:1: server.tls.cert_file: is required"},
		{"a certificate in mode auto", "server: {external_url: 'https://a.example', tls: {cert_file: x}}\nbackends: {l: {type: local}}\nprofiles: {p: {}}\n", "test.yaml:1: server.tls.cert_file: is only for mode: files"},
		{"a path in external_url", "server: {external_url: 'https://a.example/acme'}\n", "test.yaml:1: server.external_url: must be scheme and host only"},
		{"a fragment in external_url", "server: {external_url: 'https://a.example/#'}\n", "server.external_url: must be scheme and host only"},
		{"a user in external_url", "server: {external_url: 'https://u@a.example'}\n", "server.external_url: must be scheme and host only"},
		{"a port out of range", "server: {external_url: 'https://a.example:65536'}\n", "server.external_url:"},
		{"no host", "server: {external_url: 'https:///'}\n", "server.external_url:"},
		{"a host that is no name", "server: {external_url: 'https://a_b.example'}\n", "server.external_url: its host is no good name"},
		{"no external_url", "backends: {l: {type: local}}\n", "server.external_url: is required"},
		{"an own certificate for an address", "server: {external_url: 'https://10.0.0.1'}\nbackends: {l: {type: local}}\nprofiles: {p: {}}\n", "server.tls.profile: no certificate can be issued for the IP address"},
		{"an own certificate that no policy allows", "server: {external_url: 'https://a.example'}\nbackends: {l: {type: local}}\nprofiles: {p: {identifiers: {deny: [a.example]}}}\n", `server.tls.profile: profile "p" does not allow a.example`},
		{"several profiles and none named", "server: {external_url: 'https://a.example'}\nbackends: {l: {type: local}}\nprofiles: {p: {}, q: {}}\n", "directories.default.default_profile: is required"},
		{"a short token", minimal + "admin: {token: short}\n", "admin.token: must have at least 16 characters"},
		{"a token with a space", minimal + "admin: {token: 'a long enough token'}\n", "admin.token: must be printable ASCII"},
		{"the same address twice", minimal + "admin: {listen: ':443'}\n", "admin.listen: is the same as server.listen"},
		{"two CAs in one directory", "backends:\n  a: {type: local}\n  b: {type: local, path: acme-bridge-data/x/../ca}\n", "test.yaml:3: backends.b.path: is also that of backend a"},
		{"a backend of no type", "backends: {a: {}}\n", "backends.a.type: is required"},
		{"a backend of an unknown type", "backends: {a: {type: vault}}\n", `backends.a.type: "vault" must be one of local, privateca`},
		{"a path of Private CA", privateCA + "path: x}}\n", "test.yaml:3: backends.ca.path: is only for backends of type local"},
		{"plain HTTP to the API", privateCA + "base_url: 'http://pca.apigw.ntruss.com'}}\n", "backends.ca.base_url: must begin with https://"},
		{"a path in base_url", privateCA + "base_url: 'https://pca.apigw.ntruss.com/api/v1'}}\n", "backends.ca.base_url: must be scheme and host only"},
		{"a long timeout", privateCA + "timeout: 3m}}\n", "backends.ca.timeout: 3m must be 1s to 2m"},
		{"no calls", privateCA + "max_in_flight: 0}}\n", "backends.ca.max_in_flight: 0 must be 1 to 256"},
		{"no credentials", "backends: {ca: {type: privateca}}\n", "backends.ca.secret_key: is required"},
		{"one CA that two have to themselves", "backends:\n  a: {type: privateca, access_key: a, secret_key: b, ca_tag: x-y}\n  b: {type: privateca, access_key: a, secret_key: b, ca_tag: x-y}\n", "backends.b.ca_tag: is also that of backend a"},
		{"hours of Private CA", "backends: {ca: {type: privateca}}\nprofiles: {p: {lifetime: 36h}}\n", "profiles.p.lifetime: 36h must be whole days"},
		{"a client's validity of Private CA", "backends: {ca: {type: privateca}}\nprofiles: {p: {client_validity: true}}\n", "profiles.p.client_validity: cannot be true for Private CA"},
		{"no challenges", "profiles: {p: {challenges: []}}\n", "profiles.p.challenges: is empty"},
		{"a challenge twice", "profiles: {p: {challenges: [dns-01, dns-01]}}\n", `profiles.p.challenges[1]: "dns-01" is given twice`},
		{"an unknown key type", "profiles: {p: {key_types: [rsa-1024]}}\n", `profiles.p.key_types[0]: "rsa-1024" must be one of`},
		{"a pattern that begins with a dot", "profiles: {p: {identifiers: {allow: [.corp.example]}}}\n", `"*.corp.example" covers all names below it`},
		{"a pattern inside a label", "profiles: {p: {identifiers: {allow: ['a*.corp.example']}}}\n", "profiles.p.identifiers.allow[0]:"},
		{"a list element that is empty", "profiles: {p: {identifiers: {allow: [~]}}}\n", "profiles.p.identifiers.allow[0]: is empty"},
		{"a dangling profile", minimal + "directories: {default: {profiles: [other]}}\n", `directories.default.profiles[0]: there is no profile "other"`},
		{"a default that is not offered", minimal + "directories: {default: {default_profile: other}}\n", `directories.default.default_profile: "other" is not among`},
		{"a dangling zone", minimal + "directories: {default: {validation: dmz}}\n", `directories.default.validation: there is no validation zone "dmz"`},
		{"terms that are no URL", minimal + "directories: {default: {terms_of_service: terms.html}}\n", "directories.default.terms_of_service:"},
		{"capitals in a directory's name", minimal + "directories: {Team: {}}\n", "directories.Team: is no good name"},
		{"a slash in a directory's name", minimal + "directories: {a/b: {}}\n", `directories."a/b": is no good name`},
		{"no directories", minimal + "directories: {}\n", "directories: is empty"},
		{"a number in a boolean", "profiles: {p: {reuse_authorizations: 1}}\n", "profiles.p.reuse_authorizations: must be true or false"},
		{"yes for true", "profiles: {p: {reuse_authorizations: yes}}\n", "profiles.p.reuse_authorizations: must be true or false"},
		{"a fraction", "limits: {pending_orders_per_account: 1.5}\n", "limits.pending_orders_per_account: must be a whole number"},
		{"a hexadecimal number", "limits: {pending_orders_per_account: 0x10}\n", "limits.pending_orders_per_account: must be a whole number"},
		{"a rate without period", "limits: {new_accounts_per_ip: 100}\n", "limits.new_accounts_per_ip: \"100\" must be a count by a period"},
		{"a rate of nothing", "limits: {new_accounts_per_ip: 0/h}\n", "off is no limit"},
		{"a body without unit", "limits: {request_body: 131072}\n", "limits.request_body: \"131072\" must be a size with a unit"},
		{"a body too small for a CSR", "limits: {request_body: 1KiB}\n", "limits.request_body: 1KiB must be 16KiB to 4MiB"},
		{"a list for a duration", "server: {finalize_hold: [1s]}\n", "server.finalize_hold: must be a single value, not a list"},
		{"an unknown level", "log: {level: verbose}\n", `log.level: "verbose" must be one of`},
		{"an unknown key far from all", "log: {colour_of_the_output: red}\n", "known in log: level, format"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, line := range wrong(t, tt.text) {
				if strings.Contains(line, tt.want) {
					return
				}
			}
			t.Errorf("got\n%s\nwant %s", strings.Join(wrong(t, tt.text), "\n"), tt.want)
		})
	}
}

func TestWhatComesLaterIsRefusedButItsEmptyValueIsNot(t *testing.T) {
	for _, tt := range []struct{ text, key string }{
		{"directories: {default: {external_account_required: true}}", "directories.default.external_account_required"},
		{"directories: {default: {caa_identities: [corp.example]}}", "directories.default.caa_identities"},
		{"profiles: {p: {identifiers: {types: [dns, ip]}}}", "profiles.p.identifiers.types[1]"},
		{"tracing: {otlp_endpoint: 'http://127.0.0.1:4318'}", "tracing.otlp_endpoint"},
	} {
		got := wrong(t, tt.text)
		if !slices.ContainsFunc(got, func(line string) bool {
			return strings.HasPrefix(line, "test.yaml:1: "+tt.key+": ") && strings.Contains(line, "not supported yet")
		}) {
			t.Errorf("%s: got\n%s", tt.text, strings.Join(got, "\n"))
		}
	}
	parse(t, minimal+`
directories: {default: {external_account_required: false, caa_identities: []}}
publishers: {}
tracing: {otlp_endpoint: ""}
`)
	parse(t, minimal+"publishers:\ntracing:\n")
}

func TestModeOffNeedsNoQuotes(t *testing.T) {
	c := parse(t, "server: {external_url: 'https://10.0.0.1:8443', tls: {mode: off}}\nbackends: {l: {type: local}}\nprofiles: {p: {}}\nlimits: {new_accounts_per_ip: off}\n")
	if c.Server.TLS.Mode != TLSOff || c.Limits.NewAccountsPerIP != (Rate{}) {
		t.Errorf("got mode %q and limit %v", c.Server.TLS.Mode, c.Limits.NewAccountsPerIP)
	}
}

func TestPatternsGetTheFormOfIdentifiers(t *testing.T) {
	c := parse(t, "server: {external_url: 'https://a.corp.example'}\nbackends: {l: {type: local}}\nprofiles: {p: {identifiers: {allow: ['*.Corp.EXAMPLE', '*', Www.Example.com]}}}\n")
	got, want := c.Profiles["p"].Identifiers.Allow, []string{"*.corp.example", "*", "www.example.com"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPrivateCAOverPlainHTTPOnLoopback(t *testing.T) {
	c := parse(t, "server: {external_url: 'https://a.example'}\nprofiles: {p: {}}\nbackends: {ca: {type: privateca, base_url: 'http://127.0.0.1:9000/', access_key: a, secret_key: b, ca_tag: x-y}}\n")
	b := c.Backends["ca"]
	if got, want := b.BaseURL, "http://127.0.0.1:9000"; got != want {
		t.Errorf("base_url %q, want %q", got, want)
	}
	if !b.Exclusive || b.Quota != 30000 || b.MaxInFlight != 16 || b.Timeout != seconds(30) {
		t.Errorf("defaults %+v", b)
	}
	if got, want := c.DrainTime(), 35*time.Second; got != want {
		t.Errorf("drain time %s, want the deadline of a call and something, %s", got, want)
	}
	if c.Profiles["p"].ClientValidity {
		t.Error("client_validity is true for Private CA")
	}
}

func TestEmbeddedIsWhatAFileWouldSay(t *testing.T) {
	want := parse(t, `
server: {listen: "127.0.0.1:14000", external_url: "https://localhost:14000"}
storage: {embedded: {path: data}}
backends: {local: {type: local, path: data/ca}}
validation: {default: {http_port: 5080, tls_port: 5443, localhost: true, allow_networks: [127.0.0.0/8, "::1"]}}
profiles: {default: {description: "Certificates of the local CA, 90 days"}}
`)
	want.Storage.Embedded.Path = "data"
	if got := Embedded("data"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestProfilesBecomeTheCores(t *testing.T) {
	p := Embedded("data").ACMEProfiles()["default"]
	if p.Name != "default" || p.Lifetime != 90*24*time.Hour || !p.ClientValidity || p.OrderLifetime != 24*time.Hour {
		t.Errorf("got %+v", p)
	}
	if err := p.Check([]acme.Identifier{{Type: acme.TypeDNS, Value: "demo.localhost"}}); err != nil {
		t.Error(err)
	}
}

func TestAProfileLosesNothingOnItsWayToTheCore(t *testing.T) {
	p := Embedded("data").Profiles["default"]
	p.ReuseAuthorizations = true
	p.Identifiers.Allow, p.Identifiers.Deny = []string{"*"}, []string{"a.example"}
	v := reflect.ValueOf(*p.ACME("default"))
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; v.Field(i).IsZero() && name != "SubjectIgnored" && name != "Relay" {
			t.Errorf("%s is not set", name)
		}
	}
}

func TestRestartIsNeededForListenersStorageAndLogOnly(t *testing.T) {
	old, changed := Embedded("data"), Embedded("elsewhere")
	if got := RestartNeeded(old, Embedded("data")); len(got) != 0 {
		t.Errorf("the same config: got %v", got)
	}
	changed.Server.ExternalURL, changed.Log.Level = "https://other.example", "debug"
	changed.Server.FinalizeHold, changed.Profiles["default"].Lifetime, changed.Admin.Token = 0, day, NewSecret("another")
	changed.Server.Listen, changed.Admin.Listen, changed.Server.TLS.Mode = ":1", ":2", TLSOff
	got := RestartNeeded(old, changed)
	want := []string{"admin.listen", "log.level", "server.external_url", "server.listen", "server.tls.mode", "storage.embedded.path"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	old.Storage.Redis = &Redis{Password: NewSecret("one")}
	if got, want := RestartNeeded(old, Embedded("data")), []string{"storage.redis"}; !slices.Equal(got, want) {
		t.Errorf("redis left out: got %v, want %v", got, want)
	}
	changed = Embedded("data")
	changed.Storage.Redis = &Redis{Password: NewSecret("two")}
	if got, want := RestartNeeded(old, changed), []string{"storage.redis.password"}; !slices.Equal(got, want) {
		t.Errorf("another password: got %v, want %v", got, want)
	}
	changed.Storage.Redis.Password = NewSecret("one")
	if got := RestartNeeded(old, changed); len(got) != 0 {
		t.Errorf("the same password: got %v", got)
	}
}

func TestLoadReadsAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err != nil {
		t.Error(err)
	}
	if _, err := Load(path + ".missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want not exist", err)
	}
	if _, err := Load(filepath.Dir(path)); err == nil {
		t.Error("a directory was read")
	}
}

func TestCommandsNeedOnlyTheAdminPartOfAFile(t *testing.T) {
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("CONFIG_TEST_TOKEN", "0123456789abcdef")
	a, err := LoadAdmin(write("admin: {listen: '127.0.0.1:9', token: 'env:CONFIG_TEST_TOKEN'}\nbackends: {dv: {type: certmanager, access_key: 'env:CONFIG_TEST_UNSET'}}\n"))
	if err != nil || a.Listen != "127.0.0.1:9" || a.Token.Reveal() != "0123456789abcdef" {
		t.Errorf("got %+v and %v", a, err)
	}
	for text, want := range map[string]string{
		"admin: {token: 'env:CONFIG_TEST_UNSET'}\n": "admin.token: the environment variable",
		"admin: 5\n": "admin: must be keys",
		"admin: {":   "this is not YAML",
	} {
		if _, err := LoadAdmin(write(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	if _, err := LoadAdmin("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want not exist", err)
	}
	if s, err := LookupSecret("env:CONFIG_TEST_TOKEN"); err != nil || s.Reveal() != "0123456789abcdef" {
		t.Errorf("a secret: got %q and %v", s.Reveal(), err)
	}
	if s, err := LookupSecret(""); err != nil || s.IsSet() {
		t.Errorf("no secret: got %q and %v", s.Reveal(), err)
	}
}

func example(t *testing.T) []byte {
	t.Helper()
	for _, name := range []string{"ACME_BRIDGE_ADMIN_TOKEN", "REDIS_PASSWORD", "NCP_ACCESS_KEY", "NCP_SECRET_KEY", "TSIG_SECRET", "UPSTREAM_EAB_KEY"} {
		t.Setenv(name, "0123456789abcdef-not-a-real-secret")
	}
	data, err := os.ReadFile("../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestTheExampleLoads(t *testing.T) {
	if _, err := Parse("config.example.yaml", example(t)); err != nil {
		t.Error(err)
	}
}

// TestTheExampleHasEveryKey checks the other direction of strict loading, and
// that a value which is not the default says so.
func TestTheExampleHasEveryKey(t *testing.T) {
	data := example(t)
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	lines := strings.Split(string(data), "\n")
	var walk func(n *yaml.Node, typ reflect.Type, def reflect.Value, path string)
	walk = func(n *yaml.Node, typ reflect.Type, def reflect.Value, path string) {
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, at := n.Content[i].Value, n.Content[i+1]
			switch typ.Kind() {
			case reflect.Map:
				elem := reflect.New(typ.Elem().Elem())
				elem.Interface().(defaulter).setDefaults()
				walk(at, typ.Elem().Elem(), elem.Elem(), path+".*")
			case reflect.Struct:
				for j := range typ.NumField() {
					f := typ.Field(j)
					if f.Tag.Get("yaml") != key {
						continue
					}
					p := join(path, key)
					keys[p] = true
					ft, fv := f.Type, def.Field(j)
					if ft == reflect.TypeFor[*Redis]() {
						fv = reflect.New(ft.Elem())
						fv.Interface().(defaulter).setDefaults()
						ft, fv = ft.Elem(), fv.Elem()
					}
					if at.Kind == yaml.MappingNode {
						walk(at, ft, fv, p)
						continue
					}
					got := reflect.New(ft)
					d := &decoder{lines: map[string]int{}, seen: map[string]bool{}, src: sources{env: os.LookupEnv, file: readFile}}
					d.value(at, got.Elem(), p)
					same := reflect.DeepEqual(got.Elem().Interface(), fv.Interface()) || got.Elem().Kind() == reflect.Slice && got.Elem().Len() == 0 && fv.Len() == 0
					line := lines[at.Line-1]
					if !same && !strings.Contains(line, "default") && !strings.Contains(line, "required") {
						t.Errorf("config.example.yaml:%d: %s has not its default, and does not say so", at.Line, p)
					}
				}
			}
		}
	}
	def := new(Config)
	def.setDefaults()
	walk(doc.Content[0], reflect.TypeFor[Config](), reflect.ValueOf(def).Elem(), "")

	var all func(typ reflect.Type, path string)
	all = func(typ reflect.Type, path string) {
		switch typ.Kind() {
		case reflect.Pointer:
			all(typ.Elem(), path)
		case reflect.Map:
			all(typ.Elem(), path+".*")
		case reflect.Struct:
			for i := range typ.NumField() {
				f := typ.Field(i)
				if f.Type == reflect.TypeFor[NotYet]() || f.Type == reflect.TypeFor[Tracing]() {
					continue
				}
				name := f.Tag.Get("yaml")
				if name == "" {
					continue // a scalar made of parts, such as a Rate
				}
				if !keys[join(path, name)] {
					t.Errorf("config.example.yaml lacks %s", join(path, name))
				}
				all(f.Type, join(path, name))
			}
		}
	}
	all(reflect.TypeFor[Config](), "")
}
