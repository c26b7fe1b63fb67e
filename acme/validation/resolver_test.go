package validation

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acme-bridge/acme-bridge/acme"
)

func resolverFor(t testing.TB, servers ...*dnsServer) *dnsResolver {
	t.Helper()
	var addrs []string
	for _, s := range servers {
		addrs = append(addrs, s.addr)
	}
	r, err := newResolver(addrs)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantLookupError(t *testing.T, err error, want string) {
	t.Helper()
	e, ok := errors.AsType[*LookupError](err)
	if !ok || !strings.Contains(e.Reason, want) {
		t.Errorf("got %v, want a lookup error %q", err, want)
	}
}

func TestAddressesAreIPv6FirstAndFollowAliases(t *testing.T) {
	s := newDNSServer(t,
		"a.example. 60 IN A 192.0.2.1", "a.example. 60 IN A 192.0.2.2", "a.example. 60 IN AAAA 2001:db8::1",
		"four.example. 60 IN A 192.0.2.4",
		"text.example. 60 IN TXT x",
		"alias.example. 60 IN CNAME elsewhere.test.", "elsewhere.test. 60 IN CNAME a.example.", // each zone answers for itself
		"loop1.example. 60 IN CNAME loop2.example.", "loop2.example. 60 IN CNAME loop1.example.", "self.example. 60 IN CNAME self.example.",
		"dangling.example. 60 IN CNAME gone.example.",
	)
	for i := range 12 {
		s.add(t, fmt.Sprintf("long%d.example. 60 IN CNAME long%d.example.", i, i+1))
	}
	s.add(t, "long12.example. 60 IN A 192.0.2.1")
	for i := range 40 {
		s.add(t, fmt.Sprintf("many.example. 60 IN A 192.0.2.%d", i))
	}
	r := resolverFor(t, s)
	for _, tt := range []struct{ name, want, failure string }{
		{"a.example", "[2001:db8::1 192.0.2.1 192.0.2.2]", ""},
		{"A.Example", "[2001:db8::1 192.0.2.1 192.0.2.2]", ""},
		{"four.example", "[192.0.2.4]", ""},
		{"alias.example", "[2001:db8::1 192.0.2.1 192.0.2.2]", ""},
		{"long2.example", "[192.0.2.1]", ""}, // ten aliases
		{"long1.example", "", "too many aliases"},
		{"loop1.example", "", "too many aliases"},
		{"self.example", "", "too many aliases"},
		{"dangling.example", "", "there is no such name"},
		{"gone.example", "", "there is no such name"},
		{"text.example", "", "neither A nor AAAA"},
		{strings.Repeat("a.", 130) + "example", "", "too long"},
	} {
		got, err := r.Addresses(t.Context(), tt.name)
		if tt.failure != "" {
			wantLookupError(t, err, tt.failure)
			continue
		}
		if fmt.Sprint(got) != tt.want || err != nil {
			t.Errorf("%s: %v (%v), want %s", tt.name, got, err, tt.want)
		}
	}
	if got, err := r.Addresses(t.Context(), "many.example"); err != nil || len(got) != maxAddresses {
		t.Errorf("many addresses: %d (%v), want %d", len(got), err, maxAddresses)
	}
	if n := len(slices.DeleteFunc(s.questions(), func(q string) bool { return !strings.Contains(q, "loop") })); n > 2*2*(maxAliases+2) {
		t.Errorf("a loop cost %d questions", n)
	}
}

func TestTXTIsJoinedAndComesOverTCPWhenLong(t *testing.T) {
	s := newDNSServer(t, `joined.example. 60 IN TXT "abc" "def" ""`, "none.example. 60 IN A 192.0.2.1")
	for range 40 {
		s.add(t, "long.example. 60 IN TXT "+strings.Repeat("x", 200))
	}
	r := resolverFor(t, s)
	if got, err := r.TXT(t.Context(), "joined.example"); err != nil || fmt.Sprint(got) != "[abcdef]" {
		t.Errorf("joined: %q (%v)", got, err)
	}
	if got, err := r.TXT(t.Context(), "none.example"); err != nil || len(got) != 0 {
		t.Errorf("none: %q (%v)", got, err)
	}
	got, err := r.TXT(t.Context(), "long.example")
	if err != nil || len(got) != 40 {
		t.Errorf("long: %d records (%v), want 40", len(got), err)
	}
	if q := s.questions(); q[len(q)-1] != "tcp long.example. TXT" {
		t.Errorf("asked %q, want the last over TCP", q)
	}
}

func TestServersAreAskedInTurn(t *testing.T) {
	good := newDNSServer(t, "a.example. 60 IN TXT yes")
	for name, rcode := range map[string]int{"SERVFAIL": dns.RcodeServerFailure, "REFUSED": dns.RcodeRefused, "an unknown error": 12} {
		bad := newDNSServer(t)
		bad.fail("a.example. TXT", rcode)
		if got, err := resolverFor(t, bad, good).TXT(t.Context(), "a.example"); err != nil || fmt.Sprint(got) != "[yes]" {
			t.Errorf("%s first: %q (%v)", name, got, err)
		}
		_, err := resolverFor(t, bad).TXT(t.Context(), "a.example")
		wantLookupError(t, err, "the DNS servers answer "+name)
	}
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r := resolverFor(t, &dnsServer{addr: silent.LocalAddr().String()}, good)
	r.timeout = 50 * time.Millisecond
	if got, err := r.TXT(t.Context(), "a.example"); err != nil || fmt.Sprint(got) != "[yes]" {
		t.Errorf("a silent server first: %q (%v)", got, err)
	}
	r = resolverFor(t, &dnsServer{addr: silent.LocalAddr().String()})
	r.timeout = 50 * time.Millisecond
	_, err = r.TXT(t.Context(), "a.example")
	wantLookupError(t, err, "no DNS server answered")

	ctx, cancel := context.WithCancel(t.Context())
	r.timeout = time.Minute
	r.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		defer cancel() // while the answer is waited for
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	_, err = r.TXT(ctx, "a.example")
	wantLookupError(t, err, "in time")
}

func TestNXDOMAINEndsTheSearch(t *testing.T) {
	first, second := newDNSServer(t), newDNSServer(t, "a.example. 60 IN TXT yes")
	_, err := resolverFor(t, first, second).TXT(t.Context(), "a.example")
	wantLookupError(t, err, "there is no such name")
	if q := second.questions(); len(q) > 0 {
		t.Errorf("the second server was asked %q", q)
	}
}

func TestAServerWithoutEDNSIsAskedAgain(t *testing.T) {
	s := newDNSServer(t, "a.example. 60 IN TXT yes")
	s.answerWith(func(w dns.ResponseWriter, q *dns.Msg) bool {
		if q.IsEdns0() == nil {
			return false
		}
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeFormatError))
		return true
	})
	if got, err := resolverFor(t, s).TXT(t.Context(), "a.example"); err != nil || fmt.Sprint(got) != "[yes]" {
		t.Errorf("%q (%v)", got, err)
	}
}

func TestASilentAAAADoesNotHoldUpA(t *testing.T) {
	s := newDNSServer(t, "a.example. 60 IN A 192.0.2.1")
	s.answerWith(func(_ dns.ResponseWriter, q *dns.Msg) bool { return q.Question[0].Qtype == dns.TypeAAAA })
	r := resolverFor(t, s)
	r.timeout = 100 * time.Millisecond
	got, err := r.Addresses(t.Context(), "a.example")
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.1")}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v (%v), want %v", got, err, want)
	}
}

// Forged, unrelated and malformed packets before the answer change nothing.
func TestLesson23_PacketsThatAreNotTheAnswerArePassedOver(t *testing.T) {
	s := newDNSServer(t, "a.example. 60 IN TXT yes")
	s.answerWith(func(w dns.ResponseWriter, q *dns.Msg) bool {
		if w.LocalAddr().Network() != "udp" {
			return false
		}
		forged := func(change func(*dns.Msg)) {
			m := new(dns.Msg).SetReply(q)
			rr, err := dns.NewRR(q.Question[0].Name + " 60 IN TXT forged")
			if err != nil {
				t.Error(err)
			}
			m.Answer = []dns.RR{rr}
			change(m)
			w.WriteMsg(m)
		}
		forged(func(m *dns.Msg) { m.Id++ })
		forged(func(m *dns.Msg) { m.Response = false })
		forged(func(m *dns.Msg) { m.Question[0].Name = "b.example." })
		forged(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeA })
		forged(func(m *dns.Msg) { m.Question = nil })
		w.Write(nil)
		w.Write([]byte{1, 2, 3})
		w.Write([]byte(strings.Repeat("\xc0", 300)))
		return false
	})
	if got, err := resolverFor(t, s).TXT(t.Context(), "a.example"); err != nil || fmt.Sprint(got) != "[yes]" {
		t.Errorf("%q (%v)", got, err)
	}
}

func TestLesson23_ACraftedAnswerIsAnErrorInTime(t *testing.T) {
	bomb := func(q *dns.Msg) []byte { // names that point to each other, counts that lie
		m := new(dns.Msg).SetReply(q)
		b, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		b[6], b[7] = 0xff, 0xff
		for i := 0; len(b) < 60000; i++ {
			b = append(b, 0xc0, byte(len(b)-2), 0, 16, 0, 1, 0, 0, 0, 0, 0, 0)
		}
		return b
	}
	s := newDNSServer(t)
	s.answerWith(func(w dns.ResponseWriter, q *dns.Msg) bool {
		if w.LocalAddr().Network() == "udp" {
			m := new(dns.Msg).SetReply(q)
			m.Truncated = true
			w.WriteMsg(m)
		} else {
			w.Write(bomb(q))
		}
		return true
	})
	_, err := resolverFor(t, s).TXT(t.Context(), "a.example")
	wantLookupError(t, err, "malformed")

	s.answerWith(func(w dns.ResponseWriter, q *dns.Msg) bool {
		m := new(dns.Msg).SetReply(q)
		m.Truncated = true
		w.WriteMsg(m)
		return true
	})
	_, err = resolverFor(t, s).TXT(t.Context(), "a.example")
	wantLookupError(t, err, "truncated")
}

// Records that do not belong to the question are not looked at.
func TestRecordsOfOtherNamesAreNotTaken(t *testing.T) {
	s := newDNSServer(t)
	s.answerWith(func(w dns.ResponseWriter, q *dns.Msg) bool {
		m := new(dns.Msg).SetReply(q)
		for _, text := range []string{"b.example. 60 IN TXT no", "a.example. 60 CH TXT no", "a.example. 60 IN A 192.0.2.1"} {
			rr, err := dns.NewRR(text)
			if err != nil {
				t.Error(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		w.WriteMsg(m)
		return true
	})
	if got, err := resolverFor(t, s).TXT(t.Context(), "a.example"); err != nil || len(got) != 0 {
		t.Errorf("%q (%v), want nothing", got, err)
	}
}

func TestSystemResolversAreTheDefault(t *testing.T) {
	conf, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil || len(conf.Servers) == 0 {
		if _, err := newResolver(nil); err == nil || !strings.Contains(err.Error(), "resolvers") {
			t.Errorf("without a usable %s: %v", resolvConf, err)
		}
		return
	}
	r, err := newResolver(nil)
	if err != nil || len(r.servers) != len(conf.Servers) {
		t.Errorf("%v (%v), want those of %s", r, err, resolvConf)
	}
}

func TestSection8_4_DNS01(t *testing.T) {
	want := digestText()
	s := newDNSServer(t,
		"_acme-challenge.one.example. 60 IN TXT "+want,
		"_acme-challenge.many.example. 60 IN TXT other", "_acme-challenge.many.example. 60 IN TXT "+want, "_acme-challenge.many.example. 60 IN TXT more",
		"_acme-challenge.split.example. 60 IN TXT \""+want[:20]+"\" \""+want[20:]+"\"",
		"_acme-challenge.alias.example. 60 IN CNAME x.validation.test.", "x.validation.test. 60 IN TXT "+want,
		"_acme-challenge.wrong.example. 60 IN TXT other",
		"_acme-challenge.padded.example. 60 IN TXT \""+want+" \"",
		"_acme-challenge.hex.example. 60 IN TXT \""+strings.Repeat("ab", 32)+"\"",
		"_acme-challenge.keyauth.example. 60 IN TXT \""+keyAuth+"\"",
		"_acme-challenge.empty.example. 60 IN A 192.0.2.1",
		"apex.example. 60 IN TXT "+want,
	)
	s.fail("_acme-challenge.broken.example. TXT", dns.RcodeServerFailure)
	v := newTestValidator(t, Config{Resolvers: []string{s.addr}})
	for _, tt := range []struct {
		name   string
		want   acme.ProblemType
		detail string
	}{
		{"one.example", "", ""},
		{"many.example", "", ""},
		{"split.example", "", ""},
		{"alias.example", "", ""},
		{"wrong.example", acme.Unauthorized, "none of the 1 is the digest"},
		{"padded.example", acme.Unauthorized, "none of the 1"},
		{"hex.example", acme.Unauthorized, "none of the 1"},
		{"keyauth.example", acme.Unauthorized, "none of the 1"},
		{"empty.example", acme.Unauthorized, "there are none"},
		{"apex.example", acme.DNS, "looking up the TXT records of _acme-challenge.apex.example: there is no such name"},
		{"broken.example", acme.DNS, "SERVFAIL"},
	} {
		wantProblem(t, v.Validate(t.Context(), validationFor(acme.DNS01, tt.name)), tt.want, tt.detail)
	}
}

func TestDNS01LooksAgainForEachTry(t *testing.T) {
	s := newDNSServer(t, "_acme-challenge.a.example. 60 IN TXT old")
	pauses := &recorder{during: func(n int) {
		if n == 1 {
			s.remove("_acme-challenge.a.example. TXT")
		} else {
			s.add(t, "_acme-challenge.a.example. 60 IN TXT "+digestText())
		}
	}}
	v := newTestValidator(t, Config{Resolvers: []string{s.addr}, Pauses: []time.Duration{time.Second, time.Minute}, Wait: pauses.wait})
	wantProblem(t, v.Validate(t.Context(), validationFor(acme.DNS01, "a.example")), "", "")
	if got, want := fmt.Sprint(pauses.pauses), "[1s 1m0s]"; got != want {
		t.Errorf("pauses %s, want %s", got, want)
	}
}
