package multicluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"

	"go.miloapis.com/discovery"
)

// endTimeout is the timeout of EndSubscription, which delays the exit of the operator.
const endTimeout = time.Second

// Owns reports whether Get returns the cluster: it is engaged, runs here, and is not draining.
func (p *Provider) Owns(name multicluster.ClusterName) bool {
	e := p.entry(name)
	return e != nil && e.cluster() != nil
}

// ReconcilerOption changes which requests Reconciler passes to the inner reconciler.
type ReconcilerOption func(*guard)

// WhileDeleting also passes requests for objects that are not terminating in a project whose deletion was requested.
// Use it only for reconcilers that create no objects then: Milo deletes a project once it is empty.
func WhileDeleting() ReconcilerOption { return func(g *guard) { g.whileDeleting = true } }

type guard struct{ whileDeleting bool }

// Reconciler wraps a reconciler of the object's kind, and passes it only requests for the operator's own cluster and
// for clusters that the provider owns. It drops other requests, since multicluster-runtime keeps the queue of a
// disengaged cluster. Reconciles in flight may finish while their cluster drains, and the cluster is released to the
// daemon after they have returned; without Reconciler, it is released when its cache has stopped. When the cluster is
// disengaged, their context is canceled with a *Disengaged as cause.
//
// In a project whose deletion was requested, only terminating objects are reconciled: Milo deletes the project's
// objects repeatedly until it is empty, which objects that a reconciler recreates would prevent.
//
// The cluster names in requests must be those of the provider. With another provider that adds a prefix, all requests
// are dropped.
func Reconciler(
	p *Provider, object client.Object, inner reconcile.TypedReconciler[mcreconcile.Request], options ...ReconcilerOption,
) reconcile.TypedReconciler[mcreconcile.Request] {
	var g guard
	for _, each := range options {
		each(&g)
	}
	kind := object.DeepCopyObject() // the caller may reuse its object
	return mcreconcile.Func(func(ctx context.Context, r mcreconcile.Request) (reconcile.Result, error) {
		if r.Cluster() == "" { // the operator's own cluster
			return inner.Reconcile(ctx, r)
		}
		e := p.entry(r.Cluster())
		if e == nil || !e.enterReconcile() {
			return reconcile.Result{}, nil
		}
		defer e.leaveReconcile()
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(e.owned, func() { cancel(context.Cause(e.owned)) })()
		if !g.whileDeleting && !e.info().DeletionRequestedAt.IsZero() {
			if terminating, err := e.isTerminating(ctx, kind, r.NamespacedName); err != nil || !terminating {
				return reconcile.Result{}, err
			}
		}
		return inner.Reconcile(ctx, r)
	})
}

// isTerminating reports whether the object exists in the cluster and has a deletionTimestamp.
func (e *entry) isTerminating(ctx context.Context, kind runtime.Object, name types.NamespacedName) (bool, error) {
	current := e.cluster()
	if current == nil { // the cluster began to drain, or its instance stopped
		return false, nil
	}
	found, ok := kind.DeepCopyObject().(client.Object)
	if !ok {
		return false, fmt.Errorf("%T is not a client.Object", kind)
	}
	if err := current.GetClient().Get(ctx, name, found); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	return !found.GetDeletionTimestamp().IsZero(), nil
}

// enterReconcile counts a reconcile, and returns true. It returns false if Get does not return the cluster.
func (e *entry) enterReconcile() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.instance == nil || e.ctx.Err() != nil {
		return false
	}
	e.reconcile++
	return true
}

func (e *entry) leaveReconcile() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reconcile--
	if e.reconcile == 0 && e.idle != nil {
		close(e.idle)
		e.idle = nil
	}
}

// untilIdle returns a channel that is closed when no reconcile is in flight. The entry must not begin new reconciles.
func (e *entry) untilIdle() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.reconcile == 0 {
		idle := make(chan struct{})
		close(idle)
		return idle
	}
	if e.idle == nil {
		e.idle = make(chan struct{})
	}
	return e.idle
}

// drain is a planned disengagement, from the first event with Draining to DISENGAGED.
type drain struct {
	entry   *entry                 // nil if the cluster was never engaged here
	pending chan discovery.Cluster // the cluster to release; a newer one replaces it
	cancel  context.CancelFunc
}

// drain handles an event of a draining cluster: it stops the cluster's caches, and releases the cluster once they have
// stopped and its reconciles have returned. A later state of the draining cluster is released as well. It is called
// with the lock held; e may be nil.
func (p *Provider) drain(ctx context.Context, e *entry, event discovery.Event) {
	name := multicluster.ClusterName(event.Cluster.Name)
	d := p.drains[name]
	if d == nil {
		ctx, cancel := context.WithCancel(ctx)
		d = &drain{entry: e, pending: make(chan discovery.Cluster, 1), cancel: cancel}
		p.drains[name] = d
		before := p.leaving[name]
		if e != nil {
			p.remove(e)
			e.cancel(&Disengaged{
				Cluster: event.Cluster, Reason: event.Cluster.Draining.Reason, Message: event.Cluster.Draining.Message,
			})
			before = e.done
		}
		p.workers.Go(func() {
			p.releaseWhenIdle(ctx, d, before)
		})
	}
	if d.entry != nil {
		d.entry.update(event.Cluster) // the entry's credential is renewed until the cluster is disengaged
	}
	if event.Kubeconfig != nil && d.entry != nil && d.entry.credential != nil {
		if err := d.entry.credential.Offer(received(event.Kubeconfig)); err != nil {
			p.options.Logger.Error(err, "kubeconfig refused", "cluster", name)
		}
	}
	if event.Type == discovery.EventKubeconfig {
		return
	}
	select {
	case <-d.pending:
	default:
	}
	d.pending <- event.Cluster
}

// drainsProject reports whether the draining project of this name has the UID. It is called with the lock held.
func (p *Provider) drainsProject(name multicluster.ClusterName, uid string) bool {
	d := p.drains[name]
	return d != nil && d.entry != nil && d.entry.info().UID == uid
}

// endDrain removes a drain when its cluster is disengaged. It is called with the lock held.
func (p *Provider) endDrain(name multicluster.ClusterName, cause *Disengaged) {
	d := p.drains[name]
	if d == nil {
		return
	}
	delete(p.drains, name)
	d.cancel()
	if d.entry != nil {
		if cause.Cluster.Name == "" {
			cause.Cluster = d.entry.info()
		}
		d.entry.disown(cause)
	}
}

// releaseWhenIdle releases a draining cluster, once all work on it has ended, until ctx is done. before is closed when
// the last engagement of the name has ended; it may be nil.
func (p *Provider) releaseWhenIdle(ctx context.Context, d *drain, before <-chan struct{}) {
	waits := []<-chan struct{}{before}
	if d.entry != nil {
		waits = append(waits, d.entry.untilIdle())
	}
	for _, ended := range waits {
		if ended == nil {
			continue
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return
		}
	}
	for {
		select {
		case cluster := <-d.pending:
			release(ctx, p.options.Client, p.options.Subscriber, p.options.Logger, cluster, d.pending)
		case <-ctx.Done():
			return
		}
	}
}

// release releases a cluster to the daemon, and retries after errors other than terminal ones and ErrNotFound. A newer
// state of the cluster from pending replaces it.
func release(
	ctx context.Context, client *discovery.Client, subscriber string, log logr.Logger, cluster discovery.Cluster, pending <-chan discovery.Cluster,
) {
	retry := retries
	for {
		err := client.Release(ctx, cluster, subscriber)
		if err == nil || ctx.Err() != nil {
			return
		}
		if discovery.IsTerminal(err) || errors.Is(err, discovery.ErrNotFound) {
			// If another daemon has taken over, it sends the cluster again, with its own incarnation.
			log.Info("cluster not released", "cluster", cluster.Name, "reason", err.Error())
			return
		}
		select {
		case cluster = <-pending:
		case <-ctx.Done():
			return
		case <-time.After(retry.Step()):
		}
	}
}

// endSubscription notifies the daemon that draining clusters need not wait for this operator, unless a reconcile is in
// flight.
func (p *Provider) endSubscription() {
	p.mu.RLock()
	busy := false
	for _, e := range p.entries {
		busy = busy || e.isBusy()
	}
	for _, d := range p.drains {
		busy = busy || d.entry != nil && d.entry.isBusy()
	}
	p.mu.RUnlock()
	if busy {
		return
	}
	endSubscription(p.options.Client, p.options.Subscriber, p.options.Logger)
}

func endSubscription(client *discovery.Client, subscriber string, log logr.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if err := client.EndSubscription(ctx, subscriber); err != nil {
		log.V(1).Info("subscription not ended", "reason", err.Error())
	}
}

func (e *entry) isBusy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.reconcile > 0
}
