package redis

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash/fnv"

	"github.com/acme-bridge/acme-bridge/acme"
)

// keys names what is stored. A hash tag {00} to {15} keeps together what one
// script touches, and spreads the rest over a cluster:
//
//	{NN}:account:<id>             version and JSON
//	{NN}:order:<id>               version, JSON, leaf certificate
//	{NN}:orders:<account>         ZSET, score 0: orders that are not invalid, by ID and so by age
//	{NN}:open:<account>           ZSET: open orders by expiry
//	{NN}:due                      ZSET: orders of the shard by wake time
//	{NN}:proof:<account>:<name>   JSON
//	{NN}:limit:<scope>:<subject>  the GCRA's theoretical arrival time in Unix µs
//	{NN}:key:<dir>:<thumbprint>   which account has the key, see account.go
//	{NN}:chain:<sha256>           PEM, kept for ever: there are few
//	{NN}:cert:<certificate ID>    check and owning order
//	{NN}:record:<name>            version, name, data
//	{00}:quarantine               LIST of JSON, newest first, bounded
//	{nonce}:key                   key that signs nonces
//	{nonce}:<nonce>               used, for the nonce's lifetime
//
// The shard of an order is its account's ([acme.Shard]); what has no ID gets one
// by hash. The nonce key and all marks lie in one slot, because they must share
// one fate: marks on another server could be lost while the key lives, and
// nonces would be fresh again. One SET a request is far below what one server
// can do.
type keys struct{ prefix, nonceTag string }

func newKeys(prefix string) keys { return keys{prefix: prefix, nonceTag: prefix + "{nonce}:"} }

// maxNonce bounds what of a nonce becomes a key; ours are shorter.
const maxNonce = 64

func (k keys) in(shard, rest string) string { return k.prefix + "{" + shard + "}:" + rest }

func (k keys) account(id string) string  { return k.in(acme.Shard(id), "account:"+id) }
func (k keys) order(id string) string    { return k.in(acme.Shard(id), "order:"+id) }
func (k keys) orders(acct string) string { return k.in(acme.Shard(acct), "orders:"+acct) }
func (k keys) open(acct string) string   { return k.in(acme.Shard(acct), "open:"+acct) }
func (k keys) due(shard string) string   { return k.in(shard, "due") }
func (k keys) proof(p acme.ProofKey) string {
	return k.in(acme.Shard(p.AccountID), "proof:"+p.AccountID+":"+p.Name)
}
func (k keys) chain(ref string) string   { return k.in(shardOf(ref), "chain:"+ref) }
func (k keys) cert(id string) string     { return k.in(shardOf(id), "cert:"+id) }
func (k keys) record(name string) string { return k.in(shardOf(name), "record:"+name) }
func (k keys) quarantine() string        { return k.in("00", "quarantine") }
func (k keys) ping() string              { return k.in("00", "ping") }
func (k keys) nonceKey() string          { return k.nonceTag + "key" }

func (k keys) holder(directory, thumbprint string) string {
	return k.in(shardOf(thumbprint), "key:"+directory+":"+thumbprint)
}

func (k keys) nonce(nonce string) string {
	if len(nonce) > maxNonce {
		sum := sha256.Sum256([]byte(nonce))
		nonce = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return k.nonceTag + nonce
}

func (k keys) limit(l acme.LimitKey) string {
	return k.in(limitShard(l.Subject), "limit:"+l.Scope+":"+l.Subject)
}

// limitShard puts what is counted for an account into the account's shard, so
// that creating an order can count in its own script.
func limitShard(subject string) string {
	const idLen = 28
	if len(subject) >= idLen && acme.ValidID(subject[:idLen]) {
		return acme.Shard(subject)
	}
	return shardOf(subject)
}

func shardOf(s string) string {
	h := fnv.New32a()
	h.Write([]byte(s))
	return shardName(int(h.Sum32() % acme.Shards))
}

func shardName(n int) string { return fmt.Sprintf("%02d", n) }
