package acme

import (
	"crypto/rand"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestIDsAreValidAndSpreadOverTheShards(t *testing.T) {
	ids, seen, shards := testIDs(), map[string]bool{}, map[string]int{}
	const n = 2000
	for range n {
		id, err := ids.Account(start)
		if err != nil {
			t.Fatal(err)
		}
		if !ValidID(id) || seen[id] {
			t.Fatalf("%q is not valid, or was made before: %t", id, seen[id])
		}
		seen[id] = true
		shards[Shard(id)]++
	}
	if got, want := len(shards), Shards; got != want {
		t.Errorf("%d shards are used, want %d", got, want)
	}
	for shard, count := range shards {
		if count < n/Shards/2 || count > n/Shards*2 {
			t.Errorf("shard %s has %d of %d", shard, count, n)
		}
	}
}

func TestOrdersLiveInTheShardOfTheirAccount(t *testing.T) {
	ids := IDs{Rand: rand.Reader}
	for range 50 {
		account, err := ids.Account(start)
		if err != nil {
			t.Fatal(err)
		}
		order, err := ids.Order(account, start)
		if err != nil {
			t.Fatal(err)
		}
		if Shard(order) != Shard(account) || !ValidID(order) || order == account {
			t.Errorf("order %q of account %q", order, account)
		}
	}
}

func TestIDsSortByTime(t *testing.T) {
	ids := testIDs()
	var made []string
	for i := range 200 {
		id, err := ids.Order("07", start.Add(time.Duration(i)*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, id)
	}
	if !slices.IsSorted(made) {
		t.Error("IDs of one shard do not sort by time")
	}
}

func TestIDBefore(t *testing.T) {
	ids, at := testIDs(), start.Add(123*time.Millisecond)
	bound := IDBefore("07account", at)
	if !ValidID(bound) || Shard(bound) != "07" {
		t.Errorf("the bound %q has not the form of an ID of the account's shard", bound)
	}
	for range 100 {
		now, err := ids.Order("07account", at)
		if err != nil {
			t.Fatal(err)
		}
		before, err := ids.Order("07account", at.Add(-time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		if now < bound || before >= bound {
			t.Fatalf("bound %q does not part %q from %q", bound, before, now)
		}
	}
	if got := IDBefore("07account", time.Unix(-1, 0)); got > bound {
		t.Errorf("the bound for a time before 1970 is %q", got)
	}
}

func TestValidID(t *testing.T) {
	const rest = "01kj5w6m0000000000000000az"
	for _, tt := range []struct {
		name string
		id   string
		want bool
	}{
		{"the first shard", "00" + rest, true},
		{"shard 9", "09" + rest, true},
		{"the last shard", "15" + rest, true},
		{"one shard too many", "16" + rest, false},
		{"shard 19", "19" + rest, false},
		{"shard 20", "20" + rest, false},
		{"a shard in letters", "aa" + rest, false},
		{"a shard that is half a letter", "0a" + rest, false},
		{"another half", "1a" + rest, false},
		{"nothing", "", false},
		{"a shard alone", "07", false},
		{"a character too few", "07" + rest[1:], false},
		{"a character too many", "07" + rest + "0", false},
		{"upper case", "07" + strings.ToUpper(rest), false},
		{"a slash", "07" + rest[:25] + "/", false},
		{"a brace", "07" + rest[:25] + "}", false},
		{"a star", "07" + rest[:25] + "*", false},
		{"a NUL", "07" + rest[:25] + "\x00", false},
		{"a line break", "07" + rest[:25] + "\n", false},
		{"letters beyond ASCII", "07" + rest[:24] + "é", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := ValidID(tt.id); got != tt.want {
				t.Errorf("ValidID(%q) = %t, want %t", tt.id, got, tt.want)
			}
		})
	}
	if got := Shard("0"); got != "" {
		t.Errorf("Shard of a broken ID is %q", got)
	}
}

// RFC 8555, Section 8.3: at least 128 bits, in base64url without padding.
func TestSection8_3_Tokens(t *testing.T) {
	ids, seen := testIDs(), map[string]bool{}
	for range 100 {
		token, err := ids.Token()
		if err != nil {
			t.Fatal(err)
		}
		bits, err := base64.RawURLEncoding.Strict().DecodeString(token)
		if err != nil || len(bits)*8 < 128 || seen[token] {
			t.Fatalf("token %q: %d bits, %v, seen before: %t", token, len(bits)*8, err, seen[token])
		}
		seen[token] = true
	}
}

func TestIDsNeedRandomness(t *testing.T) {
	dry := IDs{Rand: strings.NewReader("")}
	if id, err := dry.Account(start); err == nil {
		t.Errorf("account ID %q of no randomness", id)
	}
	if id, err := dry.Order("07", start); err == nil {
		t.Errorf("order ID %q of no randomness", id)
	}
	if token, err := (IDs{Rand: strings.NewReader("short")}).Token(); err == nil {
		t.Errorf("token %q of five octets", token)
	}
}
