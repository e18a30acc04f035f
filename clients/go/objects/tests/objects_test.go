package tests

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/objects"
)

func refuse(code int, reason string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = fmt.Fprintf(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": %d, "reason": %q, "message": "by the test"}`, code, reason)
	}
}

func TestObjectsOfAllClustersAreFound(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "beta")
	shop := env.put("alpha", "shop", map[string]any{"status": map[string]any{"phase": "Active"}})
	env.start(nil)
	env.untilKnown()
	hits := env.found.Find("uid", string(shop.GetUID()))
	if len(hits) != 1 || hits[0].Cluster.Name() != "alpha" || hits[0].CreatedAt.IsZero() || hits[0].ResourceVersion != shop.GetResourceVersion() {
		t.Fatalf("found %+v, want shop of alpha", hits)
	}
	if phase, _, _ := unstructured.NestedString(hits[0].Fields(), "status", "phase"); phase != "Active" {
		t.Errorf("the fields are %v, want the phase", hits[0].Fields())
	}
	if got := env.where("default"); got != "alpha beta" || len(env.found.List(namespaces)) != 5 {
		t.Errorf("default is in %q, and there are %d objects; want alpha beta, and 5", got, len(env.found.List(namespaces)))
	}
	view := env.found.View(namespaces)
	if view.Known != 2 || view.Synced() != 2 || len(view.Missing) > 0 || !view.StaleSince().IsZero() {
		t.Errorf("the view is %+v, want 2 synced", view)
	}

	if scopes := env.found.Scopes(namespaces); len(scopes) != 2 || scopes[0].Cluster.Name() != "alpha" || scopes[0].State != objects.Synced ||
		scopes[0].Objects != 3 || scopes[1].Objects != 2 {
		t.Errorf("the scopes are %+v, want alpha with 3 objects and beta with 2", scopes)
	}
	if got := env.found.Get(hits[0].Cluster, namespaces, "", "shop"); got != hits[0] || env.found.Get(hits[0].Cluster, namespaces, "", "absent") != nil {
		t.Errorf("got %+v, want shop", got)
	}

	env.expect("alpha", "+shop", "SYNCED") // the objects of the first list precede its SYNCED
	env.put("alpha", "shop", map[string]any{"status": map[string]any{"phase": "Active", "noise": "1"}})
	env.put("alpha", "shop", map[string]any{"status": map[string]any{"phase": "Terminating"}})
	env.remove("alpha", "shop")
	env.expect("alpha", "SYNCED", "+shop -shop", "-shop OBJECT_DELETED") // and nothing of the noise
	if len(env.found.Find("uid", string(shop.GetUID()))) > 0 {
		t.Error("a deleted namespace is found")
	}
}

func TestUnknownDiffersFromNotFound(t *testing.T) {
	env := newEnvironment(t)
	env.daemon.SetSynced(false)
	env.engage("alpha", "hung")
	env.put("hung", "shop", nil)
	env.api.Project("hung").SetHanging(true)
	env.start(nil)
	within(t, "the stream", func() error {
		if state := env.found.View(namespaces).Fleet; !state.Connected {
			return fmt.Errorf("it is %+v", state)
		}
		return nil
	})
	if err := env.found.View(namespaces).Err(); err == nil || err.Error() != "the engaged clusters are not known yet" {
		t.Errorf("before the fleet is known: %v", err)
	}

	env.daemon.SetSynced(true)
	env.untilFound("default", "alpha")
	env.untilState("hung", objects.Pending)
	within(t, "the state of alpha", func() error {
		const want = "v1/namespaces of 1 of 2 clusters were not read: hung (PENDING: not read yet)"
		if err := env.found.View(namespaces).Err(); err == nil || err.Error() != want {
			return fmt.Errorf("got %w, want %s", err, want)
		}
		return nil
	})
	if got := env.where("shop"); got != "" {
		t.Errorf("shop is found in %q", got)
	}
	env.api.Project("hung").SetHanging(false)
	env.untilKnown()
	env.untilFound("shop", "hung")
}

func TestStatesOfAScopeThatIsRefused(t *testing.T) {
	things := schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Thing"}
	env := newEnvironment(t)
	env.engage("alpha", "forbidden")
	env.put("forbidden", "shop", nil)
	forbidden := env.api.Project("forbidden")
	forbidden.Forbid("namespaces")
	env.start(func(o *objects.Options) {
		o.Kinds = append(slices.Clone(kinds), objects.Kind{Resource: "example.com/v1/things"})
	})
	env.untilFound("default", "alpha")
	if scope := env.untilState("forbidden", objects.Forbidden); !strings.Contains(scope.Problem, "forbidden here") {
		t.Errorf("the problem is %q", scope.Problem)
	}
	within(t, "both not to serve things", func() error {
		view := env.found.View("example.com/v1/things")
		if len(view.Missing) != 2 || view.Missing[0].State != objects.NotServed || view.Missing[1].State != objects.NotServed {
			return fmt.Errorf("the view is %+v", view)
		}
		return nil
	})
	forbidden.Answer("namespaces", nil)
	forbidden.Serve(things, "things")
	env.untilKnown()
	within(t, "the things of one", func() error {
		if view := env.found.View("example.com/v1/things"); view.Synced() != 1 {
			return fmt.Errorf("the view is %+v", view)
		}
		return nil
	})

	forbidden.Forbid("namespaces") // a state, and no deletions
	forbidden.EndWatches()
	if scope := env.untilState("forbidden", objects.Forbidden); !scope.Filled || env.found.View(namespaces).Err() != nil {
		t.Errorf("the scope is %+v, and the view %v; want what was known of it", scope, env.found.View(namespaces).Err())
	}
	env.untilFound("shop", "forbidden")
	forbidden.Answer("namespaces", nil)
	env.expect("forbidden", "FORBIDDEN", "SYNCED")
	if got := env.changes("forbidden"); slices.ContainsFunc(got, func(line string) bool { return strings.Contains(line, "-shop") }) {
		t.Errorf("told were %q, want no removal", got)
	}
}

func TestAnOutageIsStaleAndRemovesNothing(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "down")
	env.put("down", "gone", nil)
	env.put("down", "shop", nil)
	env.start(nil)
	env.untilWatched("alpha", "down")
	down := env.api.Project("down")
	down.Answer("namespaces", refuse(http.StatusServiceUnavailable, "ServiceUnavailable"))
	down.EndWatches()
	env.expect("down", "SYNCED", "STALE")
	view := env.found.View(namespaces)
	if err := view.Err(); err != nil || view.Synced() != 2 || view.StaleSince().IsZero() || view.StaleSince().After(time.Now()) {
		t.Errorf("the view is %+v (%v), want both known, and stale since the last event", view, err)
	}
	env.untilFound("shop", "down")
	env.remove("down", "gone")
	for number := range 1001 { // more than the API server remembers
		env.put("down", "shop", map[string]any{"spec": map[string]any{"n": fmt.Sprint(number)}})
	}
	down.Answer("namespaces", nil)
	env.expect("down", "SYNCED", "STALE", "-gone MISSING", "SYNCED")
	if !env.found.View(namespaces).StaleSince().IsZero() {
		t.Error("the view is stale after the outage")
	}
}

func TestLabelSelectorIsEvaluatedHere(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	labeled := func(value string) map[string]any {
		return map[string]any{"metadata": map[string]any{"name": "shop", "labels": map[string]any{"internal": value}}}
	}
	env.put("alpha", "shop", labeled("no"))
	env.start(func(o *objects.Options) {
		o.Kinds = []objects.Kind{{Resource: namespaces, LabelSelector: "internal=no"}}
	})
	env.expect("alpha", "+shop", "SYNCED")
	env.put("alpha", "shop", labeled("yes"))
	env.expect("alpha", "SYNCED", "-shop OUT_OF_SELECTOR")
	env.put("alpha", "shop", labeled("no"))
	env.remove("alpha", "shop")
	env.expect("alpha", "+shop", "-shop OBJECT_DELETED")
	if env.where("default") != "" {
		t.Error("an object outside of the selector is found")
	}
}

func TestTheEndOfAClusterIsToldOnce(t *testing.T) {
	for _, reason := range []discovery.DisengageReason{discovery.ReasonDeleted, discovery.ReasonRevoked} {
		env := newEnvironment(t)
		env.engage("alpha", "beta")
		env.put("alpha", "shop", nil)
		env.put("alpha", "store", nil)
		env.start(nil)
		env.untilKnown()
		env.daemon.Disengage("alpha", reason)
		env.expect("alpha", "+shop +store", "SYNCED", "-shop -store CLUSTER_ENDED")
		env.untilFound("default", "beta")
		if view := env.found.View(namespaces); view.Known != 1 || view.Err() != nil {
			t.Errorf("the view is %+v, want beta only", view)
		}
		env.mu.Lock()
		if last := env.told[len(env.told)-1]; last.Disengaged == nil || last.Disengaged.Reason != reason || len(last.Removed) != 4 {
			t.Errorf("the last change is %+v, want %s with 4 objects", last, reason)
		}
		env.mu.Unlock()
		env.stop()
	}
}

func TestObjectsOfAReplacedProjectComeAfterTheEndOfItsPredecessor(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	env.put("alpha", "old", nil)
	env.put("another", "new", nil)
	hold, held := make(chan struct{}), make(chan struct{})
	env.start(func(o *objects.Options) {
		o.OnChange = func(change objects.Change) {
			if change.Gone == objects.ClusterEnded {
				close(held)
				<-hold
			}
			env.note(change)
		}
	})
	env.expect("alpha", "+old", "SYNCED")
	env.daemon.Replace(discovery.Cluster{Name: "alpha", Endpoint: env.api.Endpoint("another")})
	<-held
	if got := env.where("old"); got != "" { // hidden, although its end is still being told
		t.Errorf("an object of the former project is found in %q", got)
	}
	env.untilState("alpha", objects.Pending)
	close(hold)
	env.expect("alpha", "+old", "SYNCED", "-old CLUSTER_ENDED", "+new", "SYNCED")
	env.untilFound("new", "alpha")
}

func TestADrainingClusterEndsAndIsReleased(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	env.start(func(o *objects.Options) { o.Subscriber = "test/objects" })
	env.untilKnown()
	env.daemon.Drain("alpha", discovery.ReasonLabelsChanged)
	env.expect("alpha", "SYNCED", "CLUSTER_ENDED")
	within(t, "the release", func() error {
		if !env.daemon.Released("alpha", "test/objects") {
			return fmt.Errorf("alpha is not released")
		}
		return nil
	})
	if view := env.found.View(namespaces); view.Known != 0 {
		t.Errorf("the view is %+v, want no clusters", view)
	}
}

func TestAMovedClusterIsListedAtItsNewEndpoint(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	env.put("alpha", "old", nil)
	env.put("elsewhere", "new", nil)
	env.start(nil)
	env.expect("alpha", "+old", "SYNCED")
	env.daemon.Update("alpha", func(c *discovery.Cluster) { c.Endpoint = env.api.Endpoint("elsewhere") })
	env.expect("alpha", "-old MISSING", "+new")
}

func TestRestartOfTheDaemonChangesNothing(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "beta")
	env.put("alpha", "shop", nil)
	env.start(nil)
	env.untilWatched("alpha", "beta")
	told, requests := len(env.changes("alpha")), env.api.Requests()
	env.daemon.Stop()
	within(t, "a stale view", func() error {
		if view := env.found.View(namespaces); view.StaleSince().IsZero() || view.Err() != nil || view.Synced() != 2 {
			return fmt.Errorf("the view is %+v, want both known, and stale (%w)", view, view.Err())
		}
		return nil
	})
	env.untilFound("shop", "alpha")
	env.daemon.Start()
	within(t, "a current view", func() error {
		if view := env.found.View(namespaces); !view.StaleSince().IsZero() {
			return fmt.Errorf("the view is %+v", view)
		}
		return nil
	})
	if got := env.changes("alpha"); len(got) != told || env.api.Requests() != requests {
		t.Errorf("told were %q, and %d requests were sent; want nothing new", got, env.api.Requests()-requests)
	}
}

func TestARenewedCredentialKeepsTheWatch(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	alpha := env.api.Project("alpha")
	alpha.SetTokens(token("alpha", 1))
	env.start(nil)
	env.untilKnown()
	env.daemon.Rotate("alpha")
	alpha.SetTokens(token("alpha", 2))
	env.put("alpha", "shop", nil)
	env.expect("alpha", "SYNCED", "+shop")
	alpha.SetTokens(token("alpha", 3)) // revoked: the next request gets 401, and asks for another
	alpha.EndWatches()
	env.put("alpha", "store", nil)
	env.expect("alpha", "SYNCED", "+shop", "+store")
	if alpha.Count("watch namespaces") != 2 || alpha.Count("list namespaces") != 1 {
		t.Errorf("%d watches and %d lists, want 2 and 1", alpha.Count("watch namespaces"), alpha.Count("list namespaces"))
	}
}

func TestAScopeOverItsBudgetIsDroppedAndListedAgain(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "large")
	env.put("large", "a", nil)
	env.put("large", "b", nil) // with default and kube-system
	env.start(func(o *objects.Options) { o.Limits = objects.Limits{Objects: 3, Retry: time.Millisecond} })
	if scope := env.untilState("large", objects.OverBudget); !strings.Contains(scope.Problem, "more than 3 of these objects (Limits.Objects)") || scope.Objects != 0 {
		t.Errorf("the scope is %+v", scope)
	}
	env.untilFound("default", "alpha")
	env.remove("large", "a")
	env.untilKnown()
	env.untilFound("b", "large")
	env.put("large", "c", nil)
	env.untilState("large", objects.OverBudget)
	env.remove("large", "b")
	env.untilKnown()
	got := env.changes("large")
	dropped := slices.Index(got, "-b -c OVER_BUDGET")
	if dropped < 1 || got[dropped-1] != "+c" || got[len(got)-2] != "+c" || got[len(got)-1] != "SYNCED" {
		t.Errorf("told were %q, want all objects removed at once, and the rest added again", got)
	}
}

func TestABoundlessResponseIsOverBudget(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "hostile")
	env.api.Project("hostile").Answer("namespaces", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, `{"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "`)
		for {
			if _, err := fmt.Fprint(w, strings.Repeat("x", 4096)); err != nil {
				return
			}
		}
	})
	env.start(func(o *objects.Options) { o.Limits.Bytes = 1 << 16 })
	if scope := env.untilState("hostile", objects.OverBudget); !strings.Contains(scope.Problem, "a response has more than 65536 bytes (Limits.Bytes)") {
		t.Errorf("the scope is %+v", scope)
	}
	env.untilFound("default", "alpha")
}

func TestFailuresOfFunctionsEndNothing(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	var calls atomic.Int64
	env.start(func(o *objects.Options) {
		o.Indexes = map[string]objects.Index{
			"name": indexes["name"],
			"of": func(o *objects.Object) []string {
				return []string{o.Fields()["status"].(map[string]any)["of"].(string)}
			},
		}
		o.OnChange = func(change objects.Change) {
			env.note(change)
			if calls.Add(1) == 1 {
				panic("by the test")
			}
		}
	})
	env.untilKnown()
	env.put("alpha", "shop", nil)
	env.expect("alpha", "SYNCED", "+shop")
	env.untilFound("shop", "alpha")
	env.mu.Lock()
	defer env.mu.Unlock()
	all := strings.Join(env.errors, "\n")
	for _, want := range []string{"alpha: OnChange panicked: by the test", `alpha: index "of" panicked for v1/namespaces shop, which is missing there`} {
		if !strings.Contains(all, want) {
			t.Errorf("reported were %s, want %q", all, want)
		}
	}
}

func TestASlowFunctionDelaysItsScopeOnly(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "slow")
	hold := make(chan struct{})
	env.start(func(o *objects.Options) {
		o.OnChange = func(change objects.Change) {
			if change.Scope.Cluster.Name() == "slow" {
				<-hold
			}
			env.note(change)
		}
	})
	env.expect("alpha", "SYNCED")
	env.put("alpha", "shop", nil)
	env.expect("alpha", "SYNCED", "+shop")
	close(hold)
	env.expect("slow", "SYNCED")
}

func TestListsArePaced(t *testing.T) {
	const count, atOnce = 20, 3
	env := newEnvironment(t)
	var mu sync.Mutex
	lists, most := 0, 0
	arrived := make(chan struct{}, count)
	proceed := make(chan struct{})
	for number := range count {
		name := fmt.Sprintf("project-%d", number)
		env.engage(name)
		env.api.Project(name).Answer("namespaces", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("watch") != "" {
				<-r.Context().Done()
				return
			}
			mu.Lock()
			lists++
			most = max(most, lists)
			mu.Unlock()
			arrived <- struct{}{}
			<-proceed
			mu.Lock()
			lists--
			mu.Unlock()
			_, _ = fmt.Fprint(w, `{"metadata": {"resourceVersion": "1"}, "items": []}`)
		})
	}
	env.start(func(o *objects.Options) { o.ListsAtOnce = atOnce })
	for number := range count {
		<-arrived
		if number >= atOnce-1 {
			proceed <- struct{}{}
		}
	}
	close(proceed)
	env.untilKnown()
	if most != atOnce {
		t.Errorf("%d lists at the same time, want %d", most, atOnce)
	}
}

func TestMetadataIsAskedForAlone(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	asked := make(chan string, 10)
	env.api.Project("alpha").Answer("namespaces", func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Accept")
		if r.URL.Query().Get("watch") != "" {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		_, _ = fmt.Fprint(w, `{"metadata": {"resourceVersion": "1"}, "items": null}`)
	})
	env.start(func(o *objects.Options) {
		o.Kinds = []objects.Kind{{Resource: namespaces, Fields: []string{"metadata.labels"}}}
	})
	if list, watch := <-asked, <-asked; !strings.HasPrefix(list, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1") ||
		!strings.HasPrefix(watch, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1") {
		t.Errorf("asked for %q and %q", list, watch)
	}
	env.untilKnown()
}

func TestWhatIsKnownStaysAfterRun(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	env.put("alpha", "shop", nil)
	env.start(nil)
	env.untilKnown()
	told := env.changes("alpha")
	env.stop()
	view := env.found.View(namespaces)
	if env.where("shop") != "alpha" || view.Known != 1 || view.StaleSince().IsZero() || !slices.Equal(env.changes("alpha"), told) {
		t.Errorf("the view is %+v, and told were %q; want shop known, as stale, and nothing new", view, env.changes("alpha"))
	}
	if env.api.Project("alpha").Get(resource, types.NamespacedName{Name: "shop"}) == nil {
		t.Error("the namespace is gone")
	}
}
