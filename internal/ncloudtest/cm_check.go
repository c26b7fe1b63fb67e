package ncloudtest

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// A checker asks a resolver for validation records.
type checker struct {
	resolver string     // host:port; "": there is none, and no record is ever found
	mu       sync.Mutex // one round at a time
}

// checkTimeout bounds one question.
const checkTimeout = 2 * time.Second

// checkEvery looks for records until the simulator closes.
func (s *Simulator) checkEvery(interval time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.background.Go(func() {
		<-s.closed
		cancel()
	})
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.Tick(ctx)
		case <-s.closed:
			return
		}
	}
}

// checkOnCall looks for records if the behaviour wants it at every call.
func (s *Simulator) checkOnCall(ctx context.Context) {
	if s.present().CM.CheckOnCall {
		s.Tick(ctx)
	}
}

// Tick looks for every record that Certificate Manager waits for or watches,
// and lets pending work go on as the clock allows. It returns how many domains
// of requests and pre-validated domains have changed their state.
func (s *Simulator) Tick(ctx context.Context) int {
	s.checker.mu.Lock()
	defer s.checker.mu.Unlock()
	s.mu.Lock()
	s.advance()
	var questions []string
	want := func(fqdn string) {
		if !slices.Contains(questions, fqdn) {
			questions = append(questions, fqdn)
		}
	}
	for _, x := range s.cm.certs {
		for _, d := range x.dcv {
			if x.status == certOngoing && d.status == dcvWaiting {
				want(d.fqdn)
			}
		}
	}
	for _, d := range s.cm.domains {
		want(d.fqdn)
	}
	s.cm.count.Checks += int64(len(questions))
	s.mu.Unlock()

	found := map[string][]string{} // no entry: not known
	for _, q := range questions {
		if values, err := s.checker.txt(ctx, q); err == nil {
			found[q] = values
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	changed := 0
	for _, x := range s.cm.certs {
		for _, d := range x.dcv {
			if x.status == certOngoing && d.status == dcvWaiting && slices.Contains(found[d.fqdn], d.value) {
				d.status = dcvSuccess
				changed++
			}
		}
	}
	for _, d := range s.cm.domains {
		if values, known := found[d.fqdn]; known && d.seen(slices.Contains(values, d.value), s.now(), s.behaviour.CM) {
			changed++
		}
	}
	s.advance()
	return changed
}

// txt asks for the TXT records of a name, over UDP and then TCP if the answer
// does not fit. That there are none is no error.
func (k *checker) txt(ctx context.Context, fqdn string) ([]string, error) {
	if k.resolver == "" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	m := new(dns.Msg).SetQuestion(fqdn, dns.TypeTXT)
	m.SetEdns0(1232, false)
	var answer *dns.Msg
	for _, network := range []string{"udp", "tcp"} {
		var err error
		if answer, _, err = (&dns.Client{Net: network}).ExchangeContext(ctx, m, k.resolver); err != nil {
			return nil, err
		}
		if !answer.Truncated {
			break
		}
	}
	if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("%s: %s", fqdn, dns.RcodeToString[answer.Rcode])
	}
	var values []string
	for _, rr := range answer.Answer {
		if t, ok := rr.(*dns.TXT); ok {
			values = append(values, plain(strings.Join(t.Txt, "")))
		}
	}
	return values, nil
}

// plain undoes how package dns writes octets that are special in a zone file:
// as \DDD or with a backslash before them.
func plain(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+1 < len(text) {
			i++
			if n, err := strconv.ParseUint(text[i:min(i+3, len(text))], 10, 8); err == nil && i+2 < len(text) {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// checkAddress accepts host:port, or "" for none.
func checkAddress(address string) error {
	if address == "" {
		return nil
	}
	_, _, err := net.SplitHostPort(address)
	return err
}

// advance lets time do its work: requests time out, validated ones become
// certificates, revocations end. The caller holds mu.
func (s *Simulator) advance() {
	now, b := s.now(), s.behaviour.CM
	for _, x := range s.cm.certs {
		switch x.status {
		case certOngoing:
			s.advanceRequest(x, now, b)
		case certRevoking:
			if !now.Before(x.revokeAt) {
				x.status, x.updated = certRevoked, now
			}
		}
	}
	for _, d := range s.cm.domains {
		d.age(now, b)
	}
}

func (s *Simulator) advanceRequest(x *cmCert, now time.Time, b CMBehaviour) {
	end := func(code string) {
		x.status, x.updated = code, now
		s.cm.count.Failed++
	}
	if x.outcome == "-3" || x.outcome == certValidLate {
		if !now.Before(x.requested.Add(millis(b.IssueDelayMS))) {
			x.timeOut()
			end(x.outcome)
		}
		return
	}
	if slices.ContainsFunc(x.dcv, func(d *dcv) bool { return d.status != dcvSuccess }) {
		if b.ValidationTimeoutMS > 0 && !now.Before(x.requested.Add(millis(b.ValidationTimeoutMS))) {
			x.timeOut()
			end(b.TimeoutCode)
		}
		return
	}
	if x.validated.IsZero() {
		x.validated = now
	}
	if now.Before(x.validated.Add(millis(b.IssueDelayMS))) {
		return
	}
	if x.outcome != "" {
		end(x.outcome)
		return
	}
	if err := s.issuePublic(x, b); err != nil {
		end("-1")
		return
	}
	x.status, x.updated = b.IssuedCode, now
}

func (x *cmCert) timeOut() {
	for _, d := range x.dcv {
		if d.status == dcvWaiting {
			d.status = dcvTimedOut
		}
	}
}

// issuePublic makes the certificate of a validated request.
func (s *Simulator) issuePublic(x *cmCert, b CMBehaviour) error {
	l := leafTemplate{commonName: x.commonName, dnsNames: x.names(), key: x.csr.PublicKey, days: b.ValidityDays}
	cert, err := s.cm.sub.makeLeaf(s, l, x.fault)
	if err != nil {
		return err
	}
	if last := len(s.cm.sub.issued) - 1; last >= 0 && x.fault != nil && x.fault.Kind == StaleCertificate {
		x.cert = s.cm.sub.issued[last].cert
	} else {
		x.cert = cert
	}
	s.cm.sub.issued = append(s.cm.sub.issued, &issuedCert{cert: cert})
	key := KeyID(cert.RawSubjectPublicKeyInfo)
	s.cm.issued = append(s.cm.issued, CMCertificate{No: x.no, OrderID: x.orderID, Name: x.name, Names: cert.DNSNames, Method: x.method,
		Key: key, Serial: serialText(cert), NotAfter: cert.NotAfter, PEM: certPEM(cert)})
	s.cm.count.Issued++
	s.cm.count.IssuedByKey[key]++
	return nil
}

// An outcome ends requests in a failure.
type outcome struct {
	Name  string `json:"name"`  // certificateName; "": any
	Code  string `json:"code"`  // statusCode: -1, -3, -4, -11, -12 or -20
	Count int    `json:"count"` // requests and reissues; 0: one; negative: until cleared
}

// ForceOutcome ends the next count requests and reissues (0: one; negative:
// all until [Simulator.ClearOutcomes]) under the certificateName ("": any) with a
// statusCode. -3 and -4 end validation; the others come after a good one.
func (s *Simulator) ForceOutcome(name, code string, count int) error {
	if !slices.Contains([]string{"-1", "-3", "-4", "-11", "-12", "-20"}, code) {
		return fmt.Errorf("code: %q is none of -1, -3, -4, -11, -12, -20", code)
	}
	if count == 0 {
		count = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cm.outcomes = append(s.cm.outcomes, &outcome{name, code, count})
	return nil
}

// ClearOutcomes takes back what [Simulator.ForceOutcome] has set for the future.
func (s *Simulator) ClearOutcomes() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cm.outcomes = nil
}

func (m *certManager) takeOutcome(name string) string {
	for i, o := range m.outcomes {
		if o.Name != "" && o.Name != name {
			continue
		}
		if o.Count > 0 {
			if o.Count--; o.Count == 0 {
				m.outcomes = slices.Delete(m.outcomes, i, i+1)
			}
		}
		return o.Code
	}
	return ""
}
