package worker

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
)

// A Policy is what the operator may change while the worker runs.
type Policy struct {
	Directories       map[string]*Directory
	Issuers           map[string]acme.Issuer // by backend name
	FailedValidations acme.Limit             // per account and name
}

// A Directory is the worker's side of a tenant.
type Directory struct {
	Profiles  map[string]*acme.Profile
	Validator acme.Validator
}

// Options are a Worker's connections to the world; zero durations and numbers
// mean the defaults.
type Options struct {
	Store   acme.Store
	Now     func() time.Time
	Log     *slog.Logger
	Metrics prometheus.Registerer
	// Poll is how often the queue is looked at for orders that no one in this
	// process was nudged about (1 s).
	Poll time.Duration
	// Lease is how long others leave a claimed order alone (1 min).
	Lease time.Duration
	// MaxJobs is how many validations and issuances run at once (256).
	MaxJobs int
	// Boundary, if set, is called with the name of each place at which a crash
	// would leave another state behind. Crash tests die there.
	Boundary func(name, orderID string)
}

// A Worker takes orders from the queue and from nudges. It is safe for
// concurrent use.
type Worker struct {
	Options
	policy  atomic.Pointer[Policy]
	metrics *metrics

	mu       sync.Mutex
	jobs     map[string]context.CancelFunc // running, by what they are about
	draining bool
	running  sync.WaitGroup
	watchers map[string]map[chan *acme.Order]bool // by order

	// One process does not compete with itself for an order's version.
	saving [64]sync.Mutex
	seed   maphash.Seed
}

// New makes a worker that does nothing until Run.
func New(opts Options, policy *Policy) *Worker {
	if opts.Poll == 0 {
		opts.Poll = time.Second
	}
	if opts.Lease == 0 {
		opts.Lease = time.Minute
	}
	if opts.MaxJobs == 0 {
		opts.MaxJobs = 256
	}
	if opts.Boundary == nil {
		opts.Boundary = func(string, string) {}
	}
	w := &Worker{
		Options: opts, metrics: newMetrics(opts.Metrics),
		jobs: make(map[string]context.CancelFunc), watchers: make(map[string]map[chan *acme.Order]bool), seed: maphash.MakeSeed(),
	}
	w.policy.Store(policy)
	return w
}

// SetPolicy replaces the policy for all steps that begin from now on.
func (w *Worker) SetPolicy(p *Policy) { w.policy.Store(p) }

// Nudge begins with what the order waits for, without waiting for it. If there
// is no room, the order comes up in the queue after [acme.Handoff].
func (w *Worker) Nudge(o *acme.Order) { w.dispatch(o.Clone()) }

// Watch returns a channel that has the latest version of the order that this
// worker saved, until stop is called.
func (w *Worker) Watch(orderID string) (changed <-chan *acme.Order, stop func()) {
	c := make(chan *acme.Order, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watchers[orderID] == nil {
		w.watchers[orderID] = make(map[chan *acme.Order]bool)
	}
	w.watchers[orderID][c] = true
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.watchers[orderID], c)
		if len(w.watchers[orderID]) == 0 {
			delete(w.watchers, orderID)
		}
	}
}

func (w *Worker) publish(o *acme.Order) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.watchers[o.ID] {
		select { // only the latest matters
		case <-c:
		default:
		}
		c <- o.Clone()
	}
}

// Run takes orders from the queue until ctx ends. Then it claims nothing more,
// breaks off validations, which will be made again, and waits for the answers of
// CAs that were asked already, at most until their deadlines.
func (w *Worker) Run(ctx context.Context) error {
	defer w.drain()
	poll := time.NewTicker(w.Poll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
			w.claim(ctx)
		}
	}
}

func (w *Worker) drain() {
	w.mu.Lock()
	w.draining = true
	for _, cancel := range w.jobs {
		cancel()
	}
	w.mu.Unlock()
	w.running.Wait()
}

// claim takes due orders from the store's queue, as many as there is room for.
func (w *Worker) claim(ctx context.Context) {
	w.mu.Lock()
	free := w.MaxJobs - len(w.jobs)
	w.mu.Unlock()
	if free <= 0 {
		return
	}
	claimCtx, cancel := context.WithTimeout(ctx, w.Lease/2)
	defer cancel()
	ids, err := w.Store.ClaimDue(claimCtx, w.Now(), w.Lease, min(free, 64))
	if err != nil {
		if ctx.Err() == nil {
			w.Log.WarnContext(ctx, "queue cannot be read, will retry", "err", err)
		}
		return
	}
	for _, id := range ids {
		// Read in a job of its own, so that one slow read delays no other order.
		var o *acme.Order
		w.start("read "+id, id, func(ctx context.Context) {
			readCtx, cancel := context.WithTimeout(ctx, w.Lease/2)
			defer cancel()
			var err error
			if o, err = w.Store.Order(readCtx, id); err != nil {
				w.Log.WarnContext(ctx, "claimed order cannot be read", "order", id, "err", err)
			}
		}, func() {
			if o != nil {
				w.dispatch(o)
			}
		})
	}
}

// dispatch starts what the order waits for.
func (w *Worker) dispatch(o *acme.Order) {
	for _, ref := range o.ProcessingChallenges() {
		w.start(challengeKey(o.ID, ref), o.ID, func(ctx context.Context) { w.validate(ctx, o, ref) }, nil)
	}
	if o.Status == acme.StatusProcessing {
		w.start("issue "+o.ID, o.ID, func(ctx context.Context) { w.issue(ctx, o) }, nil)
	}
}

// start runs a job unless the same one runs already, or there is no room: then
// the queue brings the order again. The job's context ends when the worker is
// told to stop. What the job leads to, if anything, comes after it has made room.
func (w *Worker) start(key, orderID string, job func(context.Context), then func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.draining || w.jobs[key] != nil || len(w.jobs) >= w.MaxJobs {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.jobs[key] = cancel
	w.running.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				w.Log.Error("panic in a job", "order", orderID, "job", key, "panic", v)
			}
			cancel()
			w.mu.Lock()
			delete(w.jobs, key)
			w.mu.Unlock()
			if then != nil {
				then()
			}
		}()
		job(ctx)
	})
}

// update saves a change and shows the order to whoever watches it. It reports
// whether this call made the change.
func (w *Worker) update(ctx context.Context, last *acme.Order, change func(*acme.Order) error) (o *acme.Order, changed bool, err error) {
	mu := &w.saving[maphash.String(w.seed, last.ID)%uint64(len(w.saving))]
	mu.Lock()
	defer mu.Unlock()
	o, err = w.Store.UpdateOrder(ctx, last, func(o *acme.Order) error {
		err := change(o)
		changed = err == nil
		return err
	})
	if err != nil {
		return nil, false, err
	}
	w.publish(o)
	return o, changed, nil
}

// jittered grows from base by doubling to limit, with jitter so that orders that
// failed together do not come back together.
func jittered(n int, base, limit time.Duration) time.Duration {
	d := base
	for range n {
		if d *= 2; d >= limit {
			d = limit
			break
		}
	}
	return d/2 + rand.N(d/2+1)
}

func isProblem(err error) (*acme.Problem, bool) { return errors.AsType[*acme.Problem](err) }
