package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// expectUnavailable sends a request while the store is away: 503, a problem
// document, and when to come back.
func (w *world) expectUnavailable(newAccount string) error {
	res, answer, err := w.post(w.t.Context(), w.httpClient(), newAccount, newKey(w.t), "", tree{"termsOfServiceAgreed": true})
	if err != nil {
		return err
	}
	var p problem
	if err := json.Unmarshal(answer, &p); err != nil {
		return fmt.Errorf("%s: %w: %.200s", res.Status, err, answer)
	}
	after, err := strconv.Atoi(res.Header.Get("Retry-After"))
	switch {
	case res.StatusCode != http.StatusServiceUnavailable || p.Status != http.StatusServiceUnavailable:
		return fmt.Errorf("answered %s with %.200s, want 503", res.Status, answer)
	case res.Header.Get("Content-Type") != "application/problem+json":
		return fmt.Errorf("Content-Type is %q", res.Header.Get("Content-Type"))
	case !strings.HasPrefix(p.Type, "urn:ietf:params:acme:error:"):
		return fmt.Errorf("the problem's type is %q", p.Type)
	case err != nil || after < 1 || after > 60:
		return fmt.Errorf("Retry-After is %q", res.Header.Get("Retry-After"))
	}
	return nil
}

func TestRedisGoesAwayInTheMiddleAndComesBack(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*redisServer){
		"stopped": func(r *redisServer) { r.proc.stop() },
		"killed":  func(r *redisServer) { r.kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, plan{store: redisType, backend: privateCA, troubled: true})
			c, ctx := w.newClient(w.server.directory()), deadline(t, 90*time.Second)
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			directory, err := c.acme.Discover(ctx)
			if err != nil {
				t.Fatal(err)
			}
			w.sim.hold("signEndCsr") // one order is at the CA
			flows := w.flows(ctx, c, 6)
			w.sim.awaitHeld()
			end(w.redis)
			w.sim.release()
			eventually(t, 20*time.Second, "requests are answered 503", func() error { return w.expectUnavailable(directory.RegURL) })
			eventually(t, 20*time.Second, "readiness tells", func() error {
				status, answer, err := w.server.readiness()
				if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(answer, "store")) {
					err = fmt.Errorf("%d %s", status, answer)
				}
				return err
			})
			w.redis.start()
			flows()
			w.server.awaitReady()
			if err := w.server.proc.running(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheServerStartsWithoutRedisAndComesUpByItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{store: redisType, backend: local, redisLater: true, troubled: true, noServer: true})
	w.server.start()
	eventually(t, 20*time.Second, "readiness tells that the store is away", func() error {
		if err := w.server.proc.running(); err != nil {
			return err
		}
		status, answer, err := w.server.readiness()
		if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(answer, "store")) {
			err = fmt.Errorf("%d %s", status, answer)
		}
		return err
	})
	client := w.httpClient()
	res, err := client.Get(w.server.directory())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var directory struct{ NewAccount string }
	if err := json.NewDecoder(res.Body).Decode(&directory); err != nil || directory.NewAccount == "" {
		t.Fatalf("directory: %v, %s", err, res.Status)
	}
	// The nonce key is in Redis, so that there may be no nonce to be had.
	eventually(t, 20*time.Second, "newNonce or newAccount are answered 503", func() error {
		res, err := client.Head(w.server.url("/new-nonce"))
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") != "" {
			return nil
		}
		return w.expectUnavailable(directory.NewAccount)
	})
	w.redis.start()
	w.server.awaitReady()
	c, ctx := w.newClient(w.server.directory()), deadline(t, 60*time.Second)
	if err := c.register(ctx); err != nil {
		t.Fatal(err)
	}
	w.flows(ctx, c, 2)()
}
