package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3"
	acmezapi "github.com/mholt/acmez/v3/acme"
	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// Every client on both stores and both backends, the server with a TLS
// certificate that it has issued to itself.
func TestRealClients(t *testing.T) {
	t.Parallel()
	for _, store := range []string{bolt, redisType} {
		for _, backend := range []string{local, privateCA} {
			t.Run(store+" "+backend, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, plan{store: store, backend: backend, tls: "auto"})
				for name, run := range map[string]func(*world){
					"certbot http-01":     (*world).certbotHTTP,
					"certbot dns-01":      (*world).certbotDNS,
					"lego http-01":        (*world).legoHTTP,
					"lego tls-alpn-01":    (*world).legoTLS,
					"lego dns-01":         (*world).legoDNS,
					"Caddy http-01":       func(w *world) { w.caddy("http") },
					"Caddy tls-alpn-01":   func(w *world) { w.caddy("tls-alpn") },
					"x/crypto acme":       (*world).xcrypto,
					"autocert":            (*world).autocert,
					"acmez http-01":       func(w *world) { w.acmez(acmezapi.ChallengeTypeHTTP01) },
					"acmez dns-01":        func(w *world) { w.acmez(acmezapi.ChallengeTypeDNS01) },
					"a wildcard by acmez": func(w *world) { w.acmez(acmezapi.ChallengeTypeDNS01, "*.wild."+zone) },
				} {
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						run(w.with(t))
					})
				}
			})
		}
	}
}

// expectRevoked checks that a certificate is revoked: by the server's word, and
// at the CA if it keeps a list.
func (w *world) expectRevoked(leaf *x509.Certificate, keyFile string) {
	w.t.Helper()
	if w.sim != nil && !w.sim.revoked(leaf) {
		w.t.Errorf("certificate %x is not revoked at the CA", leaf.SerialNumber)
	}
	c := acmezapi.Client{Directory: w.server.directory(), HTTPClient: w.httpClient()}
	err := c.RevokeCertificate(w.t.Context(), acmezapi.Account{}, leaf, readKey(w.t, keyFile), 0)
	problem, ok := errors.AsType[acmezapi.Problem](err)
	if !ok || problem.Type != acmezapi.ProblemTypeAlreadyRevoked {
		w.t.Errorf("revoked again: %v, want alreadyRevoked", err)
	}
}

// A certbot is one with a configuration of its own.
type certbot struct {
	w    *world
	dir  string
	args []string
	env  []string
}

func (w *world) newCertbot() *certbot {
	w.t.Helper()
	dir := makeDir(w.t, "certbot")
	return &certbot{w: w, dir: dir, args: []string{"--server", w.server.directory(), "--non-interactive",
		"--config-dir", filepath.Join(dir, "config"), "--work-dir", filepath.Join(dir, "work"), "--logs-dir", filepath.Join(dir, "logs")},
		env: []string{"REQUESTS_CA_BUNDLE=" + w.serverRoot, "DNSHOOK_URL=" + w.dns.hookURL}}
}

func (c *certbot) run(args ...string) {
	c.w.t.Helper()
	mustRun(c.w.t, c.dir, c.env, debianTool(c.w.t, "certbot", "certbot"), append(args, c.args...)...)
}

// live is a file of the present certificate.
func (c *certbot) live(name, file string) string {
	return filepath.Join(c.dir, "config", "live", name, file)
}

func (c *certbot) check(name string, names ...string) *x509.Certificate {
	c.w.t.Helper()
	chain := parsePEM(c.w.t, readFile(c.w.t, c.live(name, "fullchain.pem")))
	c.w.checkChain(chain, readKey(c.w.t, c.live(name, "privkey.pem")).Public(), names...)
	return chain[0]
}

func (w *world) certbotHTTP() {
	c, address := w.newCertbot(), freeAddress()
	name, other := "certbot."+zone, "www.certbot."+zone
	w.dns.point(address, name, other)
	c.run("certonly", "--standalone", "--http-01-address", address, "--http-01-port", strconv.Itoa(httpPort),
		"-d", name, "-d", other, "--agree-tos", "--register-unsafely-without-email")
	first := c.check(name, name, other)
	c.run("renew", "--force-renewal", "--no-random-sleep-on-renew")
	second := c.check(name, name, other)
	if first.Equal(second) {
		w.t.Error("renewal brought the old certificate")
	}
	c.run("revoke", "--cert-name", name, "--no-delete-after-revoke", "--reason", "superseded")
	w.expectRevoked(second, c.live(name, "privkey.pem"))
}

func (w *world) certbotDNS() {
	c := w.newCertbot()
	name := "certbot-dns." + zone
	c.run("certonly", "--manual", "--preferred-challenges", "dns", "--key-type", "rsa",
		"--manual-auth-hook", dnsHook(w.t)+" auth", "--manual-cleanup-hook", dnsHook(w.t)+" cleanup",
		"-d", name, "-d", "*."+name, "--agree-tos", "--email", "admin@"+zone, "--no-eff-email")
	leaf := c.check(name, name, "*."+name)
	// By the certificate's key, from an installation that knows nothing else.
	other := w.newCertbot()
	other.run("revoke", "--cert-path", c.live(name, "cert.pem"), "--key-path", c.live(name, "privkey.pem"), "--no-delete-after-revoke", "--reason", "keycompromise")
	w.expectRevoked(leaf, c.live(name, "privkey.pem"))
}

// lego runs lego's commands one after the other on one name, with the flags of a
// challenge.
func (w *world) lego(name string, env []string, challenge ...string) {
	w.t.Helper()
	dir := makeDir(w.t, "lego")
	env = append(env, "LEGO_CA_CERTIFICATES="+w.serverRoot)
	run := func(args ...string) {
		w.t.Helper()
		global := append([]string{"--server", w.server.directory(), "--email", "lego@" + zone, "--accept-tos", "--path", dir, "--domains", name}, challenge...)
		mustRun(w.t, dir, env, debianTool(w.t, "lego", "lego"), append(global, args...)...)
	}
	base := filepath.Join(dir, "certificates", strings.ReplaceAll(name, "*", "_"))
	check := func() *x509.Certificate {
		w.t.Helper()
		chain := parsePEM(w.t, readFile(w.t, base+".crt"))
		w.checkChain(chain, readKey(w.t, base+".key").Public(), name)
		return chain[0]
	}
	run("run")
	first := check()
	run("renew", "--days", "400", "--no-random-sleep")
	second := check()
	if first.Equal(second) {
		w.t.Error("renewal brought the old certificate")
	}
	run("revoke", "--keep", "--reason", "4")
	w.expectRevoked(second, base+".key")
}

func (w *world) legoHTTP() {
	address, name := freeAddress(), "lego-http."+zone
	w.dns.point(address, name)
	w.lego(name, nil, "--http", "--http.port", net.JoinHostPort(address, strconv.Itoa(httpPort)))
}

func (w *world) legoTLS() {
	address, name := freeAddress(), "lego-tls."+zone
	w.dns.point(address, name)
	w.lego(name, nil, "--tls", "--tls.port", net.JoinHostPort(address, strconv.Itoa(tlsPort)))
}

func (w *world) legoDNS() {
	w.lego("*.lego-dns."+zone, []string{"EXEC_PATH=" + dnsHook(w.t), "EXEC_POLLING_INTERVAL=1", "DNSHOOK_URL=" + w.dns.hookURL},
		"--dns", "exec", "--dns.resolvers", w.dns.address, "--dns.disable-cp")
}

// caddy has Caddy get a certificate by itself over one kind of challenge, and
// looks at what it serves.
func (w *world) caddy(challenge string) {
	dir, address := makeDir(w.t, "caddy"), freeAddress()
	name := "caddy-" + challenge + "." + zone
	w.dns.point(address, name)
	config := tree{
		"admin":   tree{"disabled": true},
		"storage": tree{"module": "file_system", "root": dir},
		"logging": tree{"logs": tree{"default": tree{"level": "INFO"}}},
		"apps": tree{
			"http": tree{
				"http_port": httpPort, "https_port": tlsPort,
				"servers": tree{"site": tree{
					"listen": []string{net.JoinHostPort(address, strconv.Itoa(tlsPort))},
					"routes": []tree{{"match": []tree{{"host": []string{name}}}, "handle": []tree{{"handler": "static_response", "body": "hello"}}, "terminal": true}},
					// The redirecting listener would take httpPort on all addresses.
					"automatic_https": tree{"disable_redirects": true},
				}},
			},
			"tls": tree{"automation": tree{"policies": []tree{{"issuers": []tree{{
				"module": "acme", "ca": w.server.directory(), "email": "caddy@" + zone, "trusted_roots_pem_files": []string{w.serverRoot},
				"challenges": tree{
					"http":      tree{"disabled": challenge != "http", "alternate_port": httpPort},
					"tls-alpn":  tree{"disabled": challenge != "tls-alpn", "alternate_port": tlsPort},
					"bind_host": address,
				},
			}}}}}},
		},
	}
	file := filepath.Join(dir, "config.json")
	text, err := json.Marshal(config)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		w.t.Fatal(err)
	}
	p := start(w.t, "caddy", dir, []string{"HOME=" + dir}, caddyBinary(w.t), file)
	leaf := w.checkServed(net.JoinHostPort(address, strconv.Itoa(tlsPort)), name, 60*time.Second)
	p.stop()
	// Started again, it goes on with the certificate that it has.
	p = start(w.t, "caddy", dir, []string{"HOME=" + dir}, caddyBinary(w.t), file)
	if again := w.checkServed(net.JoinHostPort(address, strconv.Itoa(tlsPort)), name, 60*time.Second); !again.Equal(leaf) {
		w.t.Error("Caddy got another certificate after its restart")
	}
	p.stop()
}

// xcrypto goes through the client library of golang.org/x/crypto, account
// handling included.
func (w *world) xcrypto() {
	c, ctx := w.newClient(w.server.directory()), deadline(w.t, 90*time.Second)
	if err := c.register(ctx); err != nil {
		w.t.Fatal(err)
	}
	names := []string{"xcrypto." + zone, "www.xcrypto." + zone}
	r, err := c.obtain(ctx, names...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.checkResult(r, acme.StatusValid)
	if err := c.acme.AccountKeyRollover(ctx, newKey(w.t)); err != nil {
		w.t.Errorf("key change: %v", err)
	}
	if _, err := c.acme.UpdateReg(ctx, &acme.Account{Contact: []string{"mailto:admin@" + zone}}); err != nil {
		w.t.Errorf("account update: %v", err)
	}
	again, err := c.obtain(ctx, names...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.checkResult(again, acme.StatusValid)
	if err := c.acme.RevokeCert(ctx, nil, again.chain[0].Raw, acme.CRLReasonSuperseded); err != nil {
		w.t.Errorf("revoke by the account: %v", err)
	}
	if err := c.acme.RevokeCert(ctx, r.key, r.chain[0].Raw, acme.CRLReasonKeyCompromise); err != nil {
		w.t.Errorf("revoke by the certificate's key: %v", err)
	}
	if w.sim != nil && (!w.sim.revoked(r.chain[0]) || !w.sim.revoked(again.chain[0])) {
		w.t.Error("not revoked at the CA")
	}
	if err := c.acme.DeactivateReg(ctx); err != nil {
		w.t.Errorf("deactivate the account: %v", err)
	}
	if _, err := c.acme.AuthorizeOrder(ctx, acme.DomainIDs(names...)); err == nil {
		w.t.Error("a deactivated account may order")
	}
}

// autocert serves TLS on tlsPort and has its certificate made at the first
// handshake, by tls-alpn-01 over the same listener.
func (w *world) autocert() {
	address, name := freeAddress(), "autocert."+zone
	w.dns.point(address, name)
	manager := &autocert.Manager{Prompt: autocert.AcceptTOS, HostPolicy: autocert.HostWhitelist(name), Cache: autocert.DirCache(makeDir(w.t, "autocert")),
		Client: w.newACME(w.server.directory(), newKey(w.t))}
	l, err := tls.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(tlsPort)), manager.TLSConfig())
	if err != nil {
		w.t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			w.t.Error(err)
		}
	}()
	w.checkServed(l.Addr().String(), name, 60*time.Second)
}

// A solver answers acmez's challenges.
type solver struct {
	w         *world
	responder *responder
}

func (s *solver) Present(ctx context.Context, c acmezapi.Challenge) error {
	if c.Type == acmezapi.ChallengeTypeDNS01 {
		return s.txt(ctx, "auth", c)
	}
	s.w.dns.point(s.responder.address, c.Identifier.Value)
	s.responder.put(c.HTTP01ResourcePath(), c.KeyAuthorization)
	return nil
}

func (s *solver) CleanUp(ctx context.Context, c acmezapi.Challenge) error {
	if c.Type == acmezapi.ChallengeTypeDNS01 {
		return s.txt(ctx, "cleanup", c)
	}
	return nil
}

func (s *solver) txt(_ context.Context, word string, c acmezapi.Challenge) error {
	_, err := command(s.w.t, s.w.dir, []string{"DNSHOOK_URL=" + s.w.dns.hookURL, "CERTBOT_DOMAIN=" + c.Identifier.Value,
		"CERTBOT_VALIDATION=" + c.DNS01KeyAuthorization()}, dnsHook(s.w.t), word)
	return err
}

func (w *world) acmez(challenge string, names ...string) {
	if names == nil {
		names = []string{fmt.Sprintf("acmez-%s.%s", challenge, zone)}
	}
	ctx := deadline(w.t, 90*time.Second)
	c := acmez.Client{
		Client:           &acmezapi.Client{Directory: w.server.directory(), HTTPClient: w.httpClient()},
		ChallengeSolvers: map[string]acmez.Solver{challenge: &solver{w: w, responder: w.newResponder()}},
	}
	account, err := c.NewAccount(ctx, acmezapi.Account{Contact: []string{"mailto:acmez@" + zone}, TermsOfServiceAgreed: true, PrivateKey: newKey(w.t)})
	if err != nil {
		w.t.Fatal(err)
	}
	key := newKey(w.t)
	certs, err := c.ObtainCertificateForSANs(ctx, account, key, names)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(certs) != 1 {
		w.t.Fatalf("%d chains are offered, want 1", len(certs))
	}
	chain := parsePEM(w.t, certs[0].ChainPEM)
	w.checkChain(chain, key.Public(), names...)
	if err := c.RevokeCertificate(ctx, account, chain[0], nil, acmezapi.ReasonCessationOfOperation); err != nil {
		w.t.Errorf("revoke: %v", err)
	}
	if w.sim != nil && !w.sim.revoked(chain[0]) {
		w.t.Error("not revoked at the CA")
	}
}
