package upstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	client "golang.org/x/crypto/acme"

	"github.com/acme-bridge/acme-bridge/acme"
)

// An accountKey is the record "upstream:<backend>:account:<hash of directory>":
// another directory is another account. Nothing ever changes its key.
type accountKey struct {
	Directory string `json:"directory"`
	PKCS8     []byte `json:"key"`
	URL       string `json:"url,omitempty"` // of the account; "": not known to be registered

	signer *ecdsa.PrivateKey
}

func (i *Issuer) accountName() string {
	sum := sha256.Sum256([]byte(i.cfg.Directory))
	return "upstream:" + i.cfg.Backend + ":account:" + base64.RawURLEncoding.EncodeToString(sum[:12])
}

// readAccount returns the stored account key, nil if there is none yet.
func (i *Issuer) readAccount(ctx context.Context) (*accountKey, int64, error) {
	data, version, err := i.cfg.Records.Record(ctx, i.accountName())
	if err != nil && !errors.Is(err, acme.ErrNotFound) {
		return nil, 0, fmt.Errorf("read the upstream account: %w", err)
	}
	if len(data) == 0 {
		return nil, version, nil
	}
	k := new(accountKey)
	// The errors of these could quote what they cannot read.
	if err := json.Unmarshal(data, k); err != nil {
		return nil, 0, errors.New("read the upstream account: the record is broken")
	}
	key, err := x509.ParsePKCS8PrivateKey(k.PKCS8)
	signer, ok := key.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, 0, errors.New("read the upstream account: the key in the record is broken")
	}
	k.signer = signer
	return k, version, nil
}

func (i *Issuer) writeAccount(ctx context.Context, k *accountKey, version int64) error {
	data, err := json.Marshal(k)
	if err != nil {
		return errors.New("write the upstream account: it cannot be encoded")
	}
	if err := i.cfg.Records.PutRecord(ctx, i.accountName(), data, version); err != nil {
		return fmt.Errorf("write the upstream account: %w", err)
	}
	return nil
}

// maxWriters bounds how often another replica may be faster.
const maxWriters = 8

// open returns a client with the account. An account that does not exist yet is
// registered, in steps of which each may be the last before a crash, and which
// replicas may take side by side:
//
//  1. The key is saved, by the one who is first. The others take theirs from there.
//  2. The server is asked whether it knows the key: then a registration was
//     made and only its saving is missing.
//  3. If it does not, the key is registered, with the external account binding.
//     That binding is good for one account; if two replicas come at the same time
//     the second is refused, or told that the account exists, and step 2 tells
//     it apart from a binding that is no good.
//  4. The account's URL is saved.
func (i *Issuer) open(ctx context.Context) (*client.Client, error) {
	if c := i.opened(); c != nil {
		return c, nil
	}
	if err := i.account.opening.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for the upstream account: %w", err)
	}
	defer i.account.opening.Release(1)
	if c := i.opened(); c != nil {
		return c, nil
	}
	for range maxWriters {
		k, version, err := i.readAccount(ctx)
		if err != nil {
			return nil, err
		}
		if k == nil {
			if k, err = i.newAccountKey(); err != nil {
				return nil, err
			}
			if err := i.writeAccount(ctx, k, version); err != nil && !errors.Is(err, acme.ErrConflict) {
				return nil, err
			}
			continue // with what is stored now
		}
		if k.URL == "" {
			if k.URL, err = i.register(ctx, k); err != nil {
				return nil, err
			}
			err = i.writeAccount(ctx, k, version)
			if errors.Is(err, acme.ErrConflict) {
				continue
			}
			if err != nil {
				return nil, err
			}
			i.cfg.Log.InfoContext(ctx, "upstream account is registered", "url", k.URL)
		}
		c := i.newClient(k)
		i.account.mu.Lock()
		i.account.client, i.account.since = c, i.cfg.Now()
		i.account.mu.Unlock()
		return c, nil
	}
	return nil, fmt.Errorf("write the upstream account: %w", acme.ErrConflict)
}

// clientAge is how long a client is used: it reads the directory only once.
const clientAge = time.Hour

func (i *Issuer) opened() *client.Client {
	i.account.mu.Lock()
	defer i.account.mu.Unlock()
	if i.cfg.Now().Sub(i.account.since) > clientAge {
		return nil
	}
	return i.account.client
}

func (i *Issuer) newAccountKey() (*accountKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the upstream account's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make the upstream account's key: %w", err)
	}
	return &accountKey{Directory: i.cfg.Directory, PKCS8: der}, nil
}

// How often, and with which pause, the account of a key is asked for whose
// registration was refused.
const (
	askAgain = 4
	askWait  = 500 * time.Millisecond
)

// register returns the URL of the key's account, which it makes if there is none.
func (i *Issuer) register(ctx context.Context, k *accountKey) (string, error) {
	c := i.newClient(k)
	url, err := i.registered(ctx, c)
	if !errors.Is(err, client.ErrNoAccount) {
		return url, err
	}
	dir, err := c.Discover(ctx)
	if err != nil {
		return "", fmt.Errorf("read the directory: %w", err)
	}
	if problems := i.unfit(dir); len(problems) > 0 {
		return "", errors.New(problems[0])
	}
	a, err := c.Register(ctx, &client.Account{Contact: i.cfg.Contact, ExternalAccountBinding: i.eab}, client.AcceptTOS)
	switch {
	case err == nil && a.URI != "":
		return a.URI, nil
	case err == nil:
		return "", errors.New("the answer to newAccount names no account")
	}
	// Another replica may have been faster with this key, and the server may
	// still be making its account.
	for range askAgain {
		url, none := i.registered(ctx, c)
		if none == nil {
			return url, nil
		}
		if !errors.Is(none, client.ErrNoAccount) || i.cfg.Wait(ctx, askWait) != nil {
			break
		}
	}
	i.cfg.Log.ErrorContext(ctx, "upstream account cannot be registered", "err", err)
	return "", fmt.Errorf("register the upstream account: %w", err)
}

// registered asks for the account that the client's key has, or returns
// [client.ErrNoAccount].
func (i *Issuer) registered(ctx context.Context, c *client.Client) (string, error) {
	a, err := c.GetReg(ctx, "")
	switch {
	case err != nil:
		return "", fmt.Errorf("ask for the upstream account: %w", err)
	case a.Status != client.StatusValid && a.Status != "":
		return "", fmt.Errorf("ask for the upstream account: it is %.20s", a.Status)
	case a.URI == "":
		return "", errors.New("ask for the upstream account: the answer names none")
	}
	return a.URI, nil
}

// unfit says what keeps an account from being made or used here.
func (i *Issuer) unfit(dir client.Directory) []string {
	var problems []string
	if dir.RegURL == "" || dir.OrderURL == "" || dir.NonceURL == "" {
		problems = append(problems, "directory: lacks newAccount, newOrder or newNonce: is it an ACME directory?")
	}
	if dir.Terms != "" && !i.cfg.AgreeTerms {
		problems = append(problems, fmt.Sprintf("agree_terms: the server wants agreement to %s", clip(dir.Terms, 300)))
	}
	if dir.ExternalAccountRequired && i.eab == nil {
		problems = append(problems, "eab_key_id, eab_key: the server wants an external account binding")
	}
	if _, offered := dir.Profiles[client.ProfileName(i.cfg.Profile)]; i.cfg.Profile != "" && !offered {
		problems = append(problems, fmt.Sprintf("profile: the server does not offer %.60q", i.cfg.Profile))
	}
	return problems
}

// lost forgets an account that the server does not know any more, so that the
// next call registers its key again. Whether the server takes the external
// account binding once more is its own affair.
func (i *Issuer) lost(ctx context.Context, c *client.Client, e *client.Error) {
	if problemType(e.ProblemType) != acme.AccountDoesNotExist {
		return
	}
	i.account.mu.Lock()
	if i.account.client == c {
		i.account.client = nil
	}
	i.account.mu.Unlock()
	k, version, err := i.readAccount(ctx)
	if err == nil && k != nil && k.URL == string(c.KID) { // else another replica was faster
		k.URL = ""
		err = i.writeAccount(ctx, k, version)
	}
	if errors.Is(err, acme.ErrConflict) {
		err = nil
	}
	i.cfg.Log.ErrorContext(ctx, "upstream server does not know the account any more, will register its key again", "err", err)
}
