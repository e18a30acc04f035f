package multicluster_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	mcbuilder "sigs.k8s.io/multicluster-runtime/pkg/builder"
	mccontroller "sigs.k8s.io/multicluster-runtime/pkg/controller"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	mc "sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	"go.miloapis.com/discovery/multicluster"
	"go.miloapis.com/discovery/multicluster/apitest"
)

const patience = 30 * time.Second

// site is the environment of a test's clusters: in memory, or real servers.
type site interface {
	// client returns a client of the daemon.
	client() *discovery.Client
	// identify sets the identity of a provider in all projects.
	identify(*multicluster.Options)
	// local returns the configuration of the operator's own cluster.
	local() *rest.Config
	engage(names ...string)
	label(name, key, value string)
	// move replaces the project behind a cluster.
	move(name, project string)
	drain(name string)
	remove(name string)
	endpoint(project string) string
	// put creates or replaces a ConfigMap in a project.
	put(project, name string, data map[string]string)
	// data returns the data of a ConfigMap in a project; nil if it does not exist.
	data(project, name string) map[string]string
}

// environment is a site with the objects of a test. daemon and api are nil on a real site.
type environment struct {
	site
	t      *testing.T
	daemon *discoverytest.Daemon
	api    *apitest.Server
}

// anyEnvironment returns an environment on real servers if realVariable is set, and otherwise one in memory.
func anyEnvironment(t *testing.T) *environment {
	t.Helper()
	if path := os.Getenv(realVariable); path != "" {
		return &environment{t: t, site: newRealSite(t, path)}
	}
	return newEnvironment(t)
}

func newEnvironment(t *testing.T) *environment {
	t.Helper()
	api := apitest.Start(0)
	t.Cleanup(api.Close)
	env := &environment{t: t, daemon: discoverytest.New(t), api: api}
	env.site = memorySite{env}
	env.daemon.SetKubeconfigs(func(cluster discovery.Cluster, number int) discovery.Kubeconfig {
		return discovery.Kubeconfig{Content: env.kubeconfig(cluster.Endpoint, token(cluster.Name, number))}
	})
	return env
}

func token(project string, number int) string { return fmt.Sprintf("%s-%d", project, number) }

func (env *environment) kubeconfig(endpoint, token string) []byte {
	return fmt.Appendf(nil, `{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": %q, "certificate-authority-data": %q}}],
		"users": [{"name": "u", "user": {"token": %q}}]}`,
		endpoint, base64.StdEncoding.EncodeToString(env.api.CA()), token)
}

func (env *environment) config() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{CAData: env.api.CA()}}
}

// provider returns a provider with the identity of the site, unless change sets another one.
func (env *environment) provider(change func(*multicluster.Options)) *multicluster.Provider {
	env.t.Helper()
	options := multicluster.Options{Client: env.client(), Registerer: prometheus.NewRegistry()}
	env.identify(&options)
	if change != nil {
		change(&options)
	}
	provider, err := multicluster.New(options)
	if err != nil {
		env.t.Fatal(err)
	}
	return provider
}

func withKubeconfigs(o *multicluster.Options) { o.ProjectRestConfig, o.Kubeconfigs = nil, true }

// manager returns a manager whose local cluster is a project of the API server.
func (env *environment) manager(provider mc.Provider, change func(*manager.Options)) mcmanager.Manager {
	env.t.Helper()
	options := manager.Options{Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0"}
	if change != nil {
		change(&options)
	}
	mgr, err := mcmanager.New(env.local(), provider, options)
	if err != nil {
		env.t.Fatal(err)
	}
	return mgr
}

// controllerOptions returns options for a controller in tests. They disable the priority queue: before
// controller-runtime 0.25 it can deadlock and leak goroutines if it shuts down during Get
// (kubernetes-sigs/controller-runtime#3538).
func controllerOptions(reconciliationTimeout time.Duration) mccontroller.Options {
	skip, usePriorityQueue := true, false
	return mccontroller.Options{
		SkipNameValidation: &skip, UsePriorityQueue: &usePriorityQueue, ReconciliationTimeout: reconciliationTimeout,
	}
}

// running is a started manager.
type running struct {
	stop context.CancelFunc
	done chan struct{}
	err  error
}

// start starts a manager, which is stopped at the end of the test at the latest.
func (env *environment) start(mgr mcmanager.Manager) *running {
	ctx, cancel := context.WithCancel(env.t.Context())
	r := &running{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = mgr.Start(ctx)
	}()
	env.t.Cleanup(func() {
		cancel()
		within(env.t, "the manager to stop", func() error {
			select {
			case <-r.done:
				return r.err
			default:
				return errors.New("it is running")
			}
		})
	})
	return r
}

// feeder is a controller that feeds animals: it sets stomach=food in each ConfigMap with type=animal.
type feeder struct {
	mgr mcmanager.Manager
	mu  sync.Mutex
	saw map[string]int
}

// startNoting starts a manager with the provider, and returns its engagements.
func (env *environment) startNoting(provider mc.Provider) *engagements {
	env.t.Helper()
	return env.startWith(env.manager(provider, nil))
}

// startFeeding starts a manager with the provider and a feeder, and returns its engagements.
func (env *environment) startFeeding(provider mc.Provider) *engagements {
	env.t.Helper()
	mgr := env.manager(provider, nil)
	env.feeder(mgr)
	return env.startWith(mgr)
}

func (env *environment) startWith(mgr mcmanager.Manager) *engagements {
	env.t.Helper()
	noted := &engagements{}
	if err := mgr.Add(noted); err != nil {
		env.t.Fatal(err)
	}
	env.start(mgr)
	return noted
}

func (env *environment) feeder(mgr mcmanager.Manager) *feeder {
	env.t.Helper()
	f := &feeder{mgr: mgr, saw: map[string]int{}}
	err := mcbuilder.ControllerManagedBy(mgr).Named("feeder").For(&corev1.ConfigMap{}).
		WithOptions(controllerOptions(5 * time.Second)).Complete(f)
	if err != nil {
		env.t.Fatal(err)
	}
	return f
}

func (f *feeder) Reconcile(ctx context.Context, request mcreconcile.Request) (reconcile.Result, error) {
	f.mu.Lock()
	f.saw[request.ClusterName.String()]++
	f.mu.Unlock()
	cl, err := f.mgr.GetCluster(ctx, request.ClusterName)
	if err != nil {
		return reconcile.Result{}, err
	}
	found := &corev1.ConfigMap{}
	if err := cl.GetClient().Get(ctx, request.NamespacedName, found); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if found.Data["type"] != "animal" || found.Data["stomach"] == "food" {
		return reconcile.Result{}, nil
	}
	found.Data["stomach"] = "food"
	return reconcile.Result{}, cl.GetClient().Update(ctx, found)
}

func (env *environment) animal(project, name string) {
	env.put(project, name, map[string]string{"type": "animal"})
}

// untilFed waits until the controller has fed an animal.
func (env *environment) untilFed(project, name string) {
	env.t.Helper()
	within(env.t, name+" in "+project+" to be fed", func() error {
		found := env.data(project, name)
		if found == nil {
			return errors.New("it does not exist")
		}
		if found["stomach"] != "food" {
			return fmt.Errorf("got data.stomach %q, want food", found["stomach"])
		}
		return nil
	})
}

// untilReleased waits until the daemon has disengaged a draining cluster.
func (env *environment) untilReleased(name string) {
	env.t.Helper()
	client := env.client()
	within(env.t, name+" to be released", func() error {
		report, err := client.Get(env.t.Context(), name)
		if err == nil && report.Engagement.Engaged {
			return errors.New("it is engaged in the daemon")
		}
		return err
	})
}

// untilGot waits until Get of the provider returns a cluster, and returns it.
func (env *environment) untilGot(provider mc.Provider, name mc.ClusterName) (found cluster.Cluster) {
	env.t.Helper()
	within(env.t, "cluster "+name.String(), func() (err error) {
		found, err = provider.Get(env.t.Context(), name)
		return err
	})
	return found
}

func (env *environment) untilGone(provider mc.Provider, name mc.ClusterName) {
	env.t.Helper()
	within(env.t, "Get not to return cluster "+name.String(), func() error {
		_, err := provider.Get(env.t.Context(), name)
		if err == nil {
			return errors.New("Get returns it")
		}
		if !errors.Is(err, mc.ErrClusterNotFound) {
			env.t.Fatalf("Get() error = %v, want ErrClusterNotFound", err)
		}
		return nil
	})
}

// engagements is an Aware that records engagements.
type engagements struct {
	mu          sync.Mutex
	calls       int
	overlapping int // calls for a name whose last context was not canceled
	live        map[mc.ClusterName]context.Context
	of          map[mc.ClusterName]cluster.Cluster
}

func (e *engagements) Start(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (e *engagements) Engage(ctx context.Context, name mc.ClusterName, cl cluster.Cluster) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.live == nil {
		e.live, e.of = map[mc.ClusterName]context.Context{}, map[mc.ClusterName]cluster.Cluster{}
	}
	e.calls++
	if former := e.live[name]; former != nil && former.Err() == nil {
		e.overlapping++
	}
	e.live[name], e.of[name] = ctx, cl
	return nil
}

func (e *engagements) names() []mc.ClusterName {
	e.mu.Lock()
	defer e.mu.Unlock()
	live := maps.Clone(e.live)
	maps.DeleteFunc(live, func(_ mc.ClusterName, ctx context.Context) bool { return ctx.Err() != nil })
	return slices.Sorted(maps.Keys(live))
}

func (e *engagements) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.calls
}

func (e *engagements) overlaps() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.overlapping
}

// context returns the context of the last engagement of a cluster.
func (e *engagements) context(name mc.ClusterName) context.Context {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.live[name]
}

func (env *environment) untilEngaged(e *engagements, want ...mc.ClusterName) {
	env.t.Helper()
	within(env.t, fmt.Sprintf("%v to be engaged", want), func() error {
		if got := e.names(); !slices.Equal(got, want) {
			return fmt.Errorf("got %v", got)
		}
		return nil
	})
}

// within waits for a condition.
func within(t *testing.T, what string, check func() error) {
	t.Helper()
	withinLimit(t, patience, what, check)
}

func withinLimit(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
