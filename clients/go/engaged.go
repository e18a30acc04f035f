package discovery

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// errMoved is returned for a request that was not sent.
var errMoved = errors.New("the cluster moved to another endpoint while the request waited for a connection")

const (
	// A kubeconfig is not used for the last 5 s of its lifetime, or the last tenth if that is shorter: requests take time.
	expiryMargin = 5 * time.Second
	// Share of the time between RefreshAfter and ExpiresAt to wait for the stream to push a kubeconfig, before requesting
	// one.
	pushShare = 0.25
)

// renewalInterval is the minimum interval between requests that replace a kubeconfig, even if the daemon's kubeconfigs
// are due for a refresh on arrival, as when this machine's clock is ahead.
const renewalInterval = 5 * time.Second

var issueBackoff = Backoff{Initial: time.Second, Max: 30 * time.Second}.withDefaults()

// EngagedCluster is one engagement of a cluster, from ENGAGED to DISENGAGED. It is safe for concurrent use.
type EngagedCluster struct {
	client *Client
	ttl    time.Duration
	ctx    context.Context // for requests of kubeconfigs; canceled when the engagement ends
	cancel context.CancelCauseFunc
	// place is canceled when the cluster leaves its endpoint, and with ctx.
	place context.Context
	leave context.CancelCauseFunc

	mu         sync.Mutex
	current    Cluster
	updated    chan struct{}
	kubeconfig *Kubeconfig
	isPushed   bool // the stream pushed the kubeconfig, and will push the next one
	renewal    chan struct{}
	pushed     chan struct{} // closed when the stream pushes a kubeconfig
	retries    retries
	failure    error
	notBefore  time.Time // no request before this time
	access     *access   // of the kubeconfig that a Transport used last
	accessOf   *Kubeconfig
}

func newEngagedCluster(ctx context.Context, client *Client, ttl time.Duration) *EngagedCluster {
	e := &EngagedCluster{client: client, ttl: ttl, updated: make(chan struct{}), pushed: make(chan struct{})}
	e.ctx, e.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	e.place, e.leave = context.WithCancelCause(e.ctx)
	e.retries = retries{policy: issueBackoff, draw: rand.Float64}
	return e
}

// Name returns the name of the cluster.
func (e *EngagedCluster) Name() string { return e.Current().Name }

// Current returns the current state of the cluster, or its last state before the disengagement.
func (e *EngagedCluster) Current() Cluster {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.current
}

// Updated returns a channel that is closed at the next update of the cluster, for example a new Endpoint.
func (e *EngagedCluster) Updated() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.updated
}

// Kubeconfig returns a currently valid kubeconfig. The stream pushes it if [WatchOptions].IncludeKubeconfigs is set.
// Otherwise, and if no push arrives in time, it is requested from the daemon and cached until it is due to be
// refreshed. Call Kubeconfig again for later requests. Once the cluster is disengaged, it fails with [*Disengaged]:
// another project may have the name.
func (e *EngagedCluster) Kubeconfig(ctx context.Context) (*Kubeconfig, error) {
	k, _, err := e.located(ctx)
	return k, err
}

// located returns a currently valid kubeconfig, and the place of its server.
func (e *EngagedCluster) located(ctx context.Context) (*Kubeconfig, context.Context, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	k, err := e.valid(ctx)
	return k, e.place, err
}

// valid returns a currently valid kubeconfig. It is called with the lock held, which it releases while it waits.
func (e *EngagedCluster) valid(ctx context.Context) (*Kubeconfig, error) {
	for {
		if e.ctx.Err() != nil {
			return nil, context.Cause(e.ctx)
		}
		now := time.Now()
		isValid := e.kubeconfig != nil && now.Before(e.usableUntil())
		if isValid && now.Before(e.refreshAt()) {
			return e.kubeconfig, nil
		}
		e.startRenewal(now)
		switch {
		case isValid:
			return e.kubeconfig, nil
		case e.renewal == nil && e.failure != nil:
			return nil, e.failure
		case e.renewal == nil: // issued a moment ago, but expired by this machine's clock
			return e.kubeconfig, nil
		}
		renewal, pushed := e.renewal, e.pushed
		e.mu.Unlock()
		isPushed := false
		select {
		case <-renewal:
		case <-pushed:
			isPushed = true
		case <-ctx.Done():
		}
		e.mu.Lock()
		switch {
		case e.ctx.Err() != nil:
			return nil, context.Cause(e.ctx)
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case isPushed:
			continue
		case e.failure != nil:
			return nil, e.failure
		case e.kubeconfig == nil: // the endpoint changed during the request
			continue
		}
		return e.kubeconfig, nil
	}
}

// startRenewal reports whether a request of the next kubeconfig is in flight. It is called with the lock held.
func (e *EngagedCluster) startRenewal(now time.Time) bool {
	if e.renewal == nil && !now.Before(e.notBefore) {
		e.renewal = make(chan struct{})
		go e.renew(e.renewal)
	}
	return e.renewal != nil
}

func (e *EngagedCluster) renew(done chan struct{}) {
	asked := e.Current()
	options := IssueOptions{TTL: e.ttl, Incarnation: asked.Incarnation}
	issued, err := e.client.Issue(e.ctx, asked.Name, options)
	e.mu.Lock()
	defer e.mu.Unlock()
	defer close(done)
	e.renewal = nil
	if e.current.Endpoint != asked.Endpoint {
		return
	}
	if err == nil {
		isReplacement := e.kubeconfig != nil
		e.offer(issued, false)
		if isReplacement {
			e.notBefore = time.Now().Add(renewalInterval)
		}
		return
	}
	e.failure, e.notBefore = err, time.Now().Add(e.retries.failed(0, retryAfter(err)))
}

// offer stores a kubeconfig, unless the current one is newer. It is called with the lock held.
func (e *EngagedCluster) offer(k *Kubeconfig, isPushed bool) {
	// A response can arrive after a newer push. If the current one was issued in the future, the clocks do not agree, or
	// one was set back since.
	if e.kubeconfig == nil || !k.IssuedAt.Before(e.kubeconfig.IssuedAt) || e.kubeconfig.IssuedAt.After(time.Now()) {
		e.kubeconfig, e.isPushed = k, isPushed
	}
	e.failure, e.notBefore, e.retries.delay = nil, time.Time{}, 0
}

// usableUntil returns when to stop using the kubeconfig. It is called with the lock held, if there is a kubeconfig.
func (e *EngagedCluster) usableUntil() time.Time {
	k := e.kubeconfig
	if k.ExpiresAt.IsZero() {
		return endOfTime
	}
	return k.ExpiresAt.Add(-max(0, min(expiryMargin, k.ExpiresAt.Sub(k.IssuedAt)/10)))
}

func (e *EngagedCluster) refreshAt() time.Time {
	k := e.kubeconfig
	switch {
	case k.RefreshAfter.IsZero():
		return endOfTime
	case !e.isPushed || k.ExpiresAt.IsZero():
		return k.RefreshAfter
	}
	return k.RefreshAfter.Add(time.Duration(pushShare * float64(k.ExpiresAt.Sub(k.RefreshAfter))))
}

var endOfTime = time.Unix(1<<40, 0)

func (e *EngagedCluster) update(event Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if event.Cluster.Endpoint != e.current.Endpoint {
		e.kubeconfig, e.failure, e.notBefore = nil, nil, time.Time{} // another project may have the former endpoint
		e.leave(errMoved)
		e.place, e.leave = context.WithCancelCause(e.ctx)
	}
	e.current = event.Cluster
	if event.Kubeconfig != nil {
		e.offer(event.Kubeconfig, true)
		close(e.pushed)
		e.pushed = make(chan struct{})
	}
	if event.Type == EventUpdated {
		close(e.updated)
		e.updated = make(chan struct{})
	}
}

func (e *EngagedCluster) end(cause error) {
	e.cancel(cause)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.access != nil {
		e.access.release()
	}
}

func (e *EngagedCluster) hasEnded() bool { return e.ctx.Err() != nil }
