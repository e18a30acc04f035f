package tests

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	"go.miloapis.com/discovery/multicluster/apitest"
	"go.miloapis.com/discovery/objects"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience   = 30 * time.Second
	namespaces = "v1/namespaces"
)

var (
	resource = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	kinds    = []objects.Kind{{Resource: namespaces, Fields: []string{"metadata.labels", "status.phase"}}}
	indexes  = map[string]objects.Index{
		"name": func(o *objects.Object) []string { return []string{o.Name} },
		"uid":  func(o *objects.Object) []string { return []string{o.UID} },
	}
)

// environment is a fleet on an API server, and what Objects told of it.
type environment struct {
	t      *testing.T
	daemon *discoverytest.Daemon
	api    *apitest.Server
	found  *objects.Objects
	stop   func()

	mu     sync.Mutex
	told   []objects.Change
	errors []string
}

func newEnvironment(t *testing.T) *environment {
	t.Helper()
	env := &environment{t: t, daemon: discoverytest.New(t), api: apitest.Start(0)}
	t.Cleanup(env.api.Close)
	env.daemon.SetKubeconfigs(func(cluster discovery.Cluster, number int) discovery.Kubeconfig {
		return discovery.Kubeconfig{Content: fmt.Appendf(nil, `{"apiVersion": "v1", "kind": "Config", "current-context": "c",
			"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
			"clusters": [{"name": "c", "cluster": {"server": %q, "certificate-authority-data": %q}}],
			"users": [{"name": "u", "user": {"token": %q}}]}`,
			cluster.Endpoint, base64.StdEncoding.EncodeToString(env.api.CA()), token(cluster.Name, number))}
	})
	return env
}

func token(cluster string, number int) string { return fmt.Sprintf("%s-%d", cluster, number) }

func (env *environment) engage(names ...string) {
	env.t.Helper()
	for _, name := range names {
		env.daemon.Engage(discovery.Cluster{Name: name, Endpoint: env.api.Endpoint(name)})
	}
}

// start follows the objects until the end of the test, or stop.
func (env *environment) start(change func(*objects.Options)) {
	env.t.Helper()
	options := objects.Options{Kinds: kinds, Indexes: indexes, OnChange: env.note}
	options.OnError = func(cluster objects.Cluster, err error) {
		env.mu.Lock()
		defer env.mu.Unlock()
		env.errors = append(env.errors, cluster.Name()+": "+err.Error())
	}
	if change != nil {
		change(&options)
	}
	found, err := objects.New(env.daemon.Client(), options)
	if err != nil {
		env.t.Fatal(err)
	}
	env.found = found
	ctx, stop := context.WithCancel(env.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- found.Run(ctx) }()
	env.stop = sync.OnceFunc(func() {
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			env.t.Errorf("Run() error = %v, want context.Canceled", err)
		}
	})
	env.t.Cleanup(env.stop)
}

func (env *environment) note(change objects.Change) {
	env.mu.Lock()
	defer env.mu.Unlock()
	env.told = append(env.told, change)
}

// changes returns what was told of a cluster's objects, except those of each new project, one line each.
func (env *environment) changes(cluster string) []string {
	env.mu.Lock()
	defer env.mu.Unlock()
	var lines []string
	for _, change := range env.told {
		if change.Scope.Cluster.Name() != cluster {
			continue
		}
		var parts []string
		for sign, all := range map[string][]*objects.Object{"+": change.Added, "-": change.Removed} {
			for _, each := range all {
				if each.Name != "default" && each.Name != "kube-system" {
					parts = append(parts, sign+each.Name)
				}
			}
		}
		slices.Sort(parts)
		if change.Gone != "" {
			parts = append(parts, string(change.Gone))
		}
		if len(change.Added)+len(change.Removed) == 0 && change.Gone == "" {
			parts = append(parts, string(change.Scope.State))
		}
		if len(parts) > 0 {
			lines = append(lines, strings.Join(parts, " "))
		}
	}
	return lines
}

// expect waits until the last changes of a cluster are these.
func (env *environment) expect(cluster string, want ...string) {
	env.t.Helper()
	within(env.t, fmt.Sprintf("%q of %s to be told", want, cluster), func() error {
		got := env.changes(cluster)
		if last := got[max(0, len(got)-len(want)):]; !slices.Equal(last, want) {
			return fmt.Errorf("told were %q", got)
		}
		return nil
	})
}

// untilKnown waits until everything is known.
func (env *environment) untilKnown() {
	env.t.Helper()
	within(env.t, "everything to be known", func() error { return env.found.View(namespaces).Err() })
}

// untilWatched waits until clusters are watched, after their lists.
func (env *environment) untilWatched(clusters ...string) {
	env.t.Helper()
	env.untilKnown()
	for _, each := range clusters {
		within(env.t, each+" to be watched", func() error {
			if open := env.api.Project(each).Watches(); open != 1 {
				return fmt.Errorf("%d watches are open", open)
			}
			return nil
		})
	}
}

// untilState waits until a scope is not current for a reason, and returns it.
func (env *environment) untilState(cluster string, want objects.State) (found objects.Scope) {
	env.t.Helper()
	within(env.t, fmt.Sprintf("%s to be %s", cluster, want), func() error {
		view := env.found.View(namespaces)
		all := slices.Concat(view.Missing, view.Outdated)
		at := slices.IndexFunc(all, func(s objects.Scope) bool { return s.Cluster.Name() == cluster && s.State == want })
		if at < 0 {
			return fmt.Errorf("the view is %+v", view)
		}
		found = all[at]
		return nil
	})
	return found
}

// where returns the clusters that have a namespace.
func (env *environment) where(name string) string {
	hits := env.found.Find("name", name)
	clusters := make([]string, len(hits))
	for i, each := range hits {
		clusters[i] = each.Cluster.Name()
	}
	slices.Sort(clusters)
	return strings.Join(clusters, " ")
}

func (env *environment) untilFound(name, want string) {
	env.t.Helper()
	within(env.t, fmt.Sprintf("%s to be found in %q", name, want), func() error {
		if got := env.where(name); got != want {
			return fmt.Errorf("found in %q", got)
		}
		return nil
	})
}

// put creates or changes a namespace of a project.
func (env *environment) put(project, name string, fields map[string]any) *unstructured.Unstructured {
	object := &unstructured.Unstructured{Object: map[string]any{}}
	object.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: "Namespace"})
	object.SetName(name)
	maps.Copy(object.Object, fields)
	return env.api.Project(project).Apply(resource, object)
}

func (env *environment) remove(project, name string) {
	env.api.Project(project).Delete(resource, types.NamespacedName{Name: name})
}

func within(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %v", patience, what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
