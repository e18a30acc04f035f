package discovery

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const endTimeout = time.Second // of each call at the end of a fleet; short, because the program is about to exit

// handlerBackoff is the backoff of a handler that returned an error.
var handlerBackoff = Backoff{Initial: time.Second, Max: time.Minute}.withDefaults()

// Handler works on one engaged cluster until its context is canceled. The cancellation cause is a [*Disengaged] if the
// cluster was disengaged or is draining, and otherwise the reason why the fleet ends.
type Handler func(ctx context.Context, cluster *EngagedCluster) error

// FleetOptions configures [Client.RunFleet].
type FleetOptions struct {
	// WatchOptions configures the fleet's watch. If Subscriber is empty, [NewSubscriber] is used.
	WatchOptions
	// OnError is called with each error of a handler. If nil, the error is logged with [slog.Default]. Calls may overlap.
	OnError func(*EngagedCluster, error)
}

// RunFleet runs a handler for each engaged cluster: see [Fleet.Run].
func (c *Client) RunFleet(ctx context.Context, options FleetOptions, handler Handler) error {
	return c.NewFleet(options).Run(ctx, handler)
}

// Fleet is the engaged clusters, with one handler for each. It is safe for concurrent use.
type Fleet struct {
	client  *Client
	options FleetOptions
	handler Handler
	state   fleetState

	ctx     context.Context // canceled when the watch has ended
	cancel  context.CancelCauseFunc
	running sync.WaitGroup // handlers and releases

	mu      sync.Mutex
	members map[string]*member // by name; disengaged members stay until their handler has returned
}

// NewFleet returns a fleet without clusters, until Run.
func (c *Client) NewFleet(options FleetOptions) *Fleet {
	if options.Subscriber == "" {
		options.Subscriber = NewSubscriber()
	}
	if options.OnError == nil {
		options.OnError = func(cluster *EngagedCluster, err error) {
			slog.Error("handler failed", "cluster", cluster.Name(), "error", err)
		}
	}
	f := &Fleet{client: c, options: options, members: map[string]*member{}}
	f.state.now = FleetState{Problem: "not connected yet"}
	return f
}

// State returns how current the fleet is. Call it before Clusters: a cluster is missing there only if this state explains
// it, or if it is not engaged.
func (f *Fleet) State() FleetState { return f.state.get() }

// Clusters returns the engaged clusters that are not draining, ordered by name. After Run, they are those of its end.
func (f *Fleet) Clusters() []*EngagedCluster {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := make([]*EngagedCluster, 0, len(f.members))
	for _, name := range slices.Sorted(maps.Keys(f.members)) {
		if m := f.members[name]; !m.isLeft {
			found = append(found, m.cluster)
		}
	}
	return found
}

// Run runs one handler for each engaged cluster. It returns the error of [Client.Watch], after all handlers have
// returned. It can be called once.
//
// If a cluster was replaced or engaged again, its new handler starts after the previous handler of that name has
// returned. A handler that returns an error is called again after a backoff while its cluster is engaged; one that
// returns nil is not. When a cluster drains, the context of its handler is canceled, and the cluster is released once
// the handler has returned. When the watch has ended and all handlers have returned, RunFleet calls EndSubscription.
func (f *Fleet) Run(ctx context.Context, handler Handler) error {
	f.handler = handler
	f.ctx, f.cancel = context.WithCancelCause(ctx)
	watching := f.options.WatchOptions
	watching.Hooks = f.state.observe(watching.Hooks)
	err := f.client.Watch(ctx, watching, f.apply)
	f.state.lost(err)
	f.end(err)
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	// If it fails, drains that have begun, or begin within a minute, wait until their deadline.
	_ = f.client.EndSubscription(ending, f.options.Subscriber)
	return err
}

// member is one engagement of a cluster, with its handler.
type member struct {
	cluster   *EngagedCluster
	cancel    context.CancelCauseFunc // context of the handler
	ended     chan struct{}           // closed when this handler and previous ones of the name have returned
	before    *member                 // the former engagement whose handler it waits for, until that has returned
	isDropped bool                    // disengaged while it waited: its handler is never called
	isLeft    bool                    // draining or disengaged
	releasing bool                    // a goroutine releases the cluster
}

func (f *Fleet) apply(events []Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, event := range events {
		current := f.members[event.Cluster.Name]
		switch event.Type {
		case EventEngaged:
			current = f.engage(event, current)
		case EventDisengaged:
			if event.Reason == ReasonOwnershipLost {
				f.state.disowned()
			}
			f.disengage(current, &Disengaged{Cluster: event.Cluster, Reason: event.Reason, Message: event.Message})
			continue
		case EventUpdated, EventKubeconfig, EventRefreshed:
			current.cluster.update(event)
		}
		if event.Cluster.Draining != nil && event.Type != EventKubeconfig {
			f.drain(current, event.Cluster)
		}
	}
}

func (f *Fleet) engage(event Event, before *member) *member {
	ctx, cancel := context.WithCancelCause(f.ctx)
	begun := &member{
		cluster: newEngagedCluster(f.ctx, f.client, f.options.KubeconfigTTL), cancel: cancel, ended: make(chan struct{}), before: before,
	}
	begun.cluster.update(event)
	f.members[event.Cluster.Name] = begun
	f.running.Go(func() {
		defer cancel(nil)
		if before != nil {
			select {
			case <-before.ended:
			case <-begun.cluster.ctx.Done():
			}
		}
		if !f.begin(begun) {
			return
		}
		if event.Cluster.Draining == nil {
			f.work(ctx, begun.cluster)
		}
		close(begun.ended)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.forget(begun)
	})
	return begun
}

// begin reports whether an engagement still exists when its turn has come.
func (f *Fleet) begin(m *member) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.before = nil
	return !m.isDropped
}

func (f *Fleet) disengage(m *member, cause *Disengaged) {
	m.isLeft = true
	m.cluster.end(cause)
	m.cancel(cause)
	if m.before != nil { // the next engagement waits for the same handler, not for each engagement since
		m.isDropped = true
		f.members[m.cluster.Name()] = m.before
		m = m.before
	}
	f.forget(m)
}

// forget removes an engagement if both it and its handler have ended. It is called with the lock held.
func (f *Fleet) forget(m *member) {
	name := m.cluster.Name()
	select {
	case <-m.ended:
		if m.cluster.hasEnded() && f.members[name] == m {
			delete(f.members, name)
		}
	default:
	}
}

func (f *Fleet) drain(m *member, cluster Cluster) {
	m.isLeft = true
	m.cancel(&Disengaged{Cluster: cluster, Reason: cluster.Draining.Reason, Message: cluster.Draining.Message})
	if m.releasing {
		return
	}
	m.releasing = true
	f.running.Go(func() {
		select {
		case <-m.ended:
			f.release(m)
		case <-m.cluster.ctx.Done():
		}
	})
}

// release releases a draining cluster until the daemon has answered for its current incarnation. After the end of the
// watch, a call gets endTimeout and is not retried, because EndSubscription follows.
func (f *Fleet) release(m *member) {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	defer context.AfterFunc(m.cluster.ctx, cancel)()
	calling, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() { sleep(calling, endTimeout); stop() })()
	retries := retries{policy: f.client.backoff, draw: rand.Float64}
	for !m.cluster.hasEnded() {
		cluster := m.cluster.Current()
		err := f.client.Release(calling, cluster, f.options.Subscriber)
		switch {
		case err == nil || IsTerminal(err) || errors.Is(err, ErrNotFound):
			// If another daemon has taken over, it sends the cluster again, with its own incarnation.
			if f.isReleased(m, cluster.Incarnation) {
				return
			}
		case ctx.Err() != nil:
			return
		default:
			sleep(ctx, retries.failed(0, retryAfter(err)))
		}
	}
}

// isReleased reports whether the incarnation is still the current one. If so, the next event of the draining cluster
// begins another release.
func (f *Fleet) isReleased(m *member, incarnation string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.releasing = m.cluster.Current().Incarnation != incarnation
	return !m.releasing
}

func (f *Fleet) work(ctx context.Context, cluster *EngagedCluster) {
	retries := retries{policy: handlerBackoff, draw: rand.Float64}
	for ctx.Err() == nil {
		began := time.Now()
		err := f.handler(ctx, cluster)
		if err == nil || ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
			return
		}
		f.options.OnError(cluster, err)
		sleep(ctx, retries.failed(time.Since(began), 0))
	}
}

// end cancels all handlers and waits for them. Their credentials are renewed until they return.
func (f *Fleet) end(cause error) {
	f.cancel(cause)
	f.running.Wait()
	for _, m := range f.members {
		m.cluster.end(cause)
	}
}
