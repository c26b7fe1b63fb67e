package server

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/gorilla/mux"

	"github.com/acme-bridge/acme-bridge/acme"
)

// The names of the routes, from which all URLs are built.
const (
	routeDirectory   = "directory"
	routeNewNonce    = "new-nonce"
	routeNewAccount  = "new-account"
	routeNewOrder    = "new-order"
	routeKeyChange   = "key-change"
	routeRevokeCert  = "revoke-cert"
	routeAccount     = "account"
	routeOrders      = "orders"
	routeOrder       = "order"
	routeFinalize    = "finalize"
	routeAuthz       = "authz"
	routeChallenge   = "challenge"
	routeCertificate = "certificate"
)

// namedPrefix is how the routes of a directory other than the default one are
// named in the router: with this before the name.
const namedPrefix = "tenant:"

// routes builds the router. Each resource exists twice: at the top for the
// default directory, and below /NAME for any other.
func (s *Server) routes() *mux.Router {
	// Encoded paths are matched as they stand, uncleaned: a URL has one spelling.
	r := mux.NewRouter().UseEncodedPath().SkipClean(true)
	id := "[0-9a-z]{28}"
	for _, route := range []struct {
		name, path string
		get        func(http.ResponseWriter, *http.Request, *Directory) error
		post       signedRoute
	}{
		{routeChallenge, "/challenge/{order:" + id + "}/{authz:[0-9]{1,3}}/{type:[a-z0-9-]+}", nil, signedRoute{handle: s.challenge}},
		{routeAuthz, "/authz/{order:" + id + "}/{authz:[0-9]{1,3}}", nil, signedRoute{handle: s.authorization}},
		{routeFinalize, "/order/{order:" + id + "}/finalize", nil, signedRoute{handle: s.finalize, lookup: s.lookupFinalize}},
		{routeOrder, "/order/{order:" + id + "}", nil, signedRoute{handle: s.order, readOnly: true}},
		{routeCertificate, "/certificate/{order:" + id + "}", nil, signedRoute{handle: s.certificate, readOnly: true}},
		{routeNewOrder, "/new-order", nil, signedRoute{handle: s.newOrder, lookup: s.lookupNewOrder}},
		{routeNewNonce, "/new-nonce", s.newNonce, signedRoute{handle: s.newNonceSigned, readOnly: true}},
		{routeDirectory, "/directory", s.directory, signedRoute{handle: s.directorySigned, readOnly: true}},
		{routeNewAccount, "/new-account", nil, signedRoute{handle: s.newAccount, key: embeddedKey}},
		{routeAccount, "/account/{account:" + id + "}", nil, signedRoute{handle: s.account}},
		{routeOrders, "/account/{account:" + id + "}/orders", nil, signedRoute{handle: s.orders, readOnly: true}},
		{routeKeyChange, "/key-change", nil, signedRoute{handle: s.keyChange}},
		{routeRevokeCert, "/revoke-cert", nil, signedRoute{handle: s.revokeCert, key: anyKey}},
	} {
		h := s.resource(route.name, route.get, route.post)
		r.Handle(route.path, h).Name(route.name)
		r.Handle("/{directory:[a-z0-9-]+}"+route.path, h).Name(namedPrefix + route.name)
	}
	r.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, acme.ErrNotFound)
	})
	return r
}

// resource makes the handler of one resource: it finds the directory and tells
// the methods apart (RFC 8555, Section 6.3: GET on what wants POST-as-GET is 405).
func (s *Server) resource(name string, get func(http.ResponseWriter, *http.Request, *Directory) error, post signedRoute) http.Handler {
	allow := "POST, OPTIONS"
	if get != nil {
		allow = "GET, HEAD, POST, OPTIONS"
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rw, ok := w.(*responseWriter); ok {
			rw.route = name
		}
		policy := s.policy.Load()
		dir := directoryOf(policy, r)
		if dir == nil {
			s.fail(w, r, acme.ErrNotFound)
			return
		}
		if name != routeDirectory {
			w.Header().Set("Link", "<"+s.url(dir, routeDirectory)+`>;rel="index"`)
		}
		var err error
		switch {
		case r.Method == http.MethodPost:
			err = s.signed(w, r, policy, dir, post)
		case get != nil && (r.Method == http.MethodGet || r.Method == http.MethodHead):
			err = get(w, r, dir)
		case r.Method == http.MethodOptions:
			w.Header().Set("Access-Control-Allow-Methods", strings.TrimSuffix(allow, ", OPTIONS"))
			w.Header().Set("Access-Control-Allow-Headers", "Content-Type")
			w.Header().Set("Access-Control-Max-Age", "86400")
			w.Header().Set("Allow", allow)
			w.WriteHeader(http.StatusNoContent)
		default:
			w.Header().Set("Allow", allow)
			err = acme.Problemf(acme.Malformed, "this resource answers %s only", allow).WithStatus(http.StatusMethodNotAllowed)
		}
		if err != nil {
			s.fail(w, r, err)
		}
	})
}

// directoryOf returns the directory of a routed request, or nil. The default
// one has no second spelling under its own name.
func directoryOf(policy *Policy, r *http.Request) *Directory {
	name, ok := mux.Vars(r)["directory"]
	if !ok {
		name = DefaultDirectory
	} else if name == DefaultDirectory {
		return nil
	}
	return policy.Directories[name]
}

// url builds the absolute URL of a resource from its route; vars are pairs as
// for [mux.Route.URLPath].
func (s *Server) url(dir *Directory, route string, vars ...string) string {
	if dir.Name != DefaultDirectory {
		route, vars = namedPrefix+route, append([]string{"directory", dir.Name}, vars...)
	}
	u, err := s.router.Get(route).URLPath(vars...)
	if err != nil {
		// Only an identifier that no code of ours made can fail to fit.
		s.Log.Error("URL cannot be built", "route", route, "err", err)
		return s.ExternalURL
	}
	return s.ExternalURL + u.Path
}

func (s *Server) accountURL(dir *Directory, id string) string {
	return s.url(dir, routeAccount, "account", id)
}

func (s *Server) orderURL(dir *Directory, id string) string {
	return s.url(dir, routeOrder, "order", id)
}

func (s *Server) authzURL(dir *Directory, order string, i int) string {
	return s.url(dir, routeAuthz, "order", order, "authz", strconv.Itoa(i))
}

func (s *Server) challengeURL(dir *Directory, order string, i int, t acme.ChallengeType) string {
	return s.url(dir, routeChallenge, "order", order, "authz", strconv.Itoa(i), "type", string(t))
}
