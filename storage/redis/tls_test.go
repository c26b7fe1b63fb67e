package redis_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/storage/redis"
	"github.com/acme-bridge/acme-bridge/storage/storagetest"
)

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redis"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		check(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	certFile, keyFile := write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", keyDER)
	port := storagetest.FreePort(t)
	storagetest.StartRedis(t, "--tls-port", port, "--tls-cert-file", certFile, "--tls-key-file", keyFile, "--tls-ca-cert-file", certFile)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	addr := []string{"127.0.0.1:" + port}
	// The server wants a client certificate, and the client a root it knows.
	ours := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	s := open(t, redis.Options{Addresses: addr, TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{ours}}})
	check(t, s.Ping(t.Context()))
	account(t, s)
	for name, config := range map[string]*tls.Config{
		"an unknown root":       {RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{ours}},
		"another server's name": {RootCAs: roots, ServerName: "other", Certificates: []tls.Certificate{ours}},
		"no client certificate": {RootCAs: roots},
		"no TLS":                nil,
	} {
		if err := open(t, redis.Options{Addresses: addr, TLS: config}).Ping(t.Context()); !errors.Is(err, acme.ErrUnavailable) {
			t.Errorf("%s: got %v, want ErrUnavailable", name, err)
		}
	}
}
