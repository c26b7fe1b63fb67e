package certmanager

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// A lineage is what is remembered of one account's certificates for one set of
// names, so that the next of them is a reissue in the same paid order. It is
// the record "certmanager:<backend>:<account>:<hash of names>".
type lineage struct {
	Live *issued `json:"live,omitempty"` // the latest certificate
	// Refused is the number of a certificate that the service would not reissue.
	Refused int64 `json:"refused,omitempty"`
	// Reissues are under way: by ACME order, so that Find knows what to look for.
	Reissues []reissue `json:"reissues,omitempty"`
	// Abandoned requests went on after their ACME order had been given up.
	Abandoned []abandoned `json:"abandoned,omitempty"`
}

// An issued certificate as Certificate Manager knows it.
type issued struct {
	No      int64     `json:"no"`
	OrderID string    `json:"order"`
	Name    string    `json:"name"`
	Serial  string    `json:"serial"`          // hex, as of serialText
	CertID  string    `json:"cert"`            // see acme.CertificateID
	Key     string    `json:"key"`             // see keyName
	For     string    `json:"for"`             // the ACME order
	Again   string    `json:"again,omitempty"` // the one that it was handed out to again
	End     time.Time `json:"end"`
}

// A reissue was asked for by an ACME order.
type reissue struct {
	For    string `json:"for"`
	Of     int64  `json:"of"`
	Serial string `json:"serial"` // of the certificate it replaces
	Name   string `json:"name"`   // asked for under this certificateName
}

// An abandoned request may still bring a certificate for its key.
type abandoned struct {
	Key    string    `json:"key"`
	Ticket ticket    `json:"ticket"`
	Until  time.Time `json:"until"`
}

// Bounds of the lists in a lineage.
const (
	maxReissues  = 16
	maxAbandoned = 8
)

func (l *lineage) reissueFor(order string) *reissue {
	for n := range l.Reissues {
		if l.Reissues[n].For == order {
			return &l.Reissues[n]
		}
	}
	return nil
}

// bounded keeps the last entries of a list, the latest last.
func bounded[T any](list []T, limit int) []T {
	if n := len(list); n > limit {
		return slices.Clone(list[n-limit:])
	}
	return list
}

func keyName(spki []byte) string {
	sum := sha256.Sum256(spki)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (i *Issuer) lineageName(req *acme.IssueRequest) string {
	names := make([]string, len(req.Identifiers))
	for n, id := range req.Identifiers {
		names[n] = id.Name()
	}
	slices.Sort(names)
	sum := sha256.Sum256([]byte(strings.Join(names, "\n")))
	return "certmanager:" + i.cfg.Backend + ":" + req.AccountID + ":" + base64.RawURLEncoding.EncodeToString(sum[:16])
}

func (i *Issuer) certName(certID string) string {
	return "certmanager:" + i.cfg.Backend + ":cert:" + certID
}

func (i *Issuer) domainsName() string { return "certmanager:" + i.cfg.Backend + ":domains" }

// load reads a record into a new T; without records there is none.
func load[T any](ctx context.Context, i *Issuer, name string) (*T, int64, error) {
	v := new(T)
	if i.cfg.Records == nil {
		return v, 0, nil
	}
	data, version, err := i.cfg.Records.Record(ctx, name)
	if err != nil && !errors.Is(err, acme.ErrNotFound) {
		return nil, 0, fmt.Errorf("read record %s: %w", name, err)
	}
	if len(data) > 0 {
		if err := json.Unmarshal(data, v); err != nil {
			return nil, 0, fmt.Errorf("read record %s: %w", name, err)
		}
	}
	return v, version, nil
}

// change reads a record, changes it and writes it back; again if another writer
// was faster, a bounded number of times. A change that returns false ends it.
func change[T any](ctx context.Context, i *Issuer, name string, f func(*T) bool) error {
	if i.cfg.Records == nil {
		return nil
	}
	for range 8 {
		v, version, err := load[T](ctx, i, name)
		if err != nil {
			return err
		}
		if !f(v) {
			return nil
		}
		data, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("write record %s: %w", name, err)
		}
		err = i.cfg.Records.PutRecord(ctx, name, data, version)
		if err == nil {
			return nil
		}
		if !errors.Is(err, acme.ErrConflict) {
			return fmt.Errorf("write record %s: %w", name, err)
		}
	}
	return fmt.Errorf("write record %s: %w", name, acme.ErrConflict)
}

// remember keeps what a revocation and the next renewal need to know of a
// certificate. It comes before the certificate is handed out, so that none is
// without it.
func (i *Issuer) remember(ctx context.Context, req *acme.IssueRequest, leaf *x509.Certificate, r row, name string) error {
	c := issued{No: r.No, OrderID: r.OrderID, Name: name, Serial: leaf.SerialNumber.Text(16), CertID: acme.CertificateID(leaf),
		Key: keyName(leaf.RawSubjectPublicKeyInfo), For: req.OrderID, End: leaf.NotAfter.UTC()}
	err := change(ctx, i, i.certName(c.CertID), func(old *issued) bool {
		if old.No == c.No && old.OrderID == c.OrderID {
			return false
		}
		*old = c
		return true
	})
	if err != nil {
		return err
	}
	return change(ctx, i, i.lineageName(req), func(l *lineage) bool {
		n, k := len(l.Reissues), len(l.Abandoned)
		l.Reissues = slices.DeleteFunc(l.Reissues, func(x reissue) bool { return x.For == req.OrderID })
		l.Abandoned = slices.DeleteFunc(l.Abandoned, func(x abandoned) bool { return x.Ticket.No == r.No })
		switch {
		case l.Live != nil && l.Live.CertID == c.CertID:
			// The one who asked first keeps it: only that order is asked
			// whether it was ever fetched.
			return n != len(l.Reissues) || k != len(l.Abandoned)
		case l.Live != nil && l.Live.End.After(c.End):
			return n != len(l.Reissues) || k != len(l.Abandoned) // an older order that ended late
		}
		l.Live, l.Refused = &c, 0
		return true
	})
}
