package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

func TestDurations(t *testing.T) {
	for _, tt := range []struct {
		text string
		want time.Duration
		back string
	}{
		{"30s", 30 * time.Second, "30s"},
		{"0s", 0, "0s"},
		{"500ms", 500 * time.Millisecond, "500ms"},
		{"90m", 90 * time.Minute, "1h30m"},
		{"24h", 24 * time.Hour, "1d"},
		{"30d", 30 * 24 * time.Hour, "30d"},
		{"1d12h", 36 * time.Hour, "36h"},
	} {
		var d Duration
		if err := d.parse(tt.text); err != nil || d.Std() != tt.want || d.String() != tt.back {
			t.Errorf("%s: got %s and %v, want %s", tt.text, d, err, tt.back)
		}
	}
	for _, text := range []string{"", "0", "30", "s", "-1s", "1.5h", "1 h", "30D", "1w", "99999999999999999999s", "9223372036854775807d", "36501d", "36500d1s"} {
		var d Duration
		if err := d.parse(text); err == nil {
			t.Errorf("%q was taken as %s", text, d)
		}
	}
}

func TestRates(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Rate
		back string
	}{
		{"100/h", perHours(100, 1), "100/1h"},
		{"300/3h", perHours(300, 3), "300/3h"},
		{"20/m", Rate{20, seconds(60)}, "20/1m"},
		{"5/30s", Rate{5, seconds(30)}, "5/30s"},
		{"1000/d", Rate{1000, day}, "1000/1d"},
		{"off", Rate{}, "off"},
	} {
		var r Rate
		if err := r.parse(tt.text); err != nil || r != tt.want || r.String() != tt.back {
			t.Errorf("%s: got %s and %v, want %s", tt.text, r, err, tt.back)
		}
		if err := r.parse(tt.back); err != nil || r != tt.want {
			t.Errorf("%s does not read back: %s and %v", tt.back, r, err)
		}
	}
	for _, text := range []string{"", "100", "100/", "/h", "100/0h", "-1/h", "+1/h", "0/h", "1/ms", "1/500ms", "1/400d", "9999999999/h", "1/h/h"} {
		var r Rate
		if err := r.parse(text); err == nil {
			t.Errorf("%q was taken as %s", text, r)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"128KiB": 128 << 10, "1MiB": 1 << 20, "1000B": 1000, "0B": 0} {
		var s Size
		if err := s.parse(text); err != nil || s != want || s.String() != text {
			t.Errorf("%s: got %s and %v, want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "128", "128KB", "KiB", "-1KiB", "1.5MiB", "99999999999MiB"} {
		var s Size
		if err := s.parse(text); err == nil {
			t.Errorf("%q was taken as %s", text, s)
		}
	}
}

func TestNetworks(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.0/8": "10.0.0.0/8", "10.1.2.3": "10.1.2.3/32", "fd00::/8": "fd00::/8", "::1": "::1/128", "::ffff:10.0.0.1": "10.0.0.1/32",
	} {
		var n Network
		if err := n.parse(text); err != nil || n.String() != want {
			t.Errorf("%s: got %s and %v, want %s", text, n, err, want)
		}
	}
	for _, text := range []string{"", "10.0.0.0/33", "10.0.0.1/8", "corp.example", "fe80::1%eth0", "10.0.0.0/"} {
		var n Network
		if err := n.parse(text); err == nil {
			t.Errorf("%q was taken as %s", text, n)
		}
	}
}

func TestSecretsAreNeverShown(t *testing.T) {
	const value = "hunter2-hunter2"
	s := NewSecret(value)
	type inside struct {
		Exported Secret
		hidden   Secret
	}
	var shown bytes.Buffer
	for _, v := range []any{s, &s, inside{s, s}, &inside{s, s}, []Secret{s}, map[string]Secret{"a": s}, Redis{Password: s}, &Redis{Password: s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p"} {
			fmt.Fprintf(&shown, verb+"\n", v)
		}
	}
	log := slog.New(slog.NewJSONHandler(&shown, nil))
	log.Info("constant", "token", s, "redis", Redis{Password: s})
	slog.New(slog.NewTextHandler(&shown, nil)).Info("constant", "token", s, "redis", Redis{Password: s})
	for _, marshal := range []func(any) ([]byte, error){yaml.Marshal, json.Marshal} {
		text, err := marshal(struct{ Token Secret }{s})
		if err != nil {
			t.Fatal(err)
		}
		shown.Write(text)
	}
	for _, form := range []string{value, fmt.Sprintf("%x", value), fmt.Sprintf("%X", value)} {
		if strings.Contains(shown.String(), form) {
			t.Errorf("the secret is shown:\n%s", shown.String())
		}
	}
	if got := s.Reveal(); got != value {
		t.Errorf("Reveal: got %q", got)
	}
}

func TestSecretsComeFromTheFileTheEnvironmentOrAnotherFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("CONFIG_TEST_SECRET", "from-the-environment")
	t.Setenv("CONFIG_TEST_EMPTY", "")
	for text, want := range map[string]string{
		"literal-value":                            "literal-value",
		"env:CONFIG_TEST_SECRET":                   "from-the-environment",
		"file:" + write("lf", "from-a-file\n"):     "from-a-file",
		"file:" + write("crlf", "from-dos\r\n"):    "from-dos",
		"file:" + write("bare", "without-end"):     "without-end",
		"file:" + write("two", "two-newlines\n\n"): "two-newlines\n",
	} {
		c := Embedded("data")
		d := &decoder{src: sources{env: os.LookupEnv, file: readFile}}
		if err := c.Admin.Token.parse(text, d.src); err != nil || c.Admin.Token.Reveal() != want {
			t.Errorf("%s: got %q and %v, want %q", text, c.Admin.Token.Reveal(), err, want)
		}
	}
	for text, want := range map[string]string{
		"env:CONFIG_TEST_UNSET":              "admin.token: the environment variable CONFIG_TEST_UNSET is not set",
		"env:CONFIG_TEST_EMPTY":              "admin.token: the environment variable CONFIG_TEST_EMPTY is empty",
		"env:":                               "admin.token: env: needs the name",
		"file:":                              "admin.token: file: needs a path",
		"file:" + dir:                        "is not a regular file",
		"file:" + filepath.Join(dir, "none"): "admin.token: the secret's file cannot be read",
		"file:" + write("empty", "\n"):       "is empty",
		"file:" + write("huge", strings.Repeat("x", maxSecret+1)): "is larger than",
	} {
		if got := wrong(t, minimal+"admin: {token: '"+text+"'}\n"); !strings.Contains(got[0], want) {
			t.Errorf("%s: got %s, want %s", text, got[0], want)
		}
	}
}

func TestErrorsDoNotRepeatSecrets(t *testing.T) {
	for _, value := range []string{"12345678901234567", "[hunter2]", "{hunter2: hunter2}", "'hunter2'", "!!binary aHVudGVyMg=="} {
		for _, key := range []string{"admin: {token: ", "backends: {b: {type: privateca, secret_key: ", "storage: {redis: {password: "} {
			text := key + value + strings.Repeat("}", strings.Count(key, "{"))
			_, err := Parse("test.yaml", []byte(text))
			if err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "aHVud") || strings.Contains(err.Error(), "123456789") {
				t.Errorf("%s: %v", text, err)
			}
		}
	}
}

// FuzzParse looks for panics, and for configs that load and then fail their users.
func FuzzParse(f *testing.F) {
	data, err := os.ReadFile("../config.example.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	for _, seed := range []string{
		minimal, "", "a: &a [*a]", "? [a]\n: b", "<<: {a: b}", "server: {listen: 443}", "profiles: {p: {challenges: [~]}}",
		"backends:\n  a: &a {type: local}\n  b: *a\n", "limits: {new_accounts_per_ip: 1/9h}", "\x00", "--- a\n--- b", "server: !!binary aGk=",
		"validation: {default: {allow_networks: ['::/0', 1.2.3.4]}}", "directories: {'': {}}", "server: {external_url: 'https://[::1%25a]:1'}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		// Secrets must not come from this machine's files while fuzzing.
		d := &decoder{
			file: "fuzz.yaml", lines: map[string]int{}, seen: map[string]bool{},
			src: sources{
				env:  func(string) (string, bool) { return "0123456789abcdef", true },
				file: func(string, int64) ([]byte, error) { return []byte("0123456789abcdef"), nil },
			},
		}
		c := d.config(data)
		for _, e := range d.errs {
			if e.Line < 1 || e.Text == "" {
				t.Errorf("bad error %+v", e)
			}
		}
		if len(d.errs) > 0 {
			return
		}
		if len(c.ACMEProfiles()) == 0 || c.Directories["default"] == nil && len(c.Directories) == 0 {
			t.Error("a config without profiles or directories was accepted")
		}
		if got := RestartNeeded(c, c); len(got) > 0 {
			t.Errorf("a config differs from itself in %v", got)
		}
	})
}
