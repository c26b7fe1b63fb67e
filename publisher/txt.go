package publisher

import (
	"strings"
	"time"

	"github.com/miekg/dns"
)

// maxString is the length of one character-string (RFC 1035, Section 3.3).
const maxString = 255

// NewTXT makes a TXT record; a long value becomes several character-strings.
func NewTXT(fqdn, value string, ttl time.Duration) *dns.TXT {
	rr := &dns.TXT{Hdr: dns.RR_Header{Name: dns.CanonicalName(fqdn), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: uint32(ttl / time.Second)}}
	for first := true; first || value != ""; first = false {
		n := min(len(value), maxString)
		// The library reads a backslash as the beginning of an escape.
		rr.Txt = append(rr.Txt, strings.ReplaceAll(value[:n], `\`, `\\`))
		value = value[n:]
	}
	return rr
}

// TXTValue is a TXT record's value: its character-strings joined, without the
// escapes of the presentation format.
func TXTValue(rr *dns.TXT) string {
	var b strings.Builder
	for _, s := range rr.Txt {
		for i := 0; i < len(s); i++ {
			switch {
			case s[i] != '\\' || i+1 == len(s):
				b.WriteByte(s[i])
			case i+3 < len(s) && digits(s[i+1:i+4]):
				b.WriteByte((s[i+1]-'0')*100 + (s[i+2]-'0')*10 + s[i+3] - '0')
				i += 3
			default:
				i++
				b.WriteByte(s[i])
			}
		}
	}
	return b.String()
}

func digits(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' }) < 0
}

// At returns the values of the TXT records that an answer has at a name, and
// the target of a CNAME there, "" if there is none.
func At(answer []dns.RR, fqdn string) (values []string, alias string) {
	for _, rr := range answer {
		if rr.Header().Class != dns.ClassINET || dns.CanonicalName(rr.Header().Name) != dns.CanonicalName(fqdn) {
			continue
		}
		switch rr := rr.(type) {
		case *dns.TXT:
			values = append(values, TXTValue(rr))
		case *dns.CNAME:
			alias = dns.CanonicalName(rr.Target)
		}
	}
	return values, alias
}

// Parents lists a name and the names above it, longest first and without the
// root, all canonical: "a.example.com.", "example.com.", "com.". A wildcard
// label in front is left out.
func Parents(name string) []string {
	name = dns.CanonicalName(strings.TrimPrefix(name, "*."))
	var names []string
	for _, i := range dns.Split(name) {
		names = append(names, name[i:])
	}
	return names
}
