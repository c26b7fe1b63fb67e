package config

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/acme-bridge/acme-bridge/acme"
)

func (d *decoder) checkProfiles(c *Config) {
	if len(c.Profiles) == 0 {
		d.errorf("profiles", "at least one is needed; it names a backend and what may be ordered from it")
	}
	for _, name := range keysOf(c.Profiles) {
		p, key := c.Profiles[name], join("profiles", printable(name))
		if p.Description == "" {
			p.Description = name
		}
		d.profileBackend(c, p, key)
		d.challenges(c, p, key+".challenges")
		checkList(d, key+".key_types", p.KeyTypes, acme.KeyTypes)
		d.checkIdentifiers(&p.Identifiers, key+".identifiers")
		d.between(key+".order_lifetime", p.OrderLifetime, seconds(300), 30*day)
		d.between(key+".authorization_lifetime", p.AuthorizationLifetime, seconds(300), 398*day)
	}
}

// profileBackend checks what depends on the kind of CA behind the profile.
func (d *decoder) profileBackend(c *Config, p *Profile, key string) {
	if p.Backend == "" && len(c.Backends) == 1 {
		p.Backend = keysOf(c.Backends)[0]
	}
	b := c.Backends[p.Backend]
	switch {
	case p.Backend == "":
		d.errorf(key+".backend", "is required when there are several backends or none")
	case b == nil:
		d.dangling(key+".backend", p.Backend, "backend", "backends", keysOf(c.Backends))
	}
	if b != nil && b.Type == BackendCertManager {
		d.certManagerProfile(p, key)
		return
	}
	if b != nil && b.Type == BackendACME {
		d.chosenByCA(p, key, "another ACME server", "the server")
		return
	}
	if b == nil || b.Type != BackendPrivateCA {
		d.between(key+".lifetime", p.Lifetime, seconds(300), 3650*day)
		p.ClientValidity = p.ClientValidity || !d.has(key+".client_validity")
		return
	}
	if p.Lifetime%day != 0 || p.Lifetime < day || p.Lifetime > 3650*day {
		d.errorf(key+".lifetime", "%s must be whole days, 1d to 3650d, since Private CA counts days", p.Lifetime)
	}
	if p.ClientValidity {
		d.errorf(key+".client_validity", "cannot be true for Private CA: it counts whole days, so a client's notAfter cannot be honoured exactly")
	}
}

// checkList checks a list of words, each allowed and given once.
func checkList[T ~string](d *decoder, key string, have, allowed []T) {
	if len(have) == 0 {
		d.errorf(key, "is empty: name at least one, or leave the key out for the default")
	}
	words := make([]string, len(allowed))
	for i, a := range allowed {
		words[i] = string(a)
	}
	for i, h := range have {
		at := fmt.Sprintf("%s[%d]", key, i)
		if slices.Contains(have[:i], h) {
			d.errorf(at, "%q is given twice", clip(string(h)))
			continue
		}
		d.oneOf(at, string(h), words...)
	}
}

func (d *decoder) checkIdentifiers(ids *Identifiers, key string) {
	for i, t := range ids.Types {
		if t == "ip" {
			d.errorf(fmt.Sprintf("%s.types[%d]", key, i), "ip: not supported yet: dns is the only type")
		}
	}
	checkList(d, key+".types", ids.Types, []acme.IdentifierType{acme.TypeDNS})
	d.patterns(key+".allow", ids.Allow)
	d.patterns(key+".deny", ids.Deny)
	d.intBetween(key+".max", ids.Max, 1, 1000)
}

// patterns brings names and patterns into the form that identifiers have.
func (d *decoder) patterns(key string, list []string) {
	for i, text := range list {
		if text == "*" {
			continue
		}
		base, wildcard := strings.CutPrefix(text, "*.")
		at := fmt.Sprintf("%s[%d]", key, i)
		if strings.HasPrefix(base, ".") {
			d.errorf(at, `%q begins with a dot; "*%s" covers all names below it`, clip(text), clip(base))
			continue
		}
		id, err := acme.ParseIdentifier(acme.Identifier{Type: acme.TypeDNS, Value: base})
		if err != nil || strings.Contains(base, "*") {
			d.errorf(at, `%q must be a name (A-labels, no dot at the end), a pattern such as "*.corp.example", or "*"`, clip(text))
			continue
		}
		list[i] = id.Value
		if wildcard {
			list[i] = "*." + id.Value
		}
	}
}

var directoryForm = regexp.MustCompile(`^[a-z0-9-]+$`)

// reserved are names of directories that would collide with paths of the
// server itself, of today or with a good chance of some later version.
func reserved() []string {
	return []string{
		"directory", "new-nonce", "new-account", "new-order", "new-authz", "key-change", "revoke-cert", "renewal-info",
		"account", "accounts", "order", "orders", "authz", "authorization", "challenge", "chall", "cert", "certificate",
		"finalize", "terms", "healthz", "readyz", "metrics", "api", "acme", "well-known",
	}
}

func (d *decoder) checkDirectories(c *Config) {
	if len(c.Directories) == 0 {
		if d.has("directories") {
			d.errorf("directories", "is empty: leave it out for one directory with every profile")
		}
		directory := new(Directory)
		directory.setDefaults()
		c.Directories = map[string]*Directory{"default": directory}
	}
	for _, name := range keysOf(c.Directories) {
		dir, key := c.Directories[name], join("directories", printable(name))
		switch {
		case slices.Contains(reserved(), name):
			d.errorf(key, "is a reserved name: paths of the server are called so; choose another")
		case !directoryForm.MatchString(name):
			d.errorf(key, "is no good name: use lower-case letters, digits and -, since it is part of URLs")
		}
		d.directoryProfiles(c, dir, key)
		if c.Validation[dir.Validation] == nil {
			d.dangling(key+".validation", dir.Validation, "validation zone", "validation", keysOf(c.Validation))
		}
		d.webURL(key+".terms_of_service", dir.TermsOfService)
		d.webURL(key+".website", dir.Website)
	}
}

func (d *decoder) directoryProfiles(c *Config, dir *Directory, key string) {
	if len(dir.Profiles) == 0 {
		dir.Profiles = keysOf(c.Profiles)
	}
	for i, name := range dir.Profiles {
		at := fmt.Sprintf("%s.profiles[%d]", key, i)
		if c.Profiles[name] == nil {
			d.dangling(at, name, "profile", "profiles", keysOf(c.Profiles))
		} else if slices.Contains(dir.Profiles[:i], name) {
			d.errorf(at, "%q is given twice", name)
		}
	}
	switch {
	case len(dir.Profiles) == 0: // there are none at all, which was told
	case dir.DefaultProfile == "" && len(dir.Profiles) == 1:
		dir.DefaultProfile = dir.Profiles[0]
	case dir.DefaultProfile == "":
		d.errorf(key+".default_profile", "is required when there are several profiles: name the one for orders that ask for none")
	case !slices.Contains(dir.Profiles, dir.DefaultProfile):
		d.errorf(key+".default_profile", "%q is not among the directory's profiles: %s", clip(dir.DefaultProfile), strings.Join(dir.Profiles, ", "))
	}
}

func (d *decoder) webURL(key, value string) {
	if value == "" {
		return
	}
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || strings.ContainsAny(value, " \"<>") {
		d.errorf(key, "%q must be a URL that begins with https:// or http://", clip(value))
	}
}
