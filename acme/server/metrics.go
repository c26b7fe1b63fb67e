package server

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/acme-bridge/acme-bridge/acme"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	problems *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "acme_bridge_http_requests_total", Help: "ACME requests by resource and HTTP status.",
		}, []string{"resource", "status"}),
		seconds: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "acme_bridge_http_request_seconds", Help: "Time to answer an ACME request, in seconds; finalize includes its hold.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"resource"}),
		problems: f.NewCounterVec(prometheus.CounterOpts{
			Name: "acme_bridge_problems_total", Help: "Problem documents sent, by type.",
		}, []string{"type"}),
	}
}

func (m *metrics) observe(resource string, status int, took time.Duration) {
	m.requests.WithLabelValues(resource, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(resource).Observe(took.Seconds())
}

func (m *metrics) problem(t acme.ProblemType) { m.problems.WithLabelValues(string(t)).Inc() }
