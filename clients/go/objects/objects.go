package objects

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"go.miloapis.com/discovery"
)

const (
	defaultLists = 32
	connectRetry = 10 * time.Second // after an error of Options.RESTConfig
)

// Options configures Objects. Kinds is required.
type Options struct {
	// FleetOptions configures the fleet: which clusters, and OnError. The latter is also called with malformed objects, and
	// with panics of an Index or of OnChange, which end nothing.
	discovery.FleetOptions
	Kinds []Kind
	// Indexes are functions by name, for Find.
	Indexes map[string]Index
	// OnChange is called after each change. The calls of one scope are in order: the objects of its first list precede its
	// Synced, and its end precedes all of the next engagement of the name. Calls of different scopes may overlap, and one
	// that takes long delays its scope only.
	OnChange func(Change)
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
	limits  Limits
	indexes *indexes
	budget  *budget
	lists   slots
	fleet   *discovery.Fleet

	mu     sync.RWMutex
	scopes map[key]*scope
}

type key struct {
	cluster  *discovery.EngagedCluster
	resource string
}

// New returns Objects that know nothing until Run.
func New(client *discovery.Client, options Options) (*Objects, error) {
	kinds, err := checkKinds(options.Kinds)
	if err != nil {
		return nil, err
	}
	if options.OnError == nil {
		options.OnError = func(cluster *discovery.EngagedCluster, err error) {
			slog.Error("following objects", "cluster", cluster.Name(), "error", err)
		}
	}
	if options.RESTConfig == nil {
		options.IncludeKubeconfigs = true
		options.RESTConfig = func(cluster *discovery.EngagedCluster) (*rest.Config, error) { return RESTConfig(cluster), nil }
	}
	if options.ListsAtOnce == 0 {
		options.ListsAtOnce = defaultLists
	}
	o := &Objects{options: options, kinds: kinds, limits: options.Limits.withDefaults(), scopes: map[key]*scope{}}
	o.indexes = newIndexes(options.Indexes, func(object *Object, err error) { o.options.OnError(object.Cluster, err) })
	o.budget = newBudget(o.limits)
	o.lists = make(slots, options.ListsAtOnce)
	o.fleet = client.NewFleet(options.FleetOptions)
	return o, nil
}

// Run follows the objects until ctx is done, the client is closed, or an error is terminal: see
// [discovery.Client.Watch]. What is known then stays. It can be called once.
func (o *Objects) Run(ctx context.Context) error { return o.fleet.Run(ctx, o.work) }

// work follows the kinds in one cluster.
func (o *Objects) work(ctx context.Context, cluster *discovery.EngagedCluster) error {
	scopes := o.begin(cluster)
	defer context.AfterFunc(ctx, func() { // at once, also if a call of OnChange takes long
		if disengaged(ctx) != nil {
			o.forget(scopes)
		}
	})()
	for ctx.Err() == nil {
		// A cluster that moves is the same cluster, and is listed at its new endpoint.
		endpoint, updated := cluster.Current().Endpoint, cluster.Updated()
		client, err := o.connect(cluster)
		if err != nil {
			for _, each := range scopes {
				o.change(each, func() []Change { return each.failed(Stale, err.Error(), time.Now()) })
			}
			sleep(ctx, connectRetry)
			continue
		}
		there, leave := context.WithCancel(ctx)
		var running sync.WaitGroup
		for _, each := range scopes {
			running.Go(func() { o.follow(there, each, client) })
		}
		for ctx.Err() == nil && cluster.Current().Endpoint == endpoint {
			select {
			case <-updated:
				updated = cluster.Updated()
			case <-ctx.Done():
			}
		}
		leave()
		running.Wait()
	}
	if cause := disengaged(ctx); cause != nil { // otherwise only this process ends
		o.forget(scopes)
		for _, each := range scopes {
			o.change(each, func() []Change { return each.end(cause, time.Now()) })
		}
	}
	return nil
}

func (o *Objects) connect(cluster *discovery.EngagedCluster) (rest.Interface, error) {
	config, err := o.options.RESTConfig(cluster)
	if err != nil {
		return nil, fmt.Errorf("Options.RESTConfig: %w", err)
	}
	return newClient(config)
}

func disengaged(ctx context.Context) *discovery.Disengaged {
	var cause *discovery.Disengaged
	errors.As(context.Cause(ctx), &cause)
	return cause
}

func (o *Objects) begin(cluster *discovery.EngagedCluster) []*scope {
	o.mu.Lock()
	defer o.mu.Unlock()
	scopes := make([]*scope, len(o.kinds))
	for i, kind := range o.kinds {
		scopes[i] = newScope(cluster, kind, o.indexes, time.Now())
		o.scopes[key{cluster, kind.resource}] = scopes[i]
	}
	return scopes
}

// forget hides the scopes of a cluster from readers.
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
func (o *Objects) Get(cluster *discovery.EngagedCluster, resource, namespace, name string) *Object {
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
	view := View{Resource: resource, Fleet: o.fleet.State()} // before the clusters: see Fleet.State
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
	clusters := o.fleet.Clusters()
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
