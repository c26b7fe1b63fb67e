package ncloud

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
	"golang.org/x/sync/semaphore"
)

// Defaults of [Config].
const (
	DefaultTimeout     = 30 * time.Second
	DefaultMaxInFlight = 16
	defaultMaxAnswer   = 8 << 20 // a page with all 30,000 serial numbers is 2 MB
	defaultAttempts    = 4
	defaultFailures    = 5
	defaultOpenFor     = 15 * time.Second
	// idleTimeout is short: a POST that meets a connection the gateway is just
	// closing may or may not have arrived, and finding out costs more than a
	// new handshake.
	idleTimeout = 15 * time.Second
	dialTimeout = 10 * time.Second
	// skewTolerance is where a clock is worth a warning; skewInterval how often.
	skewTolerance = time.Minute
	skewInterval  = 10 * time.Minute
)

// A Config says how to reach one NCP service. BaseURL and Credentials are
// needed; the zero value of anything else means its default.
type Config struct {
	Backend     string // name in logs and metrics
	BaseURL     string // scheme and host, perhaps a path; http only on loopback
	Credentials Credentials

	Timeout     time.Duration // bound of one Do: waiting, all attempts and pauses between them
	MaxInFlight int           // requests at one time; others wait within their Timeout
	MaxAnswer   int64         // bytes of an answer's body
	Attempts    int           // of a read; anything else is sent once

	BreakerFailures int           // failures in a row that open the circuit breaker
	BreakerOpenFor  time.Duration // how long it stays open before one call may try

	RootCAs *x509.CertPool                                                    // nil: the system's
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer
	Now     func() time.Time                                                  // nil: time.Now
	Wait    func(ctx context.Context, d time.Duration) error                  // nil: a timer
	Log     *slog.Logger                                                      // nil: discarded
	Metrics prometheus.Registerer                                             // nil: none
}

// A Client sends requests to one NCP service. It is safe for concurrent use.
type Client struct {
	cfg       Config
	base      *url.URL
	transport *http.Transport
	slots     *semaphore.Weighted
	breaker   *gobreaker.CircuitBreaker[struct{}]
	metrics   *metrics

	opened   atomic.Int64 // Unix ms at which the breaker opened last
	paused   atomic.Int64 // Unix ms until which a 429 asked us to wait
	skew     atomic.Pointer[time.Duration]
	skewWarn atomic.Int64 // Unix ms of the last warning
}

// New checks the configuration and makes a client; nothing is sent yet.
func New(cfg Config) (*Client, error) {
	base, err := parseBase(cfg.BaseURL)
	if err != nil {
		return nil, err
	}
	if cfg.Credentials.AccessKey == "" || cfg.Credentials.SecretKey == "" {
		return nil, errors.New("access_key and secret_key are both needed")
	}
	if strings.ContainsFunc(cfg.Credentials.AccessKey, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("access_key: contains a character that no access key has")
	}
	cfg.Timeout = cmp.Or(max(cfg.Timeout, 0), DefaultTimeout)
	cfg.MaxInFlight = cmp.Or(max(cfg.MaxInFlight, 0), DefaultMaxInFlight)
	cfg.MaxAnswer = cmp.Or(max(cfg.MaxAnswer, 0), defaultMaxAnswer)
	cfg.Attempts = cmp.Or(max(cfg.Attempts, 0), defaultAttempts)
	cfg.BreakerFailures = cmp.Or(max(cfg.BreakerFailures, 0), defaultFailures)
	cfg.BreakerOpenFor = cmp.Or(max(cfg.BreakerOpenFor, 0), defaultOpenFor)
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Wait == nil {
		cfg.Wait = wait
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Log = cfg.Log.With("backend", cfg.Backend)

	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	c := &Client{cfg: cfg, base: base, metrics: m, slots: semaphore.NewWeighted(int64(cfg.MaxInFlight))}
	// HTTP/1 only: one request has a connection for itself, so that a failed
	// one can be told to be unsent. No proxy from the environment: requests
	// carry credentials, and a proxy would answer in the gateway's place.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	c.transport = &http.Transport{
		Proxy: nil,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := cfg.Dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &trackedConn{Conn: conn}, nil
		},
		TLSClientConfig:        &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    dialTimeout,
		Protocols:              protocols,
		DisableCompression:     true,
		MaxIdleConns:           cfg.MaxInFlight,
		MaxIdleConnsPerHost:    cfg.MaxInFlight,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: 64 << 10,
	}
	m.breaker.WithLabelValues(cfg.Backend).Set(0)
	c.breaker = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Name:    cfg.Backend,
		Timeout: cfg.BreakerOpenFor,
		ReadyToTrip: func(n gobreaker.Counts) bool {
			return n.ConsecutiveFailures >= uint32(cfg.BreakerFailures)
		},
		IsSuccessful: func(err error) bool {
			switch e, _ := errors.AsType[*Error](err); {
			case err == nil:
				return true
			case e == nil:
				return false
			default: // an answer that says no comes from a service in good health
				return e.Outcome == OutcomeRefused || e.Outcome == OutcomeUnauthorized || e.Outcome == OutcomeThrottled
			}
		},
		IsExcluded: func(err error) bool {
			e, ok := errors.AsType[*Error](err)
			return ok && e.Outcome == OutcomeCanceled
		},
		OnStateChange: func(_ string, from, to gobreaker.State) {
			m.breaker.WithLabelValues(cfg.Backend).Set(breakerValue(to))
			if to == gobreaker.StateOpen {
				c.opened.Store(cfg.Now().UnixMilli())
			}
			cfg.Log.Warn("circuit breaker changed", "from", from.String(), "to", to.String())
		},
	})
	return c, nil
}

// parseBase accepts https URLs, and http on loopback, which a simulator uses.
func parseBase(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("base_url: %w", err)
	}
	switch {
	case u.Host == "" || u.Hostname() == "":
		return nil, fmt.Errorf("base_url: %q has no scheme and host", s)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("base_url: must be scheme and host, without user, query or fragment")
	case u.Scheme == "https":
	case u.Scheme == "http" && loopback(u.Hostname()):
	default:
		return nil, fmt.Errorf("base_url: %q must begin with https:// (http:// is for loopback only)", s)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimRight(u.Path, "/")}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
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

// A Request is one call of a service.
type Request struct {
	Operation string                  // name in logs, metrics and errors
	Method    string                  // GET is repeated, anything else never
	Path      string                  // not escaped; goes below the base URL
	Query     url.Values              // optional
	Body      any                     // marshalled to JSON; nil: none
	Decode    func(body []byte) error // reads a 2xx answer; nil: any will do
}

// Do performs the call. An error is always an *[Error] and says whether the
// call was applied. The time until Do returns is bounded by the Timeout.
//
// A GET is repeated after failures that may pass, with growing, jittered
// pauses or what Retry-After asks for, as long as the Timeout allows. Anything
// else is sent at most once, whatever happens.
func (c *Client) Do(ctx context.Context, r Request) error {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = json.Marshal(r.Body); err != nil {
			return &Error{Operation: r.Operation, Outcome: OutcomeRefused, Applied: No, Err: fmt.Errorf("encode request: %w", err)}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	pause := backoff.ExponentialBackOff{InitialInterval: time.Second, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 20 * time.Second}
	for attempt := 1; ; attempt++ {
		e := c.try(ctx, r, body)
		if e == nil {
			return nil
		}
		d := max(pause.NextBackOff(), e.Retry)
		deadline, _ := ctx.Deadline()
		if r.Method != http.MethodGet || !e.repeatable() || attempt >= c.cfg.Attempts || time.Until(deadline) <= d {
			return e
		}
		c.cfg.Log.WarnContext(ctx, "read failed, will repeat", "operation", r.Operation, "attempt", attempt, "pause", d, "err", e)
		if c.cfg.Wait(ctx, d) != nil {
			return e
		}
	}
}

// Healthy reports whether the circuit breaker lets calls through.
func (c *Client) Healthy() bool { return c.breaker.State() != gobreaker.StateOpen }

// ClockSkew is the local clock minus the gateway's, to about a second, as the
// last answer showed it; false if none has come yet.
func (c *Client) ClockSkew() (time.Duration, bool) {
	if d := c.skew.Load(); d != nil {
		return *d, true
	}
	return 0, false
}

// Timeout is the bound of one Do.
func (c *Client) Timeout() time.Duration { return c.cfg.Timeout }

// Close ends idle connections; the client must not be used any more.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// try is one attempt: a slot, the pause and the breaker, then the request.
func (c *Client) try(ctx context.Context, r Request, body []byte) *Error {
	e := c.guarded(ctx, r, body)
	outcome := OutcomeOK
	if e != nil {
		e.Operation = r.Operation
		c.redact(e)
		outcome = e.Outcome
	}
	c.metrics.calls.WithLabelValues(c.cfg.Backend, r.Operation, string(outcome)).Inc()
	return e
}

func (c *Client) guarded(ctx context.Context, r Request, body []byte) *Error {
	if err := c.slots.Acquire(ctx, 1); err != nil {
		return &Error{Outcome: ended(ctx), Applied: No, Err: fmt.Errorf("wait for a free slot: %w", err)}
	}
	defer c.slots.Release(1)
	if d := time.UnixMilli(c.paused.Load()).Sub(c.cfg.Now()); d > 0 {
		return &Error{Outcome: OutcomeThrottled, Applied: No, Retry: d, Err: errors.New("the gateway asked to wait")}
	}
	var e *Error
	_, err := c.breaker.Execute(func() (struct{}, error) {
		if e = c.send(ctx, r, body); e != nil {
			return struct{}{}, e
		}
		return struct{}{}, nil
	})
	if err != nil && e == nil { // the breaker's own: nothing was sent
		left := time.UnixMilli(c.opened.Load()).Add(c.cfg.BreakerOpenFor).Sub(c.cfg.Now())
		return &Error{Outcome: OutcomeOpen, Applied: No, Retry: max(left, time.Second), Err: err}
	}
	return e
}

// send does one HTTP exchange.
func (c *Client) send(ctx context.Context, r Request, body []byte) *Error {
	var watch sending
	target := c.base.JoinPath(r.Path)
	target.RawQuery = r.Query.Encode()
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, watch.trace()), r.Method, target.String(), nil)
	if err != nil {
		return &Error{Outcome: OutcomeRefused, Applied: No, Err: err}
	}
	if body != nil {
		// Set by hand, so that there is no GetBody: without it the transport
		// cannot send the body a second time.
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	gauge := c.metrics.inFlight.WithLabelValues(c.cfg.Backend)
	gauge.Inc()
	defer gauge.Dec()
	begun := c.cfg.Now()
	defer func() {
		c.metrics.duration.WithLabelValues(c.cfg.Backend, r.Operation).Observe(c.cfg.Now().Sub(begun).Seconds())
	}()

	c.cfg.Credentials.sign(req, begun)
	res, err := c.transport.RoundTrip(req)
	if err != nil {
		e := &Error{Outcome: OutcomeBroken, Err: err}
		if watch.unsent() {
			e.Applied, e.Outcome = No, OutcomeUnreachable
		}
		if ctx.Err() != nil {
			e.Outcome = ended(ctx)
		}
		return e
	}
	defer res.Body.Close()
	c.observeClock(ctx, res.Header, begun, c.cfg.Now())
	answer, err := io.ReadAll(io.LimitReader(res.Body, c.cfg.MaxAnswer+1))
	e := answered(res.StatusCode, answer)
	switch {
	case e != nil: // the status counts, even if the body broke off
		c.complete(e, res.Header)
	case err != nil:
		e = &Error{Outcome: OutcomeBroken, Err: fmt.Errorf("read answer: %w", err)}
		if ctx.Err() != nil {
			e.Outcome = ended(ctx)
		}
	case int64(len(answer)) > c.cfg.MaxAnswer:
		e = &Error{Outcome: OutcomeBroken, Err: fmt.Errorf("answer is longer than %d bytes", c.cfg.MaxAnswer)}
	case r.Decode != nil:
		e = decoded(r.Decode(answer))
	}
	if e != nil {
		e.Status, e.TraceID = res.StatusCode, res.Header.Get(headerTraceID)
		return e
	}
	c.cfg.Log.DebugContext(ctx, "call done", "operation", r.Operation, "status", res.StatusCode, "trace", clean(res.Header.Get(headerTraceID)))
	return nil
}

// decoded turns what a decoder says into an error of the call.
func decoded(err error) *Error {
	if err == nil {
		return nil
	}
	if r, ok := errors.AsType[*Refusal](err); ok {
		e := &Error{Outcome: OutcomeRefused, Applied: r.Applied, Code: r.Code, Message: r.Message}
		if r.Applied != No {
			e.Outcome = OutcomeUnavailable
		}
		return e
	}
	return &Error{Outcome: OutcomeBroken, Err: fmt.Errorf("decode answer: %w", err)}
}

// complete adds what only headers and clock tell about an error answer.
func (c *Client) complete(e *Error, h http.Header) {
	now := c.cfg.Now()
	e.Retry = retryAfter(h, now)
	if e.Outcome == OutcomeThrottled && e.Retry > 0 {
		c.paused.Store(now.Add(e.Retry).UnixMilli())
	}
	if e.Status/100 == 3 {
		e.Hint = "the answer is a redirect, which is not followed: check base_url"
	}
	if e.Outcome == OutcomeUnauthorized {
		if skew, ok := c.ClockSkew(); ok && skew.Abs() > signatureWindow-10*time.Second {
			e.Hint = fmt.Sprintf("the local clock is %s; the gateway refuses requests that are 5 minutes off", offset(skew))
		}
	}
}

// observeClock compares the local clock with an answer's Date header. Date
// counts whole seconds; the request was on its way between begun and now.
func (c *Client) observeClock(ctx context.Context, h http.Header, begun, now time.Time) {
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return
	}
	middle := begun.Add(now.Sub(begun) / 2)
	skew := middle.Sub(date.Add(500 * time.Millisecond)).Round(time.Second)
	c.skew.Store(&skew)
	c.metrics.skew.WithLabelValues(c.cfg.Backend).Set(skew.Seconds())
	if skew.Abs() < skewTolerance {
		return
	}
	last := c.skewWarn.Load()
	if now.UnixMilli()-last >= skewInterval.Milliseconds() && c.skewWarn.CompareAndSwap(last, now.UnixMilli()) {
		c.cfg.Log.WarnContext(ctx, "local clock differs from the gateway's", "skew", skew)
	}
}

// offset words a skew.
func offset(skew time.Duration) string {
	if skew < 0 {
		return (-skew).String() + " behind the gateway's"
	}
	return skew.String() + " ahead of the gateway's"
}

// redact makes a server's words safe for a log: one line, bounded, and without
// our keys should the server have repeated them.
func (c *Client) redact(e *Error) {
	keys := strings.NewReplacer(c.cfg.Credentials.SecretKey, "[redacted]", c.cfg.Credentials.AccessKey, "[redacted]")
	for _, s := range []*string{&e.Code, &e.Message, &e.TraceID} {
		*s = clean(keys.Replace(*s))
	}
}

// ended says whose patience ran out.
func ended(ctx context.Context) Outcome {
	if errors.Is(ctx.Err(), context.Canceled) {
		return OutcomeCanceled
	}
	return OutcomeTimeout
}
