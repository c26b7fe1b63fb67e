package certmanager

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

func ids(names ...string) []acme.Identifier {
	list := make([]acme.Identifier, len(names))
	for n, v := range names {
		list[n] = acme.Identifier{Type: acme.TypeDNS, Value: v}
	}
	return list
}

func TestPreflight(t *testing.T) {
	for name, tt := range map[string]struct {
		names []string
		want  []string // names with subproblems
		text  string
	}{
		"the domain itself":        {[]string{"valid.example"}, nil, ""},
		"its wildcard":             {[]string{"*.valid.example"}, nil, ""},
		"wildcard and apex":        {[]string{"valid.example", "*.valid.example"}, nil, ""},
		"below it":                 {[]string{"a.b.valid.example"}, nil, ""},
		"ends like it":             {[]string{"invalid.example"}, []string{"invalid.example"}, "must add the domain"},
		"above it":                 {[]string{"example"}, []string{"example"}, "must add"},
		"the publisher's zone":     {[]string{"x.example.com", "*.y.example.com"}, nil, ""},
		"pending":                  {[]string{"a.pending.example"}, []string{"a.pending.example"}, `PENDING: it wants the TXT record _validation-persist.pending.example with the value "`},
		"invalid, below a valid":   {[]string{"sub.valid.example"}, nil, ""},
		"some of several":          {[]string{"valid.example", "pending.example", "other.example"}, []string{"pending.example", "other.example"}, ""},
		"a wildcard of the nobody": {[]string{"*.other.example"}, []string{"*.other.example"}, "neither other.example nor a parent"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, withPublisher)
			r.domain("valid.example", DomainValid)
			r.domain("sub.valid.example", DomainInvalid)
			r.domain("pending.example", DomainPending)
			err := r.Preflight(t.Context(), ids(tt.names...))
			if len(tt.want) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			p := acme.AsProblem(err)
			var got []string
			for _, s := range p.Subproblems {
				if s.Type != acme.RejectedIdentifier || !strings.Contains(s.Detail, tt.text) {
					t.Errorf("subproblem %v, want %q", s, tt.text)
				}
				got = append(got, s.Identifier.Value)
			}
			if p.Type != acme.RejectedIdentifier || !slices.Equal(got, tt.want) {
				t.Errorf("got %v for %v, want %v", p, got, tt.want)
			}
		})
	}
}

func TestPreflightCache(t *testing.T) {
	r := newRig(t, nil)
	calls := func() int64 { return r.sim.Counters().Calls["listDomainValidations"] }
	r.domain("a.example", DomainValid)
	for range 20 {
		if err := r.Preflight(t.Context(), ids("a.example")); err != nil {
			t.Fatal(err)
		}
		r.clock.Advance(20 * time.Second)
	}
	if got := calls(); got != 1 {
		t.Errorf("got %d calls for 20 orders in 7 minutes, want 1", got)
	}
	// A domain that became valid since the list was read.
	r.domain("b.example", DomainValid)
	if err := r.Preflight(t.Context(), ids("b.example")); err != nil {
		t.Errorf("refused by a stale list: %v", err)
	}
	// Orders that are refused again and again do not flood the service.
	before := calls()
	for range 50 {
		if err := r.Preflight(t.Context(), ids("c.example")); err == nil {
			t.Fatal("not refused")
		}
	}
	if got := calls() - before; got > 2 {
		t.Errorf("got %d calls for 50 refused orders at one time", got)
	}
	// After ten minutes a domain that is gone does not count any more.
	r.domain("a.example", DomainInvalid)
	r.clock.Advance(11 * time.Minute)
	if err := r.Preflight(t.Context(), ids("a.example")); err == nil {
		t.Error("accepted by a list that is too old")
	}
}

func TestPreflightCannotTell(t *testing.T) {
	r := newRig(t, nil)
	r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 503, Operation: "listDomainValidations", Count: -1})
	p, ok := errors.AsType[*acme.Problem](r.Preflight(t.Context(), ids("a.example")))
	if !ok || p.Type != acme.ServerInternal || p.Status != http.StatusServiceUnavailable || p.RetryAfter <= 0 || strings.Contains(p.Detail, "503") {
		t.Errorf("got %+v", p)
	}
}

func TestDomains(t *testing.T) {
	for name, set := range map[string]func(*ncloudtest.CMBehaviour){
		"as documented":       func(*ncloudtest.CMBehaviour) {},
		"a bare answer":       func(b *ncloudtest.CMBehaviour) { b.RegisterAnswer = "bare" },
		"existing ones again": func(b *ncloudtest.CMBehaviour) { b.RegisterTwice = "existing" },
		"other names": func(b *ncloudtest.CMBehaviour) {
			b.NameField, b.ValueField, b.ExpiryField = "recordName", "recordValue", "validEndDate"
		},
		"relative record name": func(b *ncloudtest.CMBehaviour) { b.RecordPD = "_persist" },
		"milliseconds":         func(b *ncloudtest.CMBehaviour) { b.DateFormat = "millis" },
		"numbers as strings":   func(b *ncloudtest.CMBehaviour) { b.NumbersAsStrings = true },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(r *rig, cfg *Config) {
				withPublisher(r, cfg)
				cfg.LookupTXT = r.lookup
			})
			r.change(set)
			ctx := t.Context()
			for range 2 { // the second finds it
				d, err := r.RegisterDomain(ctx, "Shop.Example.COM.", "")
				if err != nil || d.ID == 0 || d.State != DomainPending || d.Method != "PTXT" || d.RecordName == "" || d.RecordValue == "" {
					t.Fatalf("got %+v, %v", d, err)
				}
				if !strings.HasSuffix(d.RecordName, ".shop.example.com") {
					t.Errorf("record name %q", d.RecordName)
				}
			}
			if got := r.counters().Registered; got != 1 {
				t.Errorf("registered %d times", got)
			}
			s, err := r.CheckDomain(ctx, "shop.example.com")
			if err != nil || s.Record != RecordMissing || len(s.Warnings) != 2 {
				t.Errorf("got %+v, %v", s, err)
			}
			if published, served, err := r.PublishDomain(ctx, s.Domain); !published || !served || err != nil {
				t.Errorf("publish: %v %v %v", published, served, err)
			}
			r.sim.Tick(ctx)
			s, err = r.CheckDomain(ctx, "shop.example.com")
			if err != nil || s.State != DomainValid || s.Record != RecordServed || len(s.Warnings) != 0 {
				t.Errorf("got %+v, %v", s, err)
			}
			if want := r.clock.Now().Add(198 * 24 * time.Hour); s.Expires.Sub(want).Abs() > time.Minute {
				t.Errorf("expires %s, want %s", s.Expires, want)
			}
			if list, err := r.ListDomains(ctx); err != nil || len(list) != 1 {
				t.Errorf("got %v, %v", list, err)
			}
			if err := r.RemoveDomain(ctx, "shop.example.com"); err != nil {
				t.Error(err)
			}
			if _, err := r.CheckDomain(ctx, "shop.example.com"); !errors.Is(err, ErrNoDomain) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("what is no domain", func(t *testing.T) {
		r := newRig(t, nil)
		for _, name := range []string{"*.example.com", "", "1.2.3.4", "exa mple.com"} {
			if _, err := r.RegisterDomain(t.Context(), name, ""); err == nil {
				t.Errorf("%q was registered", name)
			}
		}
		if _, err := r.RegisterDomain(t.Context(), "example.com", "E"); err == nil {
			t.Error("method E was taken")
		}
	})
	t.Run("a lost answer", func(t *testing.T) {
		r := newRig(t, nil)
		r.inject(ncloudtest.Fault{Kind: ncloudtest.DropAfter, Operation: "registerDomain"})
		if d, err := r.RegisterDomain(t.Context(), "example.com", ""); err != nil || d.ID == 0 {
			t.Errorf("got %+v, %v", d, err)
		}
	})
	t.Run("a row without a value", func(t *testing.T) {
		r := newRig(t, withPublisher)
		r.change(func(b *ncloudtest.CMBehaviour) { b.ValueField = "" })
		d, err := r.RegisterDomain(t.Context(), "example.com", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.PublishDomain(t.Context(), d); err == nil || !strings.Contains(err.Error(), "domainaddress") {
			t.Errorf("got %v, want the whole row", err)
		}
	})
}

// lookup asks the simulator's DNS server.
func (r *rig) lookup(ctx context.Context, name string) ([]string, error) {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeTXT)
	answer, _, err := new(dns.Client).ExchangeContext(ctx, m, r.sim.DNSAddress())
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, rr := range answer.Answer {
		if txt, ok := rr.(*dns.TXT); ok {
			texts = append(texts, strings.Join(txt.Txt, ""))
		}
	}
	return texts, nil
}

func TestWatch(t *testing.T) {
	r := newRig(t, func(r *rig, cfg *Config) { cfg.LookupTXT = r.lookup })
	r.change(func(b *ncloudtest.CMBehaviour) { b.RemovedRecord = "ignored"; b.ValuePD = "token={token}" })
	r.domain("example.com", DomainValid)
	r.domain("a.example.com", DomainPending)
	round := func() string {
		t.Helper()
		before := len(r.log.String())
		if err := r.WatchDomains(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r.log.String()[before:]
	}
	wants := func(got string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("the log lacks %q:\n%s", w, got)
			}
		}
		if len(want) == 0 && got != "" {
			t.Errorf("logged without news:\n%s", got)
		}
	}
	wants(round(), "domain is validated", "domain waits for its validation")
	wants(round())
	if got := testutil.ToFloat64(r.metrics.domainValid.WithLabelValues("public", "example.com")); got != 1 {
		t.Errorf("domain_valid is %v", got)
	}
	if got := testutil.ToFloat64(r.metrics.domainRecord.WithLabelValues("public", "a.example.com")); got != 0 {
		t.Errorf("domain_record_present is %v", got)
	}

	var record ncloudtest.CMDomain
	for _, d := range r.sim.CMDomains() {
		if d.Domain == "example.com" {
			record = d
		}
	}
	r.sim.Unpublish(record.Record, "TXT", "")
	wants(round(), "level=WARN", "gone from DNS")
	wants(round())
	if err := r.sim.Publish(record.Record, "TXT", "something else"); err != nil {
		t.Fatal(err)
	}
	wants(round(), "gone from DNS")
	r.sim.Unpublish(record.Record, "TXT", "")
	if err := r.sim.Publish(record.Record, "TXT", record.Value); err != nil {
		t.Fatal(err)
	}
	wants(round(), "served again")

	// Thirty days before its end, and every day from then on.
	r.clock.Advance(169 * 24 * time.Hour)
	r.domain("a.example.com", DomainPending) // has timed out by then
	wants(round(), "ends soon")
	r.clock.Advance(time.Hour)
	wants(round())
	r.clock.Advance(24 * time.Hour)
	wants(round(), "ends soon")

	r.domain("example.com", DomainInvalid)
	wants(round(), "level=ERROR", "not validated any more")
	if got := testutil.ToFloat64(r.metrics.domainValid.WithLabelValues("public", "example.com")); got != 0 {
		t.Errorf("domain_valid is %v", got)
	}
	if err := r.RemoveDomain(t.Context(), "example.com"); err != nil {
		t.Fatal(err)
	}
	wants(round(), "gone from Certificate Manager")

	t.Run("a restart tells nothing again", func(t *testing.T) {
		again, err := New(r.cfg)
		if err != nil {
			t.Fatal(err)
		}
		before := len(r.log.String())
		if err := again.WatchDomains(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := r.log.String()[before:]; got != "" {
			t.Errorf("logged:\n%s", got)
		}
	})
	t.Run("the job ends with its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		i := r.Issuer
		rounds := 0
		i.cfg.Wait = func(ctx context.Context, _ time.Duration) error {
			if rounds++; rounds == 3 {
				cancel()
			}
			return ctx.Err()
		}
		if err := i.Run(ctx); err != nil || rounds != 3 {
			t.Errorf("got %v after %d rounds", err, rounds)
		}
	})
}
