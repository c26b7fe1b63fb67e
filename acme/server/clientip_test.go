package server

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

func TestClientIPBelievesTrustedProxiesOnly(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for name, tt := range map[string]struct {
		remote string
		header http.Header
		want   string
	}{
		"no proxy":                      {"192.0.2.1:1", nil, "192.0.2.1"},
		"no port":                       {"192.0.2.1", nil, "192.0.2.1"},
		"no address":                    {"@", nil, "invalid IP"},
		"IPv4 in IPv6":                  {"[::ffff:192.0.2.1]:1", nil, "192.0.2.1"},
		"an untrusted peer's claim":     {"192.0.2.1:1", http.Header{"X-Forwarded-For": {"203.0.113.9"}}, "192.0.2.1"},
		"an untrusted peer's Forwarded": {"192.0.2.1:1", http.Header{"Forwarded": {"for=203.0.113.9"}}, "192.0.2.1"},
		"a proxy":                       {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"203.0.113.9"}}, "203.0.113.9"},
		"a proxy with mapped address":   {"[::ffff:10.0.0.1]:1", http.Header{"X-Forwarded-For": {"::ffff:203.0.113.9"}}, "203.0.113.9"},
		"a proxy that says nothing":     {"10.0.0.1:1", nil, "10.0.0.1"},
		"two proxies":                   {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"203.0.113.9, 10.0.0.2"}}, "203.0.113.9"},
		"two headers":                   {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"203.0.113.9", "10.0.0.2"}}, "203.0.113.9"},
		"what the client made up":       {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"198.51.100.1, 10.9.9.9, 203.0.113.9"}}, "203.0.113.9"},
		"proxies only":                  {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"10.0.0.3, 10.0.0.2"}}, "10.0.0.3"},
		"garbage last":                  {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"203.0.113.9, x"}}, "10.0.0.1"},
		"garbage before a proxy":        {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"unknown, 10.0.0.2"}}, "10.0.0.2"},
		"empty":                         {"10.0.0.1:1", http.Header{"X-Forwarded-For": {""}}, "10.0.0.1"},
		"with ports":                    {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"203.0.113.9:4711"}}, "203.0.113.9"},
		"Forwarded":                     {"10.0.0.1:1", http.Header{"Forwarded": {`for=203.0.113.9;proto=https;by=10.0.0.1`}}, "203.0.113.9"},
		"Forwarded in capitals":         {"10.0.0.1:1", http.Header{"Forwarded": {`Proto=https; For="203.0.113.9"`}}, "203.0.113.9"},
		"Forwarded with IPv6":           {"[fd00::1]:1", http.Header{"Forwarded": {`for="[2001:db8::9]:4711"`}}, "2001:db8::9"},
		"Forwarded with bare IPv6":      {"[fd00::1]:1", http.Header{"Forwarded": {`for="[2001:db8::9]"`}}, "2001:db8::9"},
		"Forwarded of two hops":         {"10.0.0.1:1", http.Header{"Forwarded": {`for=203.0.113.9, for=10.0.0.2`}}, "203.0.113.9"},
		"Forwarded, obfuscated":         {"10.0.0.1:1", http.Header{"Forwarded": {`for=_hidden`}}, "10.0.0.1"},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.RemoteAddr = tt.remote
		if tt.header != nil {
			r.Header = tt.header
		}
		if got := clientIP(r, trusted).String(); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestLimitsCountAnIPv6NetworkAsOneClient(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := limitSubject(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is counted as %s, want %s", addr, got, want)
		}
	}
}
