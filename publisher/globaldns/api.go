package globaldns

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
	"github.com/acme-bridge/acme-bridge/publisher"
)

const (
	basePath = "/dns/v1/ncpdns"

	domainPage = 20 // what the guide's examples ask for; the limit is not documented
	recordPage = 1000
	maxPages   = 100
	apex       = "@" // host of a domain's own name
)

// api is Global DNS v1. That version was chosen because clients of it are known
// to work; v2 knows when an apply is done, but nobody has been seen to use it.
type api struct {
	client *ncloud.Client
	log    *slog.Logger
}

// yes is a boolean that may be sent as true, "true", "Y" or 1.
type yes bool

func (y *yes) UnmarshalJSON(b []byte) error {
	var t ncloud.Text
	err := t.UnmarshalJSON(b)
	switch strings.ToUpper(string(t)) {
	case "TRUE", "Y", "YES", "1":
		*y = true
	default:
		*y = false
	}
	return err
}

// A domain is a zone of Global DNS.
type domain struct {
	ID     ncloud.Number `json:"id"`
	Name   string        `json:"name"`
	Status ncloud.Text   `json:"status"`
	// Complete is false while a change waits for an apply, anybody's.
	Complete *yes `json:"completeYn"`
}

// A record is a row of a domain.
type record struct {
	ID      ncloud.Number `json:"id"`
	Host    string        `json:"host"` // relative to the domain; apex for its own name
	Type    string        `json:"type"`
	Content string        `json:"content"`
	Deleted yes           `json:"delYn"` // goes at the next apply
}

// page is a Spring page.
type page[T any] struct {
	Content    []T            `json:"content"`
	Last       *yes           `json:"last"`
	TotalPages *ncloud.Number `json:"totalPages"`
}

// list reads all pages of a list.
func list[T any](ctx context.Context, a api, operation, path string, query url.Values, size int) ([]T, error) {
	var all []T
	query.Set("size", strconv.Itoa(size))
	for n := range maxPages {
		query.Set("page", strconv.Itoa(n))
		var p page[T]
		err := a.client.Do(ctx, ncloud.Request{Operation: operation, Method: http.MethodGet, Path: path, Query: query,
			Decode: func(body []byte) error { return json.Unmarshal(body, &p) }})
		if err != nil {
			return nil, err
		}
		all = append(all, p.Content...)
		switch {
		case len(p.Content) == 0, p.Last != nil && bool(*p.Last),
			p.Last == nil && p.TotalPages != nil && n+1 >= int(*p.TotalPages),
			p.Last == nil && p.TotalPages == nil && len(p.Content) < size:
			return all, nil
		}
	}
	return nil, fmt.Errorf("%s: more than %d pages", operation, maxPages)
}

// find looks for the domain of exactly that name, which has no dot at its end.
// The service's search matches parts of names, so the page is gone through.
func (a api) find(ctx context.Context, name string) (*domain, error) {
	domains, err := list[domain](ctx, a, "listDnsDomains", basePath+"/domain", url.Values{"domainName": {name}}, domainPage)
	if err != nil {
		return nil, explain(name, err)
	}
	for _, d := range domains {
		if dns.CanonicalName(d.Name) != dns.CanonicalName(name) {
			continue
		}
		if d.ID == 0 {
			a.log.WarnContext(ctx, "domain without an id", "row", d)
			return nil, fmt.Errorf("domain %s: Global DNS gives no id for it", name)
		}
		return &d, nil
	}
	return nil, nil
}

// complete reports that no change of the domain waits for an apply.
func (a api) complete(ctx context.Context, zone string, id int64) (bool, error) {
	var d domain
	var raw json.RawMessage
	err := a.client.Do(ctx, ncloud.Request{Operation: "getDnsDomain", Method: http.MethodGet, Path: basePath + "/domain/" + strconv.FormatInt(id, 10),
		Decode: func(body []byte) error {
			raw = body
			return json.Unmarshal(body, &d)
		}})
	if err != nil {
		return false, explain(zone, err)
	}
	if d.Complete == nil {
		// Nothing can be known then; a publisher that never writes helps nobody.
		a.log.WarnContext(ctx, "domain does not say whether edits wait, taken for complete", "zone", zone, "row", string(raw))
		return true, nil
	}
	return bool(*d.Complete), nil
}

// at lists the live records at a host, of every type. The service's search
// matches parts of host and content.
func (a api) at(ctx context.Context, zone string, id int64, host string) ([]record, error) {
	query := url.Values{}
	if host != apex {
		query.Set("searchContent", host)
	}
	rows, err := list[record](ctx, a, "listDnsRecords", recordPath(id), query, recordPage)
	if err != nil {
		return nil, explain(zone, err)
	}
	rows = slices.DeleteFunc(rows, func(r record) bool { return bool(r.Deleted) || hostOf(r.Host, zone) != host })
	for _, r := range rows {
		if r.ID == 0 || r.Type == "" {
			a.log.WarnContext(ctx, "record without id or type", "zone", zone, "row", r)
		}
	}
	return rows, nil
}

// A newRecord is what a create sends, with the members that the guide names.
type newRecord struct {
	Host    string `json:"host"`
	Type    string `json:"type"`
	Content string `json:"content"`
	TTL     int64  `json:"ttl"`
	AliasID *int64 `json:"aliasId"`
	LBID    *int64 `json:"lbId"`
}

func (a api) create(ctx context.Context, zone string, id int64, ttl time.Duration, wanted []key) error {
	var rows []newRecord
	for _, w := range wanted {
		rows = append(rows, newRecord{Host: w.host, Type: "TXT", Content: w.value, TTL: int64(ttl / time.Second)})
	}
	return a.write(ctx, zone, "createDnsRecords", http.MethodPost, recordPath(id), rows)
}

func (a api) remove(ctx context.Context, zone string, id int64, ids []int64) error {
	return a.write(ctx, zone, "deleteDnsRecords", http.MethodDelete, recordPath(id), ids)
}

func (a api) apply(ctx context.Context, zone string, id int64) error {
	return a.write(ctx, zone, "applyDnsRecords", http.MethodPut, basePath+"/record/apply/"+strconv.FormatInt(id, 10), nil)
}

// write sends what changes something; the answer is empty.
func (a api) write(ctx context.Context, zone, operation, method, path string, body any) error {
	if err := a.client.Do(ctx, ncloud.Request{Operation: operation, Method: method, Path: path, Body: body}); err != nil {
		return explain(zone, err)
	}
	return nil
}

func recordPath(id int64) string { return basePath + "/record/" + strconv.FormatInt(id, 10) }

// hostOf brings a host to one form, should the service give it with the domain.
func hostOf(host, zone string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == zone {
		return apex
	}
	return cmp.Or(strings.TrimSuffix(host, "."+zone), apex)
}

// unquote takes the double quotes off a TXT record's content, which come back
// though none are sent; several strings become one.
func unquote(content string) string {
	s := strings.TrimSpace(content)
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return content
	}
	return strings.ReplaceAll(s[1:len(s)-1], `" "`, "")
}

// Error codes of Global DNS.
const (
	codeNotAuthorized = "X00006"
	codeNotValid      = "X00007"
)

// gone reports an error after which a domain's id is not to be believed any more.
func gone(err error) bool {
	e, ok := errors.AsType[*ncloud.Error](err)
	return ok && (e.Code == codeNotAuthorized || e.Status == http.StatusNotFound)
}

// untouched reports an error of a write that certainly changed nothing. The
// service's own codes mean that, whatever HTTP status comes with them.
func untouched(err error) bool {
	e, ok := errors.AsType[*ncloud.Error](err)
	return ok && (e.Applied == ncloud.No || e.Code == codeNotAuthorized || e.Code == codeNotValid)
}

// explain words what an operator can do about an error, and marks those that
// time does not cure.
func explain(zone string, err error) error {
	e, ok := errors.AsType[*ncloud.Error](err)
	switch {
	case !ok:
		return err
	case e.Code == codeNotAuthorized:
		return fmt.Errorf("%w: zone %s: Global DNS does not let this access key do that: the account needs permission to view, change and apply the zone's records (or the zone is gone, or the record is in use as an alias): %w", publisher.ErrBlocked, zone, err)
	case e.Code == codeNotValid:
		return fmt.Errorf("%w: zone %s: Global DNS does not accept the record; if it has a CNAME or the same record there already, remove that: %w", publisher.ErrBlocked, zone, err)
	case e.Outcome == ncloud.OutcomeUnauthorized:
		return fmt.Errorf("%w: zone %s: Global DNS refuses the access key: check access_key, secret_key and the account's permissions: %w", publisher.ErrBlocked, zone, err)
	}
	return fmt.Errorf("zone %s: %w", zone, err)
}
