package validation

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/acme-bridge/acme-bridge/acme"
)

// metrics are shared by all zones of one registry.
type metrics struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	total, err1 := register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "acme_bridge_validations_total",
		Help: "Validations by challenge type and result: valid, the type of the problem, or aborted.",
	}, []string{"type", "result"}))
	duration, err2 := register(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "acme_bridge_validation_duration_seconds",
		Help:    "Time of a validation with all its tries, pauses and waiting.",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 80},
	}, []string{"type"}))
	return &metrics{total, duration}, errors.Join(err1, err2)
}

func (m *metrics) observe(t acme.ChallengeType, err error, d time.Duration) {
	switch t {
	case acme.HTTP01, acme.DNS01, acme.TLSALPN01:
	default:
		t = "other" // labels stay few
	}
	result := "valid"
	if p, ok := errors.AsType[*acme.Problem](err); ok {
		result = string(p.Type)
	} else if err != nil {
		result = "aborted"
	}
	m.total.WithLabelValues(string(t), result).Inc()
	m.duration.WithLabelValues(string(t)).Observe(d.Seconds())
}

// register adds a collector, or finds the one that another zone added; reg may
// be nil.
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
