package validation

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// A Resolver looks up names, which have no trailing dot. CNAMEs are followed,
// and nothing is remembered between calls.
type Resolver interface {
	// Addresses returns what the AAAA and A records of name hold, at least one.
	Addresses(ctx context.Context, name string) ([]netip.Addr, error)
	// TXT returns the TXT records of name, each with its character-strings
	// joined (RFC 8555, Section 8.4). There may be none.
	TXT(ctx context.Context, name string) ([]string, error)
}

// A LookupError tells why a lookup failed. Reason is one of a few fixed phrases
// and holds nothing that was received; Err is for the log.
type LookupError struct {
	Reason string
	Err    error
}

func (e *LookupError) Error() string {
	if e.Err != nil {
		return e.Reason + ": " + e.Err.Error()
	}
	return e.Reason
}
func (e *LookupError) Unwrap() error { return e.Err }

const (
	resolvConf = "/etc/resolv.conf"

	queryTimeout = 2 * time.Second // for one question to one server
	queryRounds  = 2               // how often each server is asked: UDP loses packets
	maxAliases   = 10              // CNAMEs followed
	maxAddresses = 16              // of each family
	udpSize      = 1232            // what fits a packet everywhere (DNS flag day 2020)
)

// dnsResolver asks recursive servers in turn, each question from a socket of
// its own, so that port and ID both have to be guessed to forge an answer.
type dnsResolver struct {
	servers []string
	timeout time.Duration // queryTimeout
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
}

func newResolver(servers []string) (*dnsResolver, error) {
	if len(servers) == 0 {
		conf, err := dns.ClientConfigFromFile(resolvConf)
		if err != nil {
			return nil, fmt.Errorf("resolvers: none given, and the system's cannot be read: %w", err)
		}
		for _, s := range conf.Servers {
			servers = append(servers, net.JoinHostPort(s, conf.Port))
		}
		if len(servers) == 0 {
			return nil, fmt.Errorf("resolvers: none given, and %s names none", resolvConf)
		}
	}
	var errs []error
	for _, s := range servers {
		if host, port, err := net.SplitHostPort(s); err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("resolvers: %q is not host:port, such as 192.0.2.53:53", s))
		}
	}
	return &dnsResolver{servers: servers, timeout: queryTimeout, dial: new(net.Dialer).DialContext}, errors.Join(errs...)
}

// Addresses asks for AAAA and A at once and returns IPv6 first. When one of them has addresses the
// other gets a moment more, since there are servers that never answer AAAA.
func (r *dnsResolver) Addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		records []dns.RR
		err     error
	}
	answers := make(chan answer, 2)
	for _, qtype := range []uint16{dns.TypeAAAA, dns.TypeA} {
		go func() {
			records, err := r.lookup(ctx, name, qtype)
			answers <- answer{records, err}
		}()
	}
	first := <-answers
	if len(first.records) > 0 {
		defer time.AfterFunc(r.timeout, cancel).Stop()
	}
	var six, four []netip.Addr
	var failed error
	for _, a := range []answer{first, <-answers} {
		if a.err != nil {
			failed = a.err
		}
		for _, rr := range a.records {
			switch rr := rr.(type) {
			case *dns.AAAA:
				six = appendAddress(six, rr.AAAA)
			case *dns.A:
				four = appendAddress(four, rr.A.To4())
			}
		}
	}
	addrs := append(six, four...)
	switch {
	case len(addrs) > 0:
		return addrs, nil
	case failed != nil:
		return nil, failed
	}
	return nil, &LookupError{Reason: "the name has neither A nor AAAA records"}
}

func appendAddress(addrs []netip.Addr, ip net.IP) []netip.Addr {
	if addr, ok := netip.AddrFromSlice(ip); ok && len(addrs) < maxAddresses {
		return append(addrs, addr)
	}
	return addrs
}

// TXT implements [Resolver].
func (r *dnsResolver) TXT(ctx context.Context, name string) ([]string, error) {
	records, err := r.lookup(ctx, name, dns.TypeTXT)
	if err != nil {
		return nil, err
	}
	return joinTXT(records), nil
}

// joinTXT leaves octets that are no printable ASCII, quotes and backslashes in
// the escapes of the presentation format, none of which is in a digest.
func joinTXT(records []dns.RR) []string {
	values := make([]string, 0, len(records))
	for _, rr := range records {
		if txt, ok := rr.(*dns.TXT); ok {
			values = append(values, strings.Join(txt.Txt, ""))
		}
	}
	return values
}

// lookup returns the records of a type at the end of the chain of CNAMEs that
// begins at name. Recursive servers answer with the whole chain; where one ends
// at its zone the rest is asked for.
func (r *dnsResolver) lookup(ctx context.Context, name string, qtype uint16) ([]dns.RR, error) {
	at := dns.CanonicalName(name)
	if _, ok := dns.IsDomainName(at); !ok {
		return nil, &LookupError{Reason: "the name is too long to be looked up"}
	}
	for hops := 0; hops <= maxAliases; {
		msg, err := r.ask(ctx, at, qtype)
		if err != nil {
			return nil, err
		}
		records, end, n := recordsAt(msg.Answer, at, qtype, maxAliases-hops)
		if len(records) > 0 || n == 0 {
			return records, nil
		}
		at, hops = end, hops+n
	}
	return nil, &LookupError{Reason: "the name has too many aliases (CNAME), or they form a loop"}
}

// recordsAt returns the records of a type where the CNAMEs of an answer lead
// from name, that place, and how many CNAMEs they are.
func recordsAt(answer []dns.RR, name string, qtype uint16, limit int) (records []dns.RR, end string, n int) {
	end, n = followAliases(answer, name, limit)
	for _, rr := range answer {
		if h := rr.Header(); h.Rrtype == qtype && h.Class == dns.ClassINET && dns.CanonicalName(h.Name) == end {
			records = append(records, rr)
		}
	}
	return records, end, n
}

// followAliases returns where the CNAMEs of an answer lead from name, and how
// many they are. A loop counts more than limit.
func followAliases(answer []dns.RR, name string, limit int) (end string, n int) {
	aliases := map[string]string{}
	for _, rr := range answer {
		if c, ok := rr.(*dns.CNAME); ok && c.Hdr.Class == dns.ClassINET {
			aliases[dns.CanonicalName(c.Hdr.Name)] = dns.CanonicalName(c.Target)
		}
	}
	for n <= limit {
		next, ok := aliases[name]
		if !ok {
			break
		}
		name = next
		n++
	}
	return name, n
}

// ask puts one question to the servers in turn until one of them knows.
func (r *dnsResolver) ask(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	var failed *LookupError
	for range queryRounds {
		for _, server := range r.servers {
			msg, err := r.askServer(ctx, server, name, qtype)
			if err == nil {
				return msg, nil
			}
			if e, ok := errors.AsType[*LookupError](err); ok {
				failed = e
			} else {
				failed = &LookupError{Reason: "no DNS server answered", Err: err}
			}
			if errors.Is(err, errNoName) {
				return nil, failed
			}
			if ctx.Err() != nil {
				return nil, &LookupError{Reason: "the DNS servers did not answer in time", Err: ctx.Err()}
			}
		}
	}
	return nil, failed
}

var errNoName = errors.New("NXDOMAIN")

// askServer asks over UDP, over TCP if the answer is truncated, and without
// EDNS if the server does not know it.
func (r *dnsResolver) askServer(ctx context.Context, server, name string, qtype uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	query := new(dns.Msg).SetQuestion(name, qtype)
	query.SetEdns0(udpSize, false)
	msg, err := r.exchange(ctx, "udp", server, query)
	if err == nil && msg.Truncated {
		msg, err = r.exchange(ctx, "tcp", server, query)
	}
	if err == nil && (msg.Rcode == dns.RcodeFormatError || msg.Rcode == dns.RcodeNotImplemented) {
		query.Extra = nil
		query.Id = dns.Id()
		msg, err = r.exchange(ctx, "udp", server, query)
		if err == nil && msg.Truncated {
			msg, err = r.exchange(ctx, "tcp", server, query)
		}
	}
	switch {
	case err != nil:
		return nil, err
	case msg.Truncated:
		return nil, &LookupError{Reason: "the DNS answer is truncated"}
	case msg.Rcode == dns.RcodeNameError:
		return nil, &LookupError{Reason: "there is no such name", Err: errNoName}
	case msg.Rcode != dns.RcodeSuccess:
		rcode, ok := dns.RcodeToString[msg.Rcode]
		if !ok {
			rcode = "an unknown error"
		}
		return nil, &LookupError{Reason: "the DNS servers answer " + rcode}
	}
	return msg, nil
}

// exchange sends a query and reads its answer. Over UDP anything that is not
// the answer is passed over, so that a forged packet does not end the wait.
func (r *dnsResolver) exchange(ctx context.Context, network, server string, query *dns.Msg) (*dns.Msg, error) {
	packed, err := query.Pack()
	if err != nil {
		return nil, err
	}
	raw, err := r.dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	defer bind(ctx, raw)()

	conn := &dns.Conn{Conn: raw, UDPSize: udpSize}
	if _, err := conn.Write(packed); err != nil {
		return nil, err
	}
	for {
		wire, err := conn.ReadMsgHeader(nil)
		if _, isDNS := errors.AsType[*dns.Error](err); err != nil && !isDNS {
			return nil, err
		}
		msg := new(dns.Msg)
		if err == nil {
			err = msg.Unpack(wire)
		}
		// A truncated answer may end in the middle of a record.
		if isAnswer(msg, query) && (err == nil || msg.Truncated) {
			return msg, nil
		}
		if network != "udp" {
			return nil, &LookupError{Reason: "the DNS answer is malformed"}
		}
	}
}

// isAnswer compares what ties an answer to its query (RFC 5452, Section 9.1).
func isAnswer(msg, query *dns.Msg) bool {
	if !msg.Response || msg.Id != query.Id || len(msg.Question) != 1 {
		return false
	}
	got, want := msg.Question[0], query.Question[0]
	return got.Qtype == want.Qtype && got.Qclass == want.Qclass && dns.CanonicalName(got.Name) == want.Name
}

// bind lets reads and writes of a connection end when ctx does, until release
// is called.
func bind(ctx context.Context, conn net.Conn) (release func()) {
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}
