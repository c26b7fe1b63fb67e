package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// checkACME checks a backend that is another ACME server.
func (d *decoder) checkACME(c *Config, b *Backend, key string) {
	if b.Directory == "" {
		d.errorf(key+".directory", "is required: the URL of the other server's directory")
	} else if err := checkDirectoryURL(b.Directory); err != nil {
		d.errorf(key+".directory", "%q %v", clip(b.Directory), err)
	}
	switch {
	case !d.oneOf(key+".mode", b.Mode, ModePre, ModeDNS01):
	case b.Mode == ModeDNS01 && b.Publisher == "":
		d.errorf(key+".publisher", "is required in mode dns01: it answers the other server's dns-01 challenges, which this server cannot do by itself")
	case b.Mode == ModePre && b.Publisher != "":
		d.errorf(key+".publisher", "is only for mode dns01, and mode is pre: remove it, or set mode: dns01")
	case b.Publisher != "" && c.Publishers[b.Publisher] == nil:
		d.dangling(key+".publisher", b.Publisher, "publisher", "publishers", keysOf(c.Publishers))
	}
	switch {
	case b.EABKeyID != "" && !b.EABKey.IsSet():
		d.errorf(key+".eab_key", "is required with eab_key_id: the HMAC key, as env:NAME or file:PATH")
	case b.EABKeyID == "" && b.EABKey.IsSet():
		d.errorf(key+".eab_key_id", "is required with eab_key: the name that the server knows the key by")
	case b.EABKey.IsSet():
		// The value is not quoted, it is secret.
		if k, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(b.EABKey.Reveal(), "=")); err != nil {
			d.errorf(key+".eab_key", "is not Base64url: give the HMAC key as the CA has shown it")
		} else if len(k) < 16 {
			d.errorf(key+".eab_key", "is shorter than 128 bits: is it whole?")
		}
	}
	for i, contact := range b.Contact {
		if !strings.HasPrefix(contact, "mailto:") || !strings.Contains(contact, "@") {
			d.errorf(fmt.Sprintf("%s.contact[%d]", key, i), "%q must be a mailto: URL, such as mailto:ops@corp.example", clip(contact))
		}
	}
	d.between(key+".timeout", b.Timeout, seconds(1), seconds(60))
	d.between(key+".order_timeout", b.OrderTimeout, seconds(60), 7*day)
	d.rootsFile(key+".roots_file", b.RootsFile)
	d.rootsFile(key+".directory_roots_file", b.DirectoryRootsFile)
}

func checkDirectoryURL(value string) error {
	u, err := url.Parse(value)
	switch {
	case err != nil || u.Hostname() == "" || u.User != nil || strings.Contains(value, "#"):
		return errors.New("must be a URL with a host, without user and fragment")
	case u.Scheme == "https", u.Scheme == "http" && isLoopback(u.Hostname()):
		return nil
	}
	return errors.New("must begin with https://; http:// is only for loopback addresses")
}
