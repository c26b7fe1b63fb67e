package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// A redisServer is a real Redis with an append-only file, on a port that it
// keeps over restarts.
type redisServer struct {
	t    *testing.T
	dir  string
	port int
	proc *process
}

// newRedis prepares a Redis; start starts it.
func newRedis(t *testing.T) *redisServer {
	t.Helper()
	return &redisServer{t: t, dir: makeDir(t, "redis"), port: freePort(t)}
}

func (r *redisServer) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

func (r *redisServer) start() {
	r.t.Helper()
	r.proc = start(r.t, "redis", r.dir, nil, debianTool(r.t, "redis-server", "redis-server"),
		"--bind", "127.0.0.1", "--port", strconv.Itoa(r.port), "--dir", r.dir, "--save", "",
		"--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction")
	client := redis.NewClient(&redis.Options{Addr: r.address()})
	defer client.Close()
	eventually(r.t, 20*time.Second, "Redis answers", func() error {
		ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
		defer cancel()
		if err := r.proc.running(); err != nil {
			return err
		}
		return client.Ping(ctx).Err()
	})
}

// kill is kill -9: what was acknowledged is in the kernel's hands by then.
func (r *redisServer) kill() { r.proc.kill() }

func makeDir(t *testing.T, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), name+"-")
	if err != nil {
		t.Fatal(fmt.Errorf("make directory: %w", err))
	}
	return dir
}
