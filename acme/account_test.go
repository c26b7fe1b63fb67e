package acme

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestSection7_3_Contacts(t *testing.T) {
	many := make([]string, MaxContacts)
	for i := range many {
		many[i] = fmt.Sprintf("mailto:admin%d@a.example", i)
	}
	for _, tt := range []struct {
		name     string
		contacts []string
		want     ProblemType
	}{
		{"none", nil, ""},
		{"an empty list", []string{}, ""},
		{"an address", []string{"mailto:admin@a.example"}, ""},
		{"a scheme in upper case", []string{"MAILTO:admin@a.example"}, ""},
		{"a tagged address", []string{"mailto:admin+acme@a.example"}, ""},
		{"as many as are kept", many, ""},
		{"one more", append(slices.Clone(many), many[0]), InvalidContact},

		{"a telephone", []string{"tel:+12025551212"}, UnsupportedContact},
		{"a web page", []string{"https://a.example/"}, UnsupportedContact},
		{"a good one and a bad one", []string{"mailto:admin@a.example", "tel:1"}, UnsupportedContact},
		{"an empty scheme", []string{":admin@a.example"}, UnsupportedContact},

		{"no scheme", []string{"admin@a.example"}, InvalidContact},
		{"nothing", []string{""}, InvalidContact},
		{"no address", []string{"mailto:"}, InvalidContact},
		{"no at sign", []string{"mailto:admin"}, InvalidContact},
		{"no domain", []string{"mailto:admin@"}, InvalidContact},
		{"no user", []string{"mailto:@a.example"}, InvalidContact},
		{"header fields", []string{"mailto:admin@a.example?subject=hello"}, InvalidContact},
		{"empty header fields", []string{"mailto:admin@a.example?"}, InvalidContact},
		{"two addresses", []string{"mailto:admin@a.example,root@a.example"}, InvalidContact},
		{"two addresses by semicolon", []string{"mailto:admin@a.example;root@a.example"}, InvalidContact},
		{"an escaped comma", []string{"mailto:admin@a.example%2Croot@a.example"}, InvalidContact},
		{"a display name", []string{"mailto:Admin <admin@a.example>"}, InvalidContact},
		{"angle brackets", []string{"mailto:<admin@a.example>"}, InvalidContact},
		{"a comment", []string{"mailto:admin@a.example (boss)"}, InvalidContact},
		{"leading white space", []string{"mailto: admin@a.example"}, InvalidContact},
		{"trailing white space", []string{"mailto:admin@a.example "}, InvalidContact},
		{"a line break", []string{"mailto:admin@a.example\r\nBcc: x@b.example"}, InvalidContact},
		{"a NUL", []string{"mailto:admin\x00@a.example"}, InvalidContact},
		{"a control character beyond ASCII", []string{"mailto:admin\u0085@a.example"}, InvalidContact},
		{"bytes that are no UTF-8", []string{"mailto:admin\xff@a.example"}, InvalidContact},
		{"a very long address", []string{"mailto:" + strings.Repeat("a", 320) + "@a.example"}, InvalidContact},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := testAccount()
			a.Contact = []string{"mailto:before@a.example"}
			err := a.SetContact(tt.contacts)
			if tt.want == "" {
				if err != nil || !slices.Equal(a.Contact, tt.contacts) {
					t.Errorf("got %q, %v, want %q", a.Contact, err, tt.contacts)
				}
				return
			}
			if err == nil {
				t.Fatalf("accepted")
			}
			if p := AsProblem(err); p.Type != tt.want || p.Status != 400 || len(p.Detail) > 1500 {
				t.Errorf("got %v, want a short 400 %s", err, tt.want)
			}
			if !slices.Equal(a.Contact, []string{"mailto:before@a.example"}) {
				t.Errorf("contacts became %q", a.Contact)
			}
		})
	}
}

func TestSetContactKeepsItsOwnCopy(t *testing.T) {
	contacts := []string{"mailto:a@a.example"}
	a := testAccount()
	if err := a.SetContact(contacts); err != nil {
		t.Fatal(err)
	}
	contacts[0] = "mailto:b@a.example"
	if got, want := a.Contact[0], "mailto:a@a.example"; got != want {
		t.Errorf("contact became %q, want %q", got, want)
	}
}

func TestSection7_3_6_DeactivationIsForGood(t *testing.T) {
	a := testAccount()
	epoch := a.KeyEpoch
	if err := a.Deactivate(); err != nil {
		t.Fatal(err)
	}
	if a.Status != StatusDeactivated || a.KeyEpoch == epoch {
		t.Errorf("status %s, key epoch %d, want deactivated, and not %d: its proofs count no more", a.Status, a.KeyEpoch, epoch)
	}
	before := a.Clone()
	for what, err := range map[string]error{
		"deactivated again": a.Deactivate(),
		"key changed":       a.ChangeKey([]byte("{}"), "other"),
	} {
		if p := AsProblem(err); p.Type != Unauthorized || p.Status != 401 {
			t.Errorf("%s: %v, want 401 %s", what, err, Unauthorized)
		}
	}
	if !reflect.DeepEqual(a, before) {
		t.Errorf("became %+v, want %+v", a, before)
	}
}

func TestSection7_3_5_KeyChange(t *testing.T) {
	a := testAccount()
	a.Contact = []string{"mailto:a@a.example"}
	before := a.Clone()
	jwk := []byte(`{"kty":"EC"}`)
	if err := a.ChangeKey(jwk, "new"); err != nil {
		t.Fatal(err)
	}
	jwk[0] = '['
	if string(a.Key) != `{"kty":"EC"}` || a.Thumbprint != "new" {
		t.Errorf("key %s, thumbprint %s", a.Key, a.Thumbprint)
	}
	if got, want := a.KeyEpoch, before.KeyEpoch+1; got != want {
		t.Errorf("key epoch %d, want %d", got, want)
	}
	a.Key, a.Thumbprint, a.KeyEpoch = before.Key, before.Thumbprint, before.KeyEpoch
	if !reflect.DeepEqual(a, before) {
		t.Errorf("more than the key changed: %+v, want %+v", a, before)
	}
}

func fullAccount(t *testing.T) *Account {
	t.Helper()
	a := &Account{
		ID: "id", Directory: "dir", Status: StatusValid, Key: []byte("key"), Thumbprint: "thumb",
		Contact: []string{"mailto:a@a.example"}, TermsAgreed: "https://a.example/terms", Created: start, KeyEpoch: 2, Version: 5,
	}
	eachField(reflect.ValueOf(a), "Account", nil, func(path string, v reflect.Value) {
		if v.IsZero() {
			t.Fatalf("%s is not set, and so not tested", path)
		}
	})
	return a
}

func TestAccountCloneIsIndependent(t *testing.T) {
	a := fullAccount(t)
	b := a.Clone()
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("the clone is %+v, want %+v", b, a)
	}
	b.Key[0], b.Contact[0], b.Status, b.KeyEpoch = 'x', "mailto:b@a.example", StatusDeactivated, 9
	if want := fullAccount(t); !reflect.DeepEqual(a, want) {
		t.Errorf("changing the clone made the original %+v, want %+v", a, want)
	}
}

func TestJSONKeepsAllOfAnAccount(t *testing.T) {
	want := fullAccount(t)
	var got Account
	if err := json.Unmarshal([]byte(marshal(t, want)), &got); err != nil {
		t.Fatal(err)
	}
	want.Version = 0 // kept by the store, beside the document
	if !reflect.DeepEqual(&got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
