package rfc2136

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/publisher"
)

// startBIND runs a real BIND for example.com, whose key may write TXT records
// below allowed.example.com only. It returns the server's address.
func startBIND(t *testing.T, named string) string {
	t.Helper()
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("named.conf", fmt.Sprintf(`
key "bridge-key" { algorithm hmac-sha512; secret "%s"; };
options {
	directory "%s"; pid-file "named.pid"; session-keyfile none; managed-keys-directory "%[2]s";
	listen-on port %s { 127.0.0.1; }; listen-on-v6 { none; };
	recursion no; dnssec-validation no; notify no;
};
controls { };
zone "example.com" {
	type primary; file "zone";
	update-policy { grant bridge-key subdomain allowed.example.com. TXT; };
};
`, secret, dir, port))
	write("zone", `$TTL 60
@ SOA ns1 admin 1 3600 600 86400 60
@ NS ns1
ns1 A 127.0.0.1
* CNAME ns1
alias.allowed CNAME ns1
_dcv.allowed TXT "somebody else's"
`)
	cmd := exec.Command(named, "-g", "-c", filepath.Join(dir, "named.conf"), "-n", "1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running, ended := make(chan struct{}), make(chan struct{})
	var lines []string
	go func() {
		defer close(ended)
		scanner := bufio.NewScanner(stderr)
		for said := false; scanner.Scan(); {
			lines = append(lines, scanner.Text())
			if !said && strings.HasSuffix(scanner.Text(), " running") {
				said = true
				close(running)
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		cmd.Wait()
		if t.Failed() {
			t.Log(strings.Join(lines, "\n"))
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	select {
	case <-running:
	case <-ended:
		t.Fatal("named ended")
	case <-ctx.Done():
		t.Fatal("named does not start")
	}
	return "127.0.0.1:" + port
}

func TestBIND(t *testing.T) {
	named, err := exec.LookPath("named")
	if err != nil {
		if named, err = exec.LookPath("/usr/sbin/named"); err != nil {
			t.Fatal("named is needed: apt-get install bind9")
		}
	}
	server := startBIND(t, named)
	p := newRig(t, server, func(cfg *Config) { cfg.TSIGAlgorithm = "hmac-sha512" })
	const fqdn = "_dcv.allowed.example.com"
	if ok, err := p.Covers(t.Context(), "*.allowed.example.com"); err != nil || !ok {
		t.Errorf("Covers: got %t, %v", ok, err)
	}
	if ok, err := p.Covers(t.Context(), "example.org"); err != nil || ok {
		t.Errorf("Covers another zone: got %t, %v", ok, err)
	}
	if err := p.Check(t.Context(), "example.com"); err != nil {
		t.Errorf("Check: %v", err)
	}
	long := strings.Repeat(`0123456789"\`, 30)
	for range 2 {
		for _, value := range []string{"first", long} {
			if served, err := p.Publish(t.Context(), fqdn, value); err != nil || !served {
				t.Errorf("Publish: got %t, %v", served, err)
			}
		}
	}
	for range 2 {
		if err := p.Remove(t.Context(), fqdn, long); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	missing, err := p.cfg.Confirmer.Missing(t.Context(), "example.com", fqdn, long)
	if err != nil || len(missing) != 1 {
		t.Errorf("after Remove: got %q, %v", missing, err)
	}
	for _, kept := range []string{"first", "somebody else's"} {
		if missing, err := p.cfg.Confirmer.Missing(t.Context(), "example.com", fqdn, kept); err != nil || len(missing) != 0 {
			t.Errorf("%s: got %q, %v", kept, missing, err)
		}
	}
	if served, err := p.Publish(t.Context(), "_below-the-wildcard.allowed.example.com", "x"); err != nil || !served {
		t.Errorf("where a wildcard CNAME was: got %t, %v", served, err)
	}

	for _, tt := range []struct {
		name, fqdn string
		set        func(*Config)
		want       string
	}{
		{"a name the key may not write", "_dcv.example.com", func(*Config) {}, "update-policy"},
		{"a CNAME in the way", "alias.allowed.example.com", func(*Config) {}, "CNAME"},
		{"an unknown key", fqdn, func(cfg *Config) { cfg.TSIGName = "unknown" }, "tsig_name"},
		{"another algorithm", fqdn, func(cfg *Config) { cfg.TSIGAlgorithm = "hmac-sha256" }, "tsig_algorithm"},
		{"another secret", fqdn, func(cfg *Config) { cfg.TSIGSecret = strings.Repeat("QUJD", 8) }, "tsig_secret"},
		{"no key", fqdn, func(cfg *Config) { cfg.TSIGName, cfg.TSIGSecret, cfg.TSIGAlgorithm = "", "", "" }, "unsigned"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newRig(t, server, func(cfg *Config) {
				cfg.TSIGAlgorithm = "hmac-sha512"
				tt.set(cfg)
			})
			if _, err := p.Publish(t.Context(), tt.fqdn, "new"); !errors.Is(err, publisher.ErrBlocked) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}
