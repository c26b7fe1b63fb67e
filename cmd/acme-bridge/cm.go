package main

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/acme-bridge/acme-bridge/backend/certmanager"
	"github.com/acme-bridge/acme-bridge/config"
	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

func cmCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cm",
		Short: "Ask Certificate Manager directly, without a server that runs",
		Args:  usage(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(registerCommand())
	return cmd
}

// A registration is "acme-bridge cm register-external": a certificate is put
// into Certificate Manager together with its key, so that load balancers can
// use it. It runs where the key is, which is the client's side.
type registration struct {
	file, backend, name, api       string
	certFile, keyFile, chainFile   string
	replace                        int64
	certificate, chain, privateKey string // PEM
}

func registerCommand() *cobra.Command {
	r := new(registration)
	cmd := &cobra.Command{
		Use:   "register-external --config FILE --backend B --name NAME --cert-file F --key-file F",
		Short: "Put a certificate with its key into Certificate Manager, for load balancers; prints its number",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return r.run(cmd.Context(), cmd.Flags().Changed("replace"), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.file, "config", "", "configuration `FILE`; only the backend's own keys are read")
	f.StringVar(&r.backend, "backend", "", "`NAME` of the backend, of type certmanager, whose account gets the certificate")
	f.StringVar(&r.name, "name", "", "`NAME` of the certificate in Certificate Manager: 3 to 20 letters, digits and hyphens, a letter first")
	f.StringVar(&r.certFile, "cert-file", "", "PEM `FILE` of the certificate; the issuers may follow it there")
	f.StringVar(&r.keyFile, "key-file", "", "PEM `FILE` of its private key, not encrypted")
	f.StringVar(&r.chainFile, "chain-file", "", "PEM `FILE` of the issuers (default: what follows the certificate in --cert-file)")
	f.StringVar(&r.api, "api", "2.0", "`VERSION` of the API: 1.0 takes a sub account's key too, and cannot replace")
	f.Int64Var(&r.replace, "replace", 0, "`NUMBER` of the external certificate to replace; it keeps its number, so that load balancers follow")
	return cmd
}

var certificateNameForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{2,19}$`)

func (r *registration) run(ctx context.Context, replacing bool, out io.Writer) error {
	for _, flag := range []struct{ name, value string }{
		{"config", r.file}, {"backend", r.backend}, {"name", r.name}, {"cert-file", r.certFile}, {"key-file", r.keyFile},
	} {
		if flag.value == "" {
			return usageError{fmt.Errorf("--%s is needed; see acme-bridge help cm register-external", flag.name)}
		}
	}
	if !certificateNameForm.MatchString(r.name) {
		return usageError{fmt.Errorf("--name %q: it has 3 to 20 letters, digits and hyphens, and begins with a letter", r.name)}
	}
	if replacing && r.replace <= 0 {
		return usageError{errors.New("--replace: it is the number that an earlier registration has printed")}
	}
	register := certmanager.RegisterExternal
	switch {
	case r.api == "1.0" && replacing:
		return usageError{errors.New("--replace: API 1.0 cannot replace a certificate; use --api 2.0, or another --name")}
	case r.api == "1.0":
		register = certmanager.CreateExternal
	case r.api != "2.0":
		return usageError{fmt.Errorf("--api %q: there are 2.0 and 1.0", r.api)}
	}
	cfg, err := config.LoadCertManager(r.file, r.backend)
	if err != nil {
		return usageError{err}
	}
	if err := r.read(); err != nil {
		return err
	}
	client, err := ncloud.New(ncloud.Config{
		Backend: r.backend, BaseURL: cfg.BaseURL, Timeout: cfg.Timeout.Std(),
		Credentials: ncloud.Credentials{AccessKey: cfg.AccessKey.Reveal(), SecretKey: cfg.SecretKey.Reveal()},
	})
	if err != nil {
		return err
	}
	defer client.Close()
	no, err := register(ctx, client, certmanager.External{
		Name: r.name, No: r.replace, Certificate: r.certificate, Chain: r.chain, PrivateKey: r.privateKey,
	})
	if err != nil {
		return r.explained(err)
	}
	if no == 0 {
		no = r.replace
	}
	if no == 0 {
		if no, err = numberOf(ctx, client, r.name); err != nil {
			return fmt.Errorf("%s is registered, but its number is not known: look for it in the console of Certificate Manager: %w", r.name, err)
		}
	}
	_, err = fmt.Fprintln(out, no)
	return err
}

// numberOf looks for the one certificate of a name.
func numberOf(ctx context.Context, client *ncloud.Client, name string) (int64, error) {
	rows, err := certmanager.ListV1(ctx, client, name)
	if err != nil {
		return 0, err
	}
	var found []int64
	for _, row := range rows {
		if row.Name == name && row.No != 0 {
			found = append(found, row.No)
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("the list has %d certificates of the name", len(found))
	}
	return found[0], nil
}

const maxPEM = 1 << 20

// read reads the files, and finds what the service would refuse in a worse
// sentence. No error repeats what is in the key's file.
func (r *registration) read() error {
	certs, err := readCertificates(r.certFile)
	if err != nil {
		return fmt.Errorf("--cert-file: %w", err)
	}
	issuers := certs[1:]
	if r.chainFile != "" {
		if issuers, err = readCertificates(r.chainFile); err != nil {
			return fmt.Errorf("--chain-file: %w", err)
		}
	}
	if len(issuers) == 0 {
		return fmt.Errorf("--chain-file is needed: Certificate Manager wants the issuers, and %s has only the certificate", r.certFile)
	}
	key, err := readBounded(r.keyFile)
	if err != nil {
		return fmt.Errorf("--key-file: %w", err)
	}
	block := privateBlock(key)
	switch {
	case block == nil:
		return fmt.Errorf("--key-file: %s has no private key in PEM", r.keyFile)
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return fmt.Errorf("--key-file: the key in %s is encrypted, and Certificate Manager takes it only plain", r.keyFile)
	}
	private := pem.EncodeToMemory(block)
	if _, err := tls.X509KeyPair(certs[0], private); err != nil {
		return fmt.Errorf("--key-file: the key in %s is not that of the first certificate in %s, or not understood", r.keyFile, r.certFile)
	}
	r.certificate, r.privateKey = string(certs[0]), string(private)
	var chain strings.Builder
	for _, issuer := range issuers {
		chain.Write(issuer)
	}
	r.chain = chain.String()
	return nil
}

// readCertificates returns the certificates of a PEM file, at least one, each
// in PEM.
func readCertificates(path string) ([][]byte, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	var certs [][]byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
		}
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s has no certificate in PEM", path)
	}
	return certs, nil
}

// privateBlock is the private key of a PEM file, which may begin with the
// curve's parameters.
func privateBlock(data []byte) *pem.Block {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "PRIVATE KEY" || strings.HasSuffix(block.Type, " PRIVATE KEY") {
			return block
		}
	}
	return nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err == nil && len(data) > maxPEM {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxPEM)
	}
	return data, err
}

// explained says what to do about a failure.
func (r *registration) explained(err error) error {
	e, ok := errors.AsType[*ncloud.Error](err)
	switch {
	case !ok:
		return err
	case e.Status == http.StatusForbidden && e.Code == "" && e.Message == "":
		return fmt.Errorf("access_key of backend %s is a sub account's: API 2.0 of Certificate Manager wants the main account's: %w", r.backend, err)
	case e.Outcome == ncloud.OutcomeUnauthorized:
		return fmt.Errorf("access_key and secret_key of backend %s are refused, or lack the permission: %w", r.backend, err)
	case e.Applied == ncloud.Unknown && r.replace != 0:
		return fmt.Errorf("the answer was lost, and the certificate may be replaced or not: run the command again: %w", err)
	case e.Applied == ncloud.Unknown:
		return fmt.Errorf("the answer was lost, and the certificate may be registered or not: look in the console of Certificate Manager for %s, and use --replace with its number if it is there: %w", r.name, err)
	case e.Outcome == ncloud.OutcomeRefused && r.replace != 0:
		return fmt.Errorf("certificate %d is not replaced: the number must be that of an external certificate named %s: %w", r.replace, r.name, err)
	case e.Outcome == ncloud.OutcomeRefused:
		return fmt.Errorf("%s is not registered: name and certificate must be new to the account, else use --replace with the number of the one that is there: %w", r.name, err)
	}
	return err
}
