package config

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/acme-bridge/acme-bridge/acme"
)

// The types of [Publisher].
const (
	PublisherGlobalDNS = "globaldns"
	PublisherRFC2136   = "rfc2136"
)

// A Publisher writes the validation records that a CA asks for into DNS, and
// removes those that serve once only. The tag for:"..." names the type that a
// key belongs to.
type Publisher struct {
	// Type is "globaldns" (NAVER Cloud Global DNS) or "rfc2136" (any name server
	// that takes dynamic updates). Required.
	Type string `yaml:"type"`
	// TTL of the records in seconds; 1 to 86400. Default 60.
	TTL int `yaml:"ttl"`
	// Resolvers are host:port of recursive servers that are asked for a zone's
	// name servers, each of which must serve a record before the CA is let look.
	// Default: the system's.
	Resolvers []string `yaml:"resolvers"`
	// NameServers are host:port of the servers to ask in place of those that a
	// zone names, where these cannot be reached from here. Default: none.
	NameServers []string `yaml:"name_servers"`

	// BaseURL is scheme and host of the API: https, or http to a loopback
	// address. Default https://globaldns.apigw.ntruss.com.
	BaseURL string `yaml:"base_url" for:"globaldns"`
	// AccessKey is the Access Key ID of an account that may edit the zones.
	// Required.
	AccessKey Secret `yaml:"access_key" for:"globaldns"`
	// SecretKey belongs to AccessKey. Required.
	SecretKey Secret `yaml:"secret_key" for:"globaldns"`
	// ForeignEdits says what to do about edits of other people that wait in a zone
	// to be applied, since Global DNS applies all or none: "wait" until somebody
	// has applied or discarded them, or "apply" them too. Default wait.
	ForeignEdits string `yaml:"foreign_edits" for:"globaldns"`

	// Server is host:port of the primary name server. Required.
	Server string `yaml:"server" for:"rfc2136"`
	// TSIGName is the name of the key that signs updates (RFC 8945). Default:
	// none, updates are sent unsigned.
	TSIGName string `yaml:"tsig_name" for:"rfc2136"`
	// TSIGAlgorithm is hmac-sha256, hmac-sha384 or hmac-sha512. Default
	// hmac-sha256.
	TSIGAlgorithm string `yaml:"tsig_algorithm" for:"rfc2136"`
	// TSIGSecret is the key in Base64. Required with TSIGName.
	TSIGSecret Secret `yaml:"tsig_secret" for:"rfc2136"`
}

func (p *Publisher) setDefaults() {
	*p = Publisher{TTL: 60, ForeignEdits: "wait", TSIGAlgorithm: "hmac-sha256"}
}

// What Certificate Manager knows.
const (
	AdvancedDV = "NCP_PAID_DV_01"
	AdvancedOV = "NCP_PAID_OV_01"
	// MethodOnce is a record with a random value for each request, MethodKept
	// one that is set once and kept.
	MethodOnce = "D"
	MethodKept = "PD"
)

const (
	defaultPrivateCAURL   = "https://pca.apigw.ntruss.com"
	defaultCertManagerURL = "https://certificatemanager.apigw.ntruss.com"
	defaultGlobalDNSURL   = "https://globaldns.apigw.ntruss.com"
)

// certManagerKeyTypes are those that public CAs certify (CA/Browser Forum
// Baseline Requirements, Section 6.1.1.3; P-521 is allowed and hardly offered).
func certManagerKeyTypes() []acme.KeyType {
	return []acme.KeyType{acme.ECDSAP256, acme.ECDSAP384, acme.RSA2048, acme.RSA3072, acme.RSA4096}
}

func (d *decoder) checkCertManager(c *Config, b *Backend, key string) {
	d.ncloud(key, &b.BaseURL, defaultCertManagerURL, b.AccessKey, b.SecretKey)
	for zone, what := range map[string]string{".gov-ntruss.": "government", ".fin-ntruss.": "financial"} {
		if strings.Contains(b.BaseURL, zone) {
			d.errorf(key+".base_url", "is that of the %s zone, which has only API 1.0 of Certificate Manager: it takes no CSR, so it cannot serve ACME; use Private CA there (type: privateca)", what)
		}
	}
	d.certificateType(b, key)
	if b.CertificateType == AdvancedOV && b.OrganizationNo <= 0 {
		d.errorf(key+".organization_no", "is required for %s: the number of an organization that Certificate Manager has validated", AdvancedOV)
	}
	if b.CertificateType == AdvancedDV && d.has(key+".organization_no") && b.OrganizationNo != 0 {
		d.errorf(key+".organization_no", "is only for %s: remove it", AdvancedOV)
	}
	if b.OrganizationNo < 0 {
		d.errorf(key+".organization_no", "must not be negative")
	}
	switch b.ValidationMethod {
	case MethodOnce, MethodKept:
	case "E":
		d.errorf(key+".validation_method", "E, validation by e-mail, has ended in 2026: use PD or D")
	default:
		d.oneOf(key+".validation_method", b.ValidationMethod, MethodKept, MethodOnce)
	}
	if b.Publisher != "" && c.Publishers[b.Publisher] == nil {
		d.dangling(key+".publisher", b.Publisher, "publisher", "publishers", keysOf(c.Publishers))
	}
	d.between(key+".dcv_timeout", b.DCVTimeout, seconds(60), 7*day)
	d.oneOf(key+".renewal", b.Renewal, "reissue_then_new", "reissue", "new")
	d.oneOf(key+".key_compromise", b.KeyCompromise, "refuse", "unspecified")
	if !relayForm.MatchString(string(b.RelayChallenge)) || slices.Contains(publicChallenges(), b.RelayChallenge) {
		d.errorf(key+".relay_challenge", "%q must be a private name: a vendor's prefix, -, and more lower-case letters, digits and -, at most 40, such as ncp-dcv-01", clip(string(b.RelayChallenge)))
	}
	d.callLimits(b, key)
	for i, r := range b.Resolvers {
		d.address(fmt.Sprintf("%s.resolvers[%d]", key, i), r, false)
	}
	d.rootsFile(key+".roots_file", b.RootsFile)
}

// rootsFile checks a file of PEM certificates, if one is named.
func (d *decoder) rootsFile(key, path string) {
	if path == "" {
		return
	}
	if data, err := d.src.file(path, maxFile); err != nil {
		d.errorf(key, "cannot be read: %v", err)
	} else if !x509.NewCertPool().AppendCertsFromPEM(data) {
		d.errorf(key, "has no PEM certificate in it")
	}
}

var relayForm = regexp.MustCompile(`^[a-z0-9]+-[a-z0-9-]{1,32}$`)

// publicChallenges are names that mean something else (IANA's registry of ACME
// validation methods, and drafts).
func publicChallenges() []acme.ChallengeType {
	return []acme.ChallengeType{acme.HTTP01, acme.DNS01, acme.TLSALPN01, "tls-sni-01", "tls-sni-02", "proof-of-possession-01",
		"email-reply-00", "tkauth-01", "onion-csr-01", "bp-nodeid-00", "device-attest-01", "dns-account-01", "dns-02", "dns-persist-01"}
}

// relayOf is the relay challenge of a profile's backend, "" if it has none.
func (c *Config) relayOf(p *Profile) acme.ChallengeType {
	if b := c.Backends[p.Backend]; b != nil && b.Type == BackendCertManager {
		return b.RelayChallenge
	}
	return ""
}

// challenges checks what a profile offers: the relay only beside others, since
// it is for domains that are not validated, once each.
func (d *decoder) challenges(c *Config, p *Profile, key string) {
	allowed := []acme.ChallengeType{acme.HTTP01, acme.DNS01, acme.TLSALPN01}
	relay := c.relayOf(p)
	if relay != "" && !slices.Contains(allowed, relay) {
		allowed = append(allowed, relay)
	}
	checkList(d, key, p.Challenges, allowed)
	if relay != "" && len(p.Challenges) == 1 && p.Challenges[0] == relay {
		d.errorf(key, "has %s only, which serves until a domain is validated: name another one beside it", relay)
	}
}

// certificateType accepts the types for which the client brings its own key:
// ACME's finalize cannot be served by any other.
func (d *decoder) certificateType(b *Backend, key string) {
	key += ".certificate_type"
	plain := strings.ToUpper(strings.NewReplacer("-", "", "_", "", " ", "").Replace(b.CertificateType))
	switch {
	case b.CertificateType == AdvancedDV || b.CertificateType == AdvancedOV:
	case strings.Contains(plain, "BASIC") || strings.Contains(plain, "FREE"):
		d.errorf(key, "%q: Cloud Basic takes no CSR (Certificate Manager makes the key itself), so it cannot serve ACME: use %s or %s", clip(b.CertificateType), AdvancedDV, AdvancedOV)
	case strings.Contains(plain, "EDGE") || strings.Contains(plain, "GED"):
		d.errorf(key, "%q: Global Edge takes no CSR (Certificate Manager makes the key itself), so it cannot serve ACME: use %s or %s", clip(b.CertificateType), AdvancedDV, AdvancedOV)
	case strings.Contains(plain, "PRIVATE"):
		d.errorf(key, "%q takes no CSR: use a backend of type privateca for private certificates", clip(b.CertificateType))
	case strings.Contains(plain, "EXTERNAL"):
		d.errorf(key, "%q: external certificates are only stored in Certificate Manager, not issued by it: use %s or %s", clip(b.CertificateType), AdvancedDV, AdvancedOV)
	default:
		d.errorf(key, "%q must be %s or %s, the types that take a client's CSR", clip(b.CertificateType), AdvancedDV, AdvancedOV)
	}
}

// certManagerProfile checks what depends on a public CA being behind a profile.
func (d *decoder) certManagerProfile(p *Profile, key string) {
	d.chosenByCA(p, key, "Certificate Manager", "it")
	for i, t := range p.KeyTypes {
		if slices.Contains(acme.KeyTypes, t) && !slices.Contains(certManagerKeyTypes(), t) {
			d.errorf(fmt.Sprintf("%s.key_types[%d]", key, i), "%s is not certified by public CAs: RSA, ecdsa-p256 and ecdsa-p384 are", t)
		}
	}
	for i, name := range p.Identifiers.Allow {
		name = strings.ToLower(name)
		if name == "localhost" || strings.HasSuffix(name, ".localhost") {
			d.errorf(fmt.Sprintf("%s.identifiers.allow[%d]", key, i), "%q is this machine's own name (RFC 6761), which no public CA certifies", clip(name))
		}
	}
}

// chosenByCA leaves the validity to a CA that lets nobody choose it, and offers
// the keys that public CAs certify.
func (d *decoder) chosenByCA(p *Profile, key, ca, it string) {
	if d.has(key + ".lifetime") {
		d.errorf(key+".lifetime", "cannot be set for %s, which decides on the lifetime by itself: leave it out", ca)
	}
	p.Lifetime = 0
	if p.ClientValidity {
		d.errorf(key+".client_validity", "cannot be true for %s: %s sets the validity itself", ca, it)
	}
	if !d.has(key + ".key_types") {
		p.KeyTypes = certManagerKeyTypes()
	}
}

func (d *decoder) checkPublishers(c *Config) {
	for _, name := range keysOf(c.Publishers) {
		p, key := c.Publishers[name], join("publishers", printable(name))
		switch p.Type {
		case PublisherGlobalDNS:
			d.ncloud(key, &p.BaseURL, defaultGlobalDNSURL, p.AccessKey, p.SecretKey)
			d.oneOf(key+".foreign_edits", p.ForeignEdits, "wait", "apply")
		case PublisherRFC2136:
			if p.Server == "" {
				d.errorf(key+".server", "is required: host:port of the zone's primary name server, such as 127.0.0.1:53")
			} else {
				d.address(key+".server", p.Server, false)
			}
			d.checkTSIG(p, key)
		case "":
			d.errorf(key+".type", "is required: globaldns or rfc2136")
			continue
		default:
			d.oneOf(key+".type", p.Type, PublisherGlobalDNS, PublisherRFC2136)
			continue
		}
		d.intBetween(key+".ttl", p.TTL, 1, 86400)
		for i, r := range p.Resolvers {
			d.address(fmt.Sprintf("%s.resolvers[%d]", key, i), r, false)
		}
		for i, s := range p.NameServers {
			d.address(fmt.Sprintf("%s.name_servers[%d]", key, i), s, false)
		}
		d.foreignKeys(p, p.Type, "publishers", key)
	}
}

func (d *decoder) checkTSIG(p *Publisher, key string) {
	switch {
	case p.TSIGName == "" && p.TSIGSecret.IsSet():
		d.errorf(key+".tsig_name", "is required with tsig_secret: the name that the server knows the key by")
	case p.TSIGName != "" && !p.TSIGSecret.IsSet():
		d.errorf(key+".tsig_secret", "is required with tsig_name: the key in Base64, as env:NAME or file:PATH")
	case p.TSIGName == "" && !d.loopbackServer(p.Server):
		d.errorf(key+".tsig_name", "is required unless the server is on loopback: unsigned updates let anyone on the way change the zone")
	}
	d.oneOf(key+".tsig_algorithm", p.TSIGAlgorithm, "hmac-sha256", "hmac-sha384", "hmac-sha512")
}

func (d *decoder) loopbackServer(server string) bool {
	host, _, err := net.SplitHostPort(server)
	if err != nil {
		return true // told already
	}
	return isLoopback(host)
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}
