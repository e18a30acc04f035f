package multicluster_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	mcbuilder "sigs.k8s.io/multicluster-runtime/pkg/builder"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"

	"go.miloapis.com/discovery/multicluster"
	"go.miloapis.com/discovery/multicluster/apitest"
)

// Kinds that not every cluster serves, or not alike.

var thing = schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Thing"}

// things is a controller that notes the clusters whose Thing it reconciled.
type things struct {
	mu  sync.Mutex
	saw map[string]bool
}

func (c *things) Reconcile(_ context.Context, request mcreconcile.Request) (reconcile.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.saw[request.ClusterName.String()] = true
	return reconcile.Result{}, nil
}

func (env *environment) things(mgr mcmanager.Manager) *things {
	env.t.Helper()
	c := &things{saw: map[string]bool{}}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(thing)
	err := mcbuilder.ControllerManagedBy(mgr).Named("things").For(object).
		WithOptions(controllerOptions(5 * time.Second)).Complete(c)
	if err != nil {
		env.t.Fatal(err)
	}
	return c
}

// serveThing has a project serve the kind as a resource, with one object.
func (env *environment) serveThing(project, resource string) {
	env.api.Project(project).Serve(thing, resource)
	object := &unstructured.Unstructured{Object: map[string]any{}}
	object.SetGroupVersionKind(thing)
	object.SetNamespace(metav1.NamespaceDefault)
	object.SetName("one")
	env.api.Project(project).Apply(thing.GroupVersion().WithResource(resource), object)
}

func (env *environment) untilReconciled(c *things, want ...string) {
	env.t.Helper()
	within(env.t, fmt.Sprintf("a Thing to be reconciled in %v", want), func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.saw) != len(want) {
			return fmt.Errorf("reconciled in %d of %d", len(c.saw), len(want))
		}
		for _, each := range want {
			if !c.saw[each] {
				return errors.New("not in " + each)
			}
		}
		return nil
	})
}

func numbered(count int) []string {
	names := make([]string, count)
	for i := range names {
		names[i] = fmt.Sprintf("project-%02d", i)
	}
	return names
}

func TestKindOfSomeProjectsIsReconciledInThem(t *testing.T) {
	env := newEnvironment(t)
	names := numbered(30)
	for _, each := range names[27:] {
		env.serveThing(each, "things")
	}
	env.engage(names...)
	mgr := env.manager(env.provider(nil), nil)
	reconciled := env.things(mgr)
	env.feeder(mgr)
	env.start(mgr)
	env.untilReconciled(reconciled, names[27:]...)
	env.animal(names[0], "dog")
	env.untilFed(names[0], "dog")
	env.serveThing(names[1], "things")
	env.untilReconciled(reconciled, append(names[27:], names[1])...)
}

func TestProjectWithAnotherPluralDoesNotDecideForOthers(t *testing.T) {
	env := newEnvironment(t)
	names := numbered(21)
	env.serveThing(names[0], "thingies")
	for _, each := range names[1:] {
		env.serveThing(each, "things")
	}
	env.engage(names[0])
	provider := env.provider(nil)
	mgr := env.manager(provider, nil)
	reconciled := env.things(mgr)
	env.start(mgr)
	env.untilReconciled(reconciled, names[0])
	env.engage(names[1:]...)
	env.untilReconciled(reconciled, names...)
}

func TestKindsWithoutSyncedInformersAreCountedAndListed(t *testing.T) {
	env := newEnvironment(t)
	names := numbered(12)
	env.serveThing(names[0], "things")
	env.engage(names...)
	registry := prometheus.NewRegistry()
	provider := env.provider(func(o *multicluster.Options) { o.Registerer = registry })
	mgr := env.manager(provider, nil)
	reconciled := env.things(mgr)
	env.start(mgr)
	env.untilReconciled(reconciled, names[0])
	env.untilUnsynced(registry, `{kind="Thing.v1.example.com",reason="absent"} 11`)
	response := httptest.NewRecorder()
	provider.DebugHandler().ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/debug/clusters", nil))
	if got := strings.Count(response.Body.String(), `"kind":"Thing.v1.example.com","reason":"absent"`); got != 11 {
		t.Errorf("%d clusters without things in %s", got, response.Body)
	}
}

// untilUnsynced waits until the metric of unsynced informers has one series.
func (env *environment) untilUnsynced(registry *prometheus.Registry, series string) {
	env.t.Helper()
	const metric = "milo_discovery_client_unsynced_informers"
	within(env.t, "the metric of informers", func() error {
		return testutil.GatherAndCompare(registry, strings.NewReader(
			"# HELP "+metric+" Informers of engaged clusters that have not synced, by their kind and why.\n"+
				"# TYPE "+metric+" gauge\n"+metric+series+"\n",
		), metric)
	})
}

func TestAbsentKindIsLoggedOnce(t *testing.T) {
	env := newEnvironment(t)
	names := numbered(3)
	env.engage(names...)
	var mu sync.Mutex
	var lines []string
	mgr := env.manager(env.provider(func(o *multicluster.Options) {
		o.Logger = funcr.New(func(_, line string) {
			mu.Lock()
			defer mu.Unlock()
			if strings.Contains(line, "Thing.v1.example.com") {
				lines = append(lines, line)
			}
		}, funcr.Options{})
	}), nil)
	env.things(mgr)
	env.start(mgr)
	for _, each := range names {
		within(t, "the second attempt in "+each, func() error {
			if env.api.Project(each).Count("discover /apis") < 2 {
				return errors.New("it was not made")
			}
			return nil
		})
	}
	within(t, "a line", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(lines) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	if len(lines) != 1 || !strings.Contains(lines[0], `"reason"="absent"`) {
		t.Errorf("%q", lines)
	}
}

func TestServerLeavesOutKinds(t *testing.T) {
	api := apitest.Start(0)
	t.Cleanup(api.Close)
	api.ServeOnly(func(kind schema.GroupVersionKind) bool { return kind.Group == "" })
	config := api.Config("alpha")
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	mapper, err := apiutil.NewDynamicRESTMapper(config, httpClient)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mapper.RESTMapping(schema.GroupKind{Kind: "ConfigMap"}, "v1"); err != nil {
		t.Errorf("a kind that is served: %v", err)
	}
	if _, err := mapper.RESTMapping(schema.GroupKind{Group: "apps", Kind: "Deployment"}, "v1"); !meta.IsNoMatchError(err) {
		t.Errorf("a kind that is left out: %v", err)
	}
}
