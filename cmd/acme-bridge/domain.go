package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/acme-bridge/acme-bridge/admin"
)

// The states of a domain that end a wait.
const (
	domainValid   = "VALID"
	domainInvalid = "INVALID"
)

// A domainCommands is "acme-bridge domain" and what is below it.
type domainCommands struct {
	adminClient
	backend string
	wait    bool
	timeout time.Duration
	// pause waits between two checks.
	pause func(ctx context.Context, d time.Duration) error
}

func domainCommand() *cobra.Command {
	c := &domainCommands{pause: pause}
	cmd := &cobra.Command{
		Use:   "domain",
		Short: "Validate domains at Certificate Manager ahead of orders",
		Args:  usage(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.flags(cmd)
	prepare := cmd.PersistentPreRunE
	cmd.PersistentPreRunE = func(run *cobra.Command, args []string) error {
		if run == cmd {
			return nil // shows the help
		}
		if c.backend == "" {
			return usageError{errors.New("--backend is needed: the name of a backend of type certmanager in the configuration")}
		}
		return prepare(run, args)
	}
	cmd.PersistentFlags().StringVar(&c.backend, "backend", "", "`NAME` of the backend, of type certmanager")
	add := &cobra.Command{
		Use: "add DOMAIN --backend B", Short: "Register a domain; its record is published, or shown for you to publish",
		Args: usage(cobra.ExactArgs(1)), RunE: c.add,
	}
	check := &cobra.Command{
		Use: "check DOMAIN --backend B", Short: "Show a domain's state; status 1 unless it is VALID",
		Args: usage(cobra.ExactArgs(1)), RunE: c.check,
	}
	for _, sub := range []*cobra.Command{add, check} {
		sub.Flags().BoolVar(&c.wait, "wait", false, "wait until the domain is VALID or INVALID; status 1 unless it is VALID")
		sub.Flags().DurationVar(&c.timeout, "timeout", 30*time.Minute, "how long to wait")
	}
	cmd.AddCommand(add, check, &cobra.Command{
		Use: "list --backend B", Short: "List the domains and their states",
		Args: usage(cobra.NoArgs), RunE: c.list,
	}, &cobra.Command{
		Use: "remove DOMAIN --backend B", Short: "Remove a domain, so that it is validated no more",
		Args: usage(cobra.ExactArgs(1)), RunE: c.remove,
	})
	return cmd
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *domainCommands) path(more ...string) []string {
	return append([]string{"api", "v1", "backends", c.backend, "domains"}, more...)
}

func (c *domainCommands) list(cmd *cobra.Command, _ []string) error {
	var answer struct{ Domains []admin.Domain }
	raw, err := c.ask(cmd.Context(), http.MethodGet, nil, &answer, c.path()...)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if c.output == "json" {
		return write(out, raw)
	}
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "DOMAIN\tSTATE\tKIND\tEXPIRES\tNOTES")
	for _, d := range answer.Domains {
		notes := ""
		for i, n := range d.Notes {
			if i > 0 {
				notes += "; "
			}
			notes += plain(n)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", plain(d.Name), plain(d.State), plain(d.Kind), date(d.Expires), notes)
	}
	return t.Flush()
}

func (c *domainCommands) add(cmd *cobra.Command, args []string) error {
	var d admin.Domain
	raw, err := c.ask(cmd.Context(), http.MethodPost, map[string]string{"domain": args[0]}, &d, c.path()...)
	if err != nil {
		return err
	}
	if c.wait && d.State != domainValid {
		if err := c.show(cmd.ErrOrStderr(), raw, &d); err != nil {
			return err
		}
		return c.await(cmd, &d)
	}
	return c.show(cmd.OutOrStdout(), raw, &d)
}

func (c *domainCommands) check(cmd *cobra.Command, args []string) error {
	var d admin.Domain
	raw, err := c.ask(cmd.Context(), http.MethodPost, nil, &d, c.path(args[0], "check")...)
	if err != nil {
		return err
	}
	if c.wait && d.State != domainValid && d.State != domainInvalid {
		return c.await(cmd, &d)
	}
	if err := c.show(cmd.OutOrStdout(), raw, &d); err != nil {
		return err
	}
	return stateError(&d)
}

func stateError(d *admin.Domain) error {
	switch d.State {
	case domainValid:
		return nil
	case domainInvalid:
		return fmt.Errorf("%s is INVALID: orders for it are refused; let the record be served, or remove the domain and add it again", plain(d.Name))
	}
	return fmt.Errorf("%s is %s: orders for it are refused until the CA has seen the record", plain(d.Name), plain(d.State))
}

// Between two checks of a domain that is waited for.
const (
	checkSoonest = time.Second
	checkLatest  = 15 * time.Second
)

// await checks a domain until its state is an end, and shows it then.
func (c *domainCommands) await(cmd *cobra.Command, d *admin.Domain) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout)
	defer cancel()
	name := d.Name
	for wait := checkSoonest; ; wait = min(2*wait, checkLatest) {
		if err := c.pause(ctx, wait); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("%s is still %s after %s: go on with acme-bridge domain check --wait", plain(name), plain(d.State), c.timeout)
			}
			return errors.New("interrupted; the domain stays registered, and acme-bridge domain check tells how it stands")
		}
		*d = admin.Domain{}
		raw, err := c.ask(ctx, http.MethodPost, nil, d, c.path(name, "check")...)
		if err != nil {
			if ctx.Err() != nil {
				continue // told above
			}
			return err
		}
		if d.State == domainValid || d.State == domainInvalid {
			if err := c.show(cmd.OutOrStdout(), raw, d); err != nil {
				return err
			}
			return stateError(d)
		}
	}
}

func (c *domainCommands) remove(cmd *cobra.Command, args []string) error {
	var answer struct{ Domain string }
	raw, err := c.ask(cmd.Context(), http.MethodDelete, nil, &answer, c.path(args[0])...)
	if err != nil {
		return err
	}
	if c.output == "json" {
		return write(cmd.OutOrStdout(), raw)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s is removed. Its record in DNS serves no purpose any more.\n", plain(answer.Domain))
	return nil
}

// show writes one domain.
func (c *domainCommands) show(out io.Writer, raw []byte, d *admin.Domain) error {
	if c.output == "json" {
		return write(out, raw)
	}
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "Domain\t%s\n", plain(d.Name))
	fmt.Fprintf(t, "State\t%s\n", plain(d.State))
	if !d.Expires.IsZero() {
		fmt.Fprintf(t, "Expires\t%s\n", date(d.Expires))
	}
	if r := d.Record; r != nil {
		fmt.Fprintf(t, "Record\t%s %s \"%s\"\n", plain(r.Name), plain(r.Type), plain(r.Value))
	}
	if d.Publisher != "" {
		fmt.Fprintf(t, "Published by\t%s\n", plain(d.Publisher))
	}
	for _, n := range d.Notes {
		fmt.Fprintf(t, "Note\t%s\n", plain(n))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if d.State != domainValid && d.Record != nil && d.Publisher == "" {
		fmt.Fprintln(out, "\nPublish the record in DNS and keep it there: it also serves renewals.")
	}
	return nil
}

// write writes JSON for programs, as the server has sent it.
func write(out io.Writer, raw json.RawMessage) error {
	_, err := out.Write(raw)
	return err
}
