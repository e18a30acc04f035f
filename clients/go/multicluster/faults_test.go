package multicluster_test

import (
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	mc "sigs.k8s.io/multicluster-runtime/pkg/multicluster"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	"go.miloapis.com/discovery/multicluster"
)

// The cases that other providers for multicluster-runtime have no tests for: a cluster that does not answer, a stream
// that resumes, a token that expires, a label that changes, a name that is used again, a leader that changes, an engagement
// that fails, and goroutines that are left.

func TestAProjectThatNeverAnswersDelaysNoOther(t *testing.T) {
	for name, change := range map[string]func(*multicluster.Options){
		"with shared mappers": nil,
		"with own mappers":    func(o *multicluster.Options) { o.OwnMappers = true },
	} {
		t.Run(name, func(t *testing.T) {
			w := newEnvironment(t)
			names := []string{"black-hole-1", "black-hole-2"}
			for _, each := range names {
				w.api.Project(each).SetHanging(true)
			}
			for i := range 40 {
				names = append(names, fmt.Sprintf("project-%d", i))
				w.animal(names[i+2], "dog")
			}
			w.engage(names...)
			provider := w.provider(change)
			mgr := w.manager(provider, nil)
			w.feeder(mgr)
			w.start(mgr)
			for _, each := range names[2:] {
				w.untilFed(each, "dog")
			}
			w.animal("black-hole-1", "cat")
			w.api.Project("black-hole-1").SetHanging(false)
			w.untilFed("black-hole-1", "cat")
		})
	}
}

func TestATypeThatIsForbiddenInOneProjectStopsNothingElse(t *testing.T) {
	w := newEnvironment(t)
	w.engage("alpha", "beta")
	w.api.Project("alpha").Forbid("configmaps")
	w.animal("beta", "dog")
	provider := w.provider(nil)
	noted := w.startFeeding(provider)
	w.untilFed("beta", "dog")
	w.untilEngaged(noted, "alpha", "beta")
}

func TestADaemonThatIsKilledAndRestartedChangesNothing(t *testing.T) {
	w := newEnvironment(t)
	w.engage("alpha", "beta", "gamma")
	provider := w.provider(nil)
	noted := w.startFeeding(provider)
	w.untilEngaged(noted, "alpha", "beta", "gamma")
	for _, name := range []string{"alpha", "beta", "gamma"} {
		w.animal(name, "dog")
		w.untilFed(name, "dog")
	}
	before, requests := w.untilGot(provider, "alpha"), w.api.Requests()
	w.daemon.Stop()
	w.daemon.Start()
	w.daemon.WaitForStreams(1)
	w.daemon.BreakStreams(nil)
	w.daemon.WaitForStreams(1)
	if noted.count() != 3 || w.api.Requests() != requests || w.untilGot(provider, "alpha") != before {
		t.Errorf("%d Engage calls, %d requests to projects", noted.count()-3, w.api.Requests()-requests)
	}
	w.daemon.Stop()
	w.daemon.Disengage("beta", discovery.ReasonDeleted)
	w.daemon.Start()
	w.untilEngaged(noted, "alpha", "gamma")
	w.animal("alpha", "cat")
	w.untilFed("alpha", "cat")
}

func TestARefusedSubscriptionEndsTheManagerOnlyBeforeTheFirstView(t *testing.T) {
	w := newEnvironment(t)
	refusal := discoverytest.Error(codes.PermissionDenied, "FORBIDDEN", "no rule for you")
	w.daemon.Fail("WatchClusters", refusal)
	provider := w.provider(nil)
	if err := provider.Start(context.Background(), &engagements{}); !errors.Is(err, discovery.ErrPermissionDenied) {
		t.Fatalf("Start: %v", err)
	}
	w.daemon.Fail("WatchClusters", nil)
	w.engage("alpha", "beta")
	provider = w.provider(nil)
	noted := w.startNoting(provider)
	w.untilEngaged(noted, "alpha", "beta")
	w.daemon.Fail("WatchClusters", refusal)
	w.daemon.BreakStreams(nil)
	w.daemon.Disengage("beta", discovery.ReasonDeleted)
	w.animal("alpha", "dog")
	if got := noted.names(); len(got) != 2 {
		t.Fatalf("%v are left while the subscription is refused", got)
	}
	w.daemon.Fail("WatchClusters", nil)
	w.untilEngaged(noted, "alpha")
	if noted.count() != 2 {
		t.Errorf("%d Engage calls, want 2", noted.count())
	}
}

func TestAClusterThatLeavesTheFilterIsDisengaged(t *testing.T) {
	w := newEnvironment(t)
	w.daemon.Engage(discovery.Cluster{Name: "alpha", Endpoint: w.api.Endpoint("alpha"), Labels: map[string]string{"env": "prod"}})
	provider := w.provider(func(o *multicluster.Options) { o.Filter = discovery.Filter{LabelSelector: "env=prod"} })
	noted := w.startNoting(provider)
	w.untilEngaged(noted, "alpha")
	w.daemon.Update("alpha", func(c *discovery.Cluster) { c.Labels["env"] = "test" })
	w.untilEngaged(noted)
	var cause *multicluster.Disengaged
	if !errors.As(context.Cause(noted.context("alpha")), &cause) || cause.Reason != discovery.ReasonLabelsChanged {
		t.Errorf("the cause is %v", context.Cause(noted.context("alpha")))
	}
}

func TestANameThatIsUsedAgainIsAnotherCluster(t *testing.T) {
	w := newEnvironment(t)
	w.engage("alpha")
	provider := w.provider(nil)
	noted := w.startFeeding(provider)
	w.untilEngaged(noted, "alpha")
	before, old := w.untilGot(provider, "alpha"), noted.context("alpha")
	w.daemon.Replace(discovery.Cluster{Name: "alpha", Endpoint: w.api.Endpoint("alpha-again")})
	w.animal("alpha-again", "dog")
	w.untilFed("alpha-again", "dog")
	if w.untilGot(provider, "alpha") == before {
		t.Error("the old instance is offered, with the cache of the deleted project")
	}
	var cause *multicluster.Disengaged
	if !errors.As(context.Cause(old), &cause) || cause.Reason != discovery.ReasonReplaced {
		t.Errorf("the cause is %v", context.Cause(old))
	}
	if noted.count() != 2 || noted.context("alpha").Err() != nil {
		t.Errorf("%d Engage calls; the new one has %v", noted.count(), noted.context("alpha").Err())
	}
}

// refusing is an Aware that refuses some engagements, or takes its time.
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

func TestAnEngagementThatFailsIsCleanedUpAndRepeated(t *testing.T) {
	for name, aware := range map[string]*refusing{
		"refused":   {refusals: 1},
		"timed out": {refusals: 1, block: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			w := newEnvironment(t)
			w.engage("alpha")
			provider := w.provider(func(o *multicluster.Options) { o.EngageTimeout = 100 * time.Millisecond })
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error)
			go func() { ended <- provider.Start(ctx, aware) }()
			w.untilEngaged(&aware.engagements, "alpha")
			if got := w.untilGot(provider, "alpha"); got != aware.of["alpha"] {
				t.Error("Get returns another instance than the one that was engaged")
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// goroutines counts those of the provider, the client and the clusters' caches by their creator, and separately
// those that multicluster-runtime leaves for each ended source: see docs/upstream.md.
func goroutines() (ours map[string]int, left int) {
	var text strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&text, 2)
	ours = map[string]int{}
	for _, stack := range strings.Split(text.String(), "\n\n") {
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

func TestChurnLeavesNoGoroutines(t *testing.T) {
	w := newEnvironment(t)
	w.engage("stays")
	w.animal("stays", "dog")
	provider := w.provider(nil)
	mgr := w.manager(provider, nil)
	w.feeder(mgr)
	w.start(mgr)
	w.untilFed("stays", "dog")
	before, _ := goroutines()
	const rounds = 100
	for round := range rounds {
		animal := fmt.Sprintf("animal-%d", round)
		w.engage("comes-and-goes")
		w.animal("comes-and-goes", animal)
		w.untilFed("comes-and-goes", animal)
		w.daemon.Disengage("comes-and-goes", discovery.ReasonNotReady)
		w.untilGone(provider, "comes-and-goes")
	}
	within(t, "the goroutines to end", func() error {
		now, left := goroutines()
		for creator, count := range now {
			if count > before[creator] {
				return fmt.Errorf("%d by %s, which were %d before", count, creator, before[creator])
			}
		}
		if sources := rounds + 1; left > sources {
			return fmt.Errorf("%d that multicluster-runtime leaves, of %d sources", left, sources)
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

func TestFollowersHaveClustersAndEngageThemWhenTheyLead(t *testing.T) {
	w := newEnvironment(t)
	w.engage("alpha", "beta")
	held := newLock()
	operator := func(id string) (*multicluster.Provider, *engagements, mcmanager.Manager) {
		provider := w.provider(nil)
		mgr, noted := w.manager(provider, elected(held, id)), &engagements{}
		w.feeder(mgr)
		if err := errors.Join(mgr.Add(noted), provider.OnAllReplicas(mgr)); err != nil {
			t.Fatal(err)
		}
		return provider, noted, mgr
	}
	_, leading, mgr := operator("first")
	leader := w.start(mgr)
	w.untilEngaged(leading, "alpha", "beta")
	provider, following, mgr := operator("second")
	w.start(mgr)
	w.untilGot(provider, "alpha")
	w.untilGot(provider, "beta")
	if following.count() != 0 {
		t.Fatalf("a follower engaged %v", following.names())
	}
	// A cluster that was engaged and disengaged before the election must not end the manager.
	w.daemon.Disengage("beta", discovery.ReasonDeleted)
	w.untilGone(provider, "beta")
	leader.stop()
	w.untilEngaged(following, "alpha")
	w.animal("alpha", "dog")
	w.untilFed("alpha", "dog")
}

// always has a provider engage clusters on replicas that don't lead, as Milo's EngageAlways does.
type always struct {
	provider *multicluster.Provider
	mgr      mcmanager.Manager
}

func (a always) Start(ctx context.Context) error { return a.provider.Start(ctx, a.mgr) }
func (a always) NeedLeaderElection() bool        { return false }

// hidden is a provider that the manager does not start.
type hidden struct{ mc.Provider }

func TestElectionAfterADisengagementDoesNotEndTheManager(t *testing.T) {
	w := newEnvironment(t)
	w.engage("alpha", "beta")
	held := newLock()
	held.take("somebody else")
	provider := w.provider(nil)
	mgr, noted := w.manager(hidden{provider}, elected(held, "us")), &engagements{}
	w.feeder(mgr)
	if err := errors.Join(mgr.Add(noted), mgr.GetLocalManager().Add(always{provider, mgr})); err != nil {
		t.Fatal(err)
	}
	w.start(mgr)
	w.untilEngaged(noted, "alpha", "beta")
	w.daemon.Disengage("beta", discovery.ReasonDeleted)
	w.untilEngaged(noted, "alpha")
	held.free()
	w.animal("alpha", "dog")
	w.untilFed("alpha", "dog")
}
