package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A process runs a program in the background until the test ends. Its output is
// kept in files and shown if the test fails.
type process struct {
	t      *testing.T
	name   string
	cmd    *exec.Cmd
	stdout string // file
	stderr string // file
	done   chan struct{}
}

// neverLogged are words that no program's log may have, whatever happens: the
// race detector's and the runtime's alarms (GOFLAGS=-race reaches the build), and
// secrets.
var neverLogged = []string{"DATA RACE", "panic", "goroutine 1 [", simulatorSecret, "PRIVATE KEY"}

// start runs a program. Output of several runs under one name in one directory
// is appended.
func start(t *testing.T, name, dir string, env []string, path string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, done: make(chan struct{}),
		stdout: filepath.Join(dir, name+".out"), stderr: filepath.Join(dir, name+".log")}
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir = dir
	p.cmd.Env = append(os.Environ(), env...)
	// A test process that is killed takes its children along.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := os.OpenFile(p.stdout, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close() // the child has its own
	log, err := os.OpenFile(p.stderr, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = out, log
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // its outcome is in ProcessState
	}()
	t.Cleanup(func() {
		p.kill()
		for _, bad := range neverLogged {
			if bytes.Contains(readFile(t, p.stderr), []byte(bad)) {
				t.Errorf("%s has logged %q", name, bad)
			}
		}
		if t.Failed() {
			t.Logf("%s, exit: %s\n%s%s", name, p.cmd.ProcessState, tail(p.stdout), tail(p.stderr))
		}
	})
	return p
}

// kill is kill -9; it returns when the process is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may be gone already
	<-p.done
}

// signal sends a signal.
func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %s to %s: %v", s, p.name, err)
	}
}

// exited waits for the process to end by itself.
func (p *process) exited(within time.Duration) error {
	limit := time.NewTimer(within)
	defer limit.Stop()
	select {
	case <-p.done:
		return nil
	case <-limit.C:
		return fmt.Errorf("%s still runs after %s", p.name, within)
	}
}

// stop is SIGTERM, and expects a clean end.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if err := p.exited(40 * time.Second); err != nil {
		p.t.Fatal(err)
	}
	if !p.cmd.ProcessState.Success() {
		p.t.Fatalf("%s ended with %s after SIGTERM", p.name, p.cmd.ProcessState)
	}
}

// errEnded is for those who wait for something of a process that has ended.
var errEnded = errors.New("has ended")

// running is an error if the process has ended.
func (p *process) running() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s %w: %s", p.name, errEnded, p.cmd.ProcessState)
	default:
		return nil
	}
}

// expectNoErrors fails the test if the server has logged an error: something that
// someone must look at.
func (p *process) expectNoErrors() {
	for line := range bytes.Lines(readFile(p.t, p.stderr)) {
		if bytes.Contains(line, []byte(`"level":"ERROR"`)) {
			p.t.Errorf("%s has logged an error: %s", p.name, line)
		}
	}
}

// tail is the end of a file, for reports of failures.
func tail(file string) []byte {
	text, err := os.ReadFile(file)
	if err != nil {
		return []byte(err.Error())
	}
	const most = 12 << 10
	if len(text) > most {
		text = append([]byte("...\n"), text[len(text)-most:]...)
	}
	return text
}

// command runs a program to its end and returns what it printed; an error has
// the output too.
func command(t *testing.T, dir string, env []string, path string, args ...string) ([]byte, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	if err := cmd.Start(); err != nil {
		timer.Stop()
		return nil, err
	}
	err := cmd.Wait()
	if !timer.Stop() {
		err = errors.Join(err, errors.New("took more than two minutes"))
	}
	if err != nil {
		return out.Bytes(), fmt.Errorf("%s %q: %w\n%s", filepath.Base(path), args, err, out.Bytes())
	}
	return out.Bytes(), nil
}

// mustRun is command that must succeed.
func mustRun(t *testing.T, dir string, env []string, path string, args ...string) string {
	t.Helper()
	out, err := command(t, dir, env, path, args...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
