package multicluster

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"go.miloapis.com/discovery"
)

// Options configures a Provider. Exactly one of ProjectRestConfig, Kubeconfigs and ConfigFor is required.
type Options struct {
	// Address is the daemon's address: unix:///path or HOST:PORT. The default is MILO_DISCOVERY_ADDRESS, or else
	// discovery.DefaultAddress.
	Address string
	// Client is used instead of a new client for Address. The provider does not close it.
	Client *discovery.Client
	// Filter selects clusters. The zero value selects all of the daemon's clusters.
	Filter discovery.Filter

	// ClusterOptions apply to every cluster. They override the options that the provider sets.
	ClusterOptions []cluster.Option

	// ProjectRestConfig has the identity, the TLS settings and the rate limits for all clusters. Its host is not used:
	// clients of a cluster connect to the endpoint that the daemon reports.
	ProjectRestConfig *rest.Config
	// Kubeconfigs requests the credentials of each cluster from the daemon, and renews them while they are in use.
	Kubeconfigs bool
	// KubeconfigTTL is the requested lifetime of these kubeconfigs; zero means the daemon's default.
	KubeconfigTTL time.Duration
	// ConfigFor returns the configuration for a cluster, which is used unchanged. It is called again after a failure.
	ConfigFor func(context.Context, discovery.Cluster) (*rest.Config, error)

	// MaxConcurrent limits the number of clusters that are being engaged concurrently; zero means 32. As many again may
	// wait for informers that take longer than 250 ms to sync.
	MaxConcurrent int
	// SyncTimeout limits how long a cluster's informers may take to sync before it is engaged. Only indexed types have
	// informers by then. Zero means 30 s.
	SyncTimeout time.Duration
	// EngageTimeout limits how long the manager may take to engage a cluster; zero means 30 s.
	EngageTimeout time.Duration

	// HeartbeatInterval is the interval of heartbeats on the stream from the daemon, which is reopened after three missed
	// heartbeats; zero means 30 s.
	HeartbeatInterval time.Duration

	// Subscriber is the name under which the provider releases clusters whose disengagement is planned, once their
	// reconciles have returned: see Reconciler. The default is discovery.NewSubscriber.
	Subscriber string

	// OwnTransports makes each cluster use its own connections. By default, clusters with the same TLS settings share
	// them.
	OwnTransports bool
	// BlockingCaches makes the manager wait for a cluster's informers while it engages the cluster, even if the cluster is
	// unresponsive.
	BlockingCaches bool

	// Logger is the provider's logger. The default is controller-runtime's, with the name "milo-discovery".
	Logger logr.Logger
	// Registerer registers the provider's metrics. The default is controller-runtime's registry. Of several
	// providers in one process, each needs its own, from prometheus.WrapRegistererWith with its own value of one label.
	Registerer prometheus.Registerer
}

const (
	defaultMaxConcurrent = 32
	defaultTimeout       = 30 * time.Second
	// A cluster whose informers have not synced after moveAfter moves to the second set of slots, if one is free there,
	// and after endAfter it frees its slot: see slots.
	moveAfter = 250 * time.Millisecond
	endAfter  = 10 * time.Second
)

var errIdentity = errors.New("exactly one of Options.ProjectRestConfig, Options.Kubeconfigs and Options.ConfigFor is required")

func (o Options) complete() (Options, error) {
	given := 0
	for _, each := range []bool{o.ProjectRestConfig != nil, o.Kubeconfigs, o.ConfigFor != nil} {
		if each {
			given++
		}
	}
	if given != 1 {
		return o, errIdentity
	}
	if o.MaxConcurrent < 0 || min(o.SyncTimeout, o.EngageTimeout, o.KubeconfigTTL, o.HeartbeatInterval) < 0 {
		return o, errors.New("Options.MaxConcurrent, SyncTimeout, EngageTimeout, KubeconfigTTL and HeartbeatInterval must not be negative")
	}
	o.MaxConcurrent = cmp.Or(o.MaxConcurrent, defaultMaxConcurrent)
	o.SyncTimeout = cmp.Or(o.SyncTimeout, defaultTimeout)
	o.EngageTimeout = cmp.Or(o.EngageTimeout, defaultTimeout)
	o.Subscriber = cmp.Or(o.Subscriber, discovery.NewSubscriber())
	if o.Logger.GetSink() == nil {
		o.Logger = log.Log.WithName("milo-discovery")
	}
	if o.Registerer == nil {
		o.Registerer = metrics.Registry
	}
	if o.Client == nil {
		client, err := discovery.Dial(discovery.Options{Address: o.Address})
		if err != nil {
			return o, err
		}
		o.Client = client
	}
	return o, nil
}
