package integration

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestMain makes the directory that programs are built into.
func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	flag.Parse()
	// Nearly all tests wait for processes most of the time. An explicit
	// -parallel that differs from the default wins.
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		if err := flag.Set("test.parallel", "10"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	dir, err := os.MkdirTemp("", "acme-bridge-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	programDir = dir
	return m.Run()
}

// programDir is set once, before any test runs.
var programDir string

// The programs under test and those that help, each built when first needed.
var (
	bridge          = program("acme-bridge", "..", "./cmd/acme-bridge")
	bridgeFailpoint = program("acme-bridge-failpoint", "..", "-tags=failpoint", "./cmd/acme-bridge")
	simulatorBinary = program("ncp-simulator", "..", "./internal/ncloudtest/ncp-simulator")
	caddyBinary     = program("caddy", ".", "./internal/caddy")
	dnsHook         = program("dnshook", ".", "./internal/dnshook")
)

// program returns a function that builds the program once and gives its path.
// GOFLAGS=-race in the environment reaches the build.
func program(name, dir string, args ...string) func(t *testing.T) string {
	build := sync.OnceValues(func() (string, error) {
		path := filepath.Join(programDir, name)
		cmd := exec.Command("go", append([]string{"build", "-o", path}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return path, nil
	})
	return func(t *testing.T) string {
		t.Helper()
		path, err := build()
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
}

// debianTool finds a program of a Debian package.
func debianTool(t *testing.T, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is needed: apt-get install %s", name, debianPackage)
	}
	return path
}

// ports and addresses give each test its own. The ports lie below those that
// the system takes for outgoing connections.
var ports, addresses atomic.Int64

const (
	firstPort = 17000
	lastPort  = 31000
	// httpPort and tlsPort are where challenges are answered, on an address that
	// is the client's own.
	httpPort = 16080
	tlsPort  = 16443
)

// freePort finds a port that nothing listens on at 127.0.0.1. A server keeps
// its port over restarts.
func freePort(t *testing.T) int {
	t.Helper()
	// Different test processes begin at different places.
	start := int64(os.Getpid()) * 37
	for range lastPort - firstPort {
		port := firstPort + int((start+ports.Add(1))%(lastPort-firstPort))
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		return port
	}
	t.Fatal("no free port")
	return 0
}

// freeAddress gives a loopback address that no other test has.
func freeAddress() string {
	n := addresses.Add(1)
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 16+pid%200, n/250+int64(pid/200%100), n%250+1)
}

// eventually asks until the answer is nil, or fails with the last error. It is
// for what other processes do and do not announce.
func eventually(t *testing.T, within time.Duration, what string, ask func() error) {
	t.Helper()
	if err := untilNil(within, ask); err != nil {
		t.Fatalf("%s: not within %s: %v", what, within, err)
	}
}

func untilNil(within time.Duration, ask func() error) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil || errors.Is(err, errEnded) {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return err
		}
	}
}
