// Package upstream reproduces defects of multicluster-runtime and client-go. Its tests pass while the defects exist:
// see docs/reviewers/upstream.md.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	mcbuilder "sigs.k8s.io/multicluster-runtime/pkg/builder"
	"sigs.k8s.io/multicluster-runtime/pkg/clusters"
	mccontroller "sigs.k8s.io/multicluster-runtime/pkg/controller"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	"sigs.k8s.io/multicluster-runtime/pkg/manager/coordinator/sharded"
	"sigs.k8s.io/multicluster-runtime/pkg/manager/coordinator/sharded/sharder"
	mc "sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"
	nop "sigs.k8s.io/multicluster-runtime/providers/nop"

	"go.miloapis.com/discovery/multicluster/apitest"
)

const syncPoll = 100 * time.Millisecond // default of client-go

func config(api *apitest.Server, project string) *rest.Config {
	return &rest.Config{Host: api.Endpoint(project), TLSClientConfig: rest.TLSClientConfig{CAData: api.CA()}}
}

// working returns a manager whose controller is running. Before its controller runs, Engage only records clusters.
func working(t *testing.T, api *apitest.Server) mcmanager.Manager {
	t.Helper()
	reconciled := make(chan struct{}, 1)
	mgr, _ := reconciling(t, api, nil, func() {
		select {
		case reconciled <- struct{}{}:
		default:
		}
	})
	object := &unstructured.Unstructured{Object: map[string]any{}}
	object.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
	object.SetNamespace("default")
	object.SetName("first")
	api.Project("first").Apply(corev1.SchemeGroupVersion.WithResource("configmaps"), object)
	if err := mgr.Engage(t.Context(), "first", running(t.Context(), t, api, "first")); err != nil {
		t.Fatal(err)
	}
	<-reconciled
	return mgr
}

// started returns a manager that watches ConfigMaps, with a provider without clusters, and the channel of Start's
// result.
func started(t *testing.T, api *apitest.Server, change func(*manager.Options)) (mcmanager.Manager, <-chan error) {
	t.Helper()
	return reconciling(t, api, change, func() {})
}

func reconciling(t *testing.T, api *apitest.Server, change func(*manager.Options), reconciled func()) (mcmanager.Manager, <-chan error) {
	t.Helper()
	log.SetLogger(logr.Discard())
	options := manager.Options{Metrics: metricsserver.Options{BindAddress: "0"}}
	if change != nil {
		change(&options)
	}
	mgr, err := mcmanager.New(config(api, "local"), nop.New(), options)
	if err != nil {
		t.Fatal(err)
	}
	// Before controller-runtime 0.25, a priority queue can leak goroutines when it shuts down (controller-runtime#3538).
	skip, usePriorityQueue := true, false
	err = mcbuilder.ControllerManagedBy(mgr).Named("upstream").For(&corev1.ConfigMap{}).
		WithOptions(mccontroller.Options{SkipNameValidation: &skip, UsePriorityQueue: &usePriorityQueue}).
		Complete(mcreconcile.Func(func(context.Context, mcreconcile.Request) (reconcile.Result, error) {
			reconciled()
			return reconcile.Result{}, nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	t.Cleanup(cancel)
	return mgr, ended
}

// running returns a cluster that runs until ctx is done.
func running(ctx context.Context, t *testing.T, api *apitest.Server, project string) cluster.Cluster {
	t.Helper()
	cl, err := cluster.New(config(api, project))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = cl.Start(ctx) }()
	if !cl.GetCache().WaitForCacheSync(ctx) {
		t.Fatal("the cache did not start")
	}
	return cl
}

func TestEngageWaitsForEachInformer(t *testing.T) {
	api := apitest.Start(0)
	t.Cleanup(api.Close)
	mgr := working(t, api)
	const count = 5
	var engaging sync.WaitGroup
	ctx := t.Context()
	of := make([]cluster.Cluster, count)
	for i := range of {
		of[i] = running(ctx, t, api, fmt.Sprintf("project-%d", i))
	}
	began := time.Now()
	for i, cl := range of {
		engaging.Go(func() {
			if err := mgr.Engage(ctx, mc.ClusterName(fmt.Sprint(i)), cl); err != nil {
				t.Error(err)
			}
		})
	}
	engaging.Wait()
	took := time.Since(began)
	t.Logf("%d clusters with one informer each, engaged concurrently: %v", count, took)
	if took < 2*syncPoll { // concurrent calls would take one poll interval, unless informers sync before the first poll
		t.Errorf("Engage of all clusters took %v: the defect is fixed", took)
	}
}

func TestEngageOfUnresponsiveClusterBlocksOthers(t *testing.T) {
	api := apitest.Start(0)
	t.Cleanup(api.Close)
	api.Project("silent").Forbid("configmaps")
	mgr := working(t, api)
	silent, giveUp := context.WithCancel(t.Context())
	stuck, other := running(silent, t, api, "silent"), running(t.Context(), t, api, "other")
	go func() { _ = mgr.Engage(silent, "silent", stuck) }()
	for api.Project("silent").Count("forbidden configmaps") == 0 {
		time.Sleep(time.Millisecond)
	}
	engaged := make(chan error, 1)
	go func() { engaged <- mgr.Engage(t.Context(), "other", other) }()
	select {
	case err := <-engaged:
		t.Fatalf("the other cluster was engaged (%v): the defect is fixed", err)
	case <-time.After(10 * syncPoll):
	}
	giveUp()
	if err := <-engaged; err != nil {
		t.Fatal(err)
	}
}

func TestEachEngagementLeaksAGoroutine(t *testing.T) {
	api := apitest.Start(0)
	t.Cleanup(api.Close)
	mgr := working(t, api)
	const rounds = 10
	before := left()
	for range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		if err := mgr.Engage(ctx, "project", running(ctx, t, api, "project")); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	if got := left() - before; got < rounds {
		t.Errorf("%d goroutines leaked by %d engagements: the defect is fixed", got, rounds)
	}
}

// left returns the number of goroutines that startWithinContext started.
func left() (count int) {
	var text strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&text, 2)
	for stack := range strings.SplitSeq(text.String(), "\n\n") {
		if strings.Contains(stack, "created by sigs.k8s.io/multicluster-runtime/pkg/controller.(*mcController[...].func") ||
			strings.Contains(stack, "startWithinContext") {
			count++
		}
	}
	return count
}

// heldLock is a lock with another holder until it is freed.
type heldLock struct {
	resourcelock.Interface
	mu     sync.Mutex
	holder string
	reads  int
}

func (l *heldLock) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	return &resourcelock.LeaderElectionRecord{HolderIdentity: l.holder, LeaseDurationSeconds: 3600}, []byte(l.holder), nil
}

func (l *heldLock) Update(_ context.Context, record resourcelock.LeaderElectionRecord) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holder = record.HolderIdentity
	return nil
}

func (l *heldLock) RecordEvent(string) {}
func (l *heldLock) Identity() string   { return "us" }
func (l *heldLock) Describe() string   { return "in memory" }

func TestElectionAfterADisengagementStopsTheManager(t *testing.T) {
	api := apitest.Start(0)
	t.Cleanup(api.Close)
	held := &heldLock{holder: "another replica"}
	lease, renew, retry := 3*time.Second, 2*time.Second, 20*time.Millisecond
	mgr, ended := started(t, api, func(o *manager.Options) {
		o.LeaderElection, o.LeaderElectionResourceLockInterface = true, held
		o.LeaseDuration, o.RenewDeadline, o.RetryPeriod = &lease, &renew, &retry
	})
	ctx, cancel := context.WithCancel(t.Context())
	if err := mgr.Engage(ctx, "project", running(ctx, t, api, "project")); err != nil {
		t.Fatal(err)
	}
	cancel()
	held.mu.Lock()
	held.holder = ""
	held.mu.Unlock()
	select {
	case err := <-ended:
		t.Logf("the manager stopped: %v", err)
		if err == nil {
			t.Error("the manager stopped without an error: the defect has changed")
		}
	case <-time.After(30 * time.Second):
		t.Error("the manager is running: the defect is fixed")
	}
}

// everywhere is a provider that needs no leader election, and reports the holder of the lock when it is started.
type everywhere struct {
	*nop.Provider
	held    *heldLock
	started chan string
}

func (everywhere) NeedLeaderElection() bool { return false }

func (e everywhere) Start(ctx context.Context, _ mc.Aware) error {
	e.held.mu.Lock()
	holder := e.held.holder
	e.held.mu.Unlock()
	e.started <- holder
	<-ctx.Done()
	return nil
}

func TestProviderIsNotStartedBeforeTheElection(t *testing.T) {
	log.SetLogger(logr.Discard())
	api := apitest.Start(0)
	t.Cleanup(api.Close)
	held := &heldLock{holder: "another replica"}
	provider := everywhere{Provider: nop.New(), held: held, started: make(chan string, 1)}
	lease, renew, retry := 3*time.Second, 2*time.Second, 20*time.Millisecond
	mgr, err := mcmanager.New(config(api, "local"), provider, manager.Options{
		Metrics: metricsserver.Options{BindAddress: "0"}, LeaderElection: true, LeaderElectionResourceLockInterface: held,
		LeaseDuration: &lease, RenewDeadline: &renew, RetryPeriod: &retry,
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = mgr.Start(t.Context()) }()
	// Runnables that need no election are started before the manager reads the lock.
	for follows := false; !follows; time.Sleep(time.Millisecond) {
		held.mu.Lock()
		if follows = held.reads > 10; follows {
			held.holder = ""
		}
		held.mu.Unlock()
	}
	if holder := <-provider.started; holder != held.Identity() {
		t.Errorf("the provider was started while %q held the lock: the defect is fixed", holder)
	}
}

// duringAdd calls hook while clusters.Clusters waits for the cache, after it has registered the cluster.
type duringAdd struct {
	cluster.Cluster
	hook func()
}

type hookedCache struct {
	cache.Cache
	hook func()
}

func (d duringAdd) GetCache() cache.Cache { return hookedCache{d.Cluster.GetCache(), d.hook} }

func (c hookedCache) WaitForCacheSync(ctx context.Context) bool {
	synced := c.Cache.WaitForCacheSync(ctx)
	c.hook()
	return synced
}

func TestIndexThatIsAddedDuringAnEngagementLosesTheCluster(t *testing.T) {
	log.SetLogger(logr.Discard())
	api := apitest.Start(0)
	t.Cleanup(api.Close)
	cl, err := cluster.New(config(api, "project"))
	if err != nil {
		t.Fatal(err)
	}
	all := clusters.New[cluster.Cluster]()
	index := func() {
		err := all.IndexField(t.Context(), &corev1.ConfigMap{}, "type", func(client.Object) []string { return nil })
		if err != nil {
			t.Error(err)
		}
	}
	err = all.Add(t.Context(), "project", duringAdd{cl, index}, nil)
	t.Logf("Add: %v", err)
	if err == nil {
		t.Fatal("the cluster was added: the defect is fixed")
	}
	if _, err := all.Get(t.Context(), "project"); !errors.Is(err, mc.ErrClusterNotFound) {
		t.Errorf("Get() error = %v, want ErrClusterNotFound", err)
	}
}

// undecided is the registry and the sharder of a coordinator that owns no cluster until the test sets owns.
type undecided struct {
	owns  atomic.Bool
	asked atomic.Int64
}

func (u *undecided) Self() sharder.PeerInfo       { return sharder.PeerInfo{ID: "us", Weight: 1} }
func (u *undecided) Snapshot() []sharder.PeerInfo { return []sharder.PeerInfo{u.Self()} }

func (u *undecided) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (u *undecided) ShouldOwn(string, []sharder.PeerInfo, sharder.PeerInfo) bool {
	owns := u.owns.Load()
	u.asked.Add(1)
	return owns
}

// engaged is an Aware that sends the context of each engagement of a name on a channel.
type engaged struct {
	ctxs chan context.Context
	name mc.ClusterName
}

func (e *engaged) Engage(ctx context.Context, name mc.ClusterName, _ cluster.Cluster) error {
	if name == e.name {
		e.ctxs <- ctx
	}
	return nil
}

func TestDisengagementInShardedCoordinatorEndsAnotherCluster(t *testing.T) {
	api := apitest.Start(0)
	t.Cleanup(api.Close)
	kube, err := client.New(config(api, "local"), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	group, stays := &undecided{}, &engaged{ctxs: make(chan context.Context, 10), name: "stays"}
	coordinator := sharded.New(kube, logr.Discard(), sharded.WithPeerRegistry(group), sharded.WithSharder(group))
	coordinator.AddAware(stays)
	if err := coordinator.Engage(t.Context(), "stays", nil); err != nil {
		t.Fatal(err)
	}
	for group.asked.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	// As if another replica had stopped, this one now owns both clusters. The engagement of "goes" starts "stays" as well.
	group.owns.Store(true)
	goes, disengage := context.WithCancel(t.Context())
	if err := coordinator.Engage(goes, "goes", nil); err != nil {
		t.Fatal(err)
	}
	ctx := <-stays.ctxs
	disengage()
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the other cluster is still engaged: the defect is fixed")
	}
	// At each engagement the coordinator checks all clusters, but does not restart the one that has ended.
	if err := coordinator.Engage(t.Context(), "comes", nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-stays.ctxs:
		t.Error("the cluster was engaged again: the defect is smaller than described")
	case <-time.After(10 * syncPoll):
	}
}

func TestStoppedWatchFilterBlocksOnItsPendingEvent(t *testing.T) {
	inner := watch.NewRaceFreeFake()
	filtered := watch.Filter(inner, func(e watch.Event) (watch.Event, bool) { return e, true })
	inner.Add(&corev1.ConfigMap{})
	filtered.Stop()
	if _, held := <-filtered.ResultChan(); !held {
		t.Error("the pending event was dropped: the defect is fixed")
	}
}

func TestInformerReopensWatchesWithAnEventWithoutBackoff(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	opened := make(chan struct{})
	informer := toolscache.NewSharedInformer(&toolscache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			return &corev1.ConfigMapList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}}, nil
		},
		WatchFuncWithContext: func(_ context.Context, options metav1.ListOptions) (watch.Interface, error) {
			if options.SendInitialEvents != nil {
				return nil, apierrors.NewBadRequest("streaming lists are disabled")
			}
			select {
			case opened <- struct{}{}:
			case <-ctx.Done():
			}
			w := watch.NewFakeWithChanSize(1, false)
			w.Add(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "2"}})
			w.Stop()
			return w, nil
		},
	}, &corev1.ConfigMap{}, 0)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		informer.RunWithContext(ctx)
	}()
	enough := time.After(10 * time.Second)
	for n := range 100 {
		select {
		case <-opened:
		case <-enough:
			t.Fatalf("%d watches were opened in 10 s, want 100: the defect is fixed", n)
		}
	}
	cancel()
	<-ended
}
