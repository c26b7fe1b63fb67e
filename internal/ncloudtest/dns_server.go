package ncloudtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// nameServers are what every zone names as its own; all are this server.
func nameServers() []string {
	return []string{"ns1-1.simulated-dns.example.", "ns1-2.simulated-dns.example."}
}

// A dnsServer serves zones on one port, UDP and TCP. It is authoritative for
// its zones and follows aliases within them, as a resolver would.
type dnsServer struct {
	address string
	zones   *zones
	servers []*dns.Server
	running sync.WaitGroup
}

func listenDNS(address string, z *zones) (*dnsServer, error) {
	s := &dnsServer{zones: z}
	var packet net.PacketConn
	var stream net.Listener
	// A free UDP port may be taken on TCP: another try then.
	for try := 0; ; try++ {
		var err error
		if packet, err = net.ListenPacket("udp", address); err != nil {
			return nil, err
		}
		s.address = packet.LocalAddr().String()
		if a, ok := packet.LocalAddr().(*net.UDPAddr); !ok || !a.IP.IsLoopback() {
			return nil, errors.Join(fmt.Errorf("%s is not on loopback", address), packet.Close())
		}
		if stream, err = net.Listen("tcp", s.address); err == nil {
			break
		}
		_ = packet.Close() // another one follows, or the error below
		if try == 20 {
			return nil, err
		}
	}
	started := make(chan struct{}, 2)
	for _, server := range []*dns.Server{{PacketConn: packet}, {Listener: stream}} {
		server.Handler = dns.HandlerFunc(s.handle)
		server.NotifyStartedFunc = func() { started <- struct{}{} }
		s.servers = append(s.servers, server)
		s.running.Go(func() { _ = server.ActivateAndServe() }) // ends with close
	}
	for range s.servers {
		<-started
	}
	return s, nil
}

func (s *dnsServer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, server := range s.servers {
		_ = server.ShutdownContext(ctx) // a second close finds it down
	}
	s.running.Wait()
}

func (s *dnsServer) handle(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	s.zones.mu.Lock()
	if udp {
		s.zones.count.QueriesUDP++
	} else {
		s.zones.count.QueriesTCP++
	}
	if len(q.Question) == 1 && q.Opcode == dns.OpcodeQuery {
		s.zones.answer(m, q.Question[0])
	} else {
		m.Rcode = dns.RcodeNotImplemented
	}
	s.zones.mu.Unlock()
	size := dns.MaxMsgSize
	if udp {
		size = dns.MinMsgSize
	}
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(1232, false)
		if udp {
			size = max(int(opt.UDPSize()), dns.MinMsgSize)
		}
	}
	m.Truncate(size)
	_ = w.WriteMsg(m) // the client may be gone
}

// answer fills in m. The caller holds mu.
func (z *zones) answer(m *dns.Msg, q dns.Question) {
	name := strings.ToLower(q.Name)
	for range 8 {
		apex := z.apex(name)
		m.Authoritative = m.Authoritative || apex != ""
		at, exists := z.at(name)
		var alias *dns.CNAME
		found := false
		for _, rr := range append(at, z.own(name, apex)...) {
			rr = dns.Copy(rr)
			if strings.EqualFold(rr.Header().Name, q.Name) {
				rr.Header().Name = q.Name // as it was asked for
			}
			if c, ok := rr.(*dns.CNAME); ok && q.Qtype != dns.TypeCNAME {
				alias = c
				m.Answer = append(m.Answer, rr)
			} else if rr.Header().Rrtype == q.Qtype || q.Qtype == dns.TypeANY {
				found = true
				m.Answer = append(m.Answer, rr)
			}
		}
		if alias != nil && !found {
			name = strings.ToLower(alias.Target)
			continue
		}
		if !found {
			if !exists && name != apex && !slices.Contains(nameServers(), name) {
				m.Rcode = dns.RcodeNameError
			}
			m.Ns = append(m.Ns, soa(apex))
		}
		return
	}
	m.Rcode = dns.RcodeServerFailure // too many aliases
}

// at finds the records of a name, and whether it or a name below it exists.
func (z *zones) at(name string) (list []dns.RR, exists bool) {
	for other, rrs := range z.hand {
		if other == name {
			list = append(list, rrs...)
		}
		exists = exists || other == name || strings.HasSuffix(other, "."+name)
	}
	for _, d := range z.domains {
		if !dns.IsSubDomain(d.name+".", name) {
			continue
		}
		z.settle(d)
		for _, r := range d.served {
			full := d.fqdn(r.host)
			exists = exists || full == name || strings.HasSuffix(full, "."+name)
			if full != name {
				continue
			}
			if rr, err := d.rr(r); err == nil {
				list = append(list, rr)
			}
		}
	}
	return list, exists
}

// own are the records that make a zone one, and its servers' addresses.
func (z *zones) own(name, apex string) []dns.RR {
	var list []dns.RR
	if slices.Contains(nameServers(), name) {
		list = append(list, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(127, 0, 0, 1)})
	}
	if name != apex || apex == "" {
		return list
	}
	for _, ns := range nameServers() {
		list = append(list, &dns.NS{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 60}, Ns: ns})
	}
	return append(list, soa(name))
}

func soa(apex string) dns.RR {
	if apex == "" {
		apex = "."
	}
	return &dns.SOA{Hdr: dns.RR_Header{Name: apex, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 5}, Ns: nameServers()[0],
		Mbox: "hostmaster.simulated-dns.example.", Serial: 1, Refresh: 60, Retry: 60, Expire: 3600, Minttl: 5}
}

// apex is the nearest zone around a name, "" if there is none.
func (z *zones) apex(name string) string {
	best := ""
	consider := func(apex string) {
		if dns.IsSubDomain(apex, name) && len(apex) > len(best) {
			best = apex
		}
	}
	for _, d := range z.domains {
		consider(d.name + ".")
	}
	for _, a := range z.apexes {
		consider(a)
	}
	return best
}
