package ncloudtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DNSBehaviour holds the answers to what NCP does not document of Global DNS.
type DNSBehaviour struct {
	// QuotedTXT puts double quotes around the content of TXT records in lists.
	QuotedTXT bool `json:"quoted_txt"`
	// ServeDelayMS passes between an apply and the name servers' answers.
	ServeDelayMS int64 `json:"serve_delay_ms"`
	// DeletedRows are "flagged" in lists until the apply (delYn), or "gone".
	DeletedRows string `json:"deleted_rows"`
	// ErrorStatus is the HTTP status of refusals.
	ErrorStatus int `json:"error_status"`
}

func (b DNSBehaviour) validate() error {
	if b.ServeDelayMS < 0 {
		return fmt.Errorf("serve_delay_ms must not be negative")
	}
	if b.ErrorStatus < 200 || b.ErrorStatus > 599 {
		return fmt.Errorf("error_status: %d is no HTTP status to answer with", b.ErrorStatus)
	}
	return oneOf([]choice{{"deleted_rows", b.DeletedRows, []string{"flagged", "gone"}}})
}

// A gdError is an error of Global DNS.
type gdError struct {
	code, message string
	more          []string // moreInfo.validationInfo
}

func invalidRecord(info string) *gdError {
	return &gdError{"X00007", "The record is not valid.", []string{info}}
}

// emptyAnswer is 200 without a body, as for all that changes something.
type emptyAnswer struct{}

func globalDNSRoutes() []route {
	const base = "/dns/v1/ncpdns"
	list := []struct {
		method, path, operation string
		handle                  func(*Simulator, *call) (any, *gdError)
	}{
		{"GET", base + "/domain", "listDnsDomains", (*Simulator).listDNSDomains},
		{"POST", base + "/domain", "createDnsDomain", (*Simulator).createDNSDomain},
		{"GET", base + "/domain/{domainId}", "getDnsDomain", (*Simulator).getDNSDomain},
		{"GET", base + "/record/{domainId}", "listDnsRecords", (*Simulator).listDNSRecords},
		{"POST", base + "/record/{domainId}", "createDnsRecords", (*Simulator).createDNSRecords},
		{"PUT", base + "/record/{domainId}", "changeDnsRecords", (*Simulator).changeDNSRecords},
		{"DELETE", base + "/record/{domainId}", "deleteDnsRecords", (*Simulator).deleteDNSRecords},
		{"PUT", base + "/record/apply/{domainId}", "applyDnsRecords", (*Simulator).applyDNSRecords},
		{"PUT", base + "/record/rollback/{domainId}", "rollbackDnsRecords", (*Simulator).rollbackDNSRecords},
	}
	var routes []route
	for _, x := range list {
		routes = append(routes, route{x.method, x.path, x.operation, GlobalDNS, func(s *Simulator, c *call) reply {
			s.zones.mu.Lock()
			defer s.zones.mu.Unlock()
			answer, no := x.handle(s, c)
			if no != nil {
				e := map[string]any{"errorCode": no.code, "message": no.message, "devMessage": no.message}
				if no.more != nil {
					e["moreInfo"] = map[string]any{"validationInfo": no.more}
				}
				return jsonReply(s.behaviour.DNS.ErrorStatus, map[string]any{"result": "FAIL", "error": e})
			}
			if _, ok := answer.(emptyAnswer); ok {
				return reply{status: http.StatusOK}
			}
			return jsonReply(http.StatusOK, answer)
		}})
	}
	return routes
}

// gdDomain finds the domain that the path names.
func (s *Simulator) gdDomain(c *call) (*gdDomain, *gdError) {
	id, err := strconv.ParseInt(c.r.PathValue("domainId"), 10, 64)
	if d := s.zones.domain(id); d != nil && err == nil {
		return d, nil
	}
	return nil, &gdError{code: "X00006", message: "Not authorized."}
}

// springPage is one page, from 0, as Spring writes it; page and size are required.
func springPage(c *call, list []any) (any, *gdError) {
	number, err1 := strconv.Atoi(c.r.URL.Query().Get("page"))
	size, err2 := strconv.Atoi(c.r.URL.Query().Get("size"))
	if err1 != nil || err2 != nil || number < 0 || number > 1<<20 || size < 1 || size > 1<<20 {
		return nil, &gdError{code: "X00007", message: "Required parameters page and size are missing."}
	}
	total := (len(list) + size - 1) / size
	from := min(number*size, len(list))
	rows := append([]any{}, list[from:min(from+size, len(list))]...)
	return map[string]any{"content": rows, "totalElements": len(list), "totalPages": total, "number": number, "size": size,
		"numberOfElements": len(rows), "first": number == 0, "last": number >= total-1, "empty": len(rows) == 0}, nil
}

func (s *Simulator) gdDomainRow(d *gdDomain) map[string]any {
	return map[string]any{"id": d.id, "name": d.name, "status": "SUCCESS", "completeYn": !d.dirty, "dnssecYn": false, "description": d.comments,
		"createdDate": d.created.Unix(), "modifiedDate": d.modified.Unix(), "recordCount": len(d.working)}
}

func (s *Simulator) listDNSDomains(c *call) (any, *gdError) {
	var list []any
	for _, d := range s.zones.domains {
		if strings.Contains(d.name, strings.ToLower(c.r.URL.Query().Get("domainName"))) { // a search
			list = append(list, s.gdDomainRow(d))
		}
	}
	return springPage(c, list)
}

func (s *Simulator) createDNSDomain(c *call) (any, *gdError) {
	var in struct {
		Name     string `json:"name"`
		Comments string `json:"comments"`
	}
	if err := json.Unmarshal(c.body, &in); err != nil {
		return nil, invalidRecord("the body is no domain")
	}
	if _, err := s.zones.addDomain(in.Name, in.Comments); err != nil {
		return nil, invalidRecord(err.Error())
	}
	return emptyAnswer{}, nil
}

func (s *Simulator) getDNSDomain(c *call) (any, *gdError) {
	d, no := s.gdDomain(c)
	if no != nil {
		return nil, no
	}
	row := s.gdDomainRow(d)
	row["soa"] = map[string]any{"masterNsName": nameServers()[0], "email": "hostmaster.simulated-dns.example", "refresh": 60, "retry": 60, "expiry": 3600, "minimum": 5}
	return row, nil
}

func (s *Simulator) listDNSRecords(c *call) (any, *gdError) {
	d, no := s.gdDomain(c)
	if no != nil {
		return nil, no
	}
	q, b := c.r.URL.Query(), s.behaviour.DNS
	var list []any
	for _, r := range d.working {
		if q.Get("recordType") != "" && q.Get("recordType") != r.kind || !strings.Contains(r.host, q.Get("searchContent")) && !strings.Contains(r.content, q.Get("searchContent")) ||
			r.deleted && b.DeletedRows == "gone" {
			continue
		}
		content := r.content
		if r.kind == "TXT" && b.QuotedTXT {
			content = `"` + content + `"`
		}
		list = append(list, map[string]any{"id": r.id, "host": r.host, "type": r.kind, "content": content, "ttl": r.ttl, "aliasId": nil, "lbId": nil,
			"delYn": r.deleted, "createdDate": r.createdAt.Unix(), "modifiedDate": r.changedAt.Unix(), "domainName": d.name})
	}
	return springPage(c, list)
}

type gdRecordIn struct {
	ID      int64  `json:"id"`
	Host    string `json:"host"`
	Type    string `json:"type"`
	Content string `json:"content"`
	TTL     uint32 `json:"ttl"`
}

func (s *Simulator) createDNSRecords(c *call) (any, *gdError) { return s.writeDNSRecords(c, false) }
func (s *Simulator) changeDNSRecords(c *call) (any, *gdError) { return s.writeDNSRecords(c, true) }

// writeDNSRecords takes the whole list or nothing of it.
func (s *Simulator) writeDNSRecords(c *call, change bool) (any, *gdError) {
	d, no := s.gdDomain(c)
	if no != nil {
		return nil, no
	}
	var in []gdRecordIn
	if err := json.Unmarshal(c.body, &in); err != nil || len(in) == 0 {
		return nil, invalidRecord("the body is no list of records")
	}
	working, dirty, now := slices.Clone(d.working), d.dirty, s.now()
	for _, x := range in {
		r := gdRecord{host: x.Host, kind: x.Type, content: x.Content, ttl: x.TTL, createdAt: now, changedAt: now}
		if r.kind == "TXT" && len(r.content) > 1 && strings.HasPrefix(r.content, `"`) && strings.HasSuffix(r.content, `"`) {
			r.content = r.content[1 : len(r.content)-1]
		}
		var err error
		switch {
		case r.host == "" || r.ttl == 0:
			err = fmt.Errorf("REQUIRED: host and ttl")
		case change == (x.ID == 0):
			err = fmt.Errorf("RECORD_NOT_FOUND: %d", x.ID)
		default:
			r.id = x.ID
			err = s.zones.add(d, r)
		}
		if err != nil {
			d.working, d.dirty = working, dirty
			return nil, invalidRecord(err.Error())
		}
	}
	if !change {
		s.zones.count.Created += int64(len(in))
	}
	return emptyAnswer{}, nil
}

func (s *Simulator) deleteDNSRecords(c *call) (any, *gdError) {
	d, no := s.gdDomain(c)
	if no != nil {
		return nil, no
	}
	var ids []int64
	if err := json.Unmarshal(c.body, &ids); err != nil || len(ids) == 0 {
		return nil, invalidRecord("the body is no list of ids")
	}
	for _, id := range ids {
		if !slices.ContainsFunc(d.working, func(r gdRecord) bool { return r.id == id && !r.deleted }) {
			return nil, invalidRecord(fmt.Sprintf("RECORD_NOT_FOUND: %d", id))
		}
	}
	for _, id := range ids {
		if s.zones.remove(d, id) {
			s.zones.count.Deleted++
		}
	}
	return emptyAnswer{}, nil
}

func (s *Simulator) applyDNSRecords(c *call) (any, *gdError) {
	d, no := s.gdDomain(c)
	if no != nil {
		return nil, no
	}
	s.zones.apply(d, time.Duration(s.behaviour.DNS.ServeDelayMS)*time.Millisecond)
	s.zones.count.Applies++
	s.zones.count.AppliesByDomain[d.name]++
	return emptyAnswer{}, nil
}

func (s *Simulator) rollbackDNSRecords(c *call) (any, *gdError) {
	d, no := s.gdDomain(c)
	if no != nil {
		return nil, no
	}
	s.zones.rollback(d)
	s.zones.count.Rollbacks++
	return emptyAnswer{}, nil
}
