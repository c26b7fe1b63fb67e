package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/acme-bridge/acme-bridge/acme"
)

// Accounts and the index of their keys lie in different slots, so that no
// script can write both. The index decides who has a key:
//
//	<account>              written after the account, by its creation
//	<account>?<version>    written before the account, by a key change that
//	                       will replace that version of it
//
// An account has a key if the index names the account and the account has the
// key. An entry whose account has it not is dead, and may be replaced, if it is
// of the first form (the account has changed its key since, or never came to
// be), or of the second and the account is at another version by now (the key
// change can no longer happen). Else the key change may yet happen; whoever
// wants the key saves that account once more, unchanged but for its version,
// and then the entry is dead too. So no time is waited, no crash between the
// two writes locks a key, and no clock decides.

// tentative is how long an account lasts that was stored and not yet named by
// the index. If its creator stops in between, it goes away by itself.
const tentative = time.Minute

func claimEntry(id string, ver int64) string { return id + "?" + strconv.FormatInt(ver, 10) }

// holder reads who has a key: the index entry, and the account it names, nil if
// that does not exist.
func (s *Store) holder(ctx context.Context, directory, thumbprint string) (string, *acme.Account, error) {
	entry, err := s.get(ctx, s.key.holder(directory, thumbprint))
	if err != nil {
		return "", nil, s.failed(ctx, "read account key", err)
	}
	id, _, _ := strings.Cut(entry, "?")
	if id == "" {
		return entry, nil, nil
	}
	if !acme.ValidID(id) {
		return "", nil, s.judge(ctx, "read account key", errForeign)
	}
	// If the creator stopped before it could make the account last, it lasts
	// from now on: someone is about to be told of it.
	pipe := s.rdb.Pipeline()
	pipe.Persist(ctx, s.key.account(id))
	get := pipe.Get(ctx, s.key.account(id))
	_, err = pipe.Exec(ctx)
	if errors.Is(err, redis.Nil) {
		return entry, nil, nil
	}
	if err != nil {
		return "", nil, s.failed(ctx, "read account "+id, err)
	}
	a, err := decodeAccount(id, get.Val())
	if err != nil {
		return "", nil, s.judge(ctx, "read", err)
	}
	if a.Directory != directory {
		return "", nil, s.judge(ctx, "read account "+id, errForeign)
	}
	return entry, a, nil
}

// AccountByKey finds the account that has the key now.
func (s *Store) AccountByKey(ctx context.Context, directory, thumbprint string) (*acme.Account, error) {
	_, a, err := s.holder(ctx, directory, thumbprint)
	if err != nil {
		return nil, err
	}
	if a == nil || a.Thumbprint != thumbprint {
		return nil, fmt.Errorf("read account by key: %w", acme.ErrNotFound)
	}
	return a, nil
}

// CreateAccount stores the account for a while, enters it into the index, and
// then makes it last. Before the index names it nobody knows its ID.
func (s *Store) CreateAccount(ctx context.Context, a *acme.Account) (*acme.Account, bool, error) {
	if !acme.ValidID(a.ID) {
		return nil, false, fmt.Errorf("create account: %q is not an ID", a.ID)
	}
	doing := "create account " + a.ID
	value, err := encode(a, 1)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", doing, err)
	}
	stored := false
	forget := func() {
		if stored {
			// If that fails, it goes away by itself.
			_ = s.rdb.Process(ctx, newOnce(ctx, "del", s.key.account(a.ID)))
		}
	}
	index := s.key.holder(a.Directory, a.Thumbprint)
	for try := range tries {
		entry, named, err := s.holder(ctx, a.Directory, a.Thumbprint)
		if err != nil {
			return nil, false, err
		}
		if named != nil && named.Thumbprint == a.Thumbprint {
			forget()
			return named, false, nil
		}
		dead, err := s.kill(ctx, try, entry, named)
		if err != nil {
			return nil, false, err
		}
		if !dead {
			continue
		}
		if !stored {
			ok, err := swapVersion.runBool(ctx, s.rdb, []string{s.key.account(a.ID)}, "", value, tentative.Milliseconds())
			if err != nil {
				return nil, false, s.failed(ctx, doing, err)
			}
			if !ok {
				return nil, false, fmt.Errorf("%s: %w", doing, acme.ErrConflict)
			}
			stored = true
		}
		won, err := swapValue.runBool(ctx, s.rdb, []string{index}, entry, a.ID)
		if err != nil {
			return nil, false, s.failed(ctx, doing, err)
		}
		if !won {
			continue
		}
		lasts, err := s.rdb.Persist(ctx, s.key.account(a.ID)).Result()
		if err != nil {
			return nil, false, s.failed(ctx, doing, err)
		}
		if !lasts {
			// Another may have made it last already (see holder); or it took us
			// a minute to get here, and the entry is dead.
			if _, b, err := s.holder(ctx, a.Directory, a.Thumbprint); err != nil || b == nil || b.ID != a.ID {
				return nil, false, fmt.Errorf("%s: %w", doing, errors.Join(acme.ErrUnavailable, err))
			}
		}
		b := a.Clone()
		b.Version = 1
		return b, true, nil
	}
	forget()
	return nil, false, fmt.Errorf("%s: %w", doing, acme.ErrConflict)
}

// kill makes sure that no key change can bring an index entry to life, which
// names that account. It reports false if the account has moved on since it was
// read: then the key change may have happened, and all must be read again.
func (s *Store) kill(ctx context.Context, try int, entry string, named *acme.Account) (bool, error) {
	if named == nil || entry != claimEntry(named.ID, named.Version) {
		return true, nil
	}
	if try == 0 { // let the key change finish, if it is under way
		if err := pause(ctx, tries); err != nil {
			return false, s.failed(ctx, "wait for key change", err)
		}
	}
	return s.saveAccount(ctx, named, named.Clone())
}

// saveAccount writes a if the stored account is still last.
func (s *Store) saveAccount(ctx context.Context, last, a *acme.Account) (bool, error) {
	if a.ID != last.ID || a.Directory != last.Directory {
		return false, fmt.Errorf("update account %s: change moved it to another ID or directory", last.ID)
	}
	value, err := encode(a, last.Version+1)
	if err != nil {
		return false, fmt.Errorf("update account %s: %w", last.ID, err)
	}
	saved, err := swapVersion.runBool(ctx, s.rdb, []string{s.key.account(last.ID)}, version(last.Version), value, "0")
	if err != nil {
		return false, s.failed(ctx, "update account "+last.ID, err)
	}
	if saved {
		a.Version = last.Version + 1
	}
	return saved, nil
}

func (s *Store) account(ctx context.Context, id string) (*acme.Account, error) {
	if !acme.ValidID(id) {
		return nil, fmt.Errorf("read account: %w", acme.ErrNotFound)
	}
	value, err := s.get(ctx, s.key.account(id))
	if err != nil {
		return nil, s.failed(ctx, "read account "+id, err)
	}
	if value == "" {
		return nil, fmt.Errorf("read account %s: %w", id, acme.ErrNotFound)
	}
	a, err := decodeAccount(id, value)
	if err != nil {
		return nil, s.judge(ctx, "read", err)
	}
	return a, nil
}

// UpdateAccount changes an account; the key is changed by ChangeAccountKey.
func (s *Store) UpdateAccount(ctx context.Context, id string, change func(*acme.Account) error) (*acme.Account, error) {
	for try := range tries {
		last, err := s.account(ctx, id)
		if err != nil {
			return nil, err
		}
		a := last.Clone()
		if err := change(a); err != nil {
			return unchanged(last, err)
		}
		if a.Thumbprint != last.Thumbprint {
			return nil, fmt.Errorf("update account %s: change replaced the key", id)
		}
		saved, err := s.saveAccount(ctx, last, a)
		if err != nil {
			return nil, err
		}
		if saved {
			return a, nil
		}
		if err := pause(ctx, try); err != nil {
			return nil, s.failed(ctx, "update account "+id, err)
		}
	}
	return nil, fmt.Errorf("update account %s: %w", id, acme.ErrConflict)
}

// ChangeAccountKey enters the account into the index under the new key, saves
// it with that key, and takes the old entry away. After a crash before the
// save the new entry is dead, after a crash behind it the old one is.
func (s *Store) ChangeAccountKey(ctx context.Context, id, thumbprint string, change func(*acme.Account) error) (*acme.Account, bool, error) {
	doing := "change key of account " + id
	for try := range tries {
		last, err := s.account(ctx, id)
		if err != nil {
			return nil, false, err
		}
		if last.Thumbprint == thumbprint {
			return last, false, nil
		}
		entry, named, err := s.holder(ctx, last.Directory, thumbprint)
		if err != nil {
			return nil, false, err
		}
		if named != nil && named.Thumbprint == thumbprint {
			return named, false, nil
		}
		a := last.Clone()
		if err := change(a); err != nil {
			a, err := unchanged(last, err)
			return a, err == nil, err
		}
		if a.Thumbprint != thumbprint {
			return nil, false, fmt.Errorf("%s: change set another key", doing)
		}
		if named != nil && named.ID != id {
			dead, err := s.kill(ctx, try, entry, named)
			if err != nil {
				return nil, false, err
			}
			if !dead {
				continue
			}
		}
		oldIndex := s.key.holder(last.Directory, last.Thumbprint)
		oldEntry, err := s.get(ctx, oldIndex)
		if err != nil {
			return nil, false, s.failed(ctx, doing, err)
		}
		won, err := swapValue.runBool(ctx, s.rdb, []string{s.key.holder(last.Directory, thumbprint)}, entry, claimEntry(id, last.Version))
		if err != nil {
			return nil, false, s.failed(ctx, doing, err)
		}
		saved := false
		if won {
			if saved, err = s.saveAccount(ctx, last, a); err != nil {
				return nil, false, err
			}
		}
		if !saved {
			if err := pause(ctx, try); err != nil {
				return nil, false, s.failed(ctx, doing, err)
			}
			continue
		}
		// Compared as a whole: should the account have gone back to its old key
		// meanwhile, that entry is a new one.
		if own, _, _ := strings.Cut(oldEntry, "?"); own == id {
			if _, err := swapValue.runBool(ctx, s.rdb, []string{oldIndex}, oldEntry, ""); err != nil {
				s.log.WarnContext(ctx, "dead index entry of an account key was left behind", "account", id, "err", err)
			}
		}
		return a, true, nil
	}
	return nil, false, fmt.Errorf("%s: %w", doing, acme.ErrConflict)
}
