package integration

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A newcomer starts the server in an empty directory, pastes the commands that
// it prints, and comes back after a restart. The embedded default's ports are
// fixed, so there is one such test.
func TestTheEmbeddedDefaultWorksAsPrinted(t *testing.T) {
	t.Parallel()
	debianTool(t, "certbot", "certbot")
	debianTool(t, "lego", "lego")
	for _, port := range []string{"14000", "14001", "5080", "5443"} {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			t.Fatalf("port %s, which the embedded default needs, is taken: %v", port, err)
		}
		l.Close()
	}
	home, shell := makeDir(t, "home"), makeDir(t, "shell")
	w := &world{t: t, dir: home}
	serve := func() *process {
		t.Helper()
		p := start(t, "serve", home, nil, bridge(t), "serve")
		s := &server{w: w, t: t, name: "serve", config: tree{}, port: 14000, admin: 14001, proc: p}
		t.Cleanup(p.expectNoErrors)
		s.awaitReady()
		return p
	}

	first := serve()
	said := string(readFile(t, first.stdout))
	root := printed(t, said, `(?m)^Root certificate: +(/\S+)$`)
	if got, want := printed(t, said, `(?m)^Directory: +(\S+)$`), "https://localhost:14000/directory"; got != want {
		t.Errorf("prints directory %s, want %s", got, want)
	}
	certbot, lego := pasted(t, said, "certbot "), pasted(t, said, "lego ")
	w.issuerRoot, w.serverRoot = root, root
	stateIsPrivate(t, filepath.Join(home, "acme-bridge-data"))

	mustRun(t, shell, nil, "sh", "-c", certbot)
	mustRun(t, shell, nil, "sh", "-c", lego)
	live := filepath.Join(shell, "certbot", "config", "live", "demo.localhost")
	byCertbot := w.checkFiles(filepath.Join(live, "fullchain.pem"), filepath.Join(live, "privkey.pem"), "demo.localhost")
	certificates := filepath.Join(shell, "lego", "certificates")
	byLego := w.checkFiles(filepath.Join(certificates, "demo.localhost.crt"), filepath.Join(certificates, "demo.localhost.key"), "demo.localhost")
	if byCertbot.SerialNumber.Cmp(byLego.SerialNumber) == 0 {
		t.Error("certbot and lego have one certificate")
	}

	first.stop()
	before := readFile(t, root)
	serve()
	if !bytes.Equal(before, readFile(t, root)) {
		t.Fatal("the restart made another root")
	}
	// The same accounts, the same root, new certificates.
	mustRun(t, shell, []string{"REQUESTS_CA_BUNDLE=" + root}, "certbot", "renew", "--force-renewal", "--no-random-sleep-on-renew",
		"--config-dir", "certbot/config", "--work-dir", "certbot/work", "--logs-dir", "certbot/logs")
	mustRun(t, shell, nil, "sh", "-c", strings.TrimSuffix(lego, " run")+" renew --days 400 --no-random-sleep")
	if renewed := w.checkFiles(filepath.Join(live, "fullchain.pem"), filepath.Join(live, "privkey.pem"), "demo.localhost"); renewed.Equal(byCertbot) {
		t.Error("certbot renew brought the old certificate")
	}
	if renewed := w.checkFiles(filepath.Join(certificates, "demo.localhost.crt"), filepath.Join(certificates, "demo.localhost.key"), "demo.localhost"); renewed.Equal(byLego) {
		t.Error("lego renew brought the old certificate")
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		res, err := http.Get("http://127.0.0.1:14001" + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
}

// checkFiles checks a chain and its key; the embedded default's last 90 days.
func (w *world) checkFiles(chainFile, keyFile, name string) *x509.Certificate {
	w.t.Helper()
	chain := parsePEM(w.t, readFile(w.t, chainFile))
	if err := w.chainErrorFor(90, chain, readKey(w.t, keyFile).Public(), name); err != nil {
		w.t.Errorf("%s: %v", chainFile, err)
	}
	return chain[0]
}

// printed finds the one match of a pattern in what the server said.
func printed(t *testing.T, said, pattern string) string {
	t.Helper()
	found := regexp.MustCompile(pattern).FindAllStringSubmatch(said, -1)
	if len(found) != 1 {
		t.Fatalf("%d matches of %s in:\n%s", len(found), pattern, said)
	}
	return found[0][1]
}

// pasted finds a command over one or more lines, as one would paste it.
func pasted(t *testing.T, said, word string) string {
	t.Helper()
	for block := range strings.SplitSeq(said, "\n\n") {
		if strings.Contains(block, "\\\n") && strings.Contains(block, word) {
			return strings.TrimSpace(block)
		}
	}
	t.Fatalf("no command with %q in:\n%s", word, said)
	return ""
}

// stateIsPrivate checks that nobody else may read keys and accounts.
func stateIsPrivate(t *testing.T, dir string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !d.IsDir() && !strings.HasSuffix(path, ".crt") && info.Mode().Perm()&0o077 != 0 {
			return fmt.Errorf("%s has mode %s", path, info.Mode())
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestAFileThatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	dir := makeDir(t, "config")
	file := filepath.Join(dir, "config.yaml")
	text := "server: {listen: 127.0.0.1:0, external_url: 'https://localhost:1', colour: red}\nbackends: {ca: {type: magic}}\nprofiles: {p: {backend: gone}}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"serve", "--config", file}, {"config", "check", "--config", file}} {
		p := start(t, args[0], dir, nil, bridge(t), args...)
		if err := p.exited(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		if got, want := p.cmd.ProcessState.ExitCode(), 2; got != want {
			t.Errorf("%v: exit status %d, want %d", args, got, want)
		}
		said := string(readFile(t, p.stderr)) + string(readFile(t, p.stdout))
		for _, want := range []string{"server.colour", "backends.ca.type", "profiles.p.backend"} {
			if !strings.Contains(said, want) {
				t.Errorf("%v does not name %s:\n%s", args, want, said)
			}
		}
	}
}
