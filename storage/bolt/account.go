package bolt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

func holderKey(directory, thumbprint string) []byte { return []byte(directory + "\x00" + thumbprint) }

// holder returns the account that has a key, or ErrNotFound.
func (t *txn) holder(directory, thumbprint string) (*acme.Account, error) {
	id := t.Bucket(keysBucket).Get(holderKey(directory, thumbprint))
	if id == nil {
		return nil, acme.ErrNotFound
	}
	a, err := t.account(string(id))
	if err != nil {
		return nil, err
	}
	if a.Directory != directory || a.Thumbprint != thumbprint {
		return nil, fmt.Errorf("account %s: %w", a.ID, errForeign)
	}
	return a, nil
}

// CreateAccount stores a new account unless its key has one.
func (s *Store) CreateAccount(ctx context.Context, a *acme.Account) (*acme.Account, bool, error) {
	if !acme.ValidID(a.ID) {
		return nil, false, fmt.Errorf("create account: %q is not an ID", a.ID)
	}
	var result *acme.Account
	created := false
	err := s.write(ctx, "create account "+a.ID, func(t *txn) (err error) {
		result, err = t.holder(a.Directory, a.Thumbprint)
		if !errors.Is(err, acme.ErrNotFound) {
			return err
		}
		if _, exists := t.get(accountsBucket, []byte(a.ID)); exists {
			return acme.ErrConflict
		}
		result, created = a.Clone(), true
		result.Version = 1
		return t.putAccount(result, nil)
	})
	if err != nil {
		return nil, false, err
	}
	return result, created, nil
}

// putAccount writes an account and its key, and takes away the key it had.
func (t *txn) putAccount(a, last *acme.Account) error {
	body, err := encode(a)
	if err != nil {
		return err
	}
	if last != nil && last.Thumbprint != a.Thumbprint {
		t.remove(keysBucket, holderKey(last.Directory, last.Thumbprint))
	}
	t.put(accountsBucket, []byte(a.ID), a.Version, time.Time{}, body)
	t.set(keysBucket, holderKey(a.Directory, a.Thumbprint), []byte(a.ID))
	return nil
}

// AccountByKey finds the account that has the key now.
func (s *Store) AccountByKey(ctx context.Context, directory, thumbprint string) (*acme.Account, error) {
	var a *acme.Account
	err := s.read(ctx, "read account by key", func(t *txn) (err error) {
		a, err = t.holder(directory, thumbprint)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// changeAccount applies change in t and saves the result.
func (t *txn) changeAccount(last *acme.Account, change func(*acme.Account) error, check func(*acme.Account) error) (*acme.Account, error) {
	a := last.Clone()
	if err := change(a); err != nil {
		return unchanged(last, err)
	}
	if a.ID != last.ID || a.Directory != last.Directory {
		return nil, errors.New("change moved it to another ID or directory")
	}
	if err := check(a); err != nil {
		return nil, err
	}
	a.Version = last.Version + 1
	return a, t.putAccount(a, last)
}

func unchanged[T any](last *T, refusal error) (*T, error) {
	if errors.Is(refusal, acme.ErrUnchanged) {
		return last, nil
	}
	return nil, refusal
}

// UpdateAccount changes an account; the key is changed by ChangeAccountKey.
func (s *Store) UpdateAccount(ctx context.Context, id string, change func(*acme.Account) error) (*acme.Account, error) {
	var a *acme.Account
	err := s.write(ctx, "update account "+id, func(t *txn) error {
		last, err := t.account(id)
		if err != nil {
			return err
		}
		a, err = t.changeAccount(last, change, func(a *acme.Account) error {
			if a.Thumbprint != last.Thumbprint {
				return errors.New("change replaced the key")
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// ChangeAccountKey is an update whose change replaces the key, unless an
// account has the new one.
func (s *Store) ChangeAccountKey(ctx context.Context, id, thumbprint string, change func(*acme.Account) error) (*acme.Account, bool, error) {
	var a *acme.Account
	changed := false
	err := s.write(ctx, "change key of account "+id, func(t *txn) error {
		last, err := t.account(id)
		if err != nil {
			return err
		}
		a, err = t.holder(last.Directory, thumbprint)
		if !errors.Is(err, acme.ErrNotFound) {
			return err
		}
		a, err = t.changeAccount(last, change, func(a *acme.Account) error {
			if a.Thumbprint != thumbprint {
				return errors.New("change set another key")
			}
			return nil
		})
		changed = err == nil
		return err
	})
	if err != nil {
		return nil, false, err
	}
	return a, changed, nil
}
