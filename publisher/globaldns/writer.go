package globaldns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/publisher"
)

const (
	// batchTime bounds one read-change-apply, leaseTime the lease for it. Between
	// them lies what replicas' clocks may differ, and what a call that was given
	// up may still take at the service.
	batchTime = 60 * time.Second
	leaseTime = 2 * time.Minute
	// ownEdits is how long edits that wait are taken for ours after a writer of
	// ours was stopped between change and apply; later somebody else may have
	// begun to edit.
	ownEdits = time.Hour
	// maxWaiting bounds the changes that wait for their turn.
	maxWaiting = 1000
	// maxCreate bounds what one call creates; the service's limit is not documented.
	maxCreate = 100
)

// errBusy: another replica writes the zone.
var errBusy = errors.New("another replica writes the zone")

func errForeign(zone string) error {
	return fmt.Errorf("%w: zone %s has edits of somebody else that wait: apply or discard them in the console of Global DNS, or set foreign_edits: apply", publisher.ErrBlocked, zone)
}

// A key is a TXT record in its zone.
type key struct{ host, value string }

func (k key) is(r record) bool {
	return strings.EqualFold(r.Type, "TXT") && (r.Content == k.value || unquote(r.Content) == k.value)
}

// A change waits to be made; err is valid once done is true. Both belong to
// whoever holds the turn.
type change struct {
	key
	remove bool
	done   bool
	err    error
}

// A writer makes the changes of one zone, all that wait at once.
type writer struct {
	p    *Publisher
	zone string
	id   int64
	turn chan struct{} // holds one token while somebody writes

	mu      sync.Mutex
	waiting []*change
}

// do makes a change, together with those of other orders that came while the
// zone was being written. Whoever gets the turn writes for all that wait.
func (w *writer) do(ctx context.Context, k key, remove bool) error {
	c := &change{key: k, remove: remove}
	w.mu.Lock()
	if len(w.waiting) >= maxWaiting {
		w.mu.Unlock()
		return fmt.Errorf("zone %s: more than %d changes wait", w.zone, maxWaiting)
	}
	w.waiting = append(w.waiting, c)
	w.mu.Unlock()
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		w.waiting = slices.DeleteFunc(w.waiting, func(x *change) bool { return x == c })
		return fmt.Errorf("wait to write zone %s: %w", w.zone, ctx.Err())
	}
	defer func() { <-w.turn }()
	if c.done {
		return c.err
	}
	w.mu.Lock()
	batch := w.waiting
	w.waiting = nil
	w.mu.Unlock()
	// The caller's patience must not end others' changes, nor leave a zone
	// between change and apply.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), batchTime)
	defer cancel()
	if err := w.batch(ctx, batch); err != nil {
		for _, c := range batch {
			if c.err == nil {
				c.err = err
			}
		}
	}
	for _, c := range batch {
		c.done = true
	}
	return c.err
}

// batch takes the lease, makes the changes and applies them. Its error is that
// of every change that has none of its own.
//
// A process may end at any point. Before the lease: nothing has happened. Before
// the first change: the lease runs out. Between change and apply: the lease
// tells when edits of ours began to wait (Edited), and the next writer applies
// them. After the apply: the next one finds the zone complete.
//
// A person who begins to edit between our look at the zone and our apply has
// that edit applied: API v1 knows no condition. It is a second or two.
func (w *writer) batch(ctx context.Context, batch []*change) (err error) {
	l, err := w.takeLease(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if errLease := w.saveLease(ctx, l, ""); errLease != nil { // it runs out
			w.p.cfg.Log.WarnContext(ctx, "lease of a zone not given back", "zone", w.zone, "err", errLease)
		}
	}()
	complete, err := w.p.api.complete(ctx, w.zone, w.id)
	if err != nil {
		return err
	}
	if complete {
		l.Edited = time.Time{}
	}
	create, remove, err := w.plan(ctx, batch)
	if err != nil {
		return err
	}
	// What was asked for is in the zone, and nothing of ours waits: so it is
	// applied already, or it is somebody else's to apply.
	if len(create) == 0 && len(remove) == 0 && l.Edited.IsZero() {
		return nil
	}
	if err := w.allow(ctx, l, complete); err != nil {
		return err
	}
	if l.Edited.IsZero() {
		l.Edited = w.p.cfg.Now().UTC()
	}
	if err := w.saveLease(ctx, l, w.p.cfg.Owner); err != nil {
		return err
	}
	changed, touched, err := w.write(ctx, batch, create, remove)
	if !touched && complete {
		l.Edited = time.Time{}
		return err
	}
	// Even after an error: what waits in the zone would block it for others.
	if errApply := w.p.api.apply(ctx, w.zone, w.id); errApply != nil {
		return errors.Join(err, fmt.Errorf("apply: %w", errApply))
	}
	l.Edited = time.Time{}
	w.p.batches.WithLabelValues(w.p.cfg.Name).Observe(float64(changed))
	w.p.cfg.Log.InfoContext(ctx, "zone changed and applied", "zone", w.zone, "changes", changed)
	return err
}

// allow decides about edits that wait in the zone.
func (w *writer) allow(ctx context.Context, l *lease, complete bool) error {
	log, foreign := w.p.cfg.Log, func(action string) { w.p.foreign.WithLabelValues(w.p.cfg.Name, action).Inc() }
	switch {
	case complete:
	case !l.Edited.IsZero() && w.p.cfg.Now().Sub(l.Edited) < ownEdits:
		log.WarnContext(ctx, "edits of ours were left unapplied, applying them", "zone", w.zone, "since", l.Edited)
	case w.p.cfg.ForeignEdits == ApplyForeignEdits:
		foreign("applied")
		log.WarnContext(ctx, "edits of somebody else wait in the zone, applying them with ours", "zone", w.zone)
	default:
		foreign("waited")
		return errForeign(w.zone)
	}
	return nil
}

// plan compares what is wanted with what is there: records to create, and ids
// to remove. A change that cannot be made gets its error.
func (w *writer) plan(ctx context.Context, batch []*change) (create []key, remove []int64, err error) {
	hosts := map[string][]record{}
	for _, c := range batch {
		rows, known := hosts[c.host]
		if !known {
			if rows, err = w.p.api.at(ctx, w.zone, w.id, c.host); err != nil {
				return nil, nil, err
			}
			hosts[c.host] = rows
		}
		switch {
		case c.remove:
			for _, r := range rows {
				if c.is(r) && r.ID != 0 && !slices.Contains(remove, int64(r.ID)) && !wanted(batch, c.key) {
					remove = append(remove, int64(r.ID))
				}
			}
		case slices.ContainsFunc(rows, func(r record) bool { return strings.EqualFold(r.Type, "CNAME") }):
			c.err = fmt.Errorf("%w: zone %s: there is a CNAME at %s, beside which no TXT record can stand: remove it", publisher.ErrBlocked, w.zone, c.host)
		case !slices.ContainsFunc(rows, c.is) && !slices.Contains(create, c.key):
			create = append(create, c.key)
		}
	}
	return create, remove, nil
}

// wanted: another order of the batch wants what one wants removed.
func wanted(batch []*change, k key) bool {
	return slices.ContainsFunc(batch, func(c *change) bool { return !c.remove && c.key == k })
}

// write creates and removes records. It returns how many it certainly did, and
// whether it may have changed anything. A refusal that concerns single records
// is theirs; any other error is that of all.
func (w *writer) write(ctx context.Context, batch []*change, create []key, remove []int64) (changed int, touched bool, err error) {
	did := func(n int, err error, concerned func(*change) bool) error {
		if err == nil {
			changed += n
		}
		touched = touched || !untouched(err)
		if !errors.Is(err, publisher.ErrBlocked) {
			return err
		}
		for _, c := range batch {
			if concerned(c) {
				c.err = err
			}
		}
		return nil
	}
	for part := range slices.Chunk(create, maxCreate) {
		err := w.p.api.create(ctx, w.zone, w.id, w.p.cfg.TTL, part)
		each := [][]key{part}
		if len(part) > 1 && errors.Is(err, publisher.ErrBlocked) && untouched(err) {
			each = slices.Collect(slices.Chunk(part, 1)) // one of them is not valid, and none was taken
		}
		for _, keys := range each {
			if len(each) > 1 {
				err = w.p.api.create(ctx, w.zone, w.id, w.p.cfg.TTL, keys)
			}
			if err := did(len(keys), err, func(c *change) bool { return !c.remove && slices.Contains(keys, c.key) }); err != nil {
				return changed, touched, err
			}
		}
	}
	if len(remove) > 0 {
		err = did(len(remove), w.p.api.remove(ctx, w.zone, w.id, remove), func(c *change) bool { return c.remove })
	}
	return changed, touched, err
}

// A lease says who writes a zone.
type lease struct {
	Owner string    `json:"owner"`
	Until time.Time `json:"until"`
	// Edited is since when edits of ours may wait in the zone for an apply.
	Edited  time.Time `json:"edited,omitzero"`
	version int64
}

func (w *writer) leaseName() string { return "globaldns:" + w.zone }

// takeLease gets the lease or errBusy. One of ours is free: this process has
// one writer of the zone, and it is here.
func (w *writer) takeLease(ctx context.Context) (*lease, error) {
	data, version, err := w.p.cfg.Records.Record(ctx, w.leaseName())
	if err != nil {
		return nil, fmt.Errorf("read lease of zone %s: %w", w.zone, err)
	}
	l := &lease{}
	if version != 0 {
		if err := json.Unmarshal(data, l); err != nil {
			return nil, fmt.Errorf("read lease of zone %s: %w", w.zone, err)
		}
	}
	l.version = version
	if now := w.p.cfg.Now(); l.Owner != "" && l.Owner != w.p.cfg.Owner && now.Before(l.Until) {
		return nil, fmt.Errorf("%w: for %s at most", errBusy, l.Until.Sub(now).Round(time.Second))
	}
	if err := w.saveLease(ctx, l, w.p.cfg.Owner); err != nil {
		return nil, err
	}
	return l, nil
}

// saveLease writes the lease if nobody else has. With an owner its time begins
// anew.
func (w *writer) saveLease(ctx context.Context, l *lease, owner string) error {
	l.Owner, l.Until = owner, w.p.cfg.Now().Add(leaseTime).UTC()
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	err = w.p.cfg.Records.PutRecord(ctx, w.leaseName(), data, l.version)
	if errors.Is(err, acme.ErrConflict) {
		return fmt.Errorf("%w: it was faster", errBusy)
	}
	if err != nil {
		return fmt.Errorf("save lease of zone %s: %w", w.zone, err)
	}
	l.version++
	return nil
}
