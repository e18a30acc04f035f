// Package informer has a shared informer that needs less memory than client-go's.
//
// client-go's own has eight goroutines and a buffer of 16 KiB: for its reflector, the watch, its queue and its event
// handler, whether there are events or not. Here one goroutine follows the watch and writes into the indexer, and a
// handler has a queue and a goroutine only while there are events. Lists are left to client-go's reflector.
package informer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/watchlist"
	"k8s.io/klog/v2"
)

// retries is the backoff of client-go's reflector.
var retries = wait.Backoff{Duration: 800 * time.Millisecond, Cap: 30 * time.Second, Steps: math.MaxInt32, Factor: 2, Jitter: 1}

const resetRetriesAfter = 2 * time.Minute

// Group has the informers of one cluster, which end with its context.
type Group struct {
	ctx     context.Context
	running sync.WaitGroup

	mu   sync.Mutex
	ends map[kind][]context.CancelFunc
}

// kind is a type of objects, with their kind if the type is used for several.
type kind struct {
	object reflect.Type
	kind   schema.GroupVersionKind
}

func kindOf(obj runtime.Object) kind {
	of := kind{object: reflect.TypeOf(obj)}
	switch obj.(type) {
	case runtime.Unstructured, *metav1.PartialObjectMetadata:
		of.kind = obj.GetObjectKind().GroupVersionKind()
	}
	return of
}

// NewGroup returns a group whose informers end with ctx.
func NewGroup(ctx context.Context) *Group {
	return &Group{ctx: ctx, ends: map[kind][]context.CancelFunc{}}
}

// New returns a constructor for the informers of a cache with this scheme, whose HTTP client is from Client. It is like
// toolscache.NewSharedIndexInformer; Run returns at once, since the goroutine that calls it has nothing to do.
func (g *Group) New(scheme *runtime.Scheme) func(toolscache.ListerWatcher, runtime.Object, time.Duration, toolscache.Indexers) toolscache.SharedIndexInformer {
	return func(lw toolscache.ListerWatcher, example runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
		return create(probe.HasSyncedChecker, g, scheme, lw, example, resync, indexers)
	}
}

// End ends the informers for obj.
func (g *Group) End(obj runtime.Object) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, end := range g.ends[kindOf(obj)] {
		end()
	}
	delete(g.ends, kindOf(obj))
}

// Wait waits until all informers have ended after the group's context.
func (g *Group) Wait() {
	<-g.ctx.Done()
	g.running.Wait()
}

// context returns the context of an informer for obj.
func (g *Group) context(obj runtime.Object) context.Context {
	g.mu.Lock()
	defer g.mu.Unlock()
	ctx, end := context.WithCancel(g.ctx)
	g.ends[kindOf(obj)] = append(g.ends[kindOf(obj)], end)
	return ctx
}

// create returns an informer whose HasSyncedChecker returns a D.
func create[D any](
	_ func(probe) D, group *Group, scheme *runtime.Scheme, lw toolscache.ListerWatcher, example runtime.Object, resync time.Duration, indexers toolscache.Indexers,
) toolscache.SharedIndexInformer {
	created, ok := any(&informer[D]{
		group: group, ctx: group.context(example), lw: toolscache.ToListerWatcherWithContext(lw), example: example,
		withoutWatchList: watchlist.DoesClientNotSupportWatchListSemantics(lw), negotiator: negotiatorFor(example, scheme),
		resync: resync, resyncCheck: resync,
		indexer: toolscache.NewIndexer(toolscache.DeletionHandlingMetaNamespaceKeyFunc, indexers),
		failed:  toolscache.DefaultWatchErrorHandler,
		synced:  newChecker(fmt.Sprintf("informer of %T", example)),
	}).(toolscache.SharedIndexInformer)
	if _, registers := any(&registration[D]{}).(toolscache.ResourceEventHandlerRegistration); !ok || !registers {
		// A newer client-go has more methods.
		return toolscache.NewSharedIndexInformer(lw, example, resync, indexers)
	}
	return created
}

// informer implements toolscache.SharedIndexInformer.
type informer[D any] struct {
	group            *Group
	ctx              context.Context
	lw               toolscache.ListerWatcherWithContext
	withoutWatchList bool // whether lw has no watches that begin with a list
	negotiator       runtime.ClientNegotiator
	example          runtime.Object
	indexer          toolscache.Indexer
	resync           time.Duration // of handlers that have none of their own
	synced           checker       // set with the first list

	watching

	mu               sync.Mutex
	started, stopped bool
	version          string // the last one
	failed           toolscache.WatchErrorHandlerWithContext
	failing          time.Time // since when; zero if the last list was stored
	transform        toolscache.TransformFunc
	resyncCheck      time.Duration
	resyncs          *time.Timer // nil without resyncs
	registrations    []*registration[D]
	deliveries       sync.WaitGroup
}

// RunWithContext starts the informer. Only the logger of ctx is used.
func (i *informer[D]) RunWithContext(ctx context.Context) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.started {
		return
	}
	i.started = true
	i.logged = klog.NewContext(i.ctx, klog.FromContext(ctx))
	i.reflector = toolscache.NewReflectorWithOptions(lister[D]{i}, i.example, sink[D]{i}, toolscache.ReflectorOptions{})
	if i.resyncCheck > 0 {
		i.resyncs = time.AfterFunc(i.resyncCheck, i.resyncDue)
	}
	i.group.running.Add(1)
	go i.work()
}

// stop drops the events that were not delivered, and waits until no handler runs.
func (i *informer[D]) stop() {
	defer i.group.running.Done()
	i.mu.Lock()
	i.stopped, i.failing = true, time.Time{}
	if i.resyncs != nil {
		i.resyncs.Stop()
	}
	for _, r := range i.registrations {
		r.remove()
	}
	i.registrations = nil
	i.mu.Unlock()
	i.deliveries.Wait()
}

func (i *informer[D]) Run(stop <-chan struct{}) { i.RunWithContext(wait.ContextForChannel(stop)) }

func (i *informer[D]) HasSynced() bool { return i.synced.isSet() }

func (i *informer[D]) HasSyncedChecker() D { return any(i.synced).(D) }

// AwaitSync waits until the informer has synced or was stopped.
func (i *informer[D]) AwaitSync(ctx context.Context) {
	select {
	case <-i.synced.done:
	case <-i.ctx.Done():
	case <-ctx.Done():
	}
}

func (i *informer[D]) IsStopped() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.stopped
}

// FailingSince returns the time of the first failure since the last list; zero if there is none, or if the informer has ended.
func (i *informer[D]) FailingSince() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.failing
}

func (i *informer[D]) LastSyncResourceVersion() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.version
}

func (i *informer[D]) GetStore() toolscache.Store { return i.indexer }

func (i *informer[D]) GetIndexer() toolscache.Indexer { return i.indexer }

// GetController returns the informer: client-go's controller does nothing useful either.
func (i *informer[D]) GetController() toolscache.Controller { return any(i).(toolscache.Controller) }

var (
	errStarted = errors.New("the informer has started")
	errStopped = errors.New("the informer has stopped")
)

func (i *informer[D]) AddIndexers(indexers toolscache.Indexers) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopped {
		return errStopped
	}
	return i.indexer.AddIndexers(indexers)
}

func (i *informer[D]) SetWatchErrorHandler(handler toolscache.WatchErrorHandler) error {
	return i.SetWatchErrorHandlerWithContext(func(_ context.Context, r *toolscache.Reflector, err error) { handler(r, err) })
}

func (i *informer[D]) SetWatchErrorHandlerWithContext(handler toolscache.WatchErrorHandlerWithContext) error {
	return i.beforeStart(func() { i.failed = handler })
}

func (i *informer[D]) SetTransform(transform toolscache.TransformFunc) error {
	return i.beforeStart(func() { i.transform = transform })
}

func (i *informer[D]) beforeStart(set func()) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.started {
		return errStarted
	}
	set()
	return nil
}
