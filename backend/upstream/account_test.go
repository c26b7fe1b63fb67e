package upstream

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

const eabKeyID = "eab-key-id-1"

func eabKey() string { return base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("k", 32))) }

// once makes the server want an external account binding, which it takes once.
func (r *rig) once(lose *bool) (bound func() int) {
	used, n := false, 0
	r.setFault(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if kind(q) != "new-account" {
			next.ServeHTTP(w, q)
			return
		}
		p := payload(r.t, peek(r.t, q))
		if p["onlyReturnExisting"] == true {
			next.ServeHTTP(w, q)
			return
		}
		r.mu.Lock()
		binding, _ := p["externalAccountBinding"].(map[string]any)
		good := binding != nil && !used
		if good {
			used, n = true, n+1
		}
		lost := lose != nil && *lose
		if lost {
			*lose = false
		}
		r.mu.Unlock()
		switch {
		case !good:
			reply(w, q, next, http.StatusForbidden, nil, problemBody("unauthorized", "the binding is used up"))
		case lost:
			drop(q, next)
		default:
			next.ServeHTTP(w, q)
		}
	})
	return func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return n
	}
}

func withEAB(c *Config) { c.EABKeyID, c.EABKey = eabKeyID, eabKey()+"=" }

func TestReplicasRegisterOneAccount(t *testing.T) {
	r := newRig(t, rigOptions{})
	bound := r.once(nil)
	urls := make([]string, 4)
	var group sync.WaitGroup
	for n := range urls {
		i := r.issuer(ModePre, withEAB)
		group.Go(func() {
			c, err := i.open(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			urls[n] = string(c.KID)
		})
	}
	group.Wait()
	for _, u := range urls {
		if u == "" || u != urls[0] {
			t.Errorf("replicas have accounts %v, want one", urls)
			break
		}
	}
	if bound() != 1 {
		t.Errorf("the binding was used %d times", bound())
	}
}

// The account was made and the answer lost, or the process died before it saved
// the URL: the key is in the store, and the server knows it.
func TestRegistrationIsTakenUpAfterACrash(t *testing.T) {
	r := newRig(t, rigOptions{})
	lose := true
	bound := r.once(&lose)
	i := r.issuer(ModePre, withEAB)
	first, err := i.open(t.Context())
	if err != nil { // the same call may have noticed already
		t.Logf("first call: %v", err)
	}
	second, err := r.issuer(ModePre, withEAB).open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if first != nil && first.KID != second.KID {
		t.Errorf("accounts %s and %s, want one", first.KID, second.KID)
	}
	if bound() != 1 || lose {
		t.Errorf("the binding was used %d times", bound())
	}
}

// failingRecords lose the saving of the account's URL.
type failingRecords struct {
	acme.Records
	puts int
}

func (f *failingRecords) PutRecord(ctx context.Context, name string, data []byte, version int64) error {
	if f.puts++; f.puts == 2 {
		return acme.ErrUnavailable
	}
	return f.Records.PutRecord(ctx, name, data, version)
}

func TestAccountWhoseURLWasNotSavedIsFoundByItsKey(t *testing.T) {
	r := newRig(t, rigOptions{})
	bound := r.once(nil)
	i := r.issuer(ModePre, withEAB, func(c *Config) { c.Records = &failingRecords{Records: c.Records} })
	if _, err := i.Submit(t.Context(), newRequest(t, "one", "a.example")); !errors.Is(err, acme.ErrUnavailable) {
		t.Fatalf("Submit: %v, want the store's error", err)
	}
	if _, err := r.issuer(ModePre, withEAB).open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if bound() != 1 {
		t.Errorf("the binding was used %d times", bound())
	}
}

func TestUsedUpBindingIsAnErrorWithoutSecrets(t *testing.T) {
	r := newRig(t, rigOptions{})
	r.once(nil)
	if _, err := r.issuer(ModePre, withEAB).open(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := r.issuer(ModePre, withEAB, func(c *Config) { c.Records = openStore(t) })
	_, err := other.Submit(t.Context(), newRequest(t, "one", "a.example"))
	if _, ok := errors.AsType[*acme.NotSentError](err); !ok || !strings.Contains(err.Error(), "used up") {
		t.Errorf("Submit: %v, want not sent, with the reason", err)
	}
	if said := r.logs.String() + err.Error(); strings.Contains(said, eabKey()) || !strings.Contains(said, "cannot be registered") {
		t.Errorf("log and error hold the key, or do not tell:\n%s", said)
	}
}

// The server has forgotten the account: its key is registered again.
func TestForgottenAccountIsRegisteredAgain(t *testing.T) {
	r := newRig(t, rigOptions{})
	i := r.issuer(ModeDNS01)
	if _, err := i.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	name := i.accountName()
	data, version, err := r.store.Record(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	var k map[string]any
	if err := json.Unmarshal(data, &k); err != nil {
		t.Fatal(err)
	}
	good := k["url"]
	k["url"] = r.url + "/account/" + strings.Repeat("0", 28)
	if data, err = json.Marshal(k); err != nil {
		t.Fatal(err)
	}
	if err := r.store.PutRecord(t.Context(), name, data, version); err != nil {
		t.Fatal(err)
	}
	i = r.issuer(ModeDNS01)
	_, err = i.Submit(t.Context(), newRequest(t, "one", "a.example"))
	if _, ok := errors.AsType[*acme.NotSentError](err); !ok {
		t.Fatalf("Submit: %v, want not sent", err)
	}
	r.obtain(i, newRequest(t, "one", "a.example"))
	if c, err := i.open(t.Context()); err != nil || string(c.KID) != good {
		t.Errorf("account %v, %v, want %v", c.KID, err, good)
	}
}

func TestTermsOfServiceNeedAgreement(t *testing.T) {
	r := newRig(t, rigOptions{terms: "https://upstream.example/terms"})
	i := r.issuer(ModePre)
	if _, err := i.Submit(t.Context(), newRequest(t, "one", "a.example")); err == nil || !strings.Contains(err.Error(), "agree_terms: the server wants agreement to https://upstream.example/terms") {
		t.Errorf("Submit: %v, want to be told of the terms", err)
	}
	if err := i.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "agree_terms") {
		t.Errorf("Ready: %v, want to be told of the terms", err)
	}
	i = r.issuer(ModePre, func(c *Config) { c.AgreeTerms, c.Contact = true, []string{"mailto:a@upstream.example"} })
	r.submit(i, newRequest(t, "one", "a.example"))
}

func TestCheck(t *testing.T) {
	r := newRig(t, rigOptions{})
	i := r.issuer(ModeDNS01)
	report := i.Check(t.Context())
	if !report.OK() || report.Account != "" || len(report.Warnings) != 1 || r.called("new-account") != 0 {
		t.Errorf("before use: %+v, %d calls of newAccount; want one warning and none", report, r.called("new-account"))
	}
	if err := i.Ready(t.Context()); err != nil {
		t.Errorf("Ready: %v", err)
	}
	if _, err := i.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if report := i.Check(t.Context()); !report.OK() || report.Account == "" || len(report.Warnings) != 0 {
		t.Errorf("after use: %+v, want an account and no warning", report)
	}
	for _, tt := range []struct {
		name, want string
		change     func(*Config)
	}{
		{"another profile", "profile: the server does not offer \"gold\"", func(c *Config) { c.Profile = "gold" }},
		{"no directory there", "directory: cannot be read", func(c *Config) { c.Directory += "/none" }},
		{"nobody there", "directory: cannot be read", func(c *Config) { c.Directory = "https://127.0.0.1:1/directory" }},
		{"another root", "directory: cannot be read", func(c *Config) { c.DirectoryRootsPEM = nil }},
	} {
		i := r.issuer(ModeDNS01, tt.change)
		report := i.Check(t.Context())
		if report.OK() || !strings.Contains(report.Errors[0], tt.want) {
			t.Errorf("%s: %+v, want %q", tt.name, report, tt.want)
		}
		if err := i.Ready(t.Context()); err == nil {
			t.Errorf("%s: ready", tt.name)
		}
	}
	if r.issuer(ModeDNS01, func(c *Config) { c.Profile = "web" }).Check(t.Context()).OK() != true {
		t.Error("the profile web is offered")
	}
}

func TestConfigSaysAllThatIsWrong(t *testing.T) {
	cfg := Config{
		Directory: "http://ca.example/directory", Mode: "http", EABKeyID: "x", EABKey: "not base64!", Contact: []string{"a@b"},
		Timeout: time.Hour, OrderTimeout: time.Second, RootsPEM: []byte("none"),
	}
	_, err := New(cfg)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"directory: neither https", "mode: \"http\" is neither", "eab_key: not base64url", "contact:", "timeout: 1h", "order_timeout: 1s", "roots_file:", "no records"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "not base64!") {
		t.Errorf("the error holds the key: %v", err)
	}
	for dir, good := range map[string]bool{
		"https://ca.example/d": true, "http://127.0.0.1:14000/dir": true, "http://[::1]/dir": true, "http://localhost/d": true,
		"http://127.0.0.1.example/d": false, "https://user@ca.example/": false, "ca.example": false, "": false, "file:///etc": false,
	} {
		if err := checkDirectory(dir); (err == nil) != good {
			t.Errorf("directory %q: %v", dir, err)
		}
	}
}
