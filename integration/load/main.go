// Command load measures whole ACME flows against the built server: it starts
// Redis and the server, gets certificates over real TLS and real http-01, and
// reads the CPU time of both from the operating system.
//
// Closed loop (-rate 0): every worker starts its next flow when the last one
// has ended. Open loop: flows start at the given rate, whatever became of the
// ones before, and their latency counts from when they should have started.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type options struct {
	binary   string
	store    string
	fsync    string
	flows    int
	warm     int
	workers  int
	accounts int
	pending  int
	orders   int
	rate     float64
	stored   int
	redis    string // address of the Redis that was started
}

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "", "the acme-bridge `FILE` to measure")
	flag.StringVar(&o.store, "store", "redis", "redis or bolt")
	flag.StringVar(&o.fsync, "appendfsync", "everysec", "Redis's appendfsync: everysec, always, or off for no persistence")
	flag.IntVar(&o.flows, "flows", 1000, "flows to measure")
	flag.IntVar(&o.warm, "warm", 200, "flows before measuring")
	flag.IntVar(&o.workers, "workers", 1, "flows at a time")
	flag.IntVar(&o.accounts, "accounts", 1, "accounts to spread the flows over")
	flag.IntVar(&o.pending, "pending", 0, "orders left pending on each account beforehand")
	flag.IntVar(&o.orders, "neworders", 0, "instead of flows, make so many orders and leave them pending")
	flag.Float64Var(&o.rate, "rate", 0, "flows per second to start (open loop); 0: closed loop")
	flag.IntVar(&o.stored, "stored", 0, "finished orders stored in Redis beforehand")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, &o); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// A process is measured and stopped at the end.
type process struct {
	name string
	cmd  *exec.Cmd
}

func start(name string, log *os.File, path string, args ...string) (*process, error) {
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return &process{name: name, cmd: cmd}, nil
}

func (p *process) stop() {
	// A process that is gone already needs no signal.
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
}

// cpu is user and system time so far, in the kernel's ticks of 10 ms.
func (p *process) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func run(ctx context.Context, o *options) error {
	if o.binary == "" {
		return errors.New("-binary is needed")
	}
	dir, err := os.MkdirTemp("", "acme-bridge-load-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	var processes []*process
	defer func() {
		for _, p := range slices.Backward(processes) {
			p.stop()
		}
	}()

	tokens := &responder{tokens: make(map[string]string)}
	// Both families, since the server prefers IPv6 for names under localhost.
	listener, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		return err
	}
	challenges := &http.Server{Handler: tokens, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = challenges.Serve(listener) }()
	defer challenges.Close()

	storage := fmt.Sprintf("{embedded: {path: %q}}", filepath.Join(dir, "data"))
	if o.store == "redis" {
		port, err := freePort()
		if err != nil {
			return err
		}
		args := []string{"--port", strconv.Itoa(port), "--dir", dir, "--save", "", "--bind", "127.0.0.1"}
		if o.fsync != "off" {
			args = append(args, "--appendonly", "yes", "--appendfsync", o.fsync)
		}
		p, err := start("redis", log, "redis-server", args...)
		if err != nil {
			return err
		}
		processes = append(processes, p)
		o.redis = fmt.Sprintf("127.0.0.1:%d", port)
		storage = fmt.Sprintf("{redis: {addresses: [%q]}}", o.redis)
	}
	server, admin, err := startServer(o, dir, storage, listener.Addr().(*net.TCPAddr).Port, log)
	if err != nil {
		return err
	}
	processes = append(processes, server.process)
	if err := ready(ctx, admin); err != nil {
		out, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w\n%s", err, out)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca", "root.crt"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	var clients []*client
	for range o.accounts {
		h := &http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: o.workers + 64,
		}}
		c, err := newClient(ctx, h, server.url+"/directory")
		if err != nil {
			return err
		}
		clients = append(clients, c)
	}
	return measure(ctx, o, clients, tokens, processes)
}

type serverProcess struct {
	*process
	url string
}

func startServer(o *options, dir, storage string, httpPort int, log *os.File) (*serverProcess, string, error) {
	port, err := freePort()
	if err != nil {
		return nil, "", err
	}
	adminPort, err := freePort()
	if err != nil {
		return nil, "", err
	}
	url := fmt.Sprintf("https://localhost:%d", port)
	cfg := fmt.Sprintf(`server: {listen: "127.0.0.1:%d", external_url: %q}
admin: {listen: "127.0.0.1:%d"}
storage: %s
backends: {lab: {type: local, path: %q}}
validation: {default: {http_port: %d, localhost: true, allow_networks: [127.0.0.0/8, "::1/128"]}}
profiles: {internal: {backend: lab}}
limits: {new_accounts_per_ip: 1000000/h, new_orders_per_account: 100000000/h, pending_orders_per_account: 1000000}
`, port, url, adminPort, storage, filepath.Join(dir, "ca"), httpPort)
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(cfg), 0o600); err != nil {
		return nil, "", err
	}
	p, err := start("acme-bridge", log, o.binary, "serve", "--config", file)
	if err != nil {
		return nil, "", err
	}
	return &serverProcess{process: p, url: url}, fmt.Sprintf("http://127.0.0.1:%d", adminPort), nil
}

// ready waits for the server to be ready and to have its certificate.
func ready(ctx context.Context, admin string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+"/readyz", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errors.New("the server did not become ready")
		case <-tick.C:
		}
	}
}

func measure(ctx context.Context, o *options, clients []*client, tokens *responder, processes []*process) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	for i := range o.pending {
		for _, c := range clients {
			if _, _, err := c.newOrder(ctx, fmt.Sprintf("pending-%d.localhost", i)); err != nil {
				return err
			}
		}
	}
	var serial atomic.Int64
	one := func(ctx context.Context) error {
		n := serial.Add(1)
		c := clients[int(n)%len(clients)]
		name := fmt.Sprintf("flow-%d.localhost", n)
		if o.orders > 0 {
			_, _, err := c.newOrder(ctx, name)
			return err
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, key)
		if err != nil {
			return err
		}
		return c.flow(ctx, name, tokens, csr)
	}
	count := o.flows
	if o.orders > 0 {
		count = o.orders
	}
	for range o.warm {
		if err := one(ctx); err != nil {
			return fmt.Errorf("warming up: %w", err)
		}
	}
	if o.stored > 0 {
		if err := seed(ctx, o.redis, o.stored); err != nil {
			return err
		}
	}
	before := make([]time.Duration, len(processes))
	for i, p := range processes {
		if before[i], err = p.cpu(); err != nil {
			return err
		}
	}
	begin := time.Now()
	took, failed := drive(ctx, o, count, one)
	elapsed := time.Since(begin)

	slices.Sort(took)
	quantile := func(q float64) time.Duration { return took[min(len(took)-1, int(q*float64(len(took))))] }
	fmt.Printf("store %s (%d finished orders), %d workers, %d accounts, %d pending orders each, rate %g/s\n", o.store, o.stored, o.workers, o.accounts, o.pending, o.rate)
	fmt.Printf("flows %d, failed %d, in %s: %.1f/s\n", len(took), failed, elapsed.Round(time.Millisecond), float64(len(took))/elapsed.Seconds())
	if len(took) > 0 {
		fmt.Printf("latency: median %s, p90 %s, p99 %s, most %s\n", quantile(.5), quantile(.9), quantile(.99), took[len(took)-1])
	}
	var total time.Duration
	for i, p := range processes {
		after, err := p.cpu()
		if err != nil {
			return err
		}
		spent := after - before[i]
		total += spent
		fmt.Printf("CPU per flow, %s: %.2f ms\n", p.name, float64(spent.Microseconds())/1000/float64(count))
	}
	fmt.Printf("CPU per flow, together: %.2f ms\n", float64(total.Microseconds())/1000/float64(count))
	if failed > 0 {
		return fmt.Errorf("%d flows failed", failed)
	}
	return nil
}

// drive runs count flows in a closed or open loop, and returns how long each
// took that succeeded.
func drive(ctx context.Context, o *options, count int, one func(context.Context) error) (took []time.Duration, failed int) {
	var mu sync.Mutex
	note := func(d time.Duration, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			if failed++; failed <= 5 {
				fmt.Fprintln(os.Stderr, "flow failed:", err)
			}
			return
		}
		took = append(took, d)
	}
	var group sync.WaitGroup
	if o.rate > 0 {
		gap := time.Duration(float64(time.Second) / o.rate)
		due := time.Now()
		for range count {
			timer := time.NewTimer(time.Until(due))
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
			at := due
			group.Go(func() { err := one(ctx); note(time.Since(at), err) })
			due = due.Add(gap)
		}
		group.Wait()
		return took, failed
	}
	var left atomic.Int64
	left.Store(int64(count))
	for range o.workers {
		group.Go(func() {
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				at := time.Now()
				err := one(ctx)
				note(time.Since(at), err)
			}
		})
	}
	group.Wait()
	return took, failed
}
