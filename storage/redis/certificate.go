package redis

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/acme-bridge/acme-bridge/acme"
)

// maxQuarantine is how many quarantined certificates are kept; the log tells of
// each one too.
const maxQuarantine = 1000

// PutChain keeps a chain under its SHA-256. A chain that was stored or read
// since the connection was made is not sent again.
func (s *Store) PutChain(ctx context.Context, pem []byte) (string, error) {
	sum := sha256.Sum256(pem)
	ref := base64.RawURLEncoding.EncodeToString(sum[:])
	if s.chains.Contains(ref) {
		return ref, nil
	}
	// Not NX: should the key hold anything else, it is mended.
	if err := s.rdb.Set(ctx, s.key.chain(ref), pem, 0).Err(); err != nil {
		return "", s.failed(ctx, "store chain", err)
	}
	s.chains.Add(ref, slices.Clone(pem))
	return ref, nil
}

// Chain returns a chain by its name. Its content never changes, so that one
// read is enough.
func (s *Store) Chain(ctx context.Context, ref string) ([]byte, error) {
	if pem, ok := s.chains.Get(ref); ok {
		return slices.Clone(pem), nil
	}
	value, err := s.get(ctx, s.key.chain(ref))
	if err != nil {
		return nil, s.failed(ctx, "read chain "+ref, err)
	}
	if value == "" {
		return nil, fmt.Errorf("read chain %s: %w", ref, acme.ErrNotFound)
	}
	if sum := sha256.Sum256([]byte(value)); base64.RawURLEncoding.EncodeToString(sum[:]) != ref {
		return nil, s.judge(ctx, "read chain "+ref, errForeign)
	}
	s.chains.Add(ref, []byte(value))
	return []byte(value), nil
}

// owned is the value of a certificate's claim: the order's ID, and some of the
// certificate ID's hash to know the value by.
func owned(certID, orderID string) string {
	sum := sha256.Sum256([]byte(certID))
	return base64.RawURLEncoding.EncodeToString(sum[:6]) + orderID
}

func ownerIn(certID, value string) (string, error) {
	check := owned(certID, "")
	owner, ok := strings.CutPrefix(value, check)
	if !ok {
		return "", fmt.Errorf("certificate %s: %w", certID, errForeign)
	}
	return owner, nil
}

// ClaimCertificate gives a certificate to the order unless another has it.
func (s *Store) ClaimCertificate(ctx context.Context, certID, orderID string, keepUntil time.Time) (string, error) {
	got, err := claimCert.run(ctx, s.rdb, []string{s.key.cert(certID)}, owned(certID, orderID), ttl(keepUntil))
	if err != nil {
		return "", s.failed(ctx, "claim certificate "+certID, err)
	}
	value, _ := got.(string)
	owner, err := ownerIn(certID, value)
	if err != nil {
		return "", s.judge(ctx, "claim", err)
	}
	return owner, nil
}

// CertificateOwners says which orders certificates belong to.
func (s *Store) CertificateOwners(ctx context.Context, certIDs []string) ([]string, error) {
	owners := make([]string, len(certIDs))
	var gs groups
	for i, id := range certIDs {
		gs.add(shardOf(id), s.key.cert(id), func(v string) (err error) {
			owners[i], err = ownerIn(id, v)
			return err
		})
	}
	if len(gs) == 0 {
		return owners, nil
	}
	pipe := s.rdb.Pipeline()
	gs.queue(ctx, pipe)
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, s.failed(ctx, "read certificate owners", err)
	}
	if err := gs.deliver(); err != nil {
		return nil, s.judge(ctx, "read certificate owners", err)
	}
	return owners, nil
}

// PutQuarantine keeps a certificate that failed its check; of very many, the
// newest.
func (s *Store) PutQuarantine(ctx context.Context, q *acme.Quarantine) error {
	value, err := encode(q, 0)
	if err != nil {
		return fmt.Errorf("quarantine certificate of order %s: %w", q.OrderID, err)
	}
	pipe := s.rdb.Pipeline()
	_ = pipe.Process(ctx, newOnce(ctx, "lpush", s.key.quarantine(), value))
	pipe.LTrim(ctx, s.key.quarantine(), 0, maxQuarantine-1)
	if _, err := pipe.Exec(ctx); err != nil {
		return s.failed(ctx, "quarantine certificate of order "+q.OrderID, err)
	}
	return nil
}

// Quarantined returns the newest quarantined certificates, for the operator.
func (s *Store) Quarantined(ctx context.Context, limit int) ([]*acme.Quarantine, error) {
	values, err := s.rdb.LRange(ctx, s.key.quarantine(), 0, int64(limit)-1).Result()
	if err != nil {
		return nil, s.failed(ctx, "read quarantine", err)
	}
	list := make([]*acme.Quarantine, len(values))
	for i, v := range values {
		list[i] = &acme.Quarantine{}
		if err := json.Unmarshal([]byte(v), list[i]); err != nil {
			return nil, fmt.Errorf("read quarantine: %w", err)
		}
	}
	return list, nil
}

// Record returns a named record and its version.
func (s *Store) Record(ctx context.Context, name string) ([]byte, int64, error) {
	value, err := s.get(ctx, s.key.record(name))
	if err != nil {
		return nil, 0, s.failed(ctx, "read record "+name, err)
	}
	if value == "" {
		return nil, 0, nil
	}
	ver, rest, err := cutVersion(value)
	if err != nil {
		return nil, 0, fmt.Errorf("read record %s: %w", name, err)
	}
	data, ok := strings.CutPrefix(rest, name+"\n")
	if !ok {
		return nil, 0, s.judge(ctx, "read record "+name, errForeign)
	}
	return []byte(data), ver, nil
}

// PutRecord replaces a record of that version.
func (s *Store) PutRecord(ctx context.Context, name string, data []byte, ver int64) error {
	value := append([]byte(version(ver+1)+name+"\n"), data...)
	saved, err := swapVersion.runBool(ctx, s.rdb, []string{s.key.record(name)}, version(ver), value, "0")
	if err != nil {
		return s.failed(ctx, "write record "+name, err)
	}
	if !saved {
		return fmt.Errorf("write record %s: %w", name, acme.ErrConflict)
	}
	return nil
}
