package integration

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/crypto/acme"
)

// pebbleBinary is Let's Encrypt's ACME server for tests, a tool of this module.
var pebbleBinary = program("pebble", ".", "github.com/letsencrypt/pebble/v2/cmd/pebble")

const (
	pebbleKeyID  = "kid-of-the-bridge"
	pebbleMACKey = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	blocked      = "blocked." + published
	published    = "published.example" // the zone that Global DNS has
)

// A pebbleServer refuses half of all nonces, wants external account binding, and
// validates by the simulator's DNS.
type pebbleServer struct {
	t          *testing.T
	proc       *process
	directory  string
	management string
	tlsRoot    string // file: of its own certificate
	http       *http.Client
}

func startPebble(w *world, dnsServer string, env ...string) *pebbleServer {
	t := w.t
	t.Helper()
	dir := makeDir(t, "pebble")
	cert, key, root := serverFiles(t, dir)
	port, management := freePort(t), freePort(t)
	p := &pebbleServer{t: t, tlsRoot: root, directory: fmt.Sprintf("https://localhost:%d/dir", port), management: fmt.Sprintf("https://localhost:%d", management),
		http: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: readRoots(t, root)}}}}
	config, err := json.Marshal(tree{"pebble": tree{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", port), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", management),
		"certificate": cert, "privateKey": key, "httpPort": httpPort, "tlsPort": tlsPort, "keyAlgorithm": "ecdsa", "domainBlocklist": []string{blocked},
		"externalAccountBindingRequired": true, "externalAccountMACKeys": tree{pebbleKeyID: pebbleMACKey},
		"retryAfter": tree{"authz": 1, "order": 1},
		"profiles":   tree{"month": tree{"description": "the lifetime that the harness expects", "validityPeriod": 30 * 24 * 3600}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "pebble.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	env = append([]string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=50", "PEBBLE_AUTHZREUSE=0", "PEBBLE_CHAIN_LENGTH=2"}, env...)
	p.proc = start(t, "pebble", dir, env, pebbleBinary(t), "-config", file, "-strict", "-dnsserver", dnsServer)
	w.issuerRoot = filepath.Join(dir, "issuer.pem")
	eventually(t, 20*time.Second, "Pebble is ready", func() error {
		if err := p.proc.running(); err != nil {
			return err
		}
		pem, err := p.get("/roots/0")
		if err != nil {
			return err
		}
		return os.WriteFile(w.issuerRoot, pem, 0o600)
	})
	return p
}

func (p *pebbleServer) get(path string) ([]byte, error) {
	res, err := p.http.Get(p.management + path)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, errors.New(res.Status)
	}
	return io.ReadAll(res.Body)
}

// issued counts certificates by Pebble's log.
func (p *pebbleServer) issued() int {
	return bytes.Count(readFile(p.t, p.proc.stdout), []byte("Issued certificate serial"))
}

// An upstreamWorld has Pebble for a CA, and Global DNS to publish in.
type upstreamWorld struct {
	*publicWorld
	pebble *pebbleServer
}

func newUpstreamWorld(t *testing.T, p plan, env ...string) *upstreamWorld {
	t.Helper()
	p.noServer = true
	w := &upstreamWorld{publicWorld: newPublicWorld(t, p)}
	w.sim.control(http.MethodPost, "dns/domains", tree{"name": published}, nil)
	w.pebble = startPebble(w.world, w.DNSAddress, env...)
	config := w.server.config
	config["publishers"] = tree{"ncp-dns": tree{"type": "globaldns", "base_url": w.GDNSBaseURL, "access_key": "env:NCP_ACCESS_KEY", "secret_key": "env:NCP_SECRET_KEY",
		"name_servers": []string{w.DNSAddress}, "resolvers": []string{w.DNSAddress}}}
	eabFile := filepath.Join(w.dir, "eab-key")
	if err := os.WriteFile(eabFile, []byte(pebbleMACKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config["backends"] = tree{"ca": tree{"type": "acme", "timeout": "4s", "directory": w.pebble.directory, "mode": "dns01", "publisher": "ncp-dns", "profile": "month",
		"eab_key_id": pebbleKeyID, "eab_key": "file:" + eabFile, "agree_terms": true, "contact": []string{"mailto:admin@" + published},
		"roots_file": w.issuerRoot, "directory_roots_file": w.pebble.tlsRoot}}
	// The lifetime is the upstream server's.
	delete(config["profiles"].(tree)["internal"].(tree), "lifetime")
	w.server.write()
	return w
}

func (w *upstreamWorld) run() {
	w.t.Helper()
	w.server.start()
	w.server.awaitReady()
}

// unpublished checks that no challenge record is left in DNS.
func (w *upstreamWorld) unpublished(names ...string) {
	w.t.Helper()
	for _, name := range names {
		question := new(dns.Msg)
		question.SetQuestion("_acme-challenge."+name+".", dns.TypeTXT)
		answer, err := dns.Exchange(question, w.DNSAddress)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(answer.Answer) != 0 {
			w.t.Errorf("challenge records are left behind: %v", answer.Answer)
		}
	}
}

func TestAnotherACMEServerIssues(t *testing.T) {
	t.Parallel()
	for _, store := range []string{bolt, redisType} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newUpstreamWorld(t, plan{store: store})
			w.run()
			c, ctx := w.newClient(w.server.directory()), deadline(t, 150*time.Second)
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			names := []string{"shop." + published, "www.shop." + published}
			r, err := c.obtain(ctx, names...)
			if err != nil {
				t.Fatal(err)
			}
			w.checkResult(r, acme.StatusValid)
			out := w.mustOperate("order", "explain", r.order.URI)
			for _, want := range []string{"TXT record _acme-challenge.shop." + published, "order made at the upstream certificate authority", "is served; the certificate authority is to look at it"} {
				if !strings.Contains(out, want) {
					t.Errorf("order explain: %q is not in\n%s", want, out)
				}
			}
			w.unpublished(names...)
			// After a restart the account is in the store.
			w.server.proc.stop()
			w.server.restart()
			again, err := c.obtain(ctx, names...)
			if err != nil {
				t.Fatal(err)
			}
			w.checkResult(again, acme.StatusValid)
			if n := bytes.Count(readFile(t, w.pebble.proc.stdout), []byte("There are now 1 accounts in memory")); n != 1 {
				t.Errorf("%d first accounts were made, want one", n)
			}
			if bytes.Contains(readFile(t, w.pebble.proc.stdout), []byte("There are now 2 accounts")) {
				t.Error("a second account was made")
			}
			// Revoked here is revoked there.
			leaf := r.chain[0]
			if err := c.acme.RevokeCert(ctx, nil, leaf.Raw, acme.CRLReasonSuperseded); err != nil {
				t.Fatal(err)
			}
			status, err := w.pebble.get(fmt.Sprintf("/cert-status-by-serial/%x", leaf.SerialNumber))
			if err != nil || !bytes.Contains(status, []byte("Revoked")) {
				t.Errorf("Pebble says of the revoked certificate: %s, %v", status, err)
			}
			// What the upstream server refuses is refused here, and said.
			refused, err := c.obtain(ctx, blocked)
			if err != nil {
				t.Fatal(err)
			}
			if refused.order.Status != acme.StatusInvalid || refused.order.Error == nil || !strings.HasSuffix(refused.order.Error.ProblemType, ":rejectedIdentifier") {
				t.Errorf("order for a blocked name is %s, %v", refused.order.Status, refused.order.Error)
			}
			if n := w.pebble.issued(); n != 2 {
				t.Errorf("%d certificates were issued, want 2", n)
			}
		})
	}
}

func TestACrashLosesNoUpstreamOrderAndIssuesOnce(t *testing.T) {
	t.Parallel()
	for _, boundary := range []string{"intent-saved", "submitted", "certificate-claimed", "order-valid"} {
		t.Run(boundary, func(t *testing.T) {
			t.Parallel()
			w := newUpstreamWorld(t, plan{failpoint: boundary})
			w.run()
			c, ctx := w.newClient(w.server.directory()), deadline(t, 150*time.Second)
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			w.arm()
			wait := w.obtainAside(ctx, c, "crash."+published)
			if err := w.server.proc.exited(60 * time.Second); err != nil {
				t.Fatalf("the failpoint was not reached: %v", err)
			}
			w.server.restart()
			r, err := wait()
			if err != nil {
				t.Fatal(err)
			}
			w.checkResult(r, acme.StatusValid)
			if n := w.pebble.issued(); n != 1 {
				t.Errorf("%d certificates were issued, want one", n)
			}
			w.unpublished("crash." + published)
		})
	}
}

// Pebble hands out authorizations again that are valid, as a server does whose
// domains are validated beforehand.
func TestUpstreamAuthorizationsThatAreValidBeforehand(t *testing.T) {
	t.Parallel()
	w := newUpstreamWorld(t, plan{}, "PEBBLE_AUTHZREUSE=100")
	w.run()
	c, ctx := w.newClient(w.server.directory()), deadline(t, 150*time.Second)
	if err := c.register(ctx); err != nil {
		t.Fatal(err)
	}
	first, err := c.obtain(ctx, "known."+published)
	if err != nil {
		t.Fatal(err)
	}
	w.checkResult(first, acme.StatusValid)
	backend := w.server.config["backends"].(tree)["ca"].(tree)
	backend["mode"] = "pre"
	delete(backend, "publisher")
	w.server.write()
	w.server.proc.stop()
	w.server.restart()
	second, err := c.obtain(ctx, "known."+published)
	if err != nil {
		t.Fatal(err)
	}
	w.checkResult(second, acme.StatusValid)
	third, err := c.obtain(ctx, "known."+published, "unknown."+published)
	if err != nil {
		t.Fatal(err)
	}
	problem := third.order.Error
	if third.order.Status != acme.StatusInvalid || problem == nil || !strings.HasSuffix(problem.ProblemType, ":unauthorized") ||
		len(problem.Subproblems) != 1 || problem.Subproblems[0].Identifier == nil || problem.Subproblems[0].Identifier.Value != "unknown."+published {
		t.Errorf("order with a name that is not validated is %s, %#v", third.order.Status, problem)
	}
}

func TestConfigCheckTellsWhatAnUpstreamServerWants(t *testing.T) {
	t.Parallel()
	// The test's own DNS server is no resolver.
	w := newUpstreamWorld(t, plan{change: func(c tree) { delete(c, "validation") }})
	backend := w.server.config["backends"].(tree)["ca"].(tree)
	for _, tt := range []struct {
		change func()
		want   string
	}{
		{func() {}, "ok    backends.ca: directory " + w.pebble.directory},
		{func() { backend["profile"] = "gold" }, "profile: the server does not offer \"gold\""},
		{func() { delete(backend, "eab_key"); delete(backend, "eab_key_id") }, "the server wants an external account binding"},
		{func() { delete(backend, "agree_terms") }, "agree_terms: the server wants agreement to"},
		{func() { backend["directory"] = w.pebble.management + "/dir" }, "directory: cannot be read"},
	} {
		tt.change()
		w.server.write()
		out, err := command(t, w.dir, []string{"NCP_ACCESS_KEY=" + w.sim.AccessKey, "NCP_SECRET_KEY=" + simulatorSecret},
			bridge(t), "config", "check", "--online", "--config", w.server.file)
		if said := fmt.Sprint(string(out), err); !strings.Contains(said, tt.want) {
			t.Errorf("%q is not in\n%s", tt.want, said)
		}
	}
	if bytes.Contains(readFile(t, w.pebble.proc.stdout), []byte("accounts in memory")) {
		t.Error("a check has made an account")
	}
}
