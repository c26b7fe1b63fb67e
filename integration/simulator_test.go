package integration

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// simulatorSecret is the secret key that the simulator accepts.
const simulatorSecret = "IntegrationTestSecretKey000000000000001"

// A simulator is the simulator of NCP, as a process.
type simulator struct {
	t    *testing.T
	proc *process

	BaseURL    string `json:"base_url"`
	ControlURL string `json:"control_url"`
	CATag      string `json:"ca_tag"`
	RootFile   string `json:"root_file"`
	AccessKey  string `json:"access_key"`
}

func startSimulator(t *testing.T, args ...string) *simulator {
	t.Helper()
	dir := makeDir(t, "simulator")
	s := &simulator{t: t}
	s.proc = start(t, "simulator", dir, nil, simulatorBinary(t), append(args, "--dir", dir, "--secret-key", simulatorSecret)...)
	eventually(t, 20*time.Second, "the simulator is ready", func() error {
		if err := s.proc.running(); err != nil {
			return err
		}
		line, err := os.ReadFile(s.proc.stdout)
		if err != nil {
			return err
		}
		if !bytes.HasSuffix(line, []byte("\n")) {
			return errors.New("it has said nothing")
		}
		return json.Unmarshal(line, s)
	})
	return s
}

// control calls the control API; in and out may be nil.
func (s *simulator) control(method, path string, in, out any) {
	s.t.Helper()
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			s.t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.ControlURL+"/control/"+path, &body)
	if err != nil {
		s.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		var answer bytes.Buffer
		_, _ = answer.ReadFrom(res.Body) // what there is
		s.t.Fatalf("%s %s: %s %s", method, path, res.Status, answer.Bytes())
	}
	if out != nil {
		if err := json.NewDecoder(res.Body).Decode(out); err != nil {
			s.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

// A fault makes calls go wrong; see ncloudtest.Fault.
type fault struct {
	Kind       string `json:"kind"`
	Operation  string `json:"operation,omitempty"`
	Count      int    `json:"count,omitempty"`
	Skip       int    `json:"skip,omitempty"`
	DelayMS    int    `json:"delay_ms,omitempty"`
	Reads      int    `json:"reads,omitempty"`
	Status     int    `json:"status,omitempty"`
	Body       string `json:"body,omitempty"`
	RetryAfter string `json:"retry_after,omitempty"`
}

func (s *simulator) inject(f fault) {
	s.t.Helper()
	s.control(http.MethodPost, "faults", f, nil)
}

type counters struct {
	Calls         map[string]int64 `json:"calls"`
	Issued        int64            `json:"issued"`
	IssuedByKey   map[string]int64 `json:"issued_by_key"`
	MostForOneKey int64            `json:"most_for_one_key"`
}

func (s *simulator) counters() counters {
	s.t.Helper()
	var c counters
	s.control(http.MethodGet, "counters", nil, &c)
	return c
}

// issuedFor is how many certificates were made for a key.
func (s *simulator) issuedFor(key crypto.Signer) int64 {
	s.t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	return s.counters().IssuedByKey[hex.EncodeToString(sum[:])]
}

// revoked tells whether a certificate is revoked.
func (s *simulator) revoked(leaf *x509.Certificate) bool {
	s.t.Helper()
	var list []struct {
		PEM     string `json:"pem"`
		Revoked bool   `json:"revoked"`
	}
	s.control(http.MethodGet, "certificates", nil, &list)
	for _, c := range list {
		for _, cert := range parsePEM(s.t, []byte(strings.TrimSpace(c.PEM))) {
			if cert.Equal(leaf) {
				return c.Revoked
			}
		}
	}
	s.t.Fatalf("the simulator has not issued certificate %x", leaf.SerialNumber)
	return false
}

// hold stops the next call of an operation before it is applied.
func (s *simulator) hold(operation string) {
	s.t.Helper()
	s.control(http.MethodPost, "holds", map[string]any{"operation": operation, "point": "before", "count": 1}, nil)
}

// awaitHeld waits until a call is held.
func (s *simulator) awaitHeld() {
	s.t.Helper()
	s.control(http.MethodGet, fmt.Sprintf("holds?waiting=1&timeout_ms=%d", 20000), nil, nil)
}

func (s *simulator) release() {
	s.t.Helper()
	s.control(http.MethodDelete, "holds", nil, nil)
}
