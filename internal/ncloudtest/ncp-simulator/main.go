// Command ncp-simulator runs the simulator of NCP services as a process, for
// black-box tests. It prints one line of JSON when it is ready:
//
//	{"base_url","cm_base_url","globaldns_base_url","control_url","dns_address","ca_tag","root_ca_tag",
//	 "root_file","cm_root_file","tls_root_file","access_key"}
//
// base_url is Private CA's. Each service has an address of its own, as at NCP,
// and dns_address (host:port, UDP and TCP) serves the domains of Global DNS and
// the records that the control API publishes. It runs until SIGTERM or SIGINT. The control API is described at
// [ncloudtest.Simulator.Control].
package main

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
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "ncp-simulator:", err)
		os.Exit(1)
	}
}

// ready is what is printed once the listeners are open.
type ready struct {
	BaseURL     string `json:"base_url"`
	CMBaseURL   string `json:"cm_base_url"`
	GDNSBaseURL string `json:"globaldns_base_url"`
	ControlURL  string `json:"control_url"`
	DNSAddress  string `json:"dns_address"`
	CATag       string `json:"ca_tag"`
	RootCATag   string `json:"root_ca_tag"`
	RootFile    string `json:"root_file"`
	CMRootFile  string `json:"cm_root_file"`
	TLSRootFile string `json:"tls_root_file,omitempty"`
	AccessKey   string `json:"access_key"`
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("ncp-simulator", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:0", "address of the gateway")
	cmListen := flags.String("cm-listen", "127.0.0.1:0", "address of the gateway for Certificate Manager")
	gdnsListen := flags.String("globaldns-listen", "127.0.0.1:0", "address of the gateway for Global DNS")
	dnsListen := flags.String("dns-listen", "127.0.0.1:0", "address of the DNS server, UDP and TCP")
	resolver := flags.String("dns", "", "DNS server (host:port) at which validation records are looked for (default: the simulator's own)")
	interval := flags.Duration("check-interval", 200*time.Millisecond, "how often they are looked for; 0: only when the control API says so")
	subAccount := flags.Bool("sub-account", false, "answer Certificate Manager 2.0 as to a sub account's key")
	control := flags.String("control-listen", "127.0.0.1:0", "address of the control API")
	accessKey := flags.String("access-key", ncloudtest.DefaultAccessKey, "access key ID to accept")
	secretKey := flags.String("secret-key", ncloudtest.DefaultSecretKey, "secret key to accept")
	dir := flags.String("dir", "", "directory for root.pem, cm-root.pem and tls-root.pem (default: a temporary one, removed at the end)")
	withTLS := flags.Bool("tls", false, "serve the gateway over TLS with a self-signed certificate")
	rootDays := flags.Int("root-days", 3650, "validity of the root CA in days")
	caDays := flags.Int("ca-days", 1825, "validity of the subordinate CA in days")
	quota := flags.Int64("quota", 30000, "certificates that a CA may issue")
	openAPI := flags.String("openapi", "", "OpenAPI file to check each call and answer of Private CA against")
	openAPICM := flags.String("openapi-cm", "", "the same for Certificate Manager")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	sim, err := ncloudtest.New(ncloudtest.Options{AccessKey: *accessKey, SecretKey: *secretKey, RootDays: *rootDays, CADays: *caDays,
		OpenAPI: *openAPI, OpenAPICM: *openAPICM, DNSListen: *dnsListen, Resolver: *resolver, CheckInterval: *interval})
	if err != nil {
		return err
	}
	defer sim.Close()
	if err := sim.Change(func(b *ncloudtest.Behaviour) { b.Quota, b.CM.SubAccount = *quota, *subAccount }); err != nil {
		return err
	}
	if *dir == "" {
		if *dir, err = os.MkdirTemp("", "ncp-simulator-"); err != nil {
			return err
		}
		defer os.RemoveAll(*dir)
	}
	r := ready{CATag: sim.CATag(), RootCATag: sim.RootTag(), AccessKey: *accessKey, DNSAddress: sim.DNSAddress(),
		RootFile: filepath.Join(*dir, "root.pem"), CMRootFile: filepath.Join(*dir, "cm-root.pem")}
	if err := os.WriteFile(r.RootFile, sim.RootPEM(), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(r.CMRootFile, sim.CMRootPEM(), 0o644); err != nil {
		return err
	}
	services := []struct {
		flag, listen string
		service      ncloudtest.Service
		url          *string
	}{
		{"--listen", *listen, ncloudtest.PrivateCA, &r.BaseURL},
		{"--cm-listen", *cmListen, ncloudtest.CertificateManager, &r.CMBaseURL},
		{"--globaldns-listen", *gdnsListen, ncloudtest.GlobalDNS, &r.GDNSBaseURL},
	}
	scheme, config := "http://", (*tls.Config)(nil)
	if *withTLS {
		cert, err := selfSigned()
		if err != nil {
			return err
		}
		r.TLSRootFile = filepath.Join(*dir, "tls-root.pem")
		if err := os.WriteFile(r.TLSRootFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o644); err != nil {
			return err
		}
		// HTTP/1 only: faults take over the connection.
		scheme, config = "https://", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	}
	sites := make(map[net.Listener]http.Handler)
	for _, x := range services {
		l, err := listenLoopback(x.listen)
		if err != nil {
			return fmt.Errorf("%s: %w", x.flag, err)
		}
		defer l.Close()
		*x.url = scheme + l.Addr().String()
		if config != nil {
			l = tls.NewListener(l, config)
		}
		sites[l] = sim.Only(x.service)
	}
	controls, err := listenLoopback(*control)
	if err != nil {
		return fmt.Errorf("--control-listen: %w", err)
	}
	defer controls.Close()
	r.ControlURL = "http://" + controls.Addr().String()
	sites[controls] = sim.Control()
	if err := json.NewEncoder(out).Encode(r); err != nil {
		return err
	}
	return serve(ctx, sim, sites)
}

// serve runs a server at each listener until ctx ends or one of them fails.
func serve(ctx context.Context, sim *ncloudtest.Simulator, sites map[net.Listener]http.Handler) error {
	quiet := log.New(io.Discard, "", 0)
	var servers []*http.Server
	group, ctx := errgroup.WithContext(ctx)
	for l, handler := range sites {
		server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: quiet}
		servers = append(servers, server)
		group.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		sim.Close() // lets go of held and delayed calls
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		for _, s := range servers {
			if s.Shutdown(end) != nil {
				_ = s.Close() // what is left is cut off
			}
		}
		return nil
	})
	return group.Wait()
}

func listenLoopback(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		_ = l.Close() // refused anyway
		return nil, fmt.Errorf("%s is not on loopback", address)
	}
	return l, nil
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	t := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "ncp-simulator"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 0, 30),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
