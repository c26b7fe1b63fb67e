package integration

import (
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// A dnsServer answers for every name: A records that tests have set, and TXT
// records that clients publish through the hook.
type dnsServer struct {
	address string // host:port, UDP and TCP
	hookURL string // for the environment of dnshook

	mu  sync.Mutex
	a   map[string]string
	txt map[string][]string
}

func startDNS(t *testing.T) *dnsServer {
	t.Helper()
	d := &dnsServer{a: map[string]string{}, txt: map[string][]string{}}
	packets, streams := listenBoth(t)
	d.address = packets.LocalAddr().String()
	var running sync.WaitGroup
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: d}, {Listener: streams, Handler: d}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		running.Go(func() {
			if err := s.ActivateAndServe(); err != nil {
				t.Errorf("DNS server: %v", err)
			}
		})
		<-started
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Errorf("DNS server: %v", err)
			}
		})
	}
	hook := httptest.NewServer(http.HandlerFunc(d.change))
	d.hookURL = hook.URL
	t.Cleanup(hook.Close)
	return d
}

// listenBoth opens one port for UDP and TCP. A port that was just free may be
// taken again: a child that is being started has our sockets until its exec.
func listenBoth(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		streams, err := net.Listen("tcp", address)
		if err != nil {
			packets.Close()
			continue
		}
		return packets, streams
	}
	t.Fatal("no port that is free for both UDP and TCP")
	return nil, nil
}

// point makes names resolve to an address.
func (d *dnsServer) point(address string, names ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range names {
		d.a[strings.TrimPrefix(n, "*.")] = address
	}
}

// change publishes or removes a TXT record.
func (d *dnsServer) change(w http.ResponseWriter, r *http.Request) {
	name, value := strings.ToLower(r.URL.Query().Get("name")), r.URL.Query().Get("value")
	d.mu.Lock()
	defer d.mu.Unlock()
	switch r.Method {
	case http.MethodPut:
		d.txt[name] = append(d.txt[name], value)
	case http.MethodDelete:
		d.txt[name] = slices.DeleteFunc(d.txt[name], func(v string) bool { return v == value })
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

// ServeDNS answers a question; a name that is not known does not exist.
func (d *dnsServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	answer := new(dns.Msg)
	answer.SetReply(q)
	answer.Authoritative, answer.RecursionAvailable = true, true
	if len(q.Question) == 1 {
		d.answer(q.Question[0], answer)
	}
	_ = w.WriteMsg(answer) // who asked may be gone
}

func (d *dnsServer) answer(q dns.Question, m *dns.Msg) {
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 1}
	d.mu.Lock()
	defer d.mu.Unlock()
	address, known := d.a[name]
	values := d.txt[name]
	switch q.Qtype {
	case dns.TypeA:
		if known {
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: net.ParseIP(address)})
		}
	case dns.TypeTXT:
		for _, v := range values {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: header, Txt: []string{v}})
		}
	case dns.TypeSOA:
		m.Answer = append(m.Answer, &dns.SOA{Hdr: header, Ns: "ns." + zone + ".", Mbox: "admin." + zone + ".", Serial: 1, Refresh: 1, Retry: 1, Expire: 1, Minttl: 1})
	}
	if !known && len(values) == 0 && q.Qtype != dns.TypeSOA {
		m.Rcode = dns.RcodeNameError
	}
}

// zone is where all names of the tests lie, but those of the embedded default.
const zone = "bridge.example"
