package ncloudtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Control is the HTTP API that sets behaviour, faults and holds at run time and
// reads counters. It asks for no credentials: listen on loopback only.
//
//	GET    /control/counters              Counters
//	GET    /control/certificates          [Certificate]
//	GET    /control/behaviour             Behaviour
//	PATCH  /control/behaviour             some fields of Behaviour; answers all
//	GET    /control/faults                [Fault] still armed
//	POST   /control/faults                Fault
//	DELETE /control/faults                disarms all
//	GET    /control/holds                 [{id, operation, point, waiting}];
//	                                      ?waiting=N&timeout_ms=T answers as soon as N calls are held, or 408 after T
//	POST   /control/holds                 {operation, point: before|after, count}; answers {id}
//	DELETE /control/holds                 releases all; ?action=continue (default) or discard
//	DELETE /control/holds/{id}            releases one, likewise
//	POST   /control/apply-late            applies what apply-late has put off; answers {applied}
//	PATCH  /control/ca                    CAChange
//	POST   /control/issue                 {names}: a certificate issued by someone else
//	GET    /control/root.pem              root certificate
//
// Certificate Manager:
//
//	GET    /control/cm/certificates       [CMCertificate]: all that were issued
//	POST   /control/cm/certificates       CMSeed: one that someone else got; answers {certificate_no}
//	GET    /control/cm/domains            [CMDomain]
//	PATCH  /control/cm/domains            DomainChange
//	POST   /control/cm/outcomes           {name, code, count}: see ForceOutcome
//	DELETE /control/cm/outcomes           takes them back
//	POST   /control/cm/tick               looks for records now; answers {changed}
//	GET    /control/cm/root.pem           the public CA's root certificate
//
// DNS:
//
//	POST   /control/dns/records           {name, type, value}: served at once
//	DELETE /control/dns/records           {name, type, value}: no more; type and value "": any; answers {removed}
//	POST   /control/dns/zones             {name}: a zone for such records
//	POST   /control/dns/domains           {name}: a domain in Global DNS; answers {id}
//	GET    /control/dns/domains/{name}    [DNSRecord]
//	POST   /control/dns/edits             ForeignEdit with apply: see EditElsewhere
//
// Errors are {"error": "..."} with 400 or 404.
func (s *Simulator) Control() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := h(r)
			status := http.StatusOK
			if err != nil {
				status, v = http.StatusBadRequest, map[string]string{"error": err.Error()}
				switch {
				case errors.Is(err, errNoHold):
					status = http.StatusNotFound
				case errors.Is(err, errNotHeld):
					status = http.StatusRequestTimeout
				}
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(v) // the client may be gone
		})
	}
	done := map[string]bool{"ok": true}
	handle("GET /control/counters", func(*http.Request) (any, error) { return s.Counters(), nil })
	handle("GET /control/certificates", func(*http.Request) (any, error) { return s.Certificates(), nil })
	handle("GET /control/behaviour", func(*http.Request) (any, error) { return s.present(), nil })
	handle("PATCH /control/behaviour", func(r *http.Request) (any, error) {
		b, err := s.patchBehaviour(r.Body)
		return b, err
	})
	handle("GET /control/faults", func(*http.Request) (any, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		list := []Fault{}
		for _, f := range s.faults {
			list = append(list, *f)
		}
		return list, nil
	})
	handle("POST /control/faults", func(r *http.Request) (any, error) {
		var f Fault
		if err := readStrict(r.Body, &f); err != nil {
			return nil, err
		}
		return done, s.Inject(f)
	})
	handle("DELETE /control/faults", func(*http.Request) (any, error) {
		s.ClearFaults()
		return done, nil
	})
	handle("GET /control/holds", s.listHolds)
	handle("POST /control/holds", func(r *http.Request) (any, error) {
		var in struct {
			Operation string `json:"operation"`
			Point     Point  `json:"point"`
			Count     int    `json:"count"`
		}
		if err := readStrict(r.Body, &in); err != nil {
			return nil, err
		}
		h, err := s.HoldCalls(in.Operation, in.Point, in.Count)
		if err != nil {
			return nil, err
		}
		return map[string]int{"id": h.id}, nil
	})
	handle("DELETE /control/holds", func(r *http.Request) (any, error) { return done, s.releaseHolds(r, "") })
	handle("DELETE /control/holds/{id}", func(r *http.Request) (any, error) { return done, s.releaseHolds(r, r.PathValue("id")) })
	handle("POST /control/apply-late", func(*http.Request) (any, error) { return map[string]int{"applied": s.ApplyLate()}, nil })
	handle("PATCH /control/ca", func(r *http.Request) (any, error) {
		var change CAChange
		if err := readStrict(r.Body, &change); err != nil {
			return nil, err
		}
		return done, s.ChangeCA(change)
	})
	handle("POST /control/issue", func(r *http.Request) (any, error) {
		var in struct {
			Names []string `json:"names"`
		}
		if err := readStrict(r.Body, &in); err != nil {
			return nil, err
		}
		return done, s.IssueElsewhere(in.Names...)
	})
	for path, file := range map[string]func() []byte{"/control/root.pem": s.RootPEM, "/control/cm/root.pem": s.CMRootPEM} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/pem-certificate-chain")
			_, _ = w.Write(file()) // the client may be gone
		})
	}
	s.controlCM(handle)
	s.controlDNS(handle)
	return mux
}

var (
	errNoHold  = errors.New("there is no such hold")
	errNotHeld = errors.New("timeout: not so many calls are held")
)

// maxControlWait bounds how long a request may wait for held calls.
const maxControlWait = time.Minute

func readStrict(body io.Reader, v any) error {
	d := json.NewDecoder(io.LimitReader(body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("request body: %w", err)
	}
	return nil
}

func (s *Simulator) present() Behaviour {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.behaviour
}

func (s *Simulator) patchBehaviour(body io.Reader) (Behaviour, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.behaviour.clone()
	if err := readStrict(body, &b); err != nil {
		return Behaviour{}, err
	}
	if err := b.validate(); err != nil {
		return Behaviour{}, err
	}
	s.behaviour = b
	return b, nil
}

type holdView struct {
	ID        int    `json:"id"`
	Operation string `json:"operation"`
	Point     Point  `json:"point"`
	Waiting   int    `json:"waiting"`
}

func (s *Simulator) listHolds(r *http.Request) (any, error) {
	want, err := queryInt(r, "waiting", 0)
	if err != nil {
		return nil, err
	}
	ms, err := queryInt(r, "timeout_ms", 10_000)
	if err != nil {
		return nil, err
	}
	limit := time.NewTimer(min(time.Duration(ms)*time.Millisecond, maxControlWait))
	defer limit.Stop()
	for {
		s.mu.Lock()
		list, waiting, changed := []holdView{}, 0, s.changed
		for _, h := range s.holds {
			list = append(list, holdView{ID: h.id, Operation: h.operation, Point: h.point, Waiting: h.waiting})
			waiting += h.waiting
		}
		s.mu.Unlock()
		if waiting >= want {
			return list, nil
		}
		select {
		case <-changed:
		case <-limit.C:
			return nil, errNotHeld
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-s.closed:
			return nil, errNotHeld
		}
	}
}

func queryInt(r *http.Request, key string, otherwise int) (int, error) {
	text := r.URL.Query().Get(key)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s: %q is no number", key, text)
	}
	return n, nil
}

// releaseHolds releases the hold with the id, or all if it is "".
func (s *Simulator) releaseHolds(r *http.Request, id string) error {
	action := r.URL.Query().Get("action")
	switch action {
	case "":
		action = Continue
	case Continue, Discard:
	default:
		return fmt.Errorf("action: %q is neither continue nor discard", action)
	}
	s.mu.Lock()
	var release []*Hold
	for _, h := range s.holds {
		if id == "" || strconv.Itoa(h.id) == id {
			release = append(release, h)
		}
	}
	s.mu.Unlock()
	if id != "" && len(release) == 0 {
		return errNoHold
	}
	for _, h := range release {
		s.Release(h, action)
	}
	return nil
}
