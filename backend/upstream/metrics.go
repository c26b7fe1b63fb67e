package upstream

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.CounterVec
	results  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var errs []error
	counter := func(name, help, label string) *prometheus.CounterVec {
		return register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "acme_bridge_upstream_" + name, Help: help}, []string{"backend", label}), &errs)
	}
	m := &metrics{
		requests: counter("requests_total", "HTTP requests to the upstream ACME server, by class of the answer's status, or unreachable.", "outcome"),
		results:  counter("results_total", "Upstream orders that ended: issued, refused, timeout, or taken (finalized for another order).", "result"),
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

func (m *metrics) requested(backend, outcome string) {
	m.requests.WithLabelValues(backend, outcome).Inc()
}

func (m *metrics) ended(backend, result string) { m.results.WithLabelValues(backend, result).Inc() }
