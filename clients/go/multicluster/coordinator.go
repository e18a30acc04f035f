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

// CoordinatorOptions configure a Coordinator. All are optional.
type CoordinatorOptions struct {
	// Address of the daemon: unix:///path or HOST:PORT. Empty: that of MILO_DISCOVERY_ADDRESS, or the default one.
	Address string
	// Client of the daemon, instead of one for Address. The coordinator does not close it.
	Client *discovery.Client
	// Filter selects clusters. The zero value selects all that the daemon has.
	Filter discovery.Filter
	// Subscriber is the name under which clusters are released to the daemon. Empty: that of the host with a random number.
	Subscriber string
	// Logger of the coordinator. The zero value is controller-runtime's, named "milo-discovery".
	Logger logr.Logger
}

// Coordinator shares the clusters of any provider between the replicas of an operator, in place of multicluster-runtime's
// sharded coordinator:
//
//	mcmanager.New(config, provider, options, mcmanager.WithCoordinator(discoverymc.NewCoordinator(discoverymc.CoordinatorOptions{})))
//
// It engages a cluster of the provider while the daemon beside the replica has a cluster of that name engaged: the shard
// group of the daemons decides who owns what, and no Lease is written here. A cluster that is to move is released when its
// context has been canceled and its controllers have returned from Engage; its reconciles in flight are not waited for.
//
// The provider of this package follows the same daemon, and needs no Coordinator.
type Coordinator struct {
	options CoordinatorOptions

	mu      sync.Mutex
	awares  []multicluster.Aware
	offered map[multicluster.ClusterName]*offer
	owned   map[multicluster.ClusterName]discovery.Cluster
	calls   map[multicluster.ClusterName]<-chan struct{} // closed when no call of Engage is in flight any more
	workers sync.WaitGroup
}

var _ mcmanager.Coordinator = &Coordinator{}

// offer is a cluster that the provider has.
type offer struct {
	ctx     context.Context
	cluster cluster.Cluster
	end     context.CancelCauseFunc // ends its engagement; nil without one
}

// NewCoordinator returns a coordinator, which engages nothing before the manager starts.
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

// AddAware adds a component that is engaged with each cluster from then on.
func (c *Coordinator) AddAware(aware multicluster.Aware) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awares = append(c.awares, aware)
}

// Owns reports whether this replica owns a cluster, and is not about to hand it over.
func (c *Coordinator) Owns(name multicluster.ClusterName) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, owned := c.owned[name]
	return owned
}

// Engage tells the coordinator that the provider has a cluster until ctx ends. It does not wait.
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

// stop ends the engagement of an offer. It is called with the lock held.
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

// work engages a cluster, and retries until that succeeds or ctx ends.
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

// engageAll engages a cluster with each component. Only controllers of multicluster-runtime get a context under which the
// caches of this package's provider do not block: Cache.WaitForCacheSync is true at once under it, and informers may be
// placeholders, which other components could take for the truth.
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

// isController returns whether a component is a TypedController of multicluster-runtime, whatever its requests are.
func isController(aware multicluster.Aware) bool {
	_, ok := reflect.TypeOf(aware).MethodByName("MultiClusterWatch")
	return ok
}

// Runnable follows the daemon. It fails if the daemon refuses the subscription.
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

// disown is called with the lock held.
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

// Coordinator returns a coordinator for mcmanager.WithCoordinator, which engages what the provider has. With it, components
// other than controllers are engaged under an ordinary context: what their calls of the cluster's cache return holds.
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
