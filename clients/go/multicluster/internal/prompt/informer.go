package prompt

import (
	"context"
	"errors"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
)

// Newer versions of client-go and controller-runtime add methods to the interfaces that informer and registration
// implement. Both types embed an informer that never runs, so that the same source compiles with all supported
// versions: methods that they do not implement report "not synced".
var (
	neverRuns          = toolscache.NewSharedIndexInformer(&toolscache.ListWatch{}, &metav1.PartialObjectMetadata{}, 0, nil)
	neverRegistered, _ = neverRuns.AddEventHandler(toolscache.ResourceEventHandlerFuncs{})
)

// informer is a placeholder for an informer that is created in the background.
type informer struct {
	cache.Informer

	mu            sync.Mutex
	real          cache.Informer
	registrations map[*registration]struct{}
	indexers      []toolscache.Indexers
}

// registration is a handler that was added to an informer, possibly before the real one existed.
type registration struct {
	toolscache.ResourceEventHandlerRegistration

	handler toolscache.ResourceEventHandler
	options toolscache.HandlerOptions
	owner   *informer
	real    toolscache.ResourceEventHandlerRegistration // guarded by owner.mu
}

func newInformer() *informer {
	return &informer{Informer: neverRuns, registrations: map[*registration]struct{}{}}
}

// attach adds the handlers and indexers of i to the real informer. It can be repeated after an error.
func (i *informer) attach(real cache.Informer) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for len(i.indexers) > 0 {
		if err := real.AddIndexers(i.indexers[0]); err != nil {
			return err
		}
		i.indexers = i.indexers[1:]
	}
	for r := range i.registrations {
		if err := r.attach(real); err != nil {
			return err
		}
	}
	i.real = real
	return nil
}

// attach adds the handler to the real informer. It is called with owner.mu held.
func (r *registration) attach(real cache.Informer) (err error) {
	if r.real == nil {
		r.real, err = real.AddEventHandlerWithOptions(r.handler, r.options)
	}
	return err
}

// Bounds of the polling interval of awaitSync, which grows by a quarter, so that a sync is noticed when the wait has been
// at most a quarter longer. toolscache.WaitForCacheSync polls every 100 ms, and a cluster would keep its slot for that
// time.
const (
	minPoll = 5 * time.Millisecond
	maxPoll = time.Second
)

// awaitSync waits until the real informer has synced or was stopped.
func awaitSync(ctx context.Context, real cache.Informer) {
	for delay := minPoll; !real.HasSynced() && !real.IsStopped(); delay = min(delay+delay/4, maxPoll) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}

func (i *informer) AddEventHandler(handler toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandlerWithOptions(handler, toolscache.HandlerOptions{})
}

func (i *informer) AddEventHandlerWithResyncPeriod(handler toolscache.ResourceEventHandler, resync time.Duration) (toolscache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandlerWithOptions(handler, toolscache.HandlerOptions{ResyncPeriod: &resync})
}

func (i *informer) AddEventHandlerWithOptions(handler toolscache.ResourceEventHandler, options toolscache.HandlerOptions) (toolscache.ResourceEventHandlerRegistration, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := &registration{ResourceEventHandlerRegistration: neverRegistered, handler: handler, options: options, owner: i}
	if i.real != nil {
		if err := r.attach(i.real); err != nil {
			return nil, err
		}
	}
	i.registrations[r] = struct{}{}
	return r, nil
}

func (i *informer) RemoveEventHandler(handle toolscache.ResourceEventHandlerRegistration) error {
	r, ok := handle.(*registration)
	if !ok || r.owner != i {
		return errors.New("the handler was not added to this informer")
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.registrations, r)
	if r.real == nil || i.real == nil {
		return nil
	}
	return i.real.RemoveEventHandler(r.real)
}

func (i *informer) AddIndexers(indexers toolscache.Indexers) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.real != nil {
		return i.real.AddIndexers(indexers)
	}
	i.indexers = append(i.indexers, indexers)
	return nil
}

func (i *informer) HasSynced() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.real != nil && i.real.HasSynced()
}

func (i *informer) IsStopped() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.real != nil && i.real.IsStopped()
}

func (r *registration) HasSynced() bool {
	r.owner.mu.Lock()
	defer r.owner.mu.Unlock()
	return r.real != nil && r.real.HasSynced()
}
