// Package upstream issues certificates as a client of another ACME server
// (RFC 8555): NAVER Cloud's own, where domains are validated beforehand or by
// DNS, or any public one.
//
// The upstream order is made by Submit and finalized by Poll, so that a lost
// answer never costs a second certificate: before its order is finalized
// nothing can be issued, and afterwards the order itself tells what became of it.
//
// The protocol is golang.org/x/crypto/acme's, which the rest of the project
// depends on already. It repeats requests by itself, reads answers of any
// length, follows a finalize until its end and does not tell Retry-After; what
// is done about each of these is in transport.go.
//
// Start reading at [Issuer.Poll].
package upstream
