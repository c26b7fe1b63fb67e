package certmanager

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

func TestNewRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		set  func(*Config)
		want string
	}{
		"Cloud Basic":             {func(c *Config) { c.CertificateType = "NCP_CLOUD_BASIC" }, "NCP makes the key"},
		"Global Edge":             {func(c *Config) { c.CertificateType = "NCP_GED_01" }, "Global Edge"},
		"a private type":          {func(c *Config) { c.CertificateType = "NCP_PRIVATE_SSL" }, "privateca"},
		"an external type":        {func(c *Config) { c.CertificateType = "EXTERNAL" }, "not issued by NCP"},
		"an unknown type":         {func(c *Config) { c.CertificateType = "NCP_FREE_DV_01" }, "neither"},
		"OV without organization": {func(c *Config) { c.CertificateType = TypeOV }, "organization_no"},
		"DV with an organization": {func(c *Config) { c.OrganizationNo = 1 }, "organization_no"},
		"the government zone":     {func(c *Config) { c.BaseURL = "https://certificatemanager.apigw.gov-ntruss.com" }, "government"},
		"the financial zone":      {func(c *Config) { c.BaseURL = "https://certificatemanager.apigw.fin-ntruss.com" }, "financial"},
		"e-mail validation":       {func(c *Config) { c.ValidationMethod = "E" }, "ended in 2026"},
		"another validation":      {func(c *Config) { c.ValidationMethod = "F" }, "validation_method"},
		"another renewal":         {func(c *Config) { c.Renewal = "never" }, "renewal"},
		"another key compromise":  {func(c *Config) { c.KeyCompromise = "ignore" }, "key_compromise"},
		"a short DCV timeout":     {func(c *Config) { c.DCVTimeout = time.Second }, "dcv_timeout"},
		"a long DCV timeout":      {func(c *Config) { c.DCVTimeout = 8 * 24 * time.Hour }, "dcv_timeout"},
		"roots that are no PEM":   {func(c *Config) { c.RootsPEM = []byte("no") }, "roots_file"},
		"no client":               {func(c *Config) { c.Client = nil }, "client"},
	} {
		client, err := ncloud.New(ncloud.Config{BaseURL: "http://127.0.0.1:1", Credentials: ncloud.Credentials{AccessKey: "a", SecretKey: "s"}})
		if err != nil {
			t.Fatal(err)
		}
		cfg := Config{Backend: "public", Client: client, BaseURL: DefaultBaseURL}
		if _, err := New(cfg); err != nil {
			t.Fatal(err)
		}
		tt.set(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

func TestCheck(t *testing.T) {
	for name, tt := range map[string]struct {
		set      func(*rig)
		error    string
		warnings string
	}{
		"all is well":         {func(r *rig) { r.domain("example.com", DomainValid) }, "", ""},
		"a sub account's key": {func(r *rig) { r.change(func(b *ncloudtest.CMBehaviour) { b.SubAccount = true }) }, "wants the main account's", ""},
		"wrong keys": {func(r *rig) {
			r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 401, Operation: "listCertificateTypes", Body: `{"error":{"errorCode":"200","message":"Authentication Failed"}}`})
		}, "are refused", ""},
		"no permission": {func(r *rig) {
			r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 401, Operation: "listCertificateTypes", Body: `{"error":{"errorCode":"210","message":"Permission Denied"}}`})
		}, "lack the permission", ""},
		"another service's URL": {func(r *rig) {
			r.inject(ncloudtest.Fault{Kind: ncloudtest.Status, Status: 404, Operation: "listCertificateTypes", Body: `{"error":{"errorCode":"300","message":"Not Found Exception"}}`})
		}, "base_url is not", ""},
		"no domain":              {func(*rig) {}, "no domain is VALID", ""},
		"a pending domain":       {func(r *rig) { r.domain("example.com", DomainPending) }, "no domain is VALID", "example.com is PENDING"},
		"a type not for us":      {func(r *rig) { r.domain("example.com", DomainValid); r.cfg.CertificateType = "NCP_PAID_DV_02" }, "certificate_type", ""},
		"a validation that ends": {func(r *rig) { r.domain("example.com", DomainValid); r.clock.Advance(180 * 24 * time.Hour) }, "", "ends at"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			tt.set(r)
			report := r.Check(t.Context())
			if errs := strings.Join(report.Errors, "\n"); report.OK() != (tt.error == "") || !strings.Contains(errs, tt.error) {
				t.Errorf("got errors %q, want %q", errs, tt.error)
			}
			if got := strings.Join(report.Warnings, "\n"); !strings.Contains(got, tt.warnings) || tt.warnings == "" && got != "" {
				t.Errorf("got warnings %q, want %q", got, tt.warnings)
			}
		})
	}
}

func TestSubAccount(t *testing.T) {
	r := newRig(t, nil)
	if err := r.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.change(func(b *ncloudtest.CMBehaviour) { b.SubAccount = true })
	if err := r.Ready(t.Context()); err != nil {
		t.Errorf("asked again within a minute: %v", err)
	}
	r.clock.Advance(2 * time.Minute)
	if err := r.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "sub account's") {
		t.Errorf("got %v", err)
	}
	e := r.run(r.request("o1", newKey(t), "a.example.com"))
	if e.problem == nil || strings.Contains(e.problem.Detail, "account") || !strings.Contains(r.log.String(), "level=ERROR") || !strings.Contains(r.log.String(), "sub account's") {
		t.Errorf("got %+v\n%s", e.problem, r.log)
	}
}

func TestARowWithoutItsRecordIsLogged(t *testing.T) {
	r := newRig(t, withPublisher)
	r.change(func(b *ncloudtest.CMBehaviour) { b.ValueField = "" })
	e := r.run(r.request("o1", newKey(t), "a.example.com"))
	if e.problem == nil || !strings.Contains(r.log.String(), "lacks state, name or value") || !strings.Contains(r.log.String(), "txtid") {
		t.Errorf("got %+v\n%s", e, r.log)
	}
}

func TestRegisterExternal(t *testing.T) {
	var bodies []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, r.ContentLength)
		if _, err := r.Body.Read(b); err != nil && err.Error() != "EOF" {
			t.Error(err)
		}
		bodies = append(bodies, r.URL.Path+" "+string(b))
		answer := `{"returnCode":"2100","returnMessage":"publicKeyCertificate is missing"}`
		if strings.Contains(string(b), "publicKeyCertificate") {
			answer = `{"returnCode":"0","returnMessage":"Success","totalRows":1,"sslCertificateList":[{"certificateNo":"77"}]}`
		}
		if _, err := w.Write([]byte(answer)); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	client, err := ncloud.New(ncloud.Config{BaseURL: srv.URL, Credentials: ncloud.Credentials{AccessKey: "access", SecretKey: "secret"}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	x := External{Name: "shop", No: 77, Certificate: "cert", Chain: "chain", PrivateKey: "key"}
	if no, err := RegisterExternal(t.Context(), client, x); err != nil || no != 77 {
		t.Errorf("got %d, %v", no, err)
	}
	if len(bodies) != 2 || strings.Contains(bodies[0], "publicKeyCertificate") || !strings.Contains(bodies[1], `"certificateNo":77`) || !strings.Contains(bodies[1], "certificateBody") {
		t.Errorf("got %q", bodies)
	}
	if _, err := CreateExternal(t.Context(), client, x); err == nil {
		t.Error("API 1.0 replaced a certificate")
	}
	x.No = 0
	if no, err := CreateExternal(t.Context(), client, x); err != nil || no != 77 || !strings.HasPrefix(bodies[2], "/api/v1/certificate/withExternal") {
		t.Errorf("got %d, %v, %q", no, err, bodies)
	}
}
