package multicluster_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	mc "sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	"go.miloapis.com/discovery/multicluster"
)

const subscriber = "operator-0"

func named(o *multicluster.Options) { o.Subscriber = subscriber }

// draining returns a running provider with one engaged cluster, alpha.
func draining(t *testing.T) (*environment, *multicluster.Provider, *engagements, func()) {
	env := newEnvironment(t)
	env.engage("alpha")
	provider, engaged := env.provider(named), &engagements{}
	ctx, stop := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() {
		if err := provider.Start(ctx, engaged); err != nil {
			t.Error(err)
		}
	})
	end := func() { stop(); following.Wait() }
	t.Cleanup(end)
	env.untilEngaged(engaged, "alpha")
	return env, provider, engaged, end
}

// reconciling calls the guarded reconciler, and returns when the call has begun. The call returns after end is called.
func reconciling(within context.Context, provider *multicluster.Provider, name mc.ClusterName) (ctx context.Context, end func(), ended <-chan struct{}) {
	began, may, done := make(chan context.Context), make(chan struct{}), make(chan struct{})
	guarded := multicluster.Reconciler(provider, &corev1.ConfigMap{}, mcreconcile.Func(
		func(ctx context.Context, _ mcreconcile.Request) (reconcile.Result, error) {
			began <- ctx
			<-may
			return reconcile.Result{}, nil
		}))
	go func() {
		defer close(done)
		_, _ = guarded.Reconcile(within, mcreconcile.Request{ClusterName: name})
	}()
	return <-began, sync.OnceFunc(func() { close(may) }), done
}

func TestDrainCancelsTheContextOfAClusterAndReleasesIt(t *testing.T) {
	env, provider, engaged, _ := draining(t)
	env.daemon.Drain("alpha", discovery.ReasonNotReady)
	env.untilReleased("alpha")
	env.untilGone(provider, "alpha")
	if provider.Owns("alpha") {
		t.Error("the provider owns a draining cluster")
	}
	var cause *multicluster.Disengaged
	if !errors.As(context.Cause(engaged.context("alpha")), &cause) || cause.Reason != discovery.ReasonNotReady {
		t.Errorf("the cancellation cause is %v, want NOT_READY", context.Cause(engaged.context("alpha")))
	}
	env.engage("alpha")
	env.untilEngaged(engaged, "alpha")
}

func TestDrainingClusterIsReleasedAfterItsReconcilesReturned(t *testing.T) {
	env, provider, engaged, _ := draining(t)
	ctx, end, _ := reconciling(t.Context(), provider, "alpha")
	defer end()
	env.daemon.Drain("alpha", discovery.ReasonMoved)
	env.untilEngaged(engaged)
	env.daemon.Engage(discovery.Cluster{Name: "beta", Endpoint: env.api.Endpoint("beta")})
	env.untilEngaged(engaged, "beta") // by now, a premature release of alpha would have been sent
	if env.daemon.Released("alpha", subscriber) {
		t.Fatal("alpha was released while a reconcile was in flight")
	}
	if ctx.Err() != nil {
		t.Fatal("the drain canceled the context of a reconcile")
	}
	end()
	env.untilReleased("alpha")
}

func TestDisengagementAtTheDeadlineCancelsReconciles(t *testing.T) {
	env, provider, _, _ := draining(t)
	ctx, end, ended := reconciling(t.Context(), provider, "alpha")
	defer end()
	env.daemon.Drain("alpha", discovery.ReasonMoved)
	env.untilGone(provider, "alpha")
	env.daemon.Disengage("alpha", discovery.ReasonMoved)
	<-ctx.Done()
	var cause *multicluster.Disengaged
	if !errors.As(context.Cause(ctx), &cause) || cause.Reason != discovery.ReasonMoved {
		t.Errorf("the cancellation cause is %v, want MOVED", context.Cause(ctx))
	}
	end()
	<-ended
	if env.daemon.Released("alpha", subscriber) {
		t.Error("alpha was released after it was disengaged")
	}
}

func TestReconcilerDropsRequestsOfClustersThatAreNotOwned(t *testing.T) {
	env, provider, _, _ := draining(t)
	var saw []mc.ClusterName
	guarded := multicluster.Reconciler(provider, &corev1.ConfigMap{}, mcreconcile.Func(
		func(_ context.Context, request mcreconcile.Request) (reconcile.Result, error) {
			saw = append(saw, request.ClusterName)
			return reconcile.Result{}, nil
		}))
	all := func() {
		for _, name := range []mc.ClusterName{"", "alpha", "unknown"} {
			if _, err := guarded.Reconcile(t.Context(), mcreconcile.Request{ClusterName: name}); err != nil {
				t.Fatal(err)
			}
		}
	}
	all()
	env.daemon.Drain("alpha", discovery.ReasonNotReady)
	env.untilGone(provider, "alpha")
	all()
	if want := []mc.ClusterName{"", "alpha", ""}; !slices.Equal(saw, want) {
		t.Errorf("reconciled %q, want %q", saw, want)
	}
}

func TestReconcilerReturnsTheErrorOfItsReconciler(t *testing.T) {
	_, provider, _, _ := draining(t)
	broken := errors.New("broken")
	guarded := multicluster.Reconciler(provider, &corev1.ConfigMap{}, mcreconcile.Func(
		func(context.Context, mcreconcile.Request) (reconcile.Result, error) {
			return reconcile.Result{RequeueAfter: time.Hour}, broken
		}))
	for _, name := range []mc.ClusterName{"", "alpha"} {
		result, err := guarded.Reconcile(t.Context(), mcreconcile.Request{ClusterName: name})
		if !errors.Is(err, broken) || result.RequeueAfter != time.Hour {
			t.Errorf("Reconcile() for cluster %q = %v, %v; want the result and error of the inner reconciler", name, result, err)
		}
	}
}

func TestProviderOwnsEveryClusterWithoutAShardGroup(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "beta")
	provider := env.provider(nil)
	env.untilEngaged(env.startNoting(provider), "alpha", "beta")
	for name, want := range map[mc.ClusterName]bool{"alpha": true, "beta": true, "unknown": false} {
		if got := provider.Owns(name); got != want {
			t.Errorf("Owns(%s) = %t, want %t", name, got, want)
		}
	}
}

func TestOnlyTerminatingObjectsAreReconciledInAProjectThatIsBeingDeleted(t *testing.T) {
	env, provider, engaged, _ := draining(t)
	maps := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	project := env.api.Project("alpha")
	for _, name := range []string{"present", "terminating"} {
		object := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name, "namespace": "default"},
		}}
		if name == "terminating" {
			now := metav1.Now()
			object.SetDeletionTimestamp(&now)
			object.SetFinalizers([]string{"example.com/hold"})
		}
		project.Apply(maps, object)
	}
	var saw []string
	inner := mcreconcile.Func(func(_ context.Context, request mcreconcile.Request) (reconcile.Result, error) {
		saw = append(saw, request.Name)
		return reconcile.Result{}, nil
	})
	all := func(guarded reconcile.TypedReconciler[mcreconcile.Request]) []string {
		saw = nil
		for _, name := range []string{"present", "terminating", "absent"} {
			request := mcreconcile.Request{ClusterName: "alpha"}
			request.NamespacedName = types.NamespacedName{Namespace: "default", Name: name}
			if _, err := guarded.Reconcile(engaged.context("alpha"), request); err != nil {
				t.Fatal(err)
			}
		}
		return saw
	}
	guarded := multicluster.Reconciler(provider, &corev1.ConfigMap{}, inner)
	if found := all(guarded); len(found) != 3 {
		t.Errorf("reconciled %q before the deletion was requested, want all", found)
	}
	env.daemon.Update("alpha", func(c *discovery.Cluster) { c.DeletionRequestedAt = time.Now() })
	within(t, "the provider to receive the deletion request", func() error {
		if known, _ := provider.Info("alpha"); known.DeletionRequestedAt.IsZero() {
			return errors.New("DeletionRequestedAt is not set")
		}
		return nil
	})
	if found := all(guarded); !slices.Equal(found, []string{"terminating"}) {
		t.Errorf("reconciled %q, want the terminating one", found)
	}
	if found := all(multicluster.Reconciler(provider, &corev1.ConfigMap{}, inner, multicluster.WhileDeleting())); len(found) != 3 {
		t.Errorf("reconciled %q with WhileDeleting, want all", found)
	}
}

func TestClusterThatIsDrainingAtStartIsReleasedAndNotEngaged(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha", "beta")
	env.daemon.Drain("alpha", discovery.ReasonNotReady)
	provider, engaged := env.provider(named), &engagements{}
	ctx, stop := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() { _ = provider.Start(ctx, engaged) })
	defer following.Wait()
	defer stop()
	env.untilReleased("alpha")
	env.untilEngaged(engaged, "beta")
	if engaged.count() != 1 {
		t.Errorf("%d clusters were engaged, want 1", engaged.count())
	}
}

func TestFailedReleaseIsRetried(t *testing.T) {
	env, _, _, _ := draining(t)
	env.daemon.Fail("ReleaseCluster", discoverytest.Error(codes.Unavailable, "NOT_NOW", "later"))
	env.daemon.Drain("alpha", discovery.ReasonNotReady)
	within(t, "the drain", func() error {
		if env.daemon.Cluster("alpha").Draining == nil {
			return errors.New("the cluster is not draining")
		}
		return nil
	})
	env.daemon.Fail("ReleaseCluster", nil)
	env.untilReleased("alpha")
}

func TestDrainRepeatedByRestartedWatchWaitsForReconciles(t *testing.T) {
	env, provider, _, _ := draining(t)
	ctx, end, _ := reconciling(t.Context(), provider, "alpha")
	defer end()
	env.daemon.Drain("alpha", discovery.ReasonMoved)
	env.untilGone(provider, "alpha")
	env.daemon.WaitForStreams(1)
	env.daemon.BreakStreams(discoverytest.Error(codes.Unauthenticated, "UNAUTHENTICATED", "the token has expired"))
	env.daemon.WaitForStreams(0)
	env.daemon.WaitForStreams(1)
	env.daemon.Engage(discovery.Cluster{Name: "beta", Endpoint: env.api.Endpoint("beta")})
	env.untilGot(provider, "beta") // by now, a premature release of alpha would have been sent
	if env.daemon.Released("alpha", subscriber) {
		t.Fatal("alpha was released while a reconcile was in flight")
	}
	if ctx.Err() != nil {
		t.Fatalf("the restarted watch canceled the context of a reconcile: %v", context.Cause(ctx))
	}
	end()
	env.untilReleased("alpha")
}

func TestDrainRepeatedByRestartedDaemonIsReleasedAgain(t *testing.T) {
	env, _, _, _ := draining(t)
	env.daemon.Fail("ReleaseCluster", discoverytest.Error(codes.FailedPrecondition, "OTHER_INCARNATION", "no"))
	env.daemon.Drain("alpha", discovery.ReasonNotReady)
	env.daemon.WaitForStreams(1)
	env.daemon.Fail("ReleaseCluster", nil)
	env.daemon.Restart()
	env.untilReleased("alpha")
}

func TestClusterIsEngagedAgainIfRestartedDaemonNoLongerDrainsIt(t *testing.T) {
	env, provider, engaged, _ := draining(t)
	env.daemon.Fail("ReleaseCluster", discoverytest.Error(codes.Unavailable, "NOT_NOW", "later"))
	env.daemon.Drain("alpha", discovery.ReasonNotReady)
	env.untilGone(provider, "alpha")
	env.daemon.Stop()
	env.daemon.Update("alpha", func(cluster *discovery.Cluster) { cluster.Draining = nil })
	env.daemon.Start()
	env.untilEngaged(engaged, "alpha")
	if engaged.count() != 2 {
		t.Errorf("alpha was engaged %d times, want 2", engaged.count())
	}
}

func TestStoppedProviderEndsItsSubscription(t *testing.T) {
	env, _, _, end := draining(t)
	end()
	if ended := env.daemon.EndedSubscriptions(); !slices.Equal(ended, []string{subscriber}) {
		t.Errorf("the ended subscriptions are %q, want %q", ended, subscriber)
	}
}

func TestProviderThatStopsDuringReconcileKeepsItsSubscription(t *testing.T) {
	env, provider, _, end := draining(t)
	_, endReconcile, _ := reconciling(t.Context(), provider, "alpha")
	defer endReconcile()
	end()
	if ended := env.daemon.EndedSubscriptions(); len(ended) > 0 {
		t.Errorf("the ended subscriptions are %q, want none while a reconcile is in flight", ended)
	}
}

func TestProvidersHaveDifferentSubscribersByDefault(t *testing.T) {
	env := newEnvironment(t)
	names := map[string]bool{}
	for i := range 2 {
		provider := env.provider(nil)
		ctx, stop := context.WithCancel(t.Context())
		var following sync.WaitGroup
		following.Go(func() { _ = provider.Start(ctx, &engagements{}) })
		within(t, "the stream", func() error {
			if got := len(env.daemon.WatchRequests()); got != i+1 {
				return fmt.Errorf("got %d streams", got)
			}
			return nil
		})
		stop()
		following.Wait()
		names[env.daemon.WatchRequests()[i].GetSubscriber()] = true
	}
	if len(names) != 2 || names[""] {
		t.Errorf("the subscribers are %v, want two different names", names)
	}
}
