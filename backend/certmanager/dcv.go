package certmanager

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"
	"golang.org/x/sync/errgroup"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// Bounds of one poll's work on validation.
const (
	maxDCV       = 10 // names looked at
	maxPublish   = 8  // records published at one time
	publishLimit = 10 * time.Second
	removeLimit  = 10 * time.Second
)

// fqdn is the whole name of a record, without a dot at its end. Whether the
// service gives it relative to the domain is not documented: a name outside of
// the domain's registrable part is taken for relative.
func fqdn(record, domain string) string {
	if record == "" {
		return ""
	}
	if whole, ok := strings.CutSuffix(record, "."); ok {
		return strings.ToLower(whole)
	}
	record = strings.ToLower(record)
	registrable, err := publicsuffix.EffectiveTLDPlusOne(domain)
	if err != nil {
		registrable = domain
	}
	if record == "@" {
		return domain
	}
	if record == registrable || strings.HasSuffix(record, "."+registrable) {
		return record
	}
	return record + "." + domain
}

// validation looks at names, publishes what is asked for, and returns what
// changed. The ticket is brought up to date in any case.
func (i *Issuer) validation(ctx context.Context, req *acme.IssueRequest, t *ticket) ([]acme.Event, error) {
	events, err := i.look(ctx, t)
	events = append(events, i.publish(ctx, req, t)...)
	return events, err
}

// look asks for the validation of names that are not done, a bounded number of
// them in turn.
func (i *Issuer) look(ctx context.Context, t *ticket) ([]acme.Event, error) {
	var events []acme.Event
	first := t.Cursor
	for looked, n := 0, 0; n < len(t.DCV) && looked < maxDCV; n++ {
		d := &t.DCV[(first+n)%len(t.DCV)]
		if d.State == dcvDone {
			continue
		}
		looked++
		r, err := i.api.dcv(ctx, t.No, d.Domain)
		if e, ok := errors.AsType[*ncloud.Error](err); ok && e.Outcome == ncloud.OutcomeRefused && !e.Gateway {
			// One name's refusal must not keep the others waiting.
			i.cfg.Log.WarnContext(ctx, "validation of a name is not shown", "certificate", t.No, "identifier", d.Domain, "err", err)
			err = nil
		}
		if err != nil {
			return events, err
		}
		d.Looked = true
		if looked == maxDCV {
			t.Cursor = (first + n + 1) % len(t.DCV)
		}
		if r == nil {
			continue // not shown yet, or covered by a validated domain
		}
		events = append(events, i.changed(ctx, t, d, r)...)
	}
	return events, nil
}

// changed takes over what a row says, and returns the event if it is news.
func (i *Issuer) changed(ctx context.Context, t *ticket, d *dcv, r *dcvRow) []acme.Event {
	record, value := clip(fqdn(r.Name, d.Domain), 300), r.Value
	if len(value) > 2000 {
		value = ""
	}
	state := clip(r.State, 40)
	if r.State == dcvWaiting && (record == "" || value == "") || r.State == "" {
		i.cfg.Log.ErrorContext(ctx, "a validation lacks state, name or value of its record", "certificate", t.No, "identifier", d.Domain, "row", r.raw.String())
	}
	if state == "" {
		state = dcvWaiting // shown, and not done
	}
	if state == d.State && record == d.Record && value == d.Value {
		return nil
	}
	if record != d.Record || value != d.Value {
		d.Served, d.Note = 0, ""
	}
	d.State, d.Record, d.Value = state, record, value
	i.metrics.changed(i.cfg.Backend, state)
	return []acme.Event{i.event(d.Domain, "validation is %s%s", state, wanted(d))}
}

// wanted words the record that is asked for.
func wanted(d *dcv) string {
	if d.Record == "" || d.Value == "" {
		return ""
	}
	return ": TXT record " + clip(d.Record, 300) + " with the value \"" + clip(d.Value, 300) + "\""
}

// publish brings records that are asked for into DNS, side by side so that a
// publisher can join them.
func (i *Issuer) publish(ctx context.Context, req *acme.IssueRequest, t *ticket) []acme.Event {
	var mu sync.Mutex
	var events []acme.Event
	note := func(d *dcv, text string) {
		mu.Lock()
		defer mu.Unlock()
		if d.Note != text {
			d.Note = text
			events = append(events, i.event(d.Domain, "%s", text))
		}
	}
	var group errgroup.Group
	group.SetLimit(maxPublish)
	for n := range t.DCV {
		d := &t.DCV[n]
		if d.State != dcvWaiting || d.Record == "" || d.Value == "" || d.Served != 0 {
			continue
		}
		if i.cfg.Publisher == nil {
			note(d, "waits for the domain's owner to publish the record")
			continue
		}
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, publishLimit)
			defer cancel()
			covered, err := i.cfg.Publisher.Covers(ctx, d.Domain)
			if err == nil && !covered {
				note(d, "waits for the domain's owner to publish the record: no publisher has its zone")
				return nil
			}
			served := false
			if err == nil {
				served, err = i.cfg.Publisher.Publish(ctx, d.Record, d.Value)
			}
			switch {
			case err != nil:
				i.cfg.Log.WarnContext(ctx, "validation record not published, will try again", "order", req.OrderID, "identifier", d.Domain, "record", d.Record, "err", err)
				if !errors.Is(err, context.DeadlineExceeded) {
					note(d, "the record could not be published yet")
				}
			case served:
				d.Served = i.cfg.Now().Unix()
				note(d, "the record is served by all authoritative servers")
			default:
				note(d, "the record is being published")
			}
			return nil
		})
	}
	// The functions report by note and never fail.
	_ = group.Wait()
	return events
}

// cleanUp removes one-time records; persistent ones serve the next request.
func (i *Issuer) cleanUp(ctx context.Context, req *acme.IssueRequest, t *ticket) {
	if i.cfg.ValidationMethod != "D" || i.cfg.Publisher == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeLimit)
	defer cancel()
	for _, d := range t.DCV {
		if d.Record == "" || d.Value == "" || d.Note == "" {
			continue // not asked for, or nothing to do with us
		}
		covered, err := i.cfg.Publisher.Covers(ctx, d.Domain)
		if err == nil && covered {
			err = i.cfg.Publisher.Remove(ctx, d.Record, d.Value)
		}
		if err != nil {
			i.cfg.Log.WarnContext(ctx, "one-time validation record not removed", "order", req.OrderID, "identifier", d.Domain, "record", d.Record, "err", err)
		}
	}
}
