package acme

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestSection7_1_4_ParseDNSIdentifier(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	name253 := strings.Join([]string{label63, label63, label63, strings.Repeat("b", 61)}, ".")
	for _, tt := range []struct {
		name, value string
		want        string // the normal form, or part of the detail
		problem     ProblemType
	}{
		{"a plain name", "www.a.example", "www.a.example", ""},
		{"a single label", "printer", "printer", ""},
		{"digits and hyphens", "4-2.9a.ex-ample", "4-2.9a.ex-ample", ""},
		{"upper case", "WwW.A.EXAMPLE", "www.a.example", ""},
		{"a wildcard", "*.a.example", "*.a.example", ""},
		{"an upper-case wildcard", "*.A.example", "*.a.example", ""},
		{"a label of 63 octets", label63 + ".example", label63 + ".example", ""},
		{"a name of 253 octets", name253, name253, ""},
		{"an A-label", "xn--bcher-kva.example", "xn--bcher-kva.example", ""},
		{"an A-label in upper case", "XN--BCHER-KVA.example", "xn--bcher-kva.example", ""},
		{"an A-label that only IDNA 2008 has", "xn--fa-hia.example", "xn--fa-hia.example", ""},
		{"a Hangul A-label", "xn--9n2bp8q.example", "xn--9n2bp8q.example", ""},
		{"a wildcard below an A-label", "*.xn--bcher-kva.example", "*.xn--bcher-kva.example", ""},
		{"an A-label as the top level", "a.xn--3e0b707e", "a.xn--3e0b707e", ""},
		{"a label that ends in digits", "a.example2", "a.example2", ""},
		{"a wildcard two below a public suffix", "*.a.co.uk", "*.a.co.uk", ""},

		{"nothing", "", "empty", Malformed},
		{"a dot", ".", "ends with a dot", Malformed},
		{"a trailing dot", "a.example.", "ends with a dot", Malformed},
		{"a leading dot", ".a.example", "empty label", Malformed},
		{"two dots", "a..example", "empty label", Malformed},
		{"a label of 64 octets", "a" + label63 + ".example", "longer than 63", Malformed},
		{"a name of 254 octets", name253 + "b", "longer than 253", Malformed},
		{"a wildcard that makes 255 octets", "*." + name253, "longer than 253", Malformed},
		{"an underscore", "_acme-challenge.a.example", "only letters, digits and hyphens", Malformed},
		{"a leading hyphen", "-a.example", "hyphen", Malformed},
		{"a trailing hyphen", "a-.example", "hyphen", Malformed},
		{"a space", "a .example", "only letters", Malformed},
		{"white space around", " a.example", "only letters", Malformed},
		{"a NUL", "a.example\x00", "only letters", Malformed},
		{"a NUL inside", "a\x00.example", "only letters", Malformed},
		{"a line break", "a.example\n", "only letters", Malformed},
		{"a port", "a.example:443", "only letters", Malformed},
		{"a path", "a.example/x", "only letters", Malformed},
		{"a URL", "https://a.example", "only letters", Malformed},
		{"a user", "root@a.example", "only letters", Malformed},
		{"percent encoding", "a%2eexample", "only letters", Malformed},
		{"several names", "a.example,b.example", "only letters", Malformed},

		{"a U-label", "bücher.example", "send A-labels", Malformed},
		{"a full-width dot", "a。example", "send A-labels", Malformed},
		{"full-width letters", "ａ.example", "send A-labels", Malformed},
		{"a soft hyphen", "a\u00adb.example", "send A-labels", Malformed},
		{"bytes that are no UTF-8", "\xff\xfe.example", "only letters", Malformed},
		{"an A-label of nothing", "xn--.example", "hyphen", Malformed},
		{"an A-label that does not decode", "xn--a.example", "A-label", Malformed},
		{"an A-label that decodes to ASCII", "xn--a-0.example", "A-label", Malformed},
		{"an A-label of bad punycode", "xn--99999999.example", "A-label", Malformed},
		{"an A-label of ASCII", "xn--abc-.example", "hyphen", Malformed},
		{"an A-label that decodes to upper case", "xn--bcher-2pa.example", "A-label", Malformed},
		{"an A-label of a ligature", "xn--tda3219j.example", "A-label", Malformed},
		{"an A-label of full-width letters", "xn--cher-zra77610b.example", "A-label", Malformed},
		{"an A-label with a zero-width joiner", "xn--ab-m1t.example", "A-label", Malformed},
		{"an A-label with a soft hyphen", "xn--ab-5da.example", "A-label", Malformed},
		{"an A-label that begins with a combining mark", "xn--a-wbb.example", "A-label", Malformed},
		{"an A-label of both directions", "xn--a-zhc.example", "A-label", Malformed},
		{"an A-label that is not in normal form", "xn--u-ccb.example", "A-label", Malformed},
		{"another label with hyphens at 3 and 4", "ab--cd.example", "A-label", Malformed},

		{"an IPv4 address", "192.0.2.1", "ends in a number", Malformed},
		{"an IPv4 address with a trailing dot", "192.0.2.1.", "ends with a dot", Malformed},
		{"an IPv4 address of two parts", "127.1", "ends in a number", Malformed},
		{"a decimal IPv4 address", "2130706433", "ends in a number", Malformed},
		{"an octal IPv4 address", "0177.0.0.01", "ends in a number", Malformed},
		{"a hexadecimal IPv4 address", "0x7f.0x0.0x0.0x1", "ends in a number", Malformed},
		{"a hexadecimal IPv4 address in one", "0x7F000001", "ends in a number", Malformed},
		{"an empty hexadecimal number", "127.0.0.0x", "ends in a number", Malformed},
		{"a wildcard of an address", "*.0.0.1", "ends in a number", Malformed},
		{"a numeric top level", "a.123", "ends in a number", Malformed},
		{"an IPv6 address", "2001:db8::1", "only letters", Malformed},
		{"an IPv6 address in brackets", "[2001:db8::1]", "only letters", Malformed},
		{"full-width digits", "１２７.0.0.１", "only letters", Malformed},

		{"a star", "*", "leftmost label", Malformed},
		{"a star and a dot", "*.", "empty", Malformed},
		{"a star inside", "a.*.example", "leftmost label", Malformed},
		{"two stars", "*.*.a.example", "leftmost label", Malformed},
		{"a double star", "**.a.example", "leftmost label", Malformed},
		{"a partial wildcard", "w*.a.example", "leftmost label", Malformed},
		{"a partial wildcard in front", "*w.a.example", "leftmost label", Malformed},
		{"a wildcard with a trailing dot", "*.a.example.", "ends with a dot", Malformed},
		{"a wildcard and two dots", "*..example", "empty label", Malformed},

		{"a wildcard of a top level", "*.com", "public suffix", RejectedIdentifier},
		{"a wildcard of a second-level suffix", "*.co.uk", "public suffix", RejectedIdentifier},
		{"a wildcard of it in upper case", "*.CO.uk", "public suffix", RejectedIdentifier},
		{"a wildcard of a Korean suffix", "*.co.kr", "public suffix", RejectedIdentifier},
		{"a wildcard of a private suffix", "*.github.io", "public suffix", RejectedIdentifier},
		{"a wildcard of a suffix that a pattern names", "*.any.ck", "public suffix", RejectedIdentifier},
		{"a wildcard of a single label", "*.corp", "public suffix", RejectedIdentifier},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseIdentifier(Identifier{TypeDNS, tt.value})
			if tt.problem == "" {
				if want := (Identifier{TypeDNS, tt.want}); err != nil || got != want {
					t.Errorf("got %v, %v, want %v", got, err, want)
				}
				return
			}
			if err == nil {
				t.Fatalf("accepted as %v", got)
			}
			p := AsProblem(err)
			if p.Type != tt.problem || p.Status != 400 || !strings.Contains(p.Detail, tt.want) {
				t.Errorf("got %d %v, want 400 %s about %q", p.Status, p, tt.problem, tt.want)
			}
		})
	}
}

func TestSection7_4_UnsupportedIdentifierTypes(t *testing.T) {
	for _, kind := range []string{"", "ip", "DNS", "email", strings.Repeat("x", 1000)} {
		_, err := ParseIdentifier(Identifier{IdentifierType(kind), "a.example"})
		if p := AsProblem(err); p.Type != UnsupportedIdentifier || p.Status != 400 || len(p.Detail) > 200 {
			t.Errorf("type %.10q: %v, want a short %s", kind, err, UnsupportedIdentifier)
		}
	}
}

func TestParseIdentifiersMergesDuplicatesAndKeepsTheOrder(t *testing.T) {
	got, err := ParseIdentifiers(dns("B.example", "*.a.example", "a.example", "b.EXAMPLE", "*.A.example"))
	if want := dns("b.example", "*.a.example", "a.example"); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, none := range [][]Identifier{nil, {}} {
		if got, err := ParseIdentifiers(none); outcome(&Order{}, err) != string(Malformed) {
			t.Errorf("no identifiers: %v, %v, want %s", got, err, Malformed)
		}
	}
}

func TestSection6_7_1_EachBadIdentifierIsNamed(t *testing.T) {
	for _, tt := range []struct {
		name string
		ids  []Identifier
		want ProblemType
		subs []ProblemType
	}{
		{"one bad among good ones", append(dns("a.example", "bad_name.example"), dns("b.example")...), Malformed, []ProblemType{Malformed}},
		{"two of one kind", dns("bad_name.example", "a.example", "1.2.3.4"), Malformed, []ProblemType{Malformed, Malformed}},
		{"two of different kinds", append(dns("*.com"), Identifier{"ip", "192.0.2.1"}), Compound, []ProblemType{RejectedIdentifier, UnsupportedIdentifier}},
		{"the same twice", dns("bad_name", "bad_name"), Malformed, []ProblemType{Malformed, Malformed}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseIdentifiers(tt.ids)
			if err == nil {
				t.Fatalf("accepted as %v: whole orders are refused, not parts", got)
			}
			p := AsProblem(err)
			var subs []ProblemType
			for _, sub := range p.Subproblems {
				subs = append(subs, sub.Type)
				if sub.Identifier == nil || !slices.Contains(tt.ids, *sub.Identifier) {
					t.Errorf("subproblem %v is about %v, want one of %v as sent", sub, sub.Identifier, tt.ids)
				}
			}
			if p.Type != tt.want || p.Status != 400 || !slices.Equal(subs, tt.subs) {
				t.Errorf("got %d %s of %v, want 400 %s of %v", p.Status, p.Type, subs, tt.want, tt.subs)
			}
		})
	}
}

func TestLongIdentifiersAreNotRepeatedInFull(t *testing.T) {
	long := strings.Repeat("a", 100_000)
	_, err := ParseIdentifiers([]Identifier{{IdentifierType(long), long}, {TypeDNS, long}})
	if text := marshal(t, AsProblem(err)); len(text) > 3000 {
		t.Errorf("the problem has %d bytes", len(text))
	}
}

func TestBase(t *testing.T) {
	for value, want := range map[string]Identifier{
		"a.example": dns("a.example")[0], "*.a.example": dns("a.example")[0],
	} {
		id := Identifier{TypeDNS, value}
		got, wildcard := id.Base()
		if got != want || wildcard != strings.HasPrefix(value, "*.") {
			t.Errorf("Base of %s = %v, %t", value, got, wildcard)
		}
		if got, want := id.Name(), "dns:"+value; got != want {
			t.Errorf("Name() = %q, want %q", got, want)
		}
	}
}

func FuzzParseIdentifier(f *testing.F) {
	for _, seed := range []string{
		"a.example", "*.A.example", "xn--bcher-kva.example", "xn--a", "127.0.0.1", "0x7f.1", "a..b", "*.co.uk", "a_b.example",
		"bücher.example", "\xff", "a.example.", "-", "ab--cd", strings.Repeat("a.", 127), "*.*.a",
	} {
		f.Add("dns", seed)
	}
	f.Add("ip", "192.0.2.1")
	f.Fuzz(func(t *testing.T, kind, value string) {
		id, err := ParseIdentifier(Identifier{IdentifierType(kind), value})
		if err != nil {
			if p, ok := err.(*Problem); !ok || p.Status != 400 || len(p.Detail) > 2000 {
				t.Fatalf("got %v, want a short 400 problem", err)
			}
			return
		}
		again, err := ParseIdentifier(id)
		if err != nil || again != id {
			t.Fatalf("%v was normalised to %v, and that to %v, %v", value, id, again, err)
		}
		if !strings.EqualFold(id.Value, value) || id.Value != strings.ToLower(id.Value) || len(id.Value) > 253 {
			t.Fatalf("%q was normalised to %q", value, id.Value)
		}
		base, wildcard := id.Base()
		if strings.Contains(base.Value, "*") || wildcard != strings.HasPrefix(value, "*.") {
			t.Fatalf("%q has base %q, wildcard %t", value, base.Value, wildcard)
		}
		for _, label := range strings.Split(base.Value, ".") {
			if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
				t.Fatalf("%q was accepted with the label %q", value, label)
			}
		}
	})
}

func TestProfileCheck(t *testing.T) {
	for _, tt := range []struct {
		name        string
		allow, deny []string
		noWildcards bool
		allowed     []string
		refused     []string
	}{
		{"an empty policy allows all", nil, nil, false, []string{"a.example", "*.a.example", "printer"}, nil},
		{"a star allows all", []string{"*"}, nil, false, []string{"a.example", "*.a.example", "printer"}, nil},
		{"an exact name is that name only", []string{"a.example"}, nil, false,
			[]string{"a.example"}, []string{"www.a.example", "*.a.example", "ba.example", "example"}},
		{"a pattern is all names below", []string{"*.a.example"}, nil, false,
			[]string{"www.a.example", "x.y.a.example", "*.a.example", "*.x.a.example"}, []string{"a.example", "ba.example", "example", "*.ba.example"}},
		{"several patterns add up", []string{"a.example", "*.b.example"}, nil, false,
			[]string{"a.example", "www.b.example"}, []string{"b.example", "c.example"}},
		{"deny wins", []string{"*.a.example"}, []string{"secret.a.example"}, false,
			[]string{"www.a.example"}, []string{"secret.a.example"}},
		{"deny wins over an exact allow", []string{"a.example"}, []string{"a.example"}, false, nil, []string{"a.example"}},
		{"deny alone", nil, []string{"*.a.example"}, false,
			[]string{"a.example", "b.example"}, []string{"www.a.example", "x.y.a.example", "*.a.example"}},
		{"a wildcard that covers a denied name", []string{"*.a.example"}, []string{"secret.a.example"}, false,
			[]string{"*.www.a.example"}, []string{"*.a.example"}},
		{"a wildcard below a denied pattern", nil, []string{"*.a.example"}, false,
			[]string{"*.b.example"}, []string{"*.x.a.example"}},
		{"denying the base does not deny what is below", nil, []string{"a.example"}, false,
			[]string{"*.a.example", "www.a.example"}, []string{"a.example"}},
		{"a denied star denies all", []string{"a.example"}, []string{"*"}, false, nil, []string{"a.example", "*.a.example"}},
		{"no wildcards", []string{"*.a.example"}, nil, true, []string{"www.a.example"}, []string{"*.a.example"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := testProfile()
			p.Identifiers.Allow, p.Identifiers.Deny, p.Identifiers.Wildcards = tt.allow, tt.deny, !tt.noWildcards
			for _, name := range tt.allowed {
				if err := p.Check(dns(name)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			for _, name := range tt.refused {
				if err := p.Check(dns(name)); outcome(&Order{}, err) != string(RejectedIdentifier) {
					t.Errorf("%s: %v, want %s", name, err, RejectedIdentifier)
				}
			}
			if len(tt.refused) == 0 {
				return
			}
			err := p.Check(dns(append(tt.allowed, tt.refused...)...))
			var named []Identifier
			for _, sub := range AsProblem(err).Subproblems {
				named = append(named, *sub.Identifier)
			}
			if want := dns(tt.refused...); !slices.Equal(named, want) {
				t.Errorf("all at once: %v are named, want %v", named, want)
			}
		})
	}
}

func TestProfileCheckNumberAndTypes(t *testing.T) {
	p := testProfile()
	p.Identifiers.Max = 3
	if err := p.Check(dns("a.example", "b.example", "c.example")); err != nil {
		t.Errorf("as many as allowed: %v", err)
	}
	err := p.Check(dns("a.example", "b.example", "c.example", "d.example"))
	if problem := AsProblem(err); problem.Type != RejectedIdentifier || !strings.Contains(problem.Detail, "at most 3") {
		t.Errorf("one more: %v, want %s that says how many", err, RejectedIdentifier)
	}
	p.Identifiers.Max = 0
	var many []string
	for i := range 500 {
		many = append(many, fmt.Sprintf("n%d.example", i))
	}
	if err := p.Check(dns(many...)); err != nil {
		t.Errorf("no limit: %v", err)
	}
	if err := p.Check([]Identifier{{"ip", "192.0.2.1"}}); outcome(&Order{}, err) != string(UnsupportedIdentifier) {
		t.Errorf("an ip: %v, want %s", err, UnsupportedIdentifier)
	}
	p.Identifiers.Types = nil
	if err := p.Check(dns("a.example")); outcome(&Order{}, err) != string(UnsupportedIdentifier) {
		t.Errorf("a profile without types: %v, want %s", err, UnsupportedIdentifier)
	}
}

// RFC 8737, Section 3, and requirement 74: only DNS proves a wildcard.
func TestWildcardsAreProvenByDNSOnly(t *testing.T) {
	p := testProfile()
	id := dns("*.a.example")
	if got, want := p.ChallengesFor(id[0]), []ChallengeType{DNS01}; !slices.Equal(got, want) {
		t.Errorf("a wildcard is offered %v, want %v", got, want)
	}
	if got := p.ChallengesFor(dns("a.example")[0]); !slices.Equal(got, p.Challenges) {
		t.Errorf("a name is offered %v, want %v", got, p.Challenges)
	}
	p.Challenges = []ChallengeType{HTTP01, TLSALPN01}
	if got := p.ChallengesFor(id[0]); len(got) != 0 {
		t.Errorf("a wildcard is offered %v under a profile without dns-01", got)
	}
	if err := p.Check(id); outcome(&Order{}, err) != string(RejectedIdentifier) {
		t.Errorf("a wildcard that nothing can prove: %v, want %s", err, RejectedIdentifier)
	}
}
