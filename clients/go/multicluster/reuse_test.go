package multicluster_test

import (
	"fmt"
	"net/http"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

var configMap = corev1.SchemeGroupVersion.WithKind("ConfigMap")

// reusable contains types of objects into which a caller can read several kinds or objects.
var reusable = map[string]struct {
	make func() client.Object
	// others are the kinds that are read into the object between reads of ConfigMaps.
	others []schema.GroupVersionKind
}{
	"unstructured": {func() client.Object { return &unstructured.Unstructured{} }, []schema.GroupVersionKind{thing}},
	"metadata":     {func() client.Object { return &metav1.PartialObjectMetadata{} }, []schema.GroupVersionKind{thing}},
	"typed":        {func() client.Object { return &corev1.ConfigMap{} }, nil},
}

// TestCallersMayReuseTheirObjects modifies an object that was used to create an informer, while the informer lists and
// watches again. The race detector would find unsynchronized access.
func TestCallersMayReuseTheirObjects(t *testing.T) {
	for name, each := range reusable {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // the subtests mostly wait for the backoff of client-go
			env := newEnvironment(t)
			env.serveThing("alpha", "things")
			env.animal("alpha", "one")
			env.engage("alpha")
			provider := env.provider(nil)
			env.untilEngaged(env.startNoting(provider), "alpha")
			caches := env.untilGot(provider, "alpha").GetCache()

			object := each.make()
			read(t, caches, object, configMap)
			for _, other := range each.others {
				read(t, caches, object, other)
			}
			for round := range 3 {
				want := fmt.Sprint(round)
				env.put("alpha", "one", map[string]string{"round": want})
				if round == 0 { // the informer fails, which is reported with its kind
					env.api.Project("alpha").Answer("configmaps", http.NotFound)
				}
				env.api.Project("alpha").EndWatches()
				if round == 0 {
					env.untilCounted([]string{"alpha"}, "answer configmaps", 2)
				}
				object.SetLabels(map[string]string{"written": want})
				object.GetObjectKind().SetGroupVersionKind(thing)
				env.api.Project("alpha").Answer("configmaps", nil)
				version := env.api.Project("alpha").Get(configMaps, types.NamespacedName{Namespace: metav1.NamespaceDefault, Name: "one"}).GetResourceVersion()
				within(t, "the informer of ConfigMaps to have round "+want, func() error {
					fresh := each.make()
					read(t, caches, fresh, configMap)
					if got := fresh.GetResourceVersion(); got != version {
						return fmt.Errorf("the resourceVersion is %s, want %s", got, version)
					}
					return nil
				})
				for _, other := range each.others {
					read(t, caches, object, other)
				}
			}
		})
	}
}

// read reads the object "one" of a kind.
func read(t *testing.T, from cache.Cache, into client.Object, kind schema.GroupVersionKind) {
	t.Helper()
	into.GetObjectKind().SetGroupVersionKind(kind)
	key := client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: "one"}
	if err := from.Get(t.Context(), key, into); err != nil {
		t.Fatalf("Get() of a %s into a %T: error = %v", kind.Kind, into, err)
	}
}
