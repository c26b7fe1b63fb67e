package validation

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/acme-bridge/acme-bridge/acme"
)

// FuzzDNSAnswer reads whatever a resolver may send. Only TXT records in it with
// the digest as their text prove anything.
func FuzzDNSAnswer(f *testing.F) {
	const name = "_acme-challenge.a.example."
	for _, texts := range [][]string{
		{name + " 60 IN TXT x"},
		{name + ` 60 IN TXT "a" "b" "\255"`},
		{name + " 60 IN CNAME b.example.", "b.example. 60 IN TXT " + digestText()},
		{name + " 60 IN CNAME " + name},
	} {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeTXT)
		m.Response = true
		for _, text := range texts {
			rr, err := dns.NewRR(text)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		wire, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		msg := new(dns.Msg)
		if msg.Unpack(wire) != nil {
			return
		}
		isAnswer(msg, new(dns.Msg).SetQuestion(name, dns.TypeTXT))
		records, _, n := recordsAt(msg.Answer, name, dns.TypeTXT, maxAliases)
		if n > maxAliases+1 || len(records) > len(msg.Answer) {
			t.Errorf("%d records after %d aliases", len(records), n)
		}
		if slices.Contains(joinTXT(records), digestText()) && !strings.Contains(strings.ReplaceAll(msg.String(), `" "`, ""), digestText()) {
			t.Error("a digest that is not there was found")
		}
	})
}

// FuzzHTTPAnswer reads whatever a web server may send.
func FuzzHTTPAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 87\r\n\r\n" + keyAuth,
		"HTTP/1.1 200 OK\r\n\r\n" + keyAuth + "\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n57\r\n" + keyAuth + "\r\n0\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.0 404 Not Found\r\n\r\n",
		"HTTP/1.1 302 Found\r\nLocation: http://b.localhost/\r\n\r\n",
		"HTTP/1.1 302 Found\r\nLocation: https://user@[::1]:22/?\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		v := newTestValidator(t, Config{Dial: func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() {
				defer server.Close()
				if _, err := http.ReadRequest(bufio.NewReader(server)); err == nil {
					server.Write(answer)
				}
			}()
			return client, nil
		}})
		err := v.Validate(t.Context(), validationFor(acme.HTTP01, "a.localhost"))
		if err == nil && !strings.Contains(string(answer), token) && !strings.Contains(string(answer), "chunked") {
			t.Error("a proof that is not there was found")
		}
		if _, ok := errors.AsType[*acme.Problem](err); err != nil && !ok {
			t.Errorf("%v is no problem", err)
		}
	})
}
