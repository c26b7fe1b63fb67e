package server_test

import (
	"net/http"
	"testing"
)

// BenchmarkSignedRead is a POST-as-GET of an order on the store in a file: JWS,
// nonce, one look into the store, answer. The client's signing is not counted.
func BenchmarkSignedRead(b *testing.B) {
	w := newWorld(b)
	c := w.newAccountClient()
	o := c.newOrder("a.example")
	benchmarkSigned(b, c, o.URL, "")
}

// BenchmarkSignedRefused is a request that ends at its signature: what one
// without an account costs us.
func BenchmarkSignedRefused(b *testing.B) {
	w := newWorld(b)
	c := w.newAccountClient()
	c.key = newECKey(b)
	benchmarkSigned(b, c, "/new-order", orderFor("a.example"))
}

func benchmarkSigned(b *testing.B, c *client, target, payload string) {
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		m := c.message(target, payload)
		m.body = m.envelope(b)
		b.StartTimer()
		if a := c.send(m); a.header.Get("Replay-Nonce") == "" || a.status == http.StatusBadRequest {
			b.Fatalf("%d %s", a.status, a.body)
		}
	}
}

// BenchmarkNewNonce writes nothing.
func BenchmarkNewNonce(b *testing.B) {
	c := newWorld(b).newClient()
	b.ReportAllocs()
	for b.Loop() {
		c.plain(http.MethodHead, "/new-nonce")
	}
}
