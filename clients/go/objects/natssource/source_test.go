package natssource

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/objects"
)

const (
	namespaces     = "v1/namespaces"
	roles          = "rbac.authorization.k8s.io/v1/clusterroles"
	namespaceScope = "core.namespaces"
	roleScope      = "rbac_authorization_k8s_io.clusterroles"
)

var kinds = []objects.Kind{{Resource: namespaces, Fields: []string{"metadata.labels", "status.phase"}}}

// testReader is Objects that are read from NATS until the end of the test.
type testReader struct {
	t     *testing.T
	found *objects.Objects

	mu     sync.Mutex
	told   []objects.Change
	errors []string
}

// startReader reads with options, and with nothing but the server's URL by default.
func startReader(t *testing.T, of Options, read ...objects.Kind) *testReader {
	t.Helper()
	r := &testReader{t: t}
	if read == nil {
		read = kinds
	}
	found, err := objects.NewFrom(New(of), objects.Options{
		Kinds:   read,
		Indexes: map[string]objects.Index{"uid": func(o *objects.Object) []string { return []string{o.UID} }},
		OnChange: func(change objects.Change) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = append(r.told, change)
		},
		OnError: func(cluster objects.Cluster, err error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.errors = append(r.errors, cluster.Name()+": "+err.Error())
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.found = found
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- found.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run() error = %v, want context.Canceled", err)
		}
	})
	return r
}

// names returns the objects of a kind as CLUSTER/NAME.
func (r *testReader) names(resource string) string {
	held := r.found.List(resource)
	found := make([]string, 0, len(held))
	for _, each := range held {
		found = append(found, each.Cluster.Name()+"/"+each.Name)
	}
	slices.Sort(found)
	return strings.Join(found, " ")
}

// until waits until the reader has these objects, and has read all clusters, as of now.
func (r *testReader) until(want string) {
	r.t.Helper()
	within(r.t, "the objects "+want, func() error {
		view := r.found.View(namespaces)
		if got := r.names(namespaces); got != want || view.Err() != nil || !view.StaleSince().IsZero() {
			return fmt.Errorf("there are %q, and the view is %+v (%w)", got, view, view.Err())
		}
		return nil
	})
}

// untilProblem waits until the fleet has a problem with this text, and returns the view.
func (r *testReader) untilProblem(text string) (view objects.View) {
	r.t.Helper()
	within(r.t, "the problem "+text, func() error {
		view = r.found.View(namespaces)
		if !strings.Contains(view.Fleet.Problem, text) {
			return fmt.Errorf("the fleet is %+v", view.Fleet)
		}
		return nil
	})
	return view
}

// changes returns what was told of objects.
func (r *testReader) changes() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []string
	for _, change := range r.told {
		for sign, all := range map[string][]*objects.Object{"+": change.Added, "-": change.Removed} {
			for _, each := range all {
				lines = append(lines, strings.TrimSpace(sign+each.Name+" "+string(change.Gone)))
			}
		}
	}
	return strings.Join(lines, "; ")
}

func set(t *testing.T, variable *time.Duration, value time.Duration) {
	t.Helper()
	before := *variable
	*variable = value
	t.Cleanup(func() { *variable = before })
}

func newWorld(t *testing.T) (*natsServer, *publisher) {
	t.Helper()
	server := startServer(t, nil)
	publish := connect(t, server.url())
	publish.createStream()
	publish.beat()
	return server, publish
}

func TestReaderHasWhatWasPublished(t *testing.T) {
	server, publish := newWorld(t)
	publish.state("web", namespaceScope, "SYNCED")
	publish.put("web", namespaceScope, "default", `, "status": {"phase": "Active"}, "spec": {"noise": 1}`)
	publish.state("eu#db", namespaceScope, "SYNCED")
	publish.put("eu#db", namespaceScope, "default", "")
	publish.put("eu#db", roleScope, "system:a.b", "")
	r := startReader(t, Options{URL: server.url()})
	r.until("eu#db/default web/default")
	for _, found := range r.found.Find("uid", "uid of default") {
		cluster := found.Cluster.Current()
		if cluster.UID != "uid of "+cluster.Name || cluster.Labels["env"] != "prod" || cluster.Organization != "acme" || cluster.Incarnation != "i" {
			t.Errorf("the cluster is %+v", cluster)
		}
		want := `{"metadata":{"labels":{"team": "red"}}}`
		if cluster.Name == "web" {
			want = `{"metadata":{"labels":{"team": "red"}},"status":{"phase":"Active"}}`
		}
		if string(found.Content) != want || found.ResourceVersion != "7" || found.CreatedAt.IsZero() {
			t.Errorf("found %s in %+v, want %s", found.Content, found, want)
		}
	}
	if _, err := r.found.List(namespaces)[0].Cluster.Transport().RoundTrip(&http.Request{}); err == nil || !strings.Contains(err.Error(), "there is no credential") {
		t.Errorf("a request to a cluster: %v", err)
	}

	publish.put("web", namespaceScope, "default", `, "status": {"phase": "Active"}, "spec": {"noise": 2}`)
	publish.put("web", namespaceScope, "later", "")
	r.until("eu#db/default web/default web/later")
	publish.remove("web", namespaceScope, "later", "OUT_OF_SELECTOR")
	publish.remove("web", namespaceScope, "default", "OBJECT_DELETED")
	publish.end("eu#db", namespaceScope, "REVOKED")
	r.until("")
	within(t, "the end", func() error {
		if view := r.found.View(namespaces); view.Known != 1 {
			return fmt.Errorf("the view is %+v", view)
		}
		return nil
	})
	within(t, "what is told", func() error {
		got := r.changes()
		if _, last, _ := strings.Cut(got, "+later"); last != "; -later OUT_OF_SELECTOR; -default OBJECT_DELETED; -default CLUSTER_ENDED" {
			return fmt.Errorf("told were %q", got)
		}
		return nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if end := r.told[len(r.told)-1]; end.Disengaged.Reason != discovery.ReasonRevoked || len(r.errors) > 0 {
		t.Errorf("the end is %+v, and the errors are %q", end, r.errors)
	}
}

func TestKindsKeepTheFieldsAndTheObjectsThatTheyName(t *testing.T) {
	server, publish := newWorld(t)
	publish.state("web", namespaceScope, "SYNCED")
	publish.put("web", namespaceScope, "default", `, "status": {"phase": "Active"}`)
	publish.write(scopeSubject("web", namespaceScope)+"._.blue", publish.header(), `{"metadata": {"name": "blue", "uid": "b", "labels": {"team": "blue"}}}`)
	r := startReader(t, Options{URL: server.url()}, objects.Kind{Resource: namespaces, LabelSelector: "team=red"})
	r.until("web/default")
	if found := r.found.List(namespaces)[0]; found.Content != nil || found.UID != "uid of default" {
		t.Errorf("found %+v, want what identifies it", found)
	}
	publish.write(scopeSubject("web", namespaceScope)+"._.default", publish.header(), `{"metadata": {"name": "default", "uid": "uid of default"}}`)
	r.until("")
	if got := r.changes(); got != "+default; -default OUT_OF_SELECTOR" {
		t.Errorf("told were %q", got)
	}
}

func TestTwoVersionsOfAKindAreRefused(t *testing.T) {
	found, err := objects.NewFrom(New(Options{URL: "nats://localhost:1"}), objects.Options{
		Kinds: []objects.Kind{{Resource: "a.io/v1/things"}, {Resource: "a.io/v2/things"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := found.Run(t.Context()); err == nil || err.Error() != "a.io/v1/things and a.io/v2/things: the stream has one version of a kind" {
		t.Errorf("Run() error = %v", err)
	}
}

func TestReaderResumesWithExactlyWhatChanged(t *testing.T) {
	server, publish := newWorld(t)
	publish.state("web", namespaceScope, "SYNCED")
	names := make([]string, 0, 50)
	for number := range 50 {
		name := fmt.Sprintf("n%02d", number)
		publish.put("web", namespaceScope, name, "")
		names = append(names, "web/"+name)
	}
	through := startProxy(t, server)
	r := startReader(t, Options{URL: through.url()})
	r.until(strings.Join(names, " "))
	r.mu.Lock()
	r.told = nil
	r.mu.Unlock()
	for number := range 10 {
		through.cut()
		publish.put("web", namespaceScope, fmt.Sprintf("n%02d", number), `, "status": {"phase": "Active"}`)
	}
	publish.remove("web", namespaceScope, "n49", "OBJECT_DELETED")
	r.until(strings.Join(names[:49], " "))
	within(t, "all changes", func() error {
		if got := len(strings.Split(r.changes(), "; ")); got != 21 {
			return fmt.Errorf("told were %s", r.changes())
		}
		return nil
	})
}

func TestKilledServerDelaysChangesAndLosesNone(t *testing.T) {
	server, publish := newWorld(t)
	publish.state("web", namespaceScope, "SYNCED")
	publish.put("web", namespaceScope, "before", "")
	r := startReader(t, Options{URL: server.url()})
	r.until("web/before")
	server.kill()
	within(t, "a stale view", func() error {
		if view := r.found.View(namespaces); view.Fleet.Connected || view.StaleSince().IsZero() || view.Fleet.Problem == "" || view.Err() != nil {
			return fmt.Errorf("the view is %+v", view)
		}
		return nil
	})
	if got := r.names(namespaces); got != "web/before" {
		t.Errorf("there are %q, want what is known", got)
	}
	server.start()
	again := connect(t, server.url())
	again.put("web", namespaceScope, "after", "")
	again.remove("web", namespaceScope, "before", "OBJECT_DELETED")
	r.until("web/after")
}

func TestAnAbsentStreamIsRefusedWithTheRemedy(t *testing.T) {
	server := startServer(t, nil)
	r := startReader(t, Options{URL: server.url()})
	r.untilProblem("the stream milo does not exist: start its publisher")
	publish := connect(t, server.url())
	publish.createStream()
	publish.state("web", namespaceScope, "SYNCED")
	r.until("")

	without := startServer(t, map[string]any{"jetstream": false})
	startReader(t, Options{URL: without.url()}).untilProblem("JetStream does not answer: enable it")
}

func TestReaderKeepsWhatALostStreamHadUntilItIsWrittenAgain(t *testing.T) {
	set(t, &heartbeat, 200*time.Millisecond)
	server, publish := newWorld(t)
	for _, name := range []string{"db", "web"} {
		publish.state(name, namespaceScope, "SYNCED")
		publish.put(name, namespaceScope, "of-"+name, "")
	}
	r := startReader(t, Options{URL: server.url()})
	r.until("db/of-db web/of-web")
	publish.deleteStream()
	publish.createStream()
	publish.epoch = 1
	view := r.untilProblem("until publishers have written it again")
	if got := r.names(namespaces); got != "db/of-db web/of-web" || view.StaleSince().IsZero() {
		t.Errorf("there are %q, and the view is %+v; want what is known", got, view)
	}
	publish.put("db", namespaceScope, "new", "")
	for _, name := range []string{"db", "web"} {
		publish.state(name, namespaceScope, "SYNCED")
	}
	publish.put("web", namespaceScope, "of-web", "")
	r.until("db/new web/of-web")
}

func TestReaderThatWasAwayForTooLongSweeps(t *testing.T) {
	set(t, &resumable, -time.Second)
	server, publish := newWorld(t)
	for _, name := range []string{"db", "web"} {
		publish.state(name, namespaceScope, "SYNCED")
		publish.put(name, namespaceScope, "old", "")
	}
	through := startProxy(t, server)
	r := startReader(t, Options{URL: through.url()})
	r.until("db/old web/old")
	through.hold()
	purge := func(filter string) { publish.call("STREAM.PURGE.milo", map[string]any{"filter": filter}) }
	purge("milo.objects._.db.>")                      // its end has expired
	purge("milo.objects._.web.core.namespaces._.old") // so has that of the object
	publish.put("web", namespaceScope, "new", "")
	if got := r.names(namespaces); got != "db/old web/old" {
		t.Errorf("there are %q, want what is known", got)
	}
	through.release()
	r.until("web/new")
}

func TestAScopeThatGoesOnAfterAnotherProjectOfItsNameIsReadAgain(t *testing.T) {
	server, publish := newWorld(t)
	publish.epoch = 9
	publish.state("web", namespaceScope, "SYNCED")
	publish.put("web", namespaceScope, "a", "")
	r := startReader(t, Options{URL: server.url()}, append(slices.Clone(kinds), objects.Kind{Resource: roles})...)
	r.until("web/a")
	publish.epoch = 10
	body := strings.ReplaceAll(publish.scopeBody("web", "SYNCED"), "uid of web", "former")
	publish.write(scopeSubject("web", roleScope)+".state", nil, body)
	within(t, "the other project", func() error {
		if view := r.found.View(namespaces); len(view.Missing) != 1 {
			return fmt.Errorf("the view is %+v", view)
		}
		return nil
	})
	publish.end("web", roleScope, "WITHDRAWN")
	r.until("web/a")
}

func TestWithdrawnKindAndReplacedClusterEndTheirScopes(t *testing.T) {
	server, publish := newWorld(t)
	publish.state("web", namespaceScope, "SYNCED")
	publish.put("web", namespaceScope, "old", "")
	publish.state("web", roleScope, "SYNCED")
	publish.put("web", roleScope, "admin", "")
	r := startReader(t, Options{URL: server.url()}, append(slices.Clone(kinds), objects.Kind{Resource: roles})...)
	r.until("web/old")
	publish.end("web", roleScope, "WITHDRAWN")
	within(t, "the kind to be withdrawn", func() error {
		view := r.found.View(roles)
		if len(view.Missing) != 1 || r.names(roles) != "" {
			return fmt.Errorf("the view is %+v, with %q", view, r.names(roles))
		}
		return nil
	})
	publish.epoch = 2
	body := strings.ReplaceAll(publish.scopeBody("web", "SYNCED"), "uid of web", "another")
	publish.write(scopeSubject("web", namespaceScope)+".state", nil, body)
	publish.put("web", namespaceScope, "new", "")
	r.until("web/new")
	if got := r.changes(); !strings.HasSuffix(got, "-admin WITHDRAWN; -old CLUSTER_ENDED; +new") {
		t.Errorf("told were %q", got)
	}
}

func TestWhatIsNotOfAPublisherIsReportedAndDelaysNothing(t *testing.T) {
	server, publish := newWorld(t)
	publish.state("web", namespaceScope, "SYNCED")
	publish.write(scopeSubject("web", namespaceScope)+"._.a", nil, "{}")
	publish.write(scopeSubject("web", namespaceScope)+"._.b", publish.header(), "no JSON")
	publish.write("milo.objects._.other.core.namespaces.state", nil, "{}")
	publish.write("milo.objects._.x.core.namespaces.a.b.c", nil, "")
	publish.put("web", namespaceScope, "good", "")
	r := startReader(t, Options{URL: server.url()})
	r.until("web/good")
	r.mu.Lock()
	defer r.mu.Unlock()
	all := strings.Join(r.errors, "\n")
	for _, want := range []string{"no Milo-Epoch", "an object of v1/namespaces has no metadata", "other: ", "is the subject of no scope or object"} {
		if !strings.Contains(all, want) {
			t.Errorf("reported were %s, want %q", all, want)
		}
	}
}

func TestReaderSaysThatNoPublisherIsHeard(t *testing.T) {
	set(t, &heartbeat, 100*time.Millisecond)
	set(t, &silentTime, time.Second)
	server, publish := newWorld(t)
	publish.state("web", namespaceScope, "SYNCED")
	publish.beat()
	before := time.Now().Add(-time.Second)
	r := startReader(t, Options{URL: server.url()})
	r.until("")
	view := r.untilProblem("no publisher has been heard since 2")
	if since := view.StaleSince(); since.Before(before) || since.After(time.Now()) || view.Err() != nil {
		t.Errorf("stale since %v, want since it was heard", since)
	}
	publish.beat()
	r.until("")
	r.untilProblem("no publisher has been heard since")
	late := startReader(t, Options{URL: server.url()}) // which has not heard it at all
	late.untilProblem("no publisher has been heard since")
}

func TestASlowReceiverIsNoSilenceOfTheServer(t *testing.T) {
	set(t, &heartbeat, 100*time.Millisecond)
	server, publish := newWorld(t)
	connected, err := open(t.Context(), Options{URL: server.url(), Stream: "milo"})
	if err != nil {
		t.Fatal(err)
	}
	defer connected.close()
	idle := make(chan struct{}, 1000)
	slow := func(stored, uint64) { time.Sleep(3*heartbeat + time.Second + 200*time.Millisecond) }
	if err := connected.follow([]string{publisherSubject}, 1, slow, func() { idle <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	publish.beat()
	for range 3 {
		select {
		case <-idle:
		case <-connected.ctx.Done():
			t.Fatal(connected.wait())
		}
	}
}
