package mapping

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestServerOf(t *testing.T) {
	for endpoint, want := range map[string]string{
		"https://api/apis/resourcemanager.miloapis.com/v1alpha1/projects/p/control-plane":  "https://api/apis/resourcemanager.miloapis.com/v1alpha1",
		"https://api/apis/resourcemanager.miloapis.com/v1alpha1/projects/q/control-plane/": "https://api/apis/resourcemanager.miloapis.com/v1alpha1",
		"https://milo-apiserver.project-p.svc.cluster.local:6443":                          "",
		"https://api/projects//control-plane":                                              "",
		"https://api/projects/p/q/control-plane":                                           "",
		"https://api/control-plane":                                                        "",
		"/projects/p/control-plane":                                                        "",
		"://":                                                                              "",
	} {
		if got, ok := ServerOf(endpoint); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %t", endpoint, got, ok)
		}
	}
}

const (
	coreDocument  = `{"kind": "APIVersions", "versions": ["v1"]}`
	groupDocument = `{"kind": "APIGroupList", "apiVersion": "v1", "groups": [{"name": "example.com",
		"versions": [{"groupVersion": "example.com/v1", "version": "v1"}],
		"preferredVersion": {"groupVersion": "example.com/v1", "version": "v1"}}]}`
	thingsDocument = `{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "example.com/v1",
		"resources": [{"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["list"]}]}`
)

// project is a project's API server.
type project struct {
	*httptest.Server
	asked atomic.Int64
}

func newProject(t *testing.T, serve http.HandlerFunc) *project {
	p := &project{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.asked.Add(1)
		serve(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *project) endpoint() string { return p.URL + "/projects/p/control-plane" }

func good(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch strings.TrimPrefix(r.URL.Path, "/projects/p/control-plane") {
	case "/api":
		_, _ = w.Write([]byte(coreDocument))
	case "/apis":
		_, _ = w.Write([]byte(groupDocument))
	case "/apis/example.com/v1":
		_, _ = w.Write([]byte(thingsDocument))
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func silent(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusOK) // and no document
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

func join(t *testing.T, groups *Groups, of *project) (meta.RESTMapper, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	mapper, leave, err := groups.Join(ctx, "server", of.endpoint(), http.DefaultTransport)
	if err != nil {
		t.Fatal(err)
	}
	return mapper, leave
}

func find(t *testing.T, mapper meta.RESTMapper) {
	t.Helper()
	found, err := mapper.RESTMapping(schema.GroupKind{Group: "example.com", Kind: "Thing"}, "v1")
	if err != nil || found.Resource.Resource != "things" {
		t.Fatalf("RESTMapping: %v, %v", found, err)
	}
}

func TestMembersOfAServerShareOneMapper(t *testing.T) {
	groups, first, second := &Groups{hedgeAfter: time.Hour}, newProject(t, good), newProject(t, good)
	one, _ := join(t, groups, first)
	two, _ := join(t, groups, second)
	find(t, one)
	find(t, two)
	if one != two || second.asked.Load() != 0 {
		t.Errorf("the second member was asked %d times", second.asked.Load())
	}
}

// overlaps is a mapper that records whether two calls overlap.
type overlaps struct {
	meta.RESTMapper
	open, found atomic.Int64
}

func (o *overlaps) RESTMapping(schema.GroupKind, ...string) (*meta.RESTMapping, error) {
	if o.open.Add(1) > 1 {
		o.found.Add(1)
	}
	for range 1000 {
		runtime.Gosched()
	}
	o.open.Add(-1)
	return nil, nil
}

func TestSharedMapperCallsDoNotOverlap(t *testing.T) {
	inner := &overlaps{}
	mapper := &inTurn{RESTMapper: inner}
	var done sync.WaitGroup
	for range 8 {
		done.Go(func() { _, _ = mapper.RESTMapping(schema.GroupKind{}) })
	}
	done.Wait()
	if found := inner.found.Load(); found > 0 {
		t.Errorf("%d calls overlapped", found)
	}
}

func TestMapperDoesNotWaitForUnresponsiveMember(t *testing.T) {
	for name, bad := range map[string]http.HandlerFunc{
		"silent": silent, "forbidden": status(http.StatusForbidden), "deleted": status(http.StatusNotFound),
		"broken": status(http.StatusInternalServerError),
	} {
		t.Run(name, func(t *testing.T) {
			groups, first, second := &Groups{}, newProject(t, bad), newProject(t, good)
			mapper, _ := join(t, groups, first)
			join(t, groups, second)
			find(t, mapper)
			if _, err := mapper.RESTMapping(schema.GroupKind{Group: "example.com", Kind: "Other"}, "v1"); !meta.IsNoMatchError(err) {
				t.Fatalf("an unknown kind: %v", err)
			}
			if next := groups.groups["server"].members.candidates()[0]; !strings.HasPrefix(second.URL, "http://"+next.base.Host) {
				t.Errorf("the next request goes to %s first, not to the member that answered", next.base)
			}
		})
	}
}

func TestMapperReturnsErrorIfAllMembersFail(t *testing.T) {
	groups, first, second := &Groups{}, newProject(t, status(http.StatusForbidden)), newProject(t, status(http.StatusInternalServerError))
	mapper, _ := join(t, groups, first)
	join(t, groups, second)
	if _, err := mapper.RESTMapping(schema.GroupKind{Group: "example.com", Kind: "Thing"}, "v1"); err == nil {
		t.Fatal("it is found")
	}
	if first.asked.Load() == 0 || second.asked.Load() == 0 {
		t.Error("not all were asked")
	}
}

func TestMapperOutlivesItsFirstMember(t *testing.T) {
	groups, first, second := &Groups{}, newProject(t, good), newProject(t, good)
	mapper, leave := join(t, groups, first)
	_, leaveSecond := join(t, groups, second)
	leave()
	find(t, mapper)
	if first.asked.Load() != 0 {
		t.Error("a member that left was asked")
	}
	leaveSecond()
	leaveSecond()
	if len(groups.groups) != 0 {
		t.Error("a server without members is kept")
	}
	if _, err := mapper.RESTMapping(schema.GroupKind{Group: "other.com", Kind: "Thing"}, "v1"); !errors.Is(err, errNoMember) {
		t.Errorf("without members: %v", err)
	}
}

func TestMapperRequestsAreCanceledWithClusterContext(t *testing.T) {
	p := newProject(t, silent)
	ctx, cancel := context.WithCancel(context.Background())
	request, err := http.NewRequest(http.MethodGet, p.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := alone{ctx, http.DefaultTransport}.RoundTrip(request)
		ended <- err
	}()
	for p.asked.Load() == 0 {
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
