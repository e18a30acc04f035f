package objects

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"

	"k8s.io/client-go/rest"

	"go.miloapis.com/discovery"
)

// Options configures Objects. Kinds is required.
type Options struct {
	// WatchOptions configures the watch of the clusters: which ones.
	discovery.WatchOptions
	Kinds []Kind
	// Indexes are functions by name, for Find.
	Indexes map[string]Index
	// OnChange is called after each change. The calls of one scope are in order: the objects of its first list precede its
	// Synced, and its end precedes all of the next engagement of the name. Calls of different scopes may overlap, and one
	// that takes long delays its scope only; with NewFrom, it delays all.
	OnChange func(Change)
	// OnError is called with malformed objects, and with panics of an Index or of OnChange, which end nothing. If nil, they
	// are logged with [slog.Default]. Calls may overlap.
	OnError func(Cluster, error)
	// Limits are the limits of what is kept.
	Limits Limits
	// ListsAtOnce is the number of lists at the same time; 32 by default.
	ListsAtOnce int
	// RESTConfig returns the configuration of a cluster's client, in place of one with the daemon's kubeconfigs.
	RESTConfig func(*discovery.EngagedCluster) (*rest.Config, error)
}

// Objects are the objects of some kinds in all engaged clusters. It is safe for concurrent use.
type Objects struct {
	options Options
	kinds   []*kind
	indexes *indexes
	fleet   fleet

	mu     sync.RWMutex
	scopes map[key]*scope
}

type key struct {
	cluster  Cluster
	resource string
}

// fleet is where the clusters and their objects come from.
type fleet interface {
	run(context.Context) error
	state() discovery.FleetState
	// clusters returns the engaged clusters, ordered by name.
	clusters() []Cluster
}

// newObjects returns Objects without a fleet.
func newObjects(options Options) (*Objects, error) {
	kinds, err := checkKinds(options.Kinds)
	if err != nil {
		return nil, err
	}
	if options.OnError == nil {
		options.OnError = func(cluster Cluster, err error) {
			slog.Error("following objects", "cluster", cluster.Name(), "error", err)
		}
	}
	o := &Objects{options: options, kinds: kinds, scopes: map[key]*scope{}}
	o.indexes = newIndexes(options.Indexes, func(object *Object, err error) { o.options.OnError(object.Cluster, err) })
	return o, nil
}

// Run follows the objects until ctx is done, or an error is terminal: with New, those of [discovery.Client.Watch]. What is
// known then stays. It can be called once.
func (o *Objects) Run(ctx context.Context) error { return o.fleet.run(ctx) }

// forget hides scopes from readers.
func (o *Objects) forget(scopes []*scope) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, each := range scopes {
		delete(o.scopes, key{each.cluster, each.kind.resource})
	}
}

// change applies a change of a scope, and reports it before the next one.
func (o *Objects) change(of *scope, apply func() []Change) {
	of.reporting.Lock()
	defer of.reporting.Unlock()
	for _, each := range apply() {
		o.report(each)
	}
}

// report calls OnChange, and recovers from its panics, since the next change does not depend on it.
func (o *Objects) report(change Change) {
	if o.options.OnChange == nil {
		return
	}
	defer func() {
		if problem := recover(); problem != nil {
			o.options.OnError(change.Scope.Cluster, fmt.Errorf("OnChange panicked: %v\n%s", problem, debug.Stack()))
		}
	}()
	o.options.OnChange(change)
}

// Find returns the objects that an index has under a key, in no order. It panics for an index that does not exist. If it
// returns none, View says whether some are not known.
func (o *Objects) Find(index, key string) []*Object {
	number, ok := slices.BinarySearch(o.indexes.names, index)
	if !ok {
		panic(fmt.Sprintf("objects: the index %q does not exist; the indexes are %q", index, o.indexes.names))
	}
	var found []*Object
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, each := range o.scopes {
		found = each.find(number, key, found)
	}
	return found
}

// Get returns an object, or nil if it is not known.
func (o *Objects) Get(cluster Cluster, resource, namespace, name string) *Object {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if of := o.scopes[key{cluster, resource}]; of != nil {
		return of.object(place{namespace, name})
	}
	return nil
}

// List returns all objects of a kind, in no order.
func (o *Objects) List(resource string) []*Object {
	var found []*Object
	o.mu.RLock()
	defer o.mu.RUnlock()
	for of, each := range o.scopes {
		if of.resource == resource {
			found = each.list(found)
		}
	}
	return found
}

// View returns what is known of a kind, and what is not. It panics for a kind that is not followed.
func (o *Objects) View(resource string) View {
	view := View{Resource: resource, Fleet: o.fleet.state()} // before the clusters: see Fleet.State
	for _, each := range o.Scopes(resource) {
		view.count(each)
	}
	return view
}

// Scopes returns the scope of a kind in each engaged cluster, by their names. It panics for a kind that is not followed.
func (o *Objects) Scopes(resource string) []Scope {
	if !slices.ContainsFunc(o.kinds, func(k *kind) bool { return k.resource == resource }) {
		panic(fmt.Sprintf("objects: %q is not one of the Kinds", resource))
	}
	clusters := o.fleet.clusters()
	scopes := make([]Scope, len(clusters))
	o.mu.RLock()
	defer o.mu.RUnlock()
	for i, cluster := range clusters {
		if found := o.scopes[key{cluster, resource}]; found != nil {
			scopes[i] = found.get()
		} else { // its handler has not begun
			scopes[i] = Scope{
				Cluster: cluster, Resource: resource, State: Pending, Since: cluster.Current().EngagedAt, Problem: notBegun,
			}
		}
	}
	return scopes
}
