// Package validation performs the challenges http-01 and dns-01 (RFC 8555,
// Section 8) and tls-alpn-01 (RFC 8737) as an [acme.Validator].
//
// A [Validator] is made for each zone of the network from which challenges may
// be answered: it has its own resolvers, ports and permitted networks. Whoever
// orders a certificate chooses what it connects to, so every connection passes
// the address guard (guard.go) with the address that is dialed, and no problem
// document contains anything that was fetched.
//
// Start reading at [Validator.Validate], which tries and waits, and go on to the
// methods in http01.go, dns01.go and tlsalpn01.go.
package validation
