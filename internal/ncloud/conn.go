package ncloud

import (
	"crypto/tls"
	"net"
	"net/http/httptrace"
	"sync"
)

// A trackedConn can say, and guarantee for the future, that nothing of a
// request went out. net/http cannot: after a cancelled call its write loop may
// still be about to write.
type trackedConn struct {
	net.Conn
	mu     sync.Mutex
	writes uint64
	sealed bool
}

func (c *trackedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	if c.sealed {
		c.mu.Unlock()
		return 0, net.ErrClosed
	}
	c.writes++
	c.mu.Unlock()
	return c.Conn.Write(p)
}

func (c *trackedConn) written() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

// seal refuses further writes and reports whether there was none since the
// count before.
func (c *trackedConn) seal(before uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sealed = true
	return c.writes == before
}

// A sending watches one attempt, which over HTTP/1 has a connection for itself
// from the moment it gets it.
type sending struct {
	mu     sync.Mutex
	got    bool
	conn   *trackedConn
	before uint64
}

func (s *sending) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		c := info.Conn
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn() // records below TLS: the handshake is over by now
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.got {
			// The transport took a second connection, which it does only for
			// reads; what the first one carried is no longer known.
			s.conn = nil
			return
		}
		s.got = true
		if t, ok := c.(*trackedConn); ok {
			s.conn, s.before = t, t.written()
		}
	}}
}

// unsent reports, after a failed attempt, that its request was not sent and
// will not be.
func (s *sending) unsent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.got {
		return true
	}
	return s.conn != nil && s.conn.seal(s.before)
}
