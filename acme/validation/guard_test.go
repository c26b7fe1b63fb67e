package validation

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

func allowed(g *guard, addr string) bool {
	return g.check(netip.AddrPortFrom(netip.MustParseAddr(addr), 80)) == nil
}

func TestLesson01_OnlyPublicAddressesAreConnectedTo(t *testing.T) {
	g := &guard{ownAddresses: noAddresses}
	for addr, want := range map[string]bool{
		"8.8.8.8": true, "1.1.1.1": true, "100.63.255.255": true, "100.128.0.0": true, "172.15.0.1": true, "172.32.0.1": true,
		"192.0.1.1": true, "223.255.255.255": true,
		"2606:4700::1111": true, "2001:4860:4860::8888": true, "2a00:1450::1": true, "2001:200::1": true,

		"0.0.0.0": false, "0.1.2.3": false, // unspecified, this network
		"127.0.0.1": false, "127.255.255.254": false, // loopback
		"10.0.0.1": false, "172.16.0.1": false, "172.31.255.255": false, "192.168.1.1": false, // RFC 1918
		"100.64.0.1": false, "100.127.255.255": false, // CGNAT
		"169.254.1.1": false, "169.254.169.254": false, "168.63.129.16": false, "100.100.100.200": false, "192.0.0.192": false, // link-local, metadata
		"192.0.0.1": false, "192.0.2.1": false, "198.51.100.1": false, "203.0.113.1": false, "198.18.0.1": false, "192.88.99.1": false,
		"224.0.0.1": false, "239.255.255.255": false, "240.0.0.1": false, "255.255.255.255": false,

		"::": false, "::1": false, "fe80::1": false, "fec0::1": false, "ff02::1": false,
		"fc00::1": false, "fd12:3456::1": false, "fd00:ec2::254": false, "fd20:ce::254": false,
		"2001:db8::1": false, "3fff::1": false, "100::1": false, "5f00::1": false, "4000::1": false,
		"::ffff:8.8.8.8": false, "::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, // mapped
		"::8.8.8.8": false, "::127.0.0.1": false, "::ffff:0:127.0.0.1": false, // compatible, translated
		"64:ff9b::8.8.8.8": false, "64:ff9b::127.0.0.1": false, "64:ff9b:1::127.0.0.1": false, // NAT64
		"2002:7f00:1::1": false, "2002:808:808::1": false, // 6to4
		"2001:0:808:808::f7f7:f7f7": false, // Teredo
	} {
		if got := allowed(g, addr); got != want {
			t.Errorf("%s: allowed is %v, want %v", addr, got, want)
		}
	}
}

func noAddresses() ([]net.Addr, error) { return nil, nil }

func TestLesson01_AllowedNetworksOpenWhatTheyNameAndNoMore(t *testing.T) {
	for _, tt := range []struct {
		allow []string
		open  []string
		shut  []string
	}{
		{[]string{"10.0.0.0/8"}, []string{"10.1.2.3"}, []string{"192.168.0.1", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "2002:a01:203::1"}},
		{[]string{"127.0.0.0/8", "::1/128"}, []string{"127.0.0.1", "::1"}, []string{"::ffff:127.0.0.1", "::127.0.0.1", "0.0.0.0", "::"}},
		{[]string{"fd00::/8"}, []string{"fd12::1"}, []string{"fd00:ec2::254", "fd20:ce::254", "fe80::1"}},
		{[]string{"fd00:ec2::254/128"}, []string{"fd00:ec2::254"}, nil},
		{[]string{"169.254.0.0/16"}, []string{"169.254.1.1"}, []string{"169.254.169.254"}},
		{[]string{"0.0.0.0/0", "::/0"}, []string{"10.0.0.1", "127.0.0.1", "240.0.0.1", "::1", "fe80::1", "::ffff:8.8.8.8"},
			[]string{"0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "169.254.169.254", "::ffff:169.254.169.254", "::ffff:0.0.0.0", "::169.254.169.254", "64:ff9b::a9fe:a9fe"}},
		// The form is allowed: then the IPv4 address in it decides.
		{[]string{"64:ff9b::/96", "64:ff9b:1::/48"}, []string{"64:ff9b::8.8.8.8", "64:ff9b:1::8.8.8.8", "64:ff9b:1:808:8:800::"},
			[]string{"64:ff9b::10.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::127.0.0.1", "64:ff9b:1:7f00:0:100::"}},
		{[]string{"64:ff9b::/96", "10.0.0.0/8"}, []string{"64:ff9b::10.0.0.1"}, []string{"64:ff9b::192.168.0.1"}},
		{[]string{"::ffff:0:0/96"}, []string{"::ffff:8.8.8.8"}, []string{"::ffff:127.0.0.1", "::ffff:0.0.0.0"}},
		{[]string{"2002::/16"}, []string{"2002:808:808::1"}, []string{"2002:7f00:1::1", "2002:a9fe:a9fe::1", "2002::1"}},
		{[]string{"2001::/32"}, []string{"2001:0:808:808::f7f7:f7f7"}, []string{"2001:0:808:808::80ff:fffe", "2001:0:7f00:1::f7f7:f7f7"}},
	} {
		g := &guard{allow: prefixes(tt.allow...), ownAddresses: noAddresses}
		for _, addr := range tt.open {
			if err := g.check(netip.AddrPortFrom(netip.MustParseAddr(addr), 80)); err != nil {
				t.Errorf("allow %v: %v", tt.allow, err)
			}
		}
		for _, addr := range tt.shut {
			if allowed(g, addr) {
				t.Errorf("allow %v: %s is open", tt.allow, addr)
			}
		}
	}
}

func TestLesson01_DeniedNetworksAndOwnEndpointsWin(t *testing.T) {
	g := &guard{
		allow: prefixes("0.0.0.0/0", "::/0"),
		deny:  prefixes("10.9.0.0/16", "9.9.9.0/24", "2606:4700::/32"),
		endpoints: []netip.AddrPort{
			netip.MustParseAddrPort("10.1.1.1:6379"), netip.MustParseAddrPort("[fd00::1]:6379"),
			netip.MustParseAddrPort("0.0.0.0:443"), netip.MustParseAddrPort("[::]:8443"),
		},
		ownAddresses: func() ([]net.Addr, error) {
			return []net.Addr{
				&net.IPNet{IP: net.IPv4(10, 1, 1, 5), Mask: net.CIDRMask(24, 32)},
				&net.IPNet{IP: net.ParseIP("fd00::5"), Mask: net.CIDRMask(64, 128)},
			}, nil
		},
	}
	for target, want := range map[string]bool{
		"10.8.0.1:80": true, "10.9.0.1:80": false, "9.9.9.9:80": false, "[2606:4700::1]:80": false,
		"[::ffff:10.9.0.1]:80": false, "[64:ff9b::9.9.9.9]:80": false, "[2002:909:909::1]:80": false,
		"10.1.1.1:6379": false, "10.1.1.1:80": true, "[fd00::1]:6379": false, "[::ffff:10.1.1.1]:6379": false, "[64:ff9b::10.1.1.1]:6379": false,
		"127.0.0.1:443": false, "127.8.8.8:443": false, "[::1]:443": false, "10.1.1.5:443": false, "[fd00::5]:443": false,
		"10.1.1.6:443": true, "10.1.1.5:444": true, "[::ffff:127.0.0.1]:443": false,
		"127.0.0.1:8443": false, "[::1]:8443": false, "[fd00::5]:8443": false, "10.1.1.5:8443": false,
	} {
		err := g.check(netip.MustParseAddrPort(target))
		if got := err == nil; got != want {
			t.Errorf("%s: allowed is %v (%v), want %v", target, got, err, want)
		}
	}
	g.ownAddresses = func() ([]net.Addr, error) { return nil, errors.New("no netlink") }
	if g.check(netip.MustParseAddrPort("10.1.1.6:443")) == nil {
		t.Error("own addresses unknown: allowed")
	}
	if g.check(netip.AddrPort{}) == nil || g.check(netip.MustParseAddrPort("[fe80::1%eth0]:80")) == nil {
		t.Error("an invalid or zoned address is allowed")
	}
}
