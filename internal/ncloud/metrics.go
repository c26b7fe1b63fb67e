package ncloud

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
)

// metrics are shared by all clients of one registry and told apart by the
// label backend.
type metrics struct {
	calls    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight *prometheus.GaugeVec
	breaker  *prometheus.GaugeVec
	skew     *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var errs [5]error
	var m metrics
	m.calls, errs[0] = register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "acme_bridge_ncloud_calls_total",
		Help: "Calls to NCP by operation and outcome; each attempt of a repeated read counts.",
	}, []string{"backend", "operation", "outcome"}))
	m.duration, errs[1] = register(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "acme_bridge_ncloud_call_duration_seconds",
		Help:    "Time from sending a request to NCP to having read its answer.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"backend", "operation"}))
	m.inFlight, errs[2] = register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "acme_bridge_ncloud_calls_in_flight",
		Help: "Calls to NCP under way.",
	}, []string{"backend"}))
	m.breaker, errs[3] = register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "acme_bridge_ncloud_breaker_state",
		Help: "Circuit breaker of the backend: 0 closed, 1 half open, 2 open.",
	}, []string{"backend"}))
	m.skew, errs[4] = register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "acme_bridge_ncloud_clock_skew_seconds",
		Help: "Local clock minus the gateway's by its Date header; the gateway refuses requests from 300 s on.",
	}, []string{"backend"}))
	return &m, errors.Join(errs[:]...)
}

// register adds a collector or finds the one that an earlier client of the
// same registry added; reg may be nil.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	if reg == nil {
		return c, nil
	}
	err := reg.Register(c)
	if dup, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if old, ok := dup.ExistingCollector.(C); ok {
			return old, nil
		}
	}
	return c, err
}

func breakerValue(s gobreaker.State) float64 {
	switch s {
	case gobreaker.StateHalfOpen:
		return 1
	case gobreaker.StateOpen:
		return 2
	default:
		return 0
	}
}
