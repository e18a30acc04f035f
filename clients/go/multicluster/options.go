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

// Options configure a Provider. One of ProjectRestConfig, Kubeconfigs and ConfigFor is required.
type Options struct {
	// Address of the daemon: unix:///path or HOST:PORT. Empty: that of MILO_DISCOVERY_ADDRESS, or the default one.
	Address string
	// Client of the daemon, instead of one for Address. The provider does not close it.
	Client *discovery.Client
	// Filter selects clusters. The zero value selects all that the daemon has.
	Filter discovery.Filter

	// ClusterOptions apply to every cluster. They override what the provider sets.
	ClusterOptions []cluster.Option

	// ProjectRestConfig gives the identity, the TLS settings and the rate limits for all clusters. Its host is not used:
	// each cluster is reached at the endpoint that the daemon has for it.
	ProjectRestConfig *rest.Config
	// Kubeconfigs requests the credentials of each cluster from the daemon, and renews them while they are in use.
	Kubeconfigs bool
	// KubeconfigTTL is the requested lifetime of these kubeconfigs. Zero: the daemon's default.
	KubeconfigTTL time.Duration
	// ConfigFor returns the configuration for one cluster, which is used as it is. It is called again after a failure.
	ConfigFor func(context.Context, discovery.Cluster) (*rest.Config, error)

	// MaxConcurrent is how many clusters are engaged at once. Zero: 32.
	MaxConcurrent int
	// SyncTimeout is how long a cluster's informers may take to sync before it is engaged. Only indexed types have
	// informers by then. Zero: 30 s.
	SyncTimeout time.Duration
	// EngageTimeout is how long the manager may take to engage a cluster. Zero: 30 s.
	EngageTimeout time.Duration

	// HeartbeatInterval is the interval of heartbeats on the stream from the daemon, which is reopened after three
	// silent intervals. Zero: 30 s.
	HeartbeatInterval time.Duration

	// Subscriber is the name under which the provider releases clusters whose disengagement is planned, once their
	// reconciles have returned: see Reconciler. Empty: that of the host with a random number.
	Subscriber string

	// OwnTransports gives each cluster connections of its own. Otherwise clusters with the same TLS settings share them.
	OwnTransports bool
	// BlockingCaches makes the manager wait for a cluster's informers while it engages the cluster, even if the cluster
	// does not answer.
	BlockingCaches bool

	// Logger of the provider. The zero value is controller-runtime's, named "milo-discovery".
	Logger logr.Logger
	// Registerer of the provider's metrics. Nil: controller-runtime's registry. Providers in one process need registerers of
	// their own, each made by prometheus.WrapRegistererWith with another value of one label.
	Registerer prometheus.Registerer
}

const (
	defaultMaxConcurrent = 32
	defaultTimeout       = 30 * time.Second
	// A cluster whose informers have not synced after moveAfter does not make others wait, and after endAfter it is no
	// longer counted.
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
