// Package redis is an [acme.Store] on Redis 6 or later: a single server, a
// master watched by Sentinels, or a Cluster.
//
// Start reading at [Store.Fetch], the one read of a request, and at
// [Store.UpdateOrder], the one write; keys.go says what lies where.
//
// The rules are Go's: a script compares a version, swaps a value, and keeps the
// indexes that belong to it, all within one hash slot. No command's cost grows
// with the number of objects stored, and nothing here scans the key space.
//
// What Redis does not promise, this package cannot either: a failover may lose
// the last writes that the old master answered and did not replicate. Operators
// bound that with appendonly, min-replicas-to-write and Sentinels or a Cluster
// with a majority; [Store.Facts] shows how the server is set up.
package redis
