package ncloudtest

import (
	"fmt"
	"net/http"
	"slices"
	"time"
)

// A Kind names something that goes wrong.
type Kind string

// What can go wrong. "Applied" tells whether the call has its effect.
const (
	Latency    Kind = "latency"     // applied and answered after DelayMS
	Status     Kind = "status"      // not applied; Status and Body answered
	Throttle   Kind = "throttle"    // not applied; 429, with Retry-After if RetryAfter is set
	DropBefore Kind = "drop-before" // not applied; connection closed
	DropAfter  Kind = "drop-after"  // applied; connection closed
	// TimeoutAfter applies and answers 504, or Status and Body if given.
	TimeoutAfter Kind = "timeout-after"
	// ApplyLate answers 504 at once and applies when DelayMS have passed and
	// the next call comes in, or at [Simulator.ApplyLate] if DelayMS is 0.
	ApplyLate     Kind = "apply-late"
	SlowBody      Kind = "slow-body"      // applied; half the body, DelayMS, the rest
	MalformedBody Kind = "malformed-body" // applied; Body or something that is no JSON answered
	TruncatedBody Kind = "truncated-body" // applied; connection closed after half the body

	// The following concern signEndCsr, advancedCertificateRequest and
	// reissueCertificate, which are applied.
	StaleCertificate Kind = "stale-certificate" // the certificate issued before is returned
	WrongKey         Kind = "wrong-key"         // the certificate holds another key
	DropNames        Kind = "drop-names"        // the last name is left out
	AddName          Kind = "add-name"          // intruder.example is added
	ShortLifetime    Kind = "short-lifetime"    // half the period
	// LateCount hides the certificate from signingCount for the next Reads
	// calls of getCa, and for DelayMS; signEndCsr only.
	LateCount Kind = "late-count"
	// LateList hides the certificate from the lists for the next Reads calls of
	// one, and for DelayMS.
	LateList Kind = "late-list"
)

var kinds = []Kind{Latency, Status, Throttle, DropBefore, DropAfter, TimeoutAfter, ApplyLate, SlowBody, MalformedBody,
	TruncatedBody, StaleCertificate, WrongKey, DropNames, AddName, ShortLifetime, LateCount, LateList}

// A Fault makes the next Count calls of an operation go wrong, after letting
// Skip of them through.
type Fault struct {
	Kind       Kind   `json:"kind"`
	Operation  string `json:"operation,omitempty"` // operationId of the OpenAPI file; "": any
	Count      int    `json:"count,omitempty"`     // 0: once; negative: until cleared
	Skip       int    `json:"skip,omitempty"`
	DelayMS    int64  `json:"delay_ms,omitempty"`
	Reads      int    `json:"reads,omitempty"`
	Status     int    `json:"status,omitempty"`
	Body       string `json:"body,omitempty"`
	RetryAfter string `json:"retry_after,omitempty"`
}

func (f Fault) delay() time.Duration { return time.Duration(f.DelayMS) * time.Millisecond }

func (f Fault) validate() error {
	switch {
	case !slices.Contains(kinds, f.Kind):
		return fmt.Errorf("kind: %q is none of %v", f.Kind, kinds)
	case f.Operation != "" && !slices.Contains(operations(), f.Operation):
		return fmt.Errorf("operation: %q is none of %v", f.Operation, operations())
	case f.Kind == Status && (f.Status < 200 || f.Status > 599):
		return fmt.Errorf("status: %d is no HTTP status to answer with", f.Status)
	case f.Skip < 0 || f.DelayMS < 0 || f.Reads < 0:
		return fmt.Errorf("skip, delay_ms and reads must not be negative")
	}
	return nil
}

// Inject arms a fault; several for one operation go off one after the other.
func (s *Simulator) Inject(f Fault) error {
	if err := f.validate(); err != nil {
		return err
	}
	if f.Count == 0 {
		f.Count = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
	return nil
}

// ClearFaults disarms all faults.
func (s *Simulator) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// takeFault finds the fault that the call meets, if any. The caller holds mu.
func (s *Simulator) takeFault(operation string) *Fault {
	for i, f := range s.faults {
		if f.Operation != "" && f.Operation != operation {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			return nil
		}
		taken := *f
		if f.Count > 0 {
			if f.Count--; f.Count == 0 {
				s.faults = slices.Delete(s.faults, i, i+1)
			}
		}
		return &taken
	}
	return nil
}

// A Point is where a [Hold] stops a call.
type Point string

// Before and after the call is applied.
const (
	Before Point = "before"
	After  Point = "after"
)

// What becomes of held calls: Go on, or close the connection where it stands.
const (
	Continue = "continue"
	Discard  = "discard"
)

// A Hold stops calls of an operation until it is released. A held call goes on
// even if its client has left, as it would behind a real gateway.
type Hold struct {
	id        int
	operation string
	point     Point
	left      int // calls still to be stopped; negative: all
	waiting   int
	entered   chan struct{}
	released  chan struct{}
	action    string
}

// HoldCalls stops the next count calls of the operation (negative: all) at the
// point. Release it when done.
func (s *Simulator) HoldCalls(operation string, point Point, count int) (*Hold, error) {
	if operation != "" && !slices.Contains(operations(), operation) {
		return nil, fmt.Errorf("operation: %q is none of %v", operation, operations())
	}
	if point != Before && point != After {
		return nil, fmt.Errorf("point: %q is neither before nor after", point)
	}
	if count == 0 {
		count = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holdID++
	h := &Hold{id: s.holdID, operation: operation, point: point, left: count,
		entered: make(chan struct{}, 1024), released: make(chan struct{})}
	s.holds = append(s.holds, h)
	return h, nil
}

// Entered receives once for each call that the hold has stopped.
func (h *Hold) Entered() <-chan struct{} { return h.entered }

// Release lets held calls continue, or discards them, and removes the hold.
func (s *Simulator) Release(h *Hold, action string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.holds, h); i >= 0 {
		s.holds = slices.Delete(s.holds, i, i+1)
		h.action = action
		close(h.released)
	}
}

// pass stops the call if a hold wants it; false means that it was discarded.
func (s *Simulator) pass(operation string, point Point) bool {
	s.mu.Lock()
	var h *Hold
	for _, x := range s.holds {
		if (x.operation == "" || x.operation == operation) && x.point == point && x.left != 0 {
			h = x
			break
		}
	}
	if h == nil {
		s.mu.Unlock()
		return true
	}
	h.left--
	h.waiting++
	s.announce()
	s.mu.Unlock()
	select {
	case h.entered <- struct{}{}:
	default: // more than anyone asked to hear of
	}
	select {
	case <-h.released:
	case <-s.closed:
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h.waiting--
	return h.action != Discard
}

// announce wakes those who wait for a hold to stop a call. The caller holds mu.
func (s *Simulator) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// sleep waits unless the simulator closes.
func (s *Simulator) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.closed:
	}
}

// drop closes the connection in place of an answer, or in the middle of one.
func drop(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		conn.Close()
	}
}

// ApplyLate applies what the fault [ApplyLate] has put off.
func (s *Simulator) ApplyLate() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applyLate(true)
}

// applyLate applies all put-off calls, or those that are due. The caller holds mu.
func (s *Simulator) applyLate(all bool) int {
	n := 0
	s.late = slices.DeleteFunc(s.late, func(l lateCall) bool {
		if !all && (l.due.IsZero() || s.now().Before(l.due)) {
			return false
		}
		l.apply()
		n++
		return true
	})
	return n
}

type lateCall struct {
	due   time.Time // zero: only on demand
	apply func()
}
