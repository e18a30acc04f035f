package multicluster_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"reflect"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mc "sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	"sigs.k8s.io/multicluster-runtime/providers/multi"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/multicluster"
)

// These are the test cases of multicluster-runtime's own providers. tests/end_to_end/real/test_go_provider.py runs them
// on real servers.

func TestProviderHasNoClustersInitially(t *testing.T) {
	env := anyEnvironment(t)
	provider := env.provider(nil)
	env.start(env.manager(provider, nil))
	within(t, "the ready check", func() error { return provider.ReadyCheck()(nil) })
	if _, err := provider.Get(t.Context(), "alpha"); !errors.Is(err, mc.ErrClusterNotFound) {
		t.Fatalf("Get() error = %v, want ErrClusterNotFound", err)
	}
}

func TestProviderReturnsSameClusterUntilRemoval(t *testing.T) {
	env := anyEnvironment(t)
	provider := env.provider(nil)
	mgr := env.manager(provider, nil)
	env.start(mgr)
	env.engage("alpha")
	found := env.untilGot(provider, "alpha")
	again, err := mgr.GetCluster(t.Context(), "alpha")
	if err != nil || again != found {
		t.Fatalf("GetCluster: %v, %v; want the same instance", again, err)
	}
	env.remove("alpha")
	env.untilGone(provider, "alpha")
}

func TestProviderReconcilesExistingNewAndUpdatedObjects(t *testing.T) {
	env := anyEnvironment(t)
	env.animal("alpha", "dog")
	env.animal("beta", "cat")
	env.engage("alpha", "beta")
	provider := env.provider(nil)
	mgr := env.manager(provider, nil)
	env.feeder(mgr)
	env.start(mgr)
	env.untilFed("alpha", "dog")
	env.untilFed("beta", "cat")
	env.animal("alpha", "monkey")
	env.untilFed("alpha", "monkey")
	env.put("beta", "tiger", map[string]string{"type": "picture"})
	env.animal("beta", "tiger")
	env.untilFed("beta", "tiger")
}

func typeOf(object client.Object) []string {
	return []string{object.(*corev1.ConfigMap).Data["type"]}
}

func listHumans(ctx context.Context, env *environment, provider mc.Provider, project mc.ClusterName, want int) {
	env.t.Helper()
	within(env.t, fmt.Sprintf("%d humans by the index", want), func() error {
		cl, err := provider.Get(ctx, project)
		if err != nil {
			return err
		}
		within, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		found := &corev1.ConfigMapList{}
		if err := cl.GetCache().List(within, found, client.MatchingFields{"type": "human"}); err != nil {
			return err
		}
		if len(found.Items) != want {
			return fmt.Errorf("got %d humans", len(found.Items))
		}
		return nil
	})
}

func TestProviderIndexesEachCluster(t *testing.T) {
	env := anyEnvironment(t)
	env.put("alpha", "anna", map[string]string{"type": "human"})
	env.put("alpha", "rex", map[string]string{"type": "animal"})
	env.put("beta", "ben", map[string]string{"type": "human"})
	env.engage("alpha", "beta")
	provider := env.provider(nil)
	mgr := env.manager(provider, nil)
	ctx := t.Context()
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err != nil {
		t.Fatal(err)
	}
	env.start(mgr)
	listHumans(ctx, env, provider, "alpha", 1)
	listHumans(ctx, env, provider, "beta", 1)
}

func TestProviderIndexIsAvailableInAllClustersAndNamespaces(t *testing.T) {
	env := anyEnvironment(t)
	env.put("alpha", "anna", map[string]string{"type": "human"})
	env.animal("alpha", "rex")
	env.put("beta", "ben", map[string]string{"type": "human"})
	env.animal("beta", "cat")
	env.engage("alpha", "beta")
	provider := env.provider(nil)
	mgr := env.manager(provider, nil)
	ctx := t.Context()
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err != nil {
		t.Fatal(err)
	}
	noted := env.startWith(mgr)
	env.untilEngaged(noted, "alpha", "beta")
	for _, namespace := range []string{metav1.NamespaceAll, metav1.NamespaceDefault} {
		within(t, "all humans by the index", func() error {
			humans := map[mc.ClusterName][]string{}
			for _, name := range noted.names() {
				cl, err := mgr.GetCluster(ctx, name)
				if err != nil {
					return err
				}
				found := &corev1.ConfigMapList{}
				if err := cl.GetClient().List(ctx, found, client.InNamespace(namespace), client.MatchingFields{"type": "human"}); err != nil {
					return err
				}
				for _, human := range found.Items {
					humans[name] = append(humans[name], human.Name)
				}
			}
			if want := map[mc.ClusterName][]string{"alpha": {"anna"}, "beta": {"ben"}}; !reflect.DeepEqual(humans, want) {
				return fmt.Errorf("got %v from the index in namespace %q", humans, namespace)
			}
			return nil
		})
	}
}

func TestProviderAddsIndexToRunningClusters(t *testing.T) {
	env := anyEnvironment(t)
	env.put("alpha", "anna", map[string]string{"type": "human"})
	env.put("beta", "ben", map[string]string{"type": "human"})
	env.engage("alpha")
	provider := env.provider(nil)
	mgr := env.manager(provider, nil)
	env.feeder(mgr)
	env.start(mgr)
	env.animal("alpha", "dog")
	env.untilFed("alpha", "dog")
	before := env.untilGot(provider, "alpha")
	ctx := t.Context()
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err != nil {
		t.Fatal(err)
	}
	listHumans(ctx, env, provider, "alpha", 1)
	if got := env.untilGot(provider, "alpha"); got != before {
		t.Error("the instance was replaced to add the index")
	}
	env.engage("beta")
	listHumans(ctx, env, provider, "beta", 1)
	if err := provider.IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err == nil {
		t.Error("IndexField() of an indexed field succeeded")
	}
}

// With controller-runtime 0.23 the cluster is restarted; with 0.24 the index is added to an informer that syncs later.
func TestProviderIndexesClusterThatIsUnresponsiveAtFirst(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "beta")
	provider := env.provider(func(o *multicluster.Options) { o.SyncTimeout = 500 * time.Millisecond })
	env.start(env.manager(provider, nil))
	env.untilGot(provider, "alpha")
	env.untilGot(provider, "beta")
	env.api.Project("alpha").SetHanging(true)
	ctx := t.Context()
	began := time.Now()
	if err := provider.IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err != nil {
		t.Fatalf("IndexField() with an unresponsive cluster: error = %v", err)
	}
	if took := time.Since(began); took > patience/3 {
		t.Errorf("IndexField() with an unresponsive cluster took %v, want at most %v", took, patience/3)
	}
	env.put("beta", "ben", map[string]string{"type": "human"})
	listHumans(ctx, env, provider, "beta", 1)
	env.api.Project("alpha").SetHanging(false)
	env.put("alpha", "anna", map[string]string{"type": "human"})
	listHumans(ctx, env, provider, "alpha", 1)
}

func TestProviderFollowsAMovedEndpoint(t *testing.T) {
	env := anyEnvironment(t)
	env.engage("alpha")
	provider := env.provider(nil)
	mgr := env.manager(provider, nil)
	env.feeder(mgr)
	env.start(mgr)
	env.animal("alpha", "dog")
	env.untilFed("alpha", "dog")
	before := env.untilGot(provider, "alpha")
	env.animal("elsewhere", "cat")
	env.move("alpha", "elsewhere")
	env.untilFed("elsewhere", "cat")
	if got := env.untilGot(provider, "alpha"); got == before || got.GetConfig().Host != env.endpoint("elsewhere") {
		t.Errorf("the host of the cluster is %s, want a new instance at %s", got.GetConfig().Host, env.endpoint("elsewhere"))
	}
	if env.api == nil {
		return // a real server does not report whose watches are open
	}
	within(t, "the former watches to be closed", func() error {
		if open := env.api.Project("alpha").Watches(); open > 0 {
			return fmt.Errorf("got %d open watches, want 0", open)
		}
		return nil
	})
}

func TestProviderKeepsTheInstanceWhenAClusterIsUpdated(t *testing.T) {
	env := anyEnvironment(t)
	env.engage("alpha")
	provider := env.provider(nil)
	noted := env.startNoting(provider)
	env.untilEngaged(noted, "alpha")
	before := env.untilGot(provider, "alpha")
	env.label("alpha", "tier", "gold")
	within(t, "the new label", func() error {
		if info, ok := provider.Info("alpha"); !ok || info.Labels["tier"] != "gold" {
			return fmt.Errorf("got labels %v and ok = %t from Info()", info.Labels, ok)
		}
		return nil
	})
	if env.untilGot(provider, "alpha") != before || noted.count() != 1 {
		t.Error("the cluster was engaged again")
	}
}

func TestProviderCancelsTheContextOfARemovedClusterWithTheReason(t *testing.T) {
	env := anyEnvironment(t)
	env.engage("alpha", "beta", "gamma")
	provider := env.provider(nil)
	noted := env.startNoting(provider)
	env.untilEngaged(noted, "alpha", "beta", "gamma")
	env.remove("beta")
	env.untilEngaged(noted, "alpha", "gamma")
	var cause *multicluster.Disengaged
	if !errors.As(context.Cause(noted.context("beta")), &cause) || cause.Reason != discovery.ReasonDeleted || cause.Cluster.Name != "beta" {
		t.Errorf("the cancellation cause is %v, want DELETED of beta", context.Cause(noted.context("beta")))
	}
}

func TestProviderHandlesConcurrentCalls(t *testing.T) {
	env := anyEnvironment(t)
	names := make([]string, 20)
	for i := range names {
		names[i] = fmt.Sprintf("cluster-%d", i)
	}
	env.engage(names...)
	provider := env.provider(nil)
	mgr := env.manager(provider, nil)
	env.feeder(mgr)
	env.start(mgr)
	for _, name := range names {
		env.untilGot(provider, mc.ClusterName(name))
	}
	var callers sync.WaitGroup
	for i := range 40 {
		callers.Go(func() {
			ctx, name := t.Context(), names[i/2]
			switch i % 4 {
			case 0:
				field := fmt.Sprintf("field-%d", i)
				if err := provider.IndexField(ctx, &corev1.ConfigMap{}, field, typeOf); err != nil {
					t.Errorf("IndexField(): error = %v, want none", err)
				}
			case 1:
				if _, err := provider.Get(ctx, mc.ClusterName(name)); err != nil && !errors.Is(err, mc.ErrClusterNotFound) {
					t.Errorf("Get(): error = %v, want none or ErrClusterNotFound", err)
				}
			case 2:
				provider.DebugHandler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
			case 3:
				env.remove(name)
			}
		})
	}
	callers.Wait()
	for i, name := range names {
		if i%2 == 1 {
			env.untilGone(provider, mc.ClusterName(name))
		} else {
			env.untilGot(provider, mc.ClusterName(name))
		}
	}
}

func TestProviderRunsInsideTheMultiProvider(t *testing.T) {
	env := anyEnvironment(t)
	env.engage("alpha", "beta")
	env.put("alpha", "anna", map[string]string{"type": "human"})
	first, second := env.provider(nil), env.provider(func(o *multicluster.Options) {
		o.Filter = discovery.Filter{Names: []string{"beta"}}
	})
	all := multi.New(multi.Options{})
	if err := all.AddProvider("first", first); err != nil {
		t.Fatal(err)
	}
	mgr := env.manager(all, nil)
	env.feeder(mgr)
	noted := &engagements{}
	if err := mgr.Add(noted); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err != nil {
		t.Fatal(err)
	}
	env.start(mgr)
	env.untilEngaged(noted, "first#alpha", "first#beta")
	if err := all.AddProvider("second", second); err != nil {
		t.Fatal(err)
	}
	env.untilEngaged(noted, "first#alpha", "first#beta", "second#beta")
	env.animal("beta", "dog")
	env.untilFed("beta", "dog")
	listHumans(ctx, env, all, "first#alpha", 1)
	listHumans(ctx, env, second, "beta", 0)
	// Both providers have to release the cluster.
	env.drain("beta")
	env.untilEngaged(noted, "first#alpha")
	env.untilReleased("beta")
	env.untilGone(all, "second#beta")
}
