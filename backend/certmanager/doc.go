// Package certmanager issues publicly trusted certificates from NAVER Cloud
// Certificate Manager, API 2.0: Advanced DV and Advanced OV, the only types
// that take a CSR. It implements [acme.Issuer], [acme.Poller] and
// [acme.Preflighter].
//
// Certificate Manager validates domains by its own DNS records (DCV), beside
// and after the ACME challenges, which this package knows nothing of. A domain
// is best validated beforehand ([Issuer.RegisterDomain]); else a [Publisher]
// puts the records of each request into DNS.
//
// The service has never been seen by those who wrote this: what its documents
// leave open is decoded tolerantly (decode.go), and told in
// docs/certificate-manager.md.
//
// Start reading at [Issuer.Submit], then [Issuer.Find] and [Issuer.Poll].
package certmanager
