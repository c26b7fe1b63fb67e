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
// An ACL user needs the keys ~PREFIX* and these commands, of which info and
// config|get may be left out; then [Store.Facts] stays empty:
//
//	+get +set +mget +persist +exists +del +getrange +evalsha +eval +ping +select +hello +auth
//	+zadd +zrem +zcard +zscore +zrange +zrangebyscore +zrangebylex +zremrangebyscore +zremrangebylex
//	+lpush +ltrim +lrange +info +config|get +client|setname    and in a cluster +cluster|slots
//
// What Redis does not promise, this package cannot either: a failover may lose
// the last writes that the old master answered and did not replicate. Operators
// bound that with appendonly, min-replicas-to-write and Sentinels or a Cluster
// with a majority; [Store.Facts] shows how the server is set up.
package redis
