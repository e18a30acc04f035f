package multicluster_test

import (
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	mcbuilder "sigs.k8s.io/multicluster-runtime/pkg/builder"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	"sigs.k8s.io/multicluster-runtime/pkg/manager/coordinator/sharded"
	mc "sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	"go.miloapis.com/discovery/multicluster"
)

// These are tests of cases that other multicluster-runtime providers do not test, such as unresponsive clusters,
// restarted daemons, rejected subscriptions, changed labels, reused names, leader changes, failed engagements, and
// goroutine leaks.

func TestUnresponsiveProjectDelaysNoOtherProject(t *testing.T) {
	env := newEnvironment(t)
	// Engage the unresponsive clusters first, so that no API discovery is cached when the others are engaged.
	silent, names := []string{"black-hole-1", "black-hole-2"}, numbered(40)
	for _, each := range silent {
		env.api.Project(each).SetHanging(true)
	}
	for _, each := range names {
		env.animal(each, "dog")
	}
	env.engage(slices.Concat(silent, names)...)
	// No timeout of a request to an unresponsive cluster may expire before the test has failed.
	provider := env.provider(func(o *multicluster.Options) { o.SyncTimeout, o.EngageTimeout = time.Hour, time.Hour })
	provider.SetDiscoveryTimeout(time.Hour)
	mgr := env.manager(provider, nil)
	env.feeder(mgr)
	env.start(mgr)
	for _, each := range names {
		env.untilFed(each, "dog")
	}
	env.animal("black-hole-1", "cat")
	env.api.Project("black-hole-1").SetHanging(false)
	env.untilFed("black-hole-1", "cat")
}

func TestReadOfUnresponsiveKindDoesNotBlockTheWorker(t *testing.T) {
	env := newEnvironment(t)
	mgr := env.manager(env.provider(nil), nil)
	var seen sync.Map
	err := mcbuilder.ControllerManagedBy(mgr).Named("reader").For(&corev1.ConfigMap{}).
		WithOptions(controllerOptions(0)). // one worker, and no ReconciliationTimeout
		Complete(mcreconcile.Func(func(ctx context.Context, request mcreconcile.Request) (reconcile.Result, error) {
			cl, err := mgr.GetCluster(ctx, request.ClusterName)
			if err != nil {
				return reconcile.Result{}, err
			}
			seen.Store("begun in "+request.ClusterName, true)
			err = cl.GetClient().List(ctx, &corev1.SecretList{})
			if err == nil {
				seen.Store("done in "+request.ClusterName, true)
			}
			return reconcile.Result{}, err
		}))
	if err != nil {
		t.Fatal(err)
	}
	until := func(what mc.ClusterName) {
		within(t, what.String(), func() error {
			if _, ok := seen.Load(what); !ok {
				return errors.New("no such reconcile")
			}
			return nil
		})
	}
	env.start(mgr)
	env.api.Project("silent").Silence("secrets")
	env.animal("silent", "dog")
	env.engage("silent")
	until("begun in silent")
	names := []string{"alpha", "beta", "gamma"}
	for _, each := range names {
		env.animal(each, "dog")
	}
	env.engage(names...)
	for _, each := range names {
		until(mc.ClusterName("done in " + each))
	}
}

func TestTypeForbiddenInOneProjectDoesNotAffectOthers(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "beta")
	env.api.Project("alpha").Forbid("configmaps")
	env.animal("beta", "dog")
	registry := prometheus.NewRegistry()
	noted := env.startFeeding(env.provider(func(o *multicluster.Options) { o.Registerer = registry }))
	env.untilFed("beta", "dog")
	env.untilEngaged(noted, "alpha", "beta")
	env.untilUnsynced(registry, `{kind="ConfigMap.v1",reason="forbidden"} 1`)
}

func TestRestartedDaemonChangesNoEngagement(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "beta", "gamma")
	provider := env.provider(nil)
	noted := env.startFeeding(provider)
	env.untilEngaged(noted, "alpha", "beta", "gamma")
	for _, name := range []string{"alpha", "beta", "gamma"} {
		env.animal(name, "dog")
		env.untilFed(name, "dog")
	}
	before, requests := env.untilGot(provider, "alpha"), env.api.Requests()
	env.daemon.Stop()
	env.daemon.Start()
	env.daemon.WaitForStreams(1)
	env.daemon.BreakStreams(nil)
	env.daemon.WaitForStreams(1)
	if noted.count() != 3 || env.api.Requests() != requests || env.untilGot(provider, "alpha") != before {
		t.Errorf("%d Engage calls and %d requests to projects after the restart, want none", noted.count()-3, env.api.Requests()-requests)
	}
	env.daemon.Stop()
	env.daemon.Disengage("beta", discovery.ReasonDeleted)
	env.daemon.Start()
	env.untilEngaged(noted, "alpha", "gamma")
	env.animal("alpha", "cat")
	env.untilFed("alpha", "cat")
}

func TestRejectedSubscriptionStopsManagerOnlyBeforeFirstView(t *testing.T) {
	env := newEnvironment(t)
	refusal := discoverytest.Error(codes.PermissionDenied, "FORBIDDEN", "no rule for you")
	env.daemon.Fail("WatchClusters", refusal)
	provider := env.provider(nil)
	if err := provider.Start(t.Context(), &engagements{}); !errors.Is(err, discovery.ErrPermissionDenied) {
		t.Fatalf("Start() error = %v, want ErrPermissionDenied", err)
	}
	env.daemon.Fail("WatchClusters", nil)
	env.engage("alpha", "beta")
	provider = env.provider(nil)
	noted := env.startNoting(provider)
	env.untilEngaged(noted, "alpha", "beta")
	env.daemon.Fail("WatchClusters", refusal)
	env.daemon.BreakStreams(nil)
	env.daemon.Disengage("beta", discovery.ReasonDeleted)
	env.animal("alpha", "dog")
	if got := noted.names(); len(got) != 2 {
		t.Fatalf("%v are engaged while the subscription is rejected, want alpha and beta", got)
	}
	env.daemon.Fail("WatchClusters", nil)
	env.untilEngaged(noted, "alpha")
	if noted.count() != 2 {
		t.Errorf("%d Engage calls, want 2", noted.count())
	}
}

func TestConnectedMetricIsZeroWhileTheSubscriptionIsRejected(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	registry := prometheus.NewRegistry()
	noted := env.startNoting(env.provider(func(o *multicluster.Options) { o.Registerer = registry }))
	env.untilEngaged(noted, "alpha")
	refusal := discoverytest.Error(codes.Unauthenticated, "TOKEN_REJECTED", "the token was revoked")
	env.daemon.Fail("WatchClusters", refusal)
	env.daemon.BreakStreams(refusal)
	const metric = "milo_discovery_client_connected"
	within(t, metric+" to be 0", func() error {
		want := "# HELP " + metric + " Whether the stream from milo-discoveryd is connected.\n# TYPE " + metric + " gauge\n" + metric + " 0\n"
		return testutil.GatherAndCompare(registry, strings.NewReader(want), metric)
	})
}

func TestClusterThatLeavesFilterIsDisengaged(t *testing.T) {
	env := newEnvironment(t)
	env.daemon.Engage(discovery.Cluster{Name: "alpha", Endpoint: env.api.Endpoint("alpha"), Labels: map[string]string{"env": "prod"}})
	provider := env.provider(func(o *multicluster.Options) { o.Filter = discovery.Filter{LabelSelector: "env=prod"} })
	noted := env.startNoting(provider)
	env.untilEngaged(noted, "alpha")
	env.daemon.Update("alpha", func(c *discovery.Cluster) { c.Labels["env"] = "test" })
	env.untilEngaged(noted)
	var cause *multicluster.Disengaged
	if !errors.As(context.Cause(noted.context("alpha")), &cause) || cause.Reason != discovery.ReasonLabelsChanged {
		t.Errorf("the cancellation cause is %v, want LABELS_CHANGED", context.Cause(noted.context("alpha")))
	}
}

func TestRecreatedProjectWithTheSameNameIsANewCluster(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	provider := env.provider(nil)
	noted := env.startFeeding(provider)
	env.untilEngaged(noted, "alpha")
	before, old := env.untilGot(provider, "alpha"), noted.context("alpha")
	env.daemon.Replace(discovery.Cluster{Name: "alpha", Endpoint: env.api.Endpoint("alpha-again")})
	env.animal("alpha-again", "dog")
	env.untilFed("alpha-again", "dog")
	if env.untilGot(provider, "alpha") == before {
		t.Error("Get returns the former instance, with the cache of the deleted project")
	}
	var cause *multicluster.Disengaged
	if !errors.As(context.Cause(old), &cause) || cause.Reason != discovery.ReasonReplaced {
		t.Errorf("the cancellation cause is %v, want REPLACED", context.Cause(old))
	}
	if noted.count() != 2 || noted.context("alpha").Err() != nil {
		t.Errorf("%d Engage calls, want 2; the error of the last context is %v, want none", noted.count(), noted.context("alpha").Err())
	}
}

// TestEngagementsOfANameDoNotOverlap disengages and engages several names concurrently, in all ways. When Engage is
// called for the next engagement of a name, the context of the last one must be canceled. A component that counts the
// ends later can count a name as engaged twice at once: see TestAfterFuncOfAnEngagementCanRunDuringTheNext.
func TestEngagementsOfANameDoNotOverlap(t *testing.T) {
	env := newEnvironment(t)
	names := numbered(8)
	env.engage(names...)
	noted := env.startFeeding(env.provider(nil))
	var storm sync.WaitGroup
	for i, name := range names {
		storm.Go(func() {
			for round := range 25 {
				switch (i + round) % 5 {
				case 0:
					env.daemon.Replace(discovery.Cluster{Name: name, Endpoint: env.api.Endpoint(name)})
				case 1:
					env.move(name, fmt.Sprintf("%s-%d", name, round))
				case 2:
					env.remove(name)
					env.engage(name)
				case 3:
					env.daemon.BreakStreams(nil)
				case 4:
					env.drain(name)
					env.untilReleased(name)
					env.engage(name)
				}
				if round%2 == 0 { // otherwise most engagements would end before they begin
					within(t, name+" to be engaged", func() error {
						if ctx := noted.context(mc.ClusterName(name)); ctx == nil || ctx.Err() != nil {
							return errors.New("it is not engaged")
						}
						return nil
					})
				}
			}
		})
	}
	storm.Wait()
	for _, name := range names {
		env.animal(name, "dog")
		env.move(name, name)
		env.untilFed(name, "dog")
	}
	if overlaps := noted.overlaps(); overlaps > 0 {
		t.Errorf("got %d of %d engagements that began before the previous one of the same name ended, want 0", overlaps, noted.count())
	}
}

// lagging is an Aware that counts the current engagements of each name: up in Engage, and down in a context.AfterFunc.
type lagging struct {
	mu     sync.Mutex
	counts map[mc.ClusterName]int
	twice  int           // calls for a name that still counted as engaged
	resume chan struct{} // what the AfterFuncs wait for, as if their goroutines were not scheduled
}

func (l *lagging) Start(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (l *lagging) Engage(ctx context.Context, name mc.ClusterName, _ cluster.Cluster) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts[name] > 0 {
		l.twice++
	}
	l.counts[name]++
	context.AfterFunc(ctx, func() {
		<-l.resume
		l.mu.Lock()
		defer l.mu.Unlock()
		l.counts[name]--
	})
	return nil
}

// TestAfterFuncOfAnEngagementCanRunDuringTheNext shows why a component can see a name engaged twice at once: a
// context.AfterFunc, like a goroutine that waits for ctx.Done, runs at some time after the cancellation. The provider
// does not wait for it, but only until the context is canceled and the caches have stopped.
func TestAfterFuncOfAnEngagementCanRunDuringTheNext(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	mgr := env.manager(env.provider(nil), nil)
	counted := &lagging{counts: map[mc.ClusterName]int{}, resume: make(chan struct{})}
	if err := mgr.Add(counted); err != nil {
		t.Fatal(err)
	}
	resume := sync.OnceFunc(func() { close(counted.resume) })
	t.Cleanup(resume)
	noted := env.startWith(mgr)
	env.untilEngaged(noted, "alpha")
	env.daemon.Replace(discovery.Cluster{Name: "alpha", Endpoint: env.api.Endpoint("alpha-again")})
	within(t, "the next engagement", func() error {
		if noted.count() != 2 {
			return fmt.Errorf("%d Engage calls, want 2", noted.count())
		}
		return nil
	})
	resume()
	counted.mu.Lock()
	defer counted.mu.Unlock()
	if counted.twice != 1 || noted.overlaps() != 0 {
		t.Errorf("alpha counted as engaged twice %d times, want 1; %d contexts were not canceled, want 0", counted.twice, noted.overlaps())
	}
}

// refusing is an Aware whose first Engage calls fail, or block until their context is canceled.
type refusing struct {
	engagements
	refusals int
	block    time.Duration
}

func (r *refusing) Engage(ctx context.Context, name mc.ClusterName, cl cluster.Cluster) error {
	r.mu.Lock()
	refused := r.refusals > 0
	r.refusals--
	r.mu.Unlock()
	if refused && r.block == 0 {
		return errors.New("not now")
	}
	if refused {
		<-ctx.Done()
		return ctx.Err()
	}
	return r.engagements.Engage(ctx, name, cl)
}

func TestFailedEngagementIsCleanedUpAndRetried(t *testing.T) {
	for name, aware := range map[string]*refusing{
		"failed":    {refusals: 1},
		"timed out": {refusals: 1, block: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			env := newEnvironment(t)
			env.engage("alpha")
			provider := env.provider(func(o *multicluster.Options) { o.EngageTimeout = 100 * time.Millisecond })
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- provider.Start(ctx, aware) }()
			env.untilEngaged(&aware.engagements, "alpha")
			if got := env.untilGot(provider, "alpha"); got != aware.of["alpha"] {
				t.Error("Get returns another instance than the one that was engaged")
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// goroutines returns the number of goroutines of the provider, the client and the clusters' caches, by their creator,
// and the number of those that multicluster-runtime leaks for each stopped source: see docs/reviewers/upstream.md.
func goroutines() (ours map[string]int, left int) {
	var text strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&text, 2)
	ours = map[string]int{}
	for stack := range strings.SplitSeq(text.String(), "\n\n") {
		_, creator, _ := strings.Cut(stack, "created by ")
		creator, _, _ = strings.Cut(creator, " in goroutine")
		switch {
		case strings.HasPrefix(creator, "sigs.k8s.io/multicluster-runtime/pkg/controller.(*mcController[...].func"),
			strings.Contains(stack, "startWithinContext"):
			left++
		case strings.Contains(stack, "go.miloapis.com/discovery"), strings.Contains(stack, "client-go/tools/cache."),
			strings.Contains(stack, "controller-runtime/pkg/cache"), strings.Contains(stack, "multicluster-runtime/"):
			ours[creator]++
		}
	}
	return ours, left
}

func TestRepeatedEngagementsLeaveNoGoroutinesOfTheProvider(t *testing.T) {
	env := newEnvironment(t)
	env.engage("stays")
	env.animal("stays", "dog")
	provider := env.provider(nil)
	mgr := env.manager(provider, nil)
	env.feeder(mgr)
	env.start(mgr)
	env.untilFed("stays", "dog")
	env.animal("stays", "cat")
	env.untilFed("stays", "cat") // an event of the watch, so that its goroutines are counted
	before, _ := goroutines()
	const rounds = 100
	for round := range rounds {
		animal := fmt.Sprintf("animal-%d", round)
		env.engage("comes-and-goes")
		env.animal("comes-and-goes", animal)
		env.untilFed("comes-and-goes", animal)
		env.daemon.Disengage("comes-and-goes", discovery.ReasonNotReady)
		env.untilGone(provider, "comes-and-goes")
	}
	within(t, "the goroutines to end", func() error {
		now, left := goroutines()
		for creator, count := range now {
			if count > before[creator] {
				return fmt.Errorf("got %d goroutines created by %s, want at most %d", count, creator, before[creator])
			}
		}
		if sources := rounds + 1; left > sources {
			return fmt.Errorf("%d goroutines leaked by multicluster-runtime, want at most %d", left, sources)
		}
		return nil
	})
}

func elected(lock *lock, id string) func(*manager.Options) {
	lease, renew, retry := 3*time.Second, 2*time.Second, 50*time.Millisecond
	return func(o *manager.Options) {
		o.LeaderElection = true
		o.LeaderElectionResourceLockInterface = lock.as(id)
		o.LeaderElectionReleaseOnCancel = true
		o.LeaseDuration, o.RenewDeadline, o.RetryPeriod = &lease, &renew, &retry
	}
}

func TestFollowersHaveClustersAndEngageThemWhenElectedLeader(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "beta")
	held := newLock()
	operator := func(id string) (*multicluster.Provider, *engagements, mcmanager.Manager) {
		provider := env.provider(nil)
		mgr, noted := env.manager(provider, elected(held, id)), &engagements{}
		env.feeder(mgr)
		if err := errors.Join(mgr.Add(noted), provider.OnAllReplicas(mgr)); err != nil {
			t.Fatal(err)
		}
		return provider, noted, mgr
	}
	_, leading, mgr := operator("first")
	leader := env.start(mgr)
	env.untilEngaged(leading, "alpha", "beta")
	provider, following, mgr := operator("second")
	env.start(mgr)
	env.untilGot(provider, "alpha")
	env.untilGot(provider, "beta")
	within(t, "the follower to be ready", func() error { return provider.ReadyCheck()(nil) })
	if following.count() != 0 {
		t.Fatalf("got clusters %v engaged by a follower, want none", following.names())
	}
	// A cluster that was engaged and disengaged before the election must not end the manager.
	env.daemon.Disengage("beta", discovery.ReasonDeleted)
	env.untilGone(provider, "beta")
	leader.stop()
	env.untilEngaged(following, "alpha")
	env.animal("alpha", "dog")
	env.untilFed("alpha", "dog")
}

// always starts a provider on all replicas, including those that do not lead, like Milo's EngageAlways.
type always struct {
	provider *multicluster.Provider
	mgr      mcmanager.Manager
}

func (a always) Start(ctx context.Context) error { return a.provider.Start(ctx, a.mgr) }
func (a always) NeedLeaderElection() bool        { return false }

// hidden is a provider without a Start method that the manager could call.
type hidden struct{ mc.Provider }

func TestManagerSurvivesElectionAfterADisengagement(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "beta")
	held := newLock()
	held.take("another replica")
	provider := env.provider(nil)
	mgr, noted := env.manager(hidden{provider}, elected(held, "us")), &engagements{}
	env.feeder(mgr)
	if err := errors.Join(mgr.Add(noted), mgr.GetLocalManager().Add(always{provider, mgr})); err != nil {
		t.Fatal(err)
	}
	env.start(mgr)
	env.untilEngaged(noted, "alpha", "beta")
	env.daemon.Disengage("beta", discovery.ReasonDeleted)
	env.untilEngaged(noted, "alpha")
	held.free()
	env.animal("alpha", "dog")
	env.untilFed("alpha", "dog")
}

func TestDisengagementOfClusterThatWaitsForASlotAffectsNoOtherCluster(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "beta", "gamma")
	provider := env.provider(func(o *multicluster.Options) { o.MaxConcurrent = 1 })
	held := newLock()
	held.take("another replica")
	mgr, aware := env.manager(provider, elected(held, "this one")), newBlocking()
	defer aware.end()
	if err := errors.Join(mgr.Add(aware), provider.OnAllReplicas(mgr)); err != nil {
		t.Fatal(err)
	}
	env.start(mgr)
	waiting := map[mc.ClusterName]bool{"alpha": true, "beta": true, "gamma": true}
	for name := range waiting {
		env.untilGot(provider, name)
	}
	held.free()
	for range 2 { // two calls of Engage occupy both sets of slots
		delete(waiting, <-aware.began)
	}
	for name := range waiting {
		env.daemon.Disengage(name.String(), discovery.ReasonDeleted)
		env.untilGone(provider, name)
		env.engage(name.String())
	}
	aware.end()
	env.untilEngaged(&aware.engagements, "alpha", "beta", "gamma")
}

// blocking is an Aware whose Engage calls do not return before end is called.
type blocking struct {
	engagements

	began chan mc.ClusterName
	may   chan struct{}
	end   func()
}

func newBlocking() *blocking {
	b := &blocking{began: make(chan mc.ClusterName, 10), may: make(chan struct{})}
	b.end = sync.OnceFunc(func() { close(b.may) })
	return b
}

func (b *blocking) Engage(ctx context.Context, name mc.ClusterName, cl cluster.Cluster) error {
	b.began <- name
	<-b.may
	return b.engagements.Engage(ctx, name, cl)
}

func TestShardedCoordinatorIsRejected(t *testing.T) {
	env := newEnvironment(t)
	kube, err := client.New(env.local(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	options := manager.Options{Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0"}
	coordinator := mcmanager.WithCoordinator(sharded.New(kube, log.Log))
	mgr, err := mcmanager.New(env.local(), env.provider(nil), options, coordinator)
	if err != nil {
		t.Fatal(err)
	}
	if err := mgr.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "sharded coordinator") {
		t.Errorf("Start() error = %v, want one about the sharded coordinator", err)
	}
}
