package prompt

import (
	"context"
	"maps"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	toolscache "k8s.io/client-go/tools/cache"
)

type newInformerFunc = func(toolscache.ListerWatcher, runtime.Object, time.Duration, toolscache.Indexers) toolscache.SharedIndexInformer

// observed returns a constructor for informers whose failures are recorded and reported. DefaultWatchErrorHandler of
// client-go logs each attempt, of each cluster.
func (c *Cache) observed(create newInformerFunc) newInformerFunc {
	if create == nil {
		create = toolscache.NewSharedIndexInformer
	}
	return func(lw toolscache.ListerWatcher, example runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
		made := create(lw, example, resync, indexers)
		// An error is that the informer was started, which is left to those who did. The cache replaces the handler if its
		// options have one.
		_ = made.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *toolscache.Reflector, err error) {
			if !c.failed(made, example, err) {
				toolscache.DefaultWatchErrorHandler(ctx, r, err)
			}
		})
		return made
	}
}

// failed records and reports why an informer failed. It returns false if the next list is not a retry, or if the informer
// can't say when it has recovered.
func (c *Cache) failed(made toolscache.SharedIndexInformer, example runtime.Object, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || !isFailing(made) {
		return false
	}
	u := newUnsynced(example, c.scheme).because(err)
	if own, ok := made.(failing); ok {
		u.Since = own.FailingSince()
	}
	c.failures[made] = u
	c.report(u)
	return true
}

// failing is an informer that can say that it failed after it had synced, as those of package informer.
type failing interface {
	// FailingSince returns the time of the first failure since the last list; zero if there is none.
	FailingSince() time.Time
}

func isFailing(made toolscache.SharedIndexInformer) bool {
	if own, ok := made.(failing); ok {
		return !own.FailingSince().IsZero()
	}
	return !made.HasSynced() && !made.IsStopped()
}

// forgetRecovered is called with the lock held.
func (c *Cache) forgetRecovered() {
	maps.DeleteFunc(c.failures, func(made toolscache.SharedIndexInformer, _ Unsynced) bool { return !isFailing(made) })
}
