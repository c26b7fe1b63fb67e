package integration

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// What goes wrong at the CA, and what the order must come to. The backend's
// deadline is 2 s.
var faultCases = []struct {
	name   string
	faults []fault
	status string // of the order, at last
	issued int64  // certificates the CA has made for its key
	reason string // type of the problem, if invalid
	shared bool   // the CA is not exclusive
}{
	{name: "slow, but in time", faults: []fault{{Kind: "latency", DelayMS: 1000}}, status: acme.StatusValid, issued: 1},
	{name: "answered after the deadline", faults: []fault{{Kind: "latency", DelayMS: 3500}}, status: acme.StatusValid, issued: 1},
	{name: "answered after the deadline, CA shared", faults: []fault{{Kind: "latency", DelayMS: 3500}}, status: acme.StatusValid, issued: 1, shared: true},
	{name: "throttled", faults: []fault{{Kind: "throttle", Count: 2, RetryAfter: "1"}}, status: acme.StatusValid, issued: 1},
	{name: "throttled without a time", faults: []fault{{Kind: "throttle", Count: 2}}, status: acme.StatusValid, issued: 1},
	{name: "dropped before applying", faults: []fault{{Kind: "drop-before"}}, status: acme.StatusValid, issued: 1},
	{name: "dropped before applying, CA shared", faults: []fault{{Kind: "drop-before"}}, status: acme.StatusValid, issued: 1, shared: true},
	{name: "dropped before applying, three times", faults: []fault{{Kind: "drop-before", Count: 3}}, status: acme.StatusValid, issued: 1},
	{name: "applied and dropped", faults: []fault{{Kind: "drop-after"}}, status: acme.StatusValid, issued: 1},
	{name: "applied and dropped, CA shared", faults: []fault{{Kind: "drop-after"}}, status: acme.StatusValid, issued: 1, shared: true},
	{name: "applied and answered 504", faults: []fault{{Kind: "timeout-after"}}, status: acme.StatusValid, issued: 1},
	{name: "answered 504 and applied later", faults: []fault{{Kind: "apply-late", DelayMS: 3000}}, status: acme.StatusValid, issued: 1},
	{name: "answered 504 and applied later, CA shared", faults: []fault{{Kind: "apply-late", DelayMS: 3000}}, status: acme.StatusValid, issued: 1, shared: true},
	{name: "answered 500", faults: []fault{{Kind: "status", Status: 500, Body: "oops"}}, status: acme.StatusValid, issued: 1},
	{name: "answered 502 in HTML", faults: []fault{{Kind: "status", Status: 502, Body: "<html>Bad Gateway</html>"}}, status: acme.StatusValid, issued: 1},
	{name: "slow body, in time", faults: []fault{{Kind: "slow-body", DelayMS: 1000}}, status: acme.StatusValid, issued: 1},
	{name: "slow body, beyond the deadline", faults: []fault{{Kind: "slow-body", DelayMS: 3500}}, status: acme.StatusValid, issued: 1},
	{name: "malformed body", faults: []fault{{Kind: "malformed-body"}}, status: acme.StatusValid, issued: 1},
	{name: "empty JSON", faults: []fault{{Kind: "malformed-body", Body: "{}"}}, status: acme.StatusValid, issued: 1},
	{name: "truncated body", faults: []fault{{Kind: "truncated-body"}}, status: acme.StatusValid, issued: 1},
	{name: "stale certificate", faults: []fault{{Kind: "stale-certificate"}}, status: acme.StatusValid, issued: 1},
	{name: "stale certificate, CA shared", faults: []fault{{Kind: "stale-certificate"}}, status: acme.StatusValid, issued: 1, shared: true},
	{name: "applied and dropped, the count lags", faults: []fault{{Kind: "late-count", DelayMS: 2000}, {Kind: "drop-after"}}, status: acme.StatusValid, issued: 1},
	{name: "applied and dropped, the list lags", faults: []fault{{Kind: "late-list", DelayMS: 3000}, {Kind: "drop-after"}}, status: acme.StatusValid, issued: 1, shared: true},
	{name: "another key", faults: []fault{{Kind: "wrong-key"}}, status: acme.StatusInvalid, reason: "serverInternal"},
	{name: "a name left out", faults: []fault{{Kind: "drop-names"}}, status: acme.StatusInvalid, issued: 1, reason: "serverInternal"},
	{name: "a name added", faults: []fault{{Kind: "add-name"}}, status: acme.StatusInvalid, issued: 1, reason: "serverInternal"},
	{name: "half the lifetime", faults: []fault{{Kind: "short-lifetime"}}, status: acme.StatusInvalid, issued: 1, reason: "serverInternal"},
	{name: "our credentials refused", faults: []fault{{Kind: "status", Status: 401, Body: `{"error":{"errorCode":"200","message":"Authentication Failed"}}`}}, status: acme.StatusInvalid, reason: "serverInternal"},
	{name: "the quota used up", faults: []fault{{Kind: "status", Status: 400, Body: `{"code":"EXCEED_SIGNING_COUNT","data":"The maximum number of issuances has been exceeded."}`}}, status: acme.StatusInvalid, reason: "rateLimited"},
}

func TestWhateverTheCADoesAnOrderIsIssuedOnceOrInvalidWithAReason(t *testing.T) {
	t.Parallel()
	for i, tt := range faultCases {
		// Stores take turns; what faults do is no matter of the store.
		store := []string{bolt, redisType}[i%2]
		t.Run(tt.name+" "+store, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, plan{store: store, backend: privateCA, troubled: true, change: func(c tree) {
				if tt.shared {
					c["backends"].(tree)["ca"].(tree)["exclusive"] = false
				}
			}})
			c, ctx := w.newClient(w.server.directory()), deadline(t, 90*time.Second)
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			flow := func(status, what string) *result {
				t.Helper()
				r, err := c.obtain(ctx, what+"."+zone, "www."+what+"."+zone)
				if err != nil {
					t.Fatal(err)
				}
				w.checkResult(r, status)
				return r
			}
			before := flow(acme.StatusValid, "before")
			for _, f := range tt.faults {
				f.Operation = "signEndCsr"
				w.sim.inject(f)
			}
			r := flow(tt.status, "fault")
			if reason := r.order.Error; reason != nil {
				if got, want := reason.ProblemType, "urn:ietf:params:acme:error:"+tt.reason; got != want {
					t.Errorf("the reason is %s (%s), want %s", got, reason.Detail, want)
				}
			}
			w.checkIssued(r, tt.issued)
			after := flow(acme.StatusValid, "after") // nothing stays broken
			w.checkIssued(before, 1)
			w.checkIssued(after, 1)
			if got := w.sim.counters().MostForOneKey; got > 1 {
				t.Errorf("%d certificates for one key", got)
			}
		})
	}
}

// A quarantined certificate must not come out by any door: neither by the order,
// nor by the URL that it would have had.
func TestAQuarantinedCertificateIsNeverHandedOut(t *testing.T) {
	t.Parallel()
	for _, store := range []string{bolt, redisType} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, plan{store: store, backend: privateCA, troubled: true})
			c, ctx := w.newClient(w.server.directory()), deadline(t, 60*time.Second)
			if err := c.register(ctx); err != nil {
				t.Fatal(err)
			}
			good, err := c.obtain(ctx, "good."+zone)
			if err != nil {
				t.Fatal(err)
			}
			w.sim.inject(fault{Kind: "add-name", Operation: "signEndCsr"})
			bad, err := c.obtain(ctx, "bad."+zone)
			if err != nil {
				t.Fatal(err)
			}
			w.checkResult(bad, acme.StatusInvalid)
			// The URLs differ by the order's or the certificate's ID only.
			var quarantined *x509.Certificate
			var list []struct{ PEM string }
			w.sim.control(http.MethodGet, "certificates", nil, &list)
			for _, issued := range list {
				if block, _ := pem.Decode([]byte(issued.PEM)); block != nil {
					if cert := parseDER(t, [][]byte{block.Bytes})[0]; strings.Contains(strings.Join(cert.DNSNames, " "), "intruder") {
						quarantined = cert
					}
				}
			}
			if quarantined == nil {
				t.Fatal("the simulator shows no certificate with the added name")
			}
			for _, id := range []string{lastPart(bad.order.URI), certificateID(quarantined)} {
				url := strings.TrimSuffix(good.order.CertURL, lastPart(good.order.CertURL)) + id
				if chain, err := c.acme.FetchCert(ctx, url, true); err == nil {
					t.Errorf("%s hands out %d certificates", url, len(chain))
				}
			}
			// Told apart from a URL of another form, by the good one's.
			if id := certificateID(good.chain[0]); !strings.HasSuffix(good.order.CertURL, id) && !strings.HasSuffix(good.order.CertURL, lastPart(good.order.URI)) {
				t.Errorf("the certificate's URL %s has neither its ID %s nor its order's: this test looks at the wrong place", good.order.CertURL, id)
			}
		})
	}
}

func lastPart(url string) string { return url[strings.LastIndex(url, "/")+1:] }

func TestAnOutageOfTheCADelaysOrdersAndLosesNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{store: redisType, backend: privateCA})
	c, ctx := w.newClient(w.server.directory()), deadline(t, 120*time.Second)
	if err := c.register(ctx); err != nil {
		t.Fatal(err)
	}
	w.sim.inject(fault{Kind: "drop-before", Count: -1})
	flows := w.flows(ctx, c, 5)
	eventually(t, 30*time.Second, "readiness tells of the outage", func() error {
		status, answer, err := w.server.readiness()
		if err != nil || status == http.StatusServiceUnavailable && strings.Contains(answer, "no backend") {
			return err
		}
		return fmt.Errorf("%d %s", status, answer)
	})
	w.sim.control(http.MethodDelete, "faults", nil, nil)
	flows()
	w.server.awaitReady()
}
