package privateca

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are shared by all issuers of one registry.
type metrics struct {
	used, left, ends *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var errs [3]error
	var m metrics
	gauge := func(n int, name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"backend"})
		if reg == nil {
			return g
		}
		err := reg.Register(g)
		if dup, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
			if old, ok := dup.ExistingCollector.(*prometheus.GaugeVec); ok {
				return old
			}
		}
		errs[n] = err
		return g
	}
	m.used = gauge(0, "acme_bridge_privateca_quota_used", "Certificates that the CA has issued, by its signing count.")
	m.left = gauge(1, "acme_bridge_privateca_quota_left", "Certificates that the CA may still issue, by the configured quota.")
	m.ends = gauge(2, "acme_bridge_privateca_ca_not_after_seconds", "End of the CA's own validity in Unix time.")
	return &m, errors.Join(errs[:]...)
}

func (m *metrics) observe(backend string, s *caState, quota int64) {
	m.used.WithLabelValues(backend).Set(float64(s.SigningCount))
	m.left.WithLabelValues(backend).Set(float64(max(quota-s.SigningCount, 0)))
	if !s.NotAfter.IsZero() {
		m.ends.WithLabelValues(backend).Set(float64(s.NotAfter.Unix()))
	}
}
