package publisher

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A dnsServer answers from a list of records over UDP and TCP.
type dnsServer struct {
	addr string

	mu      sync.Mutex
	records []dns.RR
	rcode   int
	asked   []string // "udp name TYPE"
	silent  string   // network on which it does not answer
}

func newDNSServer(t *testing.T, records ...string) *dnsServer {
	t.Helper()
	s := &dnsServer{}
	s.set(t, records...)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s.addr = tcp.Addr().String()
	for _, server := range []*dns.Server{{PacketConn: udp, Handler: s}, {Listener: tcp, Handler: s}} {
		started, ended := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			if err := server.ActivateAndServe(); err != nil {
				t.Error(err)
			}
		}()
		<-started
		t.Cleanup(func() {
			server.Shutdown()
			<-ended
		})
	}
	return s
}

func (s *dnsServer) set(t *testing.T, records ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = nil
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		s.records = append(s.records, rr)
	}
}

func (s *dnsServer) fail(rcode int, silent string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rcode, s.silent = rcode, silent
}

func (s *dnsServer) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *dnsServer) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, network := m.Question[0], w.LocalAddr().Network()
	s.asked = append(s.asked, network+" "+q.Name+" "+dns.TypeToString[q.Qtype])
	if network == s.silent {
		return
	}
	reply := new(dns.Msg).SetReply(m)
	reply.Rcode = s.rcode
	for _, rr := range s.records {
		if h := rr.Header(); h.Name == q.Name && (h.Rrtype == q.Qtype || h.Rrtype == dns.TypeCNAME) {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	if network == "udp" {
		reply.Truncate(udpSize)
	}
	w.WriteMsg(reply)
}

const fqdn, value = "_dcv.a.example.com.", `token-"1"`

// newConfirmer dials servers in place of the addresses, which are host:port.
func newConfirmer(t *testing.T, resolver *dnsServer, servers map[string]*dnsServer, set func(*ConfirmerConfig)) *Confirmer {
	t.Helper()
	cfg := ConfirmerConfig{Resolvers: []string{resolver.addr}, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if s, ok := servers[addr]; ok {
			addr = s.addr
		} else if addr != resolver.addr {
			return nil, errors.New("no route to " + addr)
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	if set != nil {
		set(&cfg)
	}
	c, err := NewConfirmer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func delegation() []string {
	return []string{
		"example.com. 60 IN NS ns1.example.net.", "example.com. 60 IN NS ns2.example.net.",
		"ns1.example.net. 60 IN A 192.0.2.1", "ns2.example.net. 60 IN A 192.0.2.2", "ns2.example.net. 60 IN AAAA 2001:db8::2",
	}
}

func TestMissing(t *testing.T) {
	record := NewTXT(fqdn, value, time.Minute).String()
	var many []string
	for i := range 60 {
		many = append(many, NewTXT(fqdn, strings.Repeat("x", 50+i), time.Minute).String())
	}
	for _, tt := range []struct {
		name           string
		first, second  []string
		rcode          int
		silent         string
		want           []string
		overTCPAtFirst bool
	}{
		{name: "all serve it", first: []string{record}, second: []string{record}},
		{name: "none serves it", want: []string{"ns1.example.net: has no TXT record there", "ns2.example.net: has no TXT record there"}},
		{name: "one serves it", first: []string{record}, want: []string{"ns2.example.net: has no TXT record there"}},
		{name: "among others", first: []string{fqdn + ` 60 IN TXT "old"`, record}, second: []string{record}},
		{name: "others only", first: []string{record}, second: []string{fqdn + ` 60 IN TXT "old"`}, want: []string{"ns2.example.net: has other TXT records there only"}},
		{name: "a CNAME", first: []string{record}, second: []string{fqdn + " 60 IN CNAME x.example.net."}, want: []string{"ns2.example.net: has a CNAME to x.example.net. there"}},
		{name: "truncated over UDP", first: append(many, record), second: []string{record}, overTCPAtFirst: true},
		{name: "no answer over UDP", first: []string{record}, second: []string{record}, silent: "udp", overTCPAtFirst: true},
		{name: "a server that refuses", first: []string{record}, second: []string{record}, rcode: dns.RcodeRefused, want: []string{"ns1.example.net: answers REFUSED"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			one, two := newDNSServer(t, tt.first...), newDNSServer(t, tt.second...)
			if tt.rcode != 0 {
				one.set(t)
			}
			one.fail(tt.rcode, tt.silent)
			c := newConfirmer(t, newDNSServer(t, delegation()...), map[string]*dnsServer{"192.0.2.1:53": one, "192.0.2.2:53": two}, func(cfg *ConfirmerConfig) {
				cfg.Timeout = 200 * time.Millisecond
			})
			got, err := c.Missing(t.Context(), "Example.com", "_dcv.A.example.com", value)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
			if over := slices.Contains(one.questions(), "tcp "+fqdn+" TXT"); over != tt.overTCPAtFirst {
				t.Errorf("asked over TCP: got %t, want %t", over, tt.overTCPAtFirst)
			}
		})
	}
}

func TestAServerNeedsAnAddressThatAnswers(t *testing.T) {
	one := newDNSServer(t, NewTXT(fqdn, value, time.Minute).String())
	c := newConfirmer(t, newDNSServer(t, delegation()...), map[string]*dnsServer{"192.0.2.1:53": one}, nil)
	got, err := c.Missing(t.Context(), "example.com", fqdn, value)
	if err != nil || len(got) != 1 || !strings.HasPrefix(got[0], "ns2.example.net: does not answer: ") || !strings.Contains(got[0], "no route") {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestNameServersAreRememberedForAWhile(t *testing.T) {
	now := time.Now()
	one, resolver := newDNSServer(t, NewTXT(fqdn, value, time.Minute).String()), newDNSServer(t, delegation()...)
	c := newConfirmer(t, resolver, map[string]*dnsServer{"192.0.2.1:53": one, "192.0.2.2:53": one}, func(cfg *ConfirmerConfig) {
		cfg.Now = func() time.Time { return now }
	})
	ask := func() int {
		t.Helper()
		if got, err := c.Missing(t.Context(), "example.com", fqdn, value); err != nil || len(got) > 0 {
			t.Fatalf("got %q, %v", got, err)
		}
		return len(resolver.questions())
	}
	first := ask()
	if again := ask(); again != first {
		t.Errorf("asked the resolver again: got %d questions, want %d", again, first)
	}
	now = now.Add(serversAge)
	if later := ask(); later != 2*first {
		t.Errorf("later: got %d questions, want %d", later, 2*first)
	}
}

func TestAZoneWithoutNameServersIsAnError(t *testing.T) {
	c := newConfirmer(t, newDNSServer(t), nil, nil)
	if _, err := c.Missing(t.Context(), "example.com", fqdn, value); err == nil || !strings.Contains(err.Error(), "delegated") {
		t.Errorf("got %v", err)
	}
	broken := newDNSServer(t)
	broken.fail(dns.RcodeServerFailure, "")
	if _, err := newConfirmer(t, broken, nil, nil).Missing(t.Context(), "example.com", fqdn, value); err == nil || !strings.Contains(err.Error(), "SERVFAIL") {
		t.Errorf("got %v", err)
	}
}

func TestFixedServersAreAskedInPlaceOfTheZones(t *testing.T) {
	one := newDNSServer(t, NewTXT(fqdn, value, time.Minute).String())
	c, err := NewConfirmer(ConfirmerConfig{Servers: []string{one.addr}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Missing(t.Context(), "example.com", fqdn, value); err != nil || len(got) > 0 {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := NewConfirmer(ConfirmerConfig{Servers: []string{"ns1"}, Resolvers: []string{":53"}}); err == nil ||
		!strings.Contains(err.Error(), "servers") || !strings.Contains(err.Error(), "resolvers") {
		t.Errorf("got %v", err)
	}
}

func TestServedLogsWhatIsMissingWhenThatChanges(t *testing.T) {
	one, log := newDNSServer(t), new(bytes.Buffer)
	c, err := NewConfirmer(ConfirmerConfig{Servers: []string{one.addr}, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{false, true} {
		if want {
			one.set(t, NewTXT(fqdn, value, time.Minute).String())
		}
		for range 3 {
			if got, err := c.Served(t.Context(), "example.com", fqdn, value); err != nil || got != want {
				t.Errorf("got %t, %v, want %t", got, err, want)
			}
		}
	}
	if got := strings.Count(log.String(), "\n"); got != 2 || !strings.Contains(log.String(), "has no TXT record there") {
		t.Errorf("got %d lines, want 2: %s", got, log)
	}
}

func TestZone(t *testing.T) {
	c := newConfirmer(t, newDNSServer(t, "example.com. 60 IN NS ns1.example.net.", "com. 60 IN NS a.gtld-servers.net."), nil, nil)
	if got, err := c.Zone(t.Context(), "_dcv.a.Example.com"); err != nil || got != "example.com." {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := c.Zone(t.Context(), "a.test"); err == nil {
		t.Error("got no error for a name without a zone")
	}
}

func TestTXTRoundTrip(t *testing.T) {
	for _, want := range []string{"", "plain", `a "b" \c\ \065 ;`, "\x00\xff\t", strings.Repeat(`\"x`, 300)} {
		wire, err := (&dns.Msg{Answer: []dns.RR{NewTXT("A.example.com", want, time.Minute)}}).Pack()
		if err != nil {
			t.Fatal(err)
		}
		var m dns.Msg
		if err := m.Unpack(wire); err != nil {
			t.Fatal(err)
		}
		if got, _ := At(m.Answer, "a.example.com"); len(got) != 1 || got[0] != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
