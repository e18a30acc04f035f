package multicluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/multicluster/internal/credential"
	"go.miloapis.com/discovery/multicluster/internal/mapping"
)

var (
	_ multicluster.Provider         = &Provider{}
	_ multicluster.ProviderRunnable = &Provider{}
)

// Disengaged is the cancellation cause of a cluster's context after the cluster was disengaged or began to drain: see
// context.Cause.
type Disengaged = discovery.Disengaged

// Provider watches the daemon, and engages the clusters that the daemon reports. Create it with New.
type Provider struct {
	options   Options
	configs   *configs
	documents mapping.Documents
	reported  sync.Map // kinds and reasons of unsynced informers that were logged
	slots     *slots
	metrics   *clientMetrics

	shard       atomic.Pointer[discovery.Sharding] // nil without a shard group
	reconnected chan struct{}                      // receives an element when a stream is connected

	// aware is closed once Start has set engage.
	aware  chan struct{}
	engage multicluster.Aware
	// synced is closed at the first complete view.
	synced chan struct{}

	mu          sync.RWMutex
	entries     map[multicluster.ClusterName]*entry
	indexes     []index
	leaving     map[multicluster.ClusterName]<-chan struct{} // closed when the last engagement has ended
	unconfirmed map[multicluster.ClusterName]struct{}        // clusters that a restarted watch has not reported yet
	drains      map[multicluster.ClusterName]*drain
	started     bool
	onAll       bool
	workers     sync.WaitGroup
	closeClient func() // no-op for Options.Client
}

// New returns a provider. It does not connect before Start.
func New(options Options) (*Provider, error) {
	given := options.Client
	options, err := options.complete()
	if err != nil {
		return nil, err
	}
	p := &Provider{
		options:     options,
		slots:       newSlots(options.MaxConcurrent, moveAfter, endAfter),
		reconnected: make(chan struct{}, 1),

		aware:   make(chan struct{}),
		synced:  make(chan struct{}),
		entries: map[multicluster.ClusterName]*entry{},
		leaving: map[multicluster.ClusterName]<-chan struct{}{},
		drains:  map[multicluster.ClusterName]*drain{},

		closeClient: func() {},
	}
	if given == nil {
		p.closeClient = func() { _ = options.Client.Close() }
	}
	renewed := func(outcome credential.Outcome) { p.metrics.renewed(outcome) }
	if p.configs, err = newConfigs(options, renewed); err != nil {
		return nil, err
	}
	// Last, because metrics stay registered: after an earlier error, New can be called again.
	if p.metrics, err = newMetrics(options.Registerer, p); err != nil {
		return nil, err
	}
	return p, nil
}

// retries is the backoff after a failure, such as that of an engagement or of the watch.
var retries = wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 0.2, Steps: 7, Cap: time.Minute}

// Get returns the cluster with the name. It returns the same instance until the cluster drains or is disengaged, its
// endpoint changes, or it is restarted after a failure. After OnAllReplicas it works on every replica. For a cluster
// that is not engaged, or does not run here at present, it fails with multicluster.ErrClusterNotFound. With a shard
// group, it requests the state of a cluster that is not engaged from the daemon, and also fails with ErrClusterNotOwned
// if another member owns the cluster.
func (p *Provider) Get(ctx context.Context, name multicluster.ClusterName) (cluster.Cluster, error) {
	if e := p.entry(name); e != nil {
		if found := e.cluster(); found != nil {
			return found, nil
		}
		return nil, fmt.Errorf("cluster %s is engaged, but not running here: %w", name, multicluster.ErrClusterNotFound)
	}
	return nil, p.absence(ctx, name)
}

// Info returns the last state of an engaged cluster that the daemon reported.
func (p *Provider) Info(name multicluster.ClusterName) (discovery.Cluster, bool) {
	if e := p.entry(name); e != nil {
		return e.info(), true
	}
	return discovery.Cluster{}, false
}

func (p *Provider) entry(name multicluster.ClusterName) *entry {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.entries[name]
}

// snapshot returns the entries, ordered by name.
func (p *Provider) snapshot() []*entry {
	p.mu.RLock()
	defer p.mu.RUnlock()
	names := slices.Sorted(maps.Keys(p.entries))
	found := make([]*entry, len(names))
	for i, name := range names {
		found[i] = p.entries[name]
	}
	return found
}

// ReadyCheck returns a check that succeeds once the provider has received a complete view of the clusters. It still
// succeeds if the daemon becomes unreachable, since work on the clusters continues. With leader election, call
// OnAllReplicas as well. Otherwise a replica is not ready before it leads, so a rolling update waits for a replica that
// waits for the former leader.
func (p *Provider) ReadyCheck() healthz.Checker {
	return func(*http.Request) error {
		select {
		case <-p.synced:
			return nil
		default:
			return errors.New("milo-discoveryd has not sent a complete view yet")
		}
	}
}

// OnAllReplicas makes every replica watch the daemon, so that Get also works on replicas that do not lead, for example
// for webhooks. Clusters are engaged with controllers once their replica leads. Without OnAllReplicas only the leader
// watches the daemon. It must be called before the manager starts.
func (p *Provider) OnAllReplicas(mgr mcmanager.Manager) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started || p.onAll {
		return errors.New("OnAllReplicas was called twice, or after the manager was started")
	}
	p.onAll = true
	return mgr.GetLocalManager().Add(everywhere{p})
}

// everywhere is a runnable that runs on every replica.
type everywhere struct{ provider *Provider }

func (e everywhere) Start(ctx context.Context) error { return e.provider.follow(ctx) }

func (e everywhere) NeedLeaderElection() bool { return false }

// Start engages clusters with aware until ctx is done. The manager calls it, once. It returns an error if the manager
// has the sharded coordinator, if it was called before, or if the daemon rejects the subscription before the first
// complete view.
func (p *Provider) Start(ctx context.Context, aware multicluster.Aware) error {
	if isSharded(aware) {
		return errSharded
	}
	p.mu.Lock()
	if p.started {
		p.mu.Unlock()
		return errors.New("the provider was started twice")
	}
	p.started, p.engage = true, aware
	onAll := p.onAll
	p.mu.Unlock()
	close(p.aware)
	if onAll {
		<-ctx.Done()
		return nil
	}
	return p.follow(ctx)
}

// follow watches the daemon until ctx is done, and returns when all clusters have stopped.
func (p *Provider) follow(ctx context.Context) error {
	defer p.closeClient()
	defer p.endSubscription()
	defer p.workers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.workers.Go(func() { p.followShard(ctx) })
	options := discovery.WatchOptions{
		Filter:             p.options.Filter,
		IncludeKubeconfigs: p.options.Kubeconfigs,
		KubeconfigTTL:      p.options.KubeconfigTTL,
		HeartbeatInterval:  p.options.HeartbeatInterval,
		Subscriber:         p.options.Subscriber,
		Hooks:              p.hooks(),
	}
	retry := retries
	for {
		began := time.Now()
		err := p.options.Client.Watch(ctx, options, func(events []discovery.Event) { p.apply(ctx, events) })
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-p.synced:
		default:
			return fmt.Errorf("follow milo-discoveryd: %w", err)
		}
		p.metrics.connected.Set(0) // a rejection can also close an open stream, without a call of Disconnected
		// After the first view, work on the engaged clusters continues despite the error. Those of a sharded daemon were
		// disengaged by Watch.
		if time.Since(began) > retries.Cap {
			retry = retries
		}
		delay := retry.Step()
		p.options.Logger.Error(err, "subscription refused; retrying", "retryAfter", delay.String())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
		p.mu.Lock()
		p.unconfirmed = map[multicluster.ClusterName]struct{}{}
		for name := range p.entries {
			p.unconfirmed[name] = struct{}{}
		}
		for name := range p.drains {
			p.unconfirmed[name] = struct{}{}
		}
		p.mu.Unlock()
	}
}

func (p *Provider) hooks() discovery.Hooks {
	hooks := p.metrics.hooks()
	connected, counted, synced := hooks.Connected, hooks.Disconnected, hooks.Synced
	hooks.Connected = func(resumed bool) {
		connected(resumed)
		select {
		case p.reconnected <- struct{}{}:
		default:
		}
	}
	hooks.Disconnected = func(err error) {
		counted(err)
		if !errors.Is(err, discovery.ErrOwnershipLost) {
			p.options.Logger.Info("stream from milo-discoveryd broken; clusters stay engaged", "reason", err.Error())
			return
		}
		p.options.Logger.Error(err, "ownership of the clusters lost; all are disengaged")
	}
	var pending []string
	hooks.Pending = func(sources []string) { pending = sources }
	hooks.Synced = func(clusters int) {
		synced(clusters)
		p.confirm(pending)
	}
	return hooks
}

// confirm is called for each complete view. It disengages clusters that are missing from the view of a restarted watch,
// except for those of pending sources.
func (p *Provider) confirm(pending []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.unconfirmed {
		if slices.Contains(pending, p.sourceOf(name)) {
			continue
		}
		delete(p.unconfirmed, name)
		gone := &Disengaged{Message: "the cluster was missing when the subscription was accepted again"}
		p.endDrain(name, gone)
		p.disengage(p.entries[name], gone)
	}
	select {
	case <-p.synced:
	default:
		close(p.synced)
	}
}

// sourceOf returns the source of a cluster. It is called with the lock held.
func (p *Provider) sourceOf(name multicluster.ClusterName) string {
	if e := p.entries[name]; e != nil {
		return e.info().Source
	}
	if d := p.drains[name]; d != nil && d.entry != nil {
		return d.entry.info().Source
	}
	return ""
}

// apply applies the events of a batch atomically, so that a replaced cluster is never missing.
func (p *Provider) apply(ctx context.Context, events []discovery.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, event := range events {
		name := multicluster.ClusterName(event.Cluster.Name)
		e := p.entries[name]
		delete(p.unconfirmed, name)
		switch event.Type {
		case discovery.EventDisengaged:
			ended := &Disengaged{Cluster: event.Cluster, Reason: event.Reason, Message: event.Message}
			p.endDrain(name, ended)
			p.disengage(e, ended)
			continue
		case discovery.EventEngaged:
			// A restarted watch repeats the engagement of a draining cluster, whose reconciles may be in flight.
			if event.Cluster.Draining == nil || !p.drainsProject(name, event.Cluster.UID) {
				p.endDrain(name, &Disengaged{Message: "the cluster was engaged again"})
			}
			if e != nil && e.info().UID != event.Cluster.UID {
				p.disengage(e, &Disengaged{Reason: discovery.ReasonReplaced})
				e = nil
			}
		case discovery.EventUpdated, discovery.EventKubeconfig, discovery.EventRefreshed:
		}
		if event.Cluster.Draining != nil {
			p.drain(ctx, e, event)
			continue
		}
		if e != nil && e.info().Endpoint != event.Cluster.Endpoint {
			p.disengage(e, &Disengaged{Message: "the endpoint changed"})
			e = nil
		}
		known := e != nil
		if !known {
			e = newEntry(ctx, event.Cluster)
			e.credential = p.configs.credential(e.info)
			p.entries[name] = e
		}
		e.update(event.Cluster)
		if event.Kubeconfig != nil && e.credential != nil {
			if err := e.credential.Offer(received(event.Kubeconfig)); err != nil {
				p.options.Logger.Error(err, "kubeconfig refused", "cluster", name)
			}
		}
		if !known {
			p.begin(e)
		}
	}
}

// begin starts the worker of an entry. It is called with the lock held.
func (p *Provider) begin(e *entry) {
	before := p.leaving[e.name]
	p.workers.Go(func() {
		defer p.end(e)
		if before != nil {
			<-before
		}
		p.work(e)
	})
}

// disengage removes a cluster and cancels its contexts. It is called with the lock held; e may be nil.
func (p *Provider) disengage(e *entry, cause *Disengaged) {
	if e == nil {
		return
	}
	last := e.info()
	if cause.Cluster.Name == "" {
		cause.Cluster = last
	}
	p.remove(e)
	e.cancel(cause)
	e.disown(cause)
}

// remove removes a cluster, so that Get no longer returns it. It is called with the lock held.
func (p *Provider) remove(e *entry) {
	delete(p.entries, e.name)
	p.leaving[e.name] = e.done
}

// end is called when the worker of an entry has returned. Its credential is closed once no reconcile is in flight.
func (p *Provider) end(e *entry) {
	if idle := e.untilIdle(); e.credential != nil {
		select {
		case <-idle:
			e.credential.Close()
		default:
			go func() {
				<-idle
				e.credential.Close()
			}()
		}
	}
	close(e.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leaving[e.name] == e.done {
		delete(p.leaving, e.name)
	}
}

// states counts the clusters by state.
func (p *Provider) states() map[state]int {
	counts := map[state]int{}
	for _, e := range p.snapshot() {
		counts[e.state()]++
	}
	return counts
}

// unsynced counts the informers that have not synced, or failed after they synced, by kind and reason.
func (p *Provider) unsynced() map[unsyncedKey]int {
	counts := map[unsyncedKey]int{}
	for _, e := range p.snapshot() {
		for _, each := range e.unsynced() {
			counts[unsyncedKey{each.Kind, each.Reason}]++
		}
	}
	return counts
}
