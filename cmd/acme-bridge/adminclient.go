package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/acme-bridge/acme-bridge/admin"
	"github.com/acme-bridge/acme-bridge/config"
)

const (
	tokenVariable = "ACME_BRIDGE_ADMIN_TOKEN"
	defaultAdmin  = "http://127.0.0.1:14001"
	maxAnswer     = 8 << 20
)

// An adminClient asks a running server, as its operator.
type adminClient struct {
	url, token, file, output string // flags
	base                     *url.URL
	http                     *http.Client
}

// flags adds those that say which server is asked, to a command and those below.
func (c *adminClient) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&c.url, "admin", "", "`URL` of the admin listener (default: the configuration's, else "+defaultAdmin+")")
	f.StringVar(&c.token, "token", "", "admin token, or env:NAME or file:PATH (default: the configuration's, else $"+tokenVariable+")")
	f.StringVar(&c.file, "config", "", "configuration `FILE` of the server, for its admin address and token")
	f.StringVar(&c.output, "output", "table", "table or json")
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error { return c.prepare() }
}

// prepare finds address and token.
func (c *adminClient) prepare() error {
	if c.output != "table" && c.output != "json" {
		return usageError{fmt.Errorf("--output %q: it is table or json", c.output)}
	}
	token, err := config.LookupSecret(c.token)
	if err != nil {
		return usageError{fmt.Errorf("--token: %w", err)}
	}
	address := c.url
	if c.file != "" && (address == "" || !token.IsSet()) {
		a, err := config.LoadAdmin(c.file)
		if err != nil {
			return usageError{err}
		}
		if address == "" {
			address = adminURL(a.Listen)
		}
		if !token.IsSet() {
			token = a.Token
		}
	}
	if address == "" {
		address = defaultAdmin
	}
	if !token.IsSet() {
		token = config.NewSecret(os.Getenv(tokenVariable))
	}
	if !token.IsSet() {
		return usageError{fmt.Errorf("no admin token: set %s, or use --token or --config (the server needs admin.token in its configuration)", tokenVariable)}
	}
	c.base, err = url.Parse(address)
	if err != nil || c.base.Hostname() == "" || c.base.Scheme != "http" && c.base.Scheme != "https" {
		return usageError{fmt.Errorf("--admin %q: it is a URL such as %s", address, defaultAdmin)}
	}
	c.token = token.Reveal()
	c.http = &http.Client{
		Timeout: admin.DomainTimeout + 30*time.Second,
		// The token goes nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

// adminURL is how a listener's address is reached from this machine.
func adminURL(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "http://" + listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// ask makes one call and decodes the answer; raw is the answer as it came. The
// path's parts are escaped.
func (c *adminClient) ask(ctx context.Context, method string, in, out any, path ...string) (raw []byte, err error) {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return nil, err
		}
	}
	for i := range path {
		path[i] = url.PathEscape(path[i])
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base.JoinPath(path...).String(), &body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Content-Type", "application/json")
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no server at %s: start acme-bridge serve, or name the right address with --admin or --config", c.base)
	case err != nil:
		return nil, fmt.Errorf("ask the server: %w", err)
	}
	defer res.Body.Close()
	raw, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the server's answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		var failure struct{ Error string }
		if json.Unmarshal(raw, &failure) != nil || failure.Error == "" {
			return nil, fmt.Errorf("%s answers %s: is it the admin listener of acme-bridge, and of this version?", c.base, res.Status)
		}
		return nil, &answerError{Status: res.StatusCode, text: plain(failure.Error)}
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("the server's answer is not understood; is it of this version? %w", err)
	}
	return raw, nil
}

// An answerError is the server's own sentence.
type answerError struct {
	Status int
	text   string
}

func (e *answerError) Error() string { return e.text }

// plain keeps a terminal from obeying what others have written.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return '?'
		}
		return r
	}, s)
}

func date(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}
