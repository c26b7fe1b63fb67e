package upstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	client "golang.org/x/crypto/acme"
)

const (
	readyAge   = time.Minute
	readyLimit = 3 * time.Second
)

// A Report is what is known of an upstream server's fitness, for "config check
// --online".
type Report struct {
	Directory       string   `json:"directory"`
	Mode            string   `json:"mode"`
	Account         string   `json:"account,omitempty"` // URL; "": not registered yet
	Terms           string   `json:"terms,omitempty"`   // URL of the terms of service
	ExternalAccount bool     `json:"external_account"`  // the server wants an external account binding
	Profiles        []string `json:"profiles,omitempty"`
	Errors          []string `json:"errors,omitempty"`   // each prevents issuing
	Warnings        []string `json:"warnings,omitempty"` // each may
}

// OK reports that nothing prevents issuing.
func (r *Report) OK() bool { return len(r.Errors) == 0 }

func (r *Report) fail(format string, args ...any) {
	r.Errors = append(r.Errors, fmt.Sprintf(format, args...))
}

// Check reads the directory and asks for the account, if one is registered. It
// changes nothing: a missing account is registered by the first order, since an
// external account binding is good for one registration.
func (i *Issuer) Check(ctx context.Context) *Report {
	ctx, cancel := context.WithTimeout(ctx, i.cfg.Timeout)
	defer cancel()
	r := &Report{Directory: i.cfg.Directory, Mode: i.cfg.Mode}
	dir, err := i.directory(ctx)
	if err != nil {
		r.fail("%v", err)
		return r
	}
	r.Terms, r.ExternalAccount = clip(dir.Terms, 300), dir.ExternalAccountRequired
	for _, name := range slices.Sorted(maps.Keys(dir.Profiles)) {
		r.Profiles = append(r.Profiles, clip(string(name), 60))
	}
	r.Errors = append(r.Errors, i.unfit(dir)...)
	if dir.RevokeURL == "" {
		r.Warnings = append(r.Warnings, "the server offers no revocation")
	}
	k, _, err := i.readAccount(ctx)
	switch {
	case err != nil:
		r.fail("%v", err)
	case k == nil || k.URL == "":
		r.Warnings = append(r.Warnings, "the account is not registered yet: the first order does it, and only then is the external account binding tried")
	default:
		r.Account = k.URL
		url, err := i.registered(ctx, i.newClient(k))
		switch {
		case errors.Is(err, client.ErrNoAccount):
			r.fail("the server does not know the account %s any more", k.URL)
		case err != nil:
			r.fail("%s", clip(err.Error(), maxDetail))
		case url != k.URL:
			r.Warnings = append(r.Warnings, fmt.Sprintf("the server names the account %s, the store %s", clip(url, 300), k.URL))
		}
	}
	return r
}

// directory reads the directory anew.
func (i *Issuer) directory(ctx context.Context) (client.Directory, error) {
	dir, err := (&client.Client{DirectoryURL: i.cfg.Directory, HTTPClient: i.http, UserAgent: userAgent, RetryBackoff: i.backoff}).Discover(ctx)
	if err != nil {
		return dir, fmt.Errorf("directory: cannot be read: %s", clip(err.Error(), maxDetail))
	}
	return dir, nil
}

// Ready reports why the upstream server cannot be used now, nil if it can. It
// asks for the directory at most once a minute and takes no longer than 3 seconds.
func (i *Issuer) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	last := func() (bool, error) {
		i.ready.mu.Lock()
		defer i.ready.mu.Unlock()
		return !i.ready.asked.IsZero() && i.cfg.Now().Sub(i.ready.asked) < readyAge, i.ready.err
	}
	if fresh, err := last(); fresh {
		return err
	}
	if err := i.ready.reading.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for the upstream server: %w", err)
	}
	defer i.ready.reading.Release(1)
	if fresh, err := last(); fresh {
		return err
	}
	dir, err := i.directory(ctx)
	if err == nil {
		if problems := i.unfit(dir); len(problems) > 0 {
			err = errors.New(problems[0])
		}
	}
	i.ready.mu.Lock()
	defer i.ready.mu.Unlock()
	i.ready.asked, i.ready.err = i.cfg.Now(), err
	return err
}
