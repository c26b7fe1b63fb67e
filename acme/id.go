package acme

import (
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// Shards is how many parts the key space has. An ID begins with its shard, and
// an order lives in the shard of its account, so that everything one request
// writes together shares a Redis Cluster slot. The number is part of the stored
// format.
const Shards = 16

const (
	shardLen = 2
	idLen    = shardLen + ulid.EncodedSize
)

// Shard returns the shard part of an ID made by [IDs].
func Shard(id string) string {
	if len(id) < shardLen {
		return ""
	}
	return id[:shardLen]
}

// ValidID reports whether s has the form of an ID, so that anything else in a
// URL never reaches a store.
func ValidID(s string) bool {
	if len(s) != idLen {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return s[0] <= '1' && (s[0] == '0' || s[1] < '0'+Shards-10) && s[1] <= '9'
}

// IDs makes identifiers and tokens from a source of randomness, which must be
// cryptographic outside of tests and safe for concurrent use.
type IDs struct{ Rand io.Reader }

// Account makes an ID in a shard of its own choice. IDs carry the time and 80
// random bits; they sort by time within a shard.
func (g IDs) Account(now time.Time) (string, error) {
	var b [1]byte
	if _, err := io.ReadFull(g.Rand, b[:]); err != nil {
		return "", fmt.Errorf("read randomness: %w", err)
	}
	return g.inShard(fmt.Sprintf("%02d", b[0]%Shards), now)
}

// Order makes an ID in the shard of the account.
func (g IDs) Order(accountID string, now time.Time) (string, error) {
	return g.inShard(Shard(accountID), now)
}

func (g IDs) inShard(shard string, now time.Time) (string, error) {
	id, err := ulid.New(ulid.Timestamp(now), g.Rand)
	if err != nil {
		return "", fmt.Errorf("make ID: %w", err)
	}
	return shard + strings.ToLower(id.String()), nil
}

// IDBefore returns the smallest ID that an order of this account made at or
// after t can have: a bound for trimming and paging, not an ID in use.
func IDBefore(accountID string, t time.Time) string {
	var id ulid.ULID
	if err := id.SetTime(ulid.Timestamp(t)); err != nil {
		return Shard(accountID)
	}
	return Shard(accountID) + strings.ToLower(id.String())
}

// Token makes a challenge token of 144 random bits in base64url
// (RFC 8555, Section 8.3 asks for 128 at least).
func (g IDs) Token() (string, error) {
	var b [18]byte
	if _, err := io.ReadFull(g.Rand, b[:]); err != nil {
		return "", fmt.Errorf("read randomness: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b[:]), nil
}
