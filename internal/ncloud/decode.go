package ncloud

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// NCP's documents, examples and client disagree on which members are numbers
// and which are strings. The types below read either, and null as the zero value.

// A Number is an integer sent as a number, with or without a fraction of zero,
// or as a string of one.
type Number int64

// UnmarshalJSON reads a number or a numeric string.
func (n *Number) UnmarshalJSON(b []byte) error {
	s, err := scalar(b)
	if err != nil {
		return err
	}
	if s == "" {
		*n = 0
		return nil
	}
	if i, err := strconv.ParseInt(s, 10, 64); err == nil {
		*n = Number(i)
		return nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return errors.New("a value that should be a whole number is none")
	}
	*n = Number(f)
	return nil
}

// A Text is a string, or a number taken as its digits.
type Text string

// UnmarshalJSON reads a string, number or boolean.
func (t *Text) UnmarshalJSON(b []byte) error {
	s, err := scalar(b)
	*t = Text(s)
	return err
}

// A Millis is a time in milliseconds since 1970-01-01 UTC; the zero value is
// no time at all.
type Millis int64

// UnmarshalJSON reads a number or a numeric string.
func (m *Millis) UnmarshalJSON(b []byte) error {
	var n Number
	err := n.UnmarshalJSON(b)
	*m = Millis(n)
	return err
}

// Time is the zero time for the zero value.
func (m Millis) Time() time.Time {
	if m == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(m)).UTC()
}

// Texts is a list of strings; a single string is a list of one.
type Texts []string

// UnmarshalJSON reads an array of strings, a string, or null.
func (t *Texts) UnmarshalJSON(b []byte) error {
	b = bytes.TrimSpace(b)
	if len(b) > 0 && b[0] == '[' {
		var list []Text
		if err := json.Unmarshal(b, &list); err != nil {
			return err
		}
		*t = make(Texts, len(list))
		for i, s := range list {
			(*t)[i] = string(s)
		}
		return nil
	}
	s, err := scalar(b)
	if err != nil {
		return err
	}
	*t = nil
	if s != "" {
		*t = Texts{s}
	}
	return nil
}

// scalar gives the text of a JSON string, number or boolean, "" for null.
func scalar(b []byte) (string, error) {
	b = bytes.TrimSpace(b)
	switch {
	case len(b) == 0:
		return "", errors.New("empty value")
	case bytes.Equal(b, []byte("null")):
		return "", nil
	case b[0] == '"':
		var s string
		err := json.Unmarshal(b, &s)
		return strings.TrimSpace(s), err
	case b[0] == '{' || b[0] == '[':
		return "", errors.New("an object or array stands where a plain value should")
	}
	return string(b), nil
}

// A Refusal is an error that a service words inside an answer with HTTP 2xx.
// A decoder given to [Client.Do] returns it, and Do makes an [Error] of it.
type Refusal struct {
	Code    string
	Message string
	Applied Applied
}

// Error is the service's words.
func (r *Refusal) Error() string { return r.Code + ": " + r.Message }

// Envelope returns a decoder for answers of the form {"code","msg","data"},
// Private CA's; it decodes data into the value that into points at. A data
// that is null or missing is an error unless into is nil.
func Envelope(into any) func(body []byte) error {
	return func(body []byte) error {
		var e struct {
			Code Text            `json:"code"`
			Msg  Text            `json:"msg"`
			Data json.RawMessage `json:"data"`
		}
		if err := json.Unmarshal(body, &e); err != nil {
			return err
		}
		if !strings.EqualFold(string(e.Code), "SUCCESS") {
			if e.Code == "" {
				return errors.New("answer has no code")
			}
			// HTTP says success and the service says no. A code of a refusal is
			// believed; what does not look like one might have been applied.
			applied := Unknown
			if refusalCode(string(e.Code)) {
				applied = No
			}
			return &Refusal{Code: string(e.Code), Message: string(e.Msg), Applied: applied}
		}
		if into == nil {
			return nil
		}
		if len(e.Data) == 0 || bytes.Equal(e.Data, []byte("null")) {
			return errors.New("answer has no data")
		}
		if err := json.Unmarshal(e.Data, into); err != nil {
			return fmt.Errorf("data: %w", err)
		}
		return nil
	}
}

// refusalCode reports a code that names something wrong with the request or
// with the state it met (the codes of NCP's 2022 client, its misspellings included).
func refusalCode(code string) bool {
	switch code {
	case "NOT_FOUND", "FORBIDDEN", "UNAUTHORIZED", "UNPROCESSABLE_ENTITY":
		return true
	}
	for _, p := range []string{"INVALID_", "INVAILD_", "EMPTY_", "EXCEED_", "NOT_EXIST_", "NOT_AUTHORIZED_", "ALREADY_EXIST_"} {
		if strings.HasPrefix(code, p) {
			return true
		}
	}
	return false
}
