// Package acme holds the objects and rules of RFC 8555: accounts, orders,
// authorizations, challenges and problem documents, and the transitions
// between their states.
//
// It does no I/O. The interfaces it needs from the world ([Store], [Issuer],
// [Validator]) are declared here and implemented by packages that import this
// one.
//
// Start reading at [Order]: its methods are the arrows of the state diagrams in
// RFC 8555, Section 7.1.6, and nothing else changes an order.
package acme
