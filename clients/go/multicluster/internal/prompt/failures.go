package prompt

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/watchlist"
)

type newInformerFunc = func(toolscache.ListerWatcher, runtime.Object, time.Duration, toolscache.Indexers) toolscache.SharedIndexInformer

// observed returns a constructor for informers whose failures are recorded and reported. client-go's
// DefaultWatchErrorHandler would log each attempt of each cluster.
func (c *Cache) observed(create newInformerFunc) newInformerFunc {
	if create == nil {
		create = toolscache.NewSharedIndexInformer
	}
	return func(lw toolscache.ListerWatcher, example runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
		// Copied, because the cache's caller may modify the object, or reuse it for another kind, while the informer runs.
		example = example.DeepCopyObject()
		var made toolscache.SharedIndexInformer
		made = create(accepted{lw, func() { c.recovered(made) }}, example, resync, indexers)
		// This call fails only if create has already started the informer, which then keeps its own handler. If the
		// cache's options have a handler, the cache replaces this handler.
		_ = made.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *toolscache.Reflector, err error) {
			if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) { // the next list is not a retry
				toolscache.DefaultWatchErrorHandler(ctx, r, err)
				return
			}
			c.failed(made, newUnsynced(example, c.scheme).because(err))
		})
		return made
	}
}

// failed records and reports the failure of an informer.
func (c *Cache) failed(made toolscache.SharedIndexInformer, u Unsynced) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if earlier, ok := c.failures[made]; ok {
		u.Since = earlier.Since
	}
	c.failures[made] = u
	c.report(u)
}

func (c *Cache) recovered(made toolscache.SharedIndexInformer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.failures, made)
}

// accepted calls a function after each successful list, and each watch that was opened.
type accepted struct {
	toolscache.ListerWatcher
	call func()
}

func (a accepted) ListWithContext(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	list, err := toolscache.ToListerWatcherWithContext(a.ListerWatcher).ListWithContext(ctx, options)
	if err == nil {
		a.call()
	}
	return list, err
}

func (a accepted) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	opened, err := toolscache.ToListerWatcherWithContext(a.ListerWatcher).WatchWithContext(ctx, options)
	if err != nil {
		return nil, err
	}
	a.call()
	return drained{opened}, nil
}

// drained is a watch that discards its pending events when it is stopped. Otherwise the goroutine of watch.Filter,
// which controller-runtime uses for metadata, stays blocked.
type drained struct{ watch.Interface }

func (d drained) Stop() {
	d.Interface.Stop()
	go func() {
		for range d.ResultChan() {
		}
	}()
}

// IsWatchListSemanticsUnSupported passes on the answer of the ListerWatcher. client-go checks only the outer type.
func (a accepted) IsWatchListSemanticsUnSupported() bool {
	return watchlist.DoesClientNotSupportWatchListSemantics(a.ListerWatcher)
}
