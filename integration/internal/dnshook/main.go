// Command dnshook publishes and removes TXT records at the tests' DNS server.
// It is run by lego's provider "exec", as
//
//	dnshook present|cleanup FQDN VALUE
//
// and by certbot's manual hooks, as dnshook auth and dnshook cleanup with the
// name and the value in the environment. DNSHOOK_URL is where the server listens
// for changes.
package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "dnshook:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var name, value string
	switch {
	case len(args) == 1:
		name, value = "_acme-challenge."+os.Getenv("CERTBOT_DOMAIN"), os.Getenv("CERTBOT_VALIDATION")
	case len(args) == 3:
		name, value = strings.TrimSuffix(args[1], "."), args[2]
	default:
		return fmt.Errorf("wrong arguments %q", args)
	}
	method, ok := map[string]string{"auth": http.MethodPut, "present": http.MethodPut, "cleanup": http.MethodDelete}[args[0]]
	if !ok || value == "" {
		return fmt.Errorf("arguments %q: unknown word, or no value given", args)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	query := url.Values{"name": {name}, "value": {value}}
	req, err := http.NewRequestWithContext(ctx, method, os.Getenv("DNSHOOK_URL")+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the DNS server answers %s", res.Status)
	}
	return nil
}
