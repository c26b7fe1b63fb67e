package acme

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSection6_7_ProblemOnTheWire(t *testing.T) {
	for _, tt := range []struct {
		name    string
		problem *Problem
		want    string
	}{
		{"a plain one", Problemf(BadNonce, "JWS has an invalid anti-replay nonce"),
			`{"type":"urn:ietf:params:acme:error:badNonce","detail":"JWS has an invalid anti-replay nonce","status":400}`},
		{"one with algorithms", &Problem{Type: BadSignatureAlgorithm, Status: 400, Algorithms: []string{"ES256", "EdDSA"}},
			`{"type":"urn:ietf:params:acme:error:badSignatureAlgorithm","status":400,"algorithms":["ES256","EdDSA"]}`},
		{"one with an instance", &Problem{Type: UserActionRequired, Status: 403, Instance: "https://a.example/terms"},
			`{"type":"urn:ietf:params:acme:error:userActionRequired","status":403,"instance":"https://a.example/terms"}`},
		{"one of several", Combine("some identifiers were refused", []*Problem{
			Problemf(Malformed, "no good").For(dns("a_b")[0]), Problemf(RejectedIdentifier, "not ours").For(dns("b.example")[0])}),
			`{"type":"urn:ietf:params:acme:error:compound","detail":"some identifiers were refused","status":400,"subproblems":[` +
				`{"type":"urn:ietf:params:acme:error:malformed","detail":"no good","status":400,"identifier":{"type":"dns","value":"a_b"}},` +
				`{"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"not ours","status":400,"identifier":{"type":"dns","value":"b.example"}}]}`},
		{"one with all that is not for the body", Problemf(ServerInternal, "internal error").WithCause(errors.New("secret")).WithRetryAfter(time.Minute),
			`{"type":"urn:ietf:params:acme:error:serverInternal","detail":"internal error","status":500}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := marshal(t, tt.problem)
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			var back Problem
			if err := json.Unmarshal([]byte(got), &back); err != nil {
				t.Fatal(err)
			}
			want := *tt.problem
			want.Cause, want.RetryAfter, want.Location = nil, 0, ""
			if !reflect.DeepEqual(back, want) {
				t.Errorf("read back as %+v, want %+v", back, want)
			}
		})
	}
}

func TestProblemTypesThatAreNone(t *testing.T) {
	for _, text := range []string{"", "about:blank", "malformed", "urn:ietf:params:acme:error:", "URN:ietf:params:acme:error:malformed"} {
		var p Problem
		if err := json.Unmarshal(fmt.Appendf(nil, `{"type":%q}`, text), &p); err == nil {
			t.Errorf("%q was read as %q", text, p.Type)
		}
	}
}

func TestSection6_7_DefaultStatus(t *testing.T) {
	want := map[ProblemType]int{
		OrderNotReady: 403, Unauthorized: 403, UserActionRequired: 403, RateLimited: 429, ServerInternal: 500,
		AccountDoesNotExist: 400, AlreadyRevoked: 400, BadCSR: 400, BadNonce: 400, BadPublicKey: 400, BadRevocationReason: 400,
		BadSignatureAlgorithm: 400, Compound: 400, Connection: 400, DNS: 400, IncorrectResponse: 400, InvalidContact: 400,
		InvalidProfile: 400, Malformed: 400, RejectedIdentifier: 400, TLS: 400, UnsupportedContact: 400, UnsupportedIdentifier: 400,
	}
	for kind, status := range want {
		if got := Problemf(kind, "detail").Status; got != status {
			t.Errorf("%s has status %d, want %d", kind, got, status)
		}
	}
	if got := Problemf(Unauthorized, "detail").WithStatus(401).Status; got != 401 {
		t.Errorf("WithStatus(401) gave %d", got)
	}
}

func TestProblemIsAnErrorWithACause(t *testing.T) {
	p := Problemf(DNS, "lookup of %s failed", "a.example")
	if got, want := p.Error(), "dns: lookup of a.example failed"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	p.WithCause(io.ErrUnexpectedEOF)
	if got, want := p.Error(), "dns: lookup of a.example failed: unexpected EOF"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	if !errors.Is(p, io.ErrUnexpectedEOF) {
		t.Error("the cause is not found in the problem")
	}
}

func TestAsProblem(t *testing.T) {
	own := Problemf(BadCSR, "no good")
	for _, tt := range []struct {
		name   string
		err    error
		kind   ProblemType
		status int
		retry  bool
	}{
		{"a problem", own, BadCSR, 400, false},
		{"a wrapped problem", fmt.Errorf("finalize: %w", own), BadCSR, 400, false},
		{"one of several errors", errors.Join(io.EOF, own), BadCSR, 400, false},
		{"a problem caused by the store", Problemf(BadCSR, "no good").WithCause(ErrUnavailable), BadCSR, 400, false},
		{"not found", fmt.Errorf("read order: %w", ErrNotFound), Malformed, 404, false},
		{"the store away", fmt.Errorf("save order: %w", ErrUnavailable), ServerInternal, 503, true},
		{"too many writers", fmt.Errorf("save order: %w", ErrConflict), ServerInternal, 503, true},
		{"a deadline", context.DeadlineExceeded, ServerInternal, 500, false},
		{"anything else", errors.New("password=hunter2 at 10.0.0.1"), ServerInternal, 500, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := AsProblem(tt.err)
			if p.Type != tt.kind || p.Status != tt.status {
				t.Errorf("got %d %s, want %d %s", p.Status, p.Type, tt.status, tt.kind)
			}
			if (p.RetryAfter > 0) != tt.retry {
				t.Errorf("Retry-After is %s, wanted: %t", p.RetryAfter, tt.retry)
			}
			if tt.kind == ServerInternal && !errors.Is(p, tt.err) {
				t.Errorf("the cause %v is lost to the log", tt.err)
			}
			if text := marshal(t, p); strings.Contains(text, "hunter2") || strings.Contains(text, "save order") {
				t.Errorf("the client is told %s", text)
			}
		})
	}
	if AsProblem(fmt.Errorf("finalize: %w", own)) != own {
		t.Error("a wrapped problem is copied, and so its headers may be lost")
	}
}

func TestSection6_7_1_Combine(t *testing.T) {
	one := Problemf(DNS, "no TXT record").For(dns("a.example")[0])
	two := Problemf(DNS, "no TXT record").For(dns("b.example")[0])
	other := Problemf(Unauthorized, "wrong value").For(dns("c.example")[0])
	if got := Combine("nothing", nil); got != nil {
		t.Errorf("no problems combine to %v", got)
	}
	for _, tt := range []struct {
		name   string
		subs   []*Problem
		kind   ProblemType
		status int
		detail string
	}{
		{"one", []*Problem{one}, DNS, 400, "no TXT record"},
		{"one of a kind that is forbidden", []*Problem{other}, Unauthorized, 403, "wrong value"},
		{"two of a kind", []*Problem{one, two}, DNS, 400, "validation failed"},
		{"two kinds", []*Problem{one, other}, Compound, 400, "validation failed"},
		{"two kinds, the first twice", []*Problem{one, two, other}, Compound, 400, "validation failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Combine("validation failed", tt.subs)
			if got.Type != tt.kind || got.Status != tt.status || got.Detail != tt.detail {
				t.Errorf("got %d %s %q, want %d %s %q", got.Status, got.Type, got.Detail, tt.status, tt.kind, tt.detail)
			}
			if got.Identifier != nil {
				t.Errorf("the problem itself is about %v, and only subproblems may be", got.Identifier)
			}
			if !reflect.DeepEqual(got.Subproblems, tt.subs) {
				t.Errorf("subproblems are %v, want %v", got.Subproblems, tt.subs)
			}
		})
	}
}

func TestForCopiesTheIdentifier(t *testing.T) {
	id := dns("a.example")[0]
	p := Problemf(DNS, "detail").For(id)
	id.Value = "b.example"
	if got := p.Identifier.Value; got != "a.example" {
		t.Errorf("identifier became %s", got)
	}
}

func TestIssuerErrors(t *testing.T) {
	err := fmt.Errorf("sign: %w", &NotSentError{After: time.Second, Err: io.EOF})
	notSent, ok := errors.AsType[*NotSentError](err)
	if !ok || notSent.After != time.Second || !errors.Is(err, io.EOF) {
		t.Errorf("%v is not found as a NotSentError with its cause", err)
	}
	if got, want := (&LimitError{Scope: "new_orders_per_account"}).Error(), "limit new_orders_per_account reached"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
}
