// Package prompt prevents a slow or unresponsive cluster from blocking the engagement of others.
//
// multicluster-runtime holds a controller's lock while it engages a cluster and waits for the cluster's informers. With
// a context from Engaging, a Cache does not wait: informers are created and synced in the background. Calls with other
// contexts wait as with any cache, but reads wait only for readWithin.
package prompt

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

type engaging struct{}

// Engaging returns a context with which a Cache does not block.
func Engaging(ctx context.Context) context.Context {
	return context.WithValue(ctx, engaging{}, true)
}

// Ordinary returns a context with which a Cache blocks like any other cache, even if ctx is from Engaging.
func Ordinary(ctx context.Context) context.Context {
	return context.WithValue(ctx, engaging{}, false)
}

func isEngaging(ctx context.Context) bool {
	marked, _ := ctx.Value(engaging{}).(bool)
	return marked
}

// Retry is the backoff for informers that cannot be created, for example because their kind is not served yet.
var Retry = wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 0.2, Steps: 7, Cap: time.Minute}

// Cache is a cache that does not block with a context from Engaging.
type Cache struct {
	cache.Cache
	scheme *runtime.Scheme
	report func(Unsynced)

	unanswered sync.Map // when the first read since the last success began, by type

	mu       sync.Mutex
	pending  map[*informer]Unsynced
	failures map[toolscache.SharedIndexInformer]Unsynced // may include stopped informers
	changed  chan struct{}                               // closed and replaced when an informer leaves pending
}

// NewFunc returns a function that creates caches with create. It calls created for each cache, and report for each
// failure of an informer.
func NewFunc(create cache.NewCacheFunc, created func(*Cache), report func(Unsynced)) cache.NewCacheFunc {
	return func(config *rest.Config, options cache.Options) (cache.Cache, error) {
		c := New(nil, options.Scheme, report)
		options.NewInformer = c.observed(options.NewInformer)
		inner, err := create(config, options)
		if err != nil {
			return nil, err
		}
		c.Cache = inner
		created(c)
		return c, nil
	}
}

// New returns a Cache that wraps inner.
func New(inner cache.Cache, scheme *runtime.Scheme, report func(Unsynced)) *Cache {
	return &Cache{
		Cache: inner, scheme: scheme, report: report,
		pending: map[*informer]Unsynced{}, failures: map[toolscache.SharedIndexInformer]Unsynced{}, changed: make(chan struct{}),
	}
}

// GetInformer returns the informer for obj. If ctx is from Engaging, it returns a placeholder at once.
func (c *Cache) GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error) {
	if !isEngaging(ctx) {
		return c.Cache.GetInformer(ctx, obj, opts...)
	}
	i := newInformer()
	copied, ok := obj.DeepCopyObject().(client.Object) // the caller may reuse obj
	if !ok {
		return nil, fmt.Errorf("%T is not a client.Object", obj)
	}
	if ctx.Err() != nil {
		// The cluster was disengaged before a controller that waited for leader election started this source. An error
		// would stop the manager.
		return i, nil //nolint:nilerr // see above
	}
	c.mu.Lock()
	c.pending[i] = newUnsynced(copied, c.scheme)
	c.mu.Unlock()
	opts = append(opts, cache.BlockUntilSynced(false))
	go c.follow(ctx, i, copied, opts)
	return i, nil
}

// follow creates the informer for the placeholder i, and removes i from pending once the informer has synced.
func (c *Cache) follow(ctx context.Context, i *informer, obj client.Object, opts []cache.InformerGetOption) {
	defer c.forget(i)
	backoff := Retry
	for {
		real, err := c.Cache.GetInformer(ctx, obj, opts...)
		if err == nil {
			err = i.attach(real)
		}
		if err == nil {
			awaitSync(ctx, real)
			return
		}
		delay := backoff.Step()
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		c.pending[i] = c.pending[i].because(err)
		c.report(c.pending[i])
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}

func (c *Cache) forget(i *informer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, i)
	close(c.changed)
	c.changed = make(chan struct{})
}

// Unsynced returns the informers that have not synced, or failed after they synced, ordered by kind. An informer for
// which several sources wait is returned once.
func (c *Cache) Unsynced() []Unsynced {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.failures, func(made toolscache.SharedIndexInformer, _ Unsynced) bool { return made.IsStopped() })
	all := slices.AppendSeq(slices.Collect(maps.Values(c.pending)), maps.Values(c.failures))
	slices.SortFunc(all, func(a, b Unsynced) int {
		// An entry with a failure comes before a syncing entry of the same kind, so that CompactFunc keeps the failure.
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.description, b.description), cmp.Compare(b.Message, a.Message))
	})
	return slices.CompactFunc(all, func(a, b Unsynced) bool { return a.Kind == b.Kind && a.description == b.description })
}

// Settled waits until every informer that was requested with a context from Engaging has synced.
func (c *Cache) Settled(ctx context.Context) error {
	for {
		c.mu.Lock()
		left, changed := len(c.pending), c.changed
		c.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// WaitForCacheSync waits until all informers have synced. If ctx is from Engaging, it returns true at once.
func (c *Cache) WaitForCacheSync(ctx context.Context) bool {
	return isEngaging(ctx) || c.Cache.WaitForCacheSync(ctx)
}
