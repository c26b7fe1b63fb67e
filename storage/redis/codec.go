package redis

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/acme-bridge/acme-bridge/acme"
)

// A value that is swapped begins with its version as 16 hexadecimal digits, so
// that a script can compare them without knowing the rest.
const versionLen = 16

// errForeign: a value is not the one that was asked for. It may be another
// account's, so it must not reach anyone.
var errForeign = errors.New("the value read is not the one asked for")

func version(v int64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%016x", v)
}

func cutVersion(value string) (int64, string, error) {
	if len(value) < versionLen {
		return 0, "", fmt.Errorf("value of %d octets has no version", len(value))
	}
	v, err := strconv.ParseInt(value[:versionLen], 16, 64)
	if err != nil || v <= 0 {
		return 0, "", errors.New("value has a bad version")
	}
	return v, value[versionLen:], nil
}

// Leaving zero values out and go-json-experiment's decoder make an order 15 %
// smaller and its decoding twice as fast as encoding/json's.
var marshalOptions = json.JoinOptions(json.OmitZeroStructFields(true))

func encode(v any, ver int64) ([]byte, error) {
	body, err := json.Marshal(v, marshalOptions)
	if err != nil {
		return nil, err
	}
	return append([]byte(version(ver)), body...), nil
}

// encodeOrder writes the leaf certificate as it is behind the JSON, from which
// a line feed divides it: as base64 it would be a third longer.
func encodeOrder(o *acme.Order, ver int64) ([]byte, error) {
	if o.Certificate == nil {
		return encode(o, ver)
	}
	bare, cert := *o, *o.Certificate
	leaf := cert.Leaf
	cert.Leaf, bare.Certificate = nil, &cert
	value, err := encode(&bare, ver)
	if err != nil {
		return nil, err
	}
	return append(append(value, '\n'), leaf...), nil
}

func decodeOrder(id, value string) (*acme.Order, error) {
	ver, rest, err := cutVersion(value)
	if err != nil {
		return nil, fmt.Errorf("read order %s: %w", id, err)
	}
	body, leaf, _ := bytes.Cut([]byte(rest), []byte{'\n'})
	o := &acme.Order{}
	if err := json.Unmarshal(body, o); err != nil {
		return nil, fmt.Errorf("read order %s: %w", id, err)
	}
	if o.ID != id || acme.Shard(o.AccountID) != acme.Shard(id) {
		return nil, fmt.Errorf("read order %s: %w", id, errForeign)
	}
	if o.Certificate != nil {
		o.Certificate.Leaf = leaf
	}
	o.Version = ver
	return o, nil
}

func decodeAccount(id, value string) (*acme.Account, error) {
	ver, body, err := cutVersion(value)
	if err != nil {
		return nil, fmt.Errorf("read account %s: %w", id, err)
	}
	a := &acme.Account{}
	if err := json.Unmarshal([]byte(body), a); err != nil {
		return nil, fmt.Errorf("read account %s: %w", id, err)
	}
	if a.ID != id {
		return nil, fmt.Errorf("read account %s: %w", id, errForeign)
	}
	a.Version = ver
	return a, nil
}

func decodeProof(key acme.ProofKey, value string) (*acme.Proof, error) {
	p := &acme.Proof{}
	if err := json.Unmarshal([]byte(value), p); err != nil {
		return nil, fmt.Errorf("read proof of %s: %w", key.Name, err)
	}
	if p.ProofKey != key {
		return nil, fmt.Errorf("read proof of %s: %w", key.Name, errForeign)
	}
	return p, nil
}

// minKeep is how long anything written is kept at least: its writer may be
// about to read it, and clocks differ.
const minKeep = time.Hour

// ttl is for how many milliseconds a value is kept, "0" for ever if until is
// zero. It is relative, so that Redis's clock does not matter.
func ttl(until time.Time) string {
	if until.IsZero() {
		return "0"
	}
	return strconv.FormatInt(max(time.Until(until), minKeep).Milliseconds(), 10)
}

func millis(t time.Time) string { return strconv.FormatInt(t.UnixMilli(), 10) }

// wakeMillis rounds up: nothing is due before its time.
func wakeMillis(t time.Time) string { return millis(t.Add(time.Millisecond - time.Nanosecond)) }
