package publisher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/miekg/dns"
)

const (
	// DefaultTimeout bounds one exchange with one server by one protocol.
	DefaultTimeout = 2 * time.Second

	udpSize = 1232 // what fits a packet everywhere (DNS flag day 2020)
	// tsigFudge is how far clocks may be apart (RFC 8945, Section 10).
	tsigFudge = 300
)

// A Querier sends DNS messages over UDP, and over TCP when UDP brings no answer
// or a truncated one. It is not to be changed once in use.
type Querier struct {
	Timeout time.Duration                                                        // of each protocol; 0: DefaultTimeout
	Dial    func(ctx context.Context, network, address string) (net.Conn, error) // nil: net.Dialer
	Now     func() time.Time                                                     // nil: time.Now
	TSIG    *TSIG                                                                // signs every message; nil: none does
}

// A TSIG is a key for signing messages (RFC 8945).
type TSIG struct {
	Name      string // canonical
	Algorithm string // canonical, such as dns.HmacSHA256
	Secret    string // base64
}

// A TSIGError says that a server's answer is not signed as it must be. Code is
// what the server gave for the reason: BADSIG, BADKEY, BADTIME, or "".
type TSIGError struct {
	Code string
	Err  error
}

func (e *TSIGError) Error() string {
	if e.Code != "" {
		return "TSIG refused: " + e.Code
	}
	return "TSIG of the answer: " + e.Err.Error()
}
func (e *TSIGError) Unwrap() error { return e.Err }

var errUnsigned = errors.New("the answer to a signed message is not signed")

// Query asks a server for the records of a type.
func (q *Querier) Query(ctx context.Context, server, name string, qtype uint16, recursive bool) (*dns.Msg, error) {
	m := new(dns.Msg).SetQuestion(dns.CanonicalName(name), qtype)
	m.RecursionDesired = recursive
	m.SetEdns0(udpSize, false)
	msg, err := q.Exchange(ctx, server, m)
	if err == nil && (msg.Rcode == dns.RcodeFormatError || msg.Rcode == dns.RcodeNotImplemented) {
		m.Extra = nil // a server that does not know EDNS
		msg, err = q.Exchange(ctx, server, m)
	}
	return msg, err
}

// Exchange sends a message and returns the answer to it, whatever its code. An
// answer whose signature fails is an error. It may send the message twice, so
// whatever the message asks for must bear that.
func (q *Querier) Exchange(ctx context.Context, server string, m *dns.Msg) (*dns.Msg, error) {
	msg, err := q.exchange(ctx, "udp", server, m)
	if _, refused := errors.AsType[*TSIGError](err); refused || err == nil && !msg.Truncated || ctx.Err() != nil {
		return msg, err
	}
	if msg, err := q.exchange(ctx, "tcp", server, m); err == nil {
		return msg, nil
	} else if _, refused := errors.AsType[*TSIGError](err); refused {
		return nil, err
	} else {
		return nil, fmt.Errorf("%s does not answer: %w", server, err)
	}
}

func (q *Querier) exchange(ctx context.Context, network, server string, m *dns.Msg) (*dns.Msg, error) {
	timeout := q.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dial := q.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	raw, err := dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })() // ends reads when ctx does

	client := &dns.Client{Net: network, Timeout: timeout, UDPSize: udpSize}
	m = m.Copy() // signing changes the message
	m.Id = dns.Id()
	if q.TSIG != nil {
		now := time.Now
		if q.Now != nil {
			now = q.Now
		}
		client.TsigSecret = map[string]string{q.TSIG.Name: q.TSIG.Secret}
		m.SetTsig(q.TSIG.Name, q.TSIG.Algorithm, tsigFudge, now().Unix())
	}
	msg, _, err := client.ExchangeWithConnContext(ctx, m, &dns.Conn{Conn: raw})
	if msg != nil && q.TSIG != nil {
		if err := checkSigned(msg, err); err != nil {
			return nil, err
		}
		if errors.Is(err, dns.ErrAuth) { // the library does not check signatures of NOTAUTH
			err = nil
		}
	}
	switch {
	case err != nil:
		return nil, err
	case !msg.Response || msg.Id != m.Id || msg.Opcode != m.Opcode:
		return nil, errors.New("the answer is for another question")
	case m.Opcode == dns.OpcodeQuery && (len(msg.Question) != 1 || msg.Question[0].Qtype != m.Question[0].Qtype ||
		dns.CanonicalName(msg.Question[0].Name) != m.Question[0].Name):
		return nil, errors.New("the answer is for another question")
	}
	return msg, nil
}

// checkSigned judges the signature of an answer. Refusals of a key are not
// signed, or with an error in place of the signature (RFC 8945, Section 5.3.2):
// they are believed only for their reason.
func checkSigned(msg *dns.Msg, err error) error {
	t := msg.IsTsig()
	switch {
	case t == nil && err == nil && msg.Rcode == dns.RcodeSuccess:
		return &TSIGError{Err: errUnsigned}
	case t == nil:
		return nil
	case t.Error != dns.RcodeSuccess:
		code, ok := dns.RcodeToString[int(t.Error)]
		if !ok {
			code = "an unknown error"
		}
		// The library names 16 after EDNS's error with the same number.
		if t.Error == dns.RcodeBadSig {
			code = "BADSIG"
		}
		return &TSIGError{Code: code, Err: err}
	case err != nil && !errors.Is(err, dns.ErrAuth):
		return &TSIGError{Err: err}
	}
	return nil
}
