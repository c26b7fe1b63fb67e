package ncloudtest_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

func TestControlOverHTTP(t *testing.T) {
	b := start(t)
	srv := httptest.NewServer(b.Control())
	defer srv.Close()
	ask := func(method, path, body string, want int) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != want {
			t.Errorf("%s %s: got %d, want %d: %s", method, path, res.StatusCode, want, text)
		}
		return string(text)
	}

	ask("PATCH", "/control/behaviour", `{"page_size": 3}`, 200)
	if got := ask("GET", "/control/behaviour", "", 200); !strings.Contains(got, `"page_size":3`) || !strings.Contains(got, `"quota":30000`) {
		t.Errorf("behaviour: got %s", got)
	}
	ask("PATCH", "/control/behaviour", `{"page_size": 0}`, 400)
	ask("PATCH", "/control/behaviour", `{"pages": 1}`, 400)
	ask("POST", "/control/faults", `{"kind":"drop-after","operation":"signEndCsr","count":2}`, 200)
	ask("POST", "/control/faults", `{"kind":"rain"}`, 400)
	if got := ask("GET", "/control/faults", "", 200); !strings.Contains(got, "drop-after") {
		t.Errorf("faults: got %s", got)
	}
	ask("DELETE", "/control/faults", "", 200)

	ask("POST", "/control/holds", `{"operation":"signEndCsr","point":"before"}`, 200)
	ask("GET", "/control/holds?waiting=1&timeout_ms=1", "", 408)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.sign("held.example")
	}()
	if got := ask("GET", "/control/holds?waiting=1", "", 200); !strings.Contains(got, `"waiting":1`) {
		t.Errorf("holds: got %s", got)
	}
	ask("DELETE", "/control/holds?action=perhaps", "", 400)
	ask("DELETE", "/control/holds/77", "", 404)
	ask("DELETE", "/control/holds", "", 200)
	<-done

	ask("PATCH", "/control/ca", `{"status":"DEACTIVATED","signing_count":29999}`, 200)
	ask("PATCH", "/control/ca", `{"status":"SLEEPING"}`, 400)
	ask("PATCH", "/control/ca", `{"status":"ACTIVE"}`, 200)
	ask("POST", "/control/issue", `{"names":["other.example"]}`, 200)
	ask("POST", "/control/apply-late", "", 200)
	var c ncloudtest.Counters
	if err := json.Unmarshal([]byte(ask("GET", "/control/counters", "", 200)), &c); err != nil || c.Issued != 2 || c.MostForOneKey != 1 || c.Calls["signEndCsr"] != 1 {
		t.Errorf("counters: got %+v, %v", c, err)
	}
	var certs []ncloudtest.Certificate
	if err := json.Unmarshal([]byte(ask("GET", "/control/certificates", "", 200)), &certs); err != nil || len(certs) != 2 || certs[0].Names[0] != "held.example" {
		t.Errorf("certificates: got %+v, %v", certs, err)
	}
	if got := ask("GET", "/control/root.pem", "", 200); got != string(b.RootPEM()) {
		t.Errorf("root: got %s", got)
	}
}
