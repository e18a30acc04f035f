package objects

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"go.miloapis.com/discovery"
)

const (
	defaultLists = 32
	connectRetry = 10 * time.Second // after an error of Options.RESTConfig
)

// New returns Objects that are read from the engaged clusters of a daemon. They know nothing until Run.
func New(client *discovery.Client, options Options) (*Objects, error) {
	if options.RESTConfig == nil {
		options.IncludeKubeconfigs = true
		options.RESTConfig = func(cluster *discovery.EngagedCluster) (*rest.Config, error) { return RESTConfig(cluster), nil }
	}
	if options.ListsAtOnce == 0 {
		options.ListsAtOnce = defaultLists
	}
	o, err := newObjects(options)
	if err != nil {
		return nil, err
	}
	f := &followedFleet{Objects: o, limits: options.Limits.withDefaults(), lists: make(slots, options.ListsAtOnce)}
	f.budget = newBudget(f.limits)
	f.engaged = client.NewFleet(discovery.FleetOptions{WatchOptions: options.WatchOptions})
	o.fleet = f
	return o, nil
}

// followedFleet lists and watches the kinds in each engaged cluster of a daemon.
type followedFleet struct {
	*Objects
	engaged *discovery.Fleet
	limits  Limits
	budget  *budget
	lists   slots
}

func (f *followedFleet) run(ctx context.Context) error { return f.engaged.Run(ctx, f.work) }

func (f *followedFleet) state() discovery.FleetState { return f.engaged.State() }

func (f *followedFleet) clusters() []Cluster {
	engaged := f.engaged.Clusters()
	found := make([]Cluster, len(engaged))
	for i, each := range engaged {
		found[i] = each
	}
	return found
}

// work follows the kinds in one cluster.
func (f *followedFleet) work(ctx context.Context, cluster *discovery.EngagedCluster) error {
	scopes := f.begin(cluster)
	defer context.AfterFunc(ctx, func() { // at once, also if a call of OnChange takes long
		if disengaged(ctx) != nil {
			f.forget(scopes)
		}
	})()
	for ctx.Err() == nil {
		// A cluster that moves is the same cluster, and is listed at its new endpoint.
		endpoint, updated := cluster.Current().Endpoint, cluster.Updated()
		client, err := f.connect(cluster)
		if err != nil {
			for _, each := range scopes {
				f.change(each, func() []Change { return each.failed(Stale, err.Error(), time.Now()) })
			}
			sleep(ctx, connectRetry)
			continue
		}
		there, leave := context.WithCancel(ctx)
		var running sync.WaitGroup
		for _, each := range scopes {
			running.Go(func() { f.follow(there, each, client) })
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
		f.forget(scopes)
		for _, each := range scopes {
			f.change(each, func() []Change { return each.end(cause, time.Now()) })
		}
	}
	return nil
}

func (f *followedFleet) connect(cluster *discovery.EngagedCluster) (rest.Interface, error) {
	config, err := f.options.RESTConfig(cluster)
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

func (f *followedFleet) begin(cluster *discovery.EngagedCluster) []*scope {
	f.mu.Lock()
	defer f.mu.Unlock()
	scopes := make([]*scope, len(f.kinds))
	for i, kind := range f.kinds {
		scopes[i] = newScope(cluster, kind, f.indexes, time.Now())
		f.scopes[key{cluster, kind.resource}] = scopes[i]
	}
	return scopes
}
