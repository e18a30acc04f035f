package objects

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"go.miloapis.com/discovery"
)

// Cluster is one engagement of a cluster: with New, a [*discovery.EngagedCluster].
type Cluster interface {
	// Name is the name of the cluster.
	Name() string
	// Current returns the current state of the cluster, or its last state before the disengagement.
	Current() discovery.Cluster
	// Transport authenticates requests to the cluster, or fails with what the source has no credentials for.
	Transport() http.RoundTripper
}

// Source is where objects are read, in place of the clusters themselves: see NewFrom.
type Source interface {
	// Run fills the store with the objects of its Kinds until ctx is done. It returns errors that a retry cannot fix.
	Run(ctx context.Context, store *Store) error
}

// NewFrom returns Objects that are read from a source. They know nothing until Run. Of the options, those of the watch of
// clusters, of lists and limits, and RESTConfig, are for New.
func NewFrom(source Source, options Options) (*Objects, error) {
	o, err := newObjects(options)
	if err != nil {
		return nil, err
	}
	store := &Store{objects: o, source: source, engaged: map[string]*engagement{}}
	store.fleet.Problem = "not connected yet"
	o.fleet = store
	return o, nil
}

// Store is what a Source fills: the clusters, the scopes, which are one kind in one cluster, and their objects. Its
// methods are called one at a time. What changes nothing is ignored, and so is what belongs to no known cluster or scope:
// a source may repeat itself.
type Store struct {
	objects *Objects
	source  Source

	mu      sync.RWMutex
	fleet   discovery.FleetState
	engaged map[string]*engagement
}

func (s *Store) run(ctx context.Context) error { return s.source.Run(ctx, s) }

func (s *Store) state() discovery.FleetState {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.fleet
}

func (s *Store) clusters() []Cluster {
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := make([]Cluster, 0, len(s.engaged))
	for _, name := range slices.Sorted(maps.Keys(s.engaged)) {
		found = append(found, s.engaged[name])
	}
	return found
}

func (s *Store) cluster(name string) *engagement {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.engaged[name]
}

// scope returns a scope, or nil.
func (s *Store) scope(cluster, resource string) *scope {
	engaged := s.cluster(cluster)
	if engaged == nil {
		return nil
	}
	s.objects.mu.RLock()
	defer s.objects.mu.RUnlock()
	return s.objects.scopes[key{engaged, resource}]
}

// Kinds returns the kinds to read.
func (s *Store) Kinds() []Kind { return s.objects.options.Kinds }

// Fail reports an error of one cluster, which ends nothing: see Options.OnError.
func (s *Store) Fail(cluster string, err error) {
	if engaged := s.cluster(cluster); engaged != nil {
		s.objects.options.OnError(engaged, err)
		return
	}
	s.objects.options.OnError(&engagement{current: discovery.Cluster{Name: cluster}}, err)
}

// SetFleet says whether all engaged clusters are known.
func (s *Store) SetFleet(state discovery.FleetState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fleet = state
}

// Engage begins an engagement, or changes what is known of the cluster: it precedes its scopes.
func (s *Store) Engage(cluster discovery.Cluster) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if engaged := s.engaged[cluster.Name]; engaged != nil {
		engaged.set(cluster)
		return
	}
	s.engaged[cluster.Name] = &engagement{current: cluster}
}

// Disengage ends an engagement, with its scopes and objects.
func (s *Store) Disengage(cluster string, reason discovery.DisengageReason) {
	engaged := s.cluster(cluster)
	if engaged == nil {
		return
	}
	var scopes []*scope
	for _, kind := range s.objects.kinds {
		if found := s.scope(cluster, kind.resource); found != nil {
			scopes = append(scopes, found)
		}
	}
	s.mu.Lock()
	delete(s.engaged, cluster)
	s.mu.Unlock()
	s.objects.forget(scopes)
	cause := &discovery.Disengaged{Cluster: engaged.Current(), Reason: reason}
	for _, each := range scopes {
		s.objects.change(each, func() []Change { return each.end(cause, time.Now()) })
	}
}

// SetState says the state of a scope. The first one begins it, and precedes its objects.
func (s *Store) SetState(cluster, resource string, state State, since time.Time, problem string) {
	engaged := s.cluster(cluster)
	at := slices.IndexFunc(s.objects.kinds, func(k *kind) bool { return k.resource == resource })
	if engaged == nil || at < 0 {
		return
	}
	found := s.scope(cluster, resource)
	if found == nil {
		found = newScope(engaged, s.objects.kinds[at], s.objects.indexes, since)
		s.objects.mu.Lock()
		s.objects.scopes[key{engaged, resource}] = found
		s.objects.mu.Unlock()
	}
	s.objects.change(found, func() []Change { return found.enter(state, since, problem) })
}

// Withdraw ends a scope, whose kind is no longer there to be read. The next state begins another one.
func (s *Store) Withdraw(cluster, resource string) {
	if found := s.scope(cluster, resource); found != nil {
		s.objects.forget([]*scope{found})
		s.objects.change(found, func() []Change { return found.withdraw(time.Now()) })
	}
}

// Put applies the present state of an object, as JSON with its metadata: what its Kind keeps of it, if the Kind selects
// it. Another object of its name is gone then: replaced is the reason, ObjectDeleted if its deletion is proven. It returns
// an error for an object without a name.
func (s *Store) Put(cluster, resource string, object json.RawMessage, replaced Gone) error {
	found := s.scope(cluster, resource)
	if found == nil {
		return nil
	}
	read, err := found.kind.decode(found.cluster, object)
	if err != nil {
		return err
	}
	if read.problem != nil {
		s.objects.options.OnError(found.cluster, read.problem)
	}
	s.objects.change(found, func() []Change { return found.apply(read, false, replaced) })
	return nil
}

// Remove removes an object.
func (s *Store) Remove(cluster, resource, namespace, name string, reason Gone) {
	if found := s.scope(cluster, resource); found != nil {
		s.objects.change(found, func() []Change { return found.put(place{namespace, name}, nil, func(update) Gone { return reason }) })
	}
}

// Objects returns the objects of a scope, in no order.
func (s *Store) Objects(cluster, resource string) []*Object {
	if found := s.scope(cluster, resource); found != nil {
		return found.list(nil)
	}
	return nil
}

// engagement is a cluster of a Source.
type engagement struct {
	mu      sync.Mutex
	current discovery.Cluster
}

// Name returns the name of the cluster.
func (e *engagement) Name() string { return e.Current().Name }

// Current returns the current state of the cluster.
func (e *engagement) Current() discovery.Cluster {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.current
}

func (e *engagement) set(cluster discovery.Cluster) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.current = cluster
}

// Transport returns a transport that fails.
func (e *engagement) Transport() http.RoundTripper { return refusing{e} }

type refusing struct{ cluster *engagement }

// RoundTrip fails.
func (r refusing) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.Body != nil {
		_ = request.Body.Close()
	}
	return nil, fmt.Errorf("cluster %q: its objects were not read from the cluster, and there is no credential for it: get one from the daemon",
		r.cluster.Name())
}
