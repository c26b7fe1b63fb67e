// Command caddy is the web server Caddy with the modules that automatic HTTPS
// needs and no others, so that it builds quickly. It takes the path of a
// configuration in Caddy's JSON form, and serves until SIGTERM.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp" // the app "http" and static responses
	_ "github.com/caddyserver/caddy/v2/modules/caddytls"  // the app "tls" and the issuer "acme"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "caddy:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: caddy CONFIG.json")
	}
	config, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	if err := caddy.Load(config, true); err != nil {
		return err
	}
	<-ctx.Done()
	return caddy.Stop()
}
