package publisher

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are shared by all publishers of one registry and told apart by the
// label publisher.
type Metrics struct {
	operations *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	name       string
}

// NewMetrics registers the metrics, or finds them, for the publisher of that
// name; reg may be nil.
func NewMetrics(reg prometheus.Registerer, name string) (*Metrics, error) {
	operations, err1 := Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "acme_bridge_publisher_operations_total",
		Help: "Calls of a publisher by operation (covers, publish, remove) and result: done, waiting (not served yet), blocked (somebody must act), aborted, failed.",
	}, []string{"publisher", "operation", "result"}))
	duration, err2 := Register(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "acme_bridge_publisher_operation_duration_seconds",
		Help:    "Time of one call of a publisher.",
		Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"publisher", "operation"}))
	return &Metrics{operations, duration, name}, errors.Join(err1, err2)
}

// Observe counts one call; done is false if the record is not served yet.
func (m *Metrics) Observe(operation string, begun, ended time.Time, done bool, err error) {
	result := "done"
	switch {
	case errors.Is(err, ErrBlocked):
		result = "blocked"
	case errors.Is(err, context.Canceled):
		result = "aborted"
	case err != nil:
		result = "failed"
	case !done:
		result = "waiting"
	}
	m.operations.WithLabelValues(m.name, operation, result).Inc()
	m.duration.WithLabelValues(m.name, operation).Observe(ended.Sub(begun).Seconds())
}

// Register adds a collector, or finds the one that another publisher added; reg
// may be nil.
func Register[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
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
