package multicluster_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	mc "sigs.k8s.io/multicluster-runtime/pkg/multicluster"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	"go.miloapis.com/discovery/multicluster"
)

// coordinated has a coordinator and the daemon of its replica, and records the engagements of the coordinator. Each
// cluster.Cluster of the provider is nil.
type coordinated struct {
	*engagements

	env         *environment
	coordinator *multicluster.Coordinator
	daemon      *discoverytest.Daemon
}

func newCoordinated(t *testing.T) *coordinated {
	t.Helper()
	return newCoordinatedWith(t, multicluster.CoordinatorOptions{})
}

func newCoordinatedWith(t *testing.T, options multicluster.CoordinatorOptions) *coordinated {
	t.Helper()
	c := &coordinated{engagements: &engagements{}, env: &environment{t: t}, daemon: discoverytest.New(t)}
	options.Client = c.daemon.Client()
	c.coordinator = multicluster.NewCoordinator(options)
	c.coordinator.AddAware(c.engagements)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.coordinator.Runnable().Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if left := c.names(); len(left) > 0 {
			t.Errorf("got engaged clusters %v after the coordinator stopped, want none", left)
		}
	})
	return c
}

// offer engages clusters on behalf of the provider, until the returned function is called.
func (c *coordinated) offer(names ...mc.ClusterName) context.CancelFunc {
	c.env.t.Helper()
	ctx, cancel := context.WithCancel(c.env.t.Context())
	for _, name := range names {
		if err := c.coordinator.Engage(ctx, name, nil); err != nil {
			c.env.t.Fatal(err)
		}
	}
	return cancel
}

func (c *coordinated) own(names ...string) {
	c.env.t.Helper()
	for _, name := range names {
		c.daemon.Engage(discovery.Cluster{Name: name})
	}
}

func (c *coordinated) until(want ...mc.ClusterName) {
	c.env.t.Helper()
	c.env.untilEngaged(c.engagements, want...)
}

func TestCoordinatorEngagesClustersThatItsReplicaOwns(t *testing.T) {
	c := newCoordinated(t)
	c.offer("alpha", "beta", "gamma")
	c.own("alpha", "gamma", "unknown to the provider")
	c.until("alpha", "gamma")
	if !c.coordinator.Owns("alpha") || c.coordinator.Owns("beta") {
		t.Errorf("Owns(alpha) = %t, Owns(beta) = %t; want true and false", c.coordinator.Owns("alpha"), c.coordinator.Owns("beta"))
	}
	c.own("delta")
	c.offer("delta")
	c.until("alpha", "delta", "gamma")
}

func TestCoordinatorDisengagesOnlyTheClusterThatMoved(t *testing.T) {
	c := newCoordinated(t)
	c.offer("alpha", "beta")
	c.own("alpha", "beta")
	c.until("alpha", "beta")
	lost := c.context("alpha")
	c.daemon.Disengage("alpha", discovery.ReasonMoved)
	c.until("beta")
	var cause *multicluster.Disengaged
	if !errors.As(context.Cause(lost), &cause) || cause.Reason != discovery.ReasonMoved || c.coordinator.Owns("alpha") {
		t.Errorf("the cancellation cause is %v, want MOVED; Owns = %t, want false", context.Cause(lost), c.coordinator.Owns("alpha"))
	}
	c.own("alpha")
	c.until("alpha", "beta")
	if c.count() != 3 || c.overlaps() != 0 {
		t.Errorf("%d Engage calls, %d before the last engagement had ended; want 3 and 0", c.count(), c.overlaps())
	}
}

// multicluster-runtime's sharded coordinator also disengages other clusters when the provider removes one.
func TestRemovalByTheProviderDisengagesNoOtherCluster(t *testing.T) {
	c := newCoordinated(t)
	c.offer("alpha")
	remove := c.offer("beta")
	c.own("alpha", "beta")
	c.until("alpha", "beta")
	remove()
	c.until("alpha")
	c.offer("beta")
	c.until("alpha", "beta")
}

func TestCoordinatorReleasesDrainingCluster(t *testing.T) {
	c := newCoordinated(t)
	c.offer("alpha")
	c.own("alpha")
	c.until("alpha")
	draining := c.context("alpha")
	c.daemon.Drain("alpha", discovery.ReasonMoved)
	within(t, "the release", func() error {
		if c.daemon.Cluster("alpha"); draining.Err() == nil {
			return errors.New("its context is not canceled")
		}
		report, err := c.daemon.Client().Get(t.Context(), "alpha")
		if err == nil && report.Engagement.Engaged {
			return errors.New("it is engaged in the daemon")
		}
		return err
	})
	c.until()
}

func TestCoordinatorAppliesItsFilterAndSubscriber(t *testing.T) {
	c := newCoordinatedWith(t, multicluster.CoordinatorOptions{
		Filter: discovery.Filter{LabelSelector: "env=prod"}, Subscriber: subscriber,
	})
	c.offer("alpha", "beta", "gamma")
	for name, env := range map[string]string{"alpha": "prod", "beta": "test", "gamma": "prod"} {
		c.daemon.Engage(discovery.Cluster{Name: name, Labels: map[string]string{"env": env}})
	}
	c.until("alpha", "gamma")
	if c.coordinator.Owns("beta") {
		t.Error("the coordinator owns a cluster that its filter leaves out")
	}
	c.daemon.Drain("alpha", discovery.ReasonMoved)
	within(t, "the release under the name of the subscriber", func() error {
		if !c.daemon.Released("alpha", subscriber) {
			return errors.New("alpha is not released")
		}
		return nil
	})
	c.until("gamma")
}

func TestCoordinatorDisengagesAllClustersWhenOwnershipExpires(t *testing.T) {
	c := newCoordinated(t)
	c.daemon.Shard(4 * time.Second)
	c.offer("alpha", "beta")
	c.own("alpha", "beta")
	c.until("alpha", "beta")
	c.daemon.Stop()
	c.until()
	c.daemon.Start()
	c.until("alpha", "beta")
}

func TestCoordinatorRetriesFailedEngagement(t *testing.T) {
	c := newCoordinated(t)
	failing := &refusing{refusals: 1}
	c.coordinator.AddAware(failing)
	c.offer("alpha")
	c.own("alpha")
	c.env.untilEngaged(&failing.engagements, "alpha")
	c.until("alpha")
	if c.count() != 2 || c.overlaps() != 0 {
		t.Errorf("%d Engage calls, %d before the last engagement had ended; want 2 and 0", c.count(), c.overlaps())
	}
}

func TestReplacedClusterIsEngagedAgain(t *testing.T) {
	c := newCoordinated(t)
	c.offer("alpha")
	c.own("alpha")
	c.until("alpha")
	c.daemon.Replace(discovery.Cluster{Name: "alpha"})
	within(t, "the next engagement", func() error {
		if c.count() != 2 {
			return fmt.Errorf("%d Engage calls, want 2", c.count())
		}
		return nil
	})
	c.until("alpha")
	if c.overlaps() != 0 {
		t.Error("the next engagement began before the last one had ended")
	}
}

func TestCoordinatorFailsIfTheDaemonRejectsItsSubscription(t *testing.T) {
	daemon := discoverytest.New(t)
	daemon.Fail("WatchClusters", discoverytest.Error(7, "FORBIDDEN", "no rule for you"))
	coordinator := multicluster.NewCoordinator(multicluster.CoordinatorOptions{Client: daemon.Client()})
	if err := coordinator.Runnable().Start(t.Context()); !errors.Is(err, discovery.ErrPermissionDenied) {
		t.Errorf("Start() error = %v, want ErrPermissionDenied", err)
	}
}

// patient is a runnable that waits for the cache of each cluster, and records the state of its informer.
type patient struct {
	engagements

	mu      sync.Mutex
	results map[mc.ClusterName]string
}

func (p *patient) Engage(ctx context.Context, name mc.ClusterName, cl cluster.Cluster) error {
	informer, err := cl.GetCache().GetInformer(ctx, &corev1.ConfigMap{})
	if err != nil {
		return err
	}
	shared, ok := informer.(toolscache.SharedIndexInformer)
	if !ok {
		return fmt.Errorf("the informer is a %T, want a SharedIndexInformer", informer)
	}
	if !cl.GetCache().WaitForCacheSync(ctx) {
		return errors.New("the cache has not synced")
	}
	p.mu.Lock()
	p.results[name] = fmt.Sprintf("synced %t, %d objects", shared.HasSynced(), len(shared.GetStore().ListKeys()))
	p.mu.Unlock()
	return p.engagements.Engage(ctx, name, cl)
}

func TestProviderCoordinatorEngagesRunnablesWithSyncedCaches(t *testing.T) {
	env := newEnvironment(t)
	env.animal("alpha", "dog")
	env.engage("alpha", "silent")
	env.api.Project("silent").Silence("configmaps")
	provider := env.provider(nil)
	options := manager.Options{Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0"}
	mgr, err := mcmanager.New(env.local(), provider, options, mcmanager.WithCoordinator(provider.Coordinator()))
	if err != nil {
		t.Fatal(err)
	}
	env.feeder(mgr)
	runnable := &patient{results: map[mc.ClusterName]string{}}
	if err := mgr.Add(runnable); err != nil {
		t.Fatal(err)
	}
	env.start(mgr)
	env.untilEngaged(&runnable.engagements, "alpha")
	env.untilFed("alpha", "dog")
	runnable.mu.Lock()
	defer runnable.mu.Unlock()
	if want := map[mc.ClusterName]string{"alpha": "synced true, 1 objects"}; !maps.Equal(runnable.results, want) {
		t.Errorf("the informers of the runnable are %v, want %v", runnable.results, want)
	}
}
