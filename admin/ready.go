package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// A Part is something that readiness depends on.
type Part struct {
	// Name stands in answers: "store", "backend corp-ca".
	Name string
	// Check returns nil if the part is usable, and else why not, for operators'
	// eyes. It must return soon after its context ends.
	Check func(context.Context) error
	// Fresh is how long a good answer is believed without asking again, so that
	// many probes cost no more than one; 0 means 5 seconds. A bad answer is
	// believed for 2 seconds at most.
	Fresh time.Duration
}

const (
	checkTimeout = 3 * time.Second
	defaultFresh = 5 * time.Second
	badFresh     = 2 * time.Second
	// waitTimeout lets a check that ends by its deadline still tell why.
	waitTimeout = checkTimeout + 500*time.Millisecond
	maxReason   = 300
)

// A part remembers the last answer. At most one check of it runs at a time.
type part struct {
	Part
	now func() time.Time

	mu      sync.Mutex
	running chan struct{} // closed when the check under way is done; nil if none is
	asked   bool
	at      time.Time
	err     error
}

func newPart(p Part, now func() time.Time) *part {
	if p.Fresh <= 0 {
		p.Fresh = defaultFresh
	}
	return &part{Part: p, now: now}
}

// state returns a fresh answer, or waits for one. The check runs on its own, so
// that a caller who goes away spoils nothing for others.
func (p *part) state(ctx context.Context) error {
	p.mu.Lock()
	fresh := p.Fresh
	if p.err != nil {
		fresh = min(fresh, badFresh)
	}
	if age := p.now().Sub(p.at); p.asked && age >= 0 && age < fresh {
		defer p.mu.Unlock()
		return p.err
	}
	if p.running == nil {
		p.running = make(chan struct{})
		go p.check(context.WithoutCancel(ctx), p.running)
	}
	running := p.running
	p.mu.Unlock()

	select {
	case <-running:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("no answer within %s", checkTimeout)
	}
}

func (p *part) check(ctx context.Context, done chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := p.safely(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked, p.at, p.err, p.running = true, p.now(), err, nil
	close(done)
}

// safely turns a panic into an error: nothing else would catch it here, and a
// probe must not end the process.
func (p *part) safely(ctx context.Context) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("the check itself failed")
		}
	}()
	return p.Check(ctx)
}

// ready answers 200 if all that is needed and at least one backend are usable,
// else 503.
func (h *handler) ready(w http.ResponseWriter, r *http.Request) {
	type state struct {
		Name   string `json:"name"`
		OK     bool   `json:"ok"`
		Reason string `json:"reason,omitempty"`
	}
	ctx, cancel := context.WithTimeout(r.Context(), waitTimeout)
	defer cancel()
	states := make([]state, len(h.parts))
	var wait sync.WaitGroup
	for i, p := range h.parts {
		wait.Go(func() {
			err := p.state(ctx)
			states[i] = state{Name: p.Name, OK: err == nil}
			if err != nil {
				states[i].Reason = clip(err.Error())
			}
		})
	}
	wait.Wait()

	var answer struct {
		Ready  bool    `json:"ready"`
		Reason string  `json:"reason,omitempty"`
		Parts  []state `json:"parts"`
	}
	needed, backends := states[:len(h.Needed)], states[len(h.Needed):]
	usable := func(s state) bool { return s.OK }
	if i := slices.IndexFunc(needed, func(s state) bool { return !s.OK }); i >= 0 {
		answer.Reason = "the " + needed[i].Name + " cannot be used"
	} else if !slices.ContainsFunc(backends, usable) {
		answer.Reason = "no backend can be used"
	}
	answer.Ready = answer.Reason == ""
	answer.Parts = states
	status := http.StatusOK
	if !answer.Ready {
		status = http.StatusServiceUnavailable
	}
	h.write(w, status, answer)
}

func clip(s string) string {
	if len(s) > maxReason {
		return s[:maxReason] + "..."
	}
	return s
}
