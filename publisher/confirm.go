package publisher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

const (
	resolvConf = "/etc/resolv.conf"

	maxServers   = 16 // name servers of a zone
	maxAddresses = 4  // of each of them
	parallel     = 8  // questions at one time
	// serversAge is how long a zone's name servers are remembered: longer than
	// a record takes to appear, shorter than anybody's patience after moving a zone.
	serversAge   = 5 * time.Minute
	serversKnown = 1000
	recordsTold  = 1000
)

// A ConfirmerConfig says whom a Confirmer asks. The zero value asks the
// system's resolvers for the name servers of each zone.
type ConfirmerConfig struct {
	// Resolvers are recursive servers, host:port; empty: the system's.
	Resolvers []string
	// Servers are asked in place of the name servers that the zone names,
	// host:port: for zones whose NS records cannot be reached from here.
	Servers []string
	Timeout time.Duration                                                        // of one exchange; 0: DefaultTimeout
	Dial    func(ctx context.Context, network, address string) (net.Conn, error) // nil: net.Dialer
	Now     func() time.Time                                                     // nil: time.Now
	Log     *slog.Logger                                                         // nil: discarded
}

// A Confirmer asks the authoritative servers of a zone for a record. It is safe
// for concurrent use.
type Confirmer struct {
	cfg   ConfirmerConfig
	query *Querier
	known *lru.Cache[string, nameServers] // by zone
	told  *lru.Cache[[2]string, string]   // what the log says is missing, by record
}

type nameServers struct {
	list  []nameServer
	until time.Time
}

// A nameServer has one or more addresses, host:port.
type nameServer struct {
	name      string
	addresses []string
}

// NewConfirmer checks the configuration; nothing is asked yet.
func NewConfirmer(cfg ConfirmerConfig) (*Confirmer, error) {
	if len(cfg.Resolvers) == 0 {
		conf, err := dns.ClientConfigFromFile(resolvConf)
		switch {
		case err == nil:
			for _, s := range conf.Servers {
				cfg.Resolvers = append(cfg.Resolvers, net.JoinHostPort(s, conf.Port))
			}
		case len(cfg.Servers) == 0:
			return nil, fmt.Errorf("resolvers: none given, and the system's cannot be read: %w", err)
		}
		if len(cfg.Resolvers) == 0 && len(cfg.Servers) == 0 {
			return nil, fmt.Errorf("resolvers: none given, and %s names none", resolvConf)
		}
	}
	var errs []error
	for key, list := range map[string][]string{"resolvers": cfg.Resolvers, "servers": cfg.Servers} {
		for _, s := range list {
			if err := CheckAddress(s); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", key, err))
			}
		}
	}
	if len(cfg.Servers) > maxServers {
		errs = append(errs, fmt.Errorf("servers: %d are more than %d", len(cfg.Servers), maxServers))
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	known, err := lru.New[string, nameServers](serversKnown)
	told, err1 := lru.New[[2]string, string](recordsTold)
	if err := errors.Join(append(errs, err, err1)...); err != nil {
		return nil, err
	}
	return &Confirmer{cfg: cfg, known: known, told: told, query: &Querier{Timeout: cfg.Timeout, Dial: cfg.Dial}}, nil
}

// CheckAddress says what is wrong with a host:port.
func CheckAddress(s string) error {
	if host, port, err := net.SplitHostPort(s); err != nil || host == "" || port == "" {
		return fmt.Errorf("%q is not host:port, such as 192.0.2.53:53", s)
	}
	return nil
}

// Served reports whether Missing finds nothing missing. It logs what is, when
// that changes: it is asked again and again.
func (c *Confirmer) Served(ctx context.Context, zone, fqdn, value string) (bool, error) {
	missing, err := c.Missing(ctx, zone, fqdn, value)
	if err != nil {
		return false, err
	}
	id, now := [2]string{dns.CanonicalName(fqdn), value}, strings.Join(missing, "; ")
	if before, known := c.told.Get(id); !known || before != now {
		c.told.Add(id, now)
		if len(missing) > 0 {
			c.cfg.Log.InfoContext(ctx, "record is not served by all name servers", "zone", zone, "record", fqdn, "missing", missing)
		} else {
			c.cfg.Log.InfoContext(ctx, "record is served by all name servers", "zone", zone, "record", fqdn)
		}
	}
	return len(missing) == 0, nil
}

// Missing lists the authoritative servers of the zone that do not serve a TXT
// record with that value at fqdn, each with its reason; none, if all serve it.
// An error means that the servers of the zone could not be found.
//
// A server with several addresses must serve it at each of them that answers,
// and at one at least: from here the others may be out of reach.
func (c *Confirmer) Missing(ctx context.Context, zone, fqdn, value string) ([]string, error) {
	servers, err := c.servers(ctx, dns.CanonicalName(zone))
	if err != nil {
		return nil, err
	}
	var missing []string
	reasons := make([]string, len(servers))
	var g errgroup.Group
	g.SetLimit(parallel)
	for n, s := range servers {
		g.Go(func() error {
			reasons[n] = c.lacks(ctx, s, fqdn, value)
			return nil
		})
	}
	_ = g.Wait() // only to wait: the functions return nil
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("ask the name servers of %s: %w", zone, err)
	}
	for n, reason := range reasons {
		if reason != "" {
			missing = append(missing, servers[n].name+": "+reason)
		}
	}
	return missing, nil
}

// lacks asks one server and says why it does not serve the record, "" if it does.
func (c *Confirmer) lacks(ctx context.Context, s nameServer, fqdn, value string) string {
	var silent error
	serves := false
	for _, addr := range s.addresses {
		msg, err := c.query.Query(ctx, addr, fqdn, dns.TypeTXT, false)
		if err != nil {
			silent = err
			continue
		}
		values, alias := At(msg.Answer, fqdn)
		switch {
		case slices.Contains(values, value):
			serves = true
		case msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError:
			return "answers " + rcode(msg.Rcode)
		case alias != "":
			return "has a CNAME to " + alias + " there"
		case len(values) > 0:
			return "has other TXT records there only"
		default:
			return "has no TXT record there"
		}
	}
	if !serves {
		return fmt.Sprint("does not answer: ", silent)
	}
	return ""
}

func rcode(code int) string {
	if s, ok := dns.RcodeToString[code]; ok {
		return s
	}
	return fmt.Sprint("code ", code)
}

// Zone finds the zone of a name: the longest name above it, or itself, that has
// NS records in the view of the resolvers. The answer is canonical.
func (c *Confirmer) Zone(ctx context.Context, name string) (string, error) {
	for _, zone := range Parents(name) {
		msg, err := c.resolve(ctx, zone, dns.TypeNS)
		if err != nil {
			return "", fmt.Errorf("find the zone of %s: %w", name, err)
		}
		if len(targets(msg, zone)) > 0 {
			return zone, nil
		}
	}
	return "", fmt.Errorf("find the zone of %s: no name above it has name servers", name)
}

// servers are the name servers of a zone.
func (c *Confirmer) servers(ctx context.Context, zone string) ([]nameServer, error) {
	if len(c.cfg.Servers) > 0 {
		var list []nameServer
		for _, s := range c.cfg.Servers {
			list = append(list, nameServer{name: s, addresses: []string{s}})
		}
		return list, nil
	}
	if s, ok := c.known.Get(zone); ok && c.cfg.Now().Before(s.until) {
		return s.list, nil
	}
	msg, err := c.resolve(ctx, zone, dns.TypeNS)
	if err != nil {
		return nil, fmt.Errorf("find the name servers of %s: %w", zone, err)
	}
	names := targets(msg, zone)
	if len(names) == 0 {
		return nil, fmt.Errorf("find the name servers of %s: the resolvers know none: is the zone delegated?", zone)
	}
	if len(names) > maxServers {
		c.cfg.Log.WarnContext(ctx, "zone has too many name servers, some are not asked", "zone", zone, "servers", len(names))
		names = names[:maxServers]
	}
	list := make([]nameServer, len(names))
	var g errgroup.Group
	g.SetLimit(parallel)
	for n, name := range names {
		g.Go(func() (err error) {
			list[n], err = c.addresses(ctx, name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("find the name servers of %s: %w", zone, err)
	}
	c.known.Add(zone, nameServers{list, c.cfg.Now().Add(serversAge)})
	return list, nil
}

// targets are the names in a zone's NS records.
func targets(msg *dns.Msg, zone string) []string {
	var names []string
	for _, rr := range msg.Answer {
		if ns, ok := rr.(*dns.NS); ok && dns.CanonicalName(ns.Hdr.Name) == zone {
			names = append(names, dns.CanonicalName(ns.Ns))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// addresses resolves a name server. That it has no address of one family is
// common, and that a resolver fails for one of them is too.
func (c *Confirmer) addresses(ctx context.Context, name string) (nameServer, error) {
	s := nameServer{name: strings.TrimSuffix(name, ".")}
	var failed error
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		msg, err := c.resolve(ctx, name, qtype)
		if err != nil {
			failed = err
			continue
		}
		n := 0
		for _, rr := range msg.Answer {
			var ip net.IP
			switch rr := rr.(type) {
			case *dns.A:
				ip = rr.A
			case *dns.AAAA:
				ip = rr.AAAA
			}
			if ip != nil && n < maxAddresses {
				s.addresses = append(s.addresses, net.JoinHostPort(ip.String(), "53"))
				n++
			}
		}
	}
	switch {
	case len(s.addresses) > 0:
		return s, nil
	case failed != nil:
		return s, failed
	}
	return s, fmt.Errorf("name server %s has no address", s.name)
}

// resolve asks the resolvers in turn until one knows; that there is no such
// name is knowledge.
func (c *Confirmer) resolve(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	err := errors.New("no resolvers")
	for _, server := range c.cfg.Resolvers {
		msg, failed := c.query.Query(ctx, server, name, qtype, true)
		switch {
		case failed != nil:
			err = failed
		case msg.Rcode == dns.RcodeSuccess || msg.Rcode == dns.RcodeNameError:
			return msg, nil
		default:
			err = fmt.Errorf("resolver %s answers %s for %s %s", server, rcode(msg.Rcode), name, dns.TypeToString[qtype])
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return nil, err
}
