package privateca

import (
	"bytes"
	"crypto/x509"
)

// selfSigned reports a root certificate.
func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}

// sortChain picks the issuers of leaf out of certs, which may hold anything in
// any order: nearest first, root left out (RFC 8555, Section 9.1). rooted tells
// that the chain led to a root among certs.
func sortChain(leaf *x509.Certificate, certs []*x509.Certificate) (chain []*x509.Certificate, rooted bool) {
	for cur := leaf; len(chain) < maxChain; {
		next := issuerOf(cur, certs)
		if next == nil {
			return chain, false
		}
		if selfSigned(next) {
			return chain, true
		}
		chain = append(chain, next)
		cur = next
	}
	return chain, false // certificates that certify each other in a circle
}

func issuerOf(c *x509.Certificate, certs []*x509.Certificate) *x509.Certificate {
	for _, i := range certs {
		if bytes.Equal(i.RawSubject, c.RawIssuer) && !bytes.Equal(i.Raw, c.Raw) && c.CheckSignatureFrom(i) == nil {
			return i
		}
	}
	return nil
}

// anchors picks what a chain must lead to: the roots among certs, or if the
// service keeps them to itself, the certificates that no other one certifies.
func anchors(certs []*x509.Certificate) []*x509.Certificate {
	var roots, tops []*x509.Certificate
	for _, c := range certs {
		switch {
		case !c.IsCA:
		case selfSigned(c):
			roots = append(roots, c)
		case issuerOf(c, certs) == nil:
			tops = append(tops, c)
		}
	}
	if len(roots) > 0 {
		return roots
	}
	return tops
}

// unique drops repetitions.
func unique(certs []*x509.Certificate) []*x509.Certificate {
	seen := map[string]bool{}
	var out []*x509.Certificate
	for _, c := range certs {
		if !seen[string(c.Raw)] {
			seen[string(c.Raw)] = true
			out = append(out, c)
		}
	}
	return out
}
