// Package privateca issues certificates from a CA of NAVER Cloud's Private CA
// service, by its call Sign End Csr: one call, and the answer is the
// certificate.
//
// The service does not deduplicate, gives no ticket, and cannot be asked for a
// certificate by key or name. What became of a call whose answer was lost is
// worked out by [Issuer.Find], from the CA's signing count if nothing else
// issues from the CA, and else from its list of certificates.
//
// Start reading at [Issuer.Submit], then [Issuer.Find].
package privateca
