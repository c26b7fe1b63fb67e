package storagetest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const startTimeout = 20 * time.Second

// A Server is a redis-server process of a test's own.
type Server struct {
	Addr string
	dir  string
	args []string
	cmd  *exec.Cmd
	gone chan struct{} // closed when the process has ended
	out  *output
}

// StartRedis starts a Redis server on a loopback port with its files in a
// directory of the test's, and stops it when the test ends. Settings are those
// of redis.conf, as command-line arguments.
func StartRedis(t testing.TB, settings ...string) *Server {
	t.Helper()
	for range 3 {
		s := newServer(t, settings)
		s.run(t, "redis-server", s.args)
		if s.ready() {
			return s
		}
		if !strings.Contains(s.out.String(), "Address already in use") {
			t.Fatalf("Redis on %s does not answer:\n%s", s.Addr, s.out)
		}
	}
	t.Fatal("no port for Redis could be found")
	return nil
}

func newServer(t testing.TB, settings []string) *Server {
	t.Helper()
	port := FreePort(t)
	s := &Server{Addr: "127.0.0.1:" + port, dir: t.TempDir(), out: &output{}}
	s.args = append([]string{
		"--port", port, "--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--maxmemory-policy", "noeviction",
		"--enable-debug-command", "local",
	}, settings...)
	return s
}

// Start starts the server again after Stop or Kill, on the same files.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.run(t, "redis-server", s.args)
	if !s.ready() {
		t.Fatalf("Redis on %s does not answer:\n%s", s.Addr, s.out)
	}
}

// ready waits until the server answers, and reports whether it does.
func (s *Server) ready() bool {
	ok := false
	s.ask(func(ctx context.Context, c *redis.Client) bool {
		ok = c.Ping(ctx).Err() == nil
		return ok || s.ended()
	})
	return ok
}

func (s *Server) ended() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

func (s *Server) run(t testing.TB, program string, args []string) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%s is needed for this test and is not installed (Debian packages redis-server and redis-sentinel): %v", program, err)
	}
	s.cmd = exec.Command(path, args...)
	s.cmd.Dir = s.dir
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	// The server must not outlive a test binary that is killed.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	cmd, gone := s.cmd, make(chan struct{})
	s.gone = gone
	go func() {
		defer close(gone)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
	})
}

// Stop ends the server in good order.
func (s *Server) Stop() { s.end(syscall.SIGTERM) }

// Kill ends the server at once.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

func (s *Server) end(sig os.Signal) {
	_ = s.cmd.Process.Signal(sig)
	<-s.gone
}

// Client is a plain client for looking at what is stored.
func (s *Server) Client(t testing.TB) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Addr, Protocol: 2})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (s *Server) await(t testing.TB, what string, done func(context.Context, *redis.Client) bool) {
	t.Helper()
	if !s.ask(done) {
		t.Fatalf("server on %s did not %s within %s:\n%s", s.Addr, what, startTimeout, s.out)
	}
}

func (s *Server) ask(done func(context.Context, *redis.Client) bool) bool {
	c := redis.NewClient(&redis.Options{Addr: s.Addr, Protocol: 2, MaxRetries: -1, DialerRetries: 1})
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return Await(ctx, func() bool { return done(ctx, c) })
}

// Await asks until done says so, and reports whether it did before ctx ended.
func Await(ctx context.Context, done func() bool) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// StartCluster starts a Redis Cluster of three masters and returns its members.
func StartCluster(t testing.TB) []*Server {
	t.Helper()
	servers := make([]*Server, 3)
	for i := range servers {
		servers[i] = StartRedis(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-config-file", "nodes.conf",
			"--cluster-port", FreePort(t))
	}
	ctx := t.Context()
	const slots = 16384
	for i, s := range servers {
		c := s.Client(t)
		if err := c.ClusterAddSlotsRange(ctx, i*slots/3, (i+1)*slots/3-1).Err(); err != nil {
			t.Fatalf("give slots to %s: %v", s.Addr, err)
		}
		if err := c.Do(ctx, "cluster", "set-config-epoch", i+1).Err(); err != nil {
			t.Fatalf("set epoch of %s: %v", s.Addr, err)
		}
	}
	first := servers[0].Client(t)
	for _, s := range servers[1:] {
		host, port, _ := net.SplitHostPort(s.Addr)
		bus := s.args[len(s.args)-1]
		if err := first.Do(ctx, "cluster", "meet", host, port, bus).Err(); err != nil {
			t.Fatalf("meet %s: %v", s.Addr, err)
		}
	}
	for _, s := range servers {
		s.await(t, "join the cluster", func(ctx context.Context, c *redis.Client) bool {
			info := c.ClusterInfo(ctx).Val()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3")
		})
	}
	return servers
}

// Sentinels are a master, a replica, and three Sentinels that watch them.
type Sentinels struct {
	MasterName      string
	Addrs           []string
	Master, Replica *Server
	sentinels       []*Server
}

// StartSentinels starts a master with a replica under three Sentinels that take
// one second to find it dead.
func StartSentinels(t testing.TB) *Sentinels {
	t.Helper()
	set := &Sentinels{MasterName: "main", Master: StartRedis(t)}
	host, port, _ := net.SplitHostPort(set.Master.Addr)
	set.Replica = StartRedis(t, "--replicaof", host, port, "--repl-diskless-sync-delay", "0")
	set.Replica.await(t, "catch up with its master", func(ctx context.Context, c *redis.Client) bool {
		return strings.Contains(c.Info(ctx, "replication").Val(), "master_link_status:up")
	})
	for range 3 {
		s := &Server{dir: t.TempDir(), out: &output{}}
		own := FreePort(t)
		s.Addr = "127.0.0.1:" + own
		conf := filepath.Join(s.dir, "sentinel.conf")
		text := fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nsentinel monitor %s %s %s 2\nsentinel down-after-milliseconds %[3]s 1000\nsentinel failover-timeout %[3]s 5000\n",
			own, s.dir, set.MasterName, host, port)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.run(t, "redis-server", []string{conf, "--sentinel"})
		s.await(t, "answer PING", func(ctx context.Context, c *redis.Client) bool { return c.Ping(ctx).Err() == nil })
		set.sentinels, set.Addrs = append(set.sentinels, s), append(set.Addrs, s.Addr)
	}
	for _, s := range set.sentinels {
		s.await(t, "see the replica and the other Sentinels", func(ctx context.Context, c *redis.Client) bool {
			info := c.Info(ctx, "sentinel").Val()
			return strings.Contains(info, "slaves=1") && strings.Contains(info, "sentinels=3")
		})
	}
	return set
}

// FreePort finds a port that nobody listens on. Another process may take it
// before the server does.
func FreePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// output keeps what a server says, for the message of a test that fails.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.buf.Len() < 64<<10 {
		o.buf.Write(p)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
