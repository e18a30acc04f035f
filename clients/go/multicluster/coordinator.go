package multicluster

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/multicluster/internal/prompt"
)

// CoordinatorOptions configures a Coordinator. All fields are optional.
type CoordinatorOptions struct {
	// Address is the daemon's address: unix:///path or HOST:PORT. The default is MILO_DISCOVERY_ADDRESS, or else
	// discovery.DefaultAddress.
	Address string
	// Client is used instead of a new client for Address. The coordinator does not close it.
	Client *discovery.Client
	// Filter selects clusters. The zero value selects all of the daemon's clusters.
	Filter discovery.Filter
	// Subscriber is the name under which clusters are released to the daemon. The default is discovery.NewSubscriber.
	Subscriber string
	// Logger is the coordinator's logger. The default is controller-runtime's, with the name "milo-discovery".
	Logger logr.Logger
}

// Coordinator shares the clusters of any provider between the replicas of an operator, in place of
// multicluster-runtime's sharded coordinator:
//
//	mcmanager.New(config, provider, options, mcmanager.WithCoordinator(discoverymc.NewCoordinator(discoverymc.CoordinatorOptions{})))
//
// It engages a cluster of the provider while a cluster of that name is engaged in the replica's daemon: the daemons'
// shard group assigns the clusters, and the Coordinator writes no Lease. When a cluster drains, its context is
// canceled, and it is released once its controllers have returned from Engage, without waiting for reconciles in
// flight.
//
// The provider of this package watches the same daemon, and needs no Coordinator.
type Coordinator struct {
	options CoordinatorOptions

	mu      sync.Mutex
	awares  []multicluster.Aware
	offered map[multicluster.ClusterName]*offer
	owned   map[multicluster.ClusterName]discovery.Cluster
	calls   map[multicluster.ClusterName]<-chan struct{} // closed when no call of Engage is in flight
	workers sync.WaitGroup
}

var _ mcmanager.Coordinator = &Coordinator{}

// offer is a cluster that the provider has engaged with the coordinator.
type offer struct {
	ctx     context.Context
	cluster cluster.Cluster
	end     context.CancelCauseFunc // cancels its engagement with the components; nil if it is not engaged
}

// NewCoordinator returns a coordinator. It engages no clusters before the manager starts.
func NewCoordinator(options CoordinatorOptions) *Coordinator {
	if options.Logger.GetSink() == nil {
		options.Logger = log.Log.WithName("milo-discovery")
	}
	if options.Subscriber == "" {
		options.Subscriber = discovery.NewSubscriber()
	}
	return &Coordinator{
		options: options,
		offered: map[multicluster.ClusterName]*offer{},
		owned:   map[multicluster.ClusterName]discovery.Cluster{},
		calls:   map[multicluster.ClusterName]<-chan struct{}{},
	}
}

// AddAware adds a component. Each cluster that is engaged afterwards is engaged with it.
func (c *Coordinator) AddAware(aware multicluster.Aware) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awares = append(c.awares, aware)
}

// Owns reports whether this replica owns a cluster that is not draining.
func (c *Coordinator) Owns(name multicluster.ClusterName) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, owned := c.owned[name]
	return owned
}

// Engage records a cluster that the provider has until ctx is done. It does not wait until the cluster is engaged with
// the components.
func (c *Coordinator) Engage(ctx context.Context, name multicluster.ClusterName, cl cluster.Cluster) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if former := c.offered[name]; former != nil {
		if former.cluster == cl && former.ctx.Err() == nil {
			return nil
		}
		former.stop(errReplaced)
	}
	made := &offer{ctx: ctx, cluster: cl}
	c.offered[name] = made
	context.AfterFunc(ctx, func() { c.forget(name, made) })
	c.begin(name)
	return nil
}

var errReplaced = errors.New("the provider replaced the cluster")

func (c *Coordinator) forget(name multicluster.ClusterName, ended *offer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.offered[name] == ended {
		delete(c.offered, name)
	}
}

// stop cancels the engagement of an offer. It is called with the lock held.
func (o *offer) stop(cause error) {
	if o.end != nil {
		o.end(cause)
		o.end = nil
	}
}

// begin engages a cluster that is offered, owned, and not engaged. It is called with the lock held.
func (c *Coordinator) begin(name multicluster.ClusterName) {
	o := c.offered[name]
	if _, owned := c.owned[name]; !owned || o == nil || o.end != nil || o.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancelCause(o.ctx)
	o.end = cancel
	before, done := c.calls[name], make(chan struct{})
	c.calls[name] = done
	c.workers.Go(func() {
		defer c.finish(name, done)
		if before != nil {
			<-before
		}
		c.work(ctx, name, o.cluster)
	})
}

func (c *Coordinator) finish(name multicluster.ClusterName, done chan struct{}) {
	close(done)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[name] == done {
		delete(c.calls, name)
	}
}

// work engages a cluster, and retries until that succeeds or ctx is done.
func (c *Coordinator) work(ctx context.Context, name multicluster.ClusterName, cl cluster.Cluster) {
	retry := retries
	for ctx.Err() == nil {
		c.mu.Lock()
		awares := slices.Clone(c.awares)
		c.mu.Unlock()
		attempt, cancel := context.WithCancelCause(ctx)
		err := engageAll(attempt, awares, name, cl)
		if err == nil {
			context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
			return
		}
		cancel(err)
		if ctx.Err() != nil {
			return
		}
		delay := retry.Step()
		c.options.Logger.Error(err, "cluster not engaged", "cluster", name, "retryAfter", delay.String())
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

// engageAll engages a cluster with each component. Only controllers of multicluster-runtime get a context with which
// the caches of this package's provider do not block. With such a context, Cache.WaitForCacheSync returns true at once
// and informers may be placeholders, which would mislead other components.
func engageAll(ctx context.Context, awares []multicluster.Aware, name multicluster.ClusterName, cl cluster.Cluster) error {
	ordinary := prompt.Ordinary(ctx)
	for _, aware := range awares {
		its := ordinary
		if isController(aware) {
			its = ctx
		}
		if err := aware.Engage(its, name, cl); err != nil {
			return err
		}
	}
	return nil
}

// isController reports whether a component is a TypedController of multicluster-runtime, with any type of request.
func isController(aware multicluster.Aware) bool {
	_, ok := reflect.TypeOf(aware).MethodByName("MultiClusterWatch")
	return ok
}

// Runnable returns the runnable that watches the daemon. The runnable fails if Address or the credentials are invalid,
// or the daemon rejects the subscription.
func (c *Coordinator) Runnable() manager.Runnable { return following{c} }

type following struct{ coordinator *Coordinator }

func (f following) NeedLeaderElection() bool { return false }

func (f following) Start(ctx context.Context) error { return f.coordinator.follow(ctx) }

func (c *Coordinator) follow(ctx context.Context) error {
	client := c.options.Client
	if client == nil {
		dialed, err := discovery.Dial(discovery.Options{Address: c.options.Address})
		if err != nil {
			return err
		}
		defer func() { _ = dialed.Close() }()
		client = dialed
	}
	releases, cancel := context.WithCancel(ctx)
	defer cancel()
	options := discovery.WatchOptions{Filter: c.options.Filter, Subscriber: c.options.Subscriber}
	err := client.Watch(ctx, options, func(events []discovery.Event) {
		for _, event := range events {
			c.apply(releases, client, event)
		}
	})
	cancel()
	c.disownAll()
	c.workers.Wait()
	if ctx.Err() == nil {
		return err
	}
	endSubscription(client, c.options.Subscriber, c.options.Logger)
	return nil
}

func (c *Coordinator) apply(ctx context.Context, client *discovery.Client, event discovery.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := multicluster.ClusterName(event.Cluster.Name)
	switch {
	case event.Type == discovery.EventDisengaged:
		c.disown(name, &Disengaged{Cluster: event.Cluster, Reason: event.Reason, Message: event.Message})
	case event.Cluster.Draining != nil:
		draining := event.Cluster.Draining
		c.disown(name, &Disengaged{Cluster: event.Cluster, Reason: draining.Reason, Message: draining.Message})
		before := c.calls[name]
		c.workers.Go(func() {
			if before != nil {
				<-before
			}
			release(ctx, client, c.options.Subscriber, c.options.Logger, event.Cluster, nil)
		})
	default:
		if known, owned := c.owned[name]; owned && known.UID != event.Cluster.UID {
			c.disown(name, &Disengaged{Cluster: known, Reason: discovery.ReasonReplaced})
		}
		c.owned[name] = event.Cluster
		c.begin(name)
	}
}

// disown cancels the engagement of a cluster that is no longer owned. It is called with the lock held.
func (c *Coordinator) disown(name multicluster.ClusterName, cause *Disengaged) {
	delete(c.owned, name)
	if o := c.offered[name]; o != nil {
		o.stop(cause)
	}
}

func (c *Coordinator) disownAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, known := range c.owned {
		c.disown(name, &Disengaged{Cluster: known, Message: "the coordinator stopped"})
	}
}

// Coordinator returns a coordinator for mcmanager.WithCoordinator, which engages all clusters of the provider. With it,
// components other than controllers get an ordinary context, with which the cluster's cache waits until it is synced.
func (p *Provider) Coordinator() mcmanager.Coordinator { return &providerCoordinator{owns: p.Owns} }

type providerCoordinator struct {
	owns func(multicluster.ClusterName) bool

	mu     sync.Mutex
	awares []multicluster.Aware
}

func (c *providerCoordinator) AddAware(aware multicluster.Aware) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awares = append(c.awares, aware)
}

func (c *providerCoordinator) Engage(ctx context.Context, name multicluster.ClusterName, cl cluster.Cluster) error {
	c.mu.Lock()
	awares := slices.Clone(c.awares)
	c.mu.Unlock()
	return engageAll(ctx, awares, name, cl)
}

func (c *providerCoordinator) Runnable() manager.Runnable { return nil }

func (c *providerCoordinator) Owns(name multicluster.ClusterName) bool { return c.owns(name) }
