// Package bolt is an [acme.Store] in one bbolt file, for one process: the
// default when no Redis is configured.
//
// Start reading at [Store.write]: all writes go through one goroutine, which
// commits together what arrives together, so that callers share an fsync and
// a lone write waits for none but its own. A write that was answered is on disk.
//
// Nonces are the exception: their key and the marks of used ones live in
// memory, and a restart forgets both together.
package bolt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/acme-bridge/acme-bridge/acme"
)

// FileName is the database's name in its directory.
const FileName = "acme-bridge.db"

const (
	lockTimeout = time.Second
	queueLength = 256 // writes that wait; more have to wait for a place
	batchSize   = 128 // writes in one commit
	// Expired values that a commit removes for each of its writes: more than
	// most writes add.
	sweepSize = 8
)

// Options say where the file is. Zero values mean the defaults given.
type Options struct {
	Dir string           // made with mode 0700 if it does not exist
	Now func() time.Time // what values expire by; time.Now
}

// A Store is an [acme.Store] in a file, safe for concurrent use.
type Store struct {
	db     *bbolt.DB
	now    func() time.Time
	log    *slog.Logger
	nonces nonces
	ops    chan *op
	quit   chan struct{}
	done   chan struct{}
	closed atomic.Bool
}

var _ acme.Store = (*Store)(nil)

// Open opens the file, or makes it. It fails if another process has it open.
func Open(opts Options, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make storage directory: %w", err)
	}
	path := filepath.Join(opts.Dir, FileName)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lockTimeout,
		// The list of free pages is found at start instead of being written
		// with every commit, and kept so that it stays quick when it is long.
		NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("open %s: another process has it open; only one acme-bridge can use embedded storage (several need Redis)", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("open %s: not allowed for this user: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare %s: %w", path, err), db.Close())
	}
	s := &Store{
		db: db, now: opts.Now, log: log,
		ops: make(chan *op, queueLength), quit: make(chan struct{}), done: make(chan struct{}),
	}
	if s.now == nil {
		s.now = time.Now
	}
	go s.writer()
	return s, nil
}

// Close finishes writes that have begun and closes the file. Later calls return
// [acme.ErrUnavailable].
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	close(s.quit)
	<-s.done
	return s.db.Close()
}

// Ping returns nil if the file can be written now.
func (s *Store) Ping(ctx context.Context) error {
	return s.write(ctx, "ping", func(t *txn) error {
		t.put(recordsBucket, []byte("\x00ping"), 0, time.Time{}, nil)
		return nil
	})
}

// An op is a write that waits for its turn.
type op struct {
	do     func(*txn) error
	result chan error // buffered: the writer never waits for the caller
	begun  atomic.Bool
	err    error
}

var errClosed = fmt.Errorf("%w: the database is closed", acme.ErrUnavailable)

// write runs do in a transaction with others and returns when it is on disk. do
// checks first and writes then: if it returns an error, it must not have
// written. A caller that goes away withdraws a write only before it has begun,
// since do may use what belongs to the caller.
func (s *Store) write(ctx context.Context, doing string, do func(*txn) error) error {
	o := &op{do: do, result: make(chan error, 1)}
	select {
	case s.ops <- o:
	case <-ctx.Done():
		return gaveUp(ctx, doing)
	case <-s.quit:
		return fmt.Errorf("%s: %w", doing, errClosed)
	}
	var err error
	select {
	case err = <-o.result:
	case <-s.done:
		// It was queued when the writer had just stopped, or it is finished.
		if o.begun.CompareAndSwap(false, true) {
			return fmt.Errorf("%s: %w", doing, errClosed)
		}
		err = <-o.result
	case <-ctx.Done():
		if o.begun.CompareAndSwap(false, true) {
			return gaveUp(ctx, doing)
		}
		err = <-o.result
	}
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

func gaveUp(ctx context.Context, doing string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	return fmt.Errorf("%s: %w: %w", doing, acme.ErrUnavailable, ctx.Err())
}

// writer commits what is queued. While one commit waits for the disk, the next
// batch gathers by itself.
func (s *Store) writer() {
	defer close(s.done)
	batch := make([]*op, 0, batchSize)
	for {
		select {
		case <-s.quit:
			return
		case o := <-s.ops:
			batch = append(batch[:0], o)
		}
	gather:
		for len(batch) < batchSize {
			select {
			case o := <-s.ops:
				batch = append(batch, o)
			default:
				break gather
			}
		}
		s.commit(batch)
	}
}

func (s *Store) commit(batch []*op) {
	begun := batch[:0]
	for _, o := range batch {
		if o.begun.CompareAndSwap(false, true) {
			begun = append(begun, o)
		}
	}
	if len(begun) == 0 {
		return
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		t := &txn{Tx: tx}
		t.sweep(s.now(), sweepSize*len(begun))
		for _, o := range begun {
			before := t.writes
			o.err = attempt(o.do, t)
			if t.err != nil {
				return t.err
			}
			if o.err != nil && t.writes != before {
				return fmt.Errorf("a write stopped half-way: %w", o.err)
			}
		}
		return nil
	})
	if err != nil {
		s.log.Error("commit failed, nothing of it was stored", "err", err)
		err = fmt.Errorf("%w: %w", acme.ErrUnavailable, err)
	}
	for _, o := range begun {
		if o.err == nil || err != nil {
			o.err = err
		}
		o.result <- o.err
	}
}

// attempt keeps a caller's function that panics from taking the writer along.
func attempt(do func(*txn) error, t *txn) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("change panicked: %v\n%s", v, debug.Stack())
		}
	}()
	return do(t)
}

// read runs a read of one state of the file.
func (s *Store) read(ctx context.Context, doing string, do func(*txn) error) error {
	if ctx.Err() != nil {
		return gaveUp(ctx, doing)
	}
	err := s.db.View(func(tx *bbolt.Tx) error { return do(&txn{Tx: tx}) })
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		err = errClosed
	}
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}
