package acme

import (
	"net/mail"
	"slices"
	"strings"
	"time"
	"unicode"
)

// MaxContacts is how many contact URLs an account may have.
const MaxContacts = 10

// An Account is a client's key and its contacts within one directory
// (RFC 8555, Section 7.1.2).
type Account struct {
	ID          string    `json:"id"`
	Directory   string    `json:"dir"` // name of the directory (tenant) it belongs to
	Status      Status    `json:"status"`
	Key         []byte    `json:"key"`   // public JWK, required members only
	Thumbprint  string    `json:"thumb"` // RFC 7638, base64url: what accounts are compared by
	Contact     []string  `json:"contact,omitempty"`
	TermsAgreed string    `json:"terms,omitempty"` // the URL that was agreed to
	Created     time.Time `json:"created"`
	// KeyEpoch counts key changes. Proofs made under an earlier key do not
	// count, so that a stolen and replaced key leaves nothing behind.
	KeyEpoch int `json:"epoch,omitempty"`

	Version int64 `json:"-"` // kept by the store: 0 for an account not yet stored
}

// Clone returns a copy that shares no memory with a.
func (a *Account) Clone() *Account {
	b := *a
	b.Key = slices.Clone(a.Key)
	b.Contact = slices.Clone(a.Contact)
	return &b
}

// SetContact replaces the contacts (RFC 8555, Section 7.3.2). An empty list
// clears them.
func (a *Account) SetContact(contact []string) error {
	if err := CheckContacts(contact); err != nil {
		return err
	}
	a.Contact = slices.Clone(contact)
	return nil
}

// Deactivate ends the account for good (RFC 8555, Section 7.3.6).
func (a *Account) Deactivate() error {
	if a.Status != StatusValid {
		return Problemf(Unauthorized, "account is %s", a.Status).WithStatus(401)
	}
	a.Status = StatusDeactivated
	a.KeyEpoch++
	return nil
}

// ChangeKey replaces the key (RFC 8555, Section 7.3.5); the caller has verified
// both signatures, and the store that no other account has the new key.
func (a *Account) ChangeKey(jwk []byte, thumbprint string) error {
	if a.Status != StatusValid {
		return Problemf(Unauthorized, "account is %s", a.Status).WithStatus(401)
	}
	a.Key, a.Thumbprint = slices.Clone(jwk), thumbprint
	a.KeyEpoch++
	return nil
}

// CheckContacts refuses contact URLs that could not be used
// (RFC 8555, Section 7.3): mailto with exactly one address and no header fields.
func CheckContacts(contact []string) error {
	if len(contact) > MaxContacts {
		return Problemf(InvalidContact, "%d contacts, at most %d are kept", len(contact), MaxContacts)
	}
	for _, c := range contact {
		if len(c) > 320 || strings.ContainsFunc(c, func(r rune) bool { return r == unicode.ReplacementChar || unicode.IsControl(r) }) {
			return Problemf(InvalidContact, "a contact is too long or holds control characters")
		}
		scheme, addr, ok := strings.Cut(c, ":")
		if !ok {
			return Problemf(InvalidContact, "contact %q is not a URL", c)
		}
		if !strings.EqualFold(scheme, "mailto") {
			return Problemf(UnsupportedContact, "contact scheme %q is not supported, only mailto", scheme)
		}
		if strings.ContainsAny(addr, "?,%") {
			return Problemf(InvalidContact, "contact %q has header fields, escapes or several addresses", c)
		}
		parsed, err := mail.ParseAddress(addr)
		if err != nil || parsed.Address != addr {
			return Problemf(InvalidContact, "contact %q is not one e-mail address", c)
		}
	}
	return nil
}
