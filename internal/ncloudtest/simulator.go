package ncloudtest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
)

// Keys of the documentation's examples, accepted unless Options say otherwise.
const (
	DefaultAccessKey = "ACCESSKEYEXAMPLE0001"
	DefaultSecretKey = "SecretKeyExample0000000000000000000001"
)

// Options of a simulator; the zero value of each means its default.
type Options struct {
	AccessKey, SecretKey string
	RootDays             int              // validity of the root; 3650
	CADays               int              // validity of the subordinate; 1825
	OpenAPI              string           // file to check calls and answers of Private CA against; "": no check
	OpenAPICM            string           // the same for Certificate Manager
	Now                  func() time.Time // the gateway's clock; time.Now

	// DNSListen is where the simulator's own DNS server listens, UDP and TCP, on
	// loopback, such as 127.0.0.1:0; "": there is none.
	DNSListen string
	// Resolver is the DNS server (host:port) at which Certificate Manager looks
	// for validation records; "": the simulator's own.
	Resolver string
	// CheckInterval is how often it looks; 0: only at [Simulator.Tick].
	CheckInterval time.Duration
}

// A Simulator is an API gateway with Private CA, Certificate Manager and Global
// DNS behind it. It begins with an active root CA of Private CA and an active
// subordinate CA below it, no certificate, no domain and no zone.
type Simulator struct {
	accessKey, secretKey string
	now                  func() time.Time
	mux                  *mux.Router
	traces               atomic.Int64
	violations           map[Service]*violations
	closed               chan struct{}
	closing              sync.Once
	rootTag, caTag       string
	checker              *checker
	dns                  *dnsServer // nil: none
	zones                *zones
	background           sync.WaitGroup

	mu        sync.Mutex // guards all below
	behaviour Behaviour
	faults    []*Fault
	holds     []*Hold
	holdID    int
	changed   chan struct{} // closed and replaced when a hold stops a call
	late      []lateCall
	cas       map[string]*authority
	caOrder   []string
	nextID    int64
	calls     map[string]int64 // arrived, by operation
	applied   map[string]int64 // reached the service, by operation
	rejected  int64            // by signature
	issued    int64
	byKey     map[string]int64 // certificates by SHA-256 of their SPKI, hex
	cm        *certManager
}

// New makes a simulator with its two CAs.
func New(o Options) (*Simulator, error) {
	s := &Simulator{
		accessKey: o.AccessKey, secretKey: o.SecretKey, now: o.Now,
		closed: make(chan struct{}), changed: make(chan struct{}),
		behaviour: DefaultBehaviour(), cas: map[string]*authority{},
		calls: map[string]int64{}, applied: map[string]int64{}, byKey: map[string]int64{},
	}
	if s.accessKey == "" {
		s.accessKey = DefaultAccessKey
	}
	if s.secretKey == "" {
		s.secretKey = DefaultSecretKey
	}
	if s.now == nil {
		s.now = time.Now
	}
	if o.RootDays == 0 {
		o.RootDays = 3650
	}
	if o.CADays == 0 {
		o.CADays = 1825
	}
	ca, err := newViolations(o.OpenAPI, "/api/v1")
	if err != nil {
		return nil, err
	}
	cm, err := newViolations(o.OpenAPICM, "/")
	if err != nil {
		return nil, err
	}
	s.violations = map[Service]*violations{PrivateCA: ca, CertificateManager: cm, GlobalDNS: {}}
	root, err := s.newAuthority("simroot", "PRIVATE_ROOT", "EC256", name{CommonName: "Simulated Root CA"}, nil, o.RootDays)
	if err != nil {
		return nil, fmt.Errorf("make root CA: %w", err)
	}
	sub, err := s.newAuthority("simsub", "PRIVATE_SUB", "EC256", name{CommonName: "Simulated Issuing CA"}, root, o.CADays)
	if err != nil {
		return nil, fmt.Errorf("make subordinate CA: %w", err)
	}
	s.rootTag, s.caTag = root.tag, sub.tag
	if s.cm, err = s.newCertManager(); err != nil {
		return nil, fmt.Errorf("make public CA: %w", err)
	}
	s.mux = s.newMux("")
	if err := checkAddress(o.Resolver); err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	s.zones = newZones(s.now)
	if o.DNSListen != "" {
		if s.dns, err = listenDNS(o.DNSListen, s.zones); err != nil {
			return nil, fmt.Errorf("DNS server: %w", err)
		}
		o.Resolver = cmp.Or(o.Resolver, s.dns.address)
	}
	s.checker = &checker{resolver: o.Resolver}
	if o.CheckInterval > 0 {
		s.background.Go(func() { s.checkEvery(o.CheckInterval) })
	}
	return s, nil
}

// Close releases every call that is held or delayed, and ends the DNS server.
func (s *Simulator) Close() {
	s.closing.Do(func() { close(s.closed) })
	s.background.Wait()
	if s.dns != nil {
		s.dns.close()
	}
}

// DNSAddress is where the simulator's DNS server listens (host:port), UDP and
// TCP; "" if there is none.
func (s *Simulator) DNSAddress() string {
	if s.dns == nil {
		return ""
	}
	return s.dns.address
}

// CATag is the subordinate CA's tag, RootTag its issuer's.
func (s *Simulator) CATag() string { return s.caTag }

// RootTag is the root CA's tag.
func (s *Simulator) RootTag() string { return s.rootTag }

// RootPEM is the root CA's certificate.
func (s *Simulator) RootPEM() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cas[s.rootTag].cert.Raw})
}

// Change changes the behaviour; change must not keep its argument.
func (s *Simulator) Change(change func(*Behaviour)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.behaviour.clone()
	change(&b)
	if err := b.validate(); err != nil {
		return err
	}
	s.behaviour = b
	return nil
}

// A CAChange sets parts of a CA's state directly; nil leaves them alone.
type CAChange struct {
	Tag          string  `json:"ca_tag"` // "": the subordinate
	Status       *string `json:"status"`
	SigningCount *int64  `json:"signing_count"`
}

// ChangeCA sets parts of a CA's state.
func (s *Simulator) ChangeCA(change CAChange) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if change.Tag == "" {
		change.Tag = s.caTag
	}
	ca := s.cas[change.Tag]
	if ca == nil {
		return fmt.Errorf("ca_tag: there is no CA %q", change.Tag)
	}
	if change.Status != nil {
		switch *change.Status {
		case statusActive, statusPending, statusDeactivated, statusDestroying:
			ca.status = *change.Status
		default:
			return fmt.Errorf("status: %q is no status of a CA", *change.Status)
		}
	}
	if change.SigningCount != nil {
		ca.signingCount = *change.SigningCount
	}
	return nil
}

// Counters tell what has happened since the start.
type Counters struct {
	Calls             map[string]int64 `json:"calls"`              // arrived, by operation
	Applied           map[string]int64 `json:"applied"`            // reached the service, by operation
	Rejected          int64            `json:"rejected"`           // for a bad signature
	Issued            int64            `json:"issued"`             // by Private CA
	IssuedByKey       map[string]int64 `json:"issued_by_key"`      // SHA-256 of the SPKI, hex
	MostForOneKey     int64            `json:"most_for_one_key"`   // above 1: a key was certified twice
	OpenAPIViolations []string         `json:"openapi_violations"` // if a file was given
	Late              int              `json:"late"`               // put off by apply-late and not applied yet
	CM                CMCounters       `json:"certificate_manager"`
	DNS               DNSCounters      `json:"global_dns"`
}

// Counters are a copy of the present counts.
func (s *Simulator) Counters() Counters {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := Counters{Calls: maps.Clone(s.calls), Applied: maps.Clone(s.applied), Rejected: s.rejected, Issued: s.issued,
		IssuedByKey: maps.Clone(s.byKey), OpenAPIViolations: []string{}, Late: len(s.late), CM: s.cm.counters(), DNS: s.zones.counters()}
	for _, v := range []Service{PrivateCA, CertificateManager} {
		c.OpenAPIViolations = append(c.OpenAPIViolations, s.violations[v].list()...)
	}
	for _, n := range s.byKey {
		c.MostForOneKey = max(c.MostForOneKey, n)
	}
	return c
}

// KeyID is how IssuedByKey names a key: the SHA-256 of its DER, hex.
func KeyID(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// A Certificate is one that a simulated CA of Private CA has issued.
type Certificate struct {
	CATag    string    `json:"ca_tag"`
	Serial   string    `json:"serial"`
	Key      string    `json:"key"` // see KeyID
	Names    []string  `json:"names"`
	NotAfter time.Time `json:"not_after"`
	Revoked  bool      `json:"revoked"`
	PEM      string    `json:"pem"`
}

// Certificates are all end-entity certificates in the order of issuing.
func (s *Simulator) Certificates() []Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []Certificate{}
	for _, tag := range s.caOrder {
		for _, c := range s.cas[tag].issued {
			names := append([]string{}, c.cert.DNSNames...)
			for _, ip := range c.cert.IPAddresses {
				names = append(names, ip.String())
			}
			list = append(list, Certificate{CATag: tag, Serial: s.serial(c.cert.SerialNumber), Key: KeyID(c.cert.RawSubjectPublicKeyInfo),
				Names: names, NotAfter: c.cert.NotAfter, Revoked: !c.revoked.IsZero(), PEM: certPEM(c.cert)})
		}
	}
	return list
}

// IssueElsewhere issues a certificate for names as if another client of the
// subordinate CA had asked for it.
func (s *Simulator) IssueElsewhere(names ...string) error {
	if len(names) == 0 {
		return errors.New("no names given")
	}
	key, err := generateKey("EC256")
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err = s.cas[s.caTag].issue(s, leafTemplate{commonName: names[0], dnsNames: names, key: key.Public(), days: 1}, nil)
	return err
}
