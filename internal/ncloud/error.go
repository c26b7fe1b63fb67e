package ncloud

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Applied says whether a failed call had its effect on the service.
type Applied int

const (
	// Unknown is the zero value: whoever forgets to decide stays on the safe side.
	Unknown Applied = iota
	// No: the call was not sent, or it was refused before it did anything.
	No
	// Yes: the service did it.
	Yes
)

// String is for logs.
func (a Applied) String() string {
	switch a {
	case No:
		return "no"
	case Yes:
		return "yes"
	default:
		return "unknown"
	}
}

// An Outcome is what became of a call, in a word; it labels the metrics.
type Outcome string

// Outcomes of a call.
const (
	OutcomeOK           Outcome = "ok"
	OutcomeRefused      Outcome = "refused"      // the service or gateway said no
	OutcomeUnauthorized Outcome = "unauthorized" // keys, signature, clock or permission
	OutcomeThrottled    Outcome = "throttled"    // 429, or still within its Retry-After
	OutcomeUnavailable  Outcome = "unavailable"  // 5xx
	OutcomeTimeout      Outcome = "timeout"      // our deadline ran out
	OutcomeCanceled     Outcome = "canceled"     // the caller gave up
	OutcomeBroken       Outcome = "broken"       // connection lost, or an answer that makes no sense
	OutcomeUnreachable  Outcome = "unreachable"  // no connection, nothing sent
	OutcomeOpen         Outcome = "breaker_open" // the circuit breaker held it back
)

// An Error is a call that failed. Its text carries no key and no signature.
type Error struct {
	Operation string
	Outcome   Outcome
	Applied   Applied
	Status    int           // HTTP status; 0 if there was no answer
	Gateway   bool          // the error is the gateway's own, not the service's
	Code      string        // gateway errorCode or service code
	Message   string        // the server's words, for logs only: translated and free to change
	TraceID   string        // x-ncp-trace-id, which NCP's support asks for
	Retry     time.Duration // how long to wait before another try; 0: nothing was said
	Hint      string        // what the operator should look at, if we can tell
	Err       error         // cause on our side, if any
}

// Error is a line for logs.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ncloud %s: %s", e.Operation, e.Outcome)
	if e.Status != 0 {
		fmt.Fprintf(&b, ", HTTP %d", e.Status)
	}
	if e.Code != "" {
		if e.Gateway {
			b.WriteString(", gateway")
		}
		fmt.Fprintf(&b, " code %s", e.Code)
	}
	if e.Message != "" {
		fmt.Fprintf(&b, ": %s", e.Message)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	fmt.Fprintf(&b, " [applied: %s", e.Applied)
	if e.TraceID != "" {
		fmt.Fprintf(&b, ", trace %s", e.TraceID)
	}
	b.WriteString("]")
	return b.String()
}

// Unwrap gives the cause on our side, for instance context.DeadlineExceeded.
func (e *Error) Unwrap() error { return e.Err }

// repeatable reports whether a read that failed so may succeed soon.
func (e *Error) repeatable() bool {
	switch e.Outcome {
	case OutcomeThrottled, OutcomeUnavailable, OutcomeBroken, OutcomeUnreachable:
		return true
	}
	return false
}

// serviceError is how the gateway and the services word an error, all forms
// joined: gateway and Global DNS {"error":{...}}, Private CA
// {"code","msg","data"}, older services {"responseError":{...}}, and
// Certificate Manager {"returnCode","returnMessage"}.
type serviceError struct {
	Error *struct {
		ErrorCode Text `json:"errorCode"`
		Message   Text `json:"message"`
		Details   Text `json:"details"`
	} `json:"error"`
	Code          Text `json:"code"`
	Msg           Text `json:"msg"`
	ResponseError *struct {
		ReturnCode    Text `json:"returnCode"`
		ReturnMessage Text `json:"returnMessage"`
	} `json:"responseError"`
	ReturnCode    Text `json:"returnCode"`
	ReturnMessage Text `json:"returnMessage"`
}

// describe fills in code and message from an error body, whatever its shape.
func (e *Error) describe(body []byte) {
	var s serviceError
	if json.Unmarshal(body, &s) != nil {
		return
	}
	switch {
	case s.Error != nil:
		e.Gateway = true
		e.Code, e.Message = string(s.Error.ErrorCode), string(s.Error.Message)
		if s.Error.Details != "" {
			e.Message = strings.TrimSpace(e.Message + ": " + string(s.Error.Details))
		}
	case s.ResponseError != nil:
		e.Code, e.Message = string(s.ResponseError.ReturnCode), string(s.ResponseError.ReturnMessage)
	case s.Code != "" || s.Msg != "":
		e.Code, e.Message = string(s.Code), string(s.Msg)
	case s.ReturnCode != "" || s.ReturnMessage != "":
		e.Code, e.Message = string(s.ReturnCode), string(s.ReturnMessage)
	}
}

// answered makes the error of an answer with the status, nil if it is 2xx
// and holds no gateway error.
func answered(status int, body []byte) *Error {
	e := &Error{Status: status}
	if status/100 != 2 {
		e.describe(body)
		e.Outcome, e.Applied = judge(status)
		// The engine behind the service failed: 400 or not, how far it got is
		// not known (the service's codes, from NCP's client).
		if !e.Gateway && doubtful(e.Code) && e.Applied == No {
			e.Applied = Unknown
		}
		return e
	}
	if !bytes.Contains(body, []byte(`"errorCode"`)) {
		return nil
	}
	// Some gateways answer their own errors with HTTP 200: the code decides.
	e.describe(body)
	if !e.Gateway {
		return nil
	}
	switch e.Code {
	case "100", "300", "430":
		e.Outcome, e.Applied = OutcomeRefused, No
	case "200", "210", "401":
		e.Outcome, e.Applied = OutcomeUnauthorized, No
	case "400", "410", "420":
		e.Outcome, e.Applied = OutcomeThrottled, No
	default:
		e.Outcome, e.Applied = OutcomeUnavailable, Unknown
	}
	return e
}

// judge reads outcome and effect off an HTTP status. Only statuses that NCP
// documents as refusals, or that cannot mean anything else, prove that nothing
// was done.
func judge(status int) (Outcome, Applied) {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return OutcomeUnauthorized, No
	case http.StatusTooManyRequests:
		return OutcomeThrottled, No // refused before the service is called
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusNotAcceptable, http.StatusRequestEntityTooLarge,
		http.StatusRequestURITooLong, http.StatusUnsupportedMediaType,
		http.StatusUnprocessableEntity:
		return OutcomeRefused, No
	}
	switch status / 100 {
	case 4:
		return OutcomeRefused, Unknown
	case 5:
		return OutcomeUnavailable, Unknown
	}
	return OutcomeBroken, Unknown // 1xx and 3xx are nothing this API knows
}

// doubtful reports a service code that says the service failed rather than refused.
func doubtful(code string) bool {
	return code == "INTERNAL_SERVER_ERROR" || strings.HasPrefix(code, "FAIL_")
}

// maxText bounds what a server's words may take in a log line.
const maxText = 400

// clean makes server text fit for one log line.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
	s = strings.TrimSpace(s)
	if r := []rune(s); len(r) > maxText {
		s = string(r[:maxText]) + "..."
	}
	return s
}

// maxRetryAfter bounds what a server may ask for, so that a slip of its does
// not stop the bridge for good.
const maxRetryAfter = time.Hour

// retryAfter reads a Retry-After header (RFC 9110, Section 10.2.3); 0 if there
// is none to obey.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v == "" {
		return 0
	}
	var d time.Duration
	if n, err := strconv.ParseInt(v, 10, 64); err == nil {
		d = time.Duration(min(n, int64(maxRetryAfter/time.Second))) * time.Second
	} else if at, err := http.ParseTime(v); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}
