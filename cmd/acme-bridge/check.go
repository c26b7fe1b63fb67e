package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"github.com/acme-bridge/acme-bridge/config"
	"github.com/acme-bridge/acme-bridge/storage/redis"
)

func configCommand() *cobra.Command {
	var file string
	var online bool
	check := &cobra.Command{
		Use:   "check --config FILE [--online]",
		Short: "Report everything that is wrong with a configuration",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usageError{errors.New("config check needs --config FILE")}
			}
			cfg, err := config.Load(file)
			if err != nil {
				return usageError{err}
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "ok    %s: no mistakes found\n", file)
			if !online {
				return nil
			}
			return checkOnline(cmd.Context(), cfg, out)
		},
	}
	check.Flags().StringVar(&file, "config", "", "configuration `FILE`")
	check.Flags().BoolVar(&online, "online", false, "also try Redis, each backend, the publishers and the resolvers; nothing is changed there")
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Work with configuration files",
		Args:  usage(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(check)
	return cmd
}

// onlineTimeout bounds each thing that is tried.
const onlineTimeout = 20 * time.Second

// checkOnline tries what the configuration names, and says of each whether and
// why it would fail.
func checkOnline(ctx context.Context, cfg *config.Config, out io.Writer) error {
	failed := 0
	report := func(what string, try func(context.Context) ([]string, error)) {
		ctx, cancel := context.WithTimeout(ctx, onlineTimeout)
		defer cancel()
		facts, err := try(ctx)
		if err != nil {
			failed++
			fmt.Fprintf(out, "FAIL  %s: %v\n", what, err)
		}
		if len(facts) > 0 {
			fmt.Fprintf(out, "ok    %s: %s\n", what, strings.Join(facts, ", "))
		} else if err == nil {
			fmt.Fprintf(out, "ok    %s\n", what)
		}
	}

	log := slog.New(slog.DiscardHandler)
	a := &app{log: log}
	if cfg.Storage.Redis != nil {
		report("storage.redis", func(ctx context.Context) ([]string, error) { return checkRedis(ctx, cfg.Storage, log) })
	}
	publishers := make(map[string]*dnsPublisher)
	for _, name := range slices.Sorted(maps.Keys(cfg.Publishers)) {
		report("publishers."+name, func(ctx context.Context) ([]string, error) {
			p, err := a.newPublisher(name, cfg.Publishers[name])
			if err != nil {
				return nil, err
			}
			publishers[name] = p
			return checkPublisher(ctx, p, zonesOf(cfg, name))
		})
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Backends)) {
		report("backends."+name, func(ctx context.Context) ([]string, error) {
			if b := cfg.Backends[name]; b.Type == config.BackendLocal {
				if _, err := os.Stat(b.Path); errors.Is(err, fs.ErrNotExist) {
					return []string{"will be made in " + b.Path + " on first start"}, nil
				}
			}
			b, err := a.newBackend(ctx, name, cfg.Backends[name], publishers)
			if err != nil {
				return nil, err
			}
			return b.check(ctx, lifetimes(cfg, name))
		})
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Validation)) {
		for _, resolver := range cfg.Validation[name].Resolvers {
			report("validation."+name+" resolver "+resolver, func(ctx context.Context) ([]string, error) { return nil, checkResolver(ctx, resolver) })
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of the things tried would fail", failed)
	}
	return nil
}

// lifetimes are those that profiles ask of a backend.
func lifetimes(cfg *config.Config, backend string) []time.Duration {
	var all []time.Duration
	for _, name := range slices.Sorted(maps.Keys(cfg.Profiles)) {
		if p := cfg.Profiles[name]; p.Backend == backend {
			all = append(all, p.Lifetime.Std())
		}
	}
	return all
}

func checkRedis(ctx context.Context, cfg config.Storage, log *slog.Logger) ([]string, error) {
	s, err := openStore(cfg, log)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := s.Ping(ctx); err != nil {
		return nil, err
	}
	r, ok := s.(*redis.Store)
	if !ok {
		return nil, nil
	}
	f, err := r.Facts(ctx)
	if err != nil {
		return nil, err
	}
	facts := []string{"version " + f.Version, "maxmemory-policy " + f.Policy, "appendonly " + f.AppendOnly}
	if f.Policy != "" && f.Policy != "noeviction" {
		return facts, fmt.Errorf("maxmemory-policy is %s: Redis may drop orders and accounts when its memory is full; set it to noeviction", f.Policy)
	}
	return facts, nil
}

// checkResolver asks for the root's name servers, which every recursive
// resolver knows.
func checkResolver(ctx context.Context, resolver string) error {
	if _, _, err := net.SplitHostPort(resolver); err != nil {
		resolver = net.JoinHostPort(resolver, "53")
	}
	q := new(dns.Msg)
	q.SetQuestion(".", dns.TypeNS)
	c := &dns.Client{Timeout: 5 * time.Second}
	answer, _, err := c.ExchangeContext(ctx, q, resolver)
	if err != nil {
		return fmt.Errorf("does not answer: %w", err)
	}
	if answer.Rcode != dns.RcodeSuccess {
		return fmt.Errorf("answers %s to a plain question: is it a recursive resolver?", dns.RcodeToString[answer.Rcode])
	}
	return nil
}
