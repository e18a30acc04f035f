package multicluster_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mc "sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	"sigs.k8s.io/multicluster-runtime/providers/multi"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/multicluster"
)

// These are the cases that multicluster-runtime's own providers are tested with. On real servers they run by
// tests/end_to_end/real/test_go_provider.py.

func TestProviderHasNoClustersInitially(t *testing.T) {
	w := anyEnvironment(t)
	provider := w.provider(nil)
	w.start(w.manager(provider, nil))
	within(t, "the ready check", func() error { return provider.ReadyCheck()(nil) })
	if _, err := provider.Get(context.Background(), "alpha"); !errors.Is(err, mc.ErrClusterNotFound) {
		t.Fatalf("Get: %v", err)
	}
}

func TestProviderOffersTheSameInstanceUntilRemoval(t *testing.T) {
	w := anyEnvironment(t)
	provider := w.provider(nil)
	mgr := w.manager(provider, nil)
	w.start(mgr)
	w.engage("alpha")
	found := w.untilGot(provider, "alpha")
	again, err := mgr.GetCluster(context.Background(), "alpha")
	if err != nil || again != found {
		t.Fatalf("GetCluster: %v, %v; want the same instance", again, err)
	}
	w.remove("alpha")
	w.untilGone(provider, "alpha")
}

func TestProviderReconcilesExistingNewAndUpdatedObjects(t *testing.T) {
	w := anyEnvironment(t)
	w.animal("alpha", "dog")
	w.animal("beta", "cat")
	w.engage("alpha", "beta")
	provider := w.provider(nil)
	mgr := w.manager(provider, nil)
	w.feeder(mgr)
	w.start(mgr)
	w.untilFed("alpha", "dog")
	w.untilFed("beta", "cat")
	w.animal("alpha", "monkey")
	w.untilFed("alpha", "monkey")
	w.put("beta", "tiger", map[string]string{"type": "picture"})
	w.animal("beta", "tiger")
	w.untilFed("beta", "tiger")
}

func typeOf(object client.Object) []string {
	return []string{object.(*corev1.ConfigMap).Data["type"]}
}

func listHumans(ctx context.Context, w *environment, provider mc.Provider, project mc.ClusterName, want int) {
	w.t.Helper()
	within(w.t, "the human by the index", func() error {
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
			return errors.New("not found")
		}
		return nil
	})
}

func TestProviderQueriesOneClusterByAnIndex(t *testing.T) {
	w := anyEnvironment(t)
	w.put("alpha", "anna", map[string]string{"type": "human"})
	w.put("alpha", "rex", map[string]string{"type": "animal"})
	w.put("beta", "ben", map[string]string{"type": "human"})
	w.engage("alpha", "beta")
	provider := w.provider(nil)
	mgr := w.manager(provider, nil)
	ctx := context.Background()
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err != nil {
		t.Fatal(err)
	}
	w.start(mgr)
	listHumans(ctx, w, provider, "alpha", 1)
	listHumans(ctx, w, provider, "beta", 1)
}

func TestProviderIndexesClustersThatRun(t *testing.T) {
	w := anyEnvironment(t)
	w.put("alpha", "anna", map[string]string{"type": "human"})
	w.put("beta", "ben", map[string]string{"type": "human"})
	w.engage("alpha")
	provider := w.provider(nil)
	mgr := w.manager(provider, nil)
	w.feeder(mgr)
	w.start(mgr)
	w.animal("alpha", "dog")
	w.untilFed("alpha", "dog")
	before := w.untilGot(provider, "alpha")
	ctx := context.Background()
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err != nil {
		t.Fatal(err)
	}
	listHumans(ctx, w, provider, "alpha", 1)
	if got := w.untilGot(provider, "alpha"); got != before {
		t.Error("the index made another instance")
	}
	w.engage("beta")
	listHumans(ctx, w, provider, "beta", 1)
	if err := provider.IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err == nil {
		t.Error("the same field was indexed twice")
	}
}

// With controller-runtime 0.23 the cluster is made again; with 0.24 the index is added to an informer that syncs later.
func TestProviderIndexesAClusterThatDoesNotAnswerAtFirst(t *testing.T) {
	w := newEnvironment(t)
	w.engage("alpha", "beta")
	provider := w.provider(func(o *multicluster.Options) { o.SyncTimeout = 500 * time.Millisecond })
	w.start(w.manager(provider, nil))
	w.untilGot(provider, "alpha")
	w.untilGot(provider, "beta")
	w.api.Project("alpha").SetHanging(true)
	ctx := context.Background()
	began := time.Now()
	if err := provider.IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err != nil {
		t.Fatalf("one cluster that does not answer failed the index: %v", err)
	}
	if took := time.Since(began); took > patience/3 {
		t.Errorf("one cluster that does not answer held the index up for %v", took)
	}
	w.put("beta", "ben", map[string]string{"type": "human"})
	listHumans(ctx, w, provider, "beta", 1)
	w.api.Project("alpha").SetHanging(false)
	w.put("alpha", "anna", map[string]string{"type": "human"})
	listHumans(ctx, w, provider, "alpha", 1)
}

func TestProviderFollowsAMovedEndpoint(t *testing.T) {
	w := anyEnvironment(t)
	w.engage("alpha")
	provider := w.provider(nil)
	mgr := w.manager(provider, nil)
	w.feeder(mgr)
	w.start(mgr)
	w.animal("alpha", "dog")
	w.untilFed("alpha", "dog")
	before := w.untilGot(provider, "alpha")
	w.animal("elsewhere", "cat")
	w.move("alpha", "elsewhere")
	w.untilFed("elsewhere", "cat")
	if got := w.untilGot(provider, "alpha"); got == before || got.GetConfig().Host != w.endpoint("elsewhere") {
		t.Errorf("the cluster is at %s", got.GetConfig().Host)
	}
	if w.api == nil {
		return // a real server does not report whose watches are open
	}
	within(t, "the old watches to end", func() error {
		if open := w.api.Project("alpha").Watches(); open > 0 {
			return fmt.Errorf("%d are open", open)
		}
		return nil
	})
}

func TestProviderKeepsTheInstanceWhenAClusterIsUpdated(t *testing.T) {
	w := anyEnvironment(t)
	w.engage("alpha")
	provider := w.provider(nil)
	noted := w.startNoting(provider)
	w.untilEngaged(noted, "alpha")
	before := w.untilGot(provider, "alpha")
	w.label("alpha", "tier", "gold")
	within(t, "the new label", func() error {
		if info, ok := provider.Info("alpha"); !ok || info.Labels["tier"] != "gold" {
			return fmt.Errorf("Info has %v, %t", info.Labels, ok)
		}
		return nil
	})
	if w.untilGot(provider, "alpha") != before || noted.count() != 1 {
		t.Error("the cluster was engaged again")
	}
}

func TestProviderEndsTheContextOfARemovedClusterWithTheReason(t *testing.T) {
	w := anyEnvironment(t)
	w.engage("alpha", "beta", "gamma")
	provider := w.provider(nil)
	noted := w.startNoting(provider)
	w.untilEngaged(noted, "alpha", "beta", "gamma")
	w.remove("beta")
	w.untilEngaged(noted, "alpha", "gamma")
	var cause *multicluster.Disengaged
	if !errors.As(context.Cause(noted.context("beta")), &cause) || cause.Reason != discovery.ReasonDeleted || cause.Cluster.Name != "beta" {
		t.Errorf("the cause is %v", context.Cause(noted.context("beta")))
	}
}

func TestProviderHandlesConcurrentCalls(t *testing.T) {
	w := anyEnvironment(t)
	names := make([]string, 20)
	for i := range names {
		names[i] = fmt.Sprintf("cluster-%d", i)
	}
	w.engage(names...)
	provider := w.provider(nil)
	mgr := w.manager(provider, nil)
	w.feeder(mgr)
	w.start(mgr)
	for _, name := range names {
		w.untilGot(provider, mc.ClusterName(name))
	}
	var callers sync.WaitGroup
	for i := range 40 {
		callers.Add(1)
		go func() {
			defer callers.Done()
			ctx, name := context.Background(), names[i/2]
			switch i % 4 {
			case 0:
				field := fmt.Sprintf("field-%d", i)
				if err := provider.IndexField(ctx, &corev1.ConfigMap{}, field, typeOf); err != nil {
					t.Errorf("IndexField: %v", err)
				}
			case 1:
				if _, err := provider.Get(ctx, mc.ClusterName(name)); err != nil && !errors.Is(err, mc.ErrClusterNotFound) {
					t.Errorf("Get: %v", err)
				}
			case 2:
				provider.DebugHandler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
			case 3:
				w.remove(name)
			}
		}()
	}
	callers.Wait()
	for i, name := range names {
		if i%2 == 1 {
			w.untilGone(provider, mc.ClusterName(name))
		} else {
			w.untilGot(provider, mc.ClusterName(name))
		}
	}
}

func TestProviderRunsInsideMulti(t *testing.T) {
	w := anyEnvironment(t)
	w.engage("alpha", "beta")
	w.put("alpha", "anna", map[string]string{"type": "human"})
	first, second := w.provider(nil), w.provider(func(o *multicluster.Options) {
		o.Filter = discovery.Filter{Names: []string{"beta"}}
	})
	all := multi.New(multi.Options{})
	if err := all.AddProvider("first", first); err != nil {
		t.Fatal(err)
	}
	mgr := w.manager(all, nil)
	w.feeder(mgr)
	noted := &engagements{}
	if err := mgr.Add(noted); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err != nil {
		t.Fatal(err)
	}
	w.start(mgr)
	w.untilEngaged(noted, "first#alpha", "first#beta")
	if err := all.AddProvider("second", second); err != nil {
		t.Fatal(err)
	}
	w.untilEngaged(noted, "first#alpha", "first#beta", "second#beta")
	w.animal("beta", "dog")
	w.untilFed("beta", "dog")
	listHumans(ctx, w, all, "first#alpha", 1)
	listHumans(ctx, w, second, "beta", 0)
	// Each of them releases the cluster.
	w.drain("beta")
	w.untilEngaged(noted, "first#alpha")
	w.untilReleased("beta")
	w.untilGone(all, "second#beta")
}
