package ncloud

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

var exampleKeys = Credentials{AccessKey: "ACCESSKEYEXAMPLE0001", SecretKey: "SecretKeyExample0000000000000000000001"}

const exampleMillis = 1764547200000

var signatureVectors = []struct{ method, path, query, want string }{
	{"GET", "/api/v1/ca", "1", "ajlKw0nWzNL3cp4VRel6e6y+xWERcMo9Li+Ls6hDOPY="},
	{"POST", "/api/v1/ca/a1b2c3d4-e5f6a7b8/cert/sign", "", "wPOMy5Q9VSkEK4rnvlNfAgHmAIzstC1BQdofwTzYydI="},
	{"POST", "/api/v1/ca/a1b2c3d4-e5f6a7b8/cert/0a:1b:2c:3d/revoke", "", "nF/DLq32mhXoj6M6OrSJebB9L855n+ii+tQJtGJLIwY="},
}

func TestSignatureOfVectors(t *testing.T) {
	for _, v := range signatureVectors {
		uri := v.path
		if v.query != "" {
			uri += "?pageNo=" + v.query
		}
		if got := exampleKeys.signature(v.method, uri, "1764547200000"); got != v.want {
			t.Errorf("%s %s: got %s, want %s", v.method, uri, got, v.want)
		}
	}
}

func TestRequestsOnTheWireCarryTheVectorsSignature(t *testing.T) {
	for _, v := range signatureVectors {
		var seen *http.Request
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen = r.Clone(context.Background())
		}))
		c := newClient(t, srv.URL, func(cfg *Config) {
			cfg.Now = func() time.Time { return time.UnixMilli(exampleMillis) }
		})
		r := Request{Operation: "x", Method: v.method, Path: v.path}
		if v.query != "" {
			r.Query = map[string][]string{"pageNo": {v.query}}
		}
		if err := c.Do(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		srv.Close()
		if strings.Contains(seen.RequestURI, "%") {
			t.Errorf("request line is escaped: %s", seen.RequestURI)
		}
		for name, want := range map[string]string{
			"x-ncp-apigw-signature-v2": v.want,
			"x-ncp-apigw-timestamp":    "1764547200000",
			"x-ncp-iam-access-key":     exampleKeys.AccessKey,
			"Content-Type":             "application/json",
			"Accept":                   "application/json",
		} {
			if got := seen.Header.Get(name); got != want {
				t.Errorf("%s %s: %s: got %q, want %q", v.method, v.path, name, got, want)
			}
		}
	}
}

func TestCredentialsDoNotPrint(t *testing.T) {
	cfg := Config{Credentials: exampleKeys}
	asJSON, err := json.Marshal(cfg.Credentials)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "credentials", exampleKeys)
	for _, got := range []string{
		fmt.Sprint(cfg), fmt.Sprintf("%+v", cfg), fmt.Sprintf("%#v", cfg.Credentials), string(asJSON), log.String(),
	} {
		if strings.Contains(got, "EXAMPLE") || strings.Contains(got, "Example") {
			t.Errorf("keys shown in %s", got)
		}
	}
}
