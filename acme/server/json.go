package server

import (
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"

	"github.com/acme-bridge/acme-bridge/acme"
)

// maxDepth is how deep JSON of a client may nest; ACME needs four levels.
const maxDepth = 16

// unmarshal reads JSON strictly, as encoding/json does not: member names are
// case-sensitive, none may occur twice, the text is valid UTF-8, and nothing
// follows the one value. Unknown members are ignored (RFC 8555, Section 6.1).
func unmarshal(data []byte, v any) error {
	if err := checkDepth(data); err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// checkDepth counts brackets outside of strings, before anything parses them.
func checkDepth(data []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("nested deeper than %d levels", maxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

var errBase64 = errors.New("not base64url without padding")

// strictBase64 decodes base64url without padding, line breaks or loose bits at
// the end (RFC 8555, Section 6.1); encoding/base64 would pass over CR and LF.
func strictBase64(s string) ([]byte, error) {
	for i := range len(s) {
		if s[i] == '\r' || s[i] == '\n' {
			return nil, errBase64
		}
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errBase64
	}
	return b, nil
}

func malformed(what string, err error) *acme.Problem {
	return acme.Problemf(acme.Malformed, "%s", what).WithCause(err)
}
