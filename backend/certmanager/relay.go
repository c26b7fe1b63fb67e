package certmanager

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

var _ acme.Relayer = (*Issuer)(nil)

// relays are the domains that were registered for accounts that prove control
// by publishing the record: the record "certmanager:<backend>:relays".
type relays struct {
	Claims map[string]claim `json:"claims"` // by domain
}

// A claim says to which account a registration's value was told. While it lasts
// nobody else is told, so that the record's appearance speaks for that account.
type claim struct {
	Account string    `json:"account"` // "": nobody's any more, the registration is to be deleted
	ID      int64     `json:"id,omitempty"`
	Old     []int64   `json:"old,omitempty"` // registrations whose value others know
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
}

const (
	// maxClaims bounds the record, maxAccountClaims an account's share, and
	// maxRelay what is registered for one order.
	maxClaims        = 500
	maxAccountClaims = 50
	maxRelay         = 20
	maxSweep         = 5 // registrations that one order cleans up
	// claimGrace is for orders that end a little after their claim.
	claimGrace = time.Hour
	// registering is how long a registration may take to show up: one that
	// appears later was made by somebody else.
	registering = 2 * time.Minute
	// relayAge is how old a list may be that tells of relayed domains: one call
	// serves all that are waited for.
	relayAge = 5 * time.Second
)

func (i *Issuer) relaysName() string { return "certmanager:" + i.cfg.Backend + ":relays" }

// Relay registers domains for an account. A name gets no record if its domain is
// validated, if a publisher of ours may write the record, if the domain was
// registered by somebody else, or if another account waits for it.
func (i *Issuer) Relay(ctx context.Context, accountID string, ids []acme.Identifier, until time.Time) ([]*acme.RelayRecord, error) {
	records := make([]*acme.RelayRecord, len(ids))
	if i.cfg.Records == nil || accountID == "" {
		return records, nil // who was told what could not be kept
	}
	list, err := i.ListDomains(ctx)
	if err != nil {
		return nil, err
	}
	names, err := i.relayable(ctx, ids, list)
	if err != nil || len(names) == 0 {
		return records, err
	}
	mine, stale, err := i.claim(ctx, accountID, names, list, until)
	if err != nil {
		return nil, err
	}
	i.sweep(ctx, stale)
	domains, err := i.registered(ctx, mine, list)
	if err != nil {
		return nil, err
	}
	i.dropKnown(ctx, mine, domains)
	if domains, err = i.confirm(ctx, accountID, domains); err != nil {
		return nil, err
	}
	for n, id := range ids {
		base, _ := id.Base()
		if d, ok := domains[base.Value]; ok {
			records[n] = &acme.RelayRecord{Backend: i.cfg.Backend, Ref: strconv.FormatInt(d.ID, 10) + " " + d.Name, Type: "TXT",
				Name: d.RecordName, Value: d.RecordValue, Expires: until.UTC().Truncate(time.Second)}
		}
	}
	return records, nil
}

// relayable are the domains, each once, that only a record of the client's
// could validate.
func (i *Issuer) relayable(ctx context.Context, ids []acme.Identifier, list []Domain) ([]string, error) {
	var names []string
	for _, id := range ids {
		base, _ := id.Base()
		if slices.Contains(names, base.Value) || len(names) == maxRelay {
			continue
		}
		if d := i.covering(list, base.Value); d != nil && d.State == DomainValid {
			continue
		}
		if i.cfg.Publisher != nil {
			ours, err := i.cfg.Publisher.Covers(ctx, base.Value)
			if err != nil {
				return nil, fmt.Errorf("ask the publisher about %s: %w", base.Value, err)
			}
			if ours {
				continue // the record could appear by our own hand
			}
		}
		names = append(names, base.Value)
	}
	return names, nil
}

// registrations are the rows of a domain: the claim's own, one of the claim's
// whose value others know, and one that somebody else has made.
func (c claim) registrations(list []Domain, name string, now time.Time) (own, old, foreign *Domain) {
	for n := range list {
		switch d := &list[n]; {
		case d.Name != name || d.IssueType == "ACME":
		case slices.Contains(c.Old, d.ID):
			old = d
		case c.ID != 0 && d.ID == c.ID, c.ID == 0 && now.Sub(c.Since) <= registering:
			own = d
		default:
			foreign = d
		}
	}
	return own, old, foreign
}

// claim takes for the account those names that are free, before anything is
// registered. It returns them with their claims, and registrations whose time
// is over.
func (i *Issuer) claim(ctx context.Context, accountID string, names []string, list []Domain, until time.Time) (mine, stale map[string]claim, err error) {
	err = change(ctx, i, i.relaysName(), func(r *relays) bool {
		now := i.cfg.Now().UTC().Truncate(time.Second)
		mine, stale = map[string]claim{}, map[string]claim{}
		if r.Claims == nil {
			r.Claims = map[string]claim{}
		}
		held := 0
		for name, c := range r.Claims {
			if now.After(c.Until.Add(claimGrace)) {
				c.Account = ""
				r.Claims[name], stale[name] = c, c
			}
			if c.Account == accountID {
				held++
			}
		}
		for _, name := range names {
			c, known := r.Claims[name]
			own, _, foreign := c.registrations(list, name, now)
			switch {
			case foreign != nil:
				continue // somebody else knows a value, and may publish it
			case known && c.Account != "" && c.Account != accountID:
				continue
			case known && c.Account == accountID && (c.ID == 0 && own == nil || own != nil && own.State == DomainPending):
				c.Until = latest(c.Until, until.UTC().Truncate(time.Second))
				if own == nil {
					c.Since = now
				}
			default: // new, or one of a value that is of no use any more
				if !known && (len(r.Claims) >= maxClaims || held >= maxAccountClaims) {
					i.cfg.Log.WarnContext(ctx, "too many relayed validations are waited for", "account", accountID, "identifier", name)
					continue
				}
				if own != nil {
					c.Old = bounded(append(slices.Clone(c.Old), own.ID), maxSweep)
				}
				c.Account, c.ID, c.Since, c.Until = accountID, 0, now, until.UTC().Truncate(time.Second)
				held++
			}
			r.Claims[name], mine[name] = c, c
			delete(stale, name)
		}
		return len(mine) > 0 || len(stale) > 0
	})
	return mine, stale, err
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// sweep deletes a bounded number of registrations whose time is over and that
// came to nothing, and forgets the claims on them.
func (i *Issuer) sweep(ctx context.Context, stale map[string]claim) {
	if len(stale) == 0 {
		return
	}
	list, err := i.ListDomains(ctx)
	if err != nil {
		return // later
	}
	done := map[string]claim{}
	for _, name := range slices.Sorted(maps.Keys(stale))[:min(len(stale), maxSweep)] {
		c := stale[name]
		own, old, _ := c.registrations(list, name, i.cfg.Now())
		for _, d := range []*Domain{own, old} {
			if d != nil && d.State != DomainValid {
				err = errors.Join(err, i.api.deleteDomain(ctx, d.ID))
				i.forgetDomains()
			}
		}
		if err != nil {
			i.cfg.Log.WarnContext(ctx, "registration of a relayed validation not deleted", "identifier", name, "err", err)
			break
		}
		done[name] = c
	}
	err = change(ctx, i, i.relaysName(), func(r *relays) bool {
		n := len(r.Claims)
		for name, c := range done {
			if now := r.Claims[name]; now.Account == "" && now.ID == c.ID {
				delete(r.Claims, name)
			}
		}
		return len(r.Claims) != n
	})
	if err != nil {
		i.cfg.Log.WarnContext(ctx, "relayed validations not forgotten, will be tried again", "err", err)
	}
}

// registered makes the registrations that are claimed and not there, and
// returns those that the service shows, at best with their records.
func (i *Issuer) registered(ctx context.Context, mine map[string]claim, list []Domain) (map[string]Domain, error) {
	var errs []error
	asked := false
	for name, c := range mine {
		own, old, _ := c.registrations(list, name, i.cfg.Now())
		if own != nil {
			continue
		}
		if old != nil {
			// Others know its value: another one is wanted.
			if err := i.api.deleteDomain(ctx, old.ID); err != nil {
				errs = append(errs, fmt.Errorf("delete the registration of %s: %w", name, err))
				continue
			}
		}
		asked = true
		// Not PTXT: the value of a record that is kept may be the same for every
		// registration, and then its appearance speaks for nobody.
		if err := i.api.registerDomain(ctx, name, "TXT", i.cfg.OrganizationNo); err != nil {
			errs = append(errs, fmt.Errorf("register %s: %w", name, err))
		}
	}
	if asked || len(errs) > 0 {
		i.forgetDomains()
	}
	for try := 0; ; try++ {
		found, complete := map[string]Domain{}, 0
		if asked || try > 0 {
			var err error
			if list, err = i.ListDomains(ctx); err != nil {
				return nil, errors.Join(append(errs, err)...)
			}
		}
		for name, c := range mine {
			own, _, foreign := c.registrations(list, name, i.cfg.Now())
			if own != nil && foreign == nil && own.State == DomainPending {
				found[name] = *own
				if own.RecordName != "" && own.RecordValue != "" {
					complete++
				}
			}
		}
		if complete == len(mine) || try >= 3 || len(errs) > 0 {
			if err := errors.Join(errs...); err != nil {
				i.cfg.Log.WarnContext(ctx, "domains not registered for relayed validations", "err", err)
			}
			return found, nil
		}
		if err := i.cfg.Wait(ctx, time.Second<<try); err != nil {
			return found, nil
		}
	}
}

// dropKnown leaves out new registrations whose value is no secret between the
// service and us: one that other registrations have as well, that names an
// account (draft-ietf-acme-dns-persist) or that DNS serves before anyone was told.
func (i *Issuer) dropKnown(ctx context.Context, mine map[string]claim, domains map[string]Domain) {
	list, err := i.domainList(ctx, relayAge)
	for name, d := range domains {
		if mine[name].ID != 0 || d.RecordValue == "" {
			continue
		}
		known := err != nil || strings.Contains(strings.ToLower(d.RecordValue), "accounturi") ||
			slices.ContainsFunc(list, func(x Domain) bool { return x.ID != d.ID && x.RecordValue == d.RecordValue }) ||
			i.inDNS(ctx, d) == RecordServed
		if known {
			i.cfg.Log.WarnContext(ctx, "registered domain cannot be relayed: the value of its record is not random", "identifier", name, "record", d.RecordName)
			delete(domains, name)
		}
	}
}

// inDNS looks for the record of a domain.
func (i *Issuer) inDNS(ctx context.Context, d Domain) string {
	if i.cfg.LookupTXT == nil || d.RecordName == "" || d.RecordValue == "" {
		return RecordUnknown
	}
	texts, err := i.cfg.LookupTXT(ctx, d.RecordName)
	switch {
	case err != nil:
		return RecordUnknown
	case slices.Contains(texts, d.RecordValue):
		return RecordServed
	case len(texts) == 0:
		return RecordMissing
	}
	return RecordOther
}

// confirm keeps which registrations are the account's, and leaves out those
// that it has lost meanwhile, and those without a record.
func (i *Issuer) confirm(ctx context.Context, accountID string, domains map[string]Domain) (map[string]Domain, error) {
	if len(domains) == 0 {
		return nil, nil
	}
	var told map[string]Domain
	err := change(ctx, i, i.relaysName(), func(r *relays) bool {
		told = map[string]Domain{}
		changed := false
		for name, d := range domains {
			c := r.Claims[name]
			if c.Account != accountID || c.ID != 0 && c.ID != d.ID {
				continue
			}
			if c.ID == 0 {
				c.ID, c.Old = d.ID, nil
				r.Claims[name], changed = c, true
			}
			if d.RecordName == "" || d.RecordValue == "" || clip(d.RecordName, 300) != d.RecordName || clip(d.RecordValue, 2000) != d.RecordValue {
				i.cfg.Log.WarnContext(ctx, "registered domain shows no record that can be told", "identifier", name, "row", d.raw.String())
				continue
			}
			told[name] = d
		}
		return changed
	})
	return told, err
}

// RelayStatus tells what became of a registration that Relay made for the
// account.
func (i *Issuer) RelayStatus(ctx context.Context, accountID string, r *acme.RelayRecord) (bool, time.Time, error) {
	number, name, _ := strings.Cut(r.Ref, " ")
	id, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return false, time.Time{}, fmt.Errorf("read reference %q: %w", clip(r.Ref, 300), err)
	}
	list, err := i.domainList(ctx, relayAge)
	if err != nil {
		return false, time.Time{}, err
	}
	d := byID(list, id)
	if d == nil {
		if list, err = i.ListDomains(ctx); err != nil {
			return false, time.Time{}, err
		}
		d = byID(list, id)
	}
	if d == nil || d.Name != name {
		return false, time.Time{}, acme.Problemf(acme.IncorrectResponse, "the certificate authority does not wait for the record of %s any more", clip(name, 253))
	}
	switch {
	case d.State == DomainInvalid, d.State == DomainValid && !d.Expires.IsZero() && !i.cfg.Now().Before(d.Expires):
		return false, time.Time{}, i.relayFailed(ctx, *d)
	case d.State != DomainValid:
		return false, time.Time{}, nil
	}
	kept, _, err := load[relays](ctx, i, i.relaysName())
	if err != nil {
		return false, time.Time{}, err
	}
	ours := false
	if i.cfg.Publisher != nil { // configured since
		if ours, err = i.cfg.Publisher.Covers(ctx, name); err != nil {
			return false, time.Time{}, fmt.Errorf("ask the publisher about %s: %w", name, err)
		}
	}
	if c := kept.Claims[name]; ours || c.Account != accountID || c.ID != id {
		return false, time.Time{}, acme.Problemf(acme.IncorrectResponse, "the validation of %s is not this account's any more: others may have published the record", clip(name, 253))
	}
	if validWithout(list, d) && i.inDNS(ctx, *d) != RecordServed {
		return false, time.Time{}, nil
	}
	return true, d.Expires, nil
}

// validWithout reports whether a parent of the domain is validated, too, or the
// domain itself by another registration: then the service may have taken it for
// validated without looking for the record.
func validWithout(list []Domain, d *Domain) bool {
	return slices.ContainsFunc(list, func(p Domain) bool {
		return p.ID != d.ID && p.Name != "" && p.State == DomainValid && (p.Name == d.Name || strings.HasSuffix(d.Name, "."+p.Name))
	})
}

// relayFailed words that the service has given up on a record.
func (i *Issuer) relayFailed(ctx context.Context, d Domain) *acme.Problem {
	t, what := acme.IncorrectResponse, "was not seen in time"
	switch i.inDNS(ctx, d) {
	case RecordMissing:
		t, what = acme.DNS, "is not in DNS"
	case RecordOther:
		what = "has another value in DNS"
	}
	return acme.Problemf(t, "the certificate authority has not validated %s: the TXT record %s %s", clip(d.Name, 253), clip(d.RecordName, 300), what)
}

func byID(list []Domain, id int64) *Domain {
	if n := slices.IndexFunc(list, func(d Domain) bool { return d.ID == id }); n >= 0 && id != 0 {
		return &list[n]
	}
	return nil
}

// EndRelay takes a domain's registration from the account that it was made for,
// whose challenge fails: for an operator who goes on with it, and whose
// publishing of the record would otherwise prove control for that account.
func (i *Issuer) EndRelay(ctx context.Context, name string) error {
	name, err := domainName(name)
	if err != nil {
		return err
	}
	return change(ctx, i, i.relaysName(), func(r *relays) bool {
		_, known := r.Claims[name]
		delete(r.Claims, name)
		return known
	})
}
