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
	stateWaiting  state = "waiting"  // for a slot
	stateStarting state = "starting" // being made
	stateStandby  state = "standby"  // started; Get returns it, and no controller has it, since this replica doesn't lead
	stateEngaged  state = "engaged"  // controllers have it
	stateFailed   state = "failed"   // to be tried again
)

var allStates = []state{stateWaiting, stateStarting, stateStandby, stateEngaged, stateFailed}

// entry is one engagement of a cluster, from ENGAGED to DISENGAGED. After a failure it gets another instance.
type entry struct {
	name       multicluster.ClusterName
	ctx        context.Context
	cancel     context.CancelCauseFunc
	credential *credential.Credential // nil where the daemon issues none
	done       chan struct{}          // closed when its worker has ended

	// owned is the context of reconciles. Unlike ctx it does not end with a drain, in which they may finish.
	owned  context.Context
	disown context.CancelCauseFunc

	mu        sync.Mutex
	last      discovery.Cluster
	now       state
	failure   error
	instance  *instance     // nil while Get must not return it
	reconcile int           // how many reconciles are in flight
	idle      chan struct{} // closed when the last of them returns; nil if nothing waits for that
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

// unsynced returns the informers of the cluster that have not synced, or have failed since.
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
	indexed  int // how many of the provider's indexes it has
}

var (
	errStopped       = errors.New("the cluster stopped")
	errEngageTimeout = errors.New("the manager did not engage the cluster in time")
)

// work engages an entry, and does so again after each failure, until the entry is disengaged.
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

// run makes an instance, engages it, and returns when it has ended, with the reason.
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
	// Get has to return the cluster before the first event. An index that is added now is added to it by one of the two.
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

// offer has the manager engage an instance, and waits until its informers have synced.
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
		// The slot is released by its own timer if this takes long.
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
	return fmt.Errorf("informers of indexed types have not synced within %v", p.options.SyncTimeout)
}

// offerToManager asks the manager to engage an instance.
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
