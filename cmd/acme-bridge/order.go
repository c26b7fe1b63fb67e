package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/admin"
)

func orderCommand() *cobra.Command {
	c := &adminClient{}
	cmd := &cobra.Command{
		Use:   "order",
		Short: "Look at orders",
		Args:  usage(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.flags(cmd)
	prepare := cmd.PersistentPreRunE
	cmd.PersistentPreRunE = func(run *cobra.Command, args []string) error {
		if run == cmd {
			return nil // shows the help
		}
		return prepare(run, args)
	}
	read := func(cmd *cobra.Command, id string) (*admin.Order, []byte, error) {
		var o admin.Order
		raw, err := c.ask(cmd.Context(), http.MethodGet, nil, &o, "api", "v1", "orders", id)
		return &o, raw, err
	}
	cmd.AddCommand(&cobra.Command{
		Use: "show ID", Short: "Show an order; the ID is the last part of its URL, or the URL itself",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, raw, err := read(cmd, lastPart(args[0]))
			switch {
			case err != nil:
				return err
			case c.output == "json":
				return write(cmd.OutOrStdout(), raw)
			}
			return showOrder(cmd.OutOrStdout(), o)
		},
	}, &cobra.Command{
		Use: "explain ID", Short: "Tell what happened to an order, what it waits for, and what to do",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, _, err := read(cmd, lastPart(args[0]))
			switch {
			case err != nil:
				return err
			case c.output == "json":
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				enc.SetEscapeHTML(false)
				return enc.Encode(o.Explanation)
			}
			return explainOrder(cmd.OutOrStdout(), o)
		},
	})
	return cmd
}

// lastPart lets an order's URL stand for its ID.
func lastPart(id string) string {
	id = strings.TrimSuffix(strings.TrimRight(id, "/"), "/finalize")
	return id[strings.LastIndexByte(id, '/')+1:]
}

func showOrder(out io.Writer, o *admin.Order) error {
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(key, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", key, plain(fmt.Sprintf(format, args...)))
	}
	line("Order", "%s", o.ID)
	line("Status", "%s", o.Status)
	line("Names", "%s", strings.Join(o.Names, ", "))
	line("Account", "%s", o.Account)
	line("Directory", "%s", o.Directory)
	line("Profile", "%s", o.Profile)
	line("Created", "%s", date(o.Created))
	line("Expires", "%s", date(o.Expires))
	for _, a := range o.Authorizations {
		var challenges []string
		for _, c := range a.Challenges {
			challenges = append(challenges, fmt.Sprintf("%s %s", c.Type, c.Status))
		}
		line("Authorization", "%s: %s (%s)", a.Name, a.Status, strings.Join(challenges, ", "))
	}
	if r := o.Request; r != nil {
		line("Asked", "backend %s, attempt %d, at %s", r.Backend, r.Attempt, date(r.Since))
	}
	for _, p := range problems(o.Error) {
		line("Error", "%s", p)
	}
	if c := o.Certificate; c != nil {
		line("Certificate", "%s", c.ID)
		line("Issued", "%s by backend %s", date(c.Issued), c.Backend)
		line("Valid until", "%s", date(c.NotAfter))
		line("Fetched", "%t", c.Fetched)
		if c.Revoked != nil {
			line("Revoked", "%s, reason %d", date(c.Revoked.Time), c.Revoked.Reason)
		}
	}
	return t.Flush()
}

// problems are the sentences of a problem and its subproblems.
func problems(p *acme.Problem) []string {
	if p == nil {
		return nil
	}
	all := []string{fmt.Sprintf("%s: %s", p.Type, p.Detail)}
	for _, sub := range p.Subproblems {
		if sub.Identifier != nil {
			all = append(all, fmt.Sprintf("%s: %s: %s", sub.Identifier.Value, sub.Type, sub.Detail))
		}
	}
	return all
}

func explainOrder(out io.Writer, o *admin.Order) error {
	e := o.Explanation
	fmt.Fprintf(out, "Order %s for %s is %s.\n\n", plain(o.ID), plain(strings.Join(o.Names, ", ")), o.Status)
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, s := range e.Steps {
		text := s.Text
		if s.Name != "" {
			text = s.Name + ": " + text
		}
		fmt.Fprintf(t, "  %s\t%s\n", date(s.Time), plain(text))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if e.WaitsFor != "" {
		fmt.Fprintf(out, "\nIt waits for %s.\n", plain(e.WaitsFor))
	}
	if len(e.ToDo) > 0 {
		fmt.Fprintln(out, "\nWhat to do:")
		for _, s := range e.ToDo {
			fmt.Fprintf(out, "  - %s\n", plain(s))
		}
	}
	return nil
}
