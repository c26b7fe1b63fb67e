package rfc2136

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/acme-bridge/acme-bridge/publisher"
)

const soa = " 60 IN SOA ns1.example.com. admin.example.com. 1 3600 600 86400 60"

func zoneFile(more ...string) []string {
	return append([]string{
		"example.com." + soa,
		"example.com. 60 IN NS ns1.example.com.",
		"other.example.com. 60 IN NS ns.elsewhere.test.",
		"alias.example.com. 60 IN CNAME www.example.com.",
		`_dcv.example.com. 300 IN TXT "somebody else's"`,
	}, more...)
}

func TestPublishAddsOneRecordBesideOthersAndRemoveTakesItAway(t *testing.T) {
	server := newPrimary(t, []string{"example.com."}, zoneFile()...)
	p := newRig(t, server.addr, nil)
	before := server.texts()
	const value = `ncp-"dcv"=a\b; ` + "c"
	for range 2 { // the second call finds it in place
		if served, err := p.Publish(t.Context(), "_DCV.example.com", value); err != nil || !served {
			t.Fatalf("got %t, %v", served, err)
		}
	}
	want := append(slices.Clone(before), `_dcv.example.com. 60 IN TXT "ncp-\"dcv\"=a\\b; c"`)
	if got := server.texts(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := server.updated(); !slices.Equal(got, []string{"udp"}) {
		t.Errorf("got updates %q, want one by UDP", got)
	}
	for range 2 {
		if err := p.Remove(t.Context(), "_dcv.example.com.", value); err != nil {
			t.Fatal(err)
		}
	}
	if got := server.texts(); !slices.Equal(got, before) {
		t.Errorf("after Remove: got %q, want %q", got, before)
	}
	if got := testutil.ToFloat64(counter(t, p, "publish", "done")); got != 2 {
		t.Errorf("metric: got %v, want 2", got)
	}
}

func TestCovers(t *testing.T) {
	server := newPrimary(t, []string{"example.com.", "sub.example.com."}, zoneFile("sub.example.com."+soa, "sub.example.com. 60 IN NS ns1.example.com.")...)
	p := newRig(t, server.addr, nil)
	for _, tt := range []struct {
		name string
		want bool
		zone string
	}{
		{"example.com", true, "example.com."},
		{"*.example.com", true, "example.com."},
		{"a.b.EXAMPLE.com.", true, "example.com."},
		{"a.sub.example.com", true, "sub.example.com."},
		{"other.example.com", false, ""},
		{"a.other.example.com", false, ""},
		{"example.net", false, ""},
		{"com", false, ""},
	} {
		got, err := p.Covers(t.Context(), tt.name)
		if err != nil || got != tt.want {
			t.Errorf("%s: got %t, %v, want %t", tt.name, got, err, tt.want)
		}
		if zone, _ := p.zone(t.Context(), tt.name); zone != tt.zone {
			t.Errorf("%s: got zone %q, want %q", tt.name, zone, tt.zone)
		}
	}
	if _, err := p.Publish(t.Context(), "_dcv.other.example.com", "x"); !errors.Is(err, publisher.ErrBlocked) || !strings.Contains(err.Error(), "delegated") {
		t.Errorf("below a zone cut: got %v", err)
	}
}

func TestACNAMEInTheWayIsAClearError(t *testing.T) {
	server := newPrimary(t, []string{"example.com."}, zoneFile()...)
	p := newRig(t, server.addr, nil)
	_, err := p.Publish(t.Context(), "alias.example.com", "x")
	if !errors.Is(err, publisher.ErrBlocked) || !strings.Contains(err.Error(), "CNAME") {
		t.Errorf("got %v", err)
	}
}

func TestAWrongKeyIsAClearError(t *testing.T) {
	server := newPrimary(t, []string{"example.com."}, zoneFile()...)
	for _, tt := range []struct {
		name string
		set  func(*Config)
		want string
	}{
		{"unknown key", func(c *Config) { c.TSIGName = "unknown" }, "tsig_name"},
		{"another secret", func(c *Config) { c.TSIGSecret = strings.Repeat("QUJD", 8) }, "tsig_secret"},
		{"another algorithm", func(c *Config) { c.TSIGAlgorithm = "hmac-sha512" }, ""},
		{"a clock that is off", func(c *Config) { c.Now = func() time.Time { return time.Now().Add(-time.Hour) } }, "clocks"},
		{"no key", func(c *Config) { c.TSIGName, c.TSIGSecret = "", "" }, "unsigned"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newRig(t, server.addr, tt.set)
			_, err := p.Publish(t.Context(), "_dcv.example.com", tt.name)
			if tt.want == "" { // the library's server takes any algorithm with the right secret
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, publisher.ErrBlocked) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Publish: got %v", err)
			}
			if err := p.Check(t.Context(), "example.com"); !errors.Is(err, publisher.ErrBlocked) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check: got %v", err)
			}
		})
	}
	if err := newRig(t, server.addr, nil).Check(t.Context(), "a.example.com"); err != nil {
		t.Errorf("right key: got %v", err)
	}
}

func TestAnswerCodes(t *testing.T) {
	server := newPrimary(t, []string{"example.com."}, zoneFile()...)
	for _, tt := range []struct {
		code    int
		want    string
		blocked bool
	}{
		{dns.RcodeRefused, "update-policy", true},
		{dns.RcodeNotAuth, "not authoritative", true},
		{dns.RcodeNotZone, "outside", true},
		{dns.RcodeNotImplemented, "no dynamic updates", true},
		{dns.RcodeFormatError, "understand", true},
		{dns.RcodeServerFailure, "journal", false},
		{dns.RcodeNXRrset, "NXRRSET", false},
		{3000, "code 3000", false},
	} {
		server.answerWith(func(w dns.ResponseWriter, m, reply *dns.Msg) bool {
			if m.Opcode != dns.OpcodeUpdate {
				return false
			}
			reply.Rcode = tt.code
			if tt.code > 15 {
				reply.SetEdns0(1232, false)
			}
			reply.SetTsig(keyName, dns.HmacSHA256, 300, time.Now().Unix())
			w.WriteMsg(reply)
			return true
		})
		_, err := newRig(t, server.addr, nil).Publish(t.Context(), "_dcv.example.com", "x")
		if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, publisher.ErrBlocked) != tt.blocked {
			t.Errorf("code %d: got %v", tt.code, err)
		}
	}
}

func TestAnUnsignedSuccessIsNotBelieved(t *testing.T) {
	server := newPrimary(t, []string{"example.com."}, zoneFile()...)
	server.answerWith(func(w dns.ResponseWriter, m, reply *dns.Msg) bool {
		if m.Opcode != dns.OpcodeUpdate {
			return false
		}
		w.WriteMsg(reply)
		return true
	})
	_, err := newRig(t, server.addr, nil).Publish(t.Context(), "_dcv.example.com", "x")
	if err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("got %v", err)
	}
}

func TestTCPIsTriedWhenUDPBringsNothing(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(server *primary, cfg *Config)
	}{
		{"no answer", func(server *primary, cfg *Config) {
			cfg.Timeout = 50 * time.Millisecond
			server.answerWith(func(w dns.ResponseWriter, m, _ *dns.Msg) bool {
				return w.LocalAddr().Network() == "udp" && m.Opcode == dns.OpcodeUpdate
			})
		}},
		{"truncated", func(server *primary, _ *Config) {
			server.answerWith(func(w dns.ResponseWriter, m, reply *dns.Msg) bool {
				if w.LocalAddr().Network() != "udp" {
					return false
				}
				reply.Truncated = true
				reply.SetTsig(keyName, dns.HmacSHA256, 300, time.Now().Unix())
				w.WriteMsg(reply)
				return true
			})
		}},
		{"port closed", func(_ *primary, cfg *Config) {
			cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if network == "udp" {
					return nil, errors.New("no UDP here")
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := newPrimary(t, []string{"example.com."}, zoneFile()...)
			p := newRig(t, server.addr, func(cfg *Config) { tt.set(server, cfg) })
			if _, err := p.Publish(t.Context(), "_dcv.example.com", "x"); err != nil {
				t.Fatal(err)
			}
			if got := server.texts(); !slices.Contains(got, `_dcv.example.com. 60 IN TXT "x"`) {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestASilentServerEndsInTime(t *testing.T) {
	server := newPrimary(t, []string{"example.com."}, zoneFile()...)
	server.answerWith(func(dns.ResponseWriter, *dns.Msg, *dns.Msg) bool { return true })
	p := newRig(t, server.addr, func(cfg *Config) { cfg.Timeout = 20 * time.Millisecond })
	if ok, err := p.Covers(t.Context(), "example.com"); ok || err == nil || errors.Is(err, publisher.ErrBlocked) {
		t.Errorf("got %t, %v, want an error that may pass", ok, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Publish(ctx, "_dcv.example.com", "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got %v", err)
	}
}

func TestNotServedYetIsNoError(t *testing.T) {
	server := newPrimary(t, []string{"example.com."}, zoneFile()...)
	secondary := newPrimary(t, []string{"example.com."}, zoneFile()...)
	p := newRig(t, server.addr, func(cfg *Config) {
		var err error
		if cfg.Confirmer, err = publisher.NewConfirmer(publisher.ConfirmerConfig{Servers: []string{server.addr, secondary.addr}, Log: cfg.Log}); err != nil {
			t.Fatal(err)
		}
	})
	if served, err := p.Publish(t.Context(), "_dcv.example.com", "x"); served || err != nil {
		t.Errorf("got %t, %v", served, err)
	}
	if got := p.log.String(); !strings.Contains(got, secondary.addr+": has other TXT records") || strings.Contains(got, server.addr+": ") {
		t.Errorf("log: %s", got)
	}
}

func TestNewSaysEverythingThatIsWrong(t *testing.T) {
	_, err := New(Config{Server: "ns1", TSIGName: "k", TSIGAlgorithm: "hmac-md5", TSIGSecret: "!!", TTL: time.Millisecond})
	for _, want := range []string{"server", "tsig_algorithm", "tsig_secret", "ttl", "confirmer"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
	if _, err := New(Config{Server: "[::1]:53", TSIGSecret: secret}); err == nil || !strings.Contains(err.Error(), "tsig_name") || strings.Contains(err.Error(), secret) {
		t.Errorf("secret without a name: got %v", err)
	}
	if newRig(t, "[::1]:53", func(c *Config) { c.TSIGName, c.TSIGSecret, c.TSIGAlgorithm = "", "", DefaultTSIGAlgorithm }).query.TSIG != nil {
		t.Error("updates are signed without a key")
	}
}
