package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// The stores and backends that tests run on.
const (
	bolt      = "bolt"
	redisType = "redis"

	local     = "local"
	privateCA = "privateca"
)

// A tree is configuration; written as JSON, it is YAML too.
type tree = map[string]any

// A world is a server with what it needs, and with what clients need: names
// that resolve, and roots to trust.
type world struct {
	t      *testing.T
	dir    string
	dns    *dnsServer
	redis  *redisServer // nil on bolt
	sim    *simulator   // nil on local
	server *server

	troubled   bool
	issuerRoot string // file: what certificates lead to
	serverRoot string // file: what the server's own certificate leads to
}

// A plan says what world to make; zero values mean a server with the local CA on
// bolt whose TLS certificate comes from files, so that nothing but the test's own
// orders is in store and CA.
type plan struct {
	store, backend string
	tls            string            // "files", "auto" or "off"
	change         func(config tree) // changes the configuration before it is written
	failpoint      string            // boundary to die at, once world.arm was called
	redisLater     bool              // Redis is not started yet
	noServer       bool              // the caller starts servers
	troubled       bool              // the server has reason to log errors
}

func newWorld(t *testing.T, p plan) *world {
	t.Helper()
	w := &world{t: t, dir: makeDir(t, "world"), dns: startDNS(t), troubled: p.troubled}
	config := tree{
		"log":        tree{"level": "debug", "format": "json"},
		"validation": tree{"default": tree{"resolvers": []string{w.dns.address}, "http_port": httpPort, "tls_port": tlsPort, "allow_networks": []string{"127.0.0.0/8"}, "timeout": "3s"}},
		"profiles":   tree{"internal": tree{"lifetime": "30d", "backend": "ca"}},
		"directories": tree{
			"default": tree{"profiles": []string{"internal"}},
		},
		"limits": tree{"new_orders_per_account": "off", "new_accounts_per_ip": "off", "failed_validations_per_account_and_name": "off"},
	}
	switch p.store {
	case "", bolt:
		config["storage"] = tree{"embedded": tree{"path": filepath.Join(w.dir, "state")}}
	case redisType:
		w.redis = newRedis(t)
		if !p.redisLater {
			w.redis.start()
		}
		config["storage"] = tree{"redis": tree{"addresses": []string{w.redis.address()}}}
	}
	switch p.backend {
	case "", local:
		config["backends"] = tree{"ca": tree{"type": local, "path": filepath.Join(w.dir, "ca")}}
		w.issuerRoot = filepath.Join(w.dir, "ca", "root.crt")
	case privateCA:
		w.sim = startSimulator(t)
		config["backends"] = tree{"ca": tree{"type": privateCA, "base_url": w.sim.BaseURL, "ca_tag": w.sim.CATag,
			"access_key": "env:NCP_ACCESS_KEY", "secret_key": "env:NCP_SECRET_KEY", "timeout": "2s"}}
		w.issuerRoot = w.sim.RootFile
	}
	switch p.tls {
	case "auto":
		config["server"] = tree{"tls": tree{"mode": "auto"}}
		w.serverRoot = w.issuerRoot
	case "off":
		config["server"] = tree{"tls": tree{"mode": "off"}}
	default:
		cert, key, root := serverFiles(t, w.dir)
		config["server"] = tree{"tls": tree{"mode": "files", "cert_file": cert, "key_file": key}}
		w.serverRoot = root
	}
	if p.change != nil {
		p.change(config)
	}
	w.server = w.newServer("server", config)
	if p.failpoint != "" {
		w.server.failpoint = p.failpoint + "@" + w.armFile()
	}
	if !p.noServer {
		w.server.start()
		w.server.awaitReady()
	}
	return w
}

// with is the same world for a subtest, whose failures are its own.
func (w *world) with(t *testing.T) *world {
	mine := *w
	mine.t = t
	if w.sim != nil {
		sim := *w.sim
		sim.t, mine.sim = t, &sim
	}
	return &mine
}

// armFile is the file whose removal kills a server that has a failpoint.
func (w *world) armFile() string { return filepath.Join(w.dir, "armed") }

// arm makes one server die at its failpoint.
func (w *world) arm() {
	w.t.Helper()
	if err := os.WriteFile(w.armFile(), nil, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// fired reports whether a server has died at its failpoint.
func (w *world) fired() bool {
	_, err := os.Stat(w.armFile())
	return errors.Is(err, os.ErrNotExist)
}

// A server is a process of acme-bridge, with its ports and its configuration.
type server struct {
	w         *world
	t         *testing.T
	name      string
	config    tree
	file      string
	port      int
	admin     int
	failpoint string
	proc      *process
}

// newServer gives a configuration its ports and writes it.
func (w *world) newServer(name string, config tree) *server {
	w.t.Helper()
	s := &server{w: w, t: w.t, name: name, file: filepath.Join(w.dir, name+".yaml"), port: freePort(w.t), admin: freePort(w.t)}
	s.config = maps.Clone(config)
	part := tree{"external_url": "https://localhost:" + strconv.Itoa(s.port)}
	if given, ok := config["server"].(tree); ok {
		maps.Copy(part, given)
	}
	part["listen"] = s.address()
	s.config["server"] = part
	s.config["admin"] = tree{"listen": "127.0.0.1:" + strconv.Itoa(s.admin)}
	s.write()
	return s
}

// write writes the configuration file.
func (s *server) write() {
	s.t.Helper()
	text, err := json.MarshalIndent(s.config, "", "  ")
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(s.file, text, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) address() string { return "127.0.0.1:" + strconv.Itoa(s.port) }

// url is a URL of the ACME listener, as clients see it.
func (s *server) url(path string) string {
	external, _ := s.config["server"].(tree)["external_url"].(string)
	return external + path
}

// directory is the URL of the default tenant.
func (s *server) directory() string { return s.url("/directory") }

func (s *server) start() {
	s.t.Helper()
	binary, env := bridge, []string{"NCP_SECRET_KEY=" + simulatorSecret}
	if s.w.sim != nil {
		env = append(env, "NCP_ACCESS_KEY="+s.w.sim.AccessKey)
	}
	if s.failpoint != "" {
		binary = bridgeFailpoint
		env = append(env, "ACME_BRIDGE_FAILPOINT="+s.failpoint)
	}
	s.proc = start(s.t, s.name, s.w.dir, env, binary(s.t), "serve", "--config", s.file)
	if !s.w.troubled {
		s.t.Cleanup(s.proc.expectNoErrors)
	}
}

// restart starts the server again after its end.
func (s *server) restart() {
	s.t.Helper()
	s.start()
	s.awaitReady()
}

// readiness asks /readyz.
func (s *server) readiness() (status int, answer string, err error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/readyz", s.admin), nil)
	if err != nil {
		return 0, "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}

// awaitReady waits until the server is ready and serves TLS, if it does.
func (s *server) awaitReady() {
	s.t.Helper()
	eventually(s.t, 30*time.Second, s.name+" is ready", func() error {
		if err := s.proc.running(); err != nil {
			return err
		}
		status, answer, err := s.readiness()
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("readyz: %d %s", status, answer)
		}
		if err != nil || s.w.serverRoot == "" {
			return err
		}
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", s.address(),
			&tls.Config{ServerName: "localhost", RootCAs: readRoots(s.t, s.w.serverRoot)})
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// httpClient trusts the server's root.
func (w *world) httpClient() *http.Client {
	w.t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: readRoots(w.t, w.serverRoot)}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 32}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// spreadingClient makes a connection for each request, so that a balancer sends
// the requests of one flow to all replicas.
func (w *world) spreadingClient() *http.Client {
	w.t.Helper()
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: readRoots(w.t, w.serverRoot)}, DisableKeepAlives: true}, Timeout: 30 * time.Second}
}

// serverFiles makes a TLS certificate for localhost.
func serverFiles(t *testing.T, dir string) (cert, key, root string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "test server"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key, cert
}
