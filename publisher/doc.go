// Package publisher holds what the publishers of DNS records share: the
// question whether a record is served by all name servers of its zone
// ([Confirmer]), DNS over UDP and TCP ([Querier]), TXT records, metrics, and
// [ErrBlocked].
//
// A publisher puts a TXT record that a certificate authority asked for into a
// zone and sees that it is served. publisher/rfc2136 does so by dynamic update,
// publisher/globaldns through NAVER Cloud's Global DNS. Both have three methods,
// which their user declares as an interface:
//
//	// Covers reports whether records can be written for a DNS name.
//	Covers(ctx context.Context, name string) (bool, error)
//	// Publish is idempotent and quick. It is called again until it reports
//	// that all authoritative servers serve the record.
//	Publish(ctx context.Context, fqdn, value string) (served bool, err error)
//	// Remove removes the TXT records of that name and value, and no other.
//	Remove(ctx context.Context, fqdn, value string) error
//
// The interfaces of libdns (AppendRecords, DeleteRecords and so on, each given a
// zone) are not used for it: they do not find the zone of a name, have no step
// between "written" and "served", match deletions by TTL as well, and there is
// neither a provider for Global DNS nor a released one for RFC 2136 with errors
// that can be told apart. They are the right thing one level below: a third
// publisher that finds the zone by [Confirmer.Zone], calls a libdns provider's
// AppendRecords and DeleteRecords, and asks [Confirmer.Served], gets any of its
// many providers in a page of code.
//
// Start reading at [Confirmer.Served].
package publisher

import "errors"

// ErrBlocked is wrapped by errors that calling again does not cure until
// somebody acts: the text says who and how. After any other error the same call
// may be made again.
var ErrBlocked = errors.New("publishing is blocked")
