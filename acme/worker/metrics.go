package worker

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/acme-bridge/acme-bridge/acme"
)

type metrics struct {
	orders      *prometheus.CounterVec
	submits     *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	searches    *prometheus.CounterVec
	quarantined *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	return &metrics{
		orders: f.NewCounterVec(prometheus.CounterOpts{
			Name: "acme_bridge_orders_total", Help: "Orders ended, by profile and final status.",
		}, []string{"profile", "status"}),
		submits: f.NewCounterVec(prometheus.CounterOpts{
			Name: "acme_bridge_submits_total", Help: "Certificate requests to a backend, by outcome: issued, refused, not_sent, unknown.",
		}, []string{"backend", "outcome"}),
		seconds: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "acme_bridge_submit_seconds", Help: "Time a backend took to answer a certificate request, in seconds.",
			Buckets: []float64{.001, .005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"backend"}),
		searches: f.NewCounterVec(prometheus.CounterOpts{
			Name: "acme_bridge_searches_total", Help: "Searches for certificates whose answer was lost, by outcome: found, absent, unknown.",
		}, []string{"backend", "outcome"}),
		quarantined: f.NewCounterVec(prometheus.CounterOpts{
			Name: "acme_bridge_quarantined_total", Help: "Certificates that a backend returned and that were not what was asked for.",
		}, []string{"backend"}),
	}
}

func (m *metrics) orderEnded(profile, status string) { m.orders.WithLabelValues(profile, status).Inc() }

func (m *metrics) submitted(backend string, err error, took time.Duration) {
	outcome := "unknown"
	if err == nil {
		outcome = "issued"
	} else if _, ok := isProblem(err); ok {
		outcome = "refused"
	} else if _, ok := errors.AsType[*acme.NotSentError](err); ok {
		outcome = "not_sent"
	}
	m.submits.WithLabelValues(backend, outcome).Inc()
	m.seconds.WithLabelValues(backend).Observe(took.Seconds())
}

func (m *metrics) searched(backend string, err error) {
	outcome := "unknown"
	if err == nil {
		outcome = "found"
	} else if errors.Is(err, acme.ErrNotIssued) {
		outcome = "absent"
	}
	m.searches.WithLabelValues(backend, outcome).Inc()
}
