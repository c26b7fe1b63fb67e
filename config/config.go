// Package config holds the configuration of acme-bridge: one struct whose field
// comments are the manual, read strictly from YAML.
//
// Unknown and repeated keys, wrong types, and names of things that do not exist
// are errors, and all errors of a file are reported at once, each with its
// line and key. What a file leaves out has a default that is right for most;
// config.example.yaml shows every key. Relative paths are relative to the
// directory that the process runs in.
//
// Start reading at [Config]; [Load] reads a file, [Embedded] needs none. The
// package is for cmd/ only: others are given values.
package config

import "github.com/acme-bridge/acme-bridge/acme"

// A Config is a whole configuration. The tag reload:"restart" marks what a
// reload cannot change; see [RestartNeeded].
type Config struct {
	Server Server `yaml:"server"`
	Admin  Admin  `yaml:"admin"`
	// Storage is Redis if storage.redis is there, else one bbolt file.
	Storage Storage `yaml:"storage" reload:"restart"`
	// Backends are the certificate authorities, by name. At least one is needed.
	Backends map[string]*Backend `yaml:"backends"`
	// Publishers write a CA's validation records into DNS, by name. Default: none.
	Publishers map[string]*Publisher `yaml:"publishers"`
	// Validation names zones of the network from which challenges may be
	// answered. The zone "default" is always there.
	Validation map[string]*Validation `yaml:"validation"`
	// Profiles are what clients may choose from, by name. At least one is needed.
	Profiles map[string]*Profile `yaml:"profiles"`
	// Directories are tenants, by name: accounts, orders and policy of each are
	// its own. "default" is served at /directory, any other at /NAME/directory.
	// Without this key there is a default one that offers every profile.
	Directories map[string]*Directory `yaml:"directories"`
	Limits      Limits                `yaml:"limits"`
	Log         Log                   `yaml:"log" reload:"restart"`
	Tracing     Tracing               `yaml:"tracing"`
}

// Server is the ACME listener.
type Server struct {
	// Listen is the address, host:port, of the ACME listener; without a host,
	// it is all addresses. Default ":443".
	Listen string `yaml:"listen" reload:"restart"`
	// ExternalURL is what every URL handed out begins with: https, a host and
	// perhaps a port, as clients see them. Required.
	ExternalURL string `yaml:"external_url" reload:"restart"`
	TLS         TLS    `yaml:"tls"`
	// TrustedProxies are the networks whose Forwarded and X-Forwarded-For
	// headers are believed, for logs and limits. With both headers
	// X-Forwarded-For counts, so the proxy must set or drop it. Default: none.
	TrustedProxies []Network `yaml:"trusted_proxies" reload:"restart"`
	// FinalizeHold is how long a finalize request waits for its certificate
	// before it is answered "processing"; 0s to 1m. Default 15s.
	FinalizeHold Duration `yaml:"finalize_hold"`
}

// The modes of [TLS].
const (
	TLSAuto  = "auto"
	TLSFiles = "files"
	TLSOff   = "off"
)

// TLS is where the ACME listener's own certificate comes from.
type TLS struct {
	// Mode is "auto" (a certificate for external_url's host from one of our own
	// profiles, renewed by itself), "files", or "off" (behind a TLS proxy).
	// Default auto.
	Mode string `yaml:"mode" reload:"restart"`
	// Profile is the one to issue from in mode auto. Default: the only profile.
	Profile string `yaml:"profile"`
	// CertFile is a PEM file, leaf first, for mode files; it is read again when
	// it changes.
	CertFile string `yaml:"cert_file"`
	// KeyFile is the PEM file of its private key.
	KeyFile string `yaml:"key_file"`
}

// Admin is the listener for operators: health, readiness, metrics and reload.
type Admin struct {
	// Listen is its address, host:port. Default 127.0.0.1:14001.
	Listen string `yaml:"listen" reload:"restart"`
	// Token is the bearer token, at least 16 characters, for anything but
	// health, and for metrics too when Listen is not on loopback. Without it,
	// these are refused.
	Token Secret `yaml:"token"`
}

// Storage says where accounts and orders are kept.
type Storage struct {
	// Redis is nil if the key is left out; if it is there, Embedded is not used.
	Redis    *Redis        `yaml:"redis"`
	Embedded EmbeddedStore `yaml:"embedded"`
}

// The modes of [Redis].
const (
	RedisSingle   = "single"
	RedisSentinel = "sentinel"
	RedisCluster  = "cluster"
)

// Redis is the store of several replicas. It must not evict keys
// (maxmemory-policy noeviction).
type Redis struct {
	// Addresses are host:port of the server, the sentinels, or some of the
	// cluster's nodes. Required.
	Addresses []string `yaml:"addresses"`
	// Mode is "single", "sentinel" or "cluster". Default single.
	Mode string `yaml:"mode"`
	// MasterName is the name the sentinels know the master by; for sentinel.
	MasterName string `yaml:"master_name"`
	// Username is the ACL user. Default: none, which is Redis's "default".
	Username string `yaml:"username"`
	// Password is that of the user. Default: none.
	Password Secret `yaml:"password"`
	// DB is the database number; a cluster has only 0. Default 0.
	DB  int      `yaml:"db"`
	TLS RedisTLS `yaml:"tls"`
	// KeyPrefix begins the name of every key. Default "acme:".
	KeyPrefix string `yaml:"key_prefix"`
	// PoolSize is the most connections to one server; 0 is 32. Default 0.
	PoolSize int `yaml:"pool_size"`
}

// RedisTLS is TLS toward Redis.
type RedisTLS struct {
	// Enabled turns TLS on. Default false.
	Enabled bool `yaml:"enabled"`
	// CAFile is a PEM file of roots. Default: the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are a client certificate and its key. Default: none.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ServerName is the name in the server's certificate. Default: the host of
	// the address.
	ServerName string `yaml:"server_name"`
}

// EmbeddedStore is the store of a single process.
type EmbeddedStore struct {
	// Path is the directory of the database file; it is made if missing.
	// Default ./acme-bridge-data.
	Path string `yaml:"path"`
}

// The types of [Backend].
const (
	BackendLocal       = "local"
	BackendPrivateCA   = "privateca"
	BackendCertManager = "certmanager"
	BackendACME        = "acme"
)

// The modes of a backend of type acme.
const (
	ModePre   = "pre"
	ModeDNS01 = "dns01"
)

// A Backend is a certificate authority. The tag for:"..." names the types that a
// key belongs to.
type Backend struct {
	// Type is "local" (a CA of our own, made on first start), "privateca" (NAVER
	// Cloud Private CA), "certmanager" (NAVER Cloud Certificate Manager, a public
	// CA) or "acme" (another ACME server, such as NAVER Cloud's own). Required.
	Type string `yaml:"type"`

	// Path is the directory of the local CA's keys and certificates; it is made
	// if missing. Default ./acme-bridge-data/ca.
	Path string `yaml:"path" for:"local"`

	// BaseURL is scheme and host of the API: https, or http to a loopback
	// address. Default https://pca.apigw.ntruss.com for Private CA and
	// https://certificatemanager.apigw.ntruss.com for Certificate Manager, whose
	// government and financial zones cannot serve ACME.
	BaseURL string `yaml:"base_url" for:"privateca certmanager"`
	// AccessKey is the Access Key ID of the account that calls. Certificate
	// Manager takes only the main account's. Required.
	AccessKey Secret `yaml:"access_key" for:"privateca certmanager"`
	// SecretKey belongs to AccessKey. Required.
	SecretKey Secret `yaml:"secret_key" for:"privateca certmanager"`
	// CATag is the tag of the CA that signs. Required.
	CATag string `yaml:"ca_tag" for:"privateca"`
	// Exclusive says that nothing else issues from this CA, so its signing
	// count can prove what became of a call whose answer was lost. Default true.
	Exclusive bool `yaml:"exclusive" for:"privateca"`
	// Quota is how many certificates the CA may issue in all, for metrics and
	// warnings. Default 30000, the service's own limit.
	Quota int `yaml:"quota" for:"privateca"`
	// SendKeyType sends keyType and keyBits with each request, for CAs that
	// refuse requests without them. Default false.
	SendKeyType bool `yaml:"send_key_type" for:"privateca"`
	// Timeout is the deadline of one call; 1s to 2m, for type acme 1s to 1m.
	// Default 30s.
	Timeout Duration `yaml:"timeout" for:"privateca certmanager acme"`
	// MaxInFlight is the most calls at a time; 1 to 256. Default 16.
	MaxInFlight int `yaml:"max_in_flight" for:"privateca certmanager"`

	// CertificateType is NCP_PAID_DV_01 or NCP_PAID_OV_01, the Advanced types:
	// only these take a client's CSR. Default NCP_PAID_DV_01.
	CertificateType string `yaml:"certificate_type" for:"certmanager"`
	// OrganizationNo is the number of a validated organization; required for
	// NCP_PAID_OV_01.
	OrganizationNo int64 `yaml:"organization_no" for:"certmanager"`
	// ValidationMethod is how the CA has a domain proven: PD, a TXT record that
	// is set once and kept, or D, one with a new value for each request.
	// Default PD.
	ValidationMethod string `yaml:"validation_method" for:"certmanager"`
	// Publisher names who writes the CA's record where a domain is not validated
	// yet. Default: none, the operator does (acme-bridge domain add). Required for
	// type acme in mode dns01, and only for that mode there.
	Publisher string `yaml:"publisher" for:"certmanager acme"`
	// DCVTimeout is how long the CA may take to see a record; 1m to 7d. Default
	// 30m.
	DCVTimeout Duration `yaml:"dcv_timeout" for:"certmanager"`
	// Renewal says what is bought when an account orders the same names again:
	// "reissue" within the order that was paid for, "new", or
	// "reissue_then_new" where the reissue is refused. Default reissue_then_new.
	Renewal string `yaml:"renewal" for:"certmanager"`
	// KeyCompromise says what becomes of a revocation for this reason, which the
	// service does not know: "refuse" (badRevocationReason), or revoke all the
	// same as "unspecified" and log an error. Default refuse.
	KeyCompromise string `yaml:"key_compromise" for:"certmanager"`
	// RelayChallenge is the name of the private challenge type by which a client
	// validates a domain at the CA itself: it publishes the CA's record, which the
	// challenge tells. Offered by profiles that list it among their challenges, for
	// names that the CA could not certify otherwise. Default ncp-dcv-01.
	RelayChallenge acme.ChallengeType `yaml:"relay_challenge" for:"certmanager"`
	// ReissueSameName asks for reissues under the name of the certificate that is
	// replaced, in place of one made from the order; which of them the service
	// wants is not documented. Default false.
	ReissueSameName bool `yaml:"reissue_same_name" for:"certmanager"`
	// Resolvers are host:port of the DNS servers that the records of validated
	// domains are watched at. Default: the system's.
	Resolvers []string `yaml:"resolvers" for:"certmanager"`
	// RootsFile is a PEM file of roots that issued certificates may lead to
	// besides the system's. Default: none.
	RootsFile string `yaml:"roots_file" for:"certmanager acme"`

	// Directory is the URL of the other ACME server's directory: https, or http
	// to a loopback address. Required.
	Directory string `yaml:"directory" for:"acme"`
	// DirectoryRootsFile is a PEM file of roots that the other server's own TLS
	// certificate may lead to besides the system's. Default: none.
	DirectoryRootsFile string `yaml:"directory_roots_file" for:"acme"`
	// Mode is how the other server has a domain proven: "pre", its operator has
	// validated the domains there beforehand, or "dns01", the Publisher answers
	// its dns-01 challenges. Default pre.
	Mode string `yaml:"mode" for:"acme"`
	// EABKeyID and EABKey, in Base64url, are the external account binding that the
	// account is registered with (RFC 8555, Section 7.3.4). Most servers take one
	// once. Default: none.
	EABKeyID string `yaml:"eab_key_id" for:"acme"`
	EABKey   Secret `yaml:"eab_key" for:"acme"`
	// Contact are mailto: URLs for the account. Default: none.
	Contact []string `yaml:"contact" for:"acme"`
	// AgreeTerms says that you agree to the other server's terms of service.
	// Default false, which only a server without terms accepts.
	AgreeTerms bool `yaml:"agree_terms" for:"acme"`
	// Profile is asked for in orders, if the other server has profiles. Default:
	// none, the server's own choice.
	Profile string `yaml:"profile" for:"acme"`
	// OrderTimeout is how long an order at the other server may wait for its
	// authorizations; 1m to 7d. Default 30m.
	OrderTimeout Duration `yaml:"order_timeout" for:"acme"`
}

// A Validation is a zone of the network from which challenges may be answered.
// Loopback, link-local, metadata, multicast and private addresses, our own
// listeners and Redis are refused unless AllowNetworks names them.
type Validation struct {
	// Resolvers are host:port of the DNS servers to ask. Default: the system's.
	Resolvers []string `yaml:"resolvers"`
	// HTTPPort is where http-01 is answered. Default 80.
	HTTPPort int `yaml:"http_port"`
	// TLSPort is where tls-alpn-01 is answered. Default 443.
	TLSPort int `yaml:"tls_port"`
	// AllowNetworks are networks that may be reached although they are not
	// public, such as 10.0.0.0/8. Default: none.
	AllowNetworks []Network `yaml:"allow_networks"`
	// DenyNetworks may never be reached. Default: none.
	DenyNetworks []Network `yaml:"deny_networks"`
	// Timeout bounds one attempt at a challenge; 1s to 1m. Default 10s.
	Timeout Duration `yaml:"timeout"`
	// Localhost resolves localhost and the names below it to loopback without
	// asking DNS (RFC 6761, Section 6.3). Loopback must be allowed besides.
	// Default false.
	Localhost bool `yaml:"localhost"`
}

// A Profile is what clients are offered under one name.
type Profile struct {
	// Description is shown in the directory. Default: the profile's name.
	Description string `yaml:"description"`
	// Backend names the CA. Default: the only backend.
	Backend string `yaml:"backend"`
	// Lifetime of certificates; whole days, 1d to 3650d, for Private CA. Default
	// 90d. Certificate Manager and other ACME servers decide on it by themselves,
	// so there the key must be left out and the value is 0.
	Lifetime Duration `yaml:"lifetime"`
	// ClientValidity lets clients ask for notBefore and notAfter within
	// Lifetime. Default true for local backends, and always false for Private CA,
	// which counts whole days, and Certificate Manager and other ACME servers,
	// which set them themselves.
	ClientValidity bool `yaml:"client_validity"`
	// Challenges that are offered: http-01, dns-01, tls-alpn-01, and with a
	// backend of Certificate Manager its relay_challenge beside these. Default: the
	// first three.
	Challenges  []acme.ChallengeType `yaml:"challenges"`
	Identifiers Identifiers          `yaml:"identifiers"`
	// KeyTypes that a CSR's key may have: ecdsa-p256, ecdsa-p384, ecdsa-p521,
	// rsa-2048, rsa-3072, rsa-4096, ed25519. Default: all but ecdsa-p521, and for
	// Certificate Manager, which certifies neither, and other ACME servers not
	// ed25519 either.
	KeyTypes []acme.KeyType `yaml:"key_types"`
	// OrderLifetime is how long an order waits for its validations and for
	// finalize; 5m to 30d. Default 24h.
	OrderLifetime Duration `yaml:"order_lifetime"`
	// AuthorizationLifetime is how long a proof of control counts: for
	// revocation, and with ReuseAuthorizations for later orders; 5m to 398d.
	// Default 7d.
	AuthorizationLifetime Duration `yaml:"authorization_lifetime"`
	// ReuseAuthorizations lets a proof serve later orders of the same account,
	// so that renewals within AuthorizationLifetime need no challenge. Default
	// false.
	ReuseAuthorizations bool `yaml:"reuse_authorizations"`
}

// Identifiers says which names may be ordered.
type Identifiers struct {
	// Types of identifiers; "dns" is the only one yet. Default [dns].
	Types []acme.IdentifierType `yaml:"types"`
	// Allow lists exact names and patterns: "*.corp.example" covers all names
	// below corp.example at any depth, and "*" all. Default: all.
	Allow []string `yaml:"allow"`
	// Deny lists names and patterns that are refused even so. Default: none.
	Deny []string `yaml:"deny"`
	// Wildcards may be ordered; they need dns-01. Default true.
	Wildcards bool `yaml:"wildcards"`
	// Max is the most identifiers of one order; 1 to 1000. Default 100.
	Max int `yaml:"max"`
}

// A Directory is a tenant.
type Directory struct {
	// Profiles that it offers. Default: all.
	Profiles []string `yaml:"profiles"`
	// DefaultProfile is for orders that name none. Default: the only profile of
	// the directory.
	DefaultProfile string `yaml:"default_profile"`
	// ExternalAccountRequired demands external account binding. Not supported yet.
	ExternalAccountRequired NotYet `yaml:"external_account_required"`
	// Validation names the zone that challenges are answered from. Default
	// "default".
	Validation string `yaml:"validation"`
	// TermsOfService is a URL; with it, new accounts must agree. Default: none.
	TermsOfService string `yaml:"terms_of_service"`
	// Website is a URL for people. Default: none.
	Website string `yaml:"website"`
	// CAAIdentities are the names that CAA records know the CA by. Not supported yet.
	CAAIdentities NotYet `yaml:"caa_identities"`
}

// Limits bound what clients may do. A rate is a count by a period, such as
// "300/3h", or "off".
type Limits struct {
	// NewAccountsPerIP counts by IPv4 address or IPv6 /64. Default 100/h.
	NewAccountsPerIP Rate `yaml:"new_accounts_per_ip"`
	// NewOrdersPerAccount counts orders created. Default 300/3h.
	NewOrdersPerAccount Rate `yaml:"new_orders_per_account"`
	// PendingOrdersPerAccount is the most unfinished orders that an account may
	// have at a time; 0 is no limit. Default 200.
	PendingOrdersPerAccount int `yaml:"pending_orders_per_account"`
	// FailedValidationsPerAccountAndName counts by account and name. Default 20/h.
	FailedValidationsPerAccountAndName Rate `yaml:"failed_validations_per_account_and_name"`
	// RequestBody is the largest request body read; 16KiB to 4MiB. Default
	// 128KiB.
	RequestBody Size `yaml:"request_body"`
}

// The formats of [Log].
const (
	LogAuto = "auto"
	LogJSON = "json"
	LogText = "text"
)

// Log is what is written to standard error.
type Log struct {
	// Level is the least that is logged: debug, info, warn or error. Default info.
	Level string `yaml:"level"`
	// Format is "json", "text", or "auto": text on a terminal and else JSON.
	// Default auto.
	Format string `yaml:"format"`
}

// Tracing is not supported yet.
type Tracing struct {
	// OTLPEndpoint is not supported yet.
	OTLPEndpoint NotYet `yaml:"otlp_endpoint"`
}

func (c *Config) setDefaults() {
	c.Server = Server{Listen: ":443", TLS: TLS{Mode: TLSAuto}, FinalizeHold: seconds(15)}
	c.Admin = Admin{Listen: "127.0.0.1:14001"}
	c.Storage = Storage{Embedded: EmbeddedStore{Path: "./acme-bridge-data"}}
	c.Limits = Limits{
		NewAccountsPerIP:                   perHours(100, 1),
		NewOrdersPerAccount:                perHours(300, 3),
		PendingOrdersPerAccount:            200,
		FailedValidationsPerAccountAndName: perHours(20, 1),
		RequestBody:                        128 << 10,
	}
	c.Log = Log{Level: "info", Format: LogAuto}
}

func (r *Redis) setDefaults() {
	*r = Redis{Mode: RedisSingle, KeyPrefix: "acme:"}
}

func (b *Backend) setDefaults() {
	*b = Backend{
		Path:        "./acme-bridge-data/ca",
		Exclusive:   true,
		Quota:       30000,
		Timeout:     seconds(30),
		MaxInFlight: 16,

		CertificateType:  AdvancedDV,
		ValidationMethod: MethodKept,
		DCVTimeout:       seconds(30 * 60),
		Renewal:          "reissue_then_new",
		KeyCompromise:    "refuse",
		RelayChallenge:   "ncp-dcv-01",

		Mode:         ModePre,
		OrderTimeout: seconds(30 * 60),
	}
}

func (v *Validation) setDefaults() {
	*v = Validation{HTTPPort: 80, TLSPort: 443, Timeout: seconds(10)}
}

func (p *Profile) setDefaults() {
	*p = Profile{
		Lifetime:   90 * day,
		Challenges: []acme.ChallengeType{acme.HTTP01, acme.DNS01, acme.TLSALPN01},
		Identifiers: Identifiers{
			Types:     []acme.IdentifierType{acme.TypeDNS},
			Wildcards: true,
			Max:       100,
		},
		KeyTypes: []acme.KeyType{
			acme.ECDSAP256, acme.ECDSAP384, acme.RSA2048, acme.RSA3072, acme.RSA4096, acme.Ed25519,
		},
		OrderLifetime:         day,
		AuthorizationLifetime: 7 * day,
	}
}

func (d *Directory) setDefaults() {
	*d = Directory{Validation: "default"}
}
