package prompt

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// slow is a cache whose GetInformer blocks until the test closes gate.
type slow struct {
	cache.Cache
	mu       sync.Mutex
	failures int
	asked    int
	gate     chan struct{}
	informer toolscache.SharedIndexInformer
}

func newSlow() *slow {
	return &slow{
		gate:     make(chan struct{}),
		informer: toolscache.NewSharedIndexInformer(&toolscache.ListWatch{}, &corev1.ConfigMap{}, 0, toolscache.Indexers{}),
	}
}

func (s *slow) GetInformer(ctx context.Context, _ client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	s.mu.Lock()
	s.asked++
	s.failures--
	failed := s.failures >= 0
	s.mu.Unlock()
	if failed {
		return nil, errors.New("not served yet")
	}
	select {
	case <-s.gate:
		return s.informer, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *slow) WaitForCacheSync(ctx context.Context) bool {
	<-ctx.Done()
	return false
}

func engaged(t *testing.T, s *slow) (*Cache, cache.Informer, context.CancelFunc) {
	t.Helper()
	c := New(s, scheme.Scheme, func(Unsynced) {})
	ctx, cancel := context.WithCancel(Engaging(t.Context()))
	t.Cleanup(cancel)
	informer, err := c.GetInformer(ctx, &corev1.ConfigMap{})
	if err != nil || !c.WaitForCacheSync(ctx) {
		t.Fatalf("GetInformer() error = %v, or WaitForCacheSync() = false", err)
	}
	return c, informer, cancel
}

func attached(of cache.Informer) bool {
	i := of.(*informer)
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.real != nil
}

func TestEventHandlersAreAttachedOnceInformerExists(t *testing.T) {
	s := newSlow()
	_, informer, _ := engaged(t, s)
	early, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{})
	removed, errRemoved := informer.AddEventHandlerWithResyncPeriod(toolscache.ResourceEventHandlerFuncs{}, time.Hour)
	indexed := informer.AddIndexers(toolscache.Indexers{"field": func(any) ([]string, error) { return nil, nil }})
	if err := errors.Join(err, errRemoved, indexed, informer.RemoveEventHandler(removed)); err != nil {
		t.Fatal(err)
	}
	if early.HasSynced() || informer.HasSynced() || informer.IsStopped() {
		t.Error("the placeholder has synced, or stopped, before the informer exists")
	}
	close(s.gate)
	for !attached(informer) {
		time.Sleep(time.Millisecond)
	}
	if _, ok := s.informer.GetIndexer().GetIndexers()["field"]; !ok {
		t.Error("the indexers were not added")
	}
	late, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(informer.RemoveEventHandler(early), informer.RemoveEventHandler(late)); err != nil {
		t.Error(err)
	}
	if err := informer.RemoveEventHandler(neverRegistered); err == nil {
		t.Error("a handler of another informer was removed")
	}
}

func TestFailedInformerCreationIsRetried(t *testing.T) {
	s := newSlow()
	s.failures = 1
	engaged(t, s)
	for {
		s.mu.Lock()
		asked := s.asked
		s.mu.Unlock()
		if asked == 2 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestInformerRequestedByTwoSourcesIsReportedOnce(t *testing.T) {
	s := newSlow()
	s.failures = 1
	c, _, _ := engaged(t, s)
	for c.Unsynced()[0].Reason != Failing {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithCancel(Engaging(t.Context()))
	t.Cleanup(cancel)
	for _, each := range []client.Object{
		&corev1.ConfigMap{}, &corev1.Secret{}, &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}},
	} {
		if _, err := c.GetInformer(ctx, each); err != nil {
			t.Fatal(err)
		}
	}
	unsynced := c.Unsynced()
	got := make([]string, 0, len(unsynced))
	for _, each := range unsynced {
		got = append(got, each.Kind+" "+string(each.Reason))
	}
	if want := []string{"ConfigMap.v1 failing", "ConfigMap.v1 syncing", "Secret.v1 syncing"}; !slices.Equal(got, want) {
		t.Errorf("the unsynced informers are %q, want %q", got, want)
	}
}

func TestWaitForInformersEndsWhenTheClusterIsDisengaged(t *testing.T) {
	s := newSlow()
	c, _, disengage := engaged(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Settled(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Settled() error = %v, want DeadlineExceeded", err)
	}
	disengage()
	if err := c.Settled(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestSourceStartedAfterDisengagementDoesNotFail(t *testing.T) {
	s := newSlow()
	c := New(s, scheme.Scheme, func(Unsynced) {})
	ctx, cancel := context.WithCancel(Engaging(t.Context()))
	cancel()
	informer, err := c.GetInformer(ctx, &corev1.ConfigMap{})
	if err != nil || !c.WaitForCacheSync(ctx) || s.asked != 0 {
		t.Fatalf("GetInformer() error = %v, with %d calls of the inner cache; want none", err, s.asked)
	}
	if registered, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{}); err != nil || registered.HasSynced() {
		t.Errorf("AddEventHandler() error = %v, or the handler has synced", err)
	}
}

func TestGetInformerBlocksOutsideOfEngagement(t *testing.T) {
	c := New(newSlow(), scheme.Scheme, func(Unsynced) {})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.GetInformer(ctx, &corev1.ConfigMap{}); err == nil || c.WaitForCacheSync(ctx) {
		t.Errorf("GetInformer() error = %v, want one, and WaitForCacheSync() = false", err)
	}
}

// TestReadsTimeOutAfterInformerIsRemoved reads a kind from a cluster that is unresponsive since its informer was
// removed.
func TestReadsTimeOutAfterInformerIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &removable{}
		c := New(s, scheme.Scheme, func(Unsynced) {})
		read := map[string]func() error{
			"Get":  func() error { return c.Get(t.Context(), client.ObjectKey{Name: "a"}, &corev1.ConfigMap{}) },
			"List": func() error { return c.List(t.Context(), &corev1.ConfigMapList{}) },
		}
		for name, each := range read {
			if err := each(); err != nil {
				t.Errorf("%s with an informer: error = %v", name, err)
			}
		}
		if err := c.RemoveInformer(t.Context(), &corev1.ConfigMap{}); err != nil {
			t.Fatal(err)
		}
		for name, each := range read {
			if err := each(); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s without an informer: error = %v, want DeadlineExceeded", name, err)
			}
		}
	})
}

// removable is a cache whose reads block once the informer was removed.
type removable struct {
	cache.Cache
	removed bool
}

func (r *removable) RemoveInformer(context.Context, client.Object) error {
	r.removed = true
	return nil
}

func (r *removable) Get(ctx context.Context, _ client.ObjectKey, _ client.Object, _ ...client.GetOption) error {
	return r.read(ctx)
}

func (r *removable) List(ctx context.Context, _ client.ObjectList, _ ...client.ListOption) error {
	return r.read(ctx)
}

func (r *removable) read(ctx context.Context) error {
	if !r.removed {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Hour):
		return errors.New("the read blocked for an hour")
	}
}
