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
	mc "sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"

	"go.miloapis.com/discovery/multicluster"
	"go.miloapis.com/discovery/multicluster/apitest"
)

// These are tests of kinds that not every cluster serves, or that clusters serve as different resources.

var thing = schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Thing"}

// things is a controller that records the clusters in which it reconciled a Thing.
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
	err := mcbuilder.ControllerManagedBy(mgr).Named("things").For(newThing()).
		WithOptions(controllerOptions(5 * time.Second)).Complete(c)
	if err != nil {
		env.t.Fatal(err)
	}
	return c
}

func newThing() *unstructured.Unstructured {
	object := &unstructured.Unstructured{Object: map[string]any{}}
	object.SetGroupVersionKind(thing)
	return object
}

// serveThing makes a project serve Thing as a resource, and creates an object of it.
func (env *environment) serveThing(project, resource string) {
	env.api.Project(project).Serve(thing, resource)
	object := newThing()
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
			return fmt.Errorf("reconciled in %d clusters, want %d", len(c.saw), len(want))
		}
		for _, each := range want {
			if !c.saw[each] {
				return errors.New("not reconciled in " + each)
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

func TestKindThatOnlySomeProjectsServeIsReconciledThere(t *testing.T) {
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

func TestProjectsMayServeAKindAsDifferentResources(t *testing.T) {
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
		t.Errorf("%d clusters without Things, want 11, in %s", got, response.Body)
	}
}

// untilUnsynced waits until the metric of unsynced informers has only this series, or none.
func (env *environment) untilUnsynced(registry *prometheus.Registry, series string) {
	env.t.Helper()
	const metric = "milo_discovery_client_unsynced_informers"
	if series != "" {
		series = "# HELP " + metric + " Informers of engaged clusters that have not synced, or failed after they synced, by kind and reason.\n" +
			"# TYPE " + metric + " gauge\n" + metric + series + "\n"
	}
	within(env.t, "the metric of informers", func() error {
		return testutil.GatherAndCompare(registry, strings.NewReader(series), metric)
	})
}

func TestAbsentKindIsLoggedOnce(t *testing.T) {
	before := len(loggedFrom(0))
	env := newEnvironment(t)
	names := numbered(3)
	env.engage(names...)
	mgr := env.manager(env.provider(nil), nil)
	env.things(mgr)
	env.start(mgr)
	env.untilCounted(names, "discover /apis", 2)
	untilLoggedOnce(t, before)
}

func TestKindThatIsNoLongerServedIsListedAndLoggedOnce(t *testing.T) {
	before := len(loggedFrom(0))
	env := newEnvironment(t)
	names := numbered(3)
	for _, each := range names {
		env.serveThing(each, "things")
	}
	env.engage(names...)
	registry := prometheus.NewRegistry()
	provider := env.provider(func(o *multicluster.Options) { o.Registerer = registry })
	mgr := env.manager(provider, nil)
	reconciled := env.things(mgr)
	env.start(mgr)
	env.untilReconciled(reconciled, names...)
	for _, each := range names {
		env.untilWatching(each, 1)
		env.api.Project(each).Answer("things", http.NotFound)
		env.api.Project(each).EndWatches()
	}
	env.untilCounted(names, "answer things", 3) // a watch, and two lists
	env.untilUnsynced(registry, `{kind="Thing.v1.example.com",reason="absent"} 3`)
	untilLoggedOnce(t, before)
	env.api.Project(names[0]).Answer("things", nil)
	env.untilUnsynced(registry, `{kind="Thing.v1.example.com",reason="absent"} 2`)
	for _, each := range names[1:] {
		if err := env.untilGot(provider, mc.ClusterName(each)).GetCache().RemoveInformer(t.Context(), newThing()); err != nil {
			t.Fatal(err)
		}
	}
	env.untilUnsynced(registry, "")
}

// untilCounted waits until each project has received a number of requests.
func (env *environment) untilCounted(projects []string, what string, count int) {
	env.t.Helper()
	for _, each := range projects {
		within(env.t, fmt.Sprintf("%q in %s", what, each), func() error {
			if got := env.api.Project(each).Count(what); got < count {
				return fmt.Errorf("%d requests, want %d", got, count)
			}
			return nil
		})
	}
}

// untilLoggedOnce waits until the provider has logged an absent kind, and checks that nothing else was logged about it.
func untilLoggedOnce(t *testing.T, before int) {
	t.Helper()
	within(t, "a log line about a Thing", func() error {
		if len(loggedFrom(before)) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	if lines := loggedFrom(before); len(lines) != 1 || !strings.Contains(lines[0], `"reason"="absent"`) {
		t.Errorf("the log lines about Things are %q, want one with reason absent", lines)
	}
}

func TestAPIServerServesOnlyTheKindsThatTheTestSelects(t *testing.T) {
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
		t.Errorf("RESTMapping() of a served kind: error = %v", err)
	}
	if _, err := mapper.RESTMapping(schema.GroupKind{Group: "apps", Kind: "Deployment"}, "v1"); !meta.IsNoMatchError(err) {
		t.Errorf("RESTMapping() of a removed kind: error = %v, want NoMatch", err)
	}
}
