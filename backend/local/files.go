package local

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// The files are made in this order, each at once and only if it is not there:
//
//	root.key -> root.crt -> intermediate.key -> intermediate.crt
//
// Each is derived from those before it as they are on the disk, not as this
// process made them. So whatever a crash leaves is a beginning of the list that
// the next start completes, and of two processes that start at once the slower
// finds its file already there and goes on with the other's. No lock is needed
// and no pair can be mixed.
const (
	rootKey          = "root.key"
	rootCert         = "root.crt"
	intermediateKey  = "intermediate.key"
	intermediateCert = "intermediate.crt"
)

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
	pemECKey       = "EC PRIVATE KEY"

	rootYears         = 10
	intermediateYears = 5
	// caBackdate lets machines with slow clocks trust a CA made a moment ago.
	caBackdate = time.Hour

	maxFile       = 64 << 10
	tempPattern   = ".new-*"
	tempAbandoned = time.Hour
)

// material is what the files hold, checked to belong together.
type material struct {
	root, intermediate *x509.Certificate
	signer             crypto.Signer // the intermediate's key
}

func open(ctx context.Context, cfg *Config) (*material, error) {
	if err := os.MkdirAll(cfg.Path, 0o700); err != nil {
		return nil, err
	}
	removeAbandoned(cfg.Path)
	have, err := existing(cfg.Path)
	if err != nil {
		return nil, err
	}
	// Only a beginning of the list may be completed. Anything else is a loss
	// that must not be papered over: a new root.key beside an old root.crt would
	// be a CA that nobody trusts. One gap is legitimate: the root's key is kept
	// offline once there is an intermediate.
	last := ""
	for _, name := range []string{rootKey, rootCert, intermediateKey, intermediateCert} {
		if !have[name] {
			last = name
			continue
		}
		if last == "" || last == rootKey && have[rootCert] && have[intermediateKey] && have[intermediateCert] {
			continue
		}
		return nil, fmt.Errorf("%s is missing but %s is there: restore it from a backup, or move all four files away to start with a new CA", last, name)
	}

	m := &material{}
	var rootSigner crypto.Signer
	if have[rootKey] || !have[intermediateCert] {
		if rootSigner, err = loadOrMakeKey(cfg, rootKey); err != nil {
			return nil, err
		}
	}
	m.root, err = loadOrMakeCert(cfg, rootCert, func() ([]byte, error) {
		t := caTemplate(cfg.Now(), "acme-bridge local root CA", rootYears)
		t.MaxPathLen = 1
		return signCA(cfg.Rand, t, t, rootSigner.Public(), rootSigner)
	})
	if err != nil {
		return nil, err
	}
	if err := checkCA(rootCert, m.root, m.root, rootSigner, rootKey); err != nil {
		return nil, err
	}
	if m.signer, err = loadOrMakeKey(cfg, intermediateKey); err != nil {
		return nil, err
	}
	m.intermediate, err = loadOrMakeCert(cfg, intermediateCert, func() ([]byte, error) {
		t := caTemplate(cfg.Now(), "acme-bridge local intermediate CA", intermediateYears)
		t.MaxPathLenZero = true
		if t.NotAfter.After(m.root.NotAfter) {
			t.NotAfter = m.root.NotAfter
		}
		if !t.NotAfter.After(cfg.Now()) {
			return nil, fmt.Errorf("%s ended at %s and can sign no intermediate", rootCert, m.root.NotAfter.Format(time.RFC3339))
		}
		cfg.Log.InfoContext(ctx, "local CA makes an intermediate certificate", "path", cfg.Path)
		return signCA(cfg.Rand, t, m.root, m.signer.Public(), rootSigner)
	})
	if err != nil {
		return nil, err
	}
	if err := checkCA(intermediateCert, m.intermediate, m.root, m.signer, intermediateKey); err != nil {
		return nil, err
	}
	warnOpenKeys(ctx, cfg)
	return m, nil
}

// existing looks for the last file first: since they are made in order, a file
// that is seen means that those before it were made, even while another
// process is at it.
func existing(dir string) (map[string]bool, error) {
	have := make(map[string]bool, 4)
	for _, name := range []string{intermediateCert, intermediateKey, rootCert, rootKey} {
		_, err := os.Stat(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		have[name] = err == nil
	}
	return have, nil
}

func loadOrMakeKey(cfg *Config, name string) (crypto.Signer, error) {
	data, err := loadOrMake(cfg.Path, name, 0o600, func() ([]byte, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
	})
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

// parseKey tells nothing about the octets in its errors.
func parseKey(data []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(data)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("is not one PEM block")
	}
	var key any
	var err error
	switch block.Type {
	case pemKey:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case pemECKey:
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("is not an unencrypted PEM private key (%q or %q)", pemKey, pemECKey)
	}
	if err != nil {
		return nil, errors.New("the private key does not parse")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key cannot sign")
	}
	return signer, nil
}

func loadOrMakeCert(cfg *Config, name string, sign func() ([]byte, error)) (*x509.Certificate, error) {
	data, err := loadOrMake(cfg.Path, name, 0o644, func() ([]byte, error) {
		der, err := sign()
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), nil
	})
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != pemCertificate || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s: is not one PEM certificate", name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return cert, nil
}

func caTemplate(now time.Time, name string, years int) *x509.Certificate {
	now = now.UTC().Truncate(time.Second)
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-caBackdate),
		NotAfter:              now.AddDate(years, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

func signCA(random io.Reader, t, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) ([]byte, error) {
	var serial [16]byte
	if _, err := io.ReadFull(random, serial[:]); err != nil {
		return nil, err
	}
	t.SerialNumber = new(big.Int).SetBytes(serial[:])
	return x509.CreateCertificate(rand.Reader, t, parent, pub, signer)
}

// checkCA refuses a certificate that is no CA, is not signed by parent, or is
// not for the key. Its end is no matter here: see [Issuer.Health].
func checkCA(name string, cert, parent *x509.Certificate, signer crypto.Signer, keyName string) error {
	if !cert.IsCA || !cert.BasicConstraintsValid {
		return fmt.Errorf("%s is not a CA certificate", name)
	}
	if err := cert.CheckSignatureFrom(parent); err != nil {
		return fmt.Errorf("%s is not signed by %s: %w", name, rootCert, err)
	}
	if signer == nil {
		return nil
	}
	if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(signer.Public()) {
		return fmt.Errorf("%s and %s do not belong together: restore the right pair", name, keyName)
	}
	return nil
}

// loadOrMake returns what the file holds, which content has made if it was not
// there.
func loadOrMake(dir, name string, mode fs.FileMode, content func() ([]byte, error)) ([]byte, error) {
	path := filepath.Join(dir, name)
	data, err := readFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return data, err
	}
	made, err := content()
	if err != nil {
		return nil, fmt.Errorf("making %s: %w", name, err)
	}
	if err := createFile(dir, name, mode, made); err != nil {
		return nil, fmt.Errorf("making %s: %w", name, err)
	}
	return readFile(path) // what counts is what is there: another process may have been faster
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s: longer than %d bytes", filepath.Base(path), maxFile)
	}
	return data, err
}

// createFile makes a file that appears with all its content or not at all, and
// leaves one alone that is there already. It is link(2) and not rename(2) that
// does not replace.
func createFile(dir, name string, mode fs.FileMode, content []byte) error {
	f, err := os.CreateTemp(dir, tempPattern) // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeAbandoned takes away what a process left that died in createFile. A
// failure is of no consequence.
func removeAbandoned(dir string) {
	names, err := filepath.Glob(filepath.Join(dir, tempPattern))
	if err != nil {
		return
	}
	for _, name := range names {
		if info, err := os.Stat(name); err == nil && time.Since(info.ModTime()) > tempAbandoned {
			os.Remove(name)
		}
	}
}

// warnOpenKeys only warns, since mounted secrets often have modes of their own.
func warnOpenKeys(ctx context.Context, cfg *Config) {
	for _, name := range []string{rootKey, intermediateKey} {
		path := filepath.Join(cfg.Path, name)
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
			cfg.Log.WarnContext(ctx, "private key can be read by others than its owner", "path", path, "mode", info.Mode().Perm().String())
		}
	}
}
