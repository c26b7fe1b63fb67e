package server

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/acme-bridge/acme-bridge/acme"
)

// nonceLifetime is how long a nonce may be used. A client that comes later gets
// badNonce with a fresh one; a longer life would cost memory for marks.
const nonceLifetime = time.Hour

// A nonce is 4 bytes of time, 12 of randomness, and 16 of MAC: minting one
// writes nothing, so a flood of newNonce stores nothing (RFC 8555, Section 6.5).
const (
	nonceTimeLen = 4
	nonceBodyLen = nonceTimeLen + 12
	nonceLen     = nonceBodyLen + 16
)

// nonces mints and checks nonces with a key that all replicas share.
type nonces struct {
	store acme.Store
	rand  io.Reader
	now   func() time.Time

	key    atomic.Pointer[[]byte]
	flight singleflight.Group
	asked  atomic.Int64 // Unix second in which a nonce of an unknown key last made us ask the store
}

// mint returns a fresh nonce.
func (n *nonces) mint(ctx context.Context) (string, error) {
	key, err := n.loadKey(ctx)
	if err != nil {
		return "", err
	}
	var b [nonceLen]byte
	binary.BigEndian.PutUint32(b[:], uint32(n.now().Unix()))
	if _, err := io.ReadFull(n.rand, b[nonceTimeLen:nonceBodyLen]); err != nil {
		return "", fmt.Errorf("read randomness: %w", err)
	}
	copy(b[nonceBodyLen:], sign(*key, b[:nonceBodyLen]))
	return base64.RawURLEncoding.EncodeToString(b[:]), nil
}

// check tells whether we minted the nonce, lately; whether it was used only the
// store knows, by the name that check returns.
func (n *nonces) check(ctx context.Context, nonce string) (mark string, ok bool, err error) {
	key, err := n.loadKey(ctx)
	if err != nil {
		return "", false, err
	}
	b, err := strictBase64(nonce)
	if err != nil || len(b) != nonceLen {
		return "", false, nil
	}
	age := n.now().Unix() - int64(binary.BigEndian.Uint32(b))
	// Another replica's clock may be ahead of ours by a little.
	if age < -60 || age >= int64(nonceLifetime/time.Second) {
		return "", false, nil
	}
	if !hmac.Equal(sign(*key, b[:nonceBodyLen]), b[nonceBodyLen:]) {
		// Another replica may have replaced a key that the store lost, and a
		// client's only retry must not end at the one that does not know yet.
		// Made-up nonces cost one question a second.
		second := n.now().Unix()
		if last := n.asked.Load(); last == second || !n.asked.CompareAndSwap(last, second) {
			return "", false, nil
		}
		if key, err = n.askKey(ctx); err != nil {
			return "", false, err
		}
		if !hmac.Equal(sign(*key, b[:nonceBodyLen]), b[nonceBodyLen:]) {
			return "", false, nil
		}
	}
	return base64.RawURLEncoding.EncodeToString(b[nonceTimeLen:nonceBodyLen]), true, nil
}

// confirm reports whether found redeemed the nonce under the key that we hold.
// A store that lost its marks lost the key with them; then no old nonce counts.
func (n *nonces) confirm(ctx context.Context, found *acme.Found) bool {
	key := n.key.Load()
	if key != nil && hmac.Equal(found.NonceKey, *key) {
		return found.NonceFresh
	}
	n.key.CompareAndSwap(key, nil)
	// On failure the next request tries again; this one gets badNonce anyway.
	_, _ = n.loadKey(ctx)
	return false
}

// loadKey returns the key, from the store when this process has none yet.
func (n *nonces) loadKey(ctx context.Context) (*[]byte, error) {
	if key := n.key.Load(); key != nil {
		return key, nil
	}
	return n.askKey(ctx)
}

// askKey gets the key from the store, which takes the one proposed if it has none.
func (n *nonces) askKey(ctx context.Context) (*[]byte, error) {
	v, err, _ := n.flight.Do("", func() (any, error) {
		proposed := make([]byte, sha256.Size)
		if _, err := io.ReadFull(n.rand, proposed); err != nil {
			return nil, fmt.Errorf("read randomness: %w", err)
		}
		// One caller's cancellation must not fail the others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		key, err := n.store.NonceKey(ctx, proposed)
		if err != nil {
			return nil, fmt.Errorf("load nonce key: %w", err)
		}
		n.key.Store(&key)
		return &key, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*[]byte), nil
}

func sign(key, body []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(body)
	return mac.Sum(nil)[:nonceLen-nonceBodyLen]
}
