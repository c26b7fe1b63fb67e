package redis

import (
	"context"
	"crypto/sha1" // names a script in EVALSHA; nothing rests on it
	"encoding/hex"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// once is a command that is sent once: if its answer is lost, it may have been
// done, and doing it again would take our own first try for a rival's. go-redis
// still follows redirects, since a redirected command was not done.
type once struct{ *redis.Cmd }

// NoRetry tells go-redis not to repeat the command.
func (once) NoRetry() bool { return true }

func newOnce(ctx context.Context, args ...any) once { return once{redis.NewCmd(ctx, args...)} }

// A script runs atomically on the server that has its keys, which lie in one
// slot. redis.Script is not used because it cannot send once.
type script struct{ source, sha string }

func newScript(source string) *script {
	sum := sha1.Sum([]byte(source))
	return &script{source: source, sha: hex.EncodeToString(sum[:])}
}

func (sc *script) command(ctx context.Context, keys []string, args []any) once {
	return sc.build(ctx, "evalsha", sc.sha, keys, args)
}

func (sc *script) build(ctx context.Context, name, body string, keys []string, args []any) once {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, name, body, len(keys))
	for _, k := range keys {
		all = append(all, k)
	}
	cmd := newOnce(ctx, append(all, args...)...)
	cmd.SetFirstKeyPos(3)
	return cmd
}

// run sends the script by its name, and its text only to a server that does not
// know it: NOSCRIPT means that nothing was done.
func (sc *script) run(ctx context.Context, rdb redis.UniversalClient, keys []string, args ...any) (any, error) {
	cmd := sc.command(ctx, keys, args)
	err := rdb.Process(ctx, cmd)
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		return sc.runText(ctx, rdb, keys, args)
	}
	if err != nil {
		return nil, err
	}
	return cmd.Val(), nil
}

func (sc *script) runText(ctx context.Context, rdb redis.UniversalClient, keys []string, args []any) (any, error) {
	cmd := sc.build(ctx, "eval", sc.source, keys, args)
	if err := rdb.Process(ctx, cmd); err != nil {
		return nil, err
	}
	return cmd.Val(), nil
}

// runBool is run for a script that returns 1 or 0.
func (sc *script) runBool(ctx context.Context, rdb redis.UniversalClient, keys []string, args ...any) (bool, error) {
	v, err := sc.run(ctx, rdb, keys, args...)
	if err != nil {
		return false, err
	}
	n, ok := v.(int64)
	if !ok {
		return false, fmt.Errorf("script returned %T, not a number", v)
	}
	return n == 1, nil
}

// runPair is run for a script that returns two numbers.
func (sc *script) runPair(ctx context.Context, rdb redis.UniversalClient, keys []string, args ...any) (int64, int64, error) {
	v, err := sc.run(ctx, rdb, keys, args...)
	if err != nil {
		return 0, 0, err
	}
	if pair, ok := v.([]any); ok && len(pair) == 2 {
		a, okA := pair[0].(int64)
		b, okB := pair[1].(int64)
		if okA && okB {
			return a, b, nil
		}
	}
	return 0, 0, fmt.Errorf("script returned %v, not two numbers", v)
}

// swapVersion replaces a value unless someone else has since it was read.
//
//	KEYS[1] the value    ARGV[1] version read, "" if there must be none
//	                     ARGV[2] new value
//	                     ARGV[3] keep it for so many ms, or "0" for ever
//
// It returns 1, or 0 if the version is another.
var swapVersion = newScript(`
if redis.call("GETRANGE", KEYS[1], 0, 15) ~= ARGV[1] then return 0 end
if ARGV[3] == "0" then redis.call("SET", KEYS[1], ARGV[2])
else redis.call("SET", KEYS[1], ARGV[2], "PX", ARGV[3]) end
return 1`)

// swapValue is swapVersion for a short value that is compared as a whole, and
// removed if the new one is "".
//
//	KEYS[1] the value    ARGV[1] value read, "" if there must be none
//	                     ARGV[2] new value
var swapValue = newScript(`
if (redis.call("GET", KEYS[1]) or "") ~= ARGV[1] then return 0 end
if ARGV[2] == "" then redis.call("DEL", KEYS[1])
else redis.call("SET", KEYS[1], ARGV[2]) end
return 1`)

// updateOrder replaces an order unless someone else has since it was read, and
// with it what hangs on it. Arguments that are "" leave things as they are.
//
//	KEYS[1] order                 ARGV[1] version read
//	KEYS[2] due                   ARGV[2] new value
//	KEYS[3] open orders           ARGV[3] keep it for so many ms, or "0" for ever
//	KEYS[4] account's orders      ARGV[4] order ID
//	KEYS[5] and on: proofs        ARGV[5] wake time in Unix ms, "-" for never
//	                              ARGV[6] expiry in Unix ms, "-" if not open now
//	                              ARGV[7] "-" if it leaves the account's orders
//	                              ARGV[8], ARGV[9] and on: value of each proof,
//	                              "" to remove it, and for how many ms to keep it
//
// It returns 1, or 0 if the version is another.
var updateOrder = newScript(`
if redis.call("GETRANGE", KEYS[1], 0, 15) ~= ARGV[1] then return 0 end
if ARGV[3] == "0" then redis.call("SET", KEYS[1], ARGV[2])
else redis.call("SET", KEYS[1], ARGV[2], "PX", ARGV[3]) end
if ARGV[5] == "-" then redis.call("ZREM", KEYS[2], ARGV[4])
elseif ARGV[5] ~= "" then redis.call("ZADD", KEYS[2], ARGV[5], ARGV[4]) end
if ARGV[6] == "-" then redis.call("ZREM", KEYS[3], ARGV[4])
elseif ARGV[6] ~= "" then redis.call("ZADD", KEYS[3], ARGV[6], ARGV[4]) end
if ARGV[7] == "-" then redis.call("ZREM", KEYS[4], ARGV[4]) end
for i = 5, #KEYS do
  local a = 8 + 2 * (i - 5)
  if ARGV[a] == "" then redis.call("DEL", KEYS[i])
  else redis.call("SET", KEYS[i], ARGV[a], "PX", ARGV[a + 1]) end
end
return 1`)

// The generic cell rate algorithm, in whole µs of the caller's clock. gcra
// returns how long to wait, or 0 and the new arrival time to be stored.
// redis_rate is not used: its script cannot be joined with createOrder's, takes
// the server's clock, and its state cannot be asked with a plain GET.
const gcraFunctions = `
local function gcra(key, interval, burst, cost, now)
  local tat = tonumber(redis.call("GET", key) or now)
  if tat < now then tat = now end
  local new = tat + interval * cost
  if new - now > burst then return new - now - burst, 0 end
  return 0, new
end
local function count(key, new, now)
  redis.call("SET", key, string.format("%.0f", new), "PX", math.ceil((new - now) / 1000))
end
`

// takeLimit counts events.
//
//	KEYS[1] limit    ARGV[1] interval µs  ARGV[2] burst µs  ARGV[3] cost  ARGV[4] now in Unix µs
//
// It returns 0, or how many µs to wait.
var takeLimit = newScript(gcraFunctions + `
local now = tonumber(ARGV[4])
local wait, new = gcra(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), now)
if wait == 0 then count(KEYS[1], new, now) end
return {0, wait}`)

// createOrder stores an order that does not exist yet, within limits. It also
// takes old entries off the account's list: those before a bound, and any of
// three (the oldest and two at random) whose order is gone, so that entries go
// faster than they come. Order keys that it looks up so are in the same slot.
//
//	KEYS[1] order               ARGV[1] value      ARGV[2] keep it for so many ms, "0" for ever
//	KEYS[2] due                 ARGV[3] order ID   ARGV[4] wake time in Unix ms, or ""
//	KEYS[3] open orders         ARGV[5] expiry in Unix ms, "" if not open
//	KEYS[4] account's orders    ARGV[6] "" if it is not to be listed
//	KEYS[5] rate limit          ARGV[7] open orders allowed, 0 for any number
//	                            ARGV[8] interval µs, 0 for no rate limit   ARGV[9] burst µs
//	                            ARGV[10] now in Unix µs
//	                            ARGV[11] bound of IDs that leave the list
//	                            ARGV[12] what order keys begin with
//	                            ARGV[13], ARGV[14] random numbers below 1
//
// It returns a code and a time to wait in µs: 0 stored, 1 exists, 2 too many are
// open, 3 rate limit reached.
var createOrder = newScript(gcraFunctions + `
if redis.call("EXISTS", KEYS[1]) == 1 then return {1, 0} end
local now = tonumber(ARGV[10])
redis.call("ZREMRANGEBYSCORE", KEYS[3], "-inf", math.floor(now / 1000))
local allowed = tonumber(ARGV[7])
if allowed > 0 and redis.call("ZCARD", KEYS[3]) >= allowed then
  local first = redis.call("ZRANGE", KEYS[3], 0, 0, "WITHSCORES")
  return {2, first[2] * 1000 - now}
end
local interval = tonumber(ARGV[8])
if interval > 0 then
  local wait, new = gcra(KEYS[5], interval, tonumber(ARGV[9]), 1, now)
  if wait > 0 then return {3, wait} end
  count(KEYS[5], new, now)
end
if ARGV[2] == "0" then redis.call("SET", KEYS[1], ARGV[1])
else redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2]) end
if ARGV[4] ~= "" then redis.call("ZADD", KEYS[2], ARGV[4], ARGV[3]) end
if ARGV[5] ~= "" then redis.call("ZADD", KEYS[3], ARGV[5], ARGV[3]) end
redis.call("ZREMRANGEBYLEX", KEYS[4], "-", "(" .. ARGV[11])
local n = redis.call("ZCARD", KEYS[4])
if n > 0 then
  for _, rank in ipairs({0, math.floor(ARGV[13] * n), math.floor(ARGV[14] * n)}) do
    local id = redis.call("ZRANGE", KEYS[4], rank, rank)[1]
    if id and redis.call("EXISTS", ARGV[12] .. id) == 0 then redis.call("ZREM", KEYS[4], id) end
  end
end
if ARGV[6] ~= "" then redis.call("ZADD", KEYS[4], 0, ARGV[3]) end
return {0, 0}`)

// claimDue puts off orders that are due, and drops those that are gone (in the
// same slot as the queue).
//
//	KEYS[1] due    ARGV[1] now in Unix ms   ARGV[2] put off until, in Unix ms
//	               ARGV[3] what order keys begin with
//	               ARGV[4] and on: order IDs
//
// It returns the IDs that were claimed.
var claimDue = newScript(`
local got = {}
for i = 4, #ARGV do
  local score = redis.call("ZSCORE", KEYS[1], ARGV[i])
  if score and tonumber(score) <= tonumber(ARGV[1]) then
    if redis.call("EXISTS", ARGV[3] .. ARGV[i]) == 1 then
      redis.call("ZADD", KEYS[1], ARGV[2], ARGV[i])
      got[#got + 1] = ARGV[i]
    else redis.call("ZREM", KEYS[1], ARGV[i]) end
  end
end
return got`)

// claimCert gives a certificate an owner unless it has another.
//
//	KEYS[1] claim    ARGV[1] owner   ARGV[2] keep it for so many ms, "0" for ever
//
// It returns the owner.
var claimCert = newScript(`
local owner = redis.call("GET", KEYS[1])
if owner and owner ~= ARGV[1] then return owner end
if ARGV[2] == "0" then redis.call("SET", KEYS[1], ARGV[1])
else redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2]) end
return ARGV[1]`)
