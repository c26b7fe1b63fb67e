package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/acme-bridge/acme-bridge/acme"
)

// A Mode is the kind of Redis that the addresses lead to.
type Mode string

// The modes.
const (
	Single   Mode = "single"
	Sentinel Mode = "sentinel"
	Cluster  Mode = "cluster"
)

// Options say where Redis is and how to speak to it. Zero values mean the
// defaults given.
type Options struct {
	// Addresses are host:port of the one server, of the Sentinels, or of some
	// members of the Cluster.
	Addresses  []string
	Mode       Mode   // Single
	MasterName string // for Sentinel
	Username   string
	Password   string
	// SentinelUsername and SentinelPassword are for the Sentinels themselves.
	SentinelUsername string
	SentinelPassword string
	DB               int         // not for Cluster
	TLS              *tls.Config // nil: no TLS
	// KeyPrefix begins every key; it must not hold braces, which would move the
	// hash tag.
	KeyPrefix string
	PoolSize  int // connections to each server; 32

	DialTimeout time.Duration // 2 s
	IOTimeout   time.Duration // for one command or pipeline, 3 s
}

const (
	defaultPool        = 32
	defaultDialTimeout = 2 * time.Second
	defaultIOTimeout   = 3 * time.Second
	chainsInMemory     = 256
)

func (o *Options) check() error {
	var errs []error
	if len(o.Addresses) == 0 {
		errs = append(errs, errors.New("addresses: none given"))
	}
	switch o.Mode {
	case Single:
		if len(o.Addresses) > 1 {
			errs = append(errs, fmt.Errorf("addresses: %d given, mode single takes one", len(o.Addresses)))
		}
	case Sentinel:
		if o.MasterName == "" {
			errs = append(errs, errors.New("master_name: needed in mode sentinel"))
		}
	case Cluster:
		if o.DB != 0 {
			errs = append(errs, fmt.Errorf("db: %d, but a cluster has only database 0", o.DB))
		}
	default:
		errs = append(errs, fmt.Errorf("mode: %q is not single, sentinel or cluster", o.Mode))
	}
	if strings.ContainsAny(o.KeyPrefix, "{}") {
		errs = append(errs, fmt.Errorf("key_prefix: %q holds a brace", o.KeyPrefix))
	}
	return errors.Join(errs...)
}

// A Store is an [acme.Store] on Redis, safe for concurrent use.
type Store struct {
	rdb redis.UniversalClient
	log *slog.Logger
	key keys
	// chains that are known to be stored, by name; content never changes, so
	// that reading one again costs nothing.
	chains *lru.Cache[string, []byte]
	// recheck is set at first and after failures: what answers next may be
	// another server, or one with other settings.
	recheck atomic.Bool
	warned  atomic.Bool
}

var _ acme.Store = (*Store)(nil)

// New makes a store. It does not wait for Redis, and does not fail if there is
// none: until it answers, every call returns [acme.ErrUnavailable].
func New(opts Options, log *slog.Logger) (*Store, error) {
	if opts.Mode == "" {
		opts.Mode = Single
	}
	if err := opts.check(); err != nil {
		return nil, err
	}
	if opts.PoolSize == 0 {
		opts.PoolSize = defaultPool
	}
	if opts.DialTimeout == 0 {
		opts.DialTimeout = defaultDialTimeout
	}
	if opts.IOTimeout == 0 {
		opts.IOTimeout = defaultIOTimeout
	}
	chains, err := lru.New[string, []byte](chainsInMemory)
	if err != nil {
		return nil, fmt.Errorf("make chain cache: %w", err)
	}
	s := &Store{log: log, key: newKeys(opts.KeyPrefix), chains: chains}
	s.recheck.Store(true)
	// The library's logger is one for the process; what it says, the errors
	// that callers get say too.
	redis.SetLogger(debugLog{log})
	s.rdb = s.client(&opts)
	return s, nil
}

// client makes a client that never repeats a command by itself: if an answer is
// lost, only the next read can tell what became of the write. (In a cluster
// [once] sees to that, because redirects need MaxRedirects.)
func (s *Store) client(o *Options) redis.UniversalClient {
	// never also keeps go-redis from a second pool with large buffers for
	// pipelines: ours are short, and there is one in each request.
	const never = -1
	quiet := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	switch o.Mode {
	case Sentinel:
		return redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: o.MasterName, SentinelAddrs: o.Addresses,
			SentinelUsername: o.SentinelUsername, SentinelPassword: o.SentinelPassword,
			Username: o.Username, Password: o.Password, DB: o.DB, TLSConfig: o.TLS,
			Protocol: 2, OnConnect: s.connected, MaxRetries: never,
			DialTimeout: o.DialTimeout, DialerRetries: 1, ReadTimeout: o.IOTimeout, WriteTimeout: o.IOTimeout,
			ContextTimeoutEnabled: true, PoolSize: o.PoolSize, PoolTimeout: o.IOTimeout, PipelinePoolSize: never, DisableIdentity: true,
		})
	case Cluster:
		return redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: o.Addresses, Username: o.Username, Password: o.Password, TLSConfig: o.TLS,
			Protocol: 2, OnConnect: s.connected, MaxRetries: never, DisableRoutingPolicies: true,
			DialTimeout: o.DialTimeout, DialerRetries: 1, ReadTimeout: o.IOTimeout, WriteTimeout: o.IOTimeout,
			ContextTimeoutEnabled: true, PoolSize: o.PoolSize, PoolTimeout: o.IOTimeout, PipelinePoolSize: never, DisableIdentity: true,
			MaintNotificationsConfig: quiet,
		})
	}
	return redis.NewClient(&redis.Options{
		Addr: o.Addresses[0], Username: o.Username, Password: o.Password, DB: o.DB, TLSConfig: o.TLS,
		Protocol: 2, OnConnect: s.connected, MaxRetries: never,
		DialTimeout: o.DialTimeout, DialerRetries: 1, ReadTimeout: o.IOTimeout, WriteTimeout: o.IOTimeout,
		ContextTimeoutEnabled: true, PoolSize: o.PoolSize, PoolTimeout: o.IOTimeout, PipelinePoolSize: never, DisableIdentity: true,
		MaintNotificationsConfig: quiet,
	})
}

// Close ends all connections. Later calls return [acme.ErrUnavailable].
func (s *Store) Close() error { return s.rdb.Close() }

// connected runs on each new connection. It forgets which chains are stored: the
// server may have been restarted and come back empty, and then it must get them
// again. After a failure it also looks at the eviction policy.
func (s *Store) connected(ctx context.Context, cn *redis.Conn) error {
	s.chains.Purge()
	if !s.recheck.CompareAndSwap(true, false) {
		return nil
	}
	// An ACL user may not be allowed to ask; then there is nothing to say.
	if got, err := cn.ConfigGet(ctx, "maxmemory-policy").Result(); err == nil {
		s.judgePolicy(ctx, got["maxmemory-policy"])
	}
	return nil
}

func (s *Store) judgePolicy(ctx context.Context, policy string) {
	if policy != "" && policy != "noeviction" && s.warned.CompareAndSwap(false, true) {
		s.log.WarnContext(ctx, "Redis may evict accounts and orders when its memory is full: set maxmemory-policy to noeviction",
			"policy", policy)
	}
}

// Ping returns nil if Redis can be read and written now.
func (s *Store) Ping(ctx context.Context) error {
	key := s.key.ping()
	cmd := newOnce(ctx, "set", key, "", "px", 60000)
	if err := s.rdb.Process(ctx, cmd); err != nil {
		return s.failed(ctx, "ping", err)
	}
	return nil
}

// Facts tell how a Redis server is set up; what the server does not tell (an
// ACL may forbid it) is "".
type Facts struct {
	Version    string // of the server
	Policy     string // maxmemory-policy; anything but noeviction loses data when memory is full
	AppendOnly string // "yes" if writes survive a restart
	Sync       string // appendfsync: always, everysec, no
}

// Facts asks a server; in a cluster all masters, and of them it returns what
// the first that differs from good settings says.
func (s *Store) Facts(ctx context.Context) (Facts, error) {
	if c, ok := s.rdb.(*redis.ClusterClient); ok {
		found := make(chan Facts, 64)
		err := c.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
			f, err := s.facts(ctx, node)
			select {
			case found <- f:
			default:
			}
			return err
		})
		close(found)
		var worst Facts
		for f := range found {
			if worst.Version == "" || f.Policy != "noeviction" || f.AppendOnly != "yes" {
				worst = f
			}
		}
		if err != nil {
			return Facts{}, s.failed(ctx, "ask Redis cluster for its settings", err)
		}
		return worst, nil
	}
	f, err := s.facts(ctx, s.rdb)
	if err != nil {
		return Facts{}, s.failed(ctx, "ask Redis for its settings", err)
	}
	return f, nil
}

func (s *Store) facts(ctx context.Context, c redis.Cmdable) (Facts, error) {
	var f Facts
	info, err := c.Info(ctx, "server").Result()
	if err != nil && !refused(err) {
		return f, err
	}
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(line, "redis_version:"); ok {
			f.Version = strings.TrimSpace(v)
		}
	}
	for name, to := range map[string]*string{
		"maxmemory-policy": &f.Policy, "appendonly": &f.AppendOnly, "appendfsync": &f.Sync,
	} {
		got, err := c.ConfigGet(ctx, name).Result()
		if err != nil && !refused(err) {
			return f, err
		}
		*to = got[name]
	}
	s.judgePolicy(ctx, f.Policy)
	return f, nil
}

// debugLog passes what go-redis logs by itself to slog.
type debugLog struct{ log *slog.Logger }

func (d debugLog) Printf(ctx context.Context, format string, v ...any) {
	if d.log.Enabled(ctx, slog.LevelDebug) {
		d.log.DebugContext(ctx, "go-redis", "text", fmt.Sprintf(format, v...))
	}
}
