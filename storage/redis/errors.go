package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/acme-bridge/acme-bridge/acme"
)

// notNow are the answers by which a server says that it cannot serve for the
// moment, or not us: the operator can mend that, and nothing is wrong with the
// request.
var notNow = []string{
	"LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "OOM", "TRYAGAIN", "NOREPLICAS", "BUSY", "MISCONF",
	"NOAUTH", "unauthenticated", "WRONGPASS", "NOPERM", "MOVED", "ASK", "max number of clients", "DENIED", "UNKILLABLE",
}

// failed says what could not be done. Anything but a caller that went away and
// a command that Redis understood and refused is unavailability.
func (s *Store) failed(ctx context.Context, doing string, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	var answer redis.Error
	if !errors.As(err, &answer) {
		s.recheck.Store(true)
		return fmt.Errorf("%s: %w: %w", doing, acme.ErrUnavailable, err)
	}
	for _, code := range notNow {
		// Contains, not HasPrefix: up to Redis 6 an error inside a script
		// comes wrapped.
		if strings.Contains(answer.Error(), code) {
			s.recheck.Store(true)
			return fmt.Errorf("%s: %w: %w", doing, acme.ErrUnavailable, err)
		}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// refused reports whether the server understood the command and will not do it
// for us, or does not know it.
func refused(err error) bool {
	return redis.HasErrorPrefix(err, "NOPERM") || redis.HasErrorPrefix(err, "ERR") || redis.HasErrorPrefix(err, "unknown command")
}
