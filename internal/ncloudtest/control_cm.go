package ncloudtest

import (
	"errors"
	"net/http"
)

// controlCM adds what concerns Certificate Manager to the control API.
func (s *Simulator) controlCM(handle func(pattern string, h func(r *http.Request) (any, error))) {
	done := map[string]bool{"ok": true}
	handle("GET /control/cm/certificates", func(*http.Request) (any, error) { return s.CMCertificates(), nil })
	handle("POST /control/cm/certificates", func(r *http.Request) (any, error) {
		var seed CMSeed
		if err := readStrict(r.Body, &seed); err != nil {
			return nil, err
		}
		no, err := s.AddCertificate(seed)
		return map[string]int64{"certificate_no": no}, err
	})
	handle("GET /control/cm/domains", func(*http.Request) (any, error) { return s.CMDomains(), nil })
	handle("PATCH /control/cm/domains", func(r *http.Request) (any, error) {
		var change DomainChange
		if err := readStrict(r.Body, &change); err != nil {
			return nil, err
		}
		return done, s.ChangeDomain(change)
	})
	handle("POST /control/cm/outcomes", func(r *http.Request) (any, error) {
		var o outcome
		if err := readStrict(r.Body, &o); err != nil {
			return nil, err
		}
		return done, s.ForceOutcome(o.Name, o.Code, o.Count)
	})
	handle("DELETE /control/cm/outcomes", func(*http.Request) (any, error) {
		s.ClearOutcomes()
		return done, nil
	})
	handle("POST /control/cm/tick", func(r *http.Request) (any, error) {
		return map[string]int{"changed": s.Tick(r.Context())}, nil
	})
}

// controlDNS adds what concerns DNS and Global DNS.
func (s *Simulator) controlDNS(handle func(pattern string, h func(r *http.Request) (any, error))) {
	done := map[string]bool{"ok": true}
	type record struct {
		Name  string `json:"name"`
		Type  string `json:"type"`
		Value string `json:"value"`
	}
	handle("POST /control/dns/records", func(r *http.Request) (any, error) {
		var in record
		if err := readStrict(r.Body, &in); err != nil {
			return nil, err
		}
		return done, s.Publish(in.Name, in.Type, in.Value)
	})
	handle("DELETE /control/dns/records", func(r *http.Request) (any, error) {
		var in record
		if err := readStrict(r.Body, &in); err != nil {
			return nil, err
		}
		return map[string]int{"removed": s.Unpublish(in.Name, in.Type, in.Value)}, nil
	})
	type named struct {
		Name string `json:"name"`
	}
	handle("POST /control/dns/zones", func(r *http.Request) (any, error) {
		var in named
		if err := readStrict(r.Body, &in); err != nil {
			return nil, err
		}
		if in.Name == "" {
			return nil, errors.New("name: missing")
		}
		s.AddZone(in.Name)
		return done, nil
	})
	handle("POST /control/dns/domains", func(r *http.Request) (any, error) {
		var in named
		if err := readStrict(r.Body, &in); err != nil {
			return nil, err
		}
		id, err := s.AddDNSDomain(in.Name)
		return map[string]int64{"id": id}, err
	})
	handle("GET /control/dns/domains/{name}", func(r *http.Request) (any, error) {
		list := s.DNSRecords(r.PathValue("name"))
		if list == nil {
			return nil, errors.New("name: Global DNS has no such domain")
		}
		return list, nil
	})
	handle("POST /control/dns/edits", func(r *http.Request) (any, error) {
		var in struct {
			ForeignEdit
			Apply bool `json:"apply"`
		}
		if err := readStrict(r.Body, &in); err != nil {
			return nil, err
		}
		return done, s.EditElsewhere(in.ForeignEdit, in.Apply)
	})
}
