package bolt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/acme-bridge/acme-bridge/acme"
)

// maxQuarantine is how many quarantined certificates are kept; the log tells of
// each one too.
const maxQuarantine = 1000

// PutChain keeps a chain under its SHA-256. A chain that is there is not
// written again.
func (s *Store) PutChain(ctx context.Context, pem []byte) (string, error) {
	sum := sha256.Sum256(pem)
	ref := base64.RawURLEncoding.EncodeToString(sum[:])
	known := false
	if err := s.read(ctx, "store chain", func(t *txn) error {
		_, known = t.get(chainsBucket, []byte(ref))
		return nil
	}); err != nil || known {
		return ref, err
	}
	return ref, s.write(ctx, "store chain", func(t *txn) error {
		t.put(chainsBucket, []byte(ref), 0, time.Time{}, pem)
		return nil
	})
}

// Chain returns a chain by its name.
func (s *Store) Chain(ctx context.Context, ref string) ([]byte, error) {
	var pem []byte
	err := s.read(ctx, "read chain "+ref, func(t *txn) error {
		v, ok := t.get(chainsBucket, []byte(ref))
		if !ok {
			return acme.ErrNotFound
		}
		pem = bytes.Clone(v.body)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return pem, nil
}

// ClaimCertificate gives a certificate to the order unless another has it.
func (s *Store) ClaimCertificate(ctx context.Context, certID, orderID string, keepUntil time.Time) (string, error) {
	owner := orderID
	err := s.write(ctx, "claim certificate "+certID, func(t *txn) error {
		if v, ok := t.get(certsBucket, []byte(certID)); ok && string(v.body) != orderID {
			owner = string(v.body)
			return nil
		}
		t.put(certsBucket, []byte(certID), 0, s.until(keepUntil), []byte(orderID))
		return nil
	})
	if err != nil {
		return "", err
	}
	return owner, nil
}

// CertificateOwners says which orders certificates belong to.
func (s *Store) CertificateOwners(ctx context.Context, certIDs []string) ([]string, error) {
	owners := make([]string, len(certIDs))
	err := s.read(ctx, "read certificate owners", func(t *txn) error {
		for i, id := range certIDs {
			v, _ := t.get(certsBucket, []byte(id))
			owners[i] = string(v.body)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return owners, nil
}

// PutQuarantine keeps a certificate that failed its check; of very many, the
// newest.
func (s *Store) PutQuarantine(ctx context.Context, q *acme.Quarantine) error {
	body, err := encode(q)
	if err != nil {
		return fmt.Errorf("quarantine certificate of order %s: %w", q.OrderID, err)
	}
	return s.write(ctx, "quarantine certificate of order "+q.OrderID, func(t *txn) error {
		n, err := t.Bucket(quarantineBucket).NextSequence()
		if err != nil {
			return err
		}
		t.put(quarantineBucket, binary.BigEndian.AppendUint64(nil, n), 0, time.Time{}, body)
		if n > maxQuarantine {
			t.remove(quarantineBucket, binary.BigEndian.AppendUint64(nil, n-maxQuarantine))
		}
		return nil
	})
}

// Quarantined returns the newest quarantined certificates, for the operator.
func (s *Store) Quarantined(ctx context.Context, limit int) ([]*acme.Quarantine, error) {
	var list []*acme.Quarantine
	err := s.read(ctx, "read quarantine", func(t *txn) error {
		c := t.Bucket(quarantineBucket).Cursor()
		for k, raw := c.Last(); k != nil && len(list) < limit; k, raw = c.Prev() {
			q := &acme.Quarantine{}
			if len(raw) < headerLen {
				return fmt.Errorf("entry of %d octets", len(raw))
			}
			if err := json.Unmarshal(raw[headerLen:], q); err != nil {
				return err
			}
			list = append(list, q)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// Record returns a named record and its version.
func (s *Store) Record(ctx context.Context, name string) ([]byte, int64, error) {
	var data []byte
	var version int64
	err := s.read(ctx, "read record "+name, func(t *txn) error {
		if v, ok := t.get(recordsBucket, []byte(name)); ok {
			data, version = bytes.Clone(v.body), v.version
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return data, version, nil
}

// PutRecord replaces a record of that version.
func (s *Store) PutRecord(ctx context.Context, name string, data []byte, version int64) error {
	return s.write(ctx, "write record "+name, func(t *txn) error {
		if v, _ := t.get(recordsBucket, []byte(name)); v.version != version {
			return acme.ErrConflict
		}
		t.put(recordsBucket, []byte(name), version+1, time.Time{}, data)
		return nil
	})
}
