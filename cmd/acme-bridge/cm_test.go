package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

// shop makes files of a certificate, its issuer, both in one, and the key.
func shop(t *testing.T, serial int64) (dir string) {
	t.Helper()
	dir = t.TempDir()
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	caKey, key := newKey(), newKey()
	now := time.Now()
	sign := func(subject *x509.Certificate, issuer *x509.Certificate, public *ecdsa.PublicKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, subject, issuer, public, caKey)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"shop.example"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	issuer, certificate := sign(ca, ca, &caKey.PublicKey), sign(leaf, ca, &key.PublicKey)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	for name, data := range map[string][]byte{"cert.pem": certificate, "chain.pem": issuer, "fullchain.pem": append(bytes.Clone(certificate), issuer...),
		"key.pem":       append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), private...),
		"encrypted.pem": pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("secret")}),
		"empty.pem":     nil, "large.pem": make([]byte, maxPEM+1)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func external(t *testing.T) (*ncloudtest.Simulator, func(dir string, args ...string) (string, error)) {
	t.Helper()
	sim, err := ncloudtest.New(ncloudtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	srv := httptest.NewServer(sim)
	t.Cleanup(srv.Close)
	file := filepath.Join(t.TempDir(), "config.yaml")
	// The other secrets of the file are not there.
	text := "admin: {token: 'env:CM_TEST_UNSET'}\nbackends:\n  dv: {type: certmanager, base_url: '" + srv.URL + "', access_key: " + ncloudtest.DefaultAccessKey + ", secret_key: " + ncloudtest.DefaultSecretKey + "}\n  lab: {type: local}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return sim, func(dir string, args ...string) (string, error) {
		t.Helper()
		var out bytes.Buffer
		root := rootCommand()
		root.SetOut(&out)
		root.SetErr(&out)
		all := []string{"cm", "register-external", "--config", file}
		for i, a := range args {
			if i > 0 && strings.HasSuffix(args[i-1], "-file") {
				a = filepath.Join(dir, a)
			}
			all = append(all, a)
		}
		root.SetArgs(all)
		err := root.ExecuteContext(t.Context())
		return out.String(), err
	}
}

func TestARegisteredCertificateIsReplacedUnderItsNumber(t *testing.T) {
	_, run := external(t)
	first, second := shop(t, 2), shop(t, 3)
	out, err := run(first, "--backend", "dv", "--name", "shop", "--cert-file", "fullchain.pem", "--key-file", "key.pem")
	no := strings.TrimSpace(out)
	if n, bad := strconv.ParseInt(no, 10, 64); err != nil || bad != nil || n <= 0 {
		t.Fatalf("got %q and %v, want a number alone", out, err)
	}
	out, err = run(second, "--backend", "dv", "--name", "shop", "--cert-file", "cert.pem", "--chain-file", "chain.pem", "--key-file", "key.pem", "--replace", no)
	if err != nil || strings.TrimSpace(out) != no {
		t.Errorf("got %q and %v, want the same number %s", out, err, no)
	}
	if _, err := run(second, "--backend", "dv", "--name", "shop", "--cert-file", "fullchain.pem", "--key-file", "key.pem"); err == nil || !strings.Contains(err.Error(), "use --replace") {
		t.Errorf("registered twice: %v", err)
	}
	if _, err := run(shop(t, 4), "--backend", "dv", "--name", "other", "--cert-file", "fullchain.pem", "--key-file", "key.pem", "--replace", no); err == nil || !strings.Contains(err.Error(), "is not replaced: the number must be") {
		t.Errorf("replaced under another name: %v", err)
	}
}

func TestASubAccountsKeyRegistersByAPI1(t *testing.T) {
	sim, run := external(t)
	if err := sim.Change(func(b *ncloudtest.Behaviour) { b.CM.SubAccount = true }); err != nil {
		t.Fatal(err)
	}
	out, err := run(shop(t, 2), "--backend", "dv", "--name", "shop", "--cert-file", "fullchain.pem", "--key-file", "key.pem", "--api", "1.0")
	if n, bad := strconv.ParseInt(strings.TrimSpace(out), 10, 64); err != nil || bad != nil || n <= 0 {
		t.Errorf("got %q and %v, want a number alone", out, err)
	}
	if n := sim.Counters().Calls["createExternalCertificate"]; n != 1 {
		t.Errorf("%d calls of createExternalCertificate, want 1", n)
	}
}

func TestWhatCannotBeRegisteredIsRefusedWithTheReason(t *testing.T) {
	sim, run := external(t)
	dir, other := shop(t, 2), shop(t, 3)
	foreign, err := os.ReadFile(filepath.Join(other, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "foreign.pem"), foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, args, want string
		wrong            bool // usage or configuration
	}{
		{"no name", "--backend dv --cert-file fullchain.pem --key-file key.pem", "--name is needed", true},
		{"a name that the service refuses", "--backend dv --name shop.example --cert-file fullchain.pem --key-file key.pem", "--name \"shop.example\"", true},
		{"no number to replace", "--backend dv --name shop --cert-file fullchain.pem --key-file key.pem --replace 0", "--replace: it is the number", true},
		{"an API that is not there", "--backend dv --name shop --cert-file fullchain.pem --key-file key.pem --api 3", "there are 2.0 and 1.0", true},
		{"to replace by API 1.0", "--backend dv --name shop --cert-file fullchain.pem --key-file key.pem --api 1.0 --replace 7", "cannot replace", true},
		{"another backend", "--backend lab --name shop --cert-file fullchain.pem --key-file key.pem", "is of type local", true},
		{"no such backend", "--backend up --name shop --cert-file fullchain.pem --key-file key.pem", `there is no backend "up"`, true},
		{"no issuers", "--backend dv --name shop --cert-file cert.pem --key-file key.pem", "--chain-file is needed", false},
		{"no certificate", "--backend dv --name shop --cert-file empty.pem --key-file key.pem", "has no certificate in PEM", false},
		{"a missing file", "--backend dv --name shop --cert-file missing.pem --key-file key.pem", "no such file", false},
		{"a large file", "--backend dv --name shop --cert-file large.pem --key-file key.pem", "is larger than", false},
		{"no key", "--backend dv --name shop --cert-file fullchain.pem --key-file cert.pem", "has no private key in PEM", false},
		{"an encrypted key", "--backend dv --name shop --cert-file fullchain.pem --key-file encrypted.pem", "is encrypted", false},
		{"another key", "--backend dv --name shop --cert-file fullchain.pem --key-file foreign.pem", "is not that of the first certificate", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := run(dir, strings.Fields(tt.args)...)
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.As(err, new(usageError)) != tt.wrong {
				t.Errorf("got %v, want %s (wrong usage: %t)", err, tt.want, tt.wrong)
			}
		})
	}
	good := strings.Fields("--backend dv --name shop --cert-file fullchain.pem --key-file key.pem")
	if err := sim.Inject(ncloudtest.Fault{Kind: ncloudtest.DropAfter, Operation: "registerExternalCertificate"}); err != nil {
		t.Fatal(err)
	}
	if _, err := run(dir, good...); err == nil || !strings.Contains(err.Error(), "may be registered or not") {
		t.Errorf("a lost answer: %v", err)
	}
	if err := sim.Change(func(b *ncloudtest.Behaviour) { b.CM.SubAccount = true }); err != nil {
		t.Fatal(err)
	}
	if _, err := run(dir, good...); err == nil || !strings.Contains(err.Error(), "is a sub account's") {
		t.Errorf("a sub account: %v", err)
	}
	if n := sim.Counters().Calls["registerExternalCertificate"]; n != 2 {
		t.Errorf("the service was called %d times, want twice", n)
	}
}
