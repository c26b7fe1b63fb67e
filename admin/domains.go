package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// DomainTimeout bounds one change of a domain: it may have a record published
// and wait until the name servers have it.
const DomainTimeout = 6 * time.Minute

// A Domain is one that a CA validates ahead of orders.
type Domain struct {
	Name string `json:"domain"`
	// State is the CA's own word: PENDING, VALID or INVALID.
	State string `json:"state"`
	// Kind is the kind of the record: PTXT is set once and kept.
	Kind    string    `json:"kind,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Record  *Record   `json:"record,omitempty"` // nil while the CA has not told it
	// Publisher names who writes the record; "": the operator does.
	Publisher string `json:"publisher,omitempty"`
	// Notes say what was found or should be done.
	Notes []string `json:"notes,omitempty"`
}

// A Record is what must be served in DNS.
type Record struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Value string `json:"value"`
}

// Domains are those of one backend. Errors are for operators' eyes; one that
// wraps [acme.ErrNotFound] says that there is no such domain, and a
// [*acme.Problem] that the CA refuses.
type Domains interface {
	List(ctx context.Context) ([]Domain, error)
	// Add registers a domain and has its record published if someone does that.
	// A domain that is there already is no error.
	Add(ctx context.Context, name string) (*Domain, error)
	// Check asks for a domain's state now, and looks for its record.
	Check(ctx context.Context, name string) (*Domain, error)
	Remove(ctx context.Context, name string) error
}

func (h *handler) handleDomains(mux *http.ServeMux) {
	const all = "/api/v1/backends/{backend}/domains"
	for pattern, serve := range map[string]func(http.ResponseWriter, *http.Request, Domains) error{
		"GET " + all:                      h.listDomains,
		"POST " + all:                     h.addDomain,
		"POST " + all + "/{domain}/check": h.checkDomain,
		"DELETE " + all + "/{domain}":     h.removeDomain,
	} {
		mux.Handle(pattern, h.withToken(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			name := r.PathValue("backend")
			domains := h.Domains[name]
			if domains == nil {
				h.fail(w, http.StatusNotFound, h.noDomains(name))
				return
			}
			ctx, cancel := context.WithTimeout(r.Context(), DomainTimeout)
			defer cancel()
			// A test's recorder has no deadlines, and needs none.
			if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(DomainTimeout + 10*time.Second)); err != nil && !errors.Is(err, http.ErrNotSupported) {
				h.Log.DebugContext(ctx, "write deadline not set", "err", err)
			}
			if err := serve(w, r.WithContext(ctx), domains); err != nil {
				h.failDomain(w, err)
			}
		})))
	}
}

func (h *handler) noDomains(backend string) string {
	have := slices.Sorted(maps.Keys(h.Domains))
	if len(have) == 0 {
		return "no backend validates domains ahead of orders: that is for backends of type certmanager"
	}
	return fmt.Sprintf("backend %.64q does not validate domains ahead of orders, or does not exist; these do: %s", backend, strings.Join(have, ", "))
}

func (h *handler) failDomain(w http.ResponseWriter, err error) {
	if problem, ok := errors.AsType[*acme.Problem](err); ok {
		h.fail(w, http.StatusUnprocessableEntity, clip(problem.Error()))
		return
	}
	switch {
	case errors.Is(err, acme.ErrNotFound):
		h.fail(w, http.StatusNotFound, clip(err.Error()))
	case errors.Is(err, context.DeadlineExceeded):
		h.fail(w, http.StatusGatewayTimeout, clip(err.Error()))
	default:
		h.fail(w, http.StatusBadGateway, clip(err.Error()))
	}
}

func (h *handler) listDomains(w http.ResponseWriter, r *http.Request, domains Domains) error {
	list, err := domains.List(r.Context())
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b Domain) int { return strings.Compare(a.Name, b.Name) })
	if list == nil {
		list = []Domain{}
	}
	h.write(w, http.StatusOK, map[string]any{"domains": list})
	return nil
}

func (h *handler) addDomain(w http.ResponseWriter, r *http.Request, domains Domains) error {
	var body struct {
		Domain string `json:"domain"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, 4096)).Decode(&body); err != nil {
		return acme.Problemf(acme.Malformed, `send {"domain": "NAME"}`)
	}
	name, err := domainName(body.Domain)
	if err != nil {
		return err
	}
	d, err := domains.Add(r.Context(), name)
	if err != nil {
		return err
	}
	h.Log.InfoContext(r.Context(), "domain added by operator", "backend", r.PathValue("backend"), "domain", name, "state", d.State)
	h.write(w, http.StatusOK, d)
	return nil
}

func (h *handler) checkDomain(w http.ResponseWriter, r *http.Request, domains Domains) error {
	name, err := domainName(r.PathValue("domain"))
	if err != nil {
		return err
	}
	d, err := domains.Check(r.Context(), name)
	if err != nil {
		return err
	}
	h.write(w, http.StatusOK, d)
	return nil
}

func (h *handler) removeDomain(w http.ResponseWriter, r *http.Request, domains Domains) error {
	name, err := domainName(r.PathValue("domain"))
	if err != nil {
		return err
	}
	if err := domains.Remove(r.Context(), name); err != nil {
		return err
	}
	h.Log.InfoContext(r.Context(), "domain removed by operator", "backend", r.PathValue("backend"), "domain", name)
	h.write(w, http.StatusOK, map[string]any{"domain": name, "removed": true})
	return nil
}

// domainName is the name in the form that identifiers have. A wildcard is
// validated at its base, which covers it.
func domainName(text string) (string, error) {
	id, err := acme.ParseIdentifier(acme.Identifier{Type: acme.TypeDNS, Value: strings.TrimSuffix(text, ".")})
	if err != nil {
		return "", err
	}
	base, _ := id.Base()
	if !strings.Contains(base.Value, ".") || strings.HasSuffix(base.Value, ".localhost") {
		return "", acme.Problemf(acme.RejectedIdentifier, "%s is no public domain: no public CA validates it", base.Value)
	}
	return base.Value, nil
}
