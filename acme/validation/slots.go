package validation

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// slots bound the tries under way, in total and for each name, so that targets
// that answer slowly hold up themselves before they hold up others
// (CVE-2023-47124).
type slots struct {
	total   *semaphore.Weighted
	perName int64

	mu    sync.Mutex
	names map[string]*nameSlots // those in use or waited for
}

type nameSlots struct {
	sem   *semaphore.Weighted
	users int
}

func newSlots(total, perName int) *slots {
	return &slots{total: semaphore.NewWeighted(int64(total)), perName: int64(perName), names: map[string]*nameSlots{}}
}

// acquire waits for a slot until ctx ends. Whoever waits for its name holds
// nothing of the total yet.
func (s *slots) acquire(ctx context.Context, name string) (release func(), err error) {
	s.mu.Lock()
	n := s.names[name]
	if n == nil {
		n = &nameSlots{sem: semaphore.NewWeighted(s.perName)}
		s.names[name] = n
	}
	n.users++
	s.mu.Unlock()

	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if n.users--; n.users == 0 {
			delete(s.names, name)
		}
	}
	if err := n.sem.Acquire(ctx, 1); err != nil {
		leave()
		return nil, err
	}
	if err := s.total.Acquire(ctx, 1); err != nil {
		n.sem.Release(1)
		leave()
		return nil, err
	}
	return func() {
		s.total.Release(1)
		n.sem.Release(1)
		leave()
	}, nil
}
