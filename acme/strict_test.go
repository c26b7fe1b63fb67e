package acme

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

func TestAnOrderThatRanOutCannotGoOn(t *testing.T) {
	o := advance(t, newTestOrder(t, "a.example"), respond, prove)
	if err := o.Finalize(csrOne, o.Expires); outcome(o, err) != string(OrderNotReady) {
		t.Errorf("finalized at its expiry: %v, want %s", err, OrderNotReady)
	}
	o = advance(t, newTestOrder(t, "a.example"), respond)
	if err := o.Validated(0, HTTP01, nil, proofLifetime, o.Expires); !errors.Is(err, ErrUnchanged) {
		t.Errorf("validated at its expiry: %v, want %v", err, ErrUnchanged)
	}
}

func TestPendingOrderExpiresWithItsFirstAuthorization(t *testing.T) {
	o := newTestOrder(t, "a.example", "b.example")
	advance(t, o,
		func(o *Order) error { return o.Respond(0, HTTP01, testAccount(), start) },
		func(o *Order) error { return o.Validated(0, HTTP01, nil, time.Hour, start) },
		func(o *Order) error { return o.Respond(1, HTTP01, testAccount(), start) })
	if got, want := o.Expires, start.Add(time.Hour); got != want {
		t.Errorf("expires %v, want %v", got, want)
	}
	err := o.Validated(1, HTTP01, nil, time.Hour, start.Add(2*time.Hour))
	if o.Status == StatusReady {
		t.Errorf("%v: ready with an authorization that ended an hour ago", err)
	}
}

func TestNothingOfAnInvalidOrderWaits(t *testing.T) {
	for name, end := range map[string]func(*Order) error{
		"a failure":      func(o *Order) error { return o.Validated(0, DNS01, testProblem, proofLifetime, start) },
		"a deactivation": func(o *Order) error { return o.DeactivateAuthorization(0) },
		"its expiry":     expireAt(start.Add(orderLifetime)),
	} {
		o := advance(t, newTestOrder(t, "a.example", "b.example"), respond,
			func(o *Order) error { return o.Respond(0, DNS01, testAccount(), start) },
			func(o *Order) error { return o.Respond(1, HTTP01, testAccount(), start) }, end)
		for _, a := range o.Authorizations {
			if a.Status == StatusPending {
				t.Errorf("after %s: %s is pending, and clients poll it until they give up", name, a.Identifier.Value)
			}
			for _, c := range a.Challenges {
				if c.Status == StatusProcessing {
					t.Errorf("after %s: %s of %s is processing, and no validation will follow", name, c.Type, a.Identifier.Value)
				}
			}
		}
	}
}

func TestLettersThatFoldIntoASCIIAreNotASCII(t *testing.T) {
	const kelvin, longS = "\u212a", "\u017f"
	if id, err := ParseIdentifier(Identifier{TypeDNS, kelvin + ".example"}); err == nil {
		t.Errorf("a Kelvin sign was accepted as %v", id)
	}
	der := csrParts{key: testKey(t), subject: sequence(commonName(kelvin + ".example")), attributes: [][]byte{requesting(san(dnsName("k.example")))}}.build(t)
	expectCSR(t, der, testProfile(), "has also", "k.example")
	c := newIssueCase(t, newTestCA(t, "our"))
	c.leaf.Subject.CommonName, c.leaf.DNSNames, c.req.Identifiers = longS+".example", []string{"s.example"}, dns("s.example")
	if err := c.check(t); err == nil {
		t.Error("a common name with a long s is believed for s.example")
	}
}

func TestProblemsAreUTF8(t *testing.T) {
	long := strings.Repeat("é", 200) // cut at an odd octet
	_, err := ParseIdentifiers([]Identifier{{TypeDNS, long}})
	if got := AsProblem(err).Subproblems[0].Identifier.Value; !utf8.ValidString(got) {
		t.Errorf("the identifier is %q", got)
	}
	der := csrParts{key: testKey(t), subject: sequence(commonName(long))}.build(t)
	_, err = ParseCSR(der, dns("a.example"), testProfile())
	if got := AsProblem(err).Detail; !utf8.ValidString(got) {
		t.Errorf("the detail is %q", got)
	}
}

func TestWildcardMeetsDeniedNamesOfOneLabelOnly(t *testing.T) {
	p := testProfile()
	p.Identifiers.Deny = []string{"*.secret.a.example", "x.y.a.example"}
	if err := p.Check(dns("*.a.example")); err != nil {
		t.Errorf("it matches none of %v: %v", p.Identifiers.Deny, err)
	}
}

func TestParseCSRReadsNothingLoosely(t *testing.T) {
	key := testKey(t)
	names := requesting(san(dnsName("a.example")))
	loose := sequence([]byte{6, 3, 85, 29, 17}, tlv(cbasn1.OCTET_STRING, sequence(dnsName("a.example"))), []byte{5, 0})
	for _, tt := range []struct {
		name  string
		parts csrParts
		want  string
	}{
		{"a member after the signature", csrParts{attributes: [][]byte{names}, inside: []byte{5, 0}}, "do not parse"},
		{"a member after an extension's value", csrParts{attributes: [][]byte{requesting(loose)}}, "do not parse"},
		{"an empty extKeyUsage", csrParts{attributes: [][]byte{requesting(extension(oidExtKeyUsage, sequence()), san(dnsName("a.example")))}}, "malformed extKeyUsage"},
		{"two CNs, the first empty", csrParts{subject: sequence(commonName(""), commonName("a.example"))}, "more than one common name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.parts.key = key
			expectCSR(t, tt.parts.build(t), testProfile(), tt.want, "a.example")
		})
	}
}

func TestCheckIssuedHonoursNotBefore(t *testing.T) {
	c := newIssueCase(t, newTestCA(t, "our"))
	c.req.NotBefore, c.req.NotAfter = start.Add(48*time.Hour), start.Add(96*time.Hour)
	c.leaf.NotAfter = c.req.NotAfter
	if err := c.check(t); err == nil {
		t.Error("believed, and it begins two days before the notBefore asked for")
	}
}

func TestCheckIssuedJudgesALateFindLikeAnEarlyOne(t *testing.T) {
	c := newIssueCase(t, newTestCA(t, "our"))
	c.req.Lifetime = 24 * time.Hour
	c.leaf.NotAfter = start.Add(24*time.Hour - 30*time.Minute)
	for _, d := range []time.Duration{time.Minute, 23*time.Hour + 20*time.Minute} {
		c.now = start.Add(d)
		if err := c.check(t); err != nil {
			t.Errorf("found after %s: %v", d, err)
		}
	}
}

func TestCheckIssuedChainOrder(t *testing.T) {
	ca, other := newTestCA(t, "our"), newTestCA(t, "other")
	for name, chain := range map[string][]*x509.Certificate{
		"root before intermediate": {ca.root, ca.intermediate},
		"a stranger in the chain":  {ca.intermediate, other.intermediate},
		"the intermediate twice":   {ca.intermediate, ca.intermediate},
	} {
		c := newIssueCase(t, ca)
		c.chain = chain
		if err := c.check(t); err == nil {
			t.Errorf("%s: believed", name)
		}
	}
}
