package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"go.etcd.io/bbolt"

	"github.com/acme-bridge/acme-bridge/acme"
)

// The buckets. Values begin with a version and an expiry (see value) unless
// noted. An ID has 28 octets, a time is 8 octets of Unix ms, big-endian, so that
// keys sort by it.
var (
	accountsBucket   = []byte("accounts")   // ID: account
	keysBucket       = []byte("keys")       // directory, 0, thumbprint: account ID, bare
	ordersBucket     = []byte("orders")     // ID: order
	listsBucket      = []byte("lists")      // account ID, order ID: nothing; no invalid orders
	openBucket       = []byte("open")       // account ID, expiry, order ID: nothing
	dueBucket        = []byte("due")        // wake time, order ID: nothing
	wakesBucket      = []byte("wakes")      // order ID: wake time in due, bare
	proofsBucket     = []byte("proofs")     // account ID, name: proof
	limitsBucket     = []byte("limits")     // scope, 0, subject: arrival time in Unix µs
	chainsBucket     = []byte("chains")     // SHA-256: PEM
	certsBucket      = []byte("certs")      // certificate ID: order ID
	quarantineBucket = []byte("quarantine") // sequence: certificate
	recordsBucket    = []byte("records")    // name: data
	expiryBucket     = []byte("expiry")     // expiry, bucket's letter, key: nothing

	buckets = [][]byte{
		accountsBucket, keysBucket, ordersBucket, listsBucket, openBucket, dueBucket, wakesBucket, proofsBucket,
		limitsBucket, chainsBucket, certsBucket, quarantineBucket, recordsBucket, expiryBucket,
	}
)

// expiring are the buckets with values that expire, by their letter in expiry.
var expiring = map[byte][]byte{'o': ordersBucket, 'p': proofsBucket, 'l': limitsBucket, 'c': certsBucket}

func letter(bucket []byte) byte {
	for l, b := range expiring {
		if bytes.Equal(b, bucket) {
			return l
		}
	}
	return 0
}

// errForeign: a value is not the one that was asked for, so that it must not
// reach anyone.
var errForeign = errors.New("the value read is not the one asked for")

// minKeep is how long anything written is kept at least: its writer may be
// about to read it.
const minKeep = time.Hour

// A txn is a transaction that remembers its first failure, so that writes need
// no check each.
type txn struct {
	*bbolt.Tx
	err    error
	writes int
}

func (t *txn) set(bucket, key, val []byte) {
	t.writes++
	if err := t.Bucket(bucket).Put(key, val); err != nil && t.err == nil {
		t.err = fmt.Errorf("write to %s: %w", bucket, err)
	}
}

func (t *txn) remove(bucket, key []byte) {
	t.writes++
	if err := t.Bucket(bucket).Delete(key); err != nil && t.err == nil {
		t.err = fmt.Errorf("remove from %s: %w", bucket, err)
	}
}

const headerLen = 16

// value is what get returns: version, expiry in Unix ms (0: none), and body,
// which is valid only within the transaction.
type value struct {
	version int64
	expiry  uint64
	body    []byte
}

func (t *txn) get(bucket, key []byte) (value, bool) {
	raw := t.Bucket(bucket).Get(key)
	if len(raw) < headerLen {
		return value{}, false
	}
	return value{
		version: int64(binary.BigEndian.Uint64(raw)), expiry: binary.BigEndian.Uint64(raw[8:]), body: raw[headerLen:],
	}, true
}

// put writes a value, to be kept for ever if until is zero, and moves its entry
// among the expiries.
func (t *txn) put(bucket, key []byte, version int64, until time.Time, body []byte) {
	var expiry uint64
	if !until.IsZero() {
		expiry = uint64(until.UnixMilli())
	}
	old, _ := t.get(bucket, key)
	if old.expiry != expiry {
		t.unexpire(bucket, key, old.expiry)
	}
	raw := make([]byte, headerLen, headerLen+len(body))
	binary.BigEndian.PutUint64(raw, uint64(version))
	binary.BigEndian.PutUint64(raw[8:], expiry)
	t.set(bucket, key, append(raw, body...))
	if expiry != 0 && expiry != old.expiry {
		t.set(expiryBucket, expiryKey(bucket, key, expiry), nil)
	}
}

func (t *txn) drop(bucket, key []byte) {
	if old, ok := t.get(bucket, key); ok {
		t.unexpire(bucket, key, old.expiry)
		t.remove(bucket, key)
	}
}

func (t *txn) unexpire(bucket, key []byte, expiry uint64) {
	if expiry != 0 {
		t.remove(expiryBucket, expiryKey(bucket, key, expiry))
	}
}

func expiryKey(bucket, key []byte, expiry uint64) []byte {
	k := binary.BigEndian.AppendUint64(make([]byte, 0, 9+len(key)), expiry)
	return append(append(k, letter(bucket)), key...)
}

// sweep removes at most n values that expired. It runs with each commit, so
// that the file needs no scan, and nothing while nobody writes.
func (t *txn) sweep(now time.Time, n int) {
	var keys [][]byte
	bound := atTime(now)
	c := t.Bucket(expiryBucket).Cursor()
	for k, _ := c.First(); len(k) > 9 && bytes.Compare(k[:8], bound) <= 0 && len(keys) < n; k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		bucket, key := expiring[k[8]], k[9:]
		if bytes.Equal(bucket, ordersBucket) {
			t.dropOrder(string(key))
		} else {
			t.drop(bucket, key)
		}
		t.remove(expiryBucket, k)
	}
}

func atTime(t time.Time) []byte { return binary.BigEndian.AppendUint64(nil, uint64(t.UnixMilli())) }

// wakeTime rounds up: nothing is due before its time.
func wakeTime(t time.Time) []byte { return atTime(t.Add(time.Millisecond - time.Nanosecond)) }

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// until is when a value may go, no sooner than minKeep from now.
func (s *Store) until(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	if least := s.now().Add(minKeep); t.Before(least) {
		return least
	}
	return t
}

// go-json-experiment decodes an order in half the time of encoding/json.
var marshalOptions = json.JoinOptions(json.OmitZeroStructFields(true))

func encode(v any) ([]byte, error) { return json.Marshal(v, marshalOptions) }

func (t *txn) order(id string) (*acme.Order, error) {
	v, ok := t.get(ordersBucket, []byte(id))
	if !ok {
		return nil, acme.ErrNotFound
	}
	o := &acme.Order{}
	if err := json.Unmarshal(v.body, o); err != nil {
		return nil, fmt.Errorf("order %s: %w", id, err)
	}
	if o.ID != id {
		return nil, fmt.Errorf("order %s: %w", id, errForeign)
	}
	o.Version = v.version
	return o, nil
}

func (t *txn) account(id string) (*acme.Account, error) {
	v, ok := t.get(accountsBucket, []byte(id))
	if !ok {
		return nil, acme.ErrNotFound
	}
	a := &acme.Account{}
	if err := json.Unmarshal(v.body, a); err != nil {
		return nil, fmt.Errorf("account %s: %w", id, err)
	}
	if a.ID != id {
		return nil, fmt.Errorf("account %s: %w", id, errForeign)
	}
	a.Version = v.version
	return a, nil
}
