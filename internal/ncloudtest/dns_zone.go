package ncloudtest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// zones hold all that the DNS server serves: domains of Global DNS, and records
// published by hand.
type zones struct {
	now func() time.Time

	mu      sync.Mutex // taken after the simulator's, never before it
	nextID  int64
	domains []*gdDomain
	hand    map[string][]dns.RR // by name in small letters
	apexes  []string            // of zones made by hand
	count   DNSCounters
}

// DNSCounters tell what Global DNS and the DNS server have done.
type DNSCounters struct {
	Created          int64            `json:"created"` // records, by the API
	Deleted          int64            `json:"deleted"`
	Applies          int64            `json:"applies"`
	Rollbacks        int64            `json:"rollbacks"`
	AppliesByDomain  map[string]int64 `json:"applies_by_domain"`
	ForeignApplied   int64            `json:"foreign_applied"`   // foreign edits that somebody's apply took along
	ForeignDiscarded int64            `json:"foreign_discarded"` // by a rollback
	QueriesUDP       int64            `json:"queries_udp"`
	QueriesTCP       int64            `json:"queries_tcp"`
}

func newZones(now func() time.Time) *zones {
	return &zones{now: now, nextID: 26000, hand: map[string][]dns.RR{}, count: DNSCounters{AppliesByDomain: map[string]int64{}}}
}

func (z *zones) counters() DNSCounters {
	z.mu.Lock()
	defer z.mu.Unlock()
	c := z.count
	c.AppliesByDomain = maps.Clone(c.AppliesByDomain)
	return c
}

func (z *zones) id() int64 {
	z.nextID++
	return z.nextID
}

// A gdDomain is a domain of Global DNS.
type gdDomain struct {
	id                int64
	name, comments    string
	created, modified time.Time
	working           []gdRecord // as the console shows it
	applied           []gdRecord // as of the last apply
	served            []gdRecord // by the name servers
	serveAt           time.Time  // when applied becomes served; zero: it is
	dirty             bool       // working differs from applied
	foreign           int64      // foreign edits in working that are not applied
}

// A gdRecord is a row of a domain.
type gdRecord struct {
	id                   int64
	host, kind, content  string
	ttl                  uint32
	deleted              bool // goes at the next apply
	createdAt, changedAt time.Time
}

func (z *zones) domain(id int64) *gdDomain {
	for _, d := range z.domains {
		if d.id == id {
			return d
		}
	}
	return nil
}

func (z *zones) domainNamed(name string) *gdDomain {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for _, d := range z.domains {
		if d.name == name {
			return d
		}
	}
	return nil
}

// addDomain makes a domain, which is served at once.
func (z *zones) addDomain(name, comments string) (*gdDomain, error) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return nil, fmt.Errorf("name: %q is no domain", name)
	}
	if z.domainNamed(name) != nil {
		return nil, fmt.Errorf("name: there is a domain %q already", name)
	}
	d := &gdDomain{id: z.id(), name: name, comments: comments, created: z.now(), modified: z.now()}
	z.domains = append(z.domains, d)
	return d, nil
}

// fqdn is the record's whole name, with a dot at its end.
func (d *gdDomain) fqdn(host string) string {
	if host == "@" || host == "" {
		return d.name + "."
	}
	return strings.ToLower(host) + "." + d.name + "."
}

// apply makes everything that waits the domain's content.
func (z *zones) apply(d *gdDomain, delay time.Duration) {
	z.settle(d)
	d.working = slices.DeleteFunc(d.working, func(r gdRecord) bool { return r.deleted })
	d.applied, d.dirty, d.modified, d.serveAt = slices.Clone(d.working), false, z.now(), z.now().Add(delay)
	z.count.ForeignApplied += d.foreign
	d.foreign = 0
	z.settle(d)
}

// rollback throws away everything that waits.
func (z *zones) rollback(d *gdDomain) {
	d.working, d.dirty = slices.Clone(d.applied), false
	z.count.ForeignDiscarded += d.foreign
	d.foreign = 0
}

// settle serves what was applied long enough ago.
func (z *zones) settle(d *gdDomain) {
	if !d.serveAt.IsZero() && !z.now().Before(d.serveAt) {
		d.served, d.serveAt = d.applied, time.Time{}
	}
}

// add puts a record into the working copy; what is wrong with it is the error.
func (z *zones) add(d *gdDomain, r gdRecord) error {
	if _, err := d.rr(r); err != nil {
		return err
	}
	for _, o := range d.working {
		if o.id == r.id || o.deleted || d.fqdn(o.host) != d.fqdn(r.host) {
			continue
		}
		if o.kind == "CNAME" || r.kind == "CNAME" {
			return fmt.Errorf("CNAME_CONFLICT: %s has a %s record", o.host, o.kind)
		}
		if o.kind == r.kind && o.content == r.content {
			return fmt.Errorf("DUPLICATED_RECORD: %s", o.host)
		}
	}
	i := slices.IndexFunc(d.working, func(o gdRecord) bool { return r.id != 0 && o.id == r.id })
	switch {
	case r.id != 0 && i < 0:
		return fmt.Errorf("RECORD_NOT_FOUND: %d", r.id)
	case r.id != 0:
		r.createdAt = d.working[i].createdAt
		d.working[i] = r
	default:
		r.id = z.id()
		d.working = append(d.working, r)
	}
	d.dirty = true
	return nil
}

// remove marks a record, or drops it if it was never applied.
func (z *zones) remove(d *gdDomain, id int64) bool {
	i := slices.IndexFunc(d.working, func(r gdRecord) bool { return r.id == id && !r.deleted })
	if i < 0 {
		return false
	}
	if slices.ContainsFunc(d.applied, func(r gdRecord) bool { return r.id == id }) {
		d.working[i].deleted, d.dirty = true, true
		return true
	}
	d.working = slices.Delete(d.working, i, i+1)
	d.dirty = !slices.Equal(d.working, d.applied)
	return true
}

var gdTypes = []string{"A", "AAAA", "CNAME", "MX", "PTR", "SPF", "TXT", "NS", "SRV", "CAA", "DS"}

// rr is the record as DNS has it.
func (d *gdDomain) rr(r gdRecord) (dns.RR, error) {
	if !slices.Contains(gdTypes, r.kind) {
		return nil, fmt.Errorf("INVALID_TYPE: %s", r.kind)
	}
	return newRR(d.fqdn(r.host), r.kind, r.content, r.ttl)
}

// newRR makes a record; a TXT's value is cut into strings of 255 octets.
func newRR(fqdn, kind, content string, ttl uint32) (dns.RR, error) {
	if _, ok := dns.IsDomainName(fqdn); !ok || strings.ContainsAny(fqdn, " \"") {
		return nil, fmt.Errorf("INVALID_HOST: %q", fqdn)
	}
	if kind == "TXT" {
		if content == "" {
			return nil, fmt.Errorf("INVALID_CONTENT: empty")
		}
		t := &dns.TXT{Hdr: dns.RR_Header{Name: fqdn, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: ttl}}
		for chunk := range slices.Chunk([]byte(content), 255) {
			t.Txt = append(t.Txt, strings.ReplaceAll(string(chunk), `\`, `\\`))
		}
		return t, nil
	}
	if kind == "CNAME" || kind == "NS" || kind == "PTR" || kind == "MX" {
		content = dns.Fqdn(content)
	}
	rr, err := dns.NewRR(fmt.Sprintf("%s %d IN %s %s", fqdn, ttl, kind, content))
	if err != nil || rr == nil {
		return nil, fmt.Errorf("INVALID_CONTENT: %s %q", kind, content)
	}
	return rr, nil
}

// Publish serves a record at once, as if somebody had edited a zone elsewhere.
func (s *Simulator) Publish(name, kind, value string) error {
	rr, err := newRR(strings.ToLower(dns.Fqdn(name)), strings.ToUpper(kind), value, 60)
	if err != nil {
		return err
	}
	z := s.zones
	z.mu.Lock()
	defer z.mu.Unlock()
	z.hand[rr.Header().Name] = append(z.hand[rr.Header().Name], rr)
	return nil
}

// Unpublish takes back what [Simulator.Publish] serves under the name: of the
// kind ("": any) and with the value ("": any). It returns how many there were.
func (s *Simulator) Unpublish(name, kind, value string) int {
	name = strings.ToLower(dns.Fqdn(name))
	z := s.zones
	z.mu.Lock()
	defer z.mu.Unlock()
	before := len(z.hand[name])
	z.hand[name] = slices.DeleteFunc(z.hand[name], func(rr dns.RR) bool {
		if kind != "" && dns.TypeToString[rr.Header().Rrtype] != strings.ToUpper(kind) {
			return false
		}
		want, err := newRR(name, dns.TypeToString[rr.Header().Rrtype], value, 60)
		return value == "" || err == nil && dns.IsDuplicate(rr, want)
	})
	n := before - len(z.hand[name])
	if len(z.hand[name]) == 0 {
		delete(z.hand, name)
	}
	return n
}

// AddZone makes a zone for records published by hand: it has SOA and NS.
func (s *Simulator) AddZone(name string) {
	s.zones.mu.Lock()
	defer s.zones.mu.Unlock()
	s.zones.apexes = append(s.zones.apexes, strings.ToLower(dns.Fqdn(name)))
}

// AddDNSDomain makes an empty domain in Global DNS and returns its id.
func (s *Simulator) AddDNSDomain(name string) (int64, error) {
	s.zones.mu.Lock()
	defer s.zones.mu.Unlock()
	d, err := s.zones.addDomain(name, "")
	if err != nil {
		return 0, err
	}
	return d.id, nil
}

// A ForeignEdit is a change that somebody else makes in the console of Global
// DNS and does not apply.
type ForeignEdit struct {
	Domain  string `json:"domain"`
	Delete  bool   `json:"delete"` // the record; else it is created
	Host    string `json:"host"`
	Type    string `json:"type"`
	Content string `json:"content"`
}

// EditElsewhere makes a foreign edit, which waits for an apply or rollback by
// anyone; with apply it is applied, with all that waits.
func (s *Simulator) EditElsewhere(e ForeignEdit, apply bool) error {
	z := s.zones
	z.mu.Lock()
	defer z.mu.Unlock()
	d := z.domainNamed(e.Domain)
	if d == nil {
		return fmt.Errorf("domain: Global DNS has no %q", e.Domain)
	}
	if e.Delete {
		i := slices.IndexFunc(d.working, func(r gdRecord) bool {
			return r.host == e.Host && r.kind == e.Type && (e.Content == "" || r.content == e.Content)
		})
		if i < 0 || !z.remove(d, d.working[i].id) {
			return fmt.Errorf("host: there is no such record")
		}
	} else if err := z.add(d, gdRecord{host: e.Host, kind: e.Type, content: e.Content, ttl: 300, createdAt: z.now(), changedAt: z.now()}); err != nil {
		return err
	}
	if apply {
		z.apply(d, 0)
		return nil
	}
	d.foreign++
	return nil
}

// A DNSRecord is a row of a domain in Global DNS.
type DNSRecord struct {
	ID      int64  `json:"id"`
	Host    string `json:"host"`
	Type    string `json:"type"`
	Content string `json:"content"`
	Deleted bool   `json:"deleted"` // at the next apply
	Applied bool   `json:"applied"`
	Served  bool   `json:"served"`
}

// DNSRecords are the rows of a domain in Global DNS, nil if there is no such domain.
func (s *Simulator) DNSRecords(domain string) []DNSRecord {
	z := s.zones
	z.mu.Lock()
	defer z.mu.Unlock()
	d := z.domainNamed(domain)
	if d == nil {
		return nil
	}
	z.settle(d)
	in := func(list []gdRecord, r gdRecord) bool {
		return slices.ContainsFunc(list, func(o gdRecord) bool { return o.id == r.id && o.content == r.content && o.host == r.host })
	}
	list := []DNSRecord{}
	for _, r := range d.working {
		list = append(list, DNSRecord{r.id, r.host, r.kind, r.content, r.deleted, in(d.applied, r), in(d.served, r)})
	}
	return list
}
