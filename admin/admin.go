// Package admin serves the listener for operators: /healthz, /readyz, /metrics,
// POST /api/reload, and under /api/v1 what the commands of acme-bridge ask for:
// orders with their story, and domains that a CA validates ahead of orders.
//
// It reaches for nothing itself: what readiness depends on, the metrics, the
// reload, orders and domains are given to [New].
package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/acme-bridge/acme-bridge/acme"
)

// ReloadTimeout bounds one reload.
const ReloadTimeout = 30 * time.Second

// Options are what a handler is made of. A reload that changes them makes a new
// handler and puts it in the place of the old one.
type Options struct {
	// Token is the bearer token, or "" if there is none: then what needs one is
	// refused.
	Token string
	// Loopback says that the listener can only be reached from this machine, so
	// that metrics need no token; see [IsLoopback].
	Loopback bool
	// Gatherer has the metrics.
	Gatherer prometheus.Gatherer
	// Needed are the parts that must all be usable for the server to be ready:
	// the store, and its own certificate where it has one.
	Needed []Part
	// Backends, of which at least one must be usable for that.
	Backends []Part
	// Reload loads the configuration again. It returns the keys that changed and
	// will have their effect after a restart only; an error says that the old
	// configuration stays in force. An error with Unwrap() []error is told part
	// by part. Calls may overlap.
	Reload func(context.Context) (restart []string, err error)
	// Orders reads an order; nil: there are none to be seen.
	Orders func(ctx context.Context, id string) (*acme.Order, error)
	// Domains are those of the backends that validate domains ahead of orders.
	Domains map[string]Domains
	Now     func() time.Time
	Log     *slog.Logger
}

type handler struct {
	Options
	token [sha256.Size]byte
	parts []*part // the needed ones first
}

// New returns the handler for the listener.
func New(o Options) http.Handler {
	h := &handler{Options: o, token: sha256.Sum256([]byte(o.Token))}
	for _, p := range o.Needed {
		h.parts = append(h.parts, newPart(p, o.Now))
	}
	for _, b := range o.Backends {
		h.parts = append(h.parts, newPart(b, o.Now))
	}
	metrics := promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{
		ErrorLog:            promLog{o.Log},
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
		EnableOpenMetrics:   true,
	})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", h.health)
	mux.HandleFunc("GET /readyz", h.ready)
	mux.Handle("GET /metrics", h.openOnLoopback(metrics))
	mux.Handle("POST /api/reload", h.withToken(http.HandlerFunc(h.reload)))
	mux.Handle("GET /api/v1/orders/{id}", h.withToken(http.HandlerFunc(h.order)))
	h.handleDomains(mux)
	return secured(mux)
}

// NewServer returns a server with limits that suit the handler.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      ReloadTimeout + 10*time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// IsLoopback tells whether a listener's address is reachable from this machine
// only.
func IsLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}

// openOnLoopback needs a token unless the request comes from this machine and
// names it: a web page whose DNS name was made to resolve to loopback must not
// read metrics through a browser here (DNS rebinding).
func (h *handler) openOnLoopback(next http.Handler) http.Handler {
	guarded := h.withToken(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.Loopback && namesThisMachine(r.Host) {
			next.ServeHTTP(w, r)
			return
		}
		guarded.ServeHTTP(w, r)
	})
}

func namesThisMachine(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	_, err = netip.ParseAddr(host)
	return err == nil || strings.EqualFold(host, "localhost")
}

func (h *handler) withToken(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.Token == "" {
			h.fail(w, http.StatusForbidden, "this needs a token, and none is configured: set admin.token")
			return
		}
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			w.Header().Set("WWW-Authenticate", `Bearer realm="acme-bridge admin"`)
			h.fail(w, http.StatusUnauthorized, "send the admin token: Authorization: Bearer TOKEN")
			return
		}
		// Hashes, so that the time taken tells nothing of the length either.
		sent := sha256.Sum256([]byte(strings.TrimSpace(token)))
		if subtle.ConstantTimeCompare(sent[:], h.token[:]) != 1 {
			h.Log.WarnContext(r.Context(), "admin token refused", "remote", r.RemoteAddr, "path", r.URL.Path)
			w.Header().Set("WWW-Authenticate", `Bearer realm="acme-bridge admin", error="invalid_token"`)
			h.fail(w, http.StatusUnauthorized, "this is not the admin token")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// health answers as long as the process can.
func (h *handler) health(w http.ResponseWriter, r *http.Request) {
	h.write(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (h *handler) reload(w http.ResponseWriter, r *http.Request) {
	type answer struct {
		Reloaded bool     `json:"reloaded"`
		Restart  []string `json:"restart_needed,omitempty"`
		Errors   []string `json:"errors,omitempty"`
	}
	// A reload that has begun is not given up because the caller went away.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), ReloadTimeout)
	defer cancel()
	restart, err := h.Reload(ctx)
	if err != nil {
		h.write(w, http.StatusUnprocessableEntity, answer{Errors: single(err)})
		return
	}
	h.write(w, http.StatusOK, answer{Reloaded: true, Restart: restart})
}

// single returns the texts of the errors that err joins, or its own.
func single(err error) []string {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return []string{err.Error()}
	}
	var texts []string
	for _, e := range joined.Unwrap() {
		texts = append(texts, e.Error())
	}
	return texts
}

func (h *handler) fail(w http.ResponseWriter, status int, text string) {
	h.write(w, status, map[string]string{"error": text})
}

func (h *handler) write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		h.Log.Debug("admin answer was not taken", "err", err)
	}
}

// promLog is where promhttp reports metrics that cannot be gathered.
type promLog struct{ log *slog.Logger }

func (p promLog) Println(v ...any) {
	var err error
	for _, x := range v {
		if e, ok := x.(error); ok {
			err = e
		}
	}
	p.log.Error("metrics not gathered", "err", err)
}
