//go:build !without_namespace_provider

// Tests with multicluster-runtime's provider for Namespaces, which does not compile with each controller-runtime.

package multicluster_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	mcbuilder "sigs.k8s.io/multicluster-runtime/pkg/builder"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	mc "sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"
	"sigs.k8s.io/multicluster-runtime/providers/namespace"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	"go.miloapis.com/discovery/multicluster"
)

// handled records the objects that a replica of the example reconciled, as "namespace name".
type handled struct {
	coordinator *multicluster.Coordinator
	mgr         mcmanager.Manager
	mu          sync.Mutex
	seen        map[string]bool
}

func (h *handled) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.seen))
}

// shardedNamespaces creates a replica of multicluster-runtime's example sharded-namespace, with this package's
// coordinator.
func shardedNamespaces(t *testing.T, config *rest.Config, daemon *discovery.Client) (*handled, func(context.Context) error) {
	t.Helper()
	h := &handled{seen: map[string]bool{}}
	h.coordinator = multicluster.NewCoordinator(multicluster.CoordinatorOptions{Client: daemon})
	host, err := cluster.New(config)
	if err != nil {
		t.Fatal(err)
	}
	provider := namespace.New(host)
	options := manager.Options{Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0"}
	mgr, err := mcmanager.New(config, provider, options, mcmanager.WithCoordinator(h.coordinator))
	if err != nil {
		t.Fatal(err)
	}
	h.mgr = mgr
	err = mcbuilder.ControllerManagedBy(mgr).Named("multicluster-configmaps").For(&corev1.ConfigMap{}).
		WithOptions(controllerOptions(0)).
		Complete(mcreconcile.Func(func(ctx context.Context, request mcreconcile.Request) (reconcile.Result, error) {
			cl, err := mgr.GetCluster(ctx, request.ClusterName)
			if err != nil {
				return reconcile.Result{}, err
			}
			found := &corev1.ConfigMap{}
			if err := cl.GetClient().Get(ctx, request.NamespacedName, found); err != nil {
				return reconcile.Result{}, client.IgnoreNotFound(err)
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			h.seen[request.ClusterName.String()+" "+found.Name] = true
			return reconcile.Result{}, nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	return h, func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- host.Start(ctx) }()
		err := mgr.Start(ctx)
		cancel()
		return errors.Join(err, <-ended)
	}
}

// startReplica runs a replica of the example on the API server of the environment, until the test ends.
func (env *environment) startReplica() (*handled, *discoverytest.Daemon) {
	env.t.Helper()
	daemon := discoverytest.New(env.t)
	daemon.Shard(time.Minute)
	h, run := shardedNamespaces(env.t, env.local(), daemon.Client())
	ctx, cancel := context.WithCancel(env.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	env.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			env.t.Error(err)
		}
	})
	return h, daemon
}

// inNamespace stores a ConfigMap in a namespace of the operator's own cluster.
func (env *environment) inNamespace(namespace, name string) {
	object := &unstructured.Unstructured{Object: map[string]any{}}
	object.SetGroupVersionKind(configMap)
	object.SetNamespace(namespace)
	object.SetName(name)
	env.api.Project(operators).Apply(configMaps, object)
}

func (env *environment) untilHandled(h *handled, want ...string) {
	env.t.Helper()
	within(env.t, fmt.Sprintf("%q to be reconciled", want), func() error {
		if got := h.all(); !slices.Equal(got, want) {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
}

// namespaces stores Namespaces in the operator's own cluster, each with a ConfigMap.
func (env *environment) namespaces(names ...string) {
	for _, name := range names {
		object := &unstructured.Unstructured{Object: map[string]any{}}
		object.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
		object.SetName(name)
		env.api.Project(operators).Apply(corev1.SchemeGroupVersion.WithResource("namespaces"), object)
		env.inNamespace(name, "first")
	}
}

func TestManagerWithCoordinatorReturnsClusterOfAnotherReplica(t *testing.T) {
	env := newEnvironment(t)
	env.namespaces("island", "zoo")
	replica, daemon := env.startReplica()
	daemon.Engage(discovery.Cluster{Name: "zoo"})
	env.untilHandled(replica, "zoo first")
	within(t, "the cluster of another replica", func() error {
		_, err := replica.mgr.GetCluster(t.Context(), "island")
		return err
	})
	if replica.coordinator.Owns("island") || !replica.coordinator.Owns("zoo") {
		t.Error("the coordinator owns island, or does not own zoo")
	}
	env.untilHandled(replica, "zoo first")
}

func TestShardedNamespaceExampleRunsWithTheCoordinator(t *testing.T) {
	env := newEnvironment(t)
	zoo := []string{"island", "jungle", "zoo"}
	env.namespaces(zoo...)
	var replicas [3]*handled
	var daemons [3]*discoverytest.Daemon
	for i, name := range zoo {
		replicas[i], daemons[i] = env.startReplica()
		daemons[i].Engage(discovery.Cluster{Name: name})
	}
	for i, name := range zoo {
		env.untilHandled(replicas[i], name+" first")
	}
	// The namespace of the first replica moves to the second.
	daemons[0].Drain("island", discovery.ReasonMoved)
	within(t, "the release of island", func() error {
		report, err := daemons[0].Client().Get(t.Context(), "island")
		if err == nil && report.Engagement.Engaged {
			return errors.New("it is engaged in the daemon")
		}
		return err
	})
	env.inNamespace("island", "second")
	daemons[1].Engage(discovery.Cluster{Name: "island"})
	env.untilHandled(replicas[1], "island first", "island second", "jungle first")
	env.untilHandled(replicas[0], "island first")
	env.untilHandled(replicas[2], "zoo first")
}

func TestGetReturnsErrClusterNotOwnedForClusterOfAnotherMember(t *testing.T) {
	env := newEnvironment(t)
	env.daemon.Shard(time.Minute)
	env.engage("alpha", "beta", "gamma")
	provider := env.provider(nil)
	noted := env.startNoting(provider)
	env.untilEngaged(noted, "alpha", "beta", "gamma")
	env.daemon.Disengage("alpha", discovery.ReasonMoved)
	env.daemon.Disengage("beta", discovery.ReasonDeleted)
	env.untilEngaged(noted, "gamma")
	for name, owned := range map[mc.ClusterName]bool{"beta": true, "never known": true, "alpha": false} {
		within(t, "Get of "+name.String(), func() error {
			_, err := provider.Get(t.Context(), name)
			if !errors.Is(err, mc.ErrClusterNotFound) || errors.Is(err, multicluster.ErrClusterNotOwned) == owned {
				return fmt.Errorf("Get() error = %w", err)
			}
			return nil
		})
	}
	if _, err := provider.Get(t.Context(), "gamma"); err != nil {
		t.Error(err)
	}
	env.daemon.Stop() // the owner is unknown then
	if _, err := provider.Get(t.Context(), "alpha"); !errors.Is(err, mc.ErrClusterNotFound) {
		t.Errorf("Get() error = %v, want ErrClusterNotFound", err)
	}
}

// TestMembersOfAShardGroupOwnDisjointClustersAndTogetherAll is step 4 of the validation in milo-os/milo#640.
func TestMembersOfAShardGroupOwnDisjointClustersAndTogetherAll(t *testing.T) {
	env := newEnvironment(t)
	want := numbered(9)
	union := make([]string, 0, len(want))
	series := map[string]string{}
	for member := range 3 {
		daemon, registry := discoverytest.New(t), prometheus.NewRegistry()
		daemon.Shard(time.Minute)
		for _, name := range want[member*3 : member*3+3] {
			daemon.Engage(discovery.Cluster{Name: name, Endpoint: env.api.Endpoint(name)})
		}
		info, err := daemon.Client().Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		provider := env.provider(func(o *multicluster.Options) { o.Client, o.Registerer = daemon.Client(), registry })
		noted := env.startNoting(provider)
		within(t, "its share", func() error {
			if got := len(noted.names()); got != 3 {
				return fmt.Errorf("%d are engaged", got)
			}
			return nil
		})
		for _, name := range noted.names() {
			union = append(union, name.String())
		}
		series[info.Sharding.Member] = `milo_discovery_client_owned_clusters{shard="` + info.Sharding.Member + `"} 3`
		within(t, "the metric", func() error {
			const help = "# HELP milo_discovery_client_owned_clusters Clusters that this process works in, by the member of the shard group " +
				"that owns them; the label is empty without a group.\n# TYPE milo_discovery_client_owned_clusters gauge\n"
			text := strings.NewReader(help + series[info.Sharding.Member] + "\n")
			return testutil.GatherAndCompare(registry, text, "milo_discovery_client_owned_clusters")
		})
	}
	slices.Sort(union)
	if !slices.Equal(union, want) || len(series) != 3 {
		t.Errorf("the members %v own %v, want %v", slices.Collect(maps.Keys(series)), union, want)
	}
}

// TestGoroutinesOfAReplicaAreProportionalToItsClusters is steps 1 to 3 of the validation in milo-os/milo#640: a replica
// with all projects, then two with half of them each.
func TestGoroutinesOfAReplicaAreProportionalToItsClusters(t *testing.T) {
	env := newEnvironment(t)
	names := numbered(24)
	moving := names[len(names)/2:]
	replica := func(names []string) *discoverytest.Daemon {
		daemon := discoverytest.New(t)
		daemon.Shard(time.Minute)
		for _, name := range names {
			env.animal(name, "dog")
			daemon.Engage(discovery.Cluster{Name: name, Endpoint: env.api.Endpoint(name)})
		}
		provider := env.provider(func(o *multicluster.Options) { o.Client, o.Registerer = daemon.Client(), prometheus.NewRegistry() })
		noted := env.startFeeding(provider)
		within(t, "its projects", func() error {
			if got := len(noted.names()); got != len(names) {
				return fmt.Errorf("%d are engaged", got)
			}
			return nil
		})
		return daemon
	}
	count := func() (settled int) {
		within(t, "the goroutines to settle", func() error {
			before, sum := settled, 0
			ours, _ := goroutines()
			for _, number := range ours {
				sum += number
			}
			if settled = sum; settled != before {
				time.Sleep(200 * time.Millisecond)
				return fmt.Errorf("got %d goroutines, %d in the previous check", settled, before)
			}
			return nil
		})
		return settled
	}
	none := count()
	first := replica(names)
	whole := count() - none
	for _, name := range moving {
		first.Disengage(name, discovery.ReasonMoved)
	}
	isHalf := func(of string, half func() int) {
		within(t, of+" to have half of the goroutines", func() error {
			if got := half(); 2*got < whole*9/10 || 2*got > whole*11/10 {
				return fmt.Errorf("got %d goroutines, want half of the %d of a single replica", got, whole)
			}
			return nil
		})
	}
	isHalf("the first replica", func() int { return count() - none })
	before := count()
	replica(moving)
	isHalf("the second replica", func() int { return count() - before })
	t.Logf("%d goroutines with one replica, %d in the first of two, %d in the second", whole, before-none, count()-before)
}
