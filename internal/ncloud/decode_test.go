package ncloud

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
)

func TestNumbersAreReadInEveryForm(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Number
		ok   bool
	}{
		{`30000`, 30000, true}, {`"30000"`, 30000, true}, {`3.0e4`, 30000, true}, {`30000.0`, 30000, true},
		{`null`, 0, true}, {`""`, 0, true}, {`1764547200000`, 1764547200000, true},
		{`1.5`, 0, false}, {`"many"`, 0, false}, {`{}`, 0, false}, {`[1]`, 0, false}, {`1e300`, 0, false},
	} {
		var got Number
		err := json.Unmarshal([]byte(tt.in), &got)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("%s: got %d, %v", tt.in, got, err)
		}
	}
}

func TestListsOfTextAreReadInEveryForm(t *testing.T) {
	for in, want := range map[string]Texts{
		`["a","b"]`: {"a", "b"}, `"a"`: {"a"}, `null`: nil, `[]`: {}, `""`: nil, `[1,"b"]`: {"1", "b"},
	} {
		var got Texts
		if err := json.Unmarshal([]byte(in), &got); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %v, %v", in, got, err)
		}
	}
	var got Texts
	if json.Unmarshal([]byte(`[{"a":1}]`), &got) == nil {
		t.Error("a list of objects was read as texts")
	}
}

func TestEnvelopeWantsItsData(t *testing.T) {
	var into struct{ A Text }
	for _, body := range []string{`{"code":"SUCCESS","msg":"Success","data":null}`, `{"code":"SUCCESS"}`, `{"code":"SUCCESS","data":"x"}`} {
		if err := Envelope(&into)([]byte(body)); err == nil {
			t.Errorf("%s was read", body)
		}
	}
	if err := Envelope(&into)([]byte(`{"code":"Success","msg":"","data":{"a":1}}`)); err != nil || into.A != "1" {
		t.Errorf("got %v, %q", err, into.A)
	}
}

// FuzzAnswers: whatever a server sends, decoding ends without a panic, and an
// answer that is no success never counts as one.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{
		`{"code":"SUCCESS","msg":"Success","data":{"a":["x"],"n":"12","m":1764547200000}}`,
		`{"error":{"errorCode":"200","message":"Authentication Failed","details":"Invalid authentication information."}}`,
		`{"error":{"errorCode":401}}`, `{"responseError":{"returnCode":"1","returnMessage":"m"}}`,
		`{"code":"INVALID_REQUEST","msg":"Invalid csr.","data":null}`, `{"error":null}`, `[]`, `null`, `"x"`, `{"code":{}}`,
	} {
		f.Add(200, []byte(s))
		f.Add(400, []byte(s))
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		e := answered(status, body)
		if e == nil && status/100 != 2 {
			t.Fatalf("HTTP %d counts as success", status)
		}
		if e != nil {
			_ = e.Error()
			return
		}
		var into struct {
			A Texts
			N Number
			M Millis
		}
		err := Envelope(&into)(body)
		var any map[string]any
		if err == nil && json.Unmarshal(body, &any) != nil {
			t.Fatal("what is no JSON object was read")
		}
		if r, ok := errors.AsType[*Refusal](err); ok && r.Code == "" {
			t.Fatal("a refusal without code")
		}
	})
}
