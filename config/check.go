package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/acme-bridge/acme-bridge/acme"
)

// check fills in the defaults that depend on other keys and finds what is wrong
// with values that decoded well.
func (d *decoder) check(c *Config) {
	d.checkPublishers(c)
	d.checkBackends(c)
	d.checkValidation(c)
	d.checkProfiles(c)
	d.checkDirectories(c)
	d.checkServer(c)
	d.checkAdmin(c)
	d.checkStorage(c)
	d.checkLimits(c)
}

func (d *decoder) oneOf(key, value string, allowed ...string) bool {
	if slices.Contains(allowed, value) {
		return true
	}
	d.errorf(key, "%q must be one of %s", clip(value), strings.Join(allowed, ", "))
	return false
}

func (d *decoder) between(key string, value, least, most Duration) {
	if value < least || value > most {
		d.errorf(key, "%s must be %s to %s", value, least, most)
	}
}

func (d *decoder) intBetween(key string, value, least, most int) {
	if value < least || value > most {
		d.errorf(key, "%d must be %d to %d", value, least, most)
	}
}

// address checks host:port. A listener may leave out the host, for all
// addresses, and have port 0, for a free one.
func (d *decoder) address(key, value string, listener bool) {
	host, port, err := net.SplitHostPort(value)
	if err != nil || host == "" && !listener || strings.ContainsAny(host, " /@?#\x00") {
		d.errorf(key, "%q must be host:port, such as 127.0.0.1:53", clip(value))
		return
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 && !listener {
		d.errorf(key, "%q has no port from 1 to 65535", clip(value))
	}
}

func (d *decoder) checkServer(c *Config) {
	s := &c.Server
	d.address("server.listen", s.Listen, true)
	host := d.checkExternalURL(s)
	d.between("server.finalize_hold", s.FinalizeHold, 0, seconds(60))
	d.oneOf("server.tls.mode", s.TLS.Mode, TLSAuto, TLSFiles, TLSOff)
	d.checkTLSAuto(c, host)
	if s.TLS.Mode != TLSFiles {
		for key, value := range map[string]string{"server.tls.cert_file": s.TLS.CertFile, "server.tls.key_file": s.TLS.KeyFile} {
			if value != "" {
				d.errorf(key, "is only for mode: files, and mode is %q: remove it or change the mode", s.TLS.Mode)
			}
		}
		return
	}
	d.required("server.tls.cert_file", s.TLS.CertFile)
	d.required("server.tls.key_file", s.TLS.KeyFile)
	d.keyPair("server.tls", s.TLS.CertFile, s.TLS.KeyFile)
}

func (d *decoder) required(key, value string) {
	if value == "" {
		d.errorf(key, "is required")
	}
}

// checkExternalURL brings the URL into the one form that is handed out and
// compared with, and returns its host.
func (d *decoder) checkExternalURL(s *Server) string {
	const key = "server.external_url"
	if s.ExternalURL == "" {
		d.errorf(key, "is required: the https URL that clients reach this server by, such as https://acme.corp.example")
		return ""
	}
	u, host := d.origin(key, s.ExternalURL)
	if u == nil {
		return ""
	}
	if u.Scheme != "https" {
		d.errorf(key, "must begin with https:// (RFC 8555, Section 6.1); behind a TLS proxy too, which is server.tls.mode: off")
		return ""
	}
	if _, err := netip.ParseAddr(host); err != nil {
		if _, err := acme.ParseIdentifier(acme.Identifier{Type: acme.TypeDNS, Value: host}); err != nil {
			d.errorf(key, "its host is no good name: %v", err)
			return ""
		}
	}
	s.ExternalURL = "https://" + strings.TrimSuffix(u.Host, ":443")
	return host
}

// origin parses a URL of scheme, host and port only, and lower-cases it.
func (d *decoder) origin(key, value string) (u *url.URL, host string) {
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" {
		d.errorf(key, "%q is no URL with scheme and host", clip(value))
		return nil, ""
	}
	if u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || strings.Contains(value, "#") {
		d.errorf(key, "must be scheme and host only, without user, path, query and fragment")
		return nil, ""
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
			d.errorf(key, "%q has no port from 1 to 65535", clip(value))
			return nil, ""
		}
	}
	u.Scheme, u.Host = strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	return u, u.Hostname()
}

func (d *decoder) checkTLSAuto(c *Config, host string) {
	const key = "server.tls.profile"
	t := &c.Server.TLS
	if t.Profile == "" {
		if t.Mode != TLSAuto || len(c.Profiles) == 0 {
			return
		}
		if len(c.Profiles) > 1 {
			d.errorf(key, "is required in mode auto when there are several profiles: name the one that the server's own certificate is issued from")
			return
		}
		t.Profile = keysOf(c.Profiles)[0]
		if b := c.Backends[c.Profiles[t.Profile].Backend]; b != nil && (b.Type == BackendCertManager || b.Type == BackendACME) {
			from := "buys from Certificate Manager"
			if b.Type == BackendACME {
				from = "orders from another ACME server"
			}
			d.errorf(key, "is required: the only profile, %s, %s; name it if the server's own certificate shall come from there, or use server.tls.mode: files", t.Profile, from)
			return
		}
	}
	p := c.Profiles[t.Profile]
	if p == nil {
		d.dangling(key, t.Profile, "profile", "profiles", keysOf(c.Profiles))
		return
	}
	if t.Mode != TLSAuto || host == "" {
		return
	}
	if _, err := netip.ParseAddr(host); err == nil {
		d.errorf(key, "no certificate can be issued for the IP address in server.external_url: use a name there, or server.tls.mode: files")
		return
	}
	if err := p.ACME(t.Profile).Check([]acme.Identifier{{Type: acme.TypeDNS, Value: host}}); err != nil {
		d.errorf(key, "profile %q does not allow %s, the host of server.external_url: add it to profiles.%s.identifiers.allow, or use another profile", t.Profile, host, t.Profile)
	}
}

func (d *decoder) dangling(key, name, what, where string, have []string) {
	if len(have) == 0 {
		d.errorf(key, "there is no %s %q: %s is empty", what, clip(name), where)
		return
	}
	d.errorf(key, "there is no %s %q; %s has %s", what, clip(name), where, strings.Join(have, ", "))
}

func (d *decoder) keyPair(key, certFile, keyFile string) {
	read := func(key, path string) []byte {
		if path == "" {
			return nil
		}
		data, err := d.src.file(path, maxFile)
		if err != nil {
			d.errorf(key, "cannot be read: %v", err)
		}
		return data
	}
	cert, priv := read(key+".cert_file", certFile), read(key+".key_file", keyFile)
	if cert == nil || priv == nil {
		return
	}
	if _, err := tls.X509KeyPair(cert, priv); err != nil {
		d.errorf(key+".cert_file", "is of no use with key_file: %v", err)
	}
}

func (d *decoder) checkAdmin(c *Config) {
	d.address("admin.listen", c.Admin.Listen, true)
	if a, s := c.Admin.Listen, c.Server.Listen; a == s && !strings.HasSuffix(a, ":0") {
		d.errorf("admin.listen", "is the same as server.listen: choose another port")
	}
	if token := c.Admin.Token.Reveal(); token != "" {
		if len(token) < 16 {
			d.errorf("admin.token", "must have at least 16 characters; `openssl rand -hex 32` makes a good one")
		} else if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			d.errorf("admin.token", "must be printable ASCII without spaces, since it is sent in a header")
		}
	}
}

func (d *decoder) checkStorage(c *Config) {
	d.required("storage.embedded.path", c.Storage.Embedded.Path)
	r := c.Storage.Redis
	if r == nil {
		return
	}
	const key = "storage.redis"
	if len(r.Addresses) == 0 {
		d.errorf(key+".addresses", "is required: one host:port, or several for a sentinel or cluster")
	}
	for i, a := range r.Addresses {
		d.address(fmt.Sprintf("%s.addresses[%d]", key, i), a, false)
	}
	if d.oneOf(key+".mode", r.Mode, RedisSingle, RedisSentinel, RedisCluster) {
		switch {
		case r.Mode == RedisSingle && len(r.Addresses) > 1:
			d.errorf(key+".addresses", "mode single has one address, not %d: remove the others, or set mode to sentinel or cluster", len(r.Addresses))
		case r.Mode == RedisSentinel && r.MasterName == "":
			d.errorf(key+".master_name", "is required in mode sentinel")
		case r.Mode != RedisSentinel && r.MasterName != "":
			d.errorf(key+".master_name", "is only for mode sentinel, and mode is %s", r.Mode)
		case r.Mode == RedisCluster && r.DB != 0:
			d.errorf(key+".db", "a cluster has only database 0")
		}
	}
	if r.Username != "" && !r.Password.IsSet() {
		d.errorf(key+".password", "is required with username")
	}
	if r.DB < 0 {
		d.errorf(key+".db", "must not be negative")
	}
	d.intBetween(key+".pool_size", r.PoolSize, 0, 10000)
	if strings.ContainsAny(r.KeyPrefix, "{} \r\n") || len(r.KeyPrefix) > 64 {
		d.errorf(key+".key_prefix", "must be at most 64 characters without spaces and braces, which choose a cluster's slot")
	}
	d.checkRedisTLS(key+".tls", &r.TLS)
}

func (d *decoder) checkRedisTLS(key string, t *RedisTLS) {
	if !t.Enabled {
		if *t != (RedisTLS{}) {
			d.errorf(key+".enabled", "is false, but other keys of tls are set: set it to true, or remove them")
		}
		return
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		d.errorf(key+".cert_file", "cert_file and key_file go together: give both or none")
	}
	d.keyPair(key, t.CertFile, t.KeyFile)
	if t.CAFile == "" {
		return
	}
	data, err := d.src.file(t.CAFile, maxFile)
	if err != nil {
		d.errorf(key+".ca_file", "cannot be read: %v", err)
	} else if !x509.NewCertPool().AppendCertsFromPEM(data) {
		d.errorf(key+".ca_file", "has no PEM certificate in it")
	}
}

func (d *decoder) checkBackends(c *Config) {
	if len(c.Backends) == 0 {
		d.errorf("backends", "at least one is needed; `type: local` is a CA that needs nothing else")
	}
	paths, tags := map[string]string{}, map[string]string{}
	for _, name := range keysOf(c.Backends) {
		b, key := c.Backends[name], join("backends", printable(name))
		switch b.Type {
		case BackendLocal:
			d.required(key+".path", b.Path)
			path := filepath.Clean(b.Path)
			if other := paths[path]; other != "" {
				d.errorf(key+".path", "is also that of backend %s: two CAs cannot share a directory", other)
			}
			paths[path] = name
		case BackendPrivateCA:
			d.checkPrivateCA(b, key)
			tag := b.BaseURL + " " + b.CATag
			if other := tags[tag]; other != "" && (b.Exclusive || c.Backends[other].Exclusive) {
				d.errorf(key+".ca_tag", "is also that of backend %s, so neither has it to itself: set exclusive: false for both, or use one", other)
			}
			tags[tag] = name
		case BackendCertManager:
			d.checkCertManager(c, b, key)
		case BackendACME:
			d.checkACME(c, b, key)
		case "":
			d.errorf(key+".type", "is required: local, privateca, certmanager or acme")
			continue
		default:
			d.oneOf(key+".type", b.Type, BackendLocal, BackendPrivateCA, BackendCertManager, BackendACME)
			continue
		}
		d.foreignKeys(b, b.Type, "backends", key)
	}
}

// foreignKeys refuses keys that belong to another type of v, a pointer to a
// struct.
func (d *decoder) foreignKeys(v any, typ, what, key string) {
	t := reflect.TypeOf(v).Elem()
	for i := range t.NumField() {
		f := t.Field(i)
		at := join(key, f.Tag.Get("yaml"))
		if kinds := strings.Fields(f.Tag.Get("for")); len(kinds) > 0 && !slices.Contains(kinds, typ) && d.has(at) {
			d.errorf(at, "is only for %s of type %s: remove it", what, strings.Join(kinds, " and "))
		}
	}
}

// ncloud checks how to reach a service of NAVER Cloud.
func (d *decoder) ncloud(key string, baseURL *string, standard string, access, secret Secret) {
	if *baseURL == "" {
		*baseURL = standard
	}
	if u, host := d.origin(key+".base_url", *baseURL); u != nil {
		if u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(host)) {
			d.errorf(key+".base_url", "must begin with https://; http:// is only for loopback addresses")
		}
		*baseURL = u.Scheme + "://" + u.Host
	}
	if !access.IsSet() {
		d.errorf(key+".access_key", "is required: the Access Key ID, as env:NAME or file:PATH")
	}
	if !secret.IsSet() {
		d.errorf(key+".secret_key", "is required: the Secret Key, as env:NAME or file:PATH")
	}
}

// callLimits checks the bounds on a backend's calls.
func (d *decoder) callLimits(b *Backend, key string) {
	d.between(key+".timeout", b.Timeout, seconds(1), seconds(120))
	d.intBetween(key+".max_in_flight", b.MaxInFlight, 1, 256)
}

var caTagForm = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

func (d *decoder) checkPrivateCA(b *Backend, key string) {
	d.ncloud(key, &b.BaseURL, defaultPrivateCAURL, b.AccessKey, b.SecretKey)
	if !caTagForm.MatchString(b.CATag) {
		d.errorf(key+".ca_tag", "is required: the CA's tag, such as 12345678-abcdefgh")
	}
	d.intBetween(key+".quota", b.Quota, 1, 1e9)
	d.callLimits(b, key)
}

func (d *decoder) checkValidation(c *Config) {
	if c.Validation == nil {
		c.Validation = map[string]*Validation{}
	}
	if c.Validation["default"] == nil {
		zone := new(Validation)
		zone.setDefaults()
		c.Validation["default"] = zone
	}
	for _, name := range keysOf(c.Validation) {
		v, key := c.Validation[name], join("validation", printable(name))
		for i, r := range v.Resolvers {
			d.address(fmt.Sprintf("%s.resolvers[%d]", key, i), r, false)
		}
		d.intBetween(key+".http_port", v.HTTPPort, 1, 65535)
		d.intBetween(key+".tls_port", v.TLSPort, 1, 65535)
		d.between(key+".timeout", v.Timeout, seconds(1), seconds(60))
		if v.Localhost && !v.allows(loopback()[0].Addr()) && !v.allows(loopback()[1].Addr()) {
			d.errorf(key+".localhost", "is of no use while loopback cannot be reached: add 127.0.0.0/8 to allow_networks")
		}
	}
}

func (v *Validation) allows(addr netip.Addr) bool {
	return slices.ContainsFunc(v.AllowNetworks, func(n Network) bool { return n.Contains(addr) })
}

func loopback() []Network {
	return []Network{
		{netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)},
		{netip.PrefixFrom(netip.IPv6Loopback(), 128)},
	}
}

func (d *decoder) checkLimits(c *Config) {
	l := &c.Limits
	if l.PendingOrdersPerAccount < 0 {
		d.errorf("limits.pending_orders_per_account", "must not be negative; 0 is no limit")
	}
	if l.RequestBody < 16<<10 || l.RequestBody > 4<<20 {
		d.errorf("limits.request_body", "%s must be 16KiB to 4MiB", l.RequestBody)
	}
	d.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	d.oneOf("log.format", c.Log.Format, LogAuto, LogJSON, LogText)
}
