package multicluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/multicluster/internal/credential"
	"go.miloapis.com/discovery/multicluster/internal/prompt"
)

type state string

// The states of a cluster that the daemon has engaged.
const (
	stateWaiting  state = "waiting"  // waiting for a slot
	stateStarting state = "starting" // being created and, if this replica leads, engaged with controllers
	stateStandby  state = "standby"  // started; Get returns it, but it is not engaged with controllers, since this replica does not lead
	stateEngaged  state = "engaged"  // engaged with controllers
	stateFailed   state = "failed"   // retried after a backoff
)

var allStates = []state{stateWaiting, stateStarting, stateStandby, stateEngaged, stateFailed}

// entry is one engagement of a cluster, from ENGAGED to DISENGAGED. After a failure it gets a new instance.
type entry struct {
	name       multicluster.ClusterName
	ctx        context.Context
	cancel     context.CancelCauseFunc
	credential *credential.Credential // nil without Options.Kubeconfigs
	done       chan struct{}          // closed when its worker has returned

	// owned is the parent context of reconciles. Unlike ctx it is not canceled by a drain, during which they may finish.
	owned  context.Context
	disown context.CancelCauseFunc

	mu        sync.Mutex
	last      discovery.Cluster
	now       state
	failure   error
	instance  *instance     // nil while Get must not return the cluster
	reconcile int           // number of reconciles in flight
	idle      chan struct{} // closed when the last reconcile returns; nil if there is no waiter
}

func newEntry(ctx context.Context, info discovery.Cluster) *entry {
	owned, disown := context.WithCancelCause(ctx)
	ctx, cancel := context.WithCancelCause(owned)
	return &entry{
		name: multicluster.ClusterName(info.Name), ctx: ctx, cancel: cancel, done: make(chan struct{}),
		owned: owned, disown: disown, last: info, now: stateWaiting,
	}
}

func (e *entry) info() discovery.Cluster {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

func (e *entry) update(info discovery.Cluster) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = info
}

func (e *entry) cluster() cluster.Cluster {
	if found := e.current(); found != nil {
		return found.cluster
	}
	return nil
}

// unsynced returns the informers of the cluster that have not synced, or failed after they synced.
func (e *entry) unsynced() []prompt.Unsynced {
	if found := e.current(); found != nil && found.cache != nil {
		return found.cache.Unsynced()
	}
	return nil
}

func (e *entry) current() *instance {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.instance
}

func (e *entry) register(i *instance) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.instance = i
}

func (e *entry) state() state {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.now
}

func (e *entry) enter(now state, failure error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now, e.failure = now, failure
}

// instance is one cluster.Cluster of an entry.
type instance struct {
	cluster cluster.Cluster
	cache   *prompt.Cache // nil with Options.BlockingCaches
	ctx     context.Context
	cancel  context.CancelCauseFunc

	indexing sync.Mutex
	indexed  int // number of the provider's indexes that were added
}

var (
	errStopped       = errors.New("the cluster stopped")
	errEngageTimeout = errors.New("the manager did not engage the cluster within Options.EngageTimeout")
)

// work runs an entry, and retries with backoff after a failure, until the entry drains or is disengaged.
func (p *Provider) work(e *entry) {
	retry := retries
	for e.ctx.Err() == nil {
		began := time.Now()
		err := p.run(e)
		if e.ctx.Err() != nil {
			return
		}
		if time.Since(began) > retries.Cap {
			retry = retries
		}
		delay := retry.Step()
		e.enter(stateFailed, err)
		p.metrics.failures.Inc()
		p.options.Logger.Error(err, "cluster not engaged", "cluster", e.name, "retryAfter", delay.String())
		select {
		case <-e.ctx.Done():
		case <-time.After(delay):
		}
	}
}

// run creates an instance, engages it, and returns the reason when it has stopped.
func (p *Provider) run(e *entry) error {
	e.enter(stateWaiting, nil)
	taken, err := p.slots.take(e.ctx)
	if err != nil {
		return err
	}
	defer taken.release()
	e.enter(stateStarting, nil)
	began := time.Now()
	ctx, cancel := context.WithCancelCause(e.ctx)
	defer cancel(errStopped)
	i, err := p.make(ctx, e)
	if err != nil {
		return err
	}
	i.cancel = cancel
	// Get has to return the cluster before controllers receive its first event. The second call of index adds the
	// indexes that IndexField was given after the first call.
	if err := p.index(ctx, i); err != nil {
		return err
	}
	e.register(i)
	if err := p.index(ctx, i); err != nil {
		e.register(nil)
		return err
	}
	offered := make(chan struct{})
	go func() {
		defer close(offered)
		if err := p.offer(ctx, e, i, taken, began); err != nil {
			e.register(nil)
			cancel(err)
		}
	}()
	if err := i.cluster.Start(ctx); err != nil {
		cancel(fmt.Errorf("%w: %w", errStopped, err))
	}
	e.register(nil)
	cancel(errStopped)
	<-offered
	return context.Cause(ctx)
}

// offer engages an instance with the manager, once this replica leads, and waits until its informers have synced.
func (p *Provider) offer(ctx context.Context, e *entry, i *instance, taken *slot, began time.Time) error {
	defer func() { taken.release() }()
	if err := p.sync(ctx, i); err != nil {
		return err
	}
	select {
	case <-p.aware:
	default:
		e.enter(stateStandby, nil)
		taken.release()
		select {
		case <-p.aware:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		again, err := p.slots.take(ctx)
		if err != nil {
			return err
		}
		taken = again
	}
	if err := p.offerToManager(ctx, e, i); err != nil {
		return err
	}
	e.enter(stateEngaged, nil)
	p.metrics.engaged.Observe(time.Since(began).Seconds())
	if i.cache != nil {
		// If this takes long, the slot's timer releases the slot.
		_ = i.cache.Settled(ctx)
	}
	return nil
}

func (p *Provider) sync(ctx context.Context, i *instance) error {
	within, done := context.WithTimeout(ctx, p.options.SyncTimeout)
	defer done()
	if i.cluster.GetCache().WaitForCacheSync(within) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("informers of indexed types have not synced within Options.SyncTimeout (%v)", p.options.SyncTimeout)
}

// offerToManager calls the manager's Engage with an instance.
func (p *Provider) offerToManager(ctx context.Context, e *entry, i *instance) error {
	timer := time.AfterFunc(p.options.EngageTimeout, func() { i.cancel(errEngageTimeout) })
	defer timer.Stop()
	engaging := ctx
	if !p.options.BlockingCaches {
		engaging = prompt.Engaging(ctx)
	}
	err := p.engage.Engage(engaging, e.name, i.cluster)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("engage: %w", err)
	}
	return nil
}
