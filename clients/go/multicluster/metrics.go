package multicluster

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/multicluster/internal/credential"
	"go.miloapis.com/discovery/multicluster/internal/prompt"
)

const namespace = "milo_discovery_client"

// clientMetrics contains the metrics of a provider. None has cluster names as label values.
type clientMetrics struct {
	connected, synced, received prometheus.Gauge
	disconnects, snapshots      prometheus.Counter
	engaged                     prometheus.Histogram
	failures                    prometheus.Counter
	renewals                    *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer, p *Provider) (*clientMetrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
	}
	m := &clientMetrics{
		connected:   gauge("connected", "Whether the stream from milo-discoveryd is connected."),
		synced:      gauge("synced", "Whether a complete view of the clusters was received."),
		received:    gauge("last_received_timestamp_seconds", "Time of the last message from milo-discoveryd, heartbeats included."),
		disconnects: counter("disconnects_total", "Times that the stream from milo-discoveryd broke or could not be opened; failed reconnects are not counted."),
		snapshots:   counter("snapshots_total", "Streams that began with a snapshot of all clusters instead of resuming."),
		failures:    counter("engage_failures_total", "Failed attempts to engage a cluster, and clusters that stopped; both are retried."),
		engaged: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "engage_seconds",
			Help:    "Seconds from the start of the successful attempt until the cluster is engaged with the controllers, including a wait for leadership.",
			Buckets: prometheus.ExponentialBuckets(0.005, 3, 9),
		}),
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "credential_renewals_total",
			Help: "Kubeconfigs requested from milo-discoveryd, by result; pushed kubeconfigs are not counted.",
		}, []string{"result"}),
	}
	for _, result := range []credential.Outcome{credential.Renewed, credential.Unchanged, credential.Failed} {
		m.renewals.WithLabelValues(string(result))
	}
	all := []prometheus.Collector{
		m.connected, m.synced, m.received, m.disconnects, m.snapshots, m.engaged, m.failures, m.renewals, clusterStates(p.states),
		unsyncedInformers(p.unsynced), ownedClusters{p},
	}
	for i, each := range all {
		if err := registerer.Register(each); err != nil {
			for _, registered := range all[:i] {
				registerer.Unregister(registered)
			}
			return nil, fmt.Errorf("register the provider's metrics (with several providers, each needs Options.Registerer, labeled by prometheus.WrapRegistererWith): %w", err)
		}
	}
	return m, nil
}

func (m *clientMetrics) renewed(outcome credential.Outcome) {
	m.renewals.WithLabelValues(string(outcome)).Inc()
}

func (m *clientMetrics) hooks() discovery.Hooks {
	return discovery.Hooks{
		Connected: func(resumed bool) {
			m.connected.Set(1)
			if !resumed {
				m.snapshots.Inc()
			}
		},
		Disconnected: func(error) {
			m.connected.Set(0)
			m.disconnects.Inc()
		},
		Synced:   func(int) { m.synced.Set(1) },
		Received: func() { m.received.Set(float64(time.Now().UnixMilli()) / 1000) },
	}
}

// clusterStates is a collector of the number of clusters by state.
type clusterStates func() map[state]int

var clustersDesc = prometheus.NewDesc(
	namespace+"_clusters", "Clusters engaged by milo-discoveryd, by their state in this process.", []string{"state"}, nil,
)

func (clusterStates) Describe(into chan<- *prometheus.Desc) { into <- clustersDesc }

func (c clusterStates) Collect(into chan<- prometheus.Metric) {
	counts := c()
	for _, each := range allStates {
		into <- prometheus.MustNewConstMetric(clustersDesc, prometheus.GaugeValue, float64(counts[each]), string(each))
	}
}

// ownedClusters is a collector of the number of clusters that this replica owns.
type ownedClusters struct{ provider *Provider }

var ownedDesc = prometheus.NewDesc(
	namespace+"_owned_clusters",
	"Clusters that this process works in, by the member of the shard group that owns them; the label is empty without a group.",
	[]string{"shard"}, nil,
)

func (ownedClusters) Describe(into chan<- *prometheus.Desc) { into <- ownedDesc }

func (o ownedClusters) Collect(into chan<- prometheus.Metric) {
	into <- prometheus.MustNewConstMetric(ownedDesc, prometheus.GaugeValue, float64(o.provider.owned()), o.provider.member())
}

type unsyncedKey struct {
	kind   string
	reason prompt.Reason
}

// unsyncedInformers is a collector of the number of informers that have not synced, or failed after they synced, by
// kind and reason.
type unsyncedInformers func() map[unsyncedKey]int

var unsyncedDesc = prometheus.NewDesc(
	namespace+"_unsynced_informers", "Informers of engaged clusters that have not synced, or failed after they synced, by kind and reason.",
	[]string{"kind", "reason"}, nil,
)

func (unsyncedInformers) Describe(into chan<- *prometheus.Desc) { into <- unsyncedDesc }

func (u unsyncedInformers) Collect(into chan<- prometheus.Metric) {
	for key, count := range u() {
		into <- prometheus.MustNewConstMetric(unsyncedDesc, prometheus.GaugeValue, float64(count), key.kind, string(key.reason))
	}
}
