package validation

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// A guard decides which addresses may be connected to. It sees the address that
// is dialed, after resolution and at each redirect, so that a name that
// resolves differently the next time gains nothing (CVE-2026-5052).
type guard struct {
	allow, deny []netip.Prefix
	endpoints   []netip.AddrPort
	// ownAddresses lists this machine's addresses, for endpoints that listen on
	// all of them.
	ownAddresses func() ([]net.Addr, error)
}

// A refusedError is the guard's; it is for the log, since an address that an
// internal name has is none of the client's business.
type refusedError struct {
	target netip.AddrPort
	why    string
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("%s is not connected to: %s", e.target, e.why)
}

func prefixes(list ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(list))
	for i, s := range list {
		all[i] = netip.MustParsePrefix(s)
	}
	return all
}

var (
	// never are addresses at which nothing can be served, allowed or not. On
	// many systems 0.0.0.0 and :: reach the machine itself.
	never = prefixes("0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8")

	// metadata services give credentials to whoever asks from the machine. Only
	// a prefix of that one address allows them, not a wider one around it.
	metadata = prefixes(
		"169.254.169.254/32", // NAVER Cloud, AWS, GCP, Azure and others
		"169.254.170.2/32",   // AWS ECS
		"169.254.170.23/32",  // AWS EKS
		"168.63.129.16/32",   // Azure
		"100.100.100.200/32", // Alibaba Cloud
		"192.0.0.192/32",     // Oracle Cloud
		"fd00:ec2::254/128",  // AWS
		"fd00:ec2::23/128",   // AWS EKS
		"fd20:ce::254/128",   // GCP
		"fd00:42::42/128",    // Scaleway
		"fe80::a9fe:a9fe/128",
	)

	// special4 are the blocks of the IANA IPv4 Special-Purpose Address Registry
	// (RFC 6890) that are not globally reachable.
	special4 = prefixes(
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", // RFC 1918
		"100.64.0.0/10", // RFC 6598, carrier-grade NAT
		"127.0.0.0/8", "169.254.0.0/16",
		"192.0.0.0/24", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", // protocol assignments, documentation
		"192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4", // 6to4 relays, benchmarks, reserved
	)

	// global6 is what is allocated as global unicast, and special6 the blocks
	// within it that are not ordinary addresses. Everything else of IPv6
	// (loopback, link-local, ULA, mapped, NAT64 ...) is special, known or not.
	global6  = netip.MustParsePrefix("2000::/3")
	special6 = prefixes(
		"2001::/23", // IETF protocol assignments, Teredo among them
		"2001:db8::/32", "3fff::/20",
		"2002::/16", // 6to4
	)
)

// check returns an error if target must not be connected to. Denied networks
// and endpoints win over allowed networks, those over the built-in rules.
func (g *guard) check(target netip.AddrPort) error {
	refuse := func(why string) error { return &refusedError{target, why} }
	addr := target.Addr()
	if !addr.IsValid() || addr.Zone() != "" {
		return refuse("not a plain address")
	}
	// An address that carries an IPv4 address leads there, so that one is judged
	// by the same rules, besides the form that carries it.
	for _, a := range append(embedded(addr), addr) {
		switch {
		case contains(never, a):
			return refuse("unspecified, multicast or broadcast address")
		case contains(g.deny, a):
			return refuse("denied network")
		case contains(metadata, a):
			if !slices.Contains(g.allow, netip.PrefixFrom(a, a.BitLen())) {
				return refuse("metadata service")
			}
		case contains(g.allow, a):
		case a.Is4() && contains(special4, a), a.Is6() && (!global6.Contains(a) || contains(special6, a)):
			return refuse("private or special-purpose address")
		}
		for _, e := range g.endpoints {
			own, err := g.isEndpoint(e, netip.AddrPortFrom(a, target.Port()))
			if err != nil {
				return refuse("own addresses are unknown: " + err.Error())
			}
			if own {
				return refuse("denied endpoint")
			}
		}
	}
	return nil
}

// isEndpoint reports whether target is e; an unspecified address in e stands
// for all addresses of this machine.
func (g *guard) isEndpoint(e, target netip.AddrPort) (bool, error) {
	if e.Port() != target.Port() {
		return false, nil
	}
	addr := target.Addr()
	if !e.Addr().IsUnspecified() {
		return e.Addr().Unmap() == addr.Unmap(), nil
	}
	if addr.IsLoopback() {
		return true, nil
	}
	own, err := g.ownAddresses()
	if err != nil {
		return false, err
	}
	for _, o := range own {
		if p, err := netip.ParsePrefix(o.String()); err == nil && p.Addr().WithZone("").Unmap() == addr.Unmap() {
			return true, nil
		}
	}
	return false, nil
}

func contains(list []netip.Prefix, addr netip.Addr) bool {
	for _, p := range list {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// carriers are the forms of IPv6 addresses that carry IPv4 addresses, with the
// places of their octets.
var carriers = []struct {
	prefix netip.Prefix
	at     [4]int
	form   form
}{
	{netip.MustParsePrefix("::/96"), [4]int{12, 13, 14, 15}, maybe},           // IPv4-compatible, RFC 4291, Section 2.5.5.1; but also :: and ::1
	{netip.MustParsePrefix("::ffff:0:0/96"), [4]int{12, 13, 14, 15}, plain},   // IPv4-mapped, Section 2.5.5.2
	{netip.MustParsePrefix("::ffff:0:0:0/96"), [4]int{12, 13, 14, 15}, plain}, // IPv4-translated, RFC 2765
	{netip.MustParsePrefix("64:ff9b::/96"), [4]int{12, 13, 14, 15}, plain},    // NAT64, RFC 6052
	{netip.MustParsePrefix("64:ff9b:1::/48"), [4]int{12, 13, 14, 15}, maybe},  // NAT64, RFC 8215, with a prefix of 96 bits
	{netip.MustParsePrefix("64:ff9b:1::/48"), [4]int{6, 7, 9, 10}, maybe},     // or of 48
	{netip.MustParsePrefix("2002::/16"), [4]int{2, 3, 4, 5}, plain},           // 6to4, RFC 3056
	{netip.MustParsePrefix("2001::/32"), [4]int{4, 5, 6, 7}, plain},           // Teredo server, RFC 4380
	{netip.MustParsePrefix("2001::/32"), [4]int{12, 13, 14, 15}, inverted},    // Teredo client
}

// A form says how the octets of a carrier are to be read.
type form int

const (
	plain    form = iota
	inverted      // each bit is inverted
	maybe         // 0.0.0.x means that there is no IPv4 address at this place
)

// embedded returns the IPv4 addresses that addr carries.
func embedded(addr netip.Addr) []netip.Addr {
	if addr.Is4() {
		return nil
	}
	b := addr.As16()
	var found []netip.Addr
	for _, c := range carriers {
		if !c.prefix.Contains(addr) {
			continue
		}
		var v4 [4]byte
		for i, at := range c.at {
			v4[i] = b[at]
			if c.form == inverted {
				v4[i] = ^v4[i]
			}
		}
		if c.form != maybe || v4[0] != 0 || v4[1] != 0 || v4[2] != 0 {
			found = append(found, netip.AddrFrom4(v4))
		}
	}
	return found
}
