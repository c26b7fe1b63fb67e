package server

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// reply writes an object of the protocol.
func reply(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	// The status line is out; a client that is gone cannot be told.
	_, _ = w.Write(body)
	return nil
}

// addLink adds a Link header beside the one to the directory.
func addLink(w http.ResponseWriter, url, rel string) {
	w.Header().Add("Link", "<"+url+`>;rel="`+rel+`"`)
}

// ceilSeconds rounds up to whole seconds, at least 1: clients read integers only.
func ceilSeconds(d time.Duration) int {
	return max(1, int((d+time.Second-1)/time.Second))
}

func stackAttr() slog.Attr { return slog.String("stack", string(debug.Stack())) }

// clientIP is the address of the client: the peer's, or behind trusted proxies
// the last one in X-Forwarded-For or Forwarded (RFC 7239) that is not a trusted
// proxy's own. What an untrusted peer claims counts for nothing.
func clientIP(r *http.Request, trusted []netip.Prefix) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	addr = addr.Unmap()
	isTrusted := func(a netip.Addr) bool {
		return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, claim := range slices.Backward(forwardedFor(r.Header)) {
		if !isTrusted(addr) {
			break
		}
		next, err := netip.ParseAddr(claim)
		if err != nil {
			break
		}
		addr = next.Unmap()
	}
	return addr
}

// forwardedFor lists the addresses that proxies have noted, first hop first.
func forwardedFor(h http.Header) []string {
	var hops []string
	if values := h.Values("X-Forwarded-For"); len(values) > 0 {
		for _, hop := range strings.Split(strings.Join(values, ","), ",") {
			hops = append(hops, bareAddr(hop))
		}
		return hops
	}
	for _, element := range strings.Split(strings.Join(h.Values("Forwarded"), ","), ",") {
		for _, pair := range strings.Split(element, ";") {
			name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
			if ok && strings.EqualFold(name, "for") {
				hops = append(hops, bareAddr(strings.Trim(value, `"`)))
			}
		}
	}
	return hops
}

// bareAddr strips white space, port and brackets from a hop.
func bareAddr(hop string) string {
	hop = strings.TrimSpace(hop)
	if ap, err := netip.ParseAddrPort(hop); err == nil {
		return ap.Addr().String()
	}
	return strings.Trim(hop, "[]")
}

// limitSubject is what requests of one client are counted under: an IPv6
// client has a whole /64.
func limitSubject(addr netip.Addr) string {
	if addr.Is6() {
		if p, err := addr.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.String()
}
