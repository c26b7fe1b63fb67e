package validation

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"github.com/acme-bridge/acme-bridge/acme"
)

const (
	challengePath = "/.well-known/acme-challenge/"

	maxRedirects = 10
	maxInterim   = 5        // 1xx answers passed over
	maxLocation  = 2000     // octets of a redirect's target
	maxAnswer    = 32 << 10 // octets of an answer with its header, whatever is in it
	// maxKeyAuthorization has room for the key authorization and white space.
	maxKeyAuthorization = 512
)

// http01 fetches the key authorization (RFC 8555, Section 8.3).
//
// The client is a few lines over http.ReadResponse instead of http.Transport:
// one GET on a connection of its own needs no pool, no goroutines, no proxy
// from the environment, no cookies and no decompression, and this way one limit
// bounds all octets read.
func (v *Validator) http01(ctx context.Context, c *acme.Validation) error {
	at := &url.URL{Scheme: "http", Host: c.Identifier.Value, Path: challengePath + c.Token}
	if v.httpPort != 80 {
		at.Host = net.JoinHostPort(at.Host, strconv.Itoa(int(v.httpPort)))
	}
	host := c.Identifier.Value // the Host header is the name, even on a port of the operator's choice
	where := fmt.Sprintf("%s, port %d", c.Identifier.Value, v.httpPort)
	for hop := 0; ; hop++ {
		got, err := v.get(ctx, at, host, where)
		if err != nil {
			return err
		}
		switch {
		case got.redirect == nil:
			if !equal(strings.TrimRightFunc(got.body, unicode.IsSpace), c.KeyAuthorization) {
				return acme.Problemf(acme.Unauthorized, "the answer of %s is not the key authorization", where)
			}
			return nil
		case hop == maxRedirects:
			return acme.Problemf(acme.Unauthorized, "more than %d redirects from %s", maxRedirects, c.Identifier.Value)
		}
		if err := v.checkRedirect(got.redirect); err != nil {
			return acme.Problemf(acme.Unauthorized, "redirect %d from %s is not followed: %v", hop+1, c.Identifier.Value, err)
		}
		// Redirects are named by number: their targets are fetched octets.
		at, host, where = got.redirect, got.redirect.Host, fmt.Sprintf("the target of redirect %d from %s", hop+1, c.Identifier.Value)
	}
}

// checkRedirect says in words of our own why a redirect is not followed. The
// addresses of its host are for the guard.
func (v *Validator) checkRedirect(u *url.URL) error {
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("only http and https are")
	case u.User != nil:
		return errors.New("it has user information")
	case strings.ContainsFunc(u.RequestURI(), func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return errors.New("its target is malformed")
	}
	// The same rules as for names in orders: no IP addresses in any disguise.
	id, err := acme.ParseIdentifier(acme.Identifier{Type: acme.TypeDNS, Value: u.Hostname()})
	if err != nil || strings.HasPrefix(id.Value, "*.") {
		return errors.New("its host is not a DNS name")
	}
	if p := portOf(u); p == 0 || p != 80 && p != 443 && p != v.httpPort && p != v.tlsPort {
		return errors.New("its port is not one of those permitted")
	}
	return nil
}

// portOf returns 0 for what is no port.
func portOf(u *url.URL) uint16 {
	switch {
	case u.Port() != "":
		p, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			return 0
		}
		return uint16(p)
	case u.Scheme == "https":
		return 443
	}
	return 80
}

// An answer is a body, or where to look for it.
type answer struct {
	body     string
	redirect *url.URL
}

func (v *Validator) get(ctx context.Context, u *url.URL, host, where string) (*answer, error) {
	name := strings.ToLower(u.Hostname())
	conn, err := v.connect(ctx, name, portOf(u), where)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if u.Scheme == "https" {
		// The certificate of a redirect's target is not verified: the client may
		// be here to get its first, and it is the name's owner in DNS who sent us
		// (RFC 8555, Sections 8.3 and 10.2).
		secure := tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true, CurvePreferences: curves})
		if err := secure.Handshake(); err != nil {
			return nil, handshakeProblem(err, where)
		}
		conn = secure
	}
	req := &http.Request{Method: http.MethodGet, URL: u, Host: host, Close: true, Header: http.Header{
		"User-Agent":      {v.cfg.UserAgent},
		"Accept":          {"*/*"},
		"Accept-Encoding": {"identity"},
	}}
	var wire bytes.Buffer
	if err := req.Write(&wire); err != nil { // the host or the path of a redirect
		return nil, acme.Problemf(acme.Unauthorized, "no request can be made for %s", where)
	}
	if _, err := conn.Write(wire.Bytes()); err != nil {
		return nil, connectionProblem(err, "sending a request to", where)
	}
	limited := &limitedReader{r: conn, left: maxAnswer}
	resp, err := readResponse(limited, req)
	if err != nil {
		return nil, limited.problem(err, where)
	}
	// resp.Body is not closed, as that would read on to its end; closing the
	// connection is enough.
	switch code := resp.StatusCode; code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		target, err := resp.Location()
		if err != nil || len(resp.Header.Get("Location")) > maxLocation {
			return nil, acme.Problemf(acme.Unauthorized, "%s answers status %d without a proper Location", where, code)
		}
		return &answer{redirect: target}, nil
	default:
		if code < 200 || code > 299 {
			return nil, acme.Problemf(acme.Unauthorized, "%s answers status %d", where, code)
		}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxKeyAuthorization+1))
	switch {
	case len(body) > maxKeyAuthorization:
		return nil, limited.problem(errTooLong, where)
	case err != nil:
		return nil, limited.problem(err, where)
	}
	return &answer{body: string(body)}, nil
}

// readResponse passes over interim answers (RFC 9110, Section 15.2).
func readResponse(r io.Reader, req *http.Request) (*http.Response, error) {
	br := bufio.NewReaderSize(r, 1024)
	for range maxInterim {
		resp, err := http.ReadResponse(br, req)
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
	return nil, errors.New("too many interim answers")
}

var errTooLong = errors.New("too long")

// A limitedReader fails after a number of octets and remembers the first error,
// since parsers report what they could not parse instead of why it ended.
type limitedReader struct {
	r    io.Reader
	left int
	err  error
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.err == nil && l.left == 0 {
		l.err = errTooLong
	}
	if l.err != nil {
		return 0, l.err
	}
	n, err := l.r.Read(p[:min(len(p), l.left)])
	l.left -= n
	l.err = err
	return n, err
}

// problem describes why an answer could not be read; err is the parser's view.
func (l *limitedReader) problem(err error, where string) *acme.Problem {
	if l.err != nil {
		err = errors.Join(l.err, err)
	}
	if errors.Is(err, errTooLong) {
		return acme.Problemf(acme.Unauthorized, "the answer of %s is too long", where)
	}
	return connectionProblem(err, "reading the answer of", where)
}
