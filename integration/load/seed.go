package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/redis/go-redis/v9"
)

// seed makes Redis look as if count more orders had been finished: it copies
// one finished order, with its certificate's claim, its proof and its entry on
// the account's list, under new names. Only the number matters to the requests
// that are measured afterwards; the copies are never read.
func seed(ctx context.Context, address string, count int) error {
	rdb := redis.NewClient(&redis.Options{Addr: address})
	defer rdb.Close()
	keys, err := rdb.Keys(ctx, "acme:*").Result() // a handful at this point
	if err != nil {
		return err
	}
	find := func(part string) (key, value string) {
		for _, k := range keys {
			if strings.Contains(k, part) {
				if v, err := rdb.Get(ctx, k).Result(); err == nil && len(v) > len(value) {
					key, value = k, v
				}
			}
		}
		return key, value
	}
	order, orderValue := find("}:order:")
	claim, claimValue := find("}:cert:")
	proof, proofValue := find("}:proof:")
	if order == "" || claim == "" || proof == "" {
		return errors.New("no finished order to copy; warm up with at least one flow")
	}
	base, id := order[:strings.LastIndexByte(order, ':')+1], order[strings.LastIndexByte(order, ':')+1:]
	account := proof[strings.Index(proof, ":proof:")+len(":proof:"):]
	account = account[:strings.IndexByte(account, ':')]
	list := strings.Replace(base, ":order:", ":orders:", 1) + account
	const batch = 2000
	for done := 0; done < count; done += batch {
		pipe := rdb.Pipeline()
		for i := done; i < min(done+batch, count); i++ {
			// Same shard and time, another random part.
			name := fmt.Sprintf("%s%016x", id[:12], rand.Uint64())
			pipe.Set(ctx, base+name, orderValue, 0)
			pipe.Set(ctx, fmt.Sprintf("%s-%d", claim, i), claimValue, 0)
			pipe.Set(ctx, fmt.Sprintf("%s-%d", proof, i), proofValue, 0)
			pipe.ZAdd(ctx, list, redis.Z{Member: name})
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return fmt.Errorf("seed: %w", err)
		}
	}
	memory, err := rdb.Info(ctx, "memory").Result()
	if err != nil {
		return err
	}
	for line := range strings.Lines(memory) {
		if human, ok := strings.CutPrefix(line, "used_memory_human:"); ok {
			fmt.Printf("stored %d finished orders, Redis uses %s", count, human)
		}
	}
	return nil
}
