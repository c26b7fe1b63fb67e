package worker

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/acme-bridge/acme-bridge/acme"
)

// Every single call to the store fails once in its turn, before it is done or
// with its answer lost: the order ends as it would have without, and never with
// a second certificate.
func TestAnyCallToTheStoreMayFail(t *testing.T) {
	notSent := func(context.Context, int, *acme.IssueRequest) (*acme.Issuance, error) {
		return nil, &acme.NotSentError{Err: errLost}
	}
	refused := func(context.Context, int, *acme.IssueRequest) (*acme.Issuance, error) {
		return nil, acme.Problemf(acme.BadCSR, "refused")
	}
	for name, tt := range map[string]struct {
		submit func(*stage) submission
		find   func(*stage) submission
		want   acme.Status
	}{
		"issued":           {submit: func(*stage) submission { return nil }, want: acme.StatusValid},
		"applied and lost": {submit: func(s *stage) submission { return s.ca.first(1, s.ca.applyAndLose) }, want: acme.StatusValid},
		"lost":             {submit: func(s *stage) submission { return s.ca.first(1, lose) }, want: acme.StatusValid},
		"not sent":         {submit: func(s *stage) submission { return s.ca.first(1, notSent) }, want: acme.StatusValid},
		"refused":          {submit: func(*stage) submission { return refused }, want: acme.StatusInvalid},
		"found at the third search": {
			submit: func(s *stage) submission { return s.ca.first(1, s.ca.applyAndLose) },
			find: func(s *stage) submission {
				return func(ctx context.Context, n int, req *acme.IssueRequest) (*acme.Issuance, error) {
					if n < 3 {
						return nil, errLost
					}
					return s.ca.honestFind(ctx, req)
				}
			},
			want: acme.StatusValid,
		},
		"quarantined": {
			submit: func(s *stage) submission {
				return func(_ context.Context, _ int, req *acme.IssueRequest) (*acme.Issuance, error) {
					return s.ca.issue(req, func(c *x509.Certificate) { c.DNSNames = []string{"other.example"} }), nil
				}
			},
			want: acme.StatusInvalid,
		},
	} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, answer lost %v", name, lost), func(t *testing.T) {
				failEachCall(t, lost, func(s *stage) {
					s.ca.onSubmit = tt.submit(s)
					if tt.find != nil {
						s.ca.onFind = tt.find(s)
					}
					s.start()
					got := s.awaitStatus(s.finalized("a.example"), tt.want)
					if tt.want == acme.StatusValid {
						s.expectCertificate(got)
					} else if got.Certificate != nil || got.Error == nil {
						t.Errorf("invalid order has certificate %v and error %v", got.Certificate, got.Error)
					}
				})
			})
		}
	}
}

func TestAnyCallToTheStoreMayFailWhileValidating(t *testing.T) {
	for want, problem := range map[acme.Status]*acme.Problem{
		acme.StatusReady:   nil,
		acme.StatusInvalid: acme.Problemf(acme.DNS, "no such name"),
	} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, answer lost %v", want, lost), func(t *testing.T) {
				failEachCall(t, lost, func(s *stage) {
					s.checker.onValidate = func(context.Context, *acme.Validation) error {
						if problem != nil {
							return problem
						}
						return nil
					}
					s.start()
					s.awaitStatus(s.responded("a.example", "b.example"), want)
				})
			})
		}
	}
}

// failEachCall runs a test with the first call to the store failing, then with
// the second, and so on until there are no more. Looks at the queue are not
// counted while nothing is due.
func failEachCall(t *testing.T, lost bool, test func(*stage)) {
	for k, more := int32(1), true; more; k++ {
		bubble(t, func(s *stage) {
			var calls atomic.Int32
			s.store.fault = func(method string, done bool, _ *acme.Order) error {
				if method != "ClaimDue" && done == lost && calls.Add(1) == k {
					return fmt.Errorf("%s: %w", method, acme.ErrUnavailable)
				}
				return nil
			}
			test(s)
			more = calls.Load() >= k
		})
		if t.Failed() {
			t.Fatalf("this was with call %d failing", k)
		}
	}
}
