package informer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	toolscache "k8s.io/client-go/tools/cache"
)

// minimumResync is the shortest resync period, as in client-go.
const minimumResync = time.Second

// registration is a handler of an informer. Its fields are guarded by the informer's lock.
type registration[D any] struct {
	of      *informer[D]
	handler toolscache.ResourceEventHandler
	synced  checker

	queue   []event
	running bool // whether a goroutine delivers
	removed bool
	initial int // events of the initial list that were not delivered

	resync    time.Duration
	due       time.Time
	resyncing bool // whether it gets updates that change nothing
}

func (r *registration[D]) HasSynced() bool { return r.synced.isSet() }

func (r *registration[D]) HasSyncedChecker() D { return any(r.synced).(D) }

// add queues an event.
func (r *registration[D]) add(e event) {
	if e.initial {
		r.initial++
	}
	r.queue = append(r.queue, e)
	if !r.running {
		r.running = true
		r.of.deliveries.Add(1)
		go r.deliver()
	}
}

// deliver calls the handler until the queue is empty.
func (r *registration[D]) deliver() {
	defer r.of.deliveries.Done()
	for batch := r.next(); batch != nil; batch = r.next() {
		for n, e := range batch {
			if !r.call(e) {
				return
			}
			batch[n] = event{} // a long batch does not keep objects alive
		}
	}
}

// next returns the queue and empties it, or nil if this goroutine is to end.
func (r *registration[D]) next() []event {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	batch := r.queue
	r.queue, r.running = nil, batch != nil
	return batch
}

// call delivers one event, and returns false if the handler was removed.
func (r *registration[D]) call(e event) bool {
	r.of.mu.Lock()
	removed := r.removed
	r.of.mu.Unlock()
	if removed {
		return false
	}
	r.handle(e)
	if e.initial {
		r.of.mu.Lock()
		defer r.of.mu.Unlock()
		r.initial--
		r.settle()
	}
	return true
}

func (r *registration[D]) handle(e event) {
	defer utilruntime.HandleCrash()
	switch {
	case e.now == nil:
		r.handler.OnDelete(e.old)
	case e.old == nil:
		r.handler.OnAdd(e.now, e.initial)
	default:
		r.handler.OnUpdate(e.old, e.now)
	}
}

// settle notes that the handler has had the initial list.
func (r *registration[D]) settle() {
	if r.initial == 0 && r.of.synced.isSet() {
		r.synced.set()
	}
}

func (r *registration[D]) remove() { r.removed, r.queue = true, nil }

func (i *informer[D]) AddEventHandler(handler toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandlerWithOptions(handler, toolscache.HandlerOptions{})
}

func (i *informer[D]) AddEventHandlerWithResyncPeriod(
	handler toolscache.ResourceEventHandler, resync time.Duration,
) (toolscache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandlerWithOptions(handler, toolscache.HandlerOptions{ResyncPeriod: &resync})
}

func (i *informer[D]) AddEventHandlerWithOptions(
	handler toolscache.ResourceEventHandler, options toolscache.HandlerOptions,
) (toolscache.ResourceEventHandlerRegistration, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopped {
		return nil, errStopped
	}
	r := &registration[D]{of: i, handler: handler, synced: newChecker(fmt.Sprintf("handler %T", handler)), resyncing: true}
	r.resync = i.resync
	if options.ResyncPeriod != nil {
		r.resync = *options.ResyncPeriod
	}
	i.schedule(r)
	i.registrations = append(i.registrations, r)
	for _, obj := range i.indexer.List() {
		r.add(event{now: obj, initial: true})
	}
	r.settle()
	return any(r).(toolscache.ResourceEventHandlerRegistration), nil
}

// RemoveEventHandler drops the events that the handler has not had. It does not wait for the handler to return.
func (i *informer[D]) RemoveEventHandler(handle toolscache.ResourceEventHandlerRegistration) error {
	r, ok := any(handle).(*registration[D])
	if !ok || r.of != i {
		return errors.New("the handler was not added to this informer")
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	r.remove()
	i.registrations = slices.DeleteFunc(i.registrations, func(each *registration[D]) bool { return each == r })
	return nil
}

// schedule gives a handler its resync period: none if the informer has none, and otherwise none shorter than the
// informer's, which a handler can only shorten before the start.
func (i *informer[D]) schedule(r *registration[D]) {
	if r.resync <= 0 || i.resyncCheck == 0 {
		r.resync = 0
		return
	}
	r.resync = max(r.resync, minimumResync)
	if !i.started {
		i.resyncCheck = min(i.resyncCheck, r.resync)
	}
	r.resync = max(r.resync, i.resyncCheck)
	r.due = time.Now().Add(r.resync)
}

// resyncDue delivers an update of each object to the handlers whose resync is due.
func (i *informer[D]) resyncDue() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopped {
		return
	}
	needed, now := false, time.Now()
	for _, r := range i.registrations {
		r.resyncing = r.resync > 0 && !now.Before(r.due)
		if r.resyncing {
			r.due, needed = now.Add(r.resync), true
		}
	}
	if needed {
		for _, obj := range i.indexer.List() {
			i.distribute(event{old: obj, now: obj})
		}
	}
	i.resyncs.Reset(i.resyncCheck)
}
