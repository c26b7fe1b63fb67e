// Command ncp-dcv has domains validated at the CA behind acme-bridge by its relay
// challenge, which certbot, lego and others do not know: with the account that
// such a client has already, it makes an order, publishes the records that the
// challenges tell, and waits until the CA has seen them. Then the client gets
// its certificates in its usual way. Where a domain is validated already it
// does nothing, so that it may run before each renewal.
//
// See README.md beside this file.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "ncp-dcv:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	server, profile, challenge string
	publish                    string
	domains                    []string
}

const usage = `usage: ncp-dcv --server URL (--certbot DIR | --lego DIR | --account-key FILE) [options] DOMAIN...

`

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("ncp-dcv", flag.ContinueOnError)
	flags.SetOutput(os.Stderr)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	var o options
	flags.StringVar(&o.server, "server", "", "directory `URL` of the ACME server")
	certbot := flags.String("certbot", "", "certbot's configuration `directory`, such as /etc/letsencrypt: its account is used")
	lego := flags.String("lego", "", "lego's `directory`, such as .lego: its account is used")
	keyFile := flags.String("account-key", "", "`file` with the account's private key, as PEM or JWK")
	flags.StringVar(&o.publish, "publish", "", "`program` that publishes a record, run as \"PROGRAM present NAME. VALUE\" and, once the CA has seen it, \"PROGRAM cleanup NAME. VALUE\" (as lego's provider exec does); without it the record is printed and waited for")
	flags.StringVar(&o.profile, "profile", "", "profile of the server, if not its default")
	flags.StringVar(&o.challenge, "type", "ncp-dcv-01", "name of the relay challenge")
	caFile := flags.String("ca-file", "", "PEM `file` of roots to trust for the server, besides the system's")
	timeout := flags.Duration("timeout", time.Hour, "how long to wait for the CA in all")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o.domains = flags.Args()
	if o.server == "" || len(o.domains) == 0 {
		flags.Usage()
		return errors.New("--server and a domain are needed")
	}
	file, err := accountKeyFile(o.server, *certbot, *lego, *keyFile)
	if err != nil {
		return err
	}
	key, err := readKey(file)
	if err != nil {
		return fmt.Errorf("account key %s: %w", file, err)
	}
	httpClient, err := newHTTPClient(*caFile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	return validate(ctx, &client{http: httpClient, key: key, wait: wait}, o, out)
}

func newHTTPClient(caFile string) (*http.Client, error) {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}
	if caFile != "" {
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", caFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: transport, Timeout: time.Minute}, nil
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// validate orders the domains and sees their relay challenges through.
func validate(ctx context.Context, c *client, o options, out io.Writer) error {
	if err := c.begin(ctx, o.server); err != nil {
		return err
	}
	order, err := c.newOrder(ctx, o.domains, o.profile)
	if err != nil {
		return err
	}
	type work struct {
		authz, name string
		challenge   challenge
	}
	var todo []work
	for _, url := range order.Authorizations {
		a, err := c.authorization(ctx, url)
		if err != nil {
			return err
		}
		relay, found := a.find(o.challenge)
		switch {
		case found && a.Status == "pending":
			todo = append(todo, work{url, a.name(), relay})
		case a.Status == "valid" || a.Status == "pending":
			fmt.Fprintf(out, "%s: the CA has validated the domain, nothing to do\n", a.name())
		default:
			return fmt.Errorf("%s: authorization is %s", a.name(), a.Status)
		}
	}
	published := map[string]bool{} // a domain and its wildcard have one record
	for _, w := range todo {
		record := w.challenge.RecordName + " " + w.challenge.RecordValue
		if published[record] {
			continue
		}
		published[record] = true
		if err := present(ctx, o, w.name, w.challenge, out); err != nil {
			return err
		}
	}
	for _, w := range todo {
		if err := c.respond(ctx, w.challenge.URL); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	for _, w := range todo {
		if err := c.await(ctx, w.authz); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		fmt.Fprintf(out, "%s: validated\n", w.name)
	}
	for _, w := range todo {
		record := w.challenge.RecordName + " " + w.challenge.RecordValue
		if o.publish == "" || !published[record] {
			continue
		}
		delete(published, record)
		if err := hook(ctx, o.publish, "cleanup", w.challenge, out); err != nil {
			fmt.Fprintf(out, "%s: the record is not needed any more and could not be removed: %v\n", w.name, err)
		}
	}
	return nil
}

func present(ctx context.Context, o options, name string, c challenge, out io.Writer) error {
	if c.RecordName == "" || c.RecordValue == "" {
		return fmt.Errorf("%s: the challenge %s tells no record", name, c.Type)
	}
	if o.publish == "" {
		fmt.Fprintf(out, "%s: publish this record until it is validated, at the latest by %s:\n  %s. %s %q\n", name, c.RecordExpires, c.RecordName, c.RecordType, c.RecordValue)
		return nil
	}
	if err := hook(ctx, o.publish, "present", c, out); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func hook(ctx context.Context, program, action string, c challenge, out io.Writer) error {
	// The value comes from the server: it is an argument and never a shell's.
	cmd := exec.CommandContext(ctx, program, action, strings.TrimSuffix(c.RecordName, ".")+".", c.RecordValue)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", program, action, err)
	}
	return nil
}
