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
	// Publishers write a CA's validation records into DNS. Not supported yet.
	Publishers NotYet `yaml:"publishers"`
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
	BackendLocal     = "local"
	BackendPrivateCA = "privateca"
)

// A Backend is a certificate authority. The tag for:"..." names the type that a
// key belongs to.
type Backend struct {
	// Type is "local" (a CA of our own, made on first start) or "privateca"
	// (NAVER Cloud Private CA). Required.
	Type string `yaml:"type"`

	// Path is the directory of the local CA's keys and certificates; it is made
	// if missing. Default ./acme-bridge-data/ca.
	Path string `yaml:"path" for:"local"`

	// BaseURL is scheme and host of the API: https, or http to a loopback
	// address. Default https://pca.apigw.ntruss.com.
	BaseURL string `yaml:"base_url" for:"privateca"`
	// AccessKey is the Access Key ID of the account that calls. Required.
	AccessKey Secret `yaml:"access_key" for:"privateca"`
	// SecretKey belongs to AccessKey. Required.
	SecretKey Secret `yaml:"secret_key" for:"privateca"`
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
	// Timeout is the deadline of one call; 1s to 2m. Default 30s.
	Timeout Duration `yaml:"timeout" for:"privateca"`
	// MaxInFlight is the most calls at a time; 1 to 256. Default 16.
	MaxInFlight int `yaml:"max_in_flight" for:"privateca"`

	// Keys of the backend type certmanager. Not supported yet.
	CertificateType  NotYet `yaml:"certificate_type"`
	OrganizationNo   NotYet `yaml:"organization_no"`
	ValidationMethod NotYet `yaml:"validation_method"`
	Publisher        NotYet `yaml:"publisher"`
	DCVTimeout       NotYet `yaml:"dcv_timeout"`
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
	// Lifetime of certificates; whole days, 1d to 3650d, for Private CA.
	// Default 90d.
	Lifetime Duration `yaml:"lifetime"`
	// ClientValidity lets clients ask for notBefore and notAfter within
	// Lifetime. Default true for local backends, and false for Private CA, which
	// counts whole days and so cannot honour them.
	ClientValidity bool `yaml:"client_validity"`
	// Challenges that are offered: http-01, dns-01, tls-alpn-01. Default: all.
	Challenges  []acme.ChallengeType `yaml:"challenges"`
	Identifiers Identifiers          `yaml:"identifiers"`
	// KeyTypes that a CSR's key may have: ecdsa-p256, ecdsa-p384, ecdsa-p521,
	// rsa-2048, rsa-3072, rsa-4096, ed25519. Default: all but ecdsa-p521.
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
		BaseURL:     "https://pca.apigw.ntruss.com",
		Exclusive:   true,
		Quota:       30000,
		Timeout:     seconds(30),
		MaxInFlight: 16,
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
