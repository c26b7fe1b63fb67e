package integration

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"
)

// The server's own certificate is an order like any other: a crash on the way
// neither loses it nor has it issued twice.
func TestACrashWhileTheServerGetsItsOwnCertificate(t *testing.T) {
	t.Parallel()
	for i, boundary := range boundaries[1:] { // nobody validates a server's own name
		store := []string{bolt, redisType}[i%2]
		t.Run(boundary+" "+store, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, plan{store: store, backend: privateCA, tls: "auto", failpoint: boundary, noServer: true})
			w.arm()
			w.server.start()
			if err := w.server.proc.exited(30 * time.Second); err != nil || !w.fired() {
				t.Fatalf("the failpoint was not reached: %v", err)
			}
			w.server.restart() // ready means that TLS is served
			w.checkServedCertificates(w.server)
			if got := w.sim.counters().Issued; got != 1 {
				t.Errorf("the CA issued %d certificates, want 1", got)
			}
		})
	}
}

func TestTwoReplicasShareOneOwnCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{store: redisType, backend: privateCA, tls: "auto", noServer: true})
	replicas := []*server{w.server, w.newServer("replica", w.server.config)}
	for _, s := range replicas {
		s.start()
	}
	for _, s := range replicas {
		s.awaitReady()
	}
	w.checkServedCertificates(replicas...)
	if got := w.sim.counters().Issued; got != 1 {
		t.Errorf("the CA issued %d certificates, want 1", got)
	}
}

// checkServedCertificates checks that all servers have one and the same right
// certificate.
func (w *world) checkServedCertificates(servers ...*server) {
	w.t.Helper()
	first := w.checkServed(servers[0].address(), "localhost", 20*time.Second)
	for _, s := range servers[1:] {
		if got := w.checkServed(s.address(), "localhost", 20*time.Second); !got.Equal(first) {
			w.t.Errorf("%s has a certificate of its own", s.name)
		}
	}
}

// With tls.mode off, URLs are still those that clients see, and the client's
// address is the one that the proxy tells.
func TestBehindATLSProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{tls: "off", noServer: true, change: func(c tree) {
		c["server"].(tree)["trusted_proxies"] = []string{"127.0.0.1/32"}
	}})
	cert, key, root := serverFiles(t, w.dir)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	target := &url.URL{Scheme: "http", Host: w.server.address()}
	proxy := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Header.Set("X-Forwarded-For", "192.0.2.7")
	}})
	proxy.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	proxy.StartTLS()
	t.Cleanup(proxy.Close)
	_, port, err := net.SplitHostPort(proxy.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	w.server.config["server"].(tree)["external_url"] = "https://localhost:" + port
	w.server.write()
	w.server.restart()
	w.serverRoot = root
	c, ctx := w.newClient(w.server.directory()), deadline(t, 60*time.Second)
	if err := c.register(ctx); err != nil {
		t.Fatal(err)
	}
	w.flows(ctx, c, 2)()
	if log := string(readFile(t, w.server.proc.stderr)); !strings.Contains(log, `"remote":"192.0.2.7"`) {
		t.Error("the log does not tell the client's address")
	}
	if status, err := w.get(http.DefaultClient, "http://"+w.server.address()+"/directory"); err != nil || status != http.StatusOK {
		t.Errorf("the directory without the proxy: %d, %v", status, err)
	}
}
