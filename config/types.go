package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
)

// A Duration is written with units, as 30s, 15m, 24h, 30d or 1h30m.
type Duration time.Duration

const day = Duration(24 * time.Hour)

func seconds(n int) Duration { return Duration(n) * Duration(time.Second) }

// Std returns the duration as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String writes the duration as a config file may have it.
func (d Duration) String() string {
	if d != 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	s := d.Std().String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

var units = []struct {
	name string
	unit time.Duration
}{ // ms before m, which begins it
	{"ms", time.Millisecond}, {"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour},
}

// maxDuration is a century: more is a mistake, and sums of two stay in range.
const maxDuration = 100 * 365 * 24 * time.Hour

func (d *Duration) parse(text string) error {
	bad := errors.New("must be a duration with a unit, such as 30s, 15m, 24h or 30d")
	if text == "" {
		return bad
	}
	var sum time.Duration
	for rest := text; rest != ""; {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseInt(rest[:digits], 10, 64)
		if err != nil {
			return bad
		}
		unit, tail, ok := cutUnit(rest[digits:])
		if !ok {
			return bad
		}
		if n > int64(maxDuration/unit) || sum+time.Duration(n)*unit > maxDuration {
			return errors.New("is longer than 100 years")
		}
		sum, rest = sum+time.Duration(n)*unit, tail
	}
	*d = Duration(sum)
	return nil
}

func cutUnit(s string) (unit time.Duration, rest string, ok bool) {
	for _, u := range units {
		if rest, ok := strings.CutPrefix(s, u.name); ok {
			return u.unit, rest, true
		}
	}
	return 0, s, false
}

// A Rate is so many events in a period, written 100/h, 300/3h, 20/m or 5/30s.
// The zero Rate, written off, is no limit.
type Rate struct {
	Count  int
	Period Duration
}

func perHours(count, hours int) Rate {
	return Rate{Count: count, Period: Duration(hours) * Duration(time.Hour)}
}

// Limit returns the rate as a store's limit.
func (r Rate) Limit() acme.Limit { return acme.Limit{Count: r.Count, Period: r.Period.Std()} }

// String writes the rate as a config file may have it.
func (r Rate) String() string {
	if r.Count == 0 {
		return "off"
	}
	return fmt.Sprintf("%d/%s", r.Count, r.Period)
}

func (r *Rate) parse(text string) error {
	bad := errors.New("must be a count by a period, such as 100/h, 300/3h or 5/30s, or off")
	if text == "off" {
		*r = Rate{}
		return nil
	}
	left, right, ok := strings.Cut(text, "/")
	if !ok || left == "" || strings.Trim(left, "0123456789") != "" {
		return bad
	}
	count, err := strconv.Atoi(left)
	if err != nil || count < 1 || count > 1e9 {
		return errors.New("the count of a rate must be 1 to 1000000000; off is no limit")
	}
	if _, rest, ok := cutUnit(right); ok && rest == "" {
		right = "1" + right
	}
	var period Duration
	if err := period.parse(right); err != nil {
		return bad
	}
	if period < Duration(time.Second) || period > 366*day {
		return errors.New("the period of a rate must be 1s to 366d")
	}
	*r = Rate{Count: count, Period: period}
	return nil
}

// A Size is a number of bytes, written with a unit: B, KiB or MiB.
type Size int64

// String writes the size as a config file may have it.
func (s Size) String() string {
	switch {
	case s != 0 && s%(1<<20) == 0:
		return fmt.Sprintf("%dMiB", s>>20)
	case s != 0 && s%(1<<10) == 0:
		return fmt.Sprintf("%dKiB", s>>10)
	}
	return fmt.Sprintf("%dB", int64(s))
}

func (s *Size) parse(text string) error {
	bad := errors.New("must be a size with a unit, such as 128KiB or 1MiB")
	digits := len(text) - len(strings.TrimLeft(text, "0123456789"))
	n, err := strconv.ParseInt(text[:digits], 10, 64)
	if err != nil {
		return bad
	}
	shift, ok := map[string]int{"B": 0, "KiB": 10, "MiB": 20}[text[digits:]]
	if !ok {
		return bad
	}
	if n > math.MaxInt32 {
		return errors.New("is too large")
	}
	*s = Size(n << shift)
	return nil
}

// A Network is a range of addresses in CIDR form, or one address.
type Network struct{ netip.Prefix }

func (n *Network) parse(text string) error {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		n.Prefix = netip.PrefixFrom(addr, addr.BitLen())
		return nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return errors.New("must be a network such as 10.0.0.0/8 or fd00::/8, or one address")
	}
	if p.Addr().Is4In6() {
		return errors.New("must be written as the IPv4 network that it maps")
	}
	if p != p.Masked() {
		return fmt.Errorf("has bits set beyond its length; %s is the network", p.Masked())
	}
	n.Prefix = p
	return nil
}

// Prefixes returns networks as the standard library's type.
func Prefixes(networks []Network) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(networks))
	for i, n := range networks {
		prefixes[i] = n.Prefix
	}
	return prefixes
}

// A Secret is a value that nothing but [Secret.Reveal] shows. In a file it is
// the value itself, env:NAME for an environment variable, or file:PATH for the
// contents of a file less one newline at its end.
type Secret struct {
	// A pointer, since fmt calls no methods on what lies in unexported fields
	// of other structs, and would print a string there.
	value *string
}

// NewSecret returns a secret of a value.
func NewSecret(value string) Secret {
	if value == "" {
		return Secret{}
	}
	return Secret{&value}
}

// IsSet tells whether there is a value.
func (s Secret) IsSet() bool { return s.value != nil }

// Reveal returns the value, or "" if there is none.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// String tells only whether there is a value.
func (s Secret) String() string {
	if s.value == nil {
		return ""
	}
	return "(secret)"
}

// GoString is String for the verb %#v.
func (s Secret) GoString() string { return "config.Secret(" + s.String() + ")" }

// Format is String for every verb.
func (s Secret) Format(f fmt.State, verb rune) {
	text := s.String()
	if verb == 'v' && f.Flag('#') {
		text = s.GoString()
	}
	// An error here is the writer's, which fmt reports itself.
	_, _ = f.Write([]byte(text))
}

// LogValue is String for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalYAML is String for YAML.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// MarshalText is String for text encodings.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON is String for JSON.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// maxSecret bounds what is read of a secret's file.
const maxSecret = 64 << 10

// parse looks a secret up. Its errors never repeat the value.
func (s *Secret) parse(text string, src sources) error {
	if name, ok := strings.CutPrefix(text, "env:"); ok {
		value, ok := src.env(name)
		switch {
		case name == "":
			return errors.New("env: needs the name of an environment variable after it")
		case !ok:
			return fmt.Errorf("the environment variable %s is not set", name)
		case value == "":
			return fmt.Errorf("the environment variable %s is empty; leave the key out for no secret", name)
		}
		*s = NewSecret(value)
		return nil
	}
	if path, ok := strings.CutPrefix(text, "file:"); ok {
		if path == "" {
			return errors.New("file: needs a path after it")
		}
		data, err := src.file(path, maxSecret)
		if err != nil {
			return fmt.Errorf("the secret's file cannot be read: %w", err)
		}
		value := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
		if value == "" {
			return fmt.Errorf("the file %s is empty; leave the key out for no secret", path)
		}
		*s = NewSecret(value)
		return nil
	}
	*s = NewSecret(text)
	return nil
}

// NotYet stands for a key that a later version will know. Only an empty value
// (nothing, false, 0, "", [], {}) is accepted for it.
type NotYet struct{}

var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// SlogLevel returns the level as slog's type.
func (l Log) SlogLevel() slog.Level { return levels[l.Level] }

func keysOf[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
