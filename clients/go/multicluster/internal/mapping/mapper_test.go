package mapping

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"go.miloapis.com/discovery/multicluster/apitest"
)

var thing = schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Thing"}

type clusters struct {
	*apitest.Server
	t         *testing.T
	documents *Documents
}

func start(t *testing.T) *clusters {
	server := apitest.Start(0)
	t.Cleanup(server.Close)
	return &clusters{server, t, &Documents{}}
}

func (c *clusters) mapper(project string) *Mapper {
	c.t.Helper()
	return mapper(c.t, c.documents, c.Config(project))
}

func mapper(t *testing.T, documents *Documents, config *rest.Config) *Mapper {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	made, err := documents.Mapper(ctx, config, client)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// resource returns the resource of a kind, or "" if the kind is not served.
func resource(t *testing.T, in meta.RESTMapper, kind schema.GroupVersionKind) string {
	t.Helper()
	found, err := in.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return found.Resource.Resource
}

var configMap = schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}

func TestClustersWithEqualDocumentsShareTheirMappers(t *testing.T) {
	c := start(t)
	one, two := c.mapper("one"), c.mapper("two")
	for _, each := range []*Mapper{one, two} {
		if got := resource(t, each, configMap); got != "configmaps" {
			t.Fatalf("resource %q, want configmaps", got)
		}
	}
	if first, second := one.current.Load(), two.current.Load(); first.core != second.core || first.groups != second.groups {
		t.Error("the documents are not shared")
	}
	if asked, sent := c.Project("two").Count("discover /apis"), c.Project("two").Count("send /apis"); asked != 1 || sent != 0 {
		t.Errorf("the second cluster got %d requests and sent %d documents, want 1 and 0", asked, sent)
	}
}

func TestMapperUsesTheResourceThatItsClusterServes(t *testing.T) {
	c := start(t)
	c.Project("first").Serve(thing, "thingies")
	c.Project("second").Serve(thing, "things")
	for project, want := range map[string]string{"first": "thingies", "second": "things", "third": ""} {
		if got := resource(t, c.mapper(project), thing); got != want {
			t.Errorf("in %s: resource %q, want %q", project, got, want)
		}
	}
}

func TestMapperFindsKindThatIsServedLater(t *testing.T) {
	c := start(t)
	with, without := c.mapper("with"), c.mapper("without")
	for _, each := range []*Mapper{with, without} {
		if got := resource(t, each, thing); got != "" {
			t.Fatalf("resource %q before the kind is served, want none", got)
		}
	}
	c.Project("with").Serve(thing, "things")
	if one, other := resource(t, with, thing), resource(t, without, thing); one != "things" || other != "" {
		t.Errorf("resource %q, and %q in the other cluster; want things and none", one, other)
	}
}

func TestUnresponsiveClusterDelaysNoOtherMapper(t *testing.T) {
	c := start(t)
	c.documents.Timeout = time.Hour
	c.Project("silent").SetHanging(true)
	silent := make(chan string)
	waiting := c.mapper("silent")
	go func() { silent <- resource(t, waiting, configMap) }()
	if got := resource(t, c.mapper("other"), configMap); got != "configmaps" {
		t.Errorf("resource %q, want configmaps", got)
	}
	c.Project("silent").SetHanging(false)
	if got := <-silent; got != "configmaps" {
		t.Errorf("resource %q, want configmaps", got)
	}
}

func TestRequestIsCanceledByItsTimeoutAndWithItsCluster(t *testing.T) {
	c := start(t)
	c.Project("silent").SetHanging(true)
	c.documents.Timeout = time.Millisecond
	if _, err := c.mapper("silent").RESTMapping(thing.GroupKind()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("RESTMapping() error = %v, want DeadlineExceeded", err)
	}
	c.documents.Timeout = time.Hour
	config := c.Config("silent")
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	mapper, err := c.documents.Mapper(ended, config, client)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mapper.RESTMapping(thing.GroupKind()); !errors.Is(err, context.Canceled) {
		t.Errorf("RESTMapping() error = %v, want Canceled", err)
	}
}

func TestKnownKindIsMappedWhileDocumentsAreReadForAnUnknownKind(t *testing.T) {
	c := start(t)
	found := c.mapper("one")
	resource(t, found, configMap)
	c.Project("one").SetHanging(true)
	unknown := make(chan string)
	go func() { unknown <- resource(t, found, thing) }()
	if got := resource(t, found, configMap); got != "configmaps" {
		t.Errorf("resource %q, want configmaps", got)
	}
	c.Project("one").SetHanging(false)
	<-unknown
}

func TestConcurrentCallsReadTheDocumentsOnce(t *testing.T) {
	c := start(t)
	c.Project("one").SetHanging(true)
	shared := c.mapper("one")
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() { resource(t, shared, configMap) })
	}
	c.Project("one").SetHanging(false)
	calls.Wait()
	if asked := c.Project("one").Count("discover /apis"); asked != 1 {
		t.Errorf("%d requests of the cluster, want 1", asked)
	}
}

func TestDocumentsThatNoMapperUsesAreDropped(t *testing.T) {
	c := start(t)
	c.Project("one").Serve(thing, "things")
	one, two := c.mapper("one"), c.mapper("two")
	resource(t, one, thing)
	runtime.KeepAlive(one)
	runtime.GC()
	runtime.GC()
	resource(t, two, thing)
	if held := len(c.documents.known); held != 2 {
		t.Errorf("%d documents are cached, want the 2 of one cluster", held)
	}
	runtime.KeepAlive(two)
}

func TestMapperWorksWithoutAggregatedDiscovery(t *testing.T) {
	lists := map[string]string{
		"/api": `{"kind": "APIVersions", "versions": ["v1"]}`,
		"/apis": `{"kind": "APIGroupList", "apiVersion": "v1", "groups": [{"name": "example.com",
			"versions": [{"groupVersion": "example.com/v1", "version": "v1"}],
			"preferredVersion": {"groupVersion": "example.com/v1", "version": "v1"}}]}`,
		"/apis/example.com/v1": `{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "example.com/v1", "resources":
			[{"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["list"]}]}`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if lists[r.URL.Path] == "" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(lists[r.URL.Path]))
	}))
	t.Cleanup(server.Close)
	made := mapper(t, &Documents{}, &rest.Config{Host: server.URL})
	if got := resource(t, made, thing); got != "things" {
		t.Errorf("resource %q, want things", got)
	}
	if got := resource(t, made, thing.GroupVersion().WithKind("Other")); got != "" {
		t.Errorf("resource %q for a kind that is not served, want none", got)
	}
}

func TestMapperReturnsTheErrorOfItsCluster(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	t.Cleanup(server.Close)
	made := mapper(t, &Documents{}, &rest.Config{Host: server.URL})
	if _, err := made.KindFor(thing.GroupVersion().WithResource("things")); err == nil || meta.IsNoMatchError(err) {
		t.Errorf("KindFor() error = %v, want that of the server", err)
	}
}

func TestETagOfOneServerIsNotUsedForAnother(t *testing.T) {
	c := start(t)
	c.Project("good").Serve(thing, "things")
	request, err := http.NewRequest(http.MethodGet, c.Endpoint("good")+"/apis", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", discovery.AcceptV2)
	client, err := rest.HTTPClientFor(c.Config("good"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", discovery.AcceptV2)
		w.Header().Set("ETag", answer.Header.Get("ETag"))
		_, _ = w.Write([]byte(`{"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "items": []}`))
	}))
	t.Cleanup(liar.Close)
	if got := resource(t, mapper(t, c.documents, &rest.Config{Host: liar.URL}), thing); got != "" {
		t.Fatalf("resource %q of the server with the copied ETag, want none", got)
	}
	if got := resource(t, c.mapper("good"), thing); got != "things" {
		t.Errorf("resource %q, want things", got)
	}
}
