package local

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var files = []string{rootKey, rootCert, intermediateKey, intermediateCert}

func readAll(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(data)
	}
	return all
}

func TestFirstStartMakesTheFilesAndTheNextKeepsThem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "ca")
	i := newIssuer(t, Config{Path: dir})
	before := readAll(t, dir)
	for name, want := range map[string]os.FileMode{".": 0o700, rootKey: 0o600, intermediateKey: 0o600, rootCert: 0o644, intermediateCert: 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s: mode %v, want %v", name, got, want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 {
		t.Errorf("directory holds %v (%v), want four files", entries, err)
	}
	if got, want := i.RootFile(), filepath.Join(dir, rootCert); got != want {
		t.Errorf("RootFile %s, want %s", got, want)
	}
	if got, want := string(i.RootPEM()), before[rootCert]; got != want {
		t.Errorf("RootPEM %s, want the file %s", got, want)
	}
	for _, c := range []*x509.Certificate{i.root, i.intermediate} {
		if key, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve.Params().BitSize != 256 {
			t.Errorf("%s: key is %T, want P-256", c.Subject, c.PublicKey)
		}
	}
	if i.root.MaxPathLen != 1 || i.intermediate.MaxPathLen != 0 || !i.intermediate.MaxPathLenZero {
		t.Errorf("path lengths %d and %d, want 1 and 0", i.root.MaxPathLen, i.intermediate.MaxPathLen)
	}
	newIssuer(t, Config{Path: dir})
	if after := readAll(t, dir); !mapsEqual(before, after) {
		t.Error("the second start changed the files")
	}
}

func mapsEqual(a, b map[string]string) bool {
	for k := range a {
		if a[k] != b[k] {
			return false
		}
	}
	return len(a) == len(b)
}

// A crash may happen after any of the files, and while one is being made.
func TestACrashHalfWayIsCompletedByTheNextStart(t *testing.T) {
	for n := range files {
		t.Run("after "+files[n], func(t *testing.T) {
			dir := t.TempDir()
			newIssuer(t, Config{Path: dir})
			before := readAll(t, dir)
			for _, name := range files[n+1:] {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			torn := filepath.Join(dir, ".new-123")
			if err := os.WriteFile(torn, []byte("-----BEGIN PRIV"), 0o600); err != nil {
				t.Fatal(err)
			}
			old := time.Now().Add(-2 * tempAbandoned)
			if err := os.Chtimes(torn, old, old); err != nil {
				t.Fatal(err)
			}
			i := newIssuer(t, Config{Path: dir})
			after := readAll(t, dir)
			for _, name := range files[:n+1] {
				if before[name] != after[name] {
					t.Errorf("%s was replaced", name)
				}
			}
			if _, err := i.intermediate.Verify(x509.VerifyOptions{Roots: i.roots, CurrentTime: start}); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(torn); !os.IsNotExist(err) {
				t.Errorf("the torn file is still there: %v", err)
			}
		})
	}
}

func TestTheRootKeyMayBeKeptOffline(t *testing.T) {
	dir := t.TempDir()
	newIssuer(t, Config{Path: dir})
	if err := os.Remove(filepath.Join(dir, rootKey)); err != nil {
		t.Fatal(err)
	}
	i := newIssuer(t, Config{Path: dir})
	if _, err := i.Submit(t.Context(), newRequest(t, newKey(t), "a.example")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, rootKey)); !os.IsNotExist(err) {
		t.Errorf("root.key was made anew: %v", err)
	}
}

func TestANewIntermediateIsMadeWhenTheOldIsMovedAway(t *testing.T) {
	dir := t.TempDir()
	old := newIssuer(t, Config{Path: dir})
	for _, name := range []string{intermediateCert, intermediateKey} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	later := start.AddDate(6, 0, 0)
	i := newIssuer(t, Config{Path: dir, Now: func() time.Time { return later }})
	if !i.root.Equal(old.root) || i.intermediate.Equal(old.intermediate) {
		t.Error("want the same root and another intermediate")
	}
	if got, want := i.intermediate.NotAfter, old.root.NotAfter; !got.Equal(want) {
		t.Errorf("intermediate ends at %v, want it capped at the root's end %v", got, want)
	}
}

func TestBrokenOrMismatchingFilesAreAnErrorAndStay(t *testing.T) {
	other := t.TempDir()
	newIssuer(t, Config{Path: other})
	foreign := readAll(t, other)
	leaf, err := newIssuer(t, Config{Path: other}).Submit(t.Context(), newRequest(t, newKey(t), "a.example"))
	if err != nil {
		t.Fatal(err)
	}
	leafPEM := string(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: leaf.Leaf.Raw}))

	for _, tt := range []struct {
		name string
		set  map[string]string // "" removes
		want string
	}{
		{"empty key", map[string]string{intermediateKey: "\n"}, "intermediate.key: is not one PEM block"},
		{"empty certificate", map[string]string{rootCert: "\n"}, "root.crt: is not one PEM certificate"},
		{"torn certificate", map[string]string{intermediateCert: foreign[intermediateCert][:100]}, "intermediate.crt: is not one PEM"},
		{"two certificates", map[string]string{intermediateCert: foreign[intermediateCert] + foreign[rootCert]}, "intermediate.crt: is not one PEM"},
		{"garbage in a key", map[string]string{rootKey: "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}, "root.key: the private key does not parse"},
		{"encrypted key", map[string]string{rootKey: "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"}, "root.key: is not an unencrypted"},
		{"huge file", map[string]string{rootCert: strings.Repeat("x", maxFile+1)}, "root.crt: longer than"},
		{"another root's key", map[string]string{rootKey: foreign[rootKey]}, "root.crt and root.key do not belong together"},
		{"another intermediate's key", map[string]string{intermediateKey: foreign[intermediateKey]}, "intermediate.crt and intermediate.key do not belong together"},
		{"another root", map[string]string{rootKey: foreign[rootKey], rootCert: foreign[rootCert]}, "intermediate.crt is not signed by root.crt"},
		{"another intermediate", map[string]string{intermediateKey: foreign[intermediateKey], intermediateCert: foreign[intermediateCert]}, "intermediate.crt is not signed by root.crt"},
		{"no CA certificate", map[string]string{intermediateCert: leafPEM}, "intermediate.crt is not a CA certificate"},
		{"root certificate lost", map[string]string{rootCert: ""}, "root.crt is missing but intermediate.key is there"},
		{"intermediate key lost", map[string]string{intermediateKey: ""}, "intermediate.key is missing but intermediate.crt is there"},
		{"root key and intermediate lost", map[string]string{rootKey: "", intermediateCert: ""}, "root.key is missing but root.crt is there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			newIssuer(t, Config{Path: dir})
			for name, content := range tt.set {
				path := filepath.Join(dir, name)
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				if content != "" {
					if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, err := New(t.Context(), Config{Path: dir})
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("got %v, want %q and the directory", err, tt.want)
			}
			for name, content := range tt.set {
				got, err := os.ReadFile(filepath.Join(dir, name))
				if content == "" && !os.IsNotExist(err) || string(got) != content {
					t.Errorf("%s was replaced (%v)", name, err)
				}
			}
		})
	}
}

func TestManyStartsAtOnceEndWithOneCA(t *testing.T) {
	for range 10 {
		dir := filepath.Join(t.TempDir(), "ca")
		issuers := make([]*Issuer, 8)
		var wg sync.WaitGroup
		for n := range issuers {
			wg.Go(func() {
				i, err := New(t.Context(), Config{Path: dir})
				if err != nil {
					t.Error(err)
				}
				issuers[n] = i
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		for _, i := range issuers[1:] {
			if !i.root.Equal(issuers[0].root) || !i.intermediate.Equal(issuers[0].intermediate) {
				t.Fatal("two processes have different certificates")
			}
		}
	}
}

func TestTheDirectoryMustBeUsable(t *testing.T) {
	if _, err := New(t.Context(), Config{}); err == nil {
		t.Error("no path: no error")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), Config{Path: file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("path is a file: %v", err)
	}
}

func TestAKeyThatOthersCanReadIsWarnedOf(t *testing.T) {
	dir := t.TempDir()
	newIssuer(t, Config{Path: dir})
	if err := os.Chmod(filepath.Join(dir, intermediateKey), 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	newIssuer(t, Config{Path: dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if got := log.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "intermediate.key") || strings.Contains(got, "root.key") {
		t.Errorf("log: %s", got)
	}
}
