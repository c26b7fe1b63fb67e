package rfc2136

import (
	"bytes"
	"encoding/base64"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/publisher"
)

const keyName = "bridge-key."

var secret = base64.StdEncoding.EncodeToString([]byte("a secret of thirty-two bytes ..."))

// A primary is a server for zones that takes updates signed with the key.
type primary struct {
	addr string

	mu      sync.Mutex
	zones   []string
	records []dns.RR
	updates []string // network of each update that arrived
	answer  func(w dns.ResponseWriter, m, reply *dns.Msg) bool
}

func newPrimary(t *testing.T, zones []string, records ...string) *primary {
	t.Helper()
	s := &primary{zones: zones}
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		s.records = append(s.records, rr)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s.addr = tcp.Addr().String()
	for _, server := range []*dns.Server{
		{PacketConn: udp, Handler: s, TsigSecret: map[string]string{keyName: secret}, MsgAcceptFunc: acceptUpdates},
		{Listener: tcp, Handler: s, TsigSecret: map[string]string{keyName: secret}, MsgAcceptFunc: acceptUpdates},
	} {
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

// acceptUpdates lets UPDATE pass, which the library refuses by default.
func acceptUpdates(h dns.Header) dns.MsgAcceptAction {
	if int(h.Bits>>11)&0xf == dns.OpcodeUpdate {
		return dns.MsgAccept
	}
	return dns.DefaultMsgAcceptFunc(h)
}

// answerWith puts f before the usual answer, which is given if f returns false.
func (s *primary) answerWith(f func(w dns.ResponseWriter, m, reply *dns.Msg) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

func (s *primary) texts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, rr := range s.records {
		list = append(list, strings.Join(strings.Fields(rr.String()), " "))
	}
	return list
}

func (s *primary) updated() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.updates)
}

func (s *primary) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := new(dns.Msg).SetReply(m)
	t := m.IsTsig()
	if m.Opcode == dns.OpcodeUpdate {
		s.updates = append(s.updates, w.LocalAddr().Network())
	}
	switch {
	case s.answer != nil && s.answer(w, m, reply):
		return
	case t != nil && w.TsigStatus() != nil:
		reply.Rcode = dns.RcodeNotAuth
		refused := &dns.TSIG{Hdr: dns.RR_Header{Name: t.Hdr.Name, Rrtype: dns.TypeTSIG, Class: dns.ClassANY}, Algorithm: t.Algorithm,
			TimeSigned: t.TimeSigned, Fudge: t.Fudge, OrigId: m.Id, Error: dns.RcodeBadSig}
		switch w.TsigStatus() {
		case dns.ErrSecret:
			refused.Error = dns.RcodeBadKey
		case dns.ErrTime:
			refused.Error = dns.RcodeBadTime
		}
		reply.Extra = append(reply.Extra, refused)
		if wire, err := reply.Pack(); err == nil {
			w.Write(wire) // as it is, without a signature
		}
		return
	case m.Opcode == dns.OpcodeUpdate && t == nil:
		reply.Rcode = dns.RcodeRefused
	case m.Opcode == dns.OpcodeUpdate:
		reply.Rcode = s.update(m)
	default:
		s.query(m.Question[0], reply)
	}
	if t != nil {
		reply.SetTsig(t.Hdr.Name, t.Algorithm, 300, int64(t.TimeSigned))
	}
	w.WriteMsg(reply)
}

func (s *primary) query(q dns.Question, reply *dns.Msg) {
	name := dns.CanonicalName(q.Name)
	if !slices.ContainsFunc(s.zones, func(zone string) bool { return dns.IsSubDomain(zone, name) }) {
		reply.Rcode = dns.RcodeRefused
		return
	}
	for _, rr := range s.records { // a zone cut
		if rr.Header().Rrtype == dns.TypeNS && dns.IsSubDomain(rr.Header().Name, name) && !slices.Contains(s.zones, rr.Header().Name) {
			reply.Ns = append(reply.Ns, rr)
			return
		}
	}
	reply.Authoritative = true
	for _, rr := range s.records {
		if h := rr.Header(); h.Name == name && (h.Rrtype == q.Qtype || h.Rrtype == dns.TypeCNAME) {
			reply.Answer = append(reply.Answer, rr)
		}
	}
}

// update does what RFC 2136, Section 3, says as far as the publisher needs it.
func (s *primary) update(m *dns.Msg) int {
	if !slices.Contains(s.zones, m.Question[0].Name) {
		return dns.RcodeNotAuth
	}
	for _, p := range m.Answer {
		used := slices.ContainsFunc(s.records, func(rr dns.RR) bool {
			return rr.Header().Name == p.Header().Name && (p.Header().Rrtype == dns.TypeANY || p.Header().Rrtype == rr.Header().Rrtype)
		})
		switch {
		case used && p.Header().Rrtype == dns.TypeANY:
			return dns.RcodeYXDomain
		case used:
			return dns.RcodeYXRrset
		}
	}
	for _, rr := range m.Ns {
		same := func(old dns.RR) bool {
			a, b := dns.Copy(old), dns.Copy(rr)
			a.Header().Class, a.Header().Ttl, b.Header().Class, b.Header().Ttl = 1, 0, 1, 0
			return a.String() == b.String()
		}
		s.records = slices.DeleteFunc(s.records, same)
		if rr.Header().Class == dns.ClassINET {
			s.records = append(s.records, rr)
		}
	}
	return dns.RcodeSuccess
}

type rig struct {
	*Publisher
	log *bytes.Buffer
	reg *prometheus.Registry
}

// newRig makes a publisher for a server, confirmed by that server itself.
func newRig(t *testing.T, server string, set func(*Config)) rig {
	t.Helper()
	r := rig{log: new(bytes.Buffer), reg: prometheus.NewRegistry()}
	confirmer, err := publisher.NewConfirmer(publisher.ConfirmerConfig{Servers: []string{server}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Name: "bind", Server: server, TSIGName: "bridge-key", TSIGSecret: secret, Confirmer: confirmer,
		Log: slog.New(slog.NewTextHandler(r.log, nil)), Metrics: r.reg}
	if set != nil {
		set(&cfg)
	}
	if r.Publisher, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if strings.Contains(r.log.String(), secret) {
			t.Error("the log holds the secret")
		}
	})
	return r
}

func counter(t *testing.T, r rig, operation, result string) prometheus.Collector {
	t.Helper()
	c, err := publisher.Register(r.reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "acme_bridge_publisher_operations_total",
		Help: "Calls of a publisher by operation (covers, publish, remove) and result: done, waiting (not served yet), blocked (somebody must act), aborted, failed.",
	}, []string{"publisher", "operation", "result"}))
	if err != nil {
		t.Fatal(err)
	}
	return c.WithLabelValues("bind", operation, result)
}
