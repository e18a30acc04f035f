package multicluster_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cluster"

	"go.miloapis.com/discovery/multicluster"
)

func (env *environment) untilWatching(project string, want int) {
	env.t.Helper()
	within(env.t, fmt.Sprintf("%d watches in %s", want, project), func() error {
		if open := env.api.Project(project).Watches(); open != want {
			return fmt.Errorf("%d watches are open", open)
		}
		return nil
	})
}

func TestRemovedInformerStopsWatching(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	provider := env.provider(nil)
	env.startFeeding(provider)
	env.animal("alpha", "dog")
	env.untilFed("alpha", "dog")
	env.untilWatching("alpha", 1)
	caches := env.untilGot(provider, "alpha").GetCache()
	within(t, "no watch in alpha", func() error {
		// Repeated, because a read of the last reconcile may have created the informer again.
		if err := caches.RemoveInformer(t.Context(), &corev1.ConfigMap{}); err != nil {
			return err
		}
		if open := env.api.Project("alpha").Watches(); open != 0 {
			return fmt.Errorf("%d watches are open", open)
		}
		return nil
	})
}

func TestInformersStopWithTheirCluster(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "beta")
	provider := env.provider(nil)
	env.startFeeding(provider)
	env.untilWatching("alpha", 1)
	env.untilWatching("beta", 1)
	env.remove("alpha")
	env.untilWatching("alpha", 0)
	env.untilWatching("beta", 1)
}

func TestInformerFunctionOfClusterOptionsIsUsed(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	var made atomic.Int64
	provider := env.provider(func(o *multicluster.Options) {
		o.ClusterOptions = append(o.ClusterOptions, func(o *cluster.Options) {
			o.Cache.NewInformer = func(
				lw toolscache.ListerWatcher, example runtime.Object, resync time.Duration, indexers toolscache.Indexers,
			) toolscache.SharedIndexInformer {
				made.Add(1)
				return toolscache.NewSharedIndexInformer(lw, example, resync, indexers)
			}
		})
	})
	env.startFeeding(provider)
	env.animal("alpha", "dog")
	env.untilFed("alpha", "dog")
	if made.Load() != 1 {
		t.Errorf("%d informers were created, want 1", made.Load())
	}
}
