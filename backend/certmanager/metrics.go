package certmanager

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/internal/ncloud"
)

// metrics are shared by all issuers of one registry.
type metrics struct {
	requests, dcv, results                   *prometheus.CounterVec
	domainValid, domainExpires, domainRecord *prometheus.GaugeVec
	watchRuns                                *prometheus.CounterVec
	compromised                              *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var errs []error
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acme_bridge_certmanager_" + name, Help: help}, append([]string{"backend"}, labels...)), &errs)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "acme_bridge_certmanager_" + name, Help: help}, append([]string{"backend"}, labels...)), &errs)
	}
	m := &metrics{
		requests:      counter("requests_total", "Orders submitted, by kind (new is paid for; reissue; again costs nothing) and outcome.", "kind", "outcome"),
		dcv:           counter("dcv_changes_total", "Changes of the state of domain validations within requests.", "state"),
		results:       counter("results_total", "Requests that ended: issued, a status code of the service, dcv_timeout, or bridge_timeout.", "result"),
		domainValid:   gauge("domain_valid", "1 if Certificate Manager holds the domain for validated.", "domain"),
		domainExpires: gauge("domain_expires_seconds", "End of the domain's validation in Unix time, if known.", "domain"),
		domainRecord:  gauge("domain_record_present", "1 if DNS serves the domain's validation record.", "domain"),
		watchRuns:     counter("domain_watch_total", "Rounds of the watch of domains, by outcome.", "outcome"),
		compromised:   counter("key_compromise_total", "Revocations for keyCompromise that were made with another reason."),
	}
	return m, errors.Join(errs...)
}

// register registers c, or returns the one that is registered already.
func register[T prometheus.Collector](reg prometheus.Registerer, c T, errs *[]error) T {
	if reg == nil {
		return c
	}
	err := reg.Register(c)
	if dup, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if old, ok := dup.ExistingCollector.(T); ok {
			return old
		}
	}
	if err != nil {
		*errs = append(*errs, err)
	}
	return c
}

func (m *metrics) requested(backend, kind string, err error) {
	outcome := string(ncloud.OutcomeOK)
	if e, ok := errors.AsType[*ncloud.Error](err); ok {
		outcome = string(e.Outcome)
	} else if err != nil {
		outcome = "error"
	}
	m.requests.WithLabelValues(backend, kind, outcome).Inc()
}

func (m *metrics) changed(backend, state string) {
	switch state {
	case dcvWaiting, dcvDone, dcvTimedOut:
	default:
		state = "other" // labels are not the service's to invent
	}
	m.dcv.WithLabelValues(backend, state).Inc()
}

func (m *metrics) ended(backend, result string) { m.results.WithLabelValues(backend, result).Inc() }
