// Package local is a certificate authority of our own, for newcomers, tests and
// small networks: an [acme.Issuer] over smallstep's certificate authority
// service (cas/apiv1) with its software implementation (cas/softcas) and a root
// and an intermediate that are made on first start.
//
// Start reading at [New]; files.go says how the key material gets onto the disk
// and why a crash or a second process in the middle of it does no harm.
package local
