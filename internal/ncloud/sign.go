package ncloud

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"log/slog"
	"net/http"
	"strconv"
	"time"
)

// Headers of a signed request (NCP API guide, "Ncloud API", signature v2).
const (
	headerTimestamp = "x-ncp-apigw-timestamp"
	headerAccessKey = "x-ncp-iam-access-key"
	headerSignature = "x-ncp-apigw-signature-v2"
	headerTraceID   = "x-ncp-trace-id"
)

// signatureWindow is how far a request's timestamp may be from the gateway's
// clock (NCP API guide: 5 minutes).
const signatureWindow = 5 * time.Minute

// Credentials are an NCP access key ID and its secret key. They print as
// "[redacted]" wherever fmt or slog meets them.
type Credentials struct {
	AccessKey string
	SecretKey string
}

// String hides both keys.
func (Credentials) String() string { return "[redacted]" }

// GoString hides both keys from %#v.
func (Credentials) GoString() string { return "[redacted]" }

// LogValue hides both keys from slog.
func (Credentials) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalText hides both keys from JSON and YAML encoders.
func (Credentials) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// signature computes x-ncp-apigw-signature-v2. The URI is path and query as
// they stand in the request line; the secret is used as it is, not decoded.
func (c Credentials) signature(method, uri, timestamp string) string {
	mac := hmac.New(sha256.New, []byte(c.SecretKey))
	mac.Write([]byte(method + " " + uri + "\n" + timestamp + "\n" + c.AccessKey))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// sign sets the headers that the gateway wants. The URL must be final.
func (c Credentials) sign(req *http.Request, now time.Time) {
	timestamp := strconv.FormatInt(now.UnixMilli(), 10)
	req.Header.Set(headerTimestamp, timestamp)
	req.Header.Set(headerAccessKey, c.AccessKey)
	req.Header.Set(headerSignature, c.signature(req.Method, req.URL.RequestURI(), timestamp))
	// Private CA lists Content-Type as required for every call, GET included;
	// without Accept some services answer their errors in XML.
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
}
