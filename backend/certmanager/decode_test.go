package certmanager

import (
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

func TestEnvelope(t *testing.T) {
	for _, tt := range []struct {
		body string
		code string // of a refusal; "?": another error; "": none
	}{
		{`{"returnCode":"0"}`, ""},
		{`{"returnCode":0}`, ""},
		{`{"ReturnCode":"0","returnMessage":null}`, ""},
		{`{"returnCode":"2100","returnMessage":"missing"}`, "2100"},
		{`{"returnCode":1000}`, "1000"},
		{`{"returnMessage":"Success"}`, "?"},
		{`{"returnCode":null}`, "?"},
		{`{"returnCode":{}}`, "?"},
		{`[]`, "?"},
		{`null`, "?"},
		{``, "?"},
		{`<html>`, "?"},
	} {
		_, err := envelope([]byte(tt.body))
		refusal, refused := errors.AsType[*ncloud.Refusal](err)
		got := ""
		switch {
		case refused:
			got = refusal.Code
		case err != nil:
			got = "?"
		}
		if got != tt.code {
			t.Errorf("%s: got %q (%v), want %q", tt.body, got, err, tt.code)
		}
	}
}

func TestFQDN(t *testing.T) {
	for _, tt := range []struct{ record, domain, want string }{
		{"_x.a.example.com", "a.example.com", "_x.a.example.com"},
		{"_X.A.Example.com.", "a.example.com", "_x.a.example.com"},
		{"_x.example.com", "a.example.com", "_x.example.com"}, // of a parent
		{"_x", "a.example.com", "_x.a.example.com"},
		{"_x.a", "a.example.com", "_x.a.a.example.com"},
		{"@", "a.example.com", "a.example.com"},
		{"a.example.com", "a.example.com", "a.example.com"},
		{"_x.example.co.kr", "www.example.co.kr", "_x.example.co.kr"},
		{"_x.badexample.com", "example.com", "_x.badexample.com.example.com"},
		{"", "example.com", ""},
	} {
		if got := fqdn(tt.record, tt.domain); got != tt.want {
			t.Errorf("%q of %q: got %q, want %q", tt.record, tt.domain, got, tt.want)
		}
	}
}

func TestDates(t *testing.T) {
	want := time.Date(2026, 10, 20, 0, 0, 0, 0, time.UTC)
	for _, s := range []string{"2026-10-20T00:00:00Z", "2026-10-20T09:00:00+0900", "2026-10-20T09:00:00+09:00", "2026-10-20 09:00:00", "2026-10-20T09:00:00",
		"2026-10-20 09:00", "20261020090000", "2026/10/20 09:00:00", "1792454400000"} {
		if got := parseDate(s); !got.Equal(want) {
			t.Errorf("%s: got %s, want %s", s, got, want)
		}
	}
	for _, s := range []string{"", "soon", "0", "-1", "99999999999999999999", "0001-01-01"} {
		if got := parseDate(s); !got.IsZero() {
			t.Errorf("%s: got %s, want none", s, got)
		}
	}
}

func TestSerials(t *testing.T) {
	n := big.NewInt(0x0a1b2c)
	for _, s := range []string{"0A1B2C", "a1b2c", "00:0a:1b:2c", "0x0a1b2c", "662316"} {
		if !sameSerial(n, serialText(s)) {
			t.Errorf("%s is not %x", s, n)
		}
	}
	if sameSerial(new(big.Int), "") {
		t.Error("no serial number is one")
	}
}

// FuzzDecode feeds answers to every decoder: none may panic, or grow without
// bound, whatever the service sends.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"returnCode":"0","orders":[{"orderId":1,"certificates":[{"certificateNo":"7","statusCode":2}]}]}`,
		`{"returnCode":"0","sslCertificateList":[null,1,{"certificateNo":7.0,"certificateName":"ab-x","serialNumber":"00:0A"}]}`,
		`{"returnCode":"0","dnsVerificationList":[{"validSn":"91","validStatusCode":"VALID_STATUS_REG","txtName":"_x","txtVal":"v"}]}`,
		`{"returnCode":"0","domainVldList":[{"dmnId":5,"domainAddress":"Example.com.","validState":"valid","expireDate":"20270101"}]}`,
		`{"returnCode":"0","certificate":{"certificateNo":9}}`,
		`{"returnCode":"0","certificate":"-----BEGIN CERTIFICATE-----\r\nAA==\r\n-----END CERTIFICATE-----\r\n"}`,
		`{"returnCode":"26034","returnMessage":"?"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		o, err := envelope(body)
		if err != nil {
			return
		}
		decodeRequested(o)
		decodeChanges(o)
		if d := decodeDCV(o); d != nil {
			if name := fqdn(d.Name, "a.example.com"); name != strings.ToLower(name) && !strings.ContainsFunc(name, func(r rune) bool { return r > 127 }) {
				t.Errorf("record name %q", name)
			}
		}
		if rows, err := decodeOrders(o); err == nil {
			for n := range rows {
				match(rows[n:], &ticket{Name: rows[n].Name})
			}
		}
		if rows, err := decodeRows(o); err == nil && len(rows) > len(body) {
			t.Errorf("%d rows of %d bytes", len(rows), len(body))
		}
		if list, err := decodeDomains(o); err == nil && len(list) > len(body) {
			t.Errorf("%d domains of %d bytes", len(list), len(body))
		}
		if certs, err := parseCerts(o.text("certificate")); err == nil && len(certs) > maxChain {
			t.Errorf("%d certificates", len(certs))
		}
		if s := o.String(); len(s) > 8*maxRow {
			t.Errorf("a log line of %d bytes", len(s))
		}
		if list, err := unzip(body); err == nil && len(list) == 0 {
			t.Error("an archive without certificates")
		}
		if _, err := parseTicket(string(body)); err == nil && len(body) == 0 {
			t.Error("a ticket of nothing")
		}
	})
}
