package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/admin"
)

const testToken = "0123456789abcdef0123456789abcdef"

// fakeDomains is a CA that finds a record at the third check.
type fakeDomains struct {
	mu      sync.Mutex
	domains map[string]*admin.Domain
	checks  int
	end     string // the state then
}

func (f *fakeDomains) List(context.Context) ([]admin.Domain, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []admin.Domain
	for _, d := range f.domains {
		all = append(all, *d)
	}
	return all, nil
}

func (f *fakeDomains) Add(_ context.Context, name string) (*admin.Domain, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if name == "refused.example" {
		return nil, acme.Problemf(acme.RejectedIdentifier, "the account may not")
	}
	d := &admin.Domain{Name: name, State: "PENDING", Kind: "PTXT", Record: &admin.Record{Name: "_persist." + name, Type: "TXT", Value: "ca.example\x1b[31m"}}
	f.domains[name] = d
	return d, nil
}

func (f *fakeDomains) Check(_ context.Context, name string) (*admin.Domain, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.domains[name]
	if d == nil {
		return nil, fmt.Errorf("%s is not registered: %w", name, acme.ErrNotFound)
	}
	if f.checks++; f.checks >= 3 {
		d.State, d.Expires = f.end, time.Date(2027, 5, 1, 0, 0, 0, 0, time.UTC)
	}
	return d, nil
}

func (f *fakeDomains) Remove(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.domains, name)
	return nil
}

// adminServer is an admin listener with one backend, and one order.
func adminServer(t *testing.T, ca *fakeDomains) string {
	t.Helper()
	ca.domains = map[string]*admin.Domain{}
	s := httptest.NewServer(admin.New(admin.Options{
		Token: testToken, Loopback: true, Gatherer: prometheus.NewRegistry(), Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Reload:  func(context.Context) ([]string, error) { return nil, nil },
		Domains: map[string]admin.Domains{"public-dv": ca},
		Orders: func(_ context.Context, id string) (*acme.Order, error) {
			if id != testOrder {
				return nil, acme.ErrNotFound
			}
			return &acme.Order{ID: id, Status: acme.StatusPending, Directory: "default", AccountID: "a", Profile: "p",
				Authorizations: []acme.Authorization{{Identifier: acme.Identifier{Type: acme.TypeDNS, Value: "a.example"}, Status: acme.StatusPending,
					Challenges: []acme.Challenge{{Type: acme.HTTP01, Status: acme.StatusPending}}}}}, nil
		},
	}))
	t.Cleanup(s.Close)
	return s.URL
}

const testOrder = "0301arz3ndektsv4rrffq69g5fav"

// execute runs a command line; waiting takes no time.
func execute(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, err bytes.Buffer
	root := rootCommand()
	root.SetOut(&out)
	root.SetErr(&err)
	root.SetArgs(args)
	status = exitStatus(root.ExecuteContext(t.Context()), &err)
	return out.String(), err.String(), status
}

func TestDomainCommandsTalkToTheServer(t *testing.T) {
	t.Setenv(tokenVariable, testToken)
	url := adminServer(t, &fakeDomains{end: "VALID"})
	for _, tt := range []struct {
		name, line string
		status     int
		want       string // in what is printed
	}{
		{"none yet", "domain list --backend public-dv", 0, "DOMAIN  STATE  KIND  EXPIRES  NOTES"},
		{"a new one", "domain add a.example --backend public-dv", 0, `_persist.a.example TXT "ca.example?[31m"`},
		{"it is not valid yet", "domain check a.example --backend public-dv", 1, "a.example is PENDING"},
		{"it will be", "domain check a.example --backend public-dv --wait", 0, "VALID"},
		{"and is listed so", "domain list --backend public-dv", 0, "a.example  VALID  PTXT  2027-05-01 00:00:00 UTC"},
		{"for programs", "domain list --backend public-dv --output json", 0, `"state": "VALID"`},
		{"away", "domain remove a.example --backend public-dv", 0, "a.example is removed"},
		{"unknown", "domain check a.example --backend public-dv", 1, "a.example is not registered"},
		{"refused", "domain add refused.example --backend public-dv", 1, "the account may not"},
		{"another backend", "domain list --backend lab", 1, "these do: public-dv"},
		{"no backend", "domain list", 2, "--backend is needed"},
		{"no domain", "domain add --backend public-dv", 2, "accepts 1 arg"},
		{"another form", "domain list --backend public-dv --output xml", 2, "it is table or json"},
		{"a wrong token", "domain list --backend public-dv --token wrong", 1, "this is not the admin token"},
		{"an address of no form", "domain list --backend public-dv --admin localhost", 2, "it is a URL"},
		{"an order", "order show " + testOrder, 0, "a.example: pending (http-01 pending)"},
		{"an order's story", "order explain https://acme.example/order/" + testOrder, 0, "It waits for the client's response to a challenge for a.example"},
		{"an order's story for programs", "order explain " + testOrder + " --output json", 0, `"waits_for"`},
		{"no such order", "order show 0301arz3ndektsv4rrffq69g5faw", 1, "there is no such order"},
		{"help needs no token", "domain --token ''", 0, "Available Commands"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := strings.Fields(tt.line)
			if !strings.Contains(tt.line, "--admin") {
				args = append(args, "--admin", url)
			}
			out, err, status := execute(t, args...)
			if status != tt.status || !strings.Contains(out+err, tt.want) {
				t.Errorf("%s: status %d\n%s%s\nwant %d %s", tt.line, status, out, err, tt.status, tt.want)
			}
		})
	}
	if _, err, status := execute(t, "domain", "list", "--backend", "public-dv", "--admin", "http://127.0.0.1:1"); status != 1 || !strings.Contains(err, "no server at http://127.0.0.1:1") {
		t.Errorf("no server: %d %s", status, err)
	}
}

func TestAddingCanWaitForTheEnd(t *testing.T) {
	for end, want := range map[string]int{"VALID": 0, "INVALID": 1} {
		ca := &fakeDomains{end: end}
		url := adminServer(t, ca)
		var waits []time.Duration
		c := &domainCommands{backend: "public-dv", wait: true, timeout: time.Minute, pause: func(_ context.Context, d time.Duration) error {
			waits = append(waits, d)
			return nil
		}}
		c.adminClient = adminClient{url: url, token: testToken, output: "json"}
		if err := c.prepare(); err != nil {
			t.Fatal(err)
		}
		var out, progress bytes.Buffer
		cmd := domainCommand()
		cmd.SetOut(&out)
		cmd.SetErr(&progress)
		cmd.SetContext(t.Context())
		err := c.add(cmd, []string{"a.example"})
		if got := exitStatus(err, &bytes.Buffer{}); got != want {
			t.Errorf("%s: status %d (%v), want %d", end, got, err, want)
		}
		var d admin.Domain
		if err := json.Unmarshal(out.Bytes(), &d); err != nil || d.State != end {
			t.Errorf("%s: got %s, want the end only", end, out.Bytes())
		}
		if !strings.Contains(progress.String(), "_persist.a.example") {
			t.Errorf("%s: the record was not shown: %s", end, progress.Bytes())
		}
		if len(waits) != 3 || waits[0] != time.Second || waits[2] != 4*time.Second {
			t.Errorf("%s: waits %v", end, waits)
		}
	}
}

func TestAWaitEnds(t *testing.T) {
	ca := &fakeDomains{end: "VALID"}
	c := &domainCommands{backend: "public-dv", wait: true, timeout: time.Minute, pause: func(context.Context, time.Duration) error { return context.DeadlineExceeded }}
	c.adminClient = adminClient{url: adminServer(t, ca), token: testToken, output: "table"}
	if err := c.prepare(); err != nil {
		t.Fatal(err)
	}
	cmd := domainCommand()
	cmd.SetErr(&bytes.Buffer{})
	cmd.SetContext(t.Context())
	if err := c.add(cmd, []string{"a.example"}); err == nil || !strings.Contains(err.Error(), "still PENDING after 1m0s") {
		t.Errorf("got %v", err)
	}
}

func TestAddressAndTokenComeFromFlagsFileOrEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("admin: {listen: ':9', token: token-of-the-file}\nbackends: {dv: {type: certmanager, access_key: 'env:CONFIG_TEST_UNSET'}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, env      string
		client         adminClient
		address, token string
		want           string // error
	}{
		{name: "environment", env: "token-of-the-env", address: defaultAdmin, token: "token-of-the-env"},
		{name: "file before environment", env: "token-of-the-env", client: adminClient{file: file}, address: "http://127.0.0.1:9", token: "token-of-the-file"},
		{name: "flags before file", client: adminClient{file: file, url: "https://admin.example", token: "token-of-the-flag"}, address: "https://admin.example", token: "token-of-the-flag"},
		{name: "a flag that names a variable", env: "token-of-the-env", client: adminClient{token: "env:" + tokenVariable}, address: defaultAdmin, token: "token-of-the-env"},
		{name: "nothing", want: "no admin token"},
		{name: "no file", client: adminClient{file: file + "x"}, want: "no such file"},
		{name: "a variable that is not set", client: adminClient{token: "env:CONFIG_TEST_UNSET"}, want: "--token: the environment variable"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(tokenVariable, tt.env)
			c := tt.client
			c.output = "table"
			err := c.prepare()
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || exitStatus(err, &bytes.Buffer{}) != 2 {
					t.Errorf("got %v, want %s", err, tt.want)
				}
				return
			}
			if err != nil || c.base.String() != tt.address || c.token != tt.token {
				t.Errorf("got %s %q and %v, want %s %q", c.base, c.token, err, tt.address, tt.token)
			}
		})
	}
}
