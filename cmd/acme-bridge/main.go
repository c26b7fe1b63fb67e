// Command acme-bridge is an ACME server (RFC 8555) in front of NAVER Cloud
// Private CA and Certificate Manager, or of a certificate authority of its own.
//
// main.go has the commands, serve.go runs the server, and build.go makes its
// parts from the configuration, with backends.go and publishers.go: the switches
// that pick store, backends and publishers. domain.go and order.go ask a server
// that runs, by adminclient.go; cm.go asks Certificate Manager itself.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker for releases.
var version = ""

// A usageError ends the program with status 2: wrong usage or configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	root := rootCommand()
	root.SetArgs(args)
	return exitStatus(root.ExecuteContext(ctx), os.Stderr)
}

// exitStatus tells what went wrong, in words and by number.
func exitStatus(err error, stderr io.Writer) int {
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintln(stderr, err)
		return 2
	}
	fmt.Fprintln(stderr, "acme-bridge:", err)
	return 1
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "acme-bridge",
		Short:         "ACME server in front of NAVER Cloud Private CA, Certificate Manager or a CA of its own",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usage(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see acme-bridge help", err)}
	})
	root.AddCommand(serveCommand(), configCommand(), domainCommand(), orderCommand(), cmCommand(), &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  usage(cobra.NoArgs),
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), versionText()) },
	})
	return root
}

// usage makes wrong arguments end with status 2.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w; see acme-bridge help", err)}
		}
		return nil
	}
}

func versionText() string {
	v := version
	if v == "" {
		v = "devel"
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v += " " + s.Value
			}
		}
		v += " " + info.GoVersion
	}
	return "acme-bridge " + v
}
