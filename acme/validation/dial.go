package validation

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

const (
	// maxDialed bounds the addresses tried of each family, minDial the time that
	// each of them gets at least.
	maxDialed = 3
	minDial   = 2 * time.Second
)

// connect opens a connection to a name: it looks the name up and dials the
// addresses found, IPv6 first, each after the guard has seen it. What is dialed
// is an address and no name, so nothing is looked up a second time. The
// connection ends when ctx does. where says in problems what host is.
func (v *Validator) connect(ctx context.Context, host string, port uint16, where string) (net.Conn, error) {
	addrs, err := v.addresses(ctx, host)
	if err != nil {
		return nil, dnsProblem(err, where)
	}
	var failed, refused error
	for i, addr := range addrs {
		target := netip.AddrPortFrom(addr, port)
		if err := v.guard.check(target); err != nil {
			refused = err
			continue
		}
		conn, err := v.dial(ctx, target, len(addrs)-i)
		if err == nil {
			return newBoundConn(ctx, conn), nil
		}
		failed = err
		if ctx.Err() != nil {
			break
		}
	}
	if failed != nil {
		return nil, connectionProblem(failed, "connecting to", where)
	}
	return nil, acme.Problemf(acme.Connection, "this server does not connect to the addresses of %s: they are private, special or denied", where).WithCause(refused)
}

// dial gives the last address all the time that is left, and those before it
// their share.
func (v *Validator) dial(ctx context.Context, target netip.AddrPort, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(minDial, time.Until(deadline)/time.Duration(left)))
		defer cancel()
	}
	return v.cfg.Dial(ctx, "tcp", target.String())
}

func (v *Validator) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if v.cfg.Localhost && (host == "localhost" || strings.HasSuffix(host, ".localhost")) {
		return []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
	}
	all, err := v.cfg.Resolver.Addresses(ctx, host)
	if err != nil {
		return nil, err
	}
	var six, four []netip.Addr
	for _, a := range all {
		if a.Is4() && len(four) < maxDialed {
			four = append(four, a)
		} else if !a.Is4() && len(six) < maxDialed {
			six = append(six, a)
		}
	}
	if len(six)+len(four) == 0 {
		return nil, &LookupError{Reason: "the name has neither A nor AAAA records"}
	}
	return append(six, four...), nil
}

// A boundConn ends with its context.
type boundConn struct {
	net.Conn
	release func()
}

func newBoundConn(ctx context.Context, conn net.Conn) *boundConn {
	return &boundConn{conn, bind(ctx, conn)}
}

func (c *boundConn) Close() error {
	c.release()
	return c.Conn.Close()
}

func dnsProblem(err error, where string) *acme.Problem {
	reason := "the lookup failed"
	if e, ok := errors.AsType[*LookupError](err); ok {
		reason = e.Reason
	}
	return acme.Problemf(acme.DNS, "looking up %s: %s", where, reason).WithCause(err)
}

// connectionProblem describes err in words of our own: the text of an error
// from a parser may quote what was received.
func connectionProblem(err error, doing, where string) *acme.Problem {
	reason := reasonOf(err)
	if reason == "" {
		reason = "the connection failed, or what came over it was malformed"
	}
	p := acme.Problemf(acme.Connection, "%s %s: %s", doing, where, reason)
	if op, ok := errors.AsType[*net.OpError](err); ok {
		p.Cause = op // addresses and the system's words
	}
	return p
}

// reasonOf is "" for errors that are not the network's.
func reasonOf(err error) string {
	var netErr net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return "timed out"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed too early"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return "no route to the host"
	}
	return ""
}
