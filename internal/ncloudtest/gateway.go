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
	"strconv"
	"strings"
	"time"
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

// route is one operation; its handler runs with the simulator locked.
type route struct {
	method, path, operation string
	handle                  func(*Simulator, *call) (any, *refusal)
}

func routes() []route {
	const ca, cert = "/api/v1/ca/{caTag}", "/api/v1/ca/{caTag}/cert"
	return []route{
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
}

func operations() []string {
	var names []string
	for _, r := range routes() {
		names = append(names, r.operation)
	}
	return names
}

func (s *Simulator) newMux() *http.ServeMux {
	mux := http.NewServeMux()
	for _, rt := range routes() {
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) {
			s.serveRoute(w, r, rt)
		})
	}
	return mux
}

const maxBody = 1 << 20

// ServeHTTP is the gateway: it finds the operation, checks the signature, and
// calls the service unless a fault or a hold is in the way.
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("x-ncp-trace-id", strconv.FormatInt(s.traces.Add(1), 36))
	// The gateway's clock, not this machine's: clients compare it with theirs.
	w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
	if _, pattern := s.mux.Handler(r); pattern == "" {
		s.gatewayError(w, http.StatusNotFound, 300, "Not Found Exception", "URL not found.")
		return
	}
	s.mux.ServeHTTP(w, r)
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
	s.violations.request(r, body)

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
	status, answer := s.apply(c, rt)
	if !s.pass(rt.operation, After) {
		drop(w)
		return
	}
	s.answer(w, c, status, answer)
}

// apply runs the operation and words its answer.
func (s *Simulator) apply(c *call, rt route) (int, []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applyLocked(c, rt)
}

func (s *Simulator) applyLocked(c *call, rt route) (int, []byte) {
	s.applied[rt.operation]++
	data, no := rt.handle(s, c)
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
	answer, err := json.Marshal(envelope)
	if err != nil {
		return http.StatusInternalServerError, []byte(`{"code":"INTERNAL_SERVER_ERROR","msg":"` + err.Error() + `"}`)
	}
	s.violations.response(c.r, c.body, status, answer)
	return status, answer
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
func (s *Simulator) answer(w http.ResponseWriter, c *call, status int, body []byte) {
	if c.fault == nil {
		write(w, status, body)
		return
	}
	f := c.fault
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
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		write(w, status, body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		s.sleep(f.delay())
		_, _ = w.Write(body[len(body)/2:])
	case MalformedBody:
		if f.Body == "" {
			f.Body = `{"code":"SUCCESS","msg":"Success","data":{"certificate":[17}}`
		}
		write(w, status, []byte(f.Body))
	case TruncatedBody:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		write(w, status, body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		drop(w)
	default:
		write(w, status, body)
	}
}

func write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
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
