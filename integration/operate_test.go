package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

func TestSIGTERMInTheMiddleOfIssuingWaitsForTheCA(t *testing.T) {
	t.Parallel()
	for _, store := range []string{bolt, redisType} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, plan{store: store, backend: privateCA, change: func(c tree) {
				c["backends"].(tree)["ca"].(tree)["timeout"] = "20s"
			}})
			c, ctx := w.newClient(w.server.directory()), deadline(t, 90*time.Second)
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			order, err := c.prove(ctx, "drain."+zone)
			if err != nil {
				t.Fatal(err)
			}
			w.sim.hold("signEndCsr")
			key := newKey(t)
			// The finalize request itself must be answered, by the process that is
			// told to stop: a plain client, which repeats nothing.
			type answer struct {
				status string
				err    error
			}
			finalized := make(chan answer, 1)
			go func() {
				var got answer
				defer func() { finalized <- got }()
				got.status, got.err = w.finalizeOnce(ctx, c, order, newCSR(t, key, "drain."+zone))
			}()
			w.sim.awaitHeld()
			w.server.proc.signal(syscall.SIGTERM)
			eventually(t, 10*time.Second, "no new connections are taken", func() error {
				conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.server.address())
				if err != nil {
					return nil
				}
				conn.Close()
				return errors.New("connected")
			})
			if err := w.server.proc.running(); err != nil {
				t.Fatalf("did not wait: %v", err)
			}
			w.sim.release()
			if got := <-finalized; got.err != nil || got.status != acme.StatusValid {
				t.Errorf("finalize was answered %q, %v; want valid", got.status, got.err)
			}
			if err := w.server.proc.exited(20 * time.Second); err != nil {
				t.Fatal(err)
			}
			if !w.server.proc.cmd.ProcessState.Success() {
				t.Errorf("ended with %s", w.server.proc.cmd.ProcessState)
			}
			w.server.restart()
			r, err := c.finish(ctx, order, key, "drain."+zone)
			if err != nil {
				t.Fatal(err)
			}
			w.checkResult(r, acme.StatusValid)
			w.checkIssued(r, 1)
		})
	}
}

// Without a held request, only the worker knows of the call: it must be waited
// for as well, and its outcome saved.
func TestSIGTERMWaitsForTheCAThoughNoClientDoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{store: bolt, backend: privateCA, change: func(c tree) {
		c["server"].(tree)["finalize_hold"] = "0s"
		c["backends"].(tree)["ca"].(tree)["timeout"] = "20s"
	}})
	c, ctx := w.newClient(w.server.directory()), deadline(t, 60*time.Second)
	if err := c.register(ctx); err != nil {
		t.Fatal(err)
	}
	order, err := c.prove(ctx, "drain."+zone)
	if err != nil {
		t.Fatal(err)
	}
	w.sim.hold("signEndCsr")
	key := newKey(t)
	if got, err := w.finalizeOnce(ctx, c, order, newCSR(t, key, "drain."+zone)); err != nil || got != acme.StatusProcessing {
		t.Fatalf("finalize was answered %q, %v; want processing", got, err)
	}
	w.sim.awaitHeld()
	w.server.proc.signal(syscall.SIGTERM)
	eventually(t, 10*time.Second, "the log tells of the end", func() error {
		if !bytes.Contains(readFile(t, w.server.proc.stderr), []byte("shutting down")) {
			return errors.New("it does not")
		}
		return nil
	})
	if err := w.server.proc.exited(time.Second); err == nil {
		t.Fatal("did not wait")
	}
	w.sim.release()
	if err := w.server.proc.exited(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	w.server.restart()
	if now, err := c.acme.GetOrder(ctx, order.URI); err != nil || now.Status != acme.StatusValid {
		t.Fatalf("after the restart the order is %+v, %v; want valid at once", now, err)
	}
	r, err := c.finish(ctx, order, key, "drain."+zone)
	if err != nil {
		t.Fatal(err)
	}
	w.checkResult(r, acme.StatusValid)
	w.checkIssued(r, 1)
}

// finalizeOnce sends one finalize request and returns the order's status in its
// answer.
func (w *world) finalizeOnce(ctx context.Context, c *client, order *acme.Order, csr []byte) (string, error) {
	account, err := c.acme.GetReg(ctx, "")
	if err != nil {
		return "", err
	}
	res, answer, err := w.post(ctx, w.httpClient(), order.FinalizeURL, c.acme.Key, account.URI, tree{"csr": base64URL(csr)})
	if err != nil {
		return "", err
	}
	var o struct{ Status string }
	if err := json.Unmarshal(answer, &o); err != nil || res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %.200s", res.Status, answer)
	}
	return o.Status, nil
}

// get reads a URL of the server; the body is read and dropped.
func (w *world) get(client *http.Client, url string) (int, error) {
	res, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}

func TestSIGHUPTakesAGoodFileAndRefusesABadOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{store: bolt, backend: local, troubled: true})
	s, client := w.server, w.httpClient()
	c, ctx := w.newClient(s.directory()), deadline(t, 60*time.Second)
	if err := c.register(ctx); err != nil {
		t.Fatal(err)
	}
	w.flows(ctx, c, 1)()
	expect := func(what, path string, want int) {
		t.Helper()
		eventually(t, 10*time.Second, what, func() error {
			got, err := w.get(client, s.url(path))
			if err == nil && got != want {
				err = fmt.Errorf("%s answers %d, want %d", path, got, want)
			}
			return err
		})
	}
	expect("before", "/second/directory", http.StatusNotFound)

	s.config["directories"].(tree)["second"] = tree{"profiles": []string{"internal"}}
	s.write()
	s.proc.signal(syscall.SIGHUP)
	expect("a new tenant after SIGHUP", "/second/directory", http.StatusOK)

	// A bad file that also lacks the tenant: nothing of it counts.
	delete(s.config["directories"].(tree), "second")
	s.config["profiles"].(tree)["internal"].(tree)["colour"] = "red"
	s.write()
	s.proc.signal(syscall.SIGHUP)
	eventually(t, 10*time.Second, "the log tells of the refusal and names the key", func() error {
		for line := range bytes.Lines(readFile(t, s.proc.stderr)) {
			if bytes.Contains(line, []byte("refused")) && bytes.Contains(line, []byte("profiles.internal.colour")) {
				return nil
			}
		}
		return errors.New("no such line")
	})
	expect("the old configuration after a bad file", "/second/directory", http.StatusOK)

	// So does a file that is not there.
	if err := os.Rename(s.file, s.file+".away"); err != nil {
		t.Fatal(err)
	}
	s.proc.signal(syscall.SIGHUP)
	eventually(t, 10*time.Second, "the log tells that the file is gone", func() error {
		if n := bytes.Count(readFile(t, s.proc.stderr), []byte("refused")); n < 2 {
			return fmt.Errorf("%d refusals", n)
		}
		return nil
	})
	w.flows(ctx, c, 1)() // and all of it works as before

	delete(s.config["profiles"].(tree)["internal"].(tree), "colour")
	s.write()
	s.proc.signal(syscall.SIGHUP)
	expect("the tenant is gone after a good file", "/second/directory", http.StatusNotFound)
	if err := s.proc.running(); err != nil {
		t.Error(err)
	}
}

// Eight workers on one account, as a controller in a cluster has them: none may
// fail, nor be asked to come again.
func TestEightWorkersOnOneAccount(t *testing.T) {
	t.Parallel()
	for _, setup := range [][2]string{{bolt, local}, {redisType, local}, {redisType, privateCA}} {
		t.Run(setup[0]+" "+setup[1], func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, plan{store: setup[0], backend: setup[1]})
			key, ctx := newKey(t), deadline(t, 120*time.Second)
			const workers, each = 8, 5
			failed := make(chan error, workers)
			for n := range workers {
				c := w.newClient(w.server.directory())
				c.acme = w.newACME(w.server.directory(), key)
				c.acme.RetryBackoff = func(int, *http.Request, *http.Response) time.Duration { return -1 }
				go func() {
					err := errors.New("the worker has ended early") // by t.Fatal
					defer func() { failed <- err }()
					err = w.work(ctx, c, fmt.Sprintf("worker%d", n), each)
				}()
			}
			for range workers {
				if err := <-failed; err != nil {
					t.Error(err)
				}
			}
			if w.sim != nil {
				if got := w.sim.counters(); got.Issued != workers*each || got.MostForOneKey != 1 {
					t.Errorf("the CA issued %d certificates, %d at most for a key; want %d and 1", got.Issued, got.MostForOneKey, workers*each)
				}
			}
		})
	}
}

// work goes through flows one after the other; each of its requests must succeed
// at once.
func (w *world) work(ctx context.Context, c *client, name string, flows int) error {
	if _, err := c.acme.Register(ctx, &acme.Account{}, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return fmt.Errorf("newAccount: %w", err)
	}
	for n := range flows {
		names := []string{fmt.Sprintf("%s-%d.%s", name, n, zone)}
		w.dns.point(c.responder.address, names...)
		order, err := c.acme.AuthorizeOrder(ctx, acme.DomainIDs(names...))
		if err != nil {
			return fmt.Errorf("newOrder: %w", err)
		}
		for _, url := range order.AuthzURLs {
			authz, err := c.acme.GetAuthorization(ctx, url)
			if err != nil {
				return fmt.Errorf("authorization: %w", err)
			}
			if err := c.respond(ctx, authz); err != nil {
				return fmt.Errorf("challenge: %w", err)
			}
			if _, err := c.acme.WaitAuthorization(ctx, url); err != nil {
				return fmt.Errorf("authorization: %w", err)
			}
		}
		key := newKey(w.t)
		der, _, err := c.acme.CreateOrderCert(ctx, order.FinalizeURL, newCSR(w.t, key, names...), true)
		if err != nil {
			return fmt.Errorf("finalize: %w", err)
		}
		if err := w.chainError(parseDER(w.t, der), key.Public(), names...); err != nil {
			return err
		}
	}
	return nil
}

func TestTenantsAreSeparate(t *testing.T) {
	t.Parallel()
	for _, store := range []string{bolt, redisType} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, plan{store: store, backend: local, change: func(c tree) {
				c["directories"].(tree)["lab"] = tree{"profiles": []string{"internal"}}
			}})
			ctx := deadline(t, 60*time.Second)
			ours, theirs := w.newClient(w.server.directory()), w.newClient(w.server.url("/lab/directory"))
			theirs.acme.Key = ours.acme.Key // even with one key
			if err := ours.register(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := theirs.acme.GetReg(ctx, ""); !errors.Is(err, acme.ErrNoAccount) {
				t.Errorf("an account of one tenant at another: %v, want %v", err, acme.ErrNoAccount)
			}
			if err := theirs.register(ctx); err != nil {
				t.Fatal(err)
			}
			r, err := ours.obtain(ctx, "tenant."+zone)
			if err != nil {
				t.Fatal(err)
			}
			w.checkResult(r, acme.StatusValid)
			other, err := theirs.obtain(ctx, "tenant."+zone)
			if err != nil {
				t.Fatal(err)
			}
			w.checkResult(other, acme.StatusValid)

			// URLs of one tenant, by the account of the other.
			ourAccount, err := ours.acme.GetReg(ctx, "")
			if err != nil {
				t.Fatal(err)
			}
			theirAccount, err := theirs.acme.GetReg(ctx, "")
			if err != nil {
				t.Fatal(err)
			}
			if ourAccount.URI == theirAccount.URI {
				t.Fatalf("both tenants have the account %s", ourAccount.URI)
			}
			moved := func(url string) string { return strings.Replace(url, w.server.url(""), w.server.url("/lab"), 1) }
			for _, url := range []string{r.order.URI, r.order.CertURL, r.order.AuthzURLs[0], moved(r.order.URI), moved(r.order.CertURL), moved(r.order.AuthzURLs[0]), ourAccount.URI} {
				w.expectRefused(ctx, url, theirs.acme.Key, theirAccount.URI)
			}
			if res, answer, err := w.post(ctx, w.httpClient(), other.order.URI, theirs.acme.Key, theirAccount.URI, nil); err != nil || res.StatusCode != http.StatusOK {
				t.Errorf("their own order: %s, %v", answer, err) // or the refusals would prove nothing
			}
			// And our account, at the URLs of the other tenant.
			for _, url := range []string{moved(r.order.URI), other.order.URI} {
				w.expectRefused(ctx, url, ours.acme.Key, ourAccount.URI)
			}
			// Revoking takes the right account, or the certificate's key.
			if err := theirs.acme.RevokeCert(ctx, nil, r.chain[0].Raw, acme.CRLReasonUnspecified); err == nil {
				t.Error("an account of another tenant has revoked a certificate")
			}
			if err := ours.acme.RevokeCert(ctx, nil, r.chain[0].Raw, acme.CRLReasonUnspecified); err != nil {
				t.Errorf("revoke by its own account: %v", err)
			}
		})
	}
}

// expectRefused reads a URL by POST-as-GET and expects a problem.
func (w *world) expectRefused(ctx context.Context, url string, key any, kid string) {
	w.t.Helper()
	res, answer, err := w.post(ctx, w.httpClient(), url, key, kid, nil)
	if err != nil {
		w.t.Error(err)
		return
	}
	var p problem
	if err := json.Unmarshal(answer, &p); err != nil {
		w.t.Errorf("%s as %s: %s %.200s: %v", url, kid, res.Status, answer, err)
		return
	}
	if noAccount := strings.HasSuffix(p.Type, ":accountDoesNotExist"); res.StatusCode != http.StatusNotFound && !noAccount {
		w.t.Errorf("%s as %s: %s %.200s, want a refusal", url, kid, res.Status, answer)
	}
}
