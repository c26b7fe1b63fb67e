package server

import (
	"net/http"

	"github.com/acme-bridge/acme-bridge/acme"
)

// directoryObject is the one resource whose URL clients are configured with
// (RFC 8555, Section 7.1.1). What does not work is not in it.
type directoryObject struct {
	NewNonce   string        `json:"newNonce"`
	NewAccount string        `json:"newAccount"`
	NewOrder   string        `json:"newOrder"`
	RevokeCert string        `json:"revokeCert"`
	KeyChange  string        `json:"keyChange"`
	Meta       directoryMeta `json:"meta"` // always there: a client stumbles over its absence
}

type directoryMeta struct {
	TermsOfService string            `json:"termsOfService,omitempty"`
	Website        string            `json:"website,omitempty"`
	Profiles       map[string]string `json:"profiles,omitempty"`
}

func (s *Server) directory(w http.ResponseWriter, _ *http.Request, dir *Directory) error {
	profiles := make(map[string]string, len(dir.Profiles))
	for name, p := range dir.Profiles {
		profiles[name] = p.Description
	}
	w.Header().Set("Cache-Control", "public, max-age=0, no-cache")
	return reply(w, http.StatusOK, directoryObject{
		NewNonce:   s.url(dir, routeNewNonce),
		NewAccount: s.url(dir, routeNewAccount),
		NewOrder:   s.url(dir, routeNewOrder),
		RevokeCert: s.url(dir, routeRevokeCert),
		KeyChange:  s.url(dir, routeKeyChange),
		Meta:       directoryMeta{TermsOfService: dir.TermsOfService, Website: dir.Website, Profiles: profiles},
	})
}

// directorySigned answers POST-as-GET, which must work here as well
// (RFC 8555, Section 6.3).
func (s *Server) directorySigned(w http.ResponseWriter, r *request) error {
	return s.directory(w, r.Request, r.dir)
}

// newNonce answers HEAD with 200 and GET with 204 (RFC 8555, Section 7.2).
func (s *Server) newNonce(w http.ResponseWriter, r *http.Request, _ *Directory) error {
	if err := s.setNonce(w, r); err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	status := http.StatusNoContent
	if r.Method == http.MethodHead {
		status = http.StatusOK
	}
	w.WriteHeader(status)
	return nil
}

func (s *Server) newNonceSigned(w http.ResponseWriter, r *request) error {
	return s.newNonce(w, r.Request, r.dir)
}

// profile finds the profile that an order names, or the default one.
func (d *Directory) profile(name string) (*acme.Profile, error) {
	if name == "" {
		name = d.DefaultProfile
	}
	p := d.Profiles[name]
	if p == nil {
		return nil, acme.Problemf(acme.InvalidProfile, "this directory offers no such profile; its meta.profiles lists those it does")
	}
	return p, nil
}
