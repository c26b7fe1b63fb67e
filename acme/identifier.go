package acme

import (
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

// An IdentifierType is what an [Identifier] is (RFC 8555, Section 9.7.7).
type IdentifierType string

// TypeDNS is a domain name, with or without a wildcard.
const TypeDNS IdentifierType = "dns"

// An Identifier is a name that a certificate can be for, in the one spelling
// that [ParseIdentifier] gives it.
type Identifier struct {
	Type  IdentifierType `json:"type"`
	Value string         `json:"value"`
}

// Base returns the identifier that control must be proven of, and whether id is
// a wildcard.
func (id Identifier) Base() (Identifier, bool) {
	if base, ok := strings.CutPrefix(id.Value, "*."); ok && id.Type == TypeDNS {
		return Identifier{Type: id.Type, Value: base}, true
	}
	return id, false
}

// Name is the identifier with its type, for use in keys: "dns:*.example.com".
func (id Identifier) Name() string { return string(id.Type) + ":" + id.Value }

// ParseIdentifier checks an identifier as a client sent it and returns its
// normal form.
func ParseIdentifier(id Identifier) (Identifier, error) {
	switch id.Type {
	case TypeDNS:
		return parseDNS(id.Value)
	}
	return id, Problemf(UnsupportedIdentifier, "identifier type %q is not supported", truncate(string(id.Type), 32))
}

// ParseIdentifiers checks a whole list, refuses an empty one, merges duplicates,
// and keeps the order.
func ParseIdentifiers(ids []Identifier) ([]Identifier, error) {
	if len(ids) == 0 {
		return nil, Problemf(Malformed, "the order names no identifiers")
	}
	seen := make(map[Identifier]bool, len(ids))
	parsed := make([]Identifier, 0, len(ids))
	var subs []*Problem
	for _, raw := range ids {
		id, err := ParseIdentifier(raw)
		if err != nil {
			raw.Type, raw.Value = IdentifierType(truncate(string(raw.Type), 32)), truncate(raw.Value, 253)
			subs = append(subs, AsProblem(err).For(raw))
			continue
		}
		if !seen[id] {
			seen[id] = true
			parsed = append(parsed, id)
		}
	}
	if problem := Combine("some identifiers were refused", subs); problem != nil {
		return nil, problem
	}
	return parsed, nil
}

// strictIDNA decodes and re-encodes A-labels as IDNA 2008 registration demands.
var strictIDNA = idna.New(idna.ValidateForRegistration(), idna.VerifyDNSLength(true))

func parseDNS(value string) (Identifier, error) {
	bad := func(why string) (Identifier, error) {
		return Identifier{}, Problemf(Malformed, "DNS name %q: %s", truncate(value, 253), why)
	}
	name := lower(value)
	base, wildcard := strings.CutPrefix(name, "*.")
	switch {
	case base == "":
		return bad("empty")
	case len(name) > 253:
		return bad("longer than 253 octets")
	case strings.HasSuffix(base, "."):
		return bad("ends with a dot")
	case strings.Contains(base, "*"):
		return bad("a wildcard is only allowed as the whole leftmost label")
	}
	labels := strings.Split(base, ".")
	for _, label := range labels {
		if why := checkLabel(label); why != "" {
			return bad(why)
		}
	}
	// A name that ends in a number is an IPv4 address to some parser: decimal,
	// octal or hexadecimal.
	if last := labels[len(labels)-1]; isNumber(last) {
		return bad("ends in a number, and IP addresses are not DNS names")
	}
	if wildcard {
		if suffix, _ := publicsuffix.PublicSuffix(base); suffix == base {
			return Identifier{}, Problemf(RejectedIdentifier, "DNS name %q: a wildcard directly under a public suffix is not issued", name)
		}
	}
	return Identifier{Type: TypeDNS, Value: name}, nil
}

func checkLabel(label string) string {
	if label == "" {
		return "has an empty label"
	}
	if len(label) > 63 {
		return "has a label longer than 63 octets"
	}
	for _, c := range []byte(label) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return "only letters, digits and hyphens are allowed in a label; send A-labels for other scripts"
		}
	}
	if label[0] == '-' || label[len(label)-1] == '-' {
		return "a label begins or ends with a hyphen"
	}
	if len(label) >= 4 && label[2:4] == "--" {
		u, err := strictIDNA.ToUnicode(label)
		if err != nil || u == label {
			return "has a label that looks like an A-label and is none"
		}
		if a, err := strictIDNA.ToASCII(u); err != nil || a != label {
			return "has an A-label that does not round-trip"
		}
	}
	return ""
}

func isNumber(label string) bool {
	if rest, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(rest, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// truncate bounds what of a client's text is repeated to it.
func truncate(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

// lower folds ASCII only: Unicode has letters that fold into ASCII, such as the
// Kelvin sign, and a name that holds one is not the name without.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
