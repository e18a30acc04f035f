package informer

import (
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	toolscache "k8s.io/client-go/tools/cache"
)

// sink is the store that the reflector writes to. It changes the indexer and queues the events in one step, so that a
// handler that is added meanwhile misses nothing.
type sink[D any] struct{ of *informer[D] }

func (s sink[D]) Transformer() toolscache.TransformFunc { return s.of.transform }

func (s sink[D]) transformed(obj any) (any, error) {
	if s.of.transform == nil {
		return obj, nil
	}
	return s.of.transform(obj)
}

func (s sink[D]) Add(obj any) error { return s.Update(obj) }

func (s sink[D]) Update(obj any) error {
	obj, err := s.transformed(obj)
	if err != nil {
		return err
	}
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	e, err := s.event(obj, false)
	if err != nil {
		return err
	}
	if err := s.of.indexer.Update(obj); err != nil {
		return err
	}
	s.of.distribute(e)
	return nil
}

// event returns what an object that the indexer is about to get means to handlers.
func (s sink[D]) event(obj any, initial bool) (event, error) {
	old, exists, err := s.of.indexer.Get(obj)
	if err != nil || exists {
		return event{old: old, now: obj}, err
	}
	return event{now: obj, initial: initial}, nil
}

func (s sink[D]) Delete(obj any) error {
	obj, err := s.transformed(obj)
	if err != nil {
		return err
	}
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	if err := s.of.indexer.Delete(obj); err != nil {
		return err
	}
	s.of.distribute(event{old: obj})
	return nil
}

func (s sink[D]) Replace(list []any, version string) error {
	listed := make(map[string]struct{}, len(list))
	for n, obj := range list {
		obj, err := s.transformed(obj)
		if err != nil {
			return err
		}
		key, err := toolscache.DeletionHandlingMetaNamespaceKeyFunc(obj)
		if err != nil {
			return err
		}
		list[n], listed[key] = obj, struct{}{}
	}
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	var events []event
	for _, key := range s.of.indexer.ListKeys() {
		if _, ok := listed[key]; ok {
			continue
		}
		old, _, err := s.of.indexer.GetByKey(key)
		if err != nil {
			return err
		}
		events = append(events, event{old: toolscache.DeletedFinalStateUnknown{Key: key, Obj: old}})
	}
	for _, obj := range list {
		e, err := s.event(obj, !s.of.synced.isSet())
		if err != nil {
			return err
		}
		events = append(events, e)
	}
	if err := s.of.indexer.Replace(list, version); err != nil {
		return err
	}
	s.of.version, s.of.failing = version, time.Time{}
	s.of.distribute(events...)
	s.of.synced.set()
	for _, r := range s.of.registrations {
		r.settle()
	}
	s.of.endList()
	return nil
}

// Resync is never called: the informer has a timer for all of its handlers.
func (s sink[D]) Resync() error { return nil }

// Bookmark notes the version in an indexer of client-go 0.37.
func (s sink[D]) Bookmark(version string) error {
	if indexer, ok := s.of.indexer.(interface{ Bookmark(version string) }); ok {
		indexer.Bookmark(version)
	}
	return nil
}

// distribute is called with the lock held.
func (i *informer[D]) distribute(events ...event) {
	for _, r := range i.registrations {
		for _, e := range events {
			if r.resyncing || !e.isResync() {
				r.add(e)
			}
		}
	}
}

// event is an addition without an old object, a deletion without a new one, or else an update.
type event struct {
	old, now any
	initial  bool
}

// isResync returns whether nothing has changed.
func (e event) isResync() bool {
	if e.old == nil || e.now == nil {
		return false
	}
	old, err := meta.Accessor(e.old)
	if err != nil {
		return false
	}
	now, err := meta.Accessor(e.now)
	return err == nil && old.GetResourceVersion() == now.GetResourceVersion()
}
