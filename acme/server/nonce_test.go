package server_test

import (
	"encoding/base64"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acme-bridge/acme-bridge/acme"
	"github.com/acme-bridge/acme-bridge/acme/server"
)

// together sends the messages at once, in turn to all replicas.
func (c *client) together(messages []*message) []*answer {
	answers := make([]*answer, len(messages))
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i, m := range messages {
		m.body = m.envelope(c)
		wg.Go(func() {
			<-start
			answers[i] = c.sendTo(i%len(c.replicas), m)
		})
	}
	close(start)
	wg.Wait()
	return answers
}

// statuses counts answers by status.
func statuses(answers []*answer) map[int]int {
	n := make(map[int]int)
	for _, a := range answers {
		n[a.status]++
	}
	return n
}

// TestLesson15_OneOfManyUsesOfANonceWins: over two replicas on one Redis.
func TestLesson15_OneOf100UsesOfANonceOverTwoReplicasWins(t *testing.T) {
	w, _ := newSharedWorld(t)
	c := w.newAccountClient()
	nonce := c.takeNonce()
	messages := make([]*message, 100)
	for i := range messages {
		messages[i] = c.message(c.kid, "", withHeader("nonce", nonce))
	}
	answers := c.together(messages)
	if got := statuses(answers); got[http.StatusOK] != 1 || got[http.StatusBadRequest] != 99 {
		t.Errorf("statuses %v, want one 200 and 99 times 400", got)
	}
	for _, a := range answers {
		if a.status != http.StatusOK {
			a.wantProblem(http.StatusBadRequest, acme.BadNonce)
		}
	}
}

func TestSection6_5_BadNonces(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	used := c.takeNonce()
	c.post(c.kid, "", withHeader("nonce", used)).want(http.StatusOK)
	flip := func(i int) string {
		b, err := base64.RawURLEncoding.DecodeString(c.takeNonce())
		if err != nil {
			t.Fatal(err)
		}
		b[i] ^= 1
		return b64(b)
	}
	n := len(used) * 3 / 4
	for name, nonce := range map[string]any{
		"used": used, "missing": nil, "empty": "", "unknown": strings.Repeat("A", len(used)), "short": "AAAA", "long": used + "AAAA",
		"another time": flip(3), "another body": flip(8), "another MAC": flip(n - 1),
	} {
		a := c.post(c.kid, "", withHeader("nonce", nonce))
		a.what = "nonce: " + name
		p := a.wantProblem(http.StatusBadRequest, acme.BadNonce)
		// acme.sh reads the words and not the type.
		if !strings.Contains(p.Detail, "JWS has an invalid anti-replay nonce") {
			t.Errorf("%s: detail %q", a.what, p.Detail)
		}
		fresh := a.header.Get("Replay-Nonce")
		if fresh == "" || fresh == used {
			t.Fatalf("%s: answered with nonce %q", a.what, fresh)
		}
		c.post(c.kid, "", withHeader("nonce", fresh)).want(http.StatusOK)
	}
}

// TestSection6_5_ANonceIsSpentEvenIfTheRequestFails: by a bad signature, or in
// the handler.
func TestSection6_5_ANonceIsSpentEvenIfTheRequestFails(t *testing.T) {
	c := newWorld(t).newAccountClient()
	for name, fail := range map[string]func(edit) *answer{
		"bad signature": func(e edit) *answer {
			return c.post(c.kid, "", e, func(m *message) { m.key = fixedSignature{signature: make([]byte, 64)} })
		},
		"refused by the handler": func(e edit) *answer { return c.post("/new-order", `{"identifiers":[]}`, e) },
		"no such order":          func(e edit) *answer { return c.read("/order/"+strings.Repeat("0", 28), e) },
		"no such account": func(e edit) *answer {
			return c.read(c.kid, e, withHeader("kid", external+"/account/"+strings.Repeat("0", 28)))
		},
	} {
		nonce := c.takeNonce()
		if a := fail(withHeader("nonce", nonce)); a.status < 400 {
			t.Fatalf("%s: %d", name, a.status)
		}
		a := c.post(c.kid, "", withHeader("nonce", nonce))
		a.what = "nonce used before in: " + name
		a.wantProblem(http.StatusBadRequest, acme.BadNonce)
	}
}

func TestSection6_5_NoncesExpire(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	young, old := c.takeNonce(), c.takeNonce()
	w.advance(59 * time.Minute)
	c.post(c.kid, "", withHeader("nonce", young)).want(http.StatusOK)
	w.advance(2 * time.Minute)
	c.post(c.kid, "", withHeader("nonce", old)).wantProblem(http.StatusBadRequest, acme.BadNonce)
	c.read(c.kid).want(http.StatusOK)
}

func TestSection6_5_NoncesOfOneReplicaWorkAtTheOther(t *testing.T) {
	w, _ := newSharedWorld(t)
	c := w.newAccountClient()
	for i := range 6 {
		c.via = i % 2
		c.read(c.kid).want(http.StatusOK)
	}
}

// TestSection6_5_ALostNonceKeyCostsOneRetry: a store that lost its nonces
// answers badNonce, and the nonce of that answer works.
func TestSection6_5_ALostNonceKeyCostsOneRetry(t *testing.T) {
	w, redis := newSharedWorld(t)
	c := w.newAccountClient()
	for _, via := range []int{0, 1} {
		c.via = via
		c.read(c.kid).want(http.StatusOK)
	}
	redis.command(t, "EVAL", `for _, k in ipairs(redis.call("KEYS", "*{nonce}*")) do redis.call("DEL", k) end`, "0")
	for _, via := range []int{0, 1} {
		c.via = via
		a := c.read(c.kid)
		if a.status == http.StatusBadRequest {
			a.wantProblem(http.StatusBadRequest, acme.BadNonce)
			a = c.read(c.kid)
		}
		a.want(http.StatusOK)
	}
}

// TestSection6_5_ALostNonceKeyWithTwoReplicas: the retry may reach the other
// replica, whose key is out of date; certbot retries only once.
func TestSection6_5_ALostNonceKeyWithTwoReplicasCostsOneRetry(t *testing.T) {
	w, redis := newSharedWorld(t)
	c := w.newAccountClient()
	for _, via := range []int{0, 1} {
		c.via = via
		c.read(c.kid).want(http.StatusOK)
	}
	redis.command(t, "EVAL", `for _, k in ipairs(redis.call("KEYS", "*{nonce}*")) do redis.call("DEL", k) end`, "0")
	c.via = 0
	c.read(c.kid).wantProblem(http.StatusBadRequest, acme.BadNonce)
	c.via = 1
	c.read(c.kid).want(http.StatusOK)
}

func TestAFloodOfNewNonceWritesNothing(t *testing.T) {
	w, redis := newSharedWorld(t)
	c := w.newAccountClient()
	before := redis.command(t, "DBSIZE")
	for range 200 {
		c.plain(http.MethodHead, "/new-nonce").want(http.StatusOK)
	}
	if after := redis.command(t, "DBSIZE"); after != before {
		t.Errorf("keys in Redis: %s before, %s after 200 nonces", before, after)
	}
}

func TestNonceMarksAreKeptAsLongAsTheNonceLives(t *testing.T) {
	w := newWorld(t)
	c := w.newAccountClient()
	nonce := c.takeNonce()
	c.post(c.kid, "", withHeader("nonce", nonce)).want(http.StatusOK)
	w.setPolicy(func(*server.Policy) {}) // a reload forgets nothing
	w.advance(59 * time.Minute)
	c.post(c.kid, "", withHeader("nonce", nonce)).wantProblem(http.StatusBadRequest, acme.BadNonce)
}
