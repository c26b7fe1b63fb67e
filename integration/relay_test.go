package integration

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

var ncpDCV = program("ncp-dcv", "../contrib/ncp-dcv", ".")

// A zoneFile is where the owner of a domain publishes records, which the CA
// looks at. It counts them.
type zoneFile struct {
	url string

	mu               sync.Mutex
	present, removed int
}

// newRelayWorld has a profile that offers the relay challenge beside http-01,
// and no domain that is validated.
func newRelayWorld(t *testing.T, store string) (*publicWorld, *zoneFile) {
	t.Helper()
	w := newPublicWorld(t, plan{store: store, change: func(c tree) {
		c["profiles"].(tree)["internal"].(tree)["challenges"] = []string{"http-01", "ncp-dcv-01"}
	}})
	z := &zoneFile{}
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		record := tree{"name": q.Get("name"), "type": "TXT", "value": q.Get("value")}
		z.mu.Lock()
		defer z.mu.Unlock()
		if r.Method == http.MethodDelete {
			z.removed++
			w.sim.control(http.MethodDelete, "dns/records", record, nil)
			return
		}
		z.present++
		w.sim.control(http.MethodPost, "dns/records", record, nil)
	}))
	t.Cleanup(hook.Close)
	z.url = hook.URL
	return w, z
}

// changes are how many records were published and removed.
func (z *zoneFile) changes() (present, removed int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.present, z.removed
}

// certbot runs the hook before it asks for a certificate, with its own account:
// at first for a domain that nobody has validated, and again at each renewal.
func TestRelayByCertbotsHook(t *testing.T) {
	t.Parallel()
	for _, store := range []string{bolt, redisType} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w, z := newRelayWorld(t, store)
			c, address := w.clients(t).newCertbot(), freeAddress()
			c.env = append(c.env, "DNSHOOK_URL="+z.url)
			name, other := "relayed."+zone, "www.relayed."+zone
			w.dns.point(address, name, other)
			hook := strings.Join([]string{ncpDCV(t), "--server", w.server.directory(), "--certbot", filepath.Join(c.dir, "config"),
				"--ca-file", w.serverRoot, "--publish", dnsHook(t), "--timeout", "60s", name, other}, " ")
			c.run("certonly", "--standalone", "--http-01-address", address, "--http-01-port", strconv.Itoa(httpPort), "--pre-hook", hook,
				"-d", name, "-d", other, "--agree-tos", "--register-unsafely-without-email")
			first := c.check(name, name, other)
			if present, removed := z.changes(); present == 0 || present != removed {
				t.Errorf("%d records were published, %d removed", present, removed)
			}
			before, _ := z.changes()
			c.run("renew", "--force-renewal", "--no-random-sleep-on-renew")
			if second := c.check(name, name, other); first.Equal(second) {
				t.Error("renewal brought the old certificate")
			}
			if present, _ := z.changes(); present != before {
				t.Errorf("the renewal published %d records for validated domains", present-before)
			}
		})
	}
}

// lego has no hook before its order: its first run makes the account and fails.
func TestRelayBesideLego(t *testing.T) {
	t.Parallel()
	w, z := newRelayWorld(t, bolt)
	dir, address, name := makeDir(t, "lego"), freeAddress(), "lego-relayed."+zone
	w.dns.point(address, name)
	env := []string{"LEGO_CA_CERTIFICATES=" + w.serverRoot, "DNSHOOK_URL=" + z.url}
	lego := []string{"--server", w.server.directory(), "--email", "lego@" + zone, "--accept-tos", "--path", dir, "--domains", name,
		"--http", "--http.port", net.JoinHostPort(address, strconv.Itoa(httpPort)), "run"}
	if out, err := command(t, dir, env, debianTool(t, "lego", "lego"), lego...); err == nil {
		t.Fatalf("lego got a certificate for a domain that is not validated:\n%s", out)
	}
	out := mustRun(t, dir, env, ncpDCV(t), "--server", w.server.directory(), "--lego", dir, "--ca-file", w.serverRoot, "--publish", dnsHook(t), "--timeout", "60s", name)
	if !strings.Contains(out, name+": validated") {
		t.Errorf("ncp-dcv: %s", out)
	}
	mustRun(t, dir, env, debianTool(t, "lego", "lego"), lego...)
	chain := parsePEM(t, readFile(t, filepath.Join(dir, "certificates", name+".crt")))
	w.clients(t).checkChain(chain, readKey(t, filepath.Join(dir, "certificates", name+".key")).Public(), name)
	if c := w.paid(); c.CM.Paid != 1 {
		t.Errorf("%d requests were paid for", c.CM.Paid)
	}
	out = mustRun(t, dir, env, ncpDCV(t), "--server", w.server.directory(), "--lego", dir, "--ca-file", w.serverRoot, name)
	if !strings.Contains(out, "nothing to do") {
		t.Errorf("ncp-dcv once more: %s", out)
	}
}

var printedRecord = regexp.MustCompile(`(?m)^  (\S+) TXT "(.+)"$`)

// A person publishes the record by hand, and the server dies while it waits.
func TestRelaySurvivesAKilledServer(t *testing.T) {
	t.Parallel()
	for _, store := range []string{bolt, redisType} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w, _ := newRelayWorld(t, store)
			c, ctx := w.newClient(w.server.directory()), deadline(t, 120*time.Second)
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			dir := makeDir(t, "owner")
			key := filepath.Join(dir, "account.key")
			writeKey(t, key, c.acme.Key)
			name := "by-hand." + zone
			p := start(t, "ncp-dcv", dir, nil, ncpDCV(t), "--server", w.server.directory(), "--account-key", key, "--ca-file", w.serverRoot, "--timeout", "90s", name)
			var record []string
			eventually(t, 30*time.Second, "ncp-dcv prints the record", func() error {
				if record = printedRecord.FindStringSubmatch(string(readFile(t, p.stdout))); record == nil {
					return errors.Join(errors.New("it has not"), p.running())
				}
				return nil
			})
			awaitChallenge(t, w, "listDomainValidations")
			w.server.proc.kill()
			w.server.restart()
			w.sim.control(http.MethodPost, "dns/records", tree{"name": record[1], "type": "TXT", "value": record[2]}, nil)
			if err := p.exited(90 * time.Second); err != nil {
				t.Fatalf("%v\n%s%s", err, readFile(t, p.stdout), readFile(t, p.stderr))
			}
			if out := string(readFile(t, p.stdout)); !strings.Contains(out, name+": validated") {
				t.Errorf("ncp-dcv: %s%s", out, readFile(t, p.stderr))
			}
			r, err := c.obtain(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			w.checkResult(r, acme.StatusValid)
		})
	}
}

// awaitChallenge waits until the server has asked the CA several times more.
func awaitChallenge(t *testing.T, w *publicWorld, operation string) {
	t.Helper()
	begun := w.paid().Calls[operation]
	eventually(t, 30*time.Second, "the server asks for the domain", func() error {
		if w.paid().Calls[operation] < begun+2 {
			return errors.New("it has not")
		}
		return nil
	})
}

// While one account waits for a domain, another is not told its value; and the
// domain's validation then proves nothing for it.
func TestRelayIsOneAccountsAtATime(t *testing.T) {
	t.Parallel()
	w, z := newRelayWorld(t, bolt)
	name := "contested." + zone
	ctx := deadline(t, 120*time.Second)
	keys := make([]string, 2)
	clients := make([]*client, 2)
	for n := range clients {
		clients[n] = w.newClient(w.server.directory())
		if err := clients[n].register(ctx); err != nil {
			t.Fatal(err)
		}
		keys[n] = filepath.Join(makeDir(t, "owner"), "account.key")
		writeKey(t, keys[n], clients[n].acme.Key)
	}
	if _, err := clients[0].acme.AuthorizeOrder(ctx, acme.DomainIDs(name)); err != nil {
		t.Fatal(err)
	}
	run := func(n int) (string, error) {
		out, err := command(t, filepath.Dir(keys[n]), []string{"DNSHOOK_URL=" + z.url}, ncpDCV(t), "--server", w.server.directory(),
			"--account-key", keys[n], "--ca-file", w.serverRoot, "--publish", dnsHook(t), "--timeout", "60s", name)
		return string(out), err
	}
	if out, err := run(1); err == nil || !strings.Contains(out, "rejectedIdentifier") {
		t.Errorf("the second account: %v\n%s", err, out)
	}
	if out, err := run(0); err != nil {
		t.Fatalf("the first account: %v\n%s", err, out)
	}
	// Validated, it is open to all who prove control by other means.
	order, err := clients[1].acme.AuthorizeOrder(ctx, acme.DomainIDs(name))
	if err != nil {
		t.Fatal(err)
	}
	authz, err := clients[1].acme.GetAuthorization(ctx, order.AuthzURLs[0])
	if err != nil || authz.Status != acme.StatusPending || len(authz.Challenges) != 1 || authz.Challenges[0].Type != "http-01" {
		t.Errorf("authorization of the second account: %+v, %v", authz, err)
	}
}

func writeKey(t *testing.T, file string, key crypto.Signer) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
