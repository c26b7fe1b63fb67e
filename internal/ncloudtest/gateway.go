package ncloudtest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
)

// A call is one request on its way through the simulator.
type call struct {
	operation string
	r         *http.Request
	tag       string
	body      []byte
	fault     *Fault
}

func (c *call) faulty(k Kind) bool { return c.fault != nil && c.fault.Kind == k }

// A refusal is an error of the service, in its own words.
type refusal struct {
	code, msg string
}

// A Service is one of the services behind the gateway. Each has a host of its
// own; see [Simulator.Only].
type Service string

// The services.
const (
	PrivateCA          Service = "privateca"
	CertificateManager Service = "certificatemanager"
	GlobalDNS          Service = "globaldns"
)

// A reply is what a service says, as it goes over the wire.
type reply struct {
	status int
	body   []byte
	kind   string // Content-Type; "": none, nor a body
	origin string // x-ncp-apigw-response-origin
}

// route is one operation; its handler runs with the simulator locked.
type route struct {
	method, path, operation string
	service                 Service
	handle                  func(*Simulator, *call) reply
}

func routes() []route {
	return slices.Concat(privateCARoutes(), certManagerRoutes(), globalDNSRoutes())
}

func privateCARoutes() []route {
	const ca, cert = "/api/v1/ca/{caTag}", "/api/v1/ca/{caTag}/cert"
	list := []struct {
		method, path, operation string
		handle                  func(*Simulator, *call) (any, *refusal)
	}{
		{"POST", cert + "/sign", "signEndCsr", (*Simulator).signEndCsr},
		{"POST", cert, "issueEndCert", (*Simulator).issueEndCert},
		{"GET", cert + "/{serialNo}", "getEndCert", (*Simulator).getEndCert},
		{"GET", cert, "getEndCertList", (*Simulator).getEndCertList},
		{"POST", cert + "/{serialNo}/revoke", "revokeEndCert", (*Simulator).revokeEndCert},
		{"POST", "/api/v1/ca", "createCa", (*Simulator).createCa},
		{"POST", ca + "/activate", "activateSubCa", (*Simulator).activateSubCa},
		{"GET", ca, "getCa", (*Simulator).getCa},
		{"GET", "/api/v1/ca", "getCaList", (*Simulator).getCaList},
		{"PUT", ca, "updateCa", (*Simulator).updateCa},
		{"DELETE", ca, "deleteCa", (*Simulator).deleteCa},
		{"GET", ca + "/sub/csr", "getSubCsr", (*Simulator).getSubCsr},
		{"POST", ca + "/sub/sign", "signSubCsr", (*Simulator).signSubCsr},
		{"GET", ca + "/chain", "getCaChain", (*Simulator).getCaChain},
		{"POST", ca + "/trim", "trimCa", (*Simulator).trimCa},
		{"GET", ca + "/crl", "getCaCrl", (*Simulator).getCaCrl},
		{"GET", ca + "/crl/config", "getCrlConfig", (*Simulator).getCrlConfig},
		{"PUT", ca + "/crl/config", "updateCrlConfig", (*Simulator).updateCrlConfig},
		{"POST", ca + "/crl/rotate", "rotateCrl", (*Simulator).rotateCrl},
		{"PUT", ca + "/urls", "createOcsp", (*Simulator).createOcsp},
		{"DELETE", ca + "/urls", "deleteOcsp", (*Simulator).deleteOcsp},
		{"POST", ca + "/users", "addCaUser", (*Simulator).addCaUser},
		{"DELETE", ca + "/users/{idNo}", "deleteCaUser", (*Simulator).deleteCaUser},
		{"GET", ca + "/users", "getCaUserList", (*Simulator).getCaUserList},
	}
	var routes []route
	for _, x := range list {
		routes = append(routes, route{x.method, x.path, x.operation, PrivateCA, func(s *Simulator, c *call) reply {
			data, no := x.handle(s, c)
			return s.privateCAReply(data, no)
		}})
	}
	return routes
}

func operations() []string {
	var names []string
	for _, r := range routes() {
		names = append(names, r.operation)
	}
	return names
}

// newMux routes one service's calls, or all services' for "". The standard
// library's mux will not do: it finds two paths of Certificate Manager too alike.
func (s *Simulator) newMux(only Service) *mux.Router {
	router := mux.NewRouter()
	for _, rt := range routes() {
		if only != "" && only != rt.service {
			continue
		}
		router.HandleFunc(rt.path, func(w http.ResponseWriter, r *http.Request) {
			for k, v := range mux.Vars(r) {
				r.SetPathValue(k, v)
			}
			s.serveRoute(w, r, rt)
		}).Methods(rt.method)
	}
	unknown := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.gatewayError(w, http.StatusNotFound, 300, "Not Found Exception", "URL not found.")
	})
	router.NotFoundHandler, router.MethodNotAllowedHandler = unknown, unknown
	return router
}

const maxBody = 1 << 20

// ServeHTTP is the gateway of all services at one host: it finds the operation,
// checks the signature, and calls the service unless a fault or a hold is in
// the way.
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.serve(s.mux, w, r) }

// Only is the gateway as one service's host shows it; another service's URLs
// are unknown there.
func (s *Simulator) Only(service Service) http.Handler {
	router := s.newMux(service)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(router, w, r) })
}

func (s *Simulator) serve(router *mux.Router, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("x-ncp-trace-id", strconv.FormatInt(s.traces.Add(1), 36))
	// The gateway's clock, not this machine's: clients compare it with theirs.
	w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
	router.ServeHTTP(w, r)
}

func (s *Simulator) serveRoute(w http.ResponseWriter, r *http.Request, rt route) {
	s.mu.Lock()
	s.calls[rt.operation]++
	s.applyLate(false)
	s.mu.Unlock()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			s.gatewayError(w, http.StatusRequestEntityTooLarge, 430, "Request Entity Too Large", "")
		}
		return
	}
	if details := s.unauthentic(r); details != "" {
		s.mu.Lock()
		s.rejected++
		s.mu.Unlock()
		s.gatewayError(w, http.StatusUnauthorized, 200, "Authentication Failed", details)
		return
	}
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		s.gatewayError(w, http.StatusBadRequest, 100, "Bad Request Exception", "Content-Type is missing.")
		return
	}
	s.violations[rt.service].request(r, body)

	s.mu.Lock()
	c := &call{operation: rt.operation, r: r, tag: r.PathValue("caTag"), body: body, fault: s.takeFault(rt.operation)}
	s.mu.Unlock()
	if !s.beforeApplying(w, c, rt) {
		return
	}
	if !s.pass(rt.operation, Before) {
		drop(w)
		return
	}
	if rt.service == CertificateManager {
		s.checkOnCall(r.Context())
	}
	answer := s.apply(c, rt)
	if !s.pass(rt.operation, After) {
		drop(w)
		return
	}
	s.answer(w, c, answer)
}

// apply runs the operation and words its answer.
func (s *Simulator) apply(c *call, rt route) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applyLocked(c, rt)
}

func (s *Simulator) applyLocked(c *call, rt route) reply {
	s.applied[rt.operation]++
	answer := rt.handle(s, c)
	if rt.service != CertificateManager || s.behaviour.CM.documented() {
		s.violations[rt.service].response(c.r, c.body, answer)
	}
	return answer
}

const jsonKind = "application/json"

// jsonReply writes v; what cannot be written is a mistake of the simulator.
func jsonReply(status int, v any) reply {
	body, err := json.Marshal(v)
	if err != nil {
		return reply{status: http.StatusInternalServerError, kind: "text/plain", body: []byte(err.Error())}
	}
	return reply{status: status, kind: jsonKind, body: body}
}

// privateCAReply is the envelope of Private CA.
func (s *Simulator) privateCAReply(data any, no *refusal) reply {
	envelope := struct {
		Code string `json:"code"`
		Msg  string `json:"msg"`
		Data any    `json:"data"`
	}{"SUCCESS", "Success", data}
	status := http.StatusOK
	if no != nil {
		envelope.Code, envelope.Msg, envelope.Data = no.code, no.msg, nil
		status = s.refusalStatus(no.code)
		if s.behaviour.ErrorCode == "dash" {
			envelope.Code = "-"
		}
		if s.behaviour.ErrorLanguage == "ko" {
			envelope.Msg = "요청을 처리할 수 없습니다."
		}
	}
	return jsonReply(status, envelope)
}

func (s *Simulator) refusalStatus(code string) int {
	switch s.behaviour.ErrorStatus {
	case "ok":
		return http.StatusOK
	case "by-code":
		switch code {
		case "UNAUTHORIZED":
			return http.StatusUnauthorized
		case "FORBIDDEN", "NOT_AUTHORIZED_ACTION":
			return http.StatusForbidden
		case "UNPROCESSABLE_ENTITY", "EXCEED_EXPIRY_DATE", "INVALID_CSR":
			return http.StatusUnprocessableEntity
		}
	}
	if code == "INTERNAL_SERVER_ERROR" {
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

// beforeApplying meets the faults that come before the service; false means
// that the call has ended.
func (s *Simulator) beforeApplying(w http.ResponseWriter, c *call, rt route) bool {
	if c.fault == nil {
		return true
	}
	f := c.fault
	switch f.Kind {
	case Latency:
		s.sleep(f.delay())
	case Status:
		s.sleep(f.delay())
		s.forced(w, f)
		return false
	case Throttle:
		if f.RetryAfter != "" {
			w.Header().Set("Retry-After", f.RetryAfter)
		}
		s.gatewayError(w, http.StatusTooManyRequests, 410, "Throttle Limited", "")
		return false
	case DropBefore:
		s.sleep(f.delay())
		drop(w)
		return false
	case ApplyLate:
		l := lateCall{apply: func() { s.applyLocked(c, rt) }}
		if f.DelayMS > 0 {
			l.due = s.now().Add(f.delay())
		}
		s.mu.Lock()
		s.late = append(s.late, l)
		s.mu.Unlock()
		s.gatewayError(w, http.StatusGatewayTimeout, 510, "Endpoint Timeout", "")
		return false
	}
	return true
}

func (s *Simulator) forced(w http.ResponseWriter, f *Fault) {
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	write(w, f.Status, []byte(f.Body))
}

// answer sends what the service said, or less than that.
func (s *Simulator) answer(w http.ResponseWriter, c *call, a reply) {
	if c.fault == nil {
		send(w, a)
		return
	}
	f, half := c.fault, a
	half.body = a.body[:len(a.body)/2]
	switch f.Kind {
	case DropAfter:
		s.sleep(f.delay())
		drop(w)
	case TimeoutAfter:
		s.sleep(f.delay())
		if f.Status != 0 {
			s.forced(w, f)
			return
		}
		s.gatewayError(w, http.StatusGatewayTimeout, 510, "Endpoint Timeout", "")
	case SlowBody:
		w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
		send(w, half)
		_ = http.NewResponseController(w).Flush()
		s.sleep(f.delay())
		_, _ = w.Write(a.body[len(half.body):])
	case MalformedBody:
		if f.Body == "" {
			f.Body = `{"code":"SUCCESS","msg":"Success","data":{"certificate":[17}}`
		}
		write(w, a.status, []byte(f.Body))
	case TruncatedBody:
		w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
		send(w, half)
		_ = http.NewResponseController(w).Flush()
		drop(w)
	default:
		send(w, a)
	}
}

func send(w http.ResponseWriter, a reply) {
	if a.kind != "" {
		w.Header().Set("Content-Type", a.kind)
	}
	if a.origin != "" {
		w.Header().Set("x-ncp-apigw-response-origin", a.origin)
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the client may be gone
}

func write(w http.ResponseWriter, status int, body []byte) {
	send(w, reply{status: status, kind: jsonKind, body: body})
}

// gatewayError answers in the gateway's own words (NCP API guide, common errors).
func (s *Simulator) gatewayError(w http.ResponseWriter, status, code int, message, details string) {
	s.mu.Lock()
	number := s.behaviour.GatewayCodeNumber
	s.mu.Unlock()
	e := map[string]any{"errorCode": strconv.Itoa(code), "message": message}
	if number {
		e["errorCode"] = code
	}
	if details != "" {
		e["details"] = details
	}
	body, err := json.Marshal(map[string]any{"error": e})
	if err != nil {
		body = nil
	}
	write(w, status, body)
}

// unauthentic checks the signature, version 2, and says in the gateway's words
// what is wrong, "" if nothing is.
func (s *Simulator) unauthentic(r *http.Request) string {
	stamp, key, sig := r.Header.Get("x-ncp-apigw-timestamp"), r.Header.Get("x-ncp-iam-access-key"), r.Header.Get("x-ncp-apigw-signature-v2")
	if stamp == "" || key == "" || sig == "" {
		return "Authentication information are missing."
	}
	const invalid = "Invalid authentication information."
	ms, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || s.now().Sub(time.UnixMilli(ms)).Abs() >= 5*time.Minute {
		return invalid
	}
	mac := hmac.New(sha256.New, []byte(s.secretKey))
	fmt.Fprintf(mac, "%s %s\n%s\n%s", r.Method, r.RequestURI, stamp, s.accessKey)
	want := base64.StdEncoding.EncodeToString(mac.Sum(nil))
	if key != s.accessKey || !hmac.Equal([]byte(sig), []byte(want)) {
		return invalid
	}
	return ""
}

// decode reads a JSON body into v.
func (c *call) decode(v any) *refusal {
	if len(c.body) == 0 {
		return &refusal{"INVALID_REQUEST", "The request body is missing."}
	}
	if err := json.Unmarshal(c.body, v); err != nil {
		return &refusal{"INVALID_REQUEST", "Invalid request."}
	}
	return nil
}

// page cuts one page out of a list of n and says how many pages there are.
func (s *Simulator) page(c *call, n int) (from, to, current, total int, no *refusal) {
	size := s.behaviour.PageSize
	total = max(1, (n+size-1)/size)
	current = 1
	if q := c.r.URL.Query(); q.Has("pageNo") && !s.behaviour.PageIgnored {
		p, err := strconv.Atoi(q.Get("pageNo"))
		if err != nil || p < 1 || p > total && s.behaviour.PagePastEnd == "error" {
			return 0, 0, 0, 0, &refusal{"INVALID_INPUT_PAGENUMBBER", "Invalid page no value."}
		}
		current = p
	}
	from = min((current-1)*size, n)
	return from, min(from+size, n), current, total, nil
}

// num and millis write numbers and times in the form that the behaviour wants.
func (s *Simulator) num(n int64) any {
	if s.behaviour.NumbersAsStrings {
		return strconv.FormatInt(n, 10)
	}
	return n
}

func (s *Simulator) millis(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	if s.behaviour.DatesAsStrings {
		return strconv.FormatInt(t.UnixMilli(), 10)
	}
	return t.UnixMilli()
}

// periodDays reads "1" to "3650", or MAX as 0.
func periodDays(p string) (int, bool) {
	if strings.EqualFold(p, "max") {
		return 0, true
	}
	n, err := strconv.Atoi(p)
	if err != nil || n < 1 || n > 3650 || strconv.Itoa(n) != p {
		return 0, false
	}
	return n, true
}
