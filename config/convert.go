package config

import (
	"reflect"
	"slices"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// ACME returns the profile as the core knows it. SubjectIgnored and Relay are
// not set: they depend on the backend, which the caller has.
func (p *Profile) ACME(name string) *acme.Profile {
	return &acme.Profile{
		Name:           name,
		Description:    p.Description,
		Backend:        p.Backend,
		Lifetime:       p.Lifetime.Std(),
		ClientValidity: p.ClientValidity,
		Challenges:     slices.Clone(p.Challenges),
		Identifiers: acme.IdentifierPolicy{
			Types:     slices.Clone(p.Identifiers.Types),
			Allow:     slices.Clone(p.Identifiers.Allow),
			Deny:      slices.Clone(p.Identifiers.Deny),
			Wildcards: p.Identifiers.Wildcards,
			Max:       p.Identifiers.Max,
		},
		KeyTypes:              slices.Clone(p.KeyTypes),
		OrderLifetime:         p.OrderLifetime.Std(),
		AuthorizationLifetime: p.AuthorizationLifetime.Std(),
		ReuseAuthorizations:   p.ReuseAuthorizations,
	}
}

// ACMEProfiles returns all profiles as the core knows them, by name.
func (c *Config) ACMEProfiles() map[string]*acme.Profile {
	profiles := make(map[string]*acme.Profile, len(c.Profiles))
	for name, p := range c.Profiles {
		profile := p.ACME(name)
		if i := slices.Index(profile.Challenges, c.relayOf(p)); i >= 0 {
			profile.Relay = profile.Challenges[i]
			profile.Challenges = slices.Delete(profile.Challenges, i, i+1)
		}
		profiles[name] = profile
	}
	return profiles
}

// DrainTime is how long a shutdown may have to wait for what it must not cut
// off: a held finalize, and a backend's call with its deadline.
func (c *Config) DrainTime() time.Duration {
	longest := c.Server.FinalizeHold
	for _, b := range c.Backends {
		if b.Type != BackendLocal {
			longest = max(longest, b.Timeout)
		}
	}
	return (longest + seconds(5)).Std()
}

// RestartNeeded names the keys that differ between two configurations and that
// a reload cannot change: those of listeners, storage and log. They are sorted.
func RestartNeeded(old, new *Config) []string {
	keys := differ(reflect.ValueOf(old).Elem(), reflect.ValueOf(new).Elem(), "", false)
	slices.Sort(keys)
	return keys
}

// differ walks structs and compares what is marked, itself or above, by the tag
// reload.
func differ(a, b reflect.Value, path string, marked bool) []string {
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		a, b = a.Elem(), b.Elem()
	}
	if a.Kind() != reflect.Struct || a.Type() == reflect.TypeFor[Secret]() || a.Type() == reflect.TypeFor[NotYet]() {
		if marked && !reflect.DeepEqual(a.Interface(), b.Interface()) {
			return []string{path}
		}
		return nil
	}
	var keys []string
	for i := range a.NumField() {
		f := a.Type().Field(i)
		key := join(path, f.Tag.Get("yaml"))
		keys = append(keys, differ(a.Field(i), b.Field(i), key, marked || f.Tag.Get("reload") == "restart")...)
	}
	return keys
}
