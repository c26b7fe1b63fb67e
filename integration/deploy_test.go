package integration

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var externalNumber = regexp.MustCompile(`is external certificate ([0-9]+), named (\S+)`)

// A renewed certificate is put into Certificate Manager under the number that it
// had, by the hook that certbot and lego run.
func TestDeployHookReplacesTheCertificateOfLoadBalancers(t *testing.T) {
	t.Parallel()
	w := newPublicWorld(t, plan{})
	w.addDomain(zone)
	hook, err := filepath.Abs("../contrib/deploy/certificate-manager")
	if err != nil {
		t.Fatal(err)
	}
	env := func(t *testing.T, state string, more ...string) []string {
		return append([]string{"NCP_ACCESS_KEY=" + w.sim.AccessKey, "NCP_SECRET_KEY=" + simulatorSecret,
			"ACME_BRIDGE=" + bridge(t), "ACME_BRIDGE_CONFIG=" + w.server.file, "ACME_BRIDGE_BACKEND=ca", "ACME_BRIDGE_CM_STATE=" + state}, more...)
	}
	t.Run("clients", func(t *testing.T) {
		t.Run("certbot", func(t *testing.T) {
			t.Parallel()
			w := w.clients(t)
			c, address, state, name := w.newCertbot(), freeAddress(), filepath.Join(makeDir(t, "state"), "new"), "certbot-deploy."+zone
			w.dns.point(address, name)
			certbot := func(args ...string) string {
				t.Helper()
				return mustRun(t, c.dir, append(c.env, env(t, state, "ACME_BRIDGE_CM_NAME=certbot-deploy")...), debianTool(t, "certbot", "certbot"), append(args, c.args...)...)
			}
			first := certbot("certonly", "--standalone", "--http-01-address", address, "--http-01-port", strconv.Itoa(httpPort),
				"-d", name, "--agree-tos", "--register-unsafely-without-email", "--deploy-hook", hook)
			deployedTwice(t, state, first, func() string { return certbot("renew", "--force-renewal", "--no-random-sleep-on-renew") })
		})
		t.Run("lego", func(t *testing.T) {
			t.Parallel()
			w := w.clients(t)
			dir, address, state, name := makeDir(t, "lego"), freeAddress(), makeDir(t, "state"), "lego-deploy."+zone
			w.dns.point(address, name)
			lego := func(args ...string) string {
				t.Helper()
				global := []string{"--server", w.server.directory(), "--email", "lego@" + zone, "--accept-tos", "--path", dir, "--domains", name,
					"--http", "--http.port", net.JoinHostPort(address, strconv.Itoa(httpPort))}
				return mustRun(t, dir, env(t, state, "LEGO_CA_CERTIFICATES="+w.serverRoot), debianTool(t, "lego", "lego"), append(global, args...)...)
			}
			deployedTwice(t, state, lego("run", "--run-hook", hook), func() string {
				return lego("renew", "--days", "400", "--no-random-sleep", "--renew-hook", hook)
			})
		})
	})
	// Two clients, each of which registered and replaced.
	var c publicCounters
	w.sim.control(http.MethodGet, "counters", nil, &c)
	if got := c.Calls["registerExternalCertificate"]; got != 4 {
		t.Errorf("%d registrations, want 4", got)
	}
}

// deployedTwice looks at what the hook says of a first certificate and of its
// renewal, and at the number that it keeps.
func deployedTwice(t *testing.T, state, first string, renew func() string) {
	t.Helper()
	numbers := map[string]bool{}
	for _, output := range []string{first, renew()} {
		m := externalNumber.FindStringSubmatch(output)
		if m == nil {
			t.Fatalf("the hook has not registered:\n%s", output)
		}
		numbers[m[1]] = true
		kept, err := os.ReadFile(filepath.Join(state, m[2]+".number"))
		if err != nil || strings.TrimSpace(string(kept)) != m[1] {
			t.Errorf("the number kept is %q (%v), want %s", kept, err, m[1])
		}
		for _, secret := range neverLogged {
			if strings.Contains(output, secret) {
				t.Errorf("the client's output has %q", secret)
			}
		}
	}
	if len(numbers) != 1 {
		t.Errorf("renewal changed the number: %s", fmt.Sprint(numbers))
	}
}

func TestDeployHookSaysWhatItLacks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, env, want string }{
		{"no client", "", "neither RENEWED_LINEAGE nor LEGO_CERT_PATH is set"},
		{"no configuration", "RENEWED_LINEAGE=/etc/letsencrypt/live/a", "ACME_BRIDGE_CONFIG: certificate-manager: set it"},
		{"no backend", "RENEWED_LINEAGE=/etc/letsencrypt/live/a ACME_BRIDGE_CONFIG=a.yaml", "ACME_BRIDGE_BACKEND: certificate-manager: set it"},
		{"lego without key", "LEGO_CERT_PATH=/a.crt", "LEGO_CERT_KEY_PATH: certificate-manager: lego gave no key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			out, err := command(t, ".", strings.Fields(tt.env), "../contrib/deploy/certificate-manager")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %s and %v, want %s", out, err, tt.want)
			}
		})
	}
}
