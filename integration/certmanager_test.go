package integration

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

const adminToken = "integration-admin-token-0001"

// A publicWorld is a world whose CA is Certificate Manager.
type publicWorld struct {
	*world
	CMBaseURL   string `json:"cm_base_url"`
	GDNSBaseURL string `json:"globaldns_base_url"`
	DNSAddress  string `json:"dns_address"` // where the CA looks for its records
	CMRootFile  string `json:"cm_root_file"`
}

func newPublicWorld(t *testing.T, p plan, simulatorArgs ...string) *publicWorld {
	t.Helper()
	w := &publicWorld{world: newWorld(t, plan{store: p.store, failpoint: p.failpoint, troubled: p.troubled, noServer: true})}
	w.sim = startSimulator(t, simulatorArgs...)
	if err := json.Unmarshal(readFile(t, w.sim.proc.stdout), w); err != nil {
		t.Fatal(err)
	}
	w.issuerRoot = w.CMRootFile
	// The CA decides on the lifetime; this one the harness expects of every CA.
	w.sim.control(http.MethodPatch, "behaviour", tree{"certificate_manager": tree{"validity_days": 30}}, nil)
	w.sim.control(http.MethodPost, "dns/zones", tree{"name": zone}, nil)
	config := w.server.config
	config["admin"].(tree)["token"] = adminToken
	config["backends"] = tree{"ca": tree{"type": "certmanager", "base_url": w.CMBaseURL, "access_key": "env:NCP_ACCESS_KEY", "secret_key": "env:NCP_SECRET_KEY",
		"roots_file": w.CMRootFile, "timeout": "2s", "resolvers": []string{w.DNSAddress}}}
	delete(config["profiles"].(tree)["internal"].(tree), "lifetime")
	if p.change != nil {
		p.change(config)
	}
	w.server.write()
	if !p.noServer {
		w.server.start()
		w.server.awaitReady()
	}
	return w
}

// operator runs a command of acme-bridge on the machine of the server.
func (w *publicWorld) operator(args ...string) (string, error) {
	w.t.Helper()
	out, err := command(w.t, w.dir, nil, bridge(w.t), append(args, "--config", w.server.file)...)
	return string(out), err
}

func (w *publicWorld) mustOperate(args ...string) string {
	w.t.Helper()
	out, err := w.operator(args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// addDomain has a domain validated ahead of orders, as an operator would who
// publishes the record by hand.
func (w *publicWorld) addDomain(name string) {
	w.t.Helper()
	var d struct {
		State  string
		Record struct{ Name, Value string }
	}
	out := w.mustOperate("domain", "add", name, "--backend", "ca", "--output", "json")
	if err := json.Unmarshal([]byte(out), &d); err != nil || d.Record.Value == "" {
		w.t.Fatalf("domain add: %s (%v)", out, err)
	}
	if d.State != "PENDING" {
		w.t.Errorf("%s is %s before its record is there", name, d.State)
	}
	w.sim.control(http.MethodPost, "dns/records", tree{"name": d.Record.Name, "type": "TXT", "value": d.Record.Value}, nil)
	if out := w.mustOperate("domain", "check", name, "--backend", "ca", "--wait", "--timeout", "30s"); !strings.Contains(out, "VALID") {
		w.t.Errorf("domain check: %s", out)
	}
}

type publicCounters struct {
	Calls map[string]int64 `json:"calls"`
	CM    struct {
		Paid      int64            `json:"paid"`
		PaidByKey map[string]int64 `json:"paid_by_key"`
		Reissued  int64            `json:"reissued"`
		Issued    int64            `json:"issued"`
		Revoked   int64            `json:"revoked"`
	} `json:"certificate_manager"`
}

func (w *publicWorld) paid() publicCounters {
	w.t.Helper()
	var c publicCounters
	w.sim.control(http.MethodGet, "counters", nil, &c)
	return c
}

func keyID(t *testing.T, key crypto.Signer) string {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// clients is the world for the harness's real clients: what they ask of the
// simulator is Private CA's.
func (w *publicWorld) clients(t *testing.T) *world {
	mine := w.with(t)
	mine.sim = nil
	return mine
}

func TestPublicCertificatesForAValidatedDomain(t *testing.T) {
	t.Parallel()
	for _, store := range []string{bolt, redisType} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newPublicWorld(t, plan{store: store})
			w.refused("early." + zone)
			w.addDomain(zone)
			if out := w.mustOperate("domain", "list", "--backend", "ca"); !strings.Contains(out, zone) || !strings.Contains(out, "VALID") {
				t.Errorf("domain list: %s", out)
			}
			t.Run("clients", func(t *testing.T) {
				for name, run := range map[string]func(*world){
					"certbot http-01": (*world).certbotHTTP,
					"lego http-01":    (*world).legoHTTP,
					"lego wildcard":   (*world).legoDNS,
				} {
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						run(w.clients(t))
					})
				}
			})
			// Each client has ordered, renewed and revoked.
			if c := w.paid().CM; c.Paid != 3 || c.Reissued != 3 || c.Issued != 6 || c.Revoked != 3 {
				t.Errorf("the CA has counted %+v, want 3 paid, 3 reissued, 6 issued, 3 revoked", c)
			}
			w.explained()
		})
	}
}

// refused orders what the CA could not validate, and expects to be told at once.
func (w *publicWorld) refused(name string) {
	w.t.Helper()
	c, ctx := w.newClient(w.server.directory()), deadline(w.t, 30*time.Second)
	if err := c.register(ctx); err != nil {
		w.t.Fatal(err)
	}
	_, err := c.acme.AuthorizeOrder(ctx, acme.DomainIDs(name))
	problem, ok := errors.AsType[*acme.Error](err)
	if !ok || !strings.HasSuffix(problem.ProblemType, ":rejectedIdentifier") ||
		len(problem.Subproblems) != 1 || problem.Subproblems[0].Identifier == nil || problem.Subproblems[0].Identifier.Value != name {
		w.t.Errorf("order without validation: got %#v, want rejectedIdentifier with a subproblem", err)
	}
	if c := w.paid(); c.CM.Paid != 0 {
		w.t.Errorf("%d requests were paid for", c.CM.Paid)
	}
}

// explained orders once more and has the order's story told.
func (w *publicWorld) explained() {
	w.t.Helper()
	c, ctx := w.newClient(w.server.directory()), deadline(w.t, 60*time.Second)
	if err := c.register(ctx); err != nil {
		w.t.Fatal(err)
	}
	r, err := c.obtain(ctx, "story."+zone)
	if err != nil {
		w.t.Fatal(err)
	}
	w.checkResult(r, acme.StatusValid)
	out := w.mustOperate("order", "explain", r.order.URI)
	for _, want := range []string{"is valid", "created by account", "control was proven by http-01", "finalized", "certificate "} {
		if !strings.Contains(out, want) {
			w.t.Errorf("order explain: %q is not in\n%s", want, out)
		}
	}
	if _, err := w.operator("order", "show", "0001arz3ndektsv4rrffq69g5fav"); err == nil || !strings.Contains(err.Error(), "no such order") {
		w.t.Errorf("order show of none: %v", err)
	}
}

// A crash at any place costs no second certificate.
func TestACrashPaysForNoSecondCertificate(t *testing.T) {
	t.Parallel()
	for _, store := range []string{bolt, redisType} {
		for _, boundary := range boundaries {
			t.Run(store+" "+boundary, func(t *testing.T) {
				t.Parallel()
				w := newPublicWorld(t, plan{store: store, failpoint: boundary})
				w.addDomain(zone)
				w.crashOnce()
			})
		}
	}
}

// crashOnce orders through a server that dies once on the way, and expects one
// paid request.
func (w *publicWorld) crashOnce() {
	w.t.Helper()
	c, ctx := w.newClient(w.server.directory()), deadline(w.t, 150*time.Second)
	if err := c.register(ctx); err != nil {
		w.t.Fatal(err)
	}
	w.arm()
	wait := w.obtainAside(ctx, c, "crash."+zone, "www.crash."+zone)
	if err := w.server.proc.exited(60 * time.Second); err != nil {
		w.t.Fatalf("the failpoint was not reached: %v", err)
	}
	w.server.restart()
	r, err := wait()
	if err != nil {
		w.t.Fatal(err)
	}
	w.checkResult(r, acme.StatusValid)
	if c := w.paid().CM; c.Paid != 1 || c.PaidByKey[keyID(w.t, r.key)] != 1 {
		w.t.Errorf("the CA has counted %+v, want one paid request", c)
	}
}

// The same where the service helps least: requests are answered without a number,
// and a name that is taken is taken again, so that nothing but Find stands
// between a crash and a second payment.
func TestAnUnhelpfulServiceIsNotPaidTwice(t *testing.T) {
	t.Parallel()
	for _, boundary := range []string{"intent-saved", "submitted"} {
		t.Run(boundary, func(t *testing.T) {
			t.Parallel()
			w := newPublicWorld(t, plan{failpoint: boundary})
			w.sim.control(http.MethodPatch, "behaviour", tree{"certificate_manager": tree{"duplicate_name": "accept", "answer_shape": "bare", "empty_list": "list",
				"name_filter": "contains", "register_answer": "bare", "covered_row": "empty"}}, nil)
			w.addDomain(zone)
			w.crashOnce()
		})
	}
}

// obtainAside begins a flow and returns what waits for its end.
func (w *publicWorld) obtainAside(ctx context.Context, c *client, names ...string) func() (*result, error) {
	type outcome struct {
		result *result
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		got := outcome{err: errors.New("the flow has ended early")} // by t.Fatal
		defer func() { done <- got }()
		got.result, got.err = c.obtain(ctx, names...)
	}()
	return func() (*result, error) {
		got := <-done
		return got.result, got.err
	}
}

// Answers that are lost after the request has had its effect.
func TestALostAnswerPaysForNoSecondCertificate(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"drop-after", "drop-before"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newPublicWorld(t, plan{troubled: true})
			w.addDomain(zone)
			w.sim.inject(fault{Kind: kind, Operation: "advancedCertificateRequest", Count: 1})
			c, ctx := w.newClient(w.server.directory()), deadline(t, 150*time.Second)
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			r, err := c.obtain(ctx, "lost."+zone)
			if err != nil {
				t.Fatal(err)
			}
			w.checkResult(r, acme.StatusValid)
			if c := w.paid().CM; c.Paid != 1 {
				t.Errorf("the CA has counted %+v, want one paid request", c)
			}
		})
	}
}

// Without validation beforehand, Global DNS gets the record of each request.
func TestAPublisherBringsTheRecordOfARequest(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"PD", "D"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			w := newPublicWorld(t, plan{noServer: true})
			const domain = "published.example"
			w.sim.control(http.MethodPost, "dns/domains", tree{"name": domain}, nil)
			config := w.server.config
			config["publishers"] = tree{"ncp-dns": tree{"type": "globaldns", "base_url": w.GDNSBaseURL, "access_key": "env:NCP_ACCESS_KEY", "secret_key": "env:NCP_SECRET_KEY",
				"name_servers": []string{w.DNSAddress}, "resolvers": []string{w.DNSAddress}}}
			backend := config["backends"].(tree)["ca"].(tree)
			backend["publisher"], backend["validation_method"] = "ncp-dns", method
			w.server.write()
			w.server.start()
			w.server.awaitReady()
			c, ctx := w.newClient(w.server.directory()), deadline(t, 150*time.Second)
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			r, err := c.obtain(ctx, "shop."+domain, "www.shop."+domain)
			if err != nil {
				t.Fatal(err)
			}
			w.checkResult(r, acme.StatusValid)
			out := w.mustOperate("order", "explain", r.order.URI)
			for _, want := range []string{"shop." + domain, "TXT"} {
				if !strings.Contains(out, want) {
					t.Errorf("order explain: %q is not in\n%s", want, out)
				}
			}
			w.refusedBeside("elsewhere.example")
		})
	}
}

// refusedBeside is an order for a zone that the publisher does not have.
func (w *publicWorld) refusedBeside(name string) {
	w.t.Helper()
	c, ctx := w.newClient(w.server.directory()), deadline(w.t, 30*time.Second)
	if err := c.register(ctx); err != nil {
		w.t.Fatal(err)
	}
	_, err := c.acme.AuthorizeOrder(ctx, acme.DomainIDs(name))
	if problem, ok := errors.AsType[*acme.Error](err); !ok || !strings.HasSuffix(problem.ProblemType, ":rejectedIdentifier") {
		w.t.Errorf("order for a zone of others: got %v", err)
	}
}

// tsigSecret is the key that BIND and the bridge share.
const tsigSecret = "aW50ZWdyYXRpb24tdGVzdC10c2lnLXNlY3JldC0wMDE="

// startBIND runs BIND for a zone whose key may write TXT records, and returns
// its address.
func startBIND(t *testing.T, domain string) string {
	t.Helper()
	dir, port := makeDir(t, "bind"), freePort(t)
	for name, text := range map[string]string{
		"named.conf": fmt.Sprintf(`
key "bridge" { algorithm hmac-sha256; secret "%s"; };
options {
	directory "%s"; pid-file "named.pid"; session-keyfile none; managed-keys-directory "%[2]s";
	listen-on port %d { 127.0.0.1; }; listen-on-v6 { none; };
	recursion no; dnssec-validation no; notify no;
};
controls { };
zone "%s" { type primary; file "zone"; update-policy { grant bridge zonesub TXT; }; };
`, tsigSecret, dir, port, domain),
		"zone": "$TTL 60\n@ SOA ns1 admin 1 3600 600 86400 60\n@ NS ns1\nns1 A 127.0.0.1\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t, "named", dir, nil, debianTool(t, "named", "bind9"), "-g", "-c", filepath.Join(dir, "named.conf"), "-n", "1")
	eventually(t, 30*time.Second, "BIND runs", func() error {
		if err := p.running(); err != nil {
			return err
		}
		if !strings.Contains(string(readFile(t, p.stderr)), " running\n") {
			return errors.New("it has not said so")
		}
		return nil
	})
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// A real BIND gets the CA's records: of a domain that is added, and of an order
// for one that was not.
func TestBINDServesTheRecords(t *testing.T) {
	t.Parallel()
	const domain = "bound.example"
	for _, method := range []string{"PD", "D"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			named := startBIND(t, domain)
			w := newPublicWorld(t, plan{change: func(c tree) {
				c["publishers"] = tree{"bind": tree{"type": "rfc2136", "server": named, "tsig_name": "bridge", "tsig_secret": tsigSecret,
					"name_servers": []string{named}, "resolvers": []string{named}}}
				backend := c["backends"].(tree)["ca"].(tree)
				backend["publisher"], backend["validation_method"], backend["resolvers"] = "bind", method, []string{named}
			}}, "--dns", named)
			c, ctx := w.newClient(w.server.directory()), deadline(t, 150*time.Second)
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			r, err := c.obtain(ctx, "shop."+domain)
			if err != nil {
				t.Fatal(err)
			}
			w.checkResult(r, acme.StatusValid)
			out := w.mustOperate("domain", "add", "added."+domain, "--backend", "ca", "--wait", "--timeout", "60s")
			if !strings.Contains(out, "VALID") {
				t.Errorf("domain add: %s", out)
			}
			if out := w.mustOperate("domain", "remove", "added."+domain, "--backend", "ca"); !strings.Contains(out, "is removed") {
				t.Errorf("domain remove: %s", out)
			}
			if out, err := w.operator("domain", "check", "added."+domain, "--backend", "ca"); err == nil {
				t.Errorf("domain check after removal: %s", out)
			}
		})
	}
}

// A reload with a changed publisher changes the backend that uses it.
func TestAReloadBringsAPublisher(t *testing.T) {
	t.Parallel()
	const domain = "published.example"
	w := newPublicWorld(t, plan{})
	w.sim.control(http.MethodPost, "dns/domains", tree{"name": domain}, nil)
	w.refused("shop." + domain)
	w.server.config["publishers"] = tree{"ncp-dns": tree{"type": "globaldns", "base_url": w.GDNSBaseURL, "access_key": "env:NCP_ACCESS_KEY", "secret_key": "env:NCP_SECRET_KEY",
		"name_servers": []string{w.DNSAddress}, "resolvers": []string{w.DNSAddress}}}
	w.server.config["backends"].(tree)["ca"].(tree)["publisher"] = "ncp-dns"
	w.server.write()
	w.server.proc.signal(syscall.SIGHUP)
	eventually(t, 30*time.Second, "the configuration is reloaded", func() error {
		if !strings.Contains(string(readFile(t, w.server.proc.stderr)), `"msg":"configuration reloaded"`) {
			return errors.New("no word of it")
		}
		return nil
	})
	c, ctx := w.newClient(w.server.directory()), deadline(t, 90*time.Second)
	if err := c.register(ctx); err != nil {
		t.Fatal(err)
	}
	r, err := c.obtain(ctx, "shop."+domain)
	if err != nil {
		t.Fatal(err)
	}
	w.checkResult(r, acme.StatusValid)
	// The job of the backend that is gone has ended, and another has begun.
	w.server.proc.stop()
}

// What the CA refuses ends the order with the reason, and its story says what
// to do.
func TestAnOrderThatFailsSaysWhy(t *testing.T) {
	t.Parallel()
	w := newPublicWorld(t, plan{})
	w.addDomain(zone)
	c, ctx := w.newClient(w.server.directory()), deadline(t, 150*time.Second)
	if err := c.register(ctx); err != nil {
		t.Fatal(err)
	}
	for code, want := range map[string]struct{ problem, todo string }{
		"-1":  {"serverInternal", "operator: look for order"},
		"-4":  {"unauthorized", "operator: let the record"},
		"-11": {"badCSR", "client: make a new order with a CSR"},
		"-12": {"serverInternal", "client: make a new order"},
	} {
		w.sim.control(http.MethodPost, "cm/outcomes", tree{"code": code}, nil)
		r, err := c.obtain(ctx, "fails"+code+"."+zone)
		if err != nil {
			t.Fatal(err)
		}
		w.checkResult(r, acme.StatusInvalid)
		if r.order.Error == nil || !strings.HasSuffix(r.order.Error.ProblemType, ":"+want.problem) {
			t.Errorf("%s: got %v, want %s", code, r.order.Error, want.problem)
		}
		out := w.mustOperate("order", "explain", r.order.URI)
		for _, text := range []string{"is invalid", want.problem + ": ", want.todo} {
			if !strings.Contains(out, text) {
				t.Errorf("%s: %q is not in\n%s", code, text, out)
			}
		}
	}
	// A key that the service does not take shows where the operator looks.
	w.sim.control(http.MethodPatch, "behaviour", tree{"certificate_manager": tree{"sub_account": true}}, nil)
	eventually(t, 90*time.Second, "readiness says so", func() error {
		_, answer, err := w.server.readiness()
		if err == nil && !strings.Contains(answer, "sub account") {
			err = errors.New(answer)
		}
		return err
	})
	if out, err := w.operator("domain", "list", "--backend", "ca"); err == nil || !strings.Contains(err.Error(), "access_key is a sub account's") {
		t.Errorf("domain list: %s %v", out, err)
	}
}

func TestConfigCheckTellsWhatWouldFail(t *testing.T) {
	t.Parallel()
	// The test's own DNS server is no resolver.
	w := newPublicWorld(t, plan{noServer: true, change: func(c tree) { delete(c, "validation") }})
	env := []string{"NCP_ACCESS_KEY=" + w.sim.AccessKey, "NCP_SECRET_KEY=" + simulatorSecret}
	check := func(env []string, want string) {
		t.Helper()
		out, err := command(t, w.dir, env, bridge(t), "config", "check", "--online", "--config", w.server.file)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %s %v, want %q", out, err, want)
		}
	}
	check(env, "no domain is VALID and there is no publisher")
	check([]string{env[0], "NCP_SECRET_KEY=another-secret-key"}, "access_key and secret_key are refused")
	w.sim.control(http.MethodPatch, "behaviour", tree{"certificate_manager": tree{"sub_account": true}}, nil)
	check(env, "access_key is a sub account's")
	w.sim.control(http.MethodPatch, "behaviour", tree{"certificate_manager": tree{"sub_account": false}}, nil)

	// With a publisher, and a zone that it has and one that it has not.
	w.sim.control(http.MethodPost, "dns/domains", tree{"name": "published.example"}, nil)
	config := w.server.config
	config["publishers"] = tree{"ncp-dns": tree{"type": "globaldns", "base_url": w.GDNSBaseURL, "access_key": "env:NCP_ACCESS_KEY", "secret_key": "env:NCP_SECRET_KEY",
		"name_servers": []string{w.DNSAddress}, "resolvers": []string{w.DNSAddress}}}
	config["backends"].(tree)["ca"].(tree)["publisher"] = "ncp-dns"
	internal := config["profiles"].(tree)["internal"].(tree)
	internal["identifiers"] = tree{"allow": []string{"*.published.example", "*.elsewhere.example"}}
	w.server.write()
	check(env, "FAIL  publishers.ncp-dns: elsewhere.example:")
	internal["identifiers"] = tree{"allow": []string{"*.published.example"}}
	w.server.write()
	out := mustRun(t, w.dir, env, bridge(t), "config", "check", "--online", "--config", w.server.file)
	for _, want := range []string{"ok    publishers.ncp-dns: published.example can be written", "ok    backends.ca: type NCP_PAID_DV_01"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	config["publishers"].(tree)["bind"] = tree{"type": "rfc2136", "server": "127.0.0.1:1"}
	config["backends"].(tree)["ca"].(tree)["publisher"] = "bind"
	w.server.write()
	check(env, "FAIL  publishers.bind: published.example:")
	for _, tt := range []struct{ key, value, want string }{
		{"base_url", "https://certificatemanager.apigw.gov-ntruss.com", "government zone"},
		{"certificate_type", "CLOUD_BASIC", "takes no CSR"},
	} {
		backend := config["backends"].(tree)["ca"].(tree)
		old, had := backend[tt.key]
		backend[tt.key] = tt.value
		w.server.write()
		check(env, tt.want)
		delete(backend, tt.key)
		if had {
			backend[tt.key] = old
		}
	}
	if got := fmt.Sprint(w.paid().CM.Paid); got != "0" {
		t.Errorf("the checks have paid for %s requests", got)
	}
}
